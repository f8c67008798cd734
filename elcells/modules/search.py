"""Find a module's grid in its image: a grid is fitted to each guess of the outline, and the clearest one wins."""

import itertools
from dataclasses import dataclass

import numpy as np

from elcells.modules.fitting import fit
from elcells.modules.grid import Grid
from elcells.modules.outline import evened, mismatch, outlines, shrink, stretched
from elcells.modules.scoring import score
from elcells.modules.sides import ROUGH_DETAIL

LEVEL_SAMPLES = 250  # pixels or more along each side, from which an image's darkest and brightest are taken
ROUGH_CELL = 32  # pixels of a cell while the outline is looked for
ROOM = 1.6  # times a module's longer side: what an image is taken to show
FINE_CELL = 100  # pixels of a cell while the grid is fitted
ROUGH_WINDOWS = (0.25, 0.12)  # cells, of the rough fit
FINE_WINDOWS = (0.15, 0.1, 0.06, 0.05)  # cells, of the fine fit
BEYOND_DOUBT = 0.95  # a rough grid of such a score needs no other guesses of the same module
OUTLINES_APART = 0.2  # cells: outlines that differ less are the same guess
SAME_MODULE = 0.3  # of a module's shorter side: outlines with middles so near show the same module
SAME_GRID = 0.33  # of a cell: grids whose corners differ less are the same
ELSEWHERE = 0.5  # of a cell: a grid with a node farther from the best grid's lies elsewhere
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
        return np.linalg.norm(corners.mean(0) - quad.mean(0)) < SAME_MODULE * np.ptp(corners, axis=0).min()


def shrunk(image, factor):
    """Image from 0 (dark) to 1 (bright) with about 1/factor of the pixels along each side, and its true factor."""
    step_y = max(1, image.shape[0] // LEVEL_SAMPLES)
    step_x = max(1, image.shape[1] // LEVEL_SAMPLES)
    low, high = np.percentile(image[::step_y, ::step_x], [0.5, 99.5])
    small, factor = shrink(image, factor)
    return (small - low) / max(high - low, 1e-6), factor


def shrunk_for_outlines(image, columns, rows):
    """The same, with a factor that leaves a cell about ROUGH_CELL pixels."""
    return shrunk(image, max(image.shape) / (ROUGH_CELL * max(columns, rows) * ROOM))


def rough_candidate(image, quad, columns, rows, bend):
    """The Candidate that a rough fit makes of a guess of the corners; image: evened."""
    grid = Grid(quad, columns, rows, image.shape, bend or 0.0)
    grid = fit(image, grid, ROUGH_WINDOWS, ROUGH_DETAIL)
    return Candidate(score(image, grid, ROUGH_DETAIL), grid)


def fine_candidate(image, grid, bend):
    """The Candidate that a fine fit makes of a grid that is roughly right; image: evened."""
    grid = fit(image, grid, FINE_WINDOWS, bend=bend)
    return Candidate(score(image, grid), grid)


def rough_candidates(small, columns, rows, bend=None):
    """Candidates from the lit areas of an image with cells of ROUGH_CELL pixels, the best first."""
    image = evened(small, ROUGH_CELL)
    quads = outlines(small, OUTLINES_APART * ROUGH_CELL)
    candidates = []
    for quad in sorted(quads, key=lambda quad: mismatch(quad, columns, rows)):
        if not any(other.score >= BEYOND_DOUBT and other.shows(quad) for other in candidates):
            candidates.append(rough_candidate(image, quad, columns, rows, bend))
    return distinct(candidates)


def with_other_lines(candidates, image, bend):
    """The candidates and, unless the best is clear, the two best ones with more or fewer lines of cells; twice.

    Where the best is likely, it is done for that one alone, and again only if that finds a better one.
    """
    stretched_before = set()
    for _ in range(2):
        likely = candidates[0].score >= SURE
        if candidates[0].score >= CLEAR or (likely and candidates[0] in stretched_before):
            break
        chosen = [candidate for candidate in candidates[: 1 if likely else 2] if candidate not in stretched_before]
        stretched_before.update(chosen)
        for grid in [candidate.grid for candidate in chosen]:
            for quad in stretched(grid):
                candidates.append(rough_candidate(image, quad, grid.columns, grid.rows, bend))
        candidates = distinct(candidates)
    return candidates


def rough_score(image, columns, rows):
    """The score at a first look, enough to compare numbers of columns and rows; image: float32 (H, W)."""
    small, _ = shrunk_for_outlines(image, columns, rows)
    return rough_candidates(small, columns, rows)[0].score


def find_grid(image, columns, rows, corners=None, bend=None):
    """Grid of the module that stands out in an image: (Grid, score, lead over the best other grid).

    image: float32 (H, W). corners: the module's rough corners where the user gives them, (4, 2) pixels x and y,
    clockwise from the upper left. bend: the lens, where it is known.
    """
    small, rough_factor = shrunk_for_outlines(image, columns, rows)
    rough_image = evened(small, ROUGH_CELL)
    if corners is None:
        candidates = with_other_lines(rough_candidates(small, columns, rows, bend), rough_image, bend)
    else:
        quad = (np.asarray(corners, float) + 0.5) / rough_factor - 0.5
        candidates = [rough_candidate(rough_image, quad, columns, rows, bend)]

    cell = candidates[0].grid.cell_side() * rough_factor  # pixels
    small, fine_factor = shrunk(image, cell / FINE_CELL)
    fine_image = evened(small, cell / fine_factor)
    scale = rough_factor / fine_factor
    candidates = [Candidate(candidate.score, candidate.grid.scaled(scale)) for candidate in candidates]
    close = [candidate for candidate in candidates[:3] if candidate.score > candidates[0].score - CLOSE]
    fitted = distinct([fine_candidate(fine_image, candidate.grid, bend) for candidate in close])
    neighbours = []
    if corners is None:
        neighbours = scored_neighbours(fitted[0], rough_image, fine_factor / rough_factor)
    better = [neighbour for neighbour in neighbours if neighbour.score > fitted[0].score]
    fitted += [fine_candidate(fine_image, neighbour.grid, bend) for neighbour in better]
    best, *others = distinct(fitted)
    lead = best.score - best_other_score(best, [*others, *candidates, *neighbours])
    return best.grid.scaled(fine_factor), best.score, lead


def scored_neighbours(candidate, rough_image, scale):
    """Candidates moved by one line of cells in each direction, what a candidate is most easily mistaken for."""
    grid = candidate.grid  # in an image with 1/scale of the rough one's pixels along each side
    reference = score(rough_image, grid.scaled(scale), ROUGH_DETAIL)
    neighbours = []
    for dx, dy in itertools.product((-1, 0, 1), repeat=2):
        if dx or dy:
            moved = grid.changed(x=grid.x + dx, y=grid.y + dy)
            moved_score = score(rough_image, moved.scaled(scale), ROUGH_DETAIL)
            neighbours.append(Candidate(candidate.score + moved_score - reference, moved))
    return neighbours


def best_other_score(best, others):
    """The highest score of the candidates that lie elsewhere than the best one; 0 where there are none."""
    apart = ELSEWHERE * best.grid.cell_size().min()
    nodes = best.grid.nodes()
    scores = []
    for other in others:
        if np.abs(other.grid.nodes() - nodes).max() > apart:
            extra = 0.0 if best.shows(other.grid.corners()) else OTHER_MODULE
            scores.append(other.score + extra)
    return max(scores, default=0.0)


def distinct(candidates):
    """The candidates, the best first, without those that are the same as a better one."""
    kept = []
    places = []
    for candidate in sorted(candidates, key=lambda candidate: -candidate.score):
        apart = SAME_GRID * candidate.grid.cell_size().min()
        corners = candidate.grid.corners()
        if not kept or np.abs(np.array(places) - corners).max((1, 2)).min() > apart:
            kept.append(candidate)
            places.append(corners)
    return kept
