"""How well a grid fits its image: a score of up to 1."""

from dataclasses import dataclass

import numpy as np

from elcells.modules.sides import DIM, FINE, REACH, Profiles, Sides, profiles_across, responses, sides_of

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
NEAR_MIDDLE = 0.44  # from here on it is in the middle of the cell
HALF_CELL = 0.52  # up to here profiles are looked at

DARK_LINE = 0.08  # response of a dark line
DARK_BORDER = 0.3  # response of a dark border


@dataclass(frozen=True)
class Evidence:
    """What an image shows of a grid; arrays with an entry for each of E sides."""

    sides: Sides
    profiles: Profiles
    response: np.ndarray  # float (E, S)
    on: np.ndarray  # float (E,), strongest response on the side
    off: np.ndarray  # float (E,), strongest response within the cells beside it
    lit: np.ndarray  # float32 (E,), 0 to 1: how much the side counts; at dead cells nothing can be seen


def look(image, grid, detail):
    """The Evidence for a grid."""
    sides = sides_of(grid)
    profiles = profiles_across(image, grid, sides, HALF_CELL + REACH, detail)
    response = responses(profiles, sides)
    gray, offset, distance = profiles.gray, profiles.offset, np.abs(profiles.offset)
    before = gray[:, offset < -0.05].mean(1)
    behind = gray[:, offset > 0.05].mean(1)
    light = np.select([sides.inner, sides.inwards == 1], [np.minimum(before, behind), behind], before)
    usual = max(np.median(gray[:, distance < HALF_CELL].mean(1)), 1e-6)
    return Evidence(
        sides,
        profiles,
        response,
        on=response[:, distance <= ON_LINE].max(1),
        off=response[:, (distance < HALF_CELL) & (distance > OFF_LINE)].max(1),
        lit=np.clip(light / usual / DIM - 0.3, 0, 1),
    )


def darkness(evidence, lines):
    """How dark the chosen sides (bool (E,)) are, up to 1; 1 where there are none."""
    if not lines.any():
        return 1.0
    lit = evidence.lit[lines]
    return (lit / (lit.sum() + 1e-6) * np.clip(evidence.on[lines] / DARK_LINE, -0.5, 1)).sum()


def darkest_share(evidence, lines):
    """Share of the chosen sides that are darker than anything within the cells beside them; 1 where there are none."""
    if not lines.any():
        return 1.0
    lit = evidence.lit[lines]
    return (lit / (lit.sum() + 1e-6) * (evidence.on > 0.8 * evidence.off)[lines]).sum()


def mean_response(evidence, lines):
    """The mean response on the chosen sides, weighted by their light."""
    lit = evidence.lit[lines]
    return lit @ evidence.on[lines] / (lit.sum() + 1e-6)


def busbars(evidence, lines):
    """0 to 0.7: how much fainter every second of the chosen lines is, as busbars are against gaps."""
    odd = evidence.sides.line % 2 == 1
    depths = mean_response(evidence, lines & odd), mean_response(evidence, lines & ~odd)
    if evidence.sides.line[lines].max(initial=0) < 4 or max(depths) <= 0:
        return 0.0
    return max(0.0, 0.7 - min(depths) / max(depths))


def line_left_out(evidence, lines):
    """True if the cells beside the chosen sides show a line in their middle that no busbar explains."""
    lit = evidence.lit[lines]
    response = lit @ evidence.response[lines] / (lit.sum() + 1e-6)
    distance = np.abs(evidence.profiles.offset)
    at_line = response[distance <= ON_LINE].max()
    at_middle = response[(distance > NEAR_MIDDLE) & (distance < HALF_CELL)].max()
    elsewhere = response[(distance > OFF_LINE) & (distance < 0.42)].max()
    return at_middle > max(0.85 * at_line, 1.5 * elsewhere)


def border_ends(evidence):
    """How much the left, right, upper and lower border look like the module's end, 0 to 1 each."""
    sides, gray, offset = evidence.sides, evidence.profiles.gray, evidence.profiles.offset
    near = (np.abs(offset) > 0.06) & (np.abs(offset) < 0.14)
    before = gray[:, near & (offset < 0)].mean(1)
    behind = gray[:, near & (offset > 0)].mean(1)
    share_before = before / np.maximum(behind, 1e-6)
    share_behind = behind / np.maximum(before, 1e-6)
    light_beyond = np.where(sides.inwards == 1, share_before, share_behind)  # if it is as bright, the module goes on
    ends = np.clip(evidence.on / DARK_BORDER, 0, 1) * np.clip(2 - 2 * light_beyond, 0, 1)
    scores = []
    for border in range(4):
        chosen = sides.border == border
        weights = np.append(evidence.lit[chosen], 0.2 * chosen.sum())
        scores.append(np.average(np.append(ends[chosen], 0.3), weights=weights))
    return scores


def odd_shape(grid):
    """By how many octaves, beyond a tolerance, the cells are neither squares nor halves of squares."""
    width, height = np.maximum(grid.cell_size(), 1e-6)
    octaves = abs(np.log2(width / height))
    return max(0, min(octaves, abs(octaves - 1)) - 0.15)


def score(image, grid, detail=FINE):
    """How well a grid fits, up to 1.

    Are the inner lines dark, and darker than busbars, all four borders dark outside, and the cells square or half?
    """
    evidence = look(image, grid, detail)
    sides = evidence.sides
    directions = [sides.inner & ~sides.horizontal, sides.inner & sides.horizontal]
    lit = evidence.lit[sides.inner].mean() if sides.inner.any() else 1.0
    ends = border_ends(evidence)
    total = DARK_LINES * np.mean([darkness(evidence, lines) for lines in directions])
    total = total + DARKEST_LINES * np.min([1.0, *(darkest_share(evidence, lines) for lines in directions)])
    total = total + LIT_CELLS * lit + DARK_BORDERS * (np.mean(ends) + np.min(ends))
    total = total - ODD_SHAPE * odd_shape(grid)
    total = total - BUSBARS_AS_LINES * max(busbars(evidence, lines) for lines in directions)
    total = total - LINES_LEFT_OUT * any(line_left_out(evidence, lines) for lines in directions)
    return float(total)
