"""How well a grid fits its image: a score of up to 1."""

from dataclasses import dataclass

import numpy as np

from elcells.modules.sides import DIM, FINE_DETAIL, REACH, Sides, profiles_across, responses, sides_of

# Weights of what speaks for a grid. They sum to 1: that of the borders counts twice.
DARK_LINES = 0.35  # the inner lines are dark
DARKEST_LINES = 0.25  # they are darker than anything within the cells, also busbars
LIT_CELLS = 0.1  # the cells are lit
DARK_BORDERS = 0.15  # the light ends at the four borders, and at the worst of them

# Weights of what speaks against it.
ODD_SHAPE = 0.6  # for each octave by which cells are neither squares nor halves of squares
BUSBARS_AS_LINES = 0.5  # every second line is fainter
LINES_LEFT_OUT = 0.25  # the cells show a line in their middle

# Distances from a side, in cells.
ON_LINE = 0.015  # up to here a sample is on the line
OFF_LINE = 0.08  # from here on it is within the cell
OFF_MIDDLE = 0.42  # up to here it is off the middle of the cell
NEAR_MIDDLE = 0.44  # from here on it is in the middle of the cell
HALF_CELL = 0.52  # up to here profiles are looked at
SURROUNDINGS = 0.05  # from here on a sample tells how bright the cells beside the side are
BORDER_START = 0.06  # from here on the light on both sides of a border is compared
BORDER_END = 0.14  # up to here

# Responses.
DARK_LINE = 0.08  # of a dark line
LEAST_DARKNESS = -0.5  # of a line, in units of a dark one
DARKER = 0.8  # times the strongest one within the cells: a stronger line is the darkest
BUSBAR = 0.7  # times that of the lines between: fainter lines are busbars
FEWEST_LINES = 4  # inner lines; among fewer ones no busbars are looked for
MISSED_LINE = 0.85  # times that of the lines: if it is stronger in the middle of the cells, a line is missed there
MISSED_OVER_BUSBAR = 1.5  # times that of the busbars: it must also be stronger than this
DARK_BORDER = 0.3  # of a dark border

LIT_OFFSET = 0.3  # of DIM: darker sides do not count at all
DEAD_BORDER_END = 0.3  # how much a border without light looks like the module's end
DEAD_BORDER_WEIGHT = 0.2  # of that, against the lit sides of the border
OCTAVES_OFF = 0.15  # by which cells may be off squares or halves of squares


@dataclass(frozen=True)
class Evidence:
    """What an image shows of a grid; arrays with an entry for each of E sides."""

    sides: Sides
    gray: np.ndarray  # float32 (E, S), brightness across each side
    offset: np.ndarray  # float (S,), cells from the side
    response: np.ndarray  # float (E, S)
    on: np.ndarray  # float (E,), strongest response on the side
    off: np.ndarray  # float (E,), strongest response within the cells beside it
    lit: np.ndarray  # float32 (E,), 0 to 1: how much the side counts; at dead cells nothing can be seen


def look(image, grid, detail):
    """The Evidence for a grid."""
    sides = sides_of(grid)
    gray, offset = profiles_across(image, grid, sides, HALF_CELL + REACH, detail)
    before = gray[:, offset < -SURROUNDINGS].mean(1)
    behind = gray[:, offset > SURROUNDINGS].mean(1)
    light = np.select([sides.inner, sides.inwards == 1], [np.minimum(before, behind), behind], before)
    response = responses(gray, detail.step, sides)
    beyond = (gray.shape[1] - response.shape[1]) // 2
    gray = gray[:, beyond:-beyond]
    offset = offset[beyond:-beyond]
    distance = np.abs(offset)
    usual = max(np.median(gray[:, distance < HALF_CELL].mean(1)), 1e-6)
    on = response[:, distance <= ON_LINE].max(1)
    off = response[:, (distance < HALF_CELL) & (distance > OFF_LINE)].max(1)
    return Evidence(sides, gray, offset, response, on, off, np.clip(light / usual / DIM - LIT_OFFSET, 0, 1))


def weighted_mean(evidence, values, lines):
    """Mean of values (E,) over the chosen sides (bool (E,)), weighted by their light; 1 where there are none."""
    if not lines.any():
        return 1.0
    lit = evidence.lit[lines]
    return (lit / (lit.sum() + 1e-6) * values[lines]).sum()


def mean_response(evidence, response, lines):
    """The same for a response, (E,) or (E, S); 0 where there are no sides."""
    lit = evidence.lit[lines]
    return lit @ response[lines] / (lit.sum() + 1e-6)


def busbars(evidence, lines):
    """0 to BUSBAR: how much fainter every second of the chosen lines is, as busbars are against gaps."""
    odd = evidence.sides.line % 2 == 1
    both = [mean_response(evidence, evidence.on, lines & half) for half in (odd, ~odd)]
    if evidence.sides.line[lines].max(initial=0) < FEWEST_LINES or max(both) <= 0:
        return 0.0
    return max(0.0, BUSBAR - min(both) / max(both))


def line_left_out(evidence, lines):
    """True if the cells beside the chosen sides show a line in their middle that no busbar explains."""
    response = mean_response(evidence, evidence.response, lines)
    distance = np.abs(evidence.offset)
    at_line = response[distance <= ON_LINE].max()
    at_middle = response[(distance > NEAR_MIDDLE) & (distance < HALF_CELL)].max()
    elsewhere = response[(distance > OFF_LINE) & (distance < OFF_MIDDLE)].max()
    return at_middle > max(MISSED_LINE * at_line, MISSED_OVER_BUSBAR * elsewhere)


def border_ends(evidence):
    """How much the left, right, upper and lower border look like the module's end, 0 to 1 each."""
    sides = evidence.sides
    offset = evidence.offset
    near = (np.abs(offset) > BORDER_START) & (np.abs(offset) < BORDER_END)
    before = evidence.gray[:, near & (offset < 0)].mean(1)
    behind = evidence.gray[:, near & (offset > 0)].mean(1)
    share_before = before / np.maximum(behind, 1e-6)
    share_behind = behind / np.maximum(before, 1e-6)
    light_beyond = np.where(sides.inwards == 1, share_before, share_behind)  # if it is as bright, the module goes on
    ends = np.clip(evidence.on / DARK_BORDER, 0, 1) * np.clip(2 - 2 * light_beyond, 0, 1)
    scores = []
    for border in range(4):
        chosen = sides.border == border
        weights = np.append(evidence.lit[chosen], DEAD_BORDER_WEIGHT * chosen.sum())
        scores.append(np.average(np.append(ends[chosen], DEAD_BORDER_END), weights=weights))
    return scores


def score(image, grid, detail=FINE_DETAIL):
    """How well a grid fits, up to 1.

    Are the inner lines dark, and darker than busbars, all four borders dark outside, and the cells square or half?
    """
    evidence = look(image, grid, detail)
    sides = evidence.sides
    directions = [sides.inner & ~sides.horizontal, sides.inner & sides.horizontal]
    lit = evidence.lit[sides.inner].mean() if sides.inner.any() else 1.0
    ends = border_ends(evidence)
    width, height = np.maximum(grid.cell_size(), 1e-6)
    octaves = abs(np.log2(width / height))
    darkness = np.clip(evidence.on / DARK_LINE, LEAST_DARKNESS, 1)
    is_darkest = evidence.on > DARKER * evidence.off
    total = DARK_LINES * np.mean([weighted_mean(evidence, darkness, lines) for lines in directions])
    total += DARKEST_LINES * np.min([1.0, *(weighted_mean(evidence, is_darkest, lines) for lines in directions)])
    total += LIT_CELLS * lit
    total += DARK_BORDERS * (np.mean(ends) + np.min(ends))
    total -= ODD_SHAPE * max(0, min(octaves, abs(octaves - 1)) - OCTAVES_OFF)
    total -= BUSBARS_AS_LINES * max(busbars(evidence, lines) for lines in directions)
    total -= LINES_LEFT_OUT * any(line_left_out(evidence, lines) for lines in directions)
    return float(total)
