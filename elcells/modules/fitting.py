"""Fit a grid to what its image shows: robust least squares by Gauss-Newton steps with Cauchy weights.

Perspective, lens, border, a wider gap in the middle and each inner line's own place are fitted at once. Busbars, dead
cells and dirt are outvoted.
"""

from dataclasses import dataclass

import numpy as np

from elcells.modules.grid import Grid
from elcells.modules.sides import FINE_DETAIL, Sides, seen_shifts, sides_of

# The parameters of a fit are one vector. Distances are in units of a cell's side.
CORNER_MOVES = slice(0, 8)  # moves of the four corners, x and y
BEND = 8  # of the lens
GEOMETRY = 9  # parameters up to here are not linear
BORDERS = slice(9, 13)  # how far within the left, right, upper and lower line the light ends
GAPS = slice(13, 15)  # how much wider the gap is in the middle of the columns and of the rows
LINE_MOVES = slice(15, None)  # moves of the inner lines, first the vertical ones

# What is known beforehand, and how much it counts against a clear side that is off by as much.
CORNERS_STAY = 0.003
LENS_IS_FLAT = 0.6
GAP_IS_NO_WIDER = 0.5
LINES_ARE_EVEN = 2.0
LIGHT_ENDS_AT_RIM = 0.5
LIGHT_ENDS_AT_RIM_OF_FEW = 100  # the same for few lines of cells
BORDERS_ARE_ALIKE = 30

RIM = 0.01  # cells by which the light usually ends within the outermost lines
FEW = 4  # lines of cells; the distances of fewer do not tell where the outermost lines are
BORDER_SIDE = 0.7  # how much a side on the border counts, against an inner one
LENS_SIDES = 60  # needed to fit a lens
MIDDLE_GAP_FROM = 12  # lines of cells from which a module may have a wider gap in its middle
LEAST_SCALE = 0.01  # cells, of the Cauchy weights
NUDGE = 1e-5  # of a parameter, for the derivative


def middle_gap(count):
    """By what share of a wider gap in the middle of `count` cells each line moves: float (count + 1,)."""
    if count < MIDDLE_GAP_FROM or count % 2:
        return np.zeros(count + 1)
    return 0.5 * np.sign(np.arange(count + 1) - count / 2)


@dataclass(frozen=True)
class Observation:
    """Where an image shows the sides of a grid's cells; arrays with an entry for each of E sides."""

    grid: Grid
    cell: float  # mean side of a cell in pixels
    sides: Sides
    point: np.ndarray  # float (E, 2), pixels
    normal: np.ndarray  # float (E, 2), unit vector across the side in the image
    pixels: np.ndarray  # float (E,), of a cell along the normal
    weight: np.ndarray  # float (E,)
    linear: np.ndarray  # float (E, L): how far each linear parameter, from BORDERS on, shifts each side, in cells

    def moved(self, values):
        """The grid with the corners and the lens of a vector of parameters."""
        moves = values[CORNER_MOVES].reshape(4, 2) * self.cell
        return self.grid.changed(quad=self.grid.quad + moves, bend=values[BEND])

    def residuals(self, values):
        """How far each side is off, float (E,), in cells."""
        off = self.moved(values).to_pixels(self.sides.middle) - self.point
        return (off * self.normal).sum(1) / self.pixels - self.linear @ values[GEOMETRY:]

    def jacobian(self, values, free):
        """Derivative of the residuals, float (E, parameters)."""
        here = self.residuals(values)
        nudged = np.tile(here, (GEOMETRY, 1))
        for k in np.flatnonzero(free[:GEOMETRY]):
            nudge = np.zeros(len(values))
            nudge[k] = NUDGE
            nudged[k] = self.residuals(values + nudge)
        return np.hstack([(nudged.T - here[:, None]) / NUDGE, -self.linear])


def observe(image, grid, window, detail):
    """The Observation of all sides within `window` cells of a grid's."""
    cell = grid.cell_side()
    sides = sides_of(grid)
    shift, clear = seen_shifts(image, grid, sides, window, detail)
    start = grid.to_pixels(sides.middle)
    across = grid.to_pixels(sides.middle + sides.across * 0.01) - start
    length = np.linalg.norm(across, axis=1, keepdims=True)
    normal = across / length
    pixels = length[:, 0] * 100
    point = start + normal * (shift * pixels)[:, None]
    weight = np.sqrt(clear) * np.where(sides.inner, 1, BORDER_SIDE)
    return Observation(grid, cell, sides, point, normal, pixels, weight, linear_part(grid, cell, sides, pixels))


def linear_part(grid, cell, sides, pixels):
    """The field `linear` of an Observation."""
    vertical = ~sides.horizontal
    at_border = sides.border[:, None] == np.arange(4)
    borders = at_border * (sides.inwards * cell / pixels)[:, None]
    gaps = np.zeros((len(sides.line), 2))
    gaps[vertical, 0] = -middle_gap(grid.columns)[sides.line[vertical]]
    gaps[~vertical, 1] = -middle_gap(grid.rows)[sides.line[~vertical]]
    lines = np.zeros((len(sides.line), grid.columns + grid.rows - 2))
    number = sides.line - 1 + sides.horizontal * (grid.columns - 1)
    lines[sides.inner, number[sides.inner]] = -1
    return np.hstack([borders, gaps, lines])


def prior(grid, moved):
    """What is known beforehand: (prior, wanted), where prior (R, parameters) @ parameters should be wanted (R,)."""
    rim_weight = LIGHT_ENDS_AT_RIM_OF_FEW if min(grid.columns, grid.rows) < FEW else LIGHT_ENDS_AT_RIM
    weights = np.zeros(LINE_MOVES.start + len(moved))
    weights[CORNER_MOVES] = CORNERS_STAY
    weights[BEND] = LENS_IS_FLAT
    weights[GAPS] = GAP_IS_NO_WIDER
    weights[LINE_MOVES] = LINES_ARE_EVEN
    borders = np.zeros((5, len(weights)))
    borders[0, BORDERS] = rim_weight / 4
    borders[1:, BORDERS] = BORDERS_ARE_ALIKE * (np.eye(4) - 1 / 4)
    wanted = np.zeros(len(weights) + len(borders))
    wanted[LINE_MOVES.start : len(weights)] = -LINES_ARE_EVEN * moved
    wanted[len(weights)] = rim_weight * RIM
    return np.concatenate([np.diag(weights), borders]), wanted


def solve(seen, values, free, moved, scale, detail):
    """The parameters, of which only the free ones change, that move a grid's sides to where they are seen."""
    known, wanted = prior(seen.grid, moved)
    jacobian = seen.jacobian(values, free)  # the problem is so nearly linear that one will do
    for _ in range(detail.iterations):
        off = seen.residuals(values)
        # residuals beyond the scale (in cells) count less and less
        weighted = jacobian.T * (seen.weight**2 / (1 + (off / scale) ** 2))
        hessian = weighted @ jacobian + known.T @ known
        gradient = weighted @ off + known.T @ (known @ values - wanted)
        step = np.zeros(len(values))
        step[free] = np.linalg.solve(hessian[np.ix_(free, free)] + 1e-12 * np.eye(free.sum()), gradient[free])
        values = values - step
        if np.abs(step).max() < detail.tolerance:
            break
    return values


def fit(image, grid, windows, detail=FINE_DETAIL, bend=None):
    """Fit a grid to the sides that are seen within each of `windows` (in cells) in turn.

    image: float32 (H, W), relative to the brightness around. bend: the lens where it is known, else it is fitted.
    From the second window on, inner lines find their own places, as strings may stand wider apart than cells. How far
    within the outermost lines the light ends follows, for each border, from the even distances of the inner ones.
    """
    if bend is not None:
        grid = grid.changed(bend=bend)
    gap_x = middle_gap(grid.columns)
    gap_y = middle_gap(grid.rows)
    borders = np.full(4, RIM)
    moved = np.zeros(grid.columns + grid.rows - 2)  # the inner lines, from their even places
    for turn, window in enumerate(windows):
        seen = observe(image, grid, window, detail)
        own_places = detail.own_places and turn > 0
        free = np.ones(LINE_MOVES.start + len(moved), bool)
        free[BEND] = own_places and bend is None and len(seen.weight) > LENS_SIDES
        free[GAPS] = gap_x.any(), gap_y.any()
        free[LINE_MOVES] = own_places
        start = np.zeros(len(free))
        start[BEND] = grid.bend
        start[BORDERS] = borders
        values = solve(seen, start, free, moved, max(LEAST_SCALE, window / 6), detail)
        borders = values[BORDERS]
        moved = moved + values[LINE_MOVES]
        moves_x, moves_y = np.split(values[LINE_MOVES], [grid.columns - 1])
        x = grid.x + values[GAPS][0] * gap_x + np.pad(moves_x, 1)
        y = grid.y + values[GAPS][1] * gap_y + np.pad(moves_y, 1)
        grid = seen.moved(values).changed(x=x, y=y)
    return grid
