"""Random tables, images and checkpoints give a result or one sentence, never a traceback.

`python -m pytest tests/test_fuzz.py --fuzz 5000` tries more of each than the 200 of a normal run.
"""

import io
import zipfile

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import data
from elcells.data.images import examine, read_image
from elcells.data.tiff import pages_of
from elcells.files import InputError
from model import build_model, load_model, save_checkpoint


@pytest.fixture
def fuzz(request):
    """run(strategy, check) calls check with `--fuzz` examples, the same in every run."""

    def run(strategy, check):
        options = settings(
            max_examples=request.config.getoption("--fuzz"),
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        options(given(strategy)(check))()

    return run


def one_sentence(error):
    text = str(error)
    return "\n" not in text.strip() and len(text) > 10


# ---------------------------------------------------------------- tables

LABELS = st.sampled_from(["0", "1"] * 12 + ["1.0", "0.0", " 1", "2", "-1", "", "yes", "nan", "1e400", '"1"', "½"])
NAMES = st.one_of(
    st.integers(1, 30).map("cell{:04}.png".format),
    st.sampled_from(
        ["rot_cell0001.png", "mirrh_cell0001.png", "a/b.png", "..\\c.png", "", " ", "é.png", "x;y", '"q', "\0"]
    ),
    st.text(max_size=8),
)


GOOD_HEADERS = ["filename;crack;inactive"] * 7 + ["crack;filename;inactive;type;module"]
BAD_HEADERS = ["filename,crack,inactive", "filename\tcrack", "", "filename;crack", "filename;crack;crack;inactive"]


@st.composite
def tables(draw):
    """The bytes of a table that is more or less right."""
    header = draw(st.sampled_from(GOOD_HEADERS + BAD_HEADERS))
    lines = [header]
    for _ in range(draw(st.integers(0, 12))):
        fields = [draw(NAMES if column == "filename" else LABELS) for column in header.split(";")]
        surplus = draw(st.sampled_from([0] * 9 + [1, 2]))
        lines.append(";".join(fields + [""] * surplus))
    text = draw(st.sampled_from(["\n", "\r\n", "\r"])).join(lines) + draw(st.sampled_from(["\n", "", "\n\n"]))
    raw = text.encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])), "surrogatepass")
    is_cut = draw(st.integers(0, 9)) == 0
    return raw[: draw(st.integers(0, len(raw)))] if is_cut else raw


def test_a_random_table_is_read_or_refused_in_one_sentence(fuzz, tmp_path):
    path, outcomes = tmp_path / "t.csv", set()

    def check(raw):
        path.write_bytes(raw)
        try:
            table = data.read_table(path)
            assert len(table) and table[["crack", "inactive"]].isin([0, 1]).all(axis=None)
            assert not table["filename"].duplicated().any()
            data.summary(table)
            outcomes.add("read")
            data.split_parts(table)
        except InputError as error:
            assert one_sentence(error), error
            outcomes.add("refused")

    fuzz(st.one_of(tables(), st.binary(max_size=200)), check)
    assert outcomes == {"read", "refused"}


# ---------------------------------------------------------------- images


def encoded(kind):
    """The bytes of a small image in a format of Pillow."""
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (40, 30), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


GOOD = {kind: encoded(kind) for kind in ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM")}


@st.composite
def damaged(draw, files):
    """The bytes of a good file, some of them changed, removed or inserted."""
    raw = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(raw))) if draw(st.booleans()) else min(draw(st.integers(0, 80)), len(raw))
        change = draw(st.integers(0, 3))
        if change == 0:
            raw[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif change == 1:
            raw[at : at + draw(st.integers(1, 20))] = b""
        elif change == 2:
            raw[at:at] = draw(st.binary(max_size=20))
        else:
            raw[at : at + 4] = draw(st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"]))
    return bytes(raw)


@st.composite
def camera_files(draw):
    """Pages and photometric interpretation of a TIFF as cameras write them, of any depth, sign and aspect."""
    kind = draw(st.sampled_from([np.uint8, np.uint16, np.int16, np.uint32, np.int32, np.float32]))
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 80)), draw(st.integers(1, 80))
    bits = draw(st.integers(0, 8 * np.dtype(kind).itemsize - 1))
    pixels = np.random.default_rng(draw(st.integers(0, 99))).random(shape) * 2.0**bits
    sign = draw(st.sampled_from([0, 0, 2.0**bits / 2])) if np.dtype(kind).kind == "i" else 0
    return (pixels - sign).astype(kind), draw(st.sampled_from(["minisblack", "miniswhite"]))


def test_a_random_camera_file_is_read_or_refused_in_one_sentence(fuzz, tmp_path):
    path, outcomes = tmp_path / "p.tif", set()

    def check(file):
        pages, photometric = file
        tifffile.imwrite(path, pages, photometric=photometric)
        for name in pages_of(str(path)):
            try:
                image, notes, _ = examine(name, 32)
                assert image.dtype == np.uint8 and image.shape == (32, 32) and all(map(str, notes))
                outcomes.add("read")
            except InputError as error:
                assert one_sentence(error), error
                outcomes.add("refused")

    fuzz(camera_files(), check)
    assert outcomes == {"read", "refused"}


def test_a_damaged_image_is_read_or_refused_in_one_sentence(fuzz, tmp_path):
    path, outcomes = tmp_path / "p.png", set()

    def check(raw):
        path.write_bytes(raw)
        try:
            image = read_image(path, 32)
            assert image.dtype == np.uint8 and image.shape == (32, 32)
            outcomes.add("read")
        except InputError as error:
            assert one_sentence(error) and str(path) in str(error), error
            outcomes.add("refused")

    fuzz(st.one_of(damaged(list(GOOD.values())), st.binary(max_size=100)), check)
    assert outcomes == {"read", "refused"}


# ---------------------------------------------------------------- checkpoints


def test_a_damaged_checkpoint_is_loaded_or_refused_in_one_sentence(fuzz, tmp_path):
    path = tmp_path / "c.ckp"
    save_checkpoint(path, build_model("resnet", width=1, image_size=32))
    good, outcomes = path.read_bytes(), set()
    with zipfile.ZipFile(path) as archive:
        pickled = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        entries = {n: archive.read(n) for n in archive.namelist()}

    def rezipped(raw):
        """The archive intact, its pickle not."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for name, content in entries.items():
                archive.writestr(name, raw if name == pickled else content)
        return buffer.getvalue()

    def check(raw):
        path.write_bytes(raw)
        try:
            load_model(path)[0](torch.zeros(1, 1, 32, 32, dtype=torch.uint8))
            outcomes.add("loaded")
        except InputError as error:
            assert one_sentence(error) and str(path) in str(error), error
            outcomes.add("refused")

    fuzz(st.one_of(damaged([good]), damaged([entries[pickled]]).map(rezipped)), check)
    assert outcomes == {"loaded", "refused"}


@pytest.mark.parametrize(
    "entry, value",
    [
        ("config", {"network": "resnet", "classes": ["a", "b"], "width": "wide"}),
        ("config", {"network": "resnet", "classes": 5, "width": 16}),
        ("config", {"network": "resnet", "classes": ["a", "b"], "width": 10**9}),
        ("config", {"network": "vgg", "classes": ["a", "b"], "width": 16}),
        ("config", {}),
        ("config", None),
        ("model", None),
        ("model", {"stem.0.weight": torch.zeros(3)}),
        ("model", {1: 2}),
    ],
)
def test_a_checkpoint_whose_parts_make_no_sense_is_refused(tmp_path, entry, value):
    path = tmp_path / "c.ckp"
    save_checkpoint(path, build_model("resnet", width=16, image_size=32))
    checkpoint = torch.load(path, weights_only=True)
    torch.save(checkpoint | {entry: value}, path)
    with pytest.raises(InputError, match=r"c.ckp: ") as error:
        load_model(path)
    assert one_sentence(error.value)
