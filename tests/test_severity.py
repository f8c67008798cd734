"""How bad a cell's defects are: lengths of drawn lines, areas of drawn regions, and what is drawn over the cell."""

import io
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

import data
from benchmarks import severity as benchmark
from elcells.data.images import read_image, to_square
from elcells.files import InputError
from elcells.inference.calls import read
from elcells.inference.cells import CellResult, with_severity
from elcells.inference.networks import SHIPPED, Network, open_network
from elcells.inference.severity import (
    CORNER,
    LEAST_AREA,
    LEAST_PIXELS,
    SHORTEST,
    SIDE,
    length_of,
    severity_of,
    shape_image,
)
from elcells.modules.judging import cells_of_module
from elcells.records.requests import request_of
from elcells.records.work import prepared_cell

LINES_SIDE = 150  # of the network's probabilities of a 300 x 300 image
BRIGHT = 150
ENGINE = SimpleNamespace(classes=("crack", "inactive"), has_lines=True)


def drawn(*paths, value=0.9, width=2, dim=0.0):
    """Probabilities, float32 (150, 150), that are `value` along paths, lists of (x, y) in 0..1."""
    lines = np.full((LINES_SIDE, LINES_SIDE), dim, np.float32)
    for path in paths:
        points = np.rint(np.array(path) * LINES_SIDE).astype(np.int32)
        cv2.polylines(lines, [points], False, float(value), width)
    return lines


def length(path):
    """The length of a path, a list of (x, y)."""
    return np.hypot(*np.diff(np.array(path), axis=0).T).sum()


def cell_with(*rectangles, value=20, noise=True):
    """A cell, uint8 (300, 300), with rectangles (x, y, width, height) in pixels that are darker."""
    cell = np.full((SIDE, SIDE), BRIGHT, np.uint8)
    for x, y, width, height in rectangles:
        cell[y : y + height, x : x + width] = value
    if noise:
        cell += np.random.default_rng(0).integers(0, 6, cell.shape, np.uint8)
    return cell


SOUND = cell_with()


# ---------------------------------------------------------------- length


@pytest.mark.parametrize(
    "path",
    [
        [(0.2, 0.5), (0.8, 0.5)],
        [(0.5, 0.1), (0.5, 0.9)],
        [(0.2, 0.2), (0.8, 0.8)],
        [(0.8, 0.2), (0.2, 0.8)],
        [(0.1, 0.4), (0.5, 0.4), (0.9, 0.8)],
    ],
)
def test_a_line_has_its_length(path):
    measured = severity_of(SOUND, drawn(path), True, False)
    assert measured.crack_length == pytest.approx(length(path), rel=0.05) and measured.below == ()


@pytest.mark.parametrize("degrees", range(0, 180, 15))
def test_the_angle_of_a_line_changes_its_length_little(degrees):
    # A chain of pixels is up to 8 % longer than the line that it follows
    step = 0.35 * np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
    path = [0.5 - step, 0.5 + step]
    assert severity_of(SOUND, drawn(path), True, False).crack_length == pytest.approx(0.7, rel=0.09)


@pytest.mark.parametrize("width", [1, 3, 5])
def test_the_width_of_a_line_does_not_count(width):
    path = [(0.2, 0.3), (0.8, 0.3)]
    assert severity_of(SOUND, drawn(path, width=width), True, False).crack_length == pytest.approx(0.6, rel=0.06)


def test_branches_are_summed():
    trunk, branch = [(0.1, 0.5), (0.9, 0.5)], [(0.5, 0.5), (0.7, 0.7)]
    apart = [(0.2, 0.1), (0.4, 0.1)]
    expected = length(trunk) + length(branch) + length(apart)
    measured = severity_of(SOUND, drawn(trunk, branch, apart), True, False)
    assert measured.crack_length == pytest.approx(expected, rel=0.05)


def test_steps_to_the_side_and_oblique_ones_are_counted_once():
    skeleton = np.zeros((8, 8), bool)
    skeleton[2, 1:6] = True
    assert length_of(skeleton) == 4
    assert length_of(np.eye(8, dtype=bool)) == length_of(np.eye(8, dtype=bool)[::-1]) == pytest.approx(7 * 2**0.5)
    corner = np.zeros((8, 8), bool)
    corner[1, 1:4] = corner[1:4, 3] = True
    assert length_of(corner) == 4


def test_a_line_that_is_nowhere_sure_does_not_count_but_goes_on_where_it_is_less_sure():
    path = [(0.2, 0.5), (0.8, 0.5)]
    unsure = drawn(path, value=0.4)
    nothing = severity_of(SOUND, unsure, True, False)
    assert nothing.below == ("crack_length",) and nothing.crack_mode == "" and nothing.shape is None
    in_part = np.maximum(unsure, drawn([(0.2, 0.5), (0.3, 0.5)]))
    assert severity_of(SOUND, in_part, True, False).crack_length == pytest.approx(0.6, rel=0.05)


def test_a_speck_is_no_line():
    speck = drawn([(0.5, 0.5), (0.52, 0.5)])
    measured = severity_of(SOUND, speck, True, False)
    assert measured.crack_length == SHORTEST and measured.below == ("crack_length",)
    line = drawn([(0.2, 0.2), (0.8, 0.2)])
    with_speck = severity_of(SOUND, np.maximum(speck, line), True, False)
    assert with_speck.crack_length == severity_of(SOUND, line, True, False).crack_length


# ---------------------------------------------------------------- area


@pytest.mark.parametrize("place", [(60, 80, 90, 60), (20, 20, 60, 200), (0, 100, 80, 100), (200, 220, 100, 80)])
def test_a_dark_rectangle_has_its_area(place):
    _, _, width, height = place
    measured = severity_of(cell_with(place), None, False, True)
    assert measured.inactive_area == pytest.approx(width * height / SIDE**2, rel=0.08) and measured.below == ()


def test_an_area_does_not_depend_on_the_cells_resolution():
    cell = cell_with((60, 80, 90, 60))
    areas = [
        severity_of(cv2.resize(cell, (side, side), interpolation=cv2.INTER_AREA), None, False, True).inactive_area
        for side in (150, 300, 600)
    ]
    assert areas == pytest.approx([areas[1]] * 3, rel=0.05)


def test_busbars_the_rim_and_chamfered_corners_are_no_regions():
    busbars = cell_with((0, 70, SIDE, 6), (0, 150, SIDE, 6), (0, 230, SIDE, 6))
    rim = cell_with((0, 0, 10, SIDE), (SIDE - 10, 0, 10, SIDE), (0, 0, SIDE, 10), (0, SIDE - 10, SIDE, 10))
    chamfered = SOUND.copy()
    for turn in range(4):
        corner = np.add.outer(np.arange(SIDE), np.arange(SIDE)) < CORNER + 6
        chamfered[np.rot90(corner, turn)] = 15
    for cell in (busbars, rim, chamfered, SOUND):
        measured = severity_of(cell, None, False, True)
        assert measured.inactive_area == LEAST_AREA / SIDE**2 and measured.below == ("inactive_area",)


def test_a_region_is_found_beside_busbars_and_corners():
    both = cell_with((0, 70, SIDE, 6), (100, 100, 60, 60), (0, 0, 7, SIDE))
    assert severity_of(both, None, False, True).inactive_area == pytest.approx(0.04, rel=0.1)


@pytest.mark.parametrize("share", [0.5, 0.65, 0.7, 0.75, 0.85])
def test_the_larger_part_of_a_cell_can_be_dark(share):
    side_part = cell_with((0, 0, round(share * SIDE), SIDE))
    assert severity_of(side_part, None, False, True).inactive_area == pytest.approx(share, rel=0.05)


@pytest.mark.parametrize("share", [0.5, 0.65])
def test_a_large_part_counts_from_half_of_the_rest_on(share):
    def area(light):
        part = cell_with((0, 0, round(share * SIDE), SIDE), value=round(light * BRIGHT))
        return severity_of(part, None, False, True).inactive_area

    assert area(0.35) == pytest.approx(share, rel=0.05) and area(0.6) < 0.01


def test_the_gap_between_cells_does_not_count_even_where_it_is_joined_to_a_dark_part():
    corner = cell_with((220, 0, 80, 60), (286, 0, 14, SIDE))
    expected = 66 * 60 / SIDE**2
    assert severity_of(corner, None, False, True).inactive_area == pytest.approx(expected, rel=0.1)
    band = cell_with((270, 0, 30, SIDE))  # wider than a gap
    assert severity_of(band, None, False, True).inactive_area == pytest.approx(0.1, rel=0.15)


def test_a_busbar_is_no_gray_part_beside_a_crack():
    lines = drawn([(0.5, 0.1), (0.5, 0.9)])
    across = cell_with((0, 140, SIDE, 14), value=90)
    assert severity_of(across, lines, True, False).crack_mode == "A"
    with_part = cell_with((0, 140, SIDE, 14), (152, 160, 60, 60), value=90)
    assert severity_of(with_part, lines, True, False).crack_mode == "B"


# ---------------------------------------------------------------- verdicts and modes


def test_without_a_verdict_nothing_is_measured():
    cell, lines = cell_with((60, 80, 90, 60)), drawn([(0.2, 0.5), (0.8, 0.5)])
    assert severity_of(cell, lines, False, False) == (0, 0, "", (), None)
    assert severity_of(cell, lines, True, False).inactive_area == 0
    assert severity_of(cell, lines, False, True)[::2] == (0, "", severity_of(cell, None, False, True).shape)


def test_a_crack_whose_lines_are_not_known_has_no_length():
    assert severity_of(SOUND, None, True, False) == (None, 0, "", (), None)
    assert severity_of(SOUND, None, False, False).crack_length == 0


def test_modes_tell_how_dark_the_part_beside_a_crack_is():
    lines = drawn([(0.5, 0.1), (0.5, 0.9)])  # x = 150
    beside, away = (152, 60, 60, 180), (180, 60, 60, 180)
    assert severity_of(SOUND, lines, True, False).crack_mode == "A"
    assert severity_of(cell_with(away), lines, True, True).crack_mode == "A"
    assert severity_of(cell_with(beside, value=100), lines, True, False).crack_mode == "B"
    assert severity_of(cell_with(beside), lines, True, True).crack_mode == "C"
    # What is dark without the verdict is no inactive region
    assert severity_of(cell_with(beside), lines, True, False).crack_mode == "B"
    assert severity_of(cell_with(beside), lines, False, True).crack_mode == ""


def test_both_may_be_below_what_can_be_measured():
    measured = severity_of(SOUND, drawn(), True, True)
    assert measured.below == ("crack_length", "inactive_area") and measured.shape is None
    assert (measured.crack_length, measured.inactive_area) == (SHORTEST, LEAST_AREA / SIDE**2)


@pytest.mark.parametrize(
    "has_lines, side, expected", [(True, LEAST_PIXELS, 0.6), (True, LEAST_PIXELS - 1, None), (False, 300, None)]
)
def test_a_length_needs_a_network_with_lines_and_a_cell_of_enough_pixels(has_lines, side, expected):
    engine = SimpleNamespace(classes=ENGINE.classes, has_lines=has_lines)
    followed = []

    def follow_lines():
        followed.append(side)
        return drawn([(0.2, 0.5), (0.8, 0.5)])

    cell = CellResult("", (1, 0), (0.9, 0.1), size=(side, side))
    result = with_severity(cell, engine, SOUND, follow_lines if has_lines else None)
    assert bool(followed) == (expected is not None)
    assert result.crack_length == (None if expected is None else pytest.approx(expected, rel=0.05))
    assert result.inactive_area == 0 and (result.crack_mode == "A") == (expected is not None)


def test_a_cell_that_was_stretched_needs_enough_pixels_before():
    lines = partial(drawn, [(0.2, 0.5), (0.8, 0.5)])
    stretched = CellResult("", (1, 0), (0.9, 0.1), size=(LEAST_PIXELS + 9,) * 2, shorter_side=LEAST_PIXELS - 1)
    assert with_severity(stretched, ENGINE, SOUND, lines).crack_length is None
    assert with_severity(replace(stretched, shorter_side=LEAST_PIXELS), ENGINE, SOUND, lines).crack_length


def test_a_result_names_what_is_below():
    result = with_severity(CellResult("", (1, 1), (0.9, 0.9)), ENGINE, SOUND, drawn)
    assert result.below == "crack_length inactive_area" and result.shape is None
    row = result.row(ENGINE.classes)
    assert row[-5:] == ["0.043", "0.0007", "", "crack_length inactive_area", ""]
    nothing = with_severity(CellResult("", (0, 0), (0.1, 0.1)), ENGINE, SOUND, None)
    assert nothing.row(ENGINE.classes)[-5:] == ["0.000", "0.0000", "", "", ""]


# ---------------------------------------------------------------- the benchmark


def test_the_benchmark_measures_what_people_outlined(elpv, tmp_path, capsys):
    cells = data.read_table(elpv)
    cells = cells[cells["crack"] == 1].head(12).assign(filename=lambda rows: rows["path"].map(str))
    cells[["filename", "crack", "inactive"]].to_csv(tmp_path / "cells.csv", sep=";", index=False)
    outlines = tmp_path / "outlines"
    outlines.mkdir()
    engine = open_network(Network(str(SHIPPED)))
    measured = benchmark.Measured(engine, np.stack([read_image(path) for path in cells["path"]]))
    assert 0 < measured.calls[:, 0].sum() and (measured.lengths > 0).tolist() == measured.calls[:, 0].tolist()
    assert measured.skeletons.any((1, 2)).sum() > 2 and not measured.skeletons[~measured.calls[:, 0]].any()
    for name, skeleton in zip(cells["filename"], measured.skeletons):  # as if people had drawn the same lines
        line = benchmark.CRACK_LINE * cv2.dilate(skeleton.astype(np.uint8), np.ones((3, 3), np.uint8))
        line[:9, :9] = benchmark.DARK_PART if name.endswith(cells["filename"].iloc[0]) else 0
        Image.fromarray(line).save(outlines / f"{Path(name).stem}.png")
    out = tmp_path / "figures.json"
    assert benchmark.main([str(tmp_path / "cells.csv"), str(outlines), "--json", str(out)]) == 0
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert figures["outlines"]["line_f1"] > 0.95 and figures["outlines"]["length_pearson"] > 0.95
    assert 0 < figures["exposure"]["cracked"] <= measured.calls[:, 0].sum()
    assert "line_f1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "outline, complaint",
    [
        (None, "no such outline"),
        (b"no image", "can't be read as an image"),
        (np.full((9, 9), 255, np.uint8), "must be gray, with 1 in dark parts and 3 on crack lines"),
        (np.ones((9, 9, 3), np.uint8), "must be gray"),
    ],
)
def test_an_outline_that_is_none_is_one_sentence(tmp_path, outline, complaint):
    path = tmp_path / "cell.png"
    if isinstance(outline, bytes):
        path.write_bytes(outline)
    elif outline is not None:
        Image.fromarray(outline).save(path)
    with pytest.raises(InputError, match=complaint):
        benchmark.read_outline(path)


# ---------------------------------------------------------------- to be shown


def test_the_image_of_lines_and_regions_has_their_pixels():
    skeleton, dark = np.zeros((2, SIDE, SIDE), bool)
    skeleton[101, 40:200] = True
    dark[80:121, 100:160] = True
    image = Image.open(io.BytesIO(shape_image(skeleton, dark)))
    assert image.mode == "P" and image.size == (150, 150)
    expected = np.zeros((150, 150), int)
    expected[40:61, 50:80] = 2
    expected[50, 20:100] = 1  # over the region
    assert np.array_equal(np.asarray(image), expected)
    colours = np.asarray(image.convert("RGBA"))
    assert colours[0, 0, 3] == 0
    red, blue = colours[50, 30].astype(int), colours[45, 60].astype(int)
    assert red[0] > 200 and max(red[1:3]) < 50 and red[3] == 255
    assert blue[2] > 200 and blue[0] < 50 and 0 < blue[3] < 255


def test_the_image_shows_what_was_measured():
    cell, lines = cell_with((200, 200, 60, 60)), drawn([(0.1, 0.2), (0.9, 0.2)])
    measured = severity_of(cell, lines, True, True)
    shown = np.asarray(Image.open(io.BytesIO(measured.shape)))
    ys, xs = np.nonzero(shown == 1)
    assert abs(ys - 30).max() <= 1 and (xs.min(), xs.max()) == (pytest.approx(15, abs=2), pytest.approx(135, abs=2))
    assert (shown == 2).mean() == pytest.approx(measured.inactive_area, rel=0.1)
    assert shown[115, 115] == 2 and shown[115, 60] == 0


def test_a_cells_size_is_that_of_its_image_and_not_of_what_the_network_gets(tmp_path):
    small = np.full((50, 55), BRIGHT, np.uint8)
    Image.fromarray(small).save(tmp_path / "a.png")
    grid = SimpleNamespace(cell_size=lambda: np.array([54.6, 50.2]))
    module = SimpleNamespace(cells=[small], black=[False], columns=1, grid=grid)
    [(pixels, of_module)] = cells_of_module(module, "m", "cut", 100)
    of_file, of_array = (read(image, 100)[1] for image in (tmp_path / "a.png", small))
    [(_, of_request)] = prepared_cell(request_of(str(tmp_path / "a.png")), 100).cells
    assert pixels.shape == (100, 100)
    assert [cell.size for cell in (of_module, of_file, of_array, of_request)] == [(50, 55)] * 4
    assert of_module.shorter_side == 50


def test_what_was_mirrored_to_make_a_cell_square_does_not_count():
    half = cell_with((0, 0, 60, 150))[:150]  # the left fifth of a half cell
    pixels = to_square(Image.fromarray(half), SIDE)
    lines = drawn([(0.5, 0.05), (0.5, 0.95)])  # from top to bottom of the square
    measured = severity_of(pixels, lines, True, True, half.shape)
    assert measured.inactive_area == pytest.approx(0.2, rel=0.1)
    assert measured.crack_length == pytest.approx(0.5, rel=0.05)
    shown = np.asarray(Image.open(io.BytesIO(measured.shape)))
    assert not shown[:37].any() and not shown[-37:].any() and shown[60, 10] == 2
