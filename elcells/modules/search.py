"""Find a module's grid in its image: a grid is fitted to each guess of the outline, and the clearest one wins."""

import itertools
from dataclasses import dataclass

import numpy as np

from elcells.modules.fitting import fit
from elcells.modules.grid import Grid
from elcells.modules.outline import evened, mismatch, outlines, shrink, stretched
from elcells.modules.scoring import score
from elcells.modules.sides import ROUGH

ROUGH_CELL = 32  # pixels of a cell while the outline is looked for
ROOM = 1.6  # times a module's longer side: what an image is taken to show
FINE_CELL = 100  # pixels of a cell while the grid is fitted
ROUGH_WINDOWS = (0.25, 0.12)  # cells, of the rough fit
FINE_WINDOWS = (0.15, 0.1, 0.06, 0.05)  # cells, of the fine fit
BEYOND_DOUBT = 0.95  # a rough grid of such a score needs no other guesses of the same module
CLEAR = 0.9  # a rough grid of such a score is not tried again with more or fewer lines of cells
CLOSE = 0.15  # behind the best rough score: such grids are fitted finely too
OTHER_MODULE = 0.1  # added to the score of a grid beside the best one: either module may be meant
FOUND = 0.6  # a grid of a lower score is dropped
SURE = 0.8  # a grid of a lower score should be looked at
LEAD = 0.1  # a grid that is less ahead of the best other one should be looked at


@dataclass(frozen=True, eq=False)
class Candidate:
    """A grid and its score."""

    score: float
    grid: Grid

    def shows(self, quad):
        """True if corners (4, 2) lie around the same module as the grid."""
        corners = self.grid.corners()
        return np.linalg.norm(corners.mean(0) - quad.mean(0)) < 0.3 * np.ptp(corners, axis=0).min()


class Levels:
    """An image whose darkest and brightest pixels are 0 and 1, in smaller sizes."""

    def __init__(self, image):
        step_y = max(1, image.shape[0] // 500)
        step_x = max(1, image.shape[1] // 500)
        self.image = image
        self.low, self.high = np.percentile(image[::step_y, ::step_x], [0.5, 99.5])

    def shrunk(self, factor):
        """(image with about 1/factor of the pixels along each side, the factor that it has)."""
        small, factor = shrink(self.image, factor)
        return (small - self.low) / max(self.high - self.low, 1e-6), factor


class RoughSearch:
    """Grids of columns x rows cells, fitted roughly in an image that is shrunk by `factor`."""

    def __init__(self, levels, columns, rows, bend=None):
        self.columns = columns
        self.rows = rows
        self.bend = bend or 0.0
        self.small, self.factor = levels.shrunk(max(levels.image.shape) / (ROUGH_CELL * max(columns, rows) * ROOM))
        self.evened = evened(self.small, ROUGH_CELL)

    def score(self, grid):
        """The rough score of a grid of the shrunk image."""
        return score(self.evened, grid, ROUGH)

    def fitted(self, quad):
        """The Candidate from a guess of the corners."""
        grid = Grid(quad, self.columns, self.rows, self.small.shape, self.bend)
        grid = fit(self.evened, grid, ROUGH_WINDOWS, ROUGH)
        return Candidate(self.score(grid), grid)

    def from_outlines(self):
        """Candidates from the image's lit areas, the best first."""
        quads = outlines(self.small, 0.2 * ROUGH_CELL)
        candidates = []
        for quad in sorted(quads, key=lambda quad: mismatch(quad, self.columns, self.rows)):
            if not any(other.score >= BEYOND_DOUBT and other.shows(quad) for other in candidates):
                candidates.append(self.fitted(quad))
        return distinct(candidates)

    def with_other_lines(self, candidates):
        """The candidates and, unless the best is clear, the two best ones with more or fewer lines of cells; twice."""
        stretched_before = set()
        for _ in range(2):
            if candidates[0].score >= CLEAR:
                break
            chosen = [candidate for candidate in candidates[:2] if candidate not in stretched_before]
            stretched_before.update(chosen)
            quads = [quad for other in chosen for quad in stretched(other.grid.quad, self.columns, self.rows)]
            candidates = distinct([*candidates, *(self.fitted(quad) for quad in quads)])
        return candidates


class FineSearch:
    """Grids fitted closely in an image that is shrunk by `factor`; cell: pixels of a cell in the whole image."""

    def __init__(self, levels, cell, bend=None):
        self.bend = bend
        small, self.factor = levels.shrunk(cell / FINE_CELL)
        self.evened = evened(small, cell / self.factor)

    def fitted(self, grid):
        """The Candidate from a grid of the shrunk image that is roughly right."""
        grid = fit(self.evened, grid, FINE_WINDOWS, bend=self.bend)
        return Candidate(score(self.evened, grid), grid)


def rough_score(image, columns, rows):
    """The score at a first look, enough to compare numbers of columns and rows; image: float32 (H, W)."""
    return RoughSearch(Levels(image), columns, rows).from_outlines()[0].score


def find_grid(image, columns, rows, corners=None, bend=None):
    """Grid of the module that stands out in an image: (Grid, score, lead over the best other grid).

    image: float32 (H, W). corners: the module's rough corners where the user gives them, (4, 2) pixels x and y,
    clockwise from the upper left. bend: the lens, where it is known.
    """
    levels = Levels(image)
    rough = RoughSearch(levels, columns, rows, bend)
    if corners is None:
        candidates = rough.with_other_lines(rough.from_outlines())
    else:
        candidates = [rough.fitted((np.asarray(corners, float) + 0.5) / rough.factor - 0.5)]

    fine = FineSearch(levels, candidates[0].grid.cell_side() * rough.factor, bend)
    scale = rough.factor / fine.factor
    candidates = [Candidate(candidate.score, candidate.grid.scaled(scale)) for candidate in candidates]
    close = [candidate for candidate in candidates[:3] if candidate.score > candidates[0].score - CLOSE]
    fitted = distinct([fine.fitted(candidate.grid) for candidate in close])
    beside = scored_neighbours(fitted[0], rough, fine.factor / rough.factor) if corners is None else []
    better = [fine.fitted(candidate.grid) for candidate in beside if candidate.score > fitted[0].score]
    best, *others = distinct([*fitted, *better])
    lead = best.score - best_other_score(best, [*others, *candidates, *beside])
    return best.grid.scaled(fine.factor), best.score, lead


def scored_neighbours(candidate, rough, scale):
    """Candidates moved by one line of cells in each direction, what a candidate is most easily mistaken for.

    Their scores differ from its own as they do in a RoughSearch. scale: of the search's image, against the candidate's.
    """
    grid = candidate.grid
    reference = rough.score(grid.scaled(scale))
    neighbours = []
    for dx, dy in itertools.product((-1, 0, 1), repeat=2):
        if dx or dy:
            moved = grid.changed(x=grid.x + dx, y=grid.y + dy)
            neighbours.append(Candidate(candidate.score + rough.score(moved.scaled(scale)) - reference, moved))
    return neighbours


def best_other_score(best, others):
    """The highest score of the candidates that lie elsewhere than the best one; 0 where there are none."""
    apart = 0.5 * best.grid.cell_size().min()
    nodes = best.grid.nodes()
    scores = []
    for other in others:
        if np.abs(other.grid.nodes() - nodes).max() > apart:
            extra = 0.0 if best.shows(other.grid.corners()) else OTHER_MODULE
            scores.append(other.score + extra)
    return max(scores, default=0.0)


def distinct(candidates):
    """The candidates, the best first, without those that are within a third of a cell of a better one."""
    kept = []
    for candidate in sorted(candidates, key=lambda candidate: -candidate.score):
        apart = 0.33 * candidate.grid.cell_size().min()
        corners = candidate.grid.corners()
        if all(np.abs(other.grid.corners() - corners).max() > apart for other in kept):
            kept.append(candidate)
    return kept
