"""Find the module in an image: guesses of its outline from the lit areas, a grid fitted to each, the clearest wins."""

import itertools

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from elcells.modules.grid import Grid, fit, neighbours, score

COARSE, FINE = 32, 100  # pixels of a cell while the outline is looked for, and while the grid is fitted
FLOOR = 0.08  # of the brightest: darker isn't evened out
BEYOND_DOUBT = 0.95  # a rough grid of a higher score needs no other guesses of the same module
CLEAR = 0.9  # a rough grid of a higher score is not tried again with a line of cells more or fewer
WINDOWS = (0.15, 0.1, 0.06, 0.05)  # in cells, of the fine fit
ANOTHER = 0.1  # that a grid beside the best one, not upon it, counts more
FOUND = 0.6  # a grid of a lower score is none
SURE, LEAD = 0.8, 0.1  # a grid of a lower score, or less ahead of the best other one, should be looked at


def shrink(image, factor):
    """Image (float32) with 1/factor of the pixels along each side, antialiased, and the factor: 1 below 1.2."""
    if factor < 1.2:
        return image, 1.0
    h, w = (round(n / factor) for n in image.shape)
    box = (0, 0, min(w * factor, image.shape[1]), min(h * factor, image.shape[0]))
    resized = Image.fromarray(image).resize((max(w, 1), max(h, 1)), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized), factor


def even(image, cell):
    """Image relative to the brightness within about a cell (pixels) around."""
    around = ndimage.gaussian_filter(shrink(image, cell / 8)[0], 8, mode="nearest")
    around = np.asarray(Image.fromarray(around).resize(image.shape[::-1], Image.Resampling.BILINEAR))
    return image / (FLOOR + around)


def four_corners(points):
    """Corners (4, 2), clockwise from the upper left, around points: their hull's sides are dropped down to four."""
    try:
        hull = points[ConvexHull(points).vertices].astype(float)
    except (QhullError, ValueError):
        return None
    while len(hull) > 4:
        n, best = len(hull), None
        a, b, c, d = (np.roll(hull, -k, axis=0) for k in (-1, 0, 1, 2))
        p, q, r = b - a, d - c, c - b  # the side from b to c is dropped: its neighbours are prolonged until they meet
        det = p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]
        safe = np.where(np.abs(det) > 1e-9, det, 1)
        t = np.where(np.abs(det) > 1e-9, (r[:, 0] * q[:, 1] - r[:, 1] * q[:, 0]) / safe, -1)
        u = np.where(np.abs(det) > 1e-9, (p[:, 0] * r[:, 1] - p[:, 1] * r[:, 0]) / safe, -1)
        area = np.where(np.minimum(t, u) >= 0, np.abs(t * (r[:, 0] * p[:, 1] - r[:, 1] * p[:, 0])), np.inf)
        best = int(area.argmin())
        if not np.isfinite(area[best]):
            return None
        tip = b[best] + t[best] * p[best]
        hull = np.array([tip if k == best else hull[k] for k in range(n) if k != (best + 1) % n])
    x, y = (hull - hull.mean(0)).T
    hull = hull[np.argsort(np.arctan2(y, x))]
    return np.roll(hull, -np.argmin(hull.sum(1)), axis=0) if len(hull) == 4 else None


def grown(mask, by):
    """Mask with all that is within `by` steps of it; many times as fast as scipy's binary_dilation."""
    for _ in range(by):
        before, mask = mask, mask.copy()
        mask[1:] |= before[:-1]
        mask[:-1] |= before[1:]
        mask[:, 1:] |= before[:, :-1]
        mask[:, :-1] |= before[:, 1:]
    return mask


def outlines(image, apart):
    """Guesses of the module's corners: the whole image, lit areas at several thresholds and closings, and pairs.

    apart: pixels by which a guess must differ from those before it.
    """
    smooth, cross = ndimage.gaussian_filter(image, 1), ndimage.generate_binary_structure(2, 1)
    found = [np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * (np.array(image.shape[::-1]) - 1.0)]
    bright, seen = np.percentile(smooth[::2, ::2], 95), set()
    for share, close in itertools.product((0.15, 0.3, 0.45), (0, 1, 2, 4, 7)):
        mask = ~grown(~grown(np.pad(smooth > share * bright, 10), close), close)[10:-10, 10:-10]
        mask = grown(~grown(~np.pad(mask, 2), 2), 2)[2:-2, 2:-2]
        labels, _ = ndimage.label(mask)
        area, boxes = np.bincount(labels.ravel())[1:], ndimage.find_objects(labels)
        large = [k for k in np.argsort(-area)[:4] if area[k] > 0.04 * mask.size]
        rims = {}
        for parts in [(k,) for k in large] + list(itertools.combinations(large, 2)):
            key = tuple(round(edge / apart) for k in parts for axis in boxes[k] for edge in (axis.start, axis.stop))
            if key in seen:  # the same area at another threshold or closing
                continue
            seen.add(key)
            for k in parts:
                if k not in rims:
                    part = labels[boxes[k]] == k + 1
                    rims[k] = np.argwhere(part & ~ndimage.binary_erosion(part, cross))
                    rims[k] = (rims[k] + [axis.start for axis in boxes[k]])[:, ::-1]
            quad = four_corners(np.concatenate([rims[k] for k in parts]))
            if quad is not None and all(np.abs(quad - q).max() > apart for q in found):
                found.append(quad)
    return found


def stretched(quad, columns, rows):
    """A guess with one or two lines of cells more, or one fewer, at each of its borders."""
    for left, right, top, bottom in (*np.eye(4), *2 * np.eye(4), *-np.eye(4)):
        c, r = columns - left - right, rows - top - bottom  # what the guess is taken to show
        if min(c, r) > 0:
            x0, x1, y0, y1 = -left / c, 1 + right / c, -top / r, 1 + bottom / r
            yield Grid(quad, 1, 1, (9, 9))(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]))


def mismatch(quad, columns, rows):
    """How far a guess's sides are from those of square or half cells, in octaves."""
    width = np.linalg.norm(quad[[0, 3]] - quad[[1, 2]], axis=1).mean()
    height = np.linalg.norm(quad[[0, 1]] - quad[[3, 2]], axis=1).mean()
    ratio = np.log2((width + 1) / columns / ((height + 1) / rows))
    return min(abs(ratio - half) for half in (-1, 0, 1))


def around(grid, quad):
    """True if a guess is about the same module as a grid's."""
    corners = grid.corners()
    return np.linalg.norm(corners.mean(0) - quad.mean(0)) < 0.3 * np.ptp(corners, axis=0).min()


def find_grid(image, columns, rows, corners=None, bend=None, quick=False):
    """Grid of the module that stands out in an image: (Grid, score, lead over the best other grid).

    image: float32 (H, W). corners: (4, 2) pixels x, y of the module's corners, clockwise from the upper left, roughly,
    where the user gives them. bend: the lens, where it is known. quick: a first look, enough to compare grids' sizes.
    """
    sample = image[:: max(1, image.shape[0] // 500), :: max(1, image.shape[1] // 500)]
    low, high = np.percentile(sample, [0.5, 99.5])

    def prepared(factor):
        small, factor = shrink(image, factor)
        return (small - low) / max(high - low, 1e-6), factor

    small, factor = prepared(max(image.shape) / (COARSE * max(columns, rows) * 1.6))
    flat = even(small, COARSE)

    def rough(quad):
        grid = fit(flat, Grid(quad, columns, rows, small.shape, bend or 0.0), (0.25, 0.12), fine=False)
        return score(flat, grid, False), grid

    if corners is None:
        tried = []
        for quad in sorted(outlines(small, 0.2 * COARSE), key=lambda q: mismatch(q, columns, rows)):
            if not any(value >= BEYOND_DOUBT and around(grid, quad) for value, grid in tried):
                tried.append(rough(quad))
        tried = distinct(tried)
        if quick:
            return tried[0][1].scaled(factor), tried[0][0], 0.0
        seen = set()
        for _ in range(2):  # the second time from what the first has found
            if tried[0][0] >= CLEAR:
                break
            again = [grid for _, grid in tried[:2] if id(grid) not in seen]
            seen.update(map(id, again))
            more = [rough(quad) for grid in again for quad in stretched(grid.quad, columns, rows)]
            tried = distinct([*tried, *more])
    else:
        tried = [rough((np.asarray(corners, float) + 0.5) / factor - 0.5)]
    cell = np.sqrt(tried[0][1].cell_size().prod()) * factor
    middle, factor2 = prepared(cell / FINE)
    middle = even(middle, cell / factor2)

    def finely(grid):
        grid = fit(middle, grid, WINDOWS, bend=bend)
        return score(middle, grid), grid

    tried = [(value, grid.scaled(factor / factor2)) for value, grid in tried]
    near = [grid for value, grid in tried[:3] if value > tried[0][0] - 0.15]
    done = distinct([finely(grid) for grid in near])
    beside = list(neighbours(done[0][1])) if corners is None else []
    values = [score(flat, other.scaled(factor2 / factor), False) for other in [done[0][1], *beside]]
    beside = [(done[0][0] + value - values[0], other) for value, other in zip(values[1:], beside)]
    done = distinct([*done, *(finely(other) for value, other in beside if value > done[0][0])])
    (best, grid), others = done[0], [*done[1:], *tried, *beside]
    apart = 0.5 * grid.cell_size().min()
    others = [  # where two modules are seen whole, who knows which is meant
        value + ANOTHER * (not around(grid, other.corners()))
        for value, other in others
        if np.abs(other.nodes() - grid.nodes()).max() > apart
    ]
    return grid.scaled(factor2), best, best - max(others, default=0.0)


def distinct(scored):
    """(score, Grid) pairs, the best first, without those that are within a third of a cell of a better one."""
    kept = []
    for value, grid in sorted(scored, key=lambda t: -t[0]):
        apart = 0.33 * grid.cell_size().min()
        if all(np.abs(other.corners() - grid.corners()).max() > apart for _, other in kept):
            kept.append((value, grid))
    return kept
