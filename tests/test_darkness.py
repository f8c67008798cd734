"""What counts as a dark part of a cell: real cells, parts of which are darkened here."""

import numpy as np
import pytest
from PIL import Image

from elcells.data.tables import CLASSES
from elcells.inference.darkness import dark_part

WIDTHS = (0.15, 0.3, 0.6)  # of the cell


@pytest.fixture(scope="module")
def sound(elpv, table):
    """Twelve defect-free cells, uint8 (300, 300)."""
    names = set(table.loc[~table[list(CLASSES)].any(axis=1), "filename"])
    paths = [path for path in sorted((elpv.parent / "images").glob("*.png")) if f"images/{path.name}" in names]
    return [np.asarray(Image.open(path).convert("L")) for path in paths[:12]]


def darkened(cell, start, width, factor, turned):
    """A cell whose rows (columns, if turned) from a place on are darker; start, width: shares of its side."""
    first, last = (round(value * len(cell)) for value in (start, start + width))
    lines = np.array(cell.T if turned else cell)
    lines[first:last] = np.rint(lines[first:last] * factor)
    return lines.T if turned else lines


@pytest.mark.parametrize("factor", [0.1, 0.3])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("place", ["start", "middle", "end"])
def test_a_straight_dark_part_is_named_with_its_share_and_brightness(sound, factor, turned, width, place):
    start = {"start": 0, "middle": 0.22, "end": 1 - width}[place]
    found = [dark_part(darkened(cell, start, width, factor, turned)) for cell in sound]
    assert len(found) == 12 and all(share == pytest.approx(width, abs=0.03) for share, _ in found)
    assert all(ratio == pytest.approx(factor, rel=0.35) for _, ratio in found)


def test_two_dark_parts_are_summed(sound):
    for cell in sound:
        twice = darkened(darkened(cell, 0, 0.2, 0.1, True), 0.6, 0.2, 0.1, True)
        assert dark_part(twice)[0] == pytest.approx(0.4, abs=0.04)


def test_the_dark_part_beside_a_bright_band_is_named(sound):
    for cell in sound:
        banded = cell // 3
        banded[120:180] = 255  # saturated, as a cell under reverse bias is
        share, ratio = dark_part(banded)
        assert share == pytest.approx(0.8, abs=0.04) and ratio < 0.4


def test_a_sound_cell_has_no_dark_part(sound):
    assert {dark_part(cell) for cell in sound} == {(0.0, None)}


def test_dark_rims_and_light_that_fades_are_no_dark_parts(sound):
    fading = np.linspace(1, 0.2, 300)[:, None]
    for cell in sound:
        rim = np.array(cell)
        rim[:14] = rim[:, -14:] = 3
        assert dark_part(rim) == (0.0, None)
        assert dark_part((cell * fading).astype(np.uint8)) == (0.0, None)


def test_only_in_a_module_a_cell_is_dark_as_a_whole(sound):
    for cell in sound:
        usual = float(np.median(cell))
        dim = np.rint(cell * 0.31).astype(np.uint8)
        assert dark_part(dim) == (0.0, None) and dark_part(cell, usual) == (0.0, None)
        share, ratio = dark_part(dim, usual)
        assert share == 1 and ratio == pytest.approx(0.31, abs=0.02)


def test_in_a_module_a_part_is_compared_with_the_other_cells_too(sound):
    for cell in sound:
        dim = np.rint(darkened(cell, 0, 0.5, 0.1, False) * 0.7).astype(np.uint8)
        share, ratio = dark_part(dim, float(np.median(cell)))
        assert share == pytest.approx(0.5, abs=0.03) and ratio == pytest.approx(0.07, rel=0.5)


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (15, 40), (16, 16), (150, 300), (300, 150)])
def test_cells_of_any_size_and_without_light_are_taken(shape):
    for value in (0, 1, 255):
        assert dark_part(np.full(shape, value, np.uint8)) == (0.0, None)
        assert dark_part(np.full(shape, value, np.uint8), 120.0)[0] == (value < 60)


@pytest.mark.parametrize(
    "start, width, factor, is_named",
    [
        (0.4, 0.10, 0.1, True),
        (0.4, 0.06, 0.1, False),  # no wider than an old busbar
        (0.0, 0.15, 0.1, True),
        (0.0, 0.10, 0.1, False),  # half of it is the rim
        (0.3, 0.40, 0.4, True),
        (0.3, 0.40, 0.6, False),
    ],
)
def test_a_part_must_be_wide_and_dark_enough(sound, start, width, factor, is_named):
    shares = [dark_part(darkened(cell, start, width, factor, False))[0] for cell in sound]
    assert sum(share > 0 for share in shares) >= 11 if is_named else not any(shares)
