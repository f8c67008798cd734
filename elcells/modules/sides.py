"""The sides of a grid's cells, and what an image shows across them.

A gap between two cells is darker than both; the module's border is where the light ends. Distances are in units of a
cell's side.
"""

import math
from dataclasses import dataclass

import numpy as np

PROFILE_STEP = 0.005  # cells between two samples of a profile
GAP = 0.014  # cells, half the width of a gap
FLANK_START = 0.025  # cells from a gap's middle to where its surroundings start
FLANK_END = 0.065  # cells from a gap's middle to where its surroundings end
WIDTHS = (1, 2)  # multiples of these that are tried: the second is for small or blurred images
REACH = WIDTHS[-1] * FLANK_END  # cells on both sides of a sample that its response depends on
MIDDLE_PART = 0.36  # of a side's length, in both directions from its middle: corners are left out
CLEAR_RESPONSE = 0.3  # a side with such a response is seen clearly
DIM = 0.3  # of the brightness around: darker cells show no gaps


@dataclass(frozen=True)
class Detail:
    """How closely a grid is looked at and fitted."""

    profiles: int  # of each side, side by side; their median counts
    step: float  # cells between the samples of a profile
    peak: int  # samples on both sides of the strongest one from which its position is computed
    iterations: int  # of a fit, at most
    tolerance: float  # a fit ends when no parameter moves more
    own_places: bool  # fit the lens and each line's own place


FINE_DETAIL = Detail(profiles=9, step=PROFILE_STEP, peak=3, iterations=8, tolerance=1e-4, own_places=True)
ROUGH_DETAIL = Detail(profiles=3, step=2 * PROFILE_STEP, peak=2, iterations=3, tolerance=1e-3, own_places=False)


@dataclass(frozen=True)
class Sides:
    """The sides of all cells in grid coordinates; arrays with an entry for each of E sides."""

    middle: np.ndarray  # float (E, 2)
    along: np.ndarray  # float (E, 2), from one end to the other
    across: np.ndarray  # float (E, 2), unit vector to the right or down
    horizontal: np.ndarray  # bool (E,)
    line: np.ndarray  # int (E,), number of the line that the side lies on, from the left or the top
    inwards: np.ndarray  # int (E,), 1 on the left and upper border, -1 on the right and lower one, 0 within the module
    inner: np.ndarray  # bool (E,), whether the side lies between two cells
    border: np.ndarray  # int (E,), 0 left, 1 right, 2 top, 3 bottom; -1 for inner sides


def sides_of(grid):
    """The Sides of a grid's cells. Where cells are few, each of their sides is divided into several."""
    vertical = sides_on_lines(grid.x, grid.y, is_horizontal=False)
    horizontal = sides_on_lines(grid.y, grid.x, is_horizontal=True)
    return Sides(*(np.concatenate(parts) for parts in zip(vertical, horizontal)))


def sides_on_lines(lines, crossing, is_horizontal):
    """Fields of Sides for the sides on parallel lines, which the `crossing` ones divide."""
    cells = len(crossing) - 1
    pieces = math.ceil(8 / cells)
    ends = np.interp(np.arange(pieces * cells + 1) / pieces, np.arange(cells + 1), crossing)
    per_line = len(ends) - 1
    line = np.repeat(np.arange(len(lines)), per_line)
    horizontal = np.full(len(line), is_horizontal)
    middle = np.stack([lines[line], np.tile((ends[:-1] + ends[1:]) / 2, len(lines))], 1)
    along = np.stack([np.zeros(len(line)), np.tile(np.diff(ends), len(lines))], 1)
    across = np.tile([1.0, 0.0], (len(line), 1))
    axes = [1, 0] if is_horizontal else [0, 1]
    inwards = (line == 0).astype(int) - (line == len(lines) - 1)
    inner = inwards == 0
    border = np.where(inner, -1, 2 * horizontal + (inwards < 0))
    return middle[:, axes], along[:, axes], across[:, axes], horizontal, line, inwards, inner, border


def sampled(image, x, y):
    """Gray values at points of an image (float32), bilinear, 0 outside; scipy takes four times as long."""
    height, width = image.shape
    column = np.clip(x.astype(np.intp), 0, width - 2)
    row = np.clip(y.astype(np.intp), 0, height - 2)
    right = (x - column).astype(np.float32)
    down = (y - row).astype(np.float32)
    first = row * width + column
    pixels = image.ravel()
    upper_left = pixels.take(first, mode="clip")
    upper_right = pixels[1:].take(first, mode="clip")
    lower_left = pixels[width:].take(first, mode="clip")
    lower_right = pixels[width + 1 :].take(first, mode="clip")
    upper = upper_left + (upper_right - upper_left) * right
    lower = lower_left + (lower_right - lower_left) * right
    return (upper + (lower - upper) * down) * ((x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1))


def profiles_across(image, grid, sides, reach, detail):
    """Brightness across each side, float32 (E, S), and the samples' offsets in cells, from -reach to reach: (S,)."""
    count = int(reach / detail.step + 0.5)
    offset = np.arange(-count, count + 1) * detail.step
    part = np.linspace(-MIDDLE_PART, MIDDLE_PART, detail.profiles)
    across = sides.across[:, None]
    on_side = sides.middle[:, None] + sides.along[:, None] * part[:, None]
    start = grid.to_pixels(on_side + across * offset[0])
    end = grid.to_pixels(on_side + across * offset[-1])  # a straight line to there is under 0.001 cells off
    share = np.linspace(0, 1, len(offset))
    x = start[..., 0, None] + (end - start)[..., 0, None] * share
    y = start[..., 1, None] + (end - start)[..., 1, None] * share
    gray = sampled(image, x, y)
    gray.partition(detail.profiles // 2, axis=1)  # for the median of the profiles along the side's middle part
    return gray[:, detail.profiles // 2], offset


def means_beside(total, step, start, stop):
    """For each sample the mean of those `start` to `stop` cells beside it; total: (E, S + 1) cumulative sums."""
    samples = total.shape[1] - 1
    first = np.clip(np.arange(samples) + round(start / step), 0, samples)
    last = np.clip(np.arange(samples) + round((stop + step) / step), 0, samples)
    return (total[:, last] - total[:, first]) / np.maximum(last - first, 1)


def responses(gray, offset, sides):
    """How much each sample looks like a gap, at the border like the module's end, against the light around: (E, S)."""
    step = offset[1] - offset[0]
    total = np.pad(np.cumsum(gray, 1), ((0, 0), (1, 0)))
    inwards = sides.inwards[:, None]
    best = np.full(gray.shape, -1.0)
    for width in WIDTHS:
        left = means_beside(total, step, -FLANK_END * width, -FLANK_START * width)
        right = means_beside(total, step, FLANK_START * width, FLANK_END * width)
        gap = np.minimum(left, right) - means_beside(total, step, -GAP * width, GAP * width)
        before = means_beside(total, step, -FLANK_END * width, -PROFILE_STEP)
        behind = means_beside(total, step, PROFILE_STEP, FLANK_END * width)
        response = np.where(inwards == 0, gap, inwards * (behind - before))
        best = np.maximum(best, response / np.maximum(np.maximum(left, right), DIM))
    return best


def seen_shifts(image, grid, sides, window, detail):
    """Shift in cells at which each side is seen within `window` cells, and how clearly (0 to 1): two float (E,)."""
    gray, offset = profiles_across(image, grid, sides, window + REACH, detail)
    near = np.abs(offset) <= window + 1e-9
    response = responses(gray, offset, sides)[:, near]
    offset = offset[near]
    response = np.clip(response, 0, None) * np.exp(-0.5 * (offset / window) ** 2)
    from_peak = np.abs(np.arange(len(offset)) - response.argmax(1)[:, None])
    weight = np.where(from_peak <= detail.peak, response, 0) ** 2
    shift = (weight * offset).sum(1) / np.maximum(weight.sum(1), 1e-9)
    half = gray.shape[1] // 2
    lit = np.maximum(gray[:, :half].mean(1), gray[:, half:].mean(1))
    visible = np.clip(lit / DIM - 0.5, 0, 1)  # a dead cell shows no line
    return shift, np.clip(response.max(1) / CLEAR_RESPONSE, 0, 1) * visible
