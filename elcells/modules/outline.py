"""Guesses of a module's outline, from the lit areas of its image."""

import itertools

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from elcells.modules.grid import Grid

FLOOR = 0.08  # of the brightest: darker areas are not evened out
THRESHOLDS = (0.15, 0.3, 0.45)  # of the image's bright parts, above which an area is lit
CLOSINGS = (0, 1, 2, 4, 7)  # pixels; gaps in a lit area of twice as many are closed
THIN = 2  # pixels; parts of a lit area of twice as many are dropped
DARK_AROUND = 10  # dark pixels that are put around an image, more than a closing
LARGEST = 4  # lit areas that are taken, alone and in pairs
LARGE = 0.04  # of the image, the least lit area


def shrink(image, factor):
    """Image (float32) with 1/factor of the pixels along each side, antialiased, and the factor: 1 below 1.2."""
    if factor < 1.2:
        return image, 1.0
    height, width = (round(n / factor) for n in image.shape)
    box = (0, 0, min(width * factor, image.shape[1]), min(height * factor, image.shape[0]))
    size = max(width, 1), max(height, 1)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box=box)), factor


def evened(image, cell):
    """Image relative to the brightness within about a cell (pixels) around."""
    around = ndimage.gaussian_filter(shrink(image, cell / 8)[0], 8, mode="nearest")
    around = np.asarray(Image.fromarray(around).resize(image.shape[::-1], Image.Resampling.BILINEAR))
    return image / (FLOOR + around)


def four_corners(points):
    """Corners (4, 2) around points, clockwise from the upper left, or None: their hull, less its least sides."""
    try:
        hull = points[ConvexHull(points).vertices].astype(float)
    except (QhullError, ValueError):
        return None
    while hull is not None and len(hull) > 4:
        hull = without_least_side(hull)
    if hull is None or len(hull) < 4:
        return None
    x, y = (hull - hull.mean(0)).T
    hull = hull[np.argsort(np.arctan2(y, x))]
    return np.roll(hull, -np.argmin(hull.sum(1)), axis=0)


def without_least_side(hull):
    """A convex polygon (N, 2) less the side whose loss adds the least area, or None where none can go."""
    side = np.roll(hull, -1, axis=0) - hull  # from each corner to the next
    before = np.roll(side, 1, axis=0)  # the two neighbours of the side, which are prolonged until they meet
    after = np.roll(side, -1, axis=0)
    determinant = cross_product(before, after)
    determinant = np.where(np.abs(determinant) > 1e-9, determinant, np.nan)  # they are parallel
    before_goes_on = cross_product(side, after) / determinant  # by so many times its length
    after_goes_on = cross_product(before, side) / determinant
    added = np.abs(before_goes_on * cross_product(side, before))
    area = np.where((before_goes_on >= 0) & (after_goes_on >= 0), added, np.inf)
    least = int(area.argmin())
    if not np.isfinite(area[least]):
        return None
    polygon = hull.copy()
    polygon[least] += before_goes_on[least] * before[least]
    return np.delete(polygon, (least + 1) % len(hull), axis=0)


def cross_product(a, b):
    """Cross product of vectors (N, 2): float (N,)."""
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def grown(mask, steps):
    """Mask with all that is within `steps` of it; many times as fast as scipy's binary_dilation."""
    for _ in range(steps):
        before = mask
        mask = mask.copy()
        mask[1:] |= before[:-1]
        mask[:-1] |= before[1:]
        mask[:, 1:] |= before[:, :-1]
        mask[:, :-1] |= before[:, 1:]
    return mask


def eroded(mask, steps):
    """Mask without all that is within `steps` of its complement."""
    return ~grown(~mask, steps)


def outlines(image, apart):
    """Guesses of the module's corners: the whole image, lit areas at several thresholds and closings, and pairs.

    apart: pixels by which a guess must differ from those before it.
    """
    height, width = image.shape
    quads = [np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * (np.array([width, height]) - 1.0)]
    smooth = ndimage.gaussian_filter(image, 1)
    bright = np.percentile(smooth[::2, ::2], 95)
    seen = set()
    for threshold, steps in itertools.product(THRESHOLDS, CLOSINGS):
        lit = np.pad(smooth > threshold * bright, DARK_AROUND)
        lit = eroded(grown(lit, steps), steps)  # closes gaps
        lit = grown(eroded(lit, THIN), THIN)  # drops thin parts
        rim = lit & ~eroded(lit, 1)
        lit = lit[DARK_AROUND:-DARK_AROUND, DARK_AROUND:-DARK_AROUND]
        rim = rim[DARK_AROUND:-DARK_AROUND, DARK_AROUND:-DARK_AROUND]
        labels, _ = ndimage.label(lit)
        area = np.bincount(labels.ravel())[1:]
        large = [k for k in np.argsort(-area)[:LARGEST] if area[k] > LARGE * lit.size]
        rim_points = np.argwhere(rim)[:, ::-1]  # x and y
        rim_areas = labels[rim] - 1
        for areas in [*itertools.combinations(large, 1), *itertools.combinations(large, 2)]:
            points = [rim_points[rim_areas == k] for k in areas]
            boxes = [[*part.min(0), *part.max(0) + 1] for part in points]
            key = tuple(np.round(np.array(boxes) / apart).ravel())
            if key in seen:  # the same area at another threshold or closing
                continue
            seen.add(key)
            quad = four_corners(np.concatenate(points))
            if quad is not None and all(np.abs(quad - other).max() > apart for other in quads):
                quads.append(quad)
    return quads


def stretched(grid):
    """Yield the corners of a grid with one or two lines of cells more, or one fewer, at each of its borders."""
    perspective = Grid(grid.quad, 1, 1, (9, 9))
    for change, border in itertools.product((1, 2, -1), range(4)):
        left, right, top, bottom = change * np.eye(4)[border]
        columns = grid.columns - left - right  # what the grid is now taken to show
        rows = grid.rows - top - bottom
        if min(columns, rows) <= 0:
            continue
        x0 = -left / columns
        x1 = 1 + right / columns
        y0 = -top / rows
        y1 = 1 + bottom / rows
        yield perspective.to_pixels(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]))


def mismatch(quad, columns, rows):
    """By how many octaves a guess's cells are off squares or halves of squares."""
    width = np.linalg.norm(quad[[0, 3]] - quad[[1, 2]], axis=1).mean()
    height = np.linalg.norm(quad[[0, 1]] - quad[[3, 2]], axis=1).mean()
    ratio = np.log2((width + 1) / columns / ((height + 1) / rows))
    return min(abs(ratio - half) for half in (-1, 0, 1))
