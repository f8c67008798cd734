"""Guesses of a module's outline, from the lit areas of its image."""

import itertools

import cv2
import numpy as np
from PIL import Image

from elcells.modules.grid import Grid

FLOOR = 0.08  # of the brightest: darker areas are not evened out
THRESHOLDS = (0.15, 0.3, 0.45)  # of the image's bright parts, above which an area is lit
CLOSINGS = (0, 1, 2, 4, 7)  # pixels; gaps in a lit area of twice as many are closed
THIN = 2  # pixels; parts of a lit area of twice as many are dropped
DARK_AROUND = 10  # dark pixels that are put around an image, more than a closing
LARGEST = 4  # lit areas that are taken, alone and in pairs
LARGE = 0.04  # of the image, the least lit area
CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))  # a pixel and the four beside it


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
    around = cv2.GaussianBlur(shrink(image, cell / 8)[0], (0, 0), 8, borderType=cv2.BORDER_REPLICATE)
    return image / (FLOOR + cv2.resize(around, image.shape[::-1]))


def four_corners(points):
    """Corners (4, 2) around int32 points, clockwise from the upper left, or None: their hull, less its least sides."""
    hull = cv2.convexHull(points).astype(np.float32)
    if len(hull) < 4:
        return None
    hull = cv2.approxPolyN(hull, 4)[0].astype(float)
    if len(hull) < 4:
        return None
    x, y = (hull - hull.mean(0)).T
    hull = hull[np.argsort(np.arctan2(y, x))]
    return np.roll(hull, -np.argmin(hull.sum(1)), axis=0)


def large_areas(smooth, threshold, steps):
    """Borders of the large areas of an image that are brighter than a threshold: int32 (N, 1, 2) each, x and y.

    steps: pixels; gaps in an area of twice as many are closed.
    """
    lit = np.pad((smooth > threshold).astype(np.uint8), DARK_AROUND)
    lit = cv2.morphologyEx(lit, cv2.MORPH_CLOSE, CROSS, iterations=steps)
    lit = cv2.morphologyEx(lit, cv2.MORPH_OPEN, CROSS, iterations=THIN)
    borders, hierarchy = cv2.findContours(
        lit, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(-DARK_AROUND, -DARK_AROUND)
    )
    if hierarchy is None:
        return []
    areas = [(cv2.contourArea(border), border) for border, (*_, parent) in zip(borders, hierarchy[0]) if parent < 0]
    areas = sorted(areas, key=lambda pair: -pair[0])[:LARGEST]
    return [border for area, border in areas if area > LARGE * smooth.size]


def outlines(image, apart):
    """Guesses of the module's corners: the whole image, lit areas at several thresholds and closings, and pairs.

    apart: pixels by which a guess must differ from those before it.
    """
    height, width = image.shape
    quads = [np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * (np.array([width, height]) - 1.0)]
    smooth = cv2.GaussianBlur(image, (0, 0), 1)
    bright = np.percentile(smooth[::2, ::2], 95)
    seen = set()
    for threshold, steps in itertools.product(THRESHOLDS, CLOSINGS):
        areas = large_areas(smooth, threshold * bright, steps)
        for chosen in [*itertools.combinations(areas, 1), *itertools.combinations(areas, 2)]:
            boxes = np.array([cv2.boundingRect(border) for border in chosen])
            key = tuple(np.round(boxes / apart).ravel())
            if key in seen:  # the same area at another threshold or closing
                continue
            seen.add(key)
            quad = four_corners(np.concatenate(chosen))
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
