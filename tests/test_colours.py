"""Overlays and plots: one palette, and text that can be read."""

import numpy as np
import pytest
from conftest import ROOT
from matplotlib.colors import to_hex
from PIL import Image, ImageFont

from elcells.colours import CLASS_COLOURS, NO_DEFECT, VERDICT_COLOURS
from elcells.evaluation import plots
from elcells.modules.cutting import CutModule
from elcells.modules.grid import Grid
from elcells.modules.overlay import LEGEND_HEIGHT, MOST_ENLARGED, SHOWN_SIZE, TEXT_CELL, draw_module

TEXT = (".py", ".js", ".css", ".html")


def test_the_colours_of_defects_are_defined_in_one_file():
    ours = {VERDICT_COLOURS[name] for name in ("crack", "inactive", "crack and inactive")} | set(CLASS_COLOURS[:2])
    files = [*ROOT.glob("*.py"), *(path for path in (ROOT / "elcells").rglob("*") if path.suffix in TEXT)]
    holds = {path.name for path in files for colour in ours if colour in path.read_text(encoding="utf-8").lower()}
    assert holds == {"colours.py"}


@pytest.fixture
def figures(monkeypatch):
    """The figures that are plotted, which are not saved."""
    shown = []
    monkeypatch.setattr(plots, "save", lambda figure, *_: shown.append(figure))
    return shown


def colours(axes):
    """The colour of each labelled line, {label: "#e69f00"}."""
    return {line.get_label(): to_hex(line.get_color()) for line in axes.get_lines()}


def test_plots_show_each_class_in_its_colour_and_what_is_of_none_in_gray(figures):
    rng = np.random.default_rng(0)
    classes = ("crack", "inactive")
    labels = np.tile([[0.0, 1.0], [1.0, 0.0]], (20, 1))
    probabilities = rng.random((40, 2))
    history = [{"epoch": 1, "train_loss": 1, "val_loss": 2, "f1_crack": 0.5, "f1_inactive": 0.7, "f1_mean": 0.6}]
    plots.plot_losses(history, classes, None)
    plots.plot_precision_recall(labels, probabilities, [0.5, 0.5], classes, None)
    plots.plot_reliability(labels, probabilities, classes, None)
    (losses, scores), [curves], (crack, inactive, *_) = (figure.axes for figure in figures)
    assert colours(losses) == {"training": "#000000", "validation": "#808080"}
    assert colours(scores) == dict(zip(classes, CLASS_COLOURS)) | {"mean": "#000000"}
    assert [to_hex(line.get_color()) for line in curves.get_lines()] == [c for c in CLASS_COLOURS[:2] for _ in "12"]
    assert [colours(axes)["measured"] for axes in (crack, inactive)] == list(CLASS_COLOURS[:2])


def module_of(cell, columns=4, rows=3):
    """A CutModule of square cells of so many pixels, which fill its image."""
    width, height = cell * columns, cell * rows
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]]) - 0.5
    image = Image.new("L", (width, height), 90)
    return CutModule("m.png", columns, rows, sure=True, grid=Grid(corners, columns, rows, (height, width)), image=image)


def drawn(module, path, **options):
    """The image of a module whose first cell has a crack, without its legend, as it was saved."""
    verdicts = ["crack"] + [NO_DEFECT] * (module.columns * module.rows - 1)
    draw_module(module, path, verdicts, **options)
    with Image.open(path) as image:
        return image.crop((0, 0, image.width, image.height - LEGEND_HEIGHT))


@pytest.mark.parametrize("cell, columns", [(10, 20), (60, 20), (150, 20), (10, 70)])
def test_cells_of_all_sizes_have_room_for_their_probabilities(tmp_path, cell, columns):
    module = module_of(cell, columns)
    texts = ["0.97"] + [""] * (module.columns * module.rows - 1)
    image = drawn(module, tmp_path / "m.png", probabilities=texts)
    assert image.width / columns >= min(TEXT_CELL, MOST_ENLARGED // columns)
    assert image.width <= (SHOWN_SIZE if cell >= TEXT_CELL else MOST_ENLARGED)
    first = image.crop((0, 0, image.width // columns, image.height // module.rows))
    assert first.getchannel("B").getextrema()[1] > 180  # of the white text; the gray is 90, and orange has no blue


def test_a_module_that_was_not_judged_is_not_enlarged(tmp_path):
    assert drawn(module_of(20, columns=30), tmp_path / "m.png", judged=False).width == 600


def test_the_legend_of_a_narrow_module_is_not_cut(tmp_path):
    module = module_of(50, columns=1)
    image = drawn(module, tmp_path / "m.png", probabilities=["0.97", "", ""])
    assert image.width > ImageFont.load_default(14).getlength("no defect: 2 crack: 1 numbers: probability")
