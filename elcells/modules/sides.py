"""The sides of a grid's cells, and what an image shows across them.

A gap between two cells is darker than both; the module's border is where the light ends. Distances are in units of a
cell's side.
"""

import math
from dataclasses import dataclass

import cv2
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


def median(a, b, c):
    """The median of three arrays of one shape."""
    return np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))


def median_profile(profiles):
    """The median of three or nine profiles, float32 (3 or 9, E, S): (E, S). numpy takes many times as long."""
    thirds = np.split(profiles, 3)
    middle = median(*thirds)
    if len(middle) == 1:
        return middle[0]
    least = np.minimum.reduce(thirds).max(0)
    most = np.maximum.reduce(thirds).min(0)
    return median(least, median(*middle), most)


def profiles_across(image, grid, sides, reach, detail):
    """Brightness across each side, float32 (E, S), and the samples' offsets in cells, from -reach to reach: (S,)."""
    count = int(reach / detail.step + 0.5)
    offset = np.arange(-count, count + 1) * detail.step
    part = np.linspace(-MIDDLE_PART, MIDDLE_PART, detail.profiles)[:, None, None]
    on_side = sides.middle + sides.along * part
    start = grid.to_pixels(on_side + sides.across * offset[0]).astype(np.float32).reshape(-1, 2)
    end = grid.to_pixels(on_side + sides.across * offset[-1]).astype(np.float32).reshape(-1, 2)
    share = np.linspace(0, 1, len(offset), dtype=np.float32)
    x, y = start.T[..., None] + (end - start).T[..., None] * share  # a straight line is under 0.001 cells off
    gray = cv2.remap(image, x, y, cv2.INTER_LINEAR)  # 0 outside
    return median_profile(gray.reshape(detail.profiles, -1, len(offset))), offset


def responses(gray, step, sides):
    """How much each sample looks like a gap, at the border like the module's end, against the light around.

    gray: (E, S), with `step` cells between samples. Returns (E, S - 2 R), without the first and last R = REACH / step
    samples, whose surroundings are not seen.
    """
    total = np.pad(np.cumsum(gray, 1), ((0, 0), (1, 0)))
    reach = round(REACH / step)
    samples = gray.shape[1] - 2 * reach

    def mean(total, start, stop):
        """For each sample the mean of those `start` to `stop` cells beside it; total: of some sides."""
        first = reach + round(start / step)
        last = reach + round((stop + step) / step)
        return (total[:, last : last + samples] - total[:, first : first + samples]) / np.float32(last - first)

    at_border = np.flatnonzero(~sides.inner)
    inwards = sides.inwards[at_border, None].astype(np.float32)
    best = np.float32(-1)
    for width in WIDTHS:
        left = mean(total, -FLANK_END * width, -FLANK_START * width)
        right = mean(total, FLANK_START * width, FLANK_END * width)
        response = np.minimum(left, right) - mean(total, -GAP * width, GAP * width)
        before = mean(total[at_border], -FLANK_END * width, -PROFILE_STEP)
        behind = mean(total[at_border], PROFILE_STEP, FLANK_END * width)
        response[at_border] = inwards * (behind - before)
        best = np.maximum(best, response / np.maximum(np.maximum(left, right), np.float32(DIM)))
    return best


def seen_shifts(image, grid, sides, window, detail):
    """Shift in cells at which each side is seen within `window` cells, and how clearly (0 to 1): two float (E,)."""
    gray, offset = profiles_across(image, grid, sides, window + REACH, detail)
    response = responses(gray, detail.step, sides)
    reach = response.shape[1] // 2
    offset = np.arange(-reach, reach + 1) * detail.step
    nearness = np.exp(-0.5 * (offset / window) ** 2).astype(np.float32)
    response = np.maximum(response, 0) * nearness
    peak = response.argmax(1)[:, None] + np.arange(-detail.peak, detail.peak + 1)
    weight = np.take_along_axis(response, np.clip(peak, 0, 2 * reach), 1) ** 2 * ((peak >= 0) & (peak <= 2 * reach))
    shift = (weight * (peak - reach)).sum(1) * detail.step / np.maximum(weight.sum(1), 1e-9)
    half = gray.shape[1] // 2
    lit = np.maximum(gray[:, :half].mean(1), gray[:, half:].mean(1))
    visible = np.clip(lit / DIM - 0.5, 0, 1)  # a dead cell shows no line
    return shift, np.clip(response.max(1) / CLEAR_RESPONSE, 0, 1) * visible
