"""Further drawings for the decoder of crack lines: parts that cracks cut off, networks of cracks, busbars in dashes.

They are drawings as in drawings.py. The network itself is not trained on them.
"""

import math

import numpy as np
from scipy import ndimage

from elcells.training.drawings import Drawing, along_busbar, gray_part
from elcells.training.shapes import (
    UNIT,
    busbar_heights,
    crack_angle,
    jagged_line,
    lines_mask,
    log_uniform,
    polygon_mask,
    random_polyline,
    scaled,
    union,
)


def island(rng, size):
    """A dark part that cracks cut off, between them and a busbar or the cell's edge; some of its fingers may glow."""
    draw = (along_busbar, gray_part, hourglass)[rng.choice(3, p=[0.5, 0.25, 0.25])]
    mask, lines = draw(rng, size)
    if rng.random() < 0.35:
        seen = rng.uniform(0.3, 0.8) * lines_mask(lines, rng.uniform(0.8, 1.6), 1.0, size)  # beside glowing fingers too
        mask = union([mask * glowing_fingers(rng, size), seen])
    return scaled(mask), lines


def hourglass(rng, size):
    """Two cracks that cross between two busbars, and one or both of the parts above and below the crossing."""
    ends = np.array([0, *busbar_heights(rng.integers(2, 6)), UNIT])
    strip = rng.integers(len(ends) - 1)
    top, bottom = ends[strip], ends[strip + 1]
    x = rng.uniform(20, UNIT - 20)
    upper, lower = log_uniform(rng, 10, 90, 2)
    crossing = (x + rng.normal() * 12, (top + bottom) / 2 + rng.normal() * 6)
    left_top = line_between(rng, (x - upper, top), crossing)
    right_top = line_between(rng, (x + upper, top), crossing)
    left_bottom = line_between(rng, (x - lower, bottom), crossing)
    right_bottom = line_between(rng, (x + lower, bottom), crossing)
    masks = [polygon_mask([*left_top, *right_top[::-1]], rng.uniform(0.6, 1.3), size)]
    if rng.random() < 0.6:
        masks.append(polygon_mask([*left_bottom, *right_bottom[::-1]], rng.uniform(0.6, 1.3), size))
    lines = [left_top, right_top, left_bottom, right_bottom]
    masks.append(rng.uniform(0.3, 1) * lines_mask(lines, rng.uniform(1, 2.2), 1.0, size))
    return union(masks), lines


def line_between(rng, start, end):
    """A jagged line from one point to another."""
    angle = math.atan2(end[1] - start[1], end[0] - start[0])
    return [*jagged_line(rng, start, angle, math.dist(start, end)), end]


def glowing_fingers(rng, size):
    """How dark each finger of a cut-off part is, float (1, size) in 0..1: some are still connected."""
    noise = ndimage.gaussian_filter1d(rng.normal(size=size), rng.uniform(2, 9) * size / UNIT)
    return 1 / (1 + np.exp(-8 * (noise / noise.std() + rng.uniform(0.2, 1.4))))[None]


def network(rng, size):
    """Four to twelve cracks close to each other, mostly in about the same direction."""
    centre = rng.uniform(50, UNIT - 50, 2)
    spread = rng.uniform(20, 90)
    direction = crack_angle(rng)
    wobble = rng.choice([0.02, 0.06, 0.2])
    lines = []
    for _ in range(rng.integers(4, 13)):
        start = np.clip(centre + spread * rng.normal(size=2), 5, UNIT - 5)
        angle = direction + 0.3 * rng.normal() + rng.choice([0, math.pi / 2], p=[0.8, 0.2])
        lines.append(random_polyline(rng, tuple(start), angle, log_uniform(rng, 25, 200), wobble))
    return lines_mask(lines, rng.uniform(0.8, 2.2), rng.uniform(0.6, 1.3), size), lines


def pads(rng, size):
    """Two to five busbars that are soldered in places: dark pads in a row, with a thin line or nothing between them."""
    at = (np.arange(size) + 0.5) * UNIT / size
    period = rng.uniform(25, 75)
    is_pad = (at + rng.uniform(0, period)) % period < rng.uniform(0.35, 0.75) * period
    between = rng.uniform(0, 0.6)
    half_pad = rng.uniform(1.5, 5)
    half_line = rng.uniform(0.5, 1.5)
    busbars = rng.integers(2, 6)
    mask = np.zeros((size, size))
    for y in busbar_heights(busbars) + 4 * rng.normal(size=busbars):
        away = np.abs(at - y)[:, None]
        mask = np.maximum(mask, np.where(is_pad, away < half_pad, between * (away < half_line)))
    return ndimage.gaussian_filter(mask, rng.uniform(0.6, 1.5) * size / UNIT), []


LINE_DRAWINGS = {
    "island": (Drawing(island, smooth=1.0, textured=1.0, upright=True, low=0.5, high=0.96),),
    "network": (Drawing(network, smooth=1.0, textured=1.0, upright=False, low=0.15, high=0.6),),
    "pads": (Drawing(pads, smooth=1.0, textured=1.0, upright=True, low=0.3, high=0.95),),
}
