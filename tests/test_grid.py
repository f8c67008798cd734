"""What the search for a module's grid is made of: sampling, guesses of outlines, cells cut by perspective."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from elcells.modules.cutting import MOST_LINES_OF_CELLS, MOST_PIXELS, cut_cells, cut_image, shape_of_cells
from elcells.modules.grid import Grid
from elcells.modules.outline import outlines
from elcells.modules.scoring import score
from elcells.modules.sides import FINE_DETAIL, ROUGH_DETAIL, median_profile, profiles_across, sides_of

QUAD = np.array([[40, 30], [330, 45], [320, 240], [35, 230]], float)


@pytest.fixture
def image():
    """A smooth random image, float32 (270, 370)."""
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).uniform(size=(270, 370)), 3)
    return (255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32)


@pytest.mark.parametrize("detail", [FINE_DETAIL, ROUGH_DETAIL])
def test_a_profile_is_the_median_across_the_middle_of_a_side(image, detail):
    grid = Grid(QUAD, 6, 4, image.shape)
    sides = sides_of(grid)
    gray, offset = profiles_across(image, grid, sides, 0.2, detail)
    part = np.linspace(-0.36, 0.36, detail.profiles)[:, None, None, None]
    points = sides.middle[:, None] + part * sides.along[:, None] + offset[:, None] * sides.across[:, None]
    x, y = np.moveaxis(grid.to_pixels(points), -1, 0)
    assert np.abs(gray - np.median(ndimage.map_coordinates(image, [y, x], order=1), 0)).max() < 0.5


@pytest.mark.parametrize("count", [3, 9])
def test_the_median_is_numpys(count):
    profiles = np.random.default_rng(0).uniform(size=(count, 20, 30)).astype(np.float32)
    assert (median_profile(profiles) == np.median(profiles, 0)).all()


def test_the_largest_grid_is_looked_at(image):
    grid = Grid(QUAD, MOST_LINES_OF_CELLS, MOST_LINES_OF_CELLS, image.shape)
    assert score(image, grid, FINE_DETAIL) < 1


def test_a_grid_far_beyond_the_image_scores_low(image):
    assert score(image, Grid(1e9 * QUAD, 6, 4, image.shape)) < 0.6


def test_a_cell_is_what_its_four_corners_enclose(image):
    grid = Grid(QUAD, 1, 2, image.shape)
    [cell, _] = cut_cells(image, grid)
    height, width = cell.shape
    y, x = (np.mgrid[:height, :width] + 0.5) / np.array([height, width])[:, None, None]
    corners = grid.cells()[0, 0] + np.array([[1, 1], [-1, 1], [-1, 0], [1, 0]])  # the border is cropped by one pixel
    points = Grid(corners, 1, 1, image.shape).to_pixels(np.stack([x, y], -1))
    expected = ndimage.map_coordinates(image, [points[..., 1], points[..., 0]], order=3)
    assert np.abs(cell - expected).max() < 3


def test_a_thin_line_between_two_pixels_stays_dark():
    image = np.full((60, 60), 200, np.float32)
    image[:, 20] = 100
    darkest = []
    for offset in np.linspace(0, 1, 11):
        quad = np.array([[offset, 0], [40 + offset, 0], [40 + offset, 40], [offset, 40]])
        [cell] = cut_cells(image, Grid(quad, 1, 1, image.shape))
        darkest.append(cell[5:-5].min())
    assert max(darkest) <= 142  # linear interpolation leaves 150


def test_a_narrowed_large_cell_keeps_lines_along_its_longer_side():
    image = np.full((380, 310), 200, np.float32)
    image[:, 20::20] = 100
    [cell] = cut_cells(image, Grid(np.array([[2, 2], [302, 2], [302, 367], [2, 367]], float), 1, 1, image.shape))
    assert cell.shape == (300, 300) and cell[5:-5].min() <= 105


def test_an_edge_between_black_and_white_rises_once():
    image = np.zeros((60, 60), np.float32)
    image[:, 30:] = 255
    [cell] = cut_cells(image, Grid(np.array([[0.4, 0], [40.4, 0], [40.4, 40], [0.4, 40]]), 1, 1, image.shape))
    assert (np.diff(cell[2:-2, 2:-2].astype(int)) >= 0).all()


@pytest.mark.parametrize(
    "size, shape",
    [((27, 34), (34, 34)), ((38, 33), (38, 38)), ((60, 32), (60, 30)), ((31, 60), (30, 60)), ((40, 24), (40, 24))],
)
def test_cells_become_squares_or_halves_where_they_are_near(size, shape):
    assert shape_of_cells(np.array(size, float)) == shape


@pytest.mark.parametrize("light", [0.0, 1.0])
def test_an_even_image_is_its_only_outline(light):
    [quad] = outlines(np.full((100, 160), light, np.float32), 6)
    assert quad.tolist() == [[0, 0], [159, 0], [159, 99], [0, 99]]


def test_a_lit_quadrilateral_is_an_outline_up_to_the_images_edge():
    lit = np.zeros((100, 160), np.float32)
    lit[20:70, 30:] = 1
    lit[90:93] = 1  # thin
    assert any(np.abs(quad - [[30, 20], [159, 20], [159, 69], [30, 69]]).max() < 2 for quad in outlines(lit, 6))


def test_an_image_that_is_too_long_gets_one_sentence(tmp_path):
    path = tmp_path / "strip.png"
    Image.new("L", (MOST_PIXELS + 1, 70)).save(path)
    assert str(MOST_PIXELS) in cut_image(path, 10, 6).error
