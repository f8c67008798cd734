"""Masks of drawn cracks and inactive regions, each of one cell, and how often each drawing is used.

A drawing is a function of (rng, size) that returns a mask and lines. The mask, float (size, size) in 0..1, says where
it takes light away, and how much of its strength; the lines, lists of points (x, y), where cracks run. rng is a numpy
Generator; coordinates are pixels of a cell of side UNIT.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from elcells.training.distractors import blobs, clouds, contacts, fingers
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
    streaks,
    union,
)

# ---------------------------------------------------------------- cracks


def crack(rng, size):
    """One to three lines, straight to wandering, with branches and stars; sometimes one side is darker."""
    lines = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        start = tuple(rng.uniform(15, UNIT - 15, 2))
        if rng.random() < 0.35:  # from an edge
            along = rng.uniform(10, UNIT - 10)
            starts = [(along, 8), (along, UNIT - 8), (8, along), (UNIT - 8, along)]
            start = starts[rng.integers(4)]
        length = log_uniform(rng, 18, 420)
        angle = crack_angle(rng)
        wobble = rng.choice([0.02, 0.06, 0.2])
        line = random_polyline(rng, start, angle, length, wobble)
        lines.append(line)
        if rng.random() < 0.5 and length > 40:  # a branch
            fork = line[rng.integers(len(line))]
            branch_angle = crack_angle(rng)
            lines.append(random_polyline(rng, fork, branch_angle, length * rng.uniform(0.2, 0.7), wobble))
        if rng.random() < 0.3:  # the other way too, which makes a star of a start within the cell
            back = angle + math.pi + rng.normal() * 0.2
            lines.append(random_polyline(rng, start, back, length * 0.6, wobble))
    width = rng.choice([rng.uniform(1, 2.6), rng.uniform(2.6, 7)], p=[0.85, 0.15])
    mask = lines_mask(lines, width, blur=rng.uniform(0.6, 1.3), size=size)
    if rng.random() < 0.3 and len(lines[0]) > 4:
        depth = rng.choice([-1, 1]) * rng.uniform(20, 95)
        far_edge = [(x, y + depth) for x, y in lines[0][::-1]]
        side = polygon_mask([*lines[0], *far_edge], 1.2, size)
        mask = np.maximum(mask, rng.uniform(0.15, 0.6) * side)
    return mask, lines


def along_busbar(rng, size):
    """One or two jagged lines more or less along the busbars.

    Mostly they are the edge of a gray part that ends at a busbar or at the cell's edge, often without a dark line.
    """
    masks = []
    lines = []
    busbars = rng.integers(2, 6)
    borders = np.array([0, *busbar_heights(busbars), UNIT]) + rng.normal(size=busbars + 2) * 2
    for _ in range(rng.choice([1, 1, 2])):
        strip = rng.integers(busbars + 1)
        top, bottom = borders[strip], borders[strip + 1]
        height = rng.choice([rng.uniform(0.04, 0.3), rng.uniform(0.1, 0.9), rng.uniform(0.7, 0.96)])  # in the strip
        y = top + height * (bottom - top)
        length = log_uniform(rng, 40, 330)
        x = rng.choice([-4, rng.uniform(0, UNIT - 40), UNIT + 4 - length])
        line = jagged_line(rng, (x, y), rng.normal() * 0.07, length)
        lines.append(line)
        line_strength = 1
        if rng.random() < 0.75:
            towards_top = 0.65 if height > 0.5 else 0.35
            end = top if rng.random() < towards_top else bottom
            slant = rng.choice([3, 25])
            right = (line[-1][0] + rng.normal() * slant, end)
            left = (line[0][0] + rng.normal() * slant, end)
            part = polygon_mask([*line, right, left], rng.uniform(0.6, 1.3), size) * streaks(rng, size)
            masks.append(rng.uniform(0.4, 1) * part)
            line_strength = rng.choice([0, rng.uniform(0.2, 1)])
        line_mask = lines_mask([line], width=rng.uniform(0.8, 2), blur=rng.uniform(0.5, 1.2), size=size)
        masks.append(line_strength * line_mask)
    return scaled(union(masks)), lines


def gray_part(rng, size):
    """A corner, or a part at one edge, cut off by a jagged crack and darker than the rest."""
    a, b = log_uniform(rng, 40, 280, 2)
    start = (a, -2)
    if rng.random() < 0.5:  # a corner
        end = (-2, b)
        corner = (-2, -2)
    else:  # from the edge back to it
        right = min(a + b, UNIT + 2)
        end = (right, log_uniform(rng, 3, 90))
        corner = (right, -2)
    line = jagged_line(rng, start, math.atan2(end[1] - start[1], end[0] - start[0]), math.dist(start, end))
    line.append(end)
    part = polygon_mask([*line, corner], rng.uniform(0.6, 1.3), size)
    if rng.random() < 0.5:
        part = part * streaks(rng, size)
    line_strength = rng.choice([0, rng.uniform(0.2, 1)])
    part_strength = rng.uniform(0.5, 1)
    line_mask = lines_mask([line], rng.uniform(0.8, 2), 0.8, size)
    return np.maximum(part_strength * part, line_strength * line_mask), [line]


def arc(rng, size):
    """A long flat arc, more or less along the busbars; sometimes the part between it and its chord is darker."""
    length = rng.uniform(35, 130)
    x = rng.uniform(20, UNIT - 20 - length / 2)
    y = rng.uniform(15, UNIT - 15)
    height = length * rng.uniform(-0.12, 0.12)
    along = np.linspace(0, 1, 25)
    rise = 4 * height * along * (1 - along) + 0.1 * rng.normal() * length * along
    line = list(zip(x + length * along, y + rise))
    mask = lines_mask([line], rng.uniform(0.8, 2.2), rng.uniform(0.5, 1.2), size)
    if rng.random() < 0.4:
        mask = np.maximum(mask, rng.uniform(0.1, 0.5) * polygon_mask(line, 1.5, size))
    return mask, [line]


def cross(rng, size):
    """One to five small crosses, as point loads leave them: a dark core with short arms, blurred by the resizing."""
    masks = []
    blur = rng.uniform(0.9, 1.7)
    turn = math.pi / 4 + rng.normal() * 0.2
    larger = rng.choice([1, 1, 1, rng.uniform(1.1, 1.7)])
    width = larger * rng.uniform(1.5, 3.2)
    raggedness = rng.uniform(0.1, 0.3)
    for _ in range(rng.integers(1, 6)):
        x, y = rng.uniform(12, UNIT - 12, 2)
        arms = []
        for k in range(4):
            length = larger * rng.uniform(3, 6)
            angle = turn + k * math.pi / 2 + rng.normal() * raggedness
            arms.append([(x, y), (x + length * math.cos(angle), y + length * math.sin(angle))])
        arms_mask = lines_mask(arms, width, blur, size) * rng.uniform(0.5, 1)
        angles = np.arange(8) * math.pi / 4 + turn
        radii = larger * rng.uniform(1.8, 4.2) * (1 + raggedness * rng.normal(size=8))
        core = polygon_mask(list(zip(x + radii * np.cos(angles), y + radii * np.sin(angles))), blur, size)
        masks.append(rng.uniform(0.5, 1) * np.maximum(arms_mask, scaled(core)))
    return scaled(union(masks)), []  # too small to have a length


# ---------------------------------------------------------------- inactive regions


def inactive(rng, size):
    """A wedge in a corner, a bite at an edge, or a polygon anywhere."""
    outline = (wedge, bite, polygon, polygon)[rng.integers(4)]
    points = outline(rng)
    return polygon_mask(points, rng.uniform(0.7, 2.5), size), []


def broken_corner(rng, size):
    """A corner, or a part of an edge, that a jagged crack has cut off and that no longer glows."""
    if rng.random() < 0.6:
        start = (log_uniform(rng, 40, 320), -4)
        end = (-4, log_uniform(rng, 15, 120))
        outside = [(-4, -4)]
    else:
        left, right = np.sort(rng.uniform(-4, UNIT + 4, 2))
        start = (right, log_uniform(rng, 4, 60))
        end = (left, log_uniform(rng, 4, 60))
        outside = [(left, -4), (right, -4)]
    line = jagged_line(rng, start, math.atan2(end[1] - start[1], end[0] - start[0]), math.dist(start, end))
    line.append(end)
    return polygon_mask([*line, *outside], rng.uniform(0.5, 1.5), size), [line]


def strip(rng, size):
    """A half of the cell, or a strip across it, with straight edges along its busbars or fingers."""
    if rng.random() < 0.5:  # between busbars
        borders = [-9, *busbar_heights(rng.integers(2, 6)), UNIT + 9]
        first = rng.integers(len(borders) - 1)
        top, bottom = borders[first], borders[rng.integers(first + 1, min(first + 3, len(borders)))]
    else:
        height = UNIT * rng.uniform(0.1, 0.6)
        top = rng.choice([-9, rng.uniform(0, UNIT - height)])
        bottom = max(top, 0) + height
    left, right = -9, UNIT + 9
    if rng.random() < 0.2:
        left, right = np.sort(rng.choice([left, 100, 200, right], 2, replace=False))
    mask = polygon_mask([(left, top), (right, top), (right, bottom), (left, bottom)], rng.uniform(0.5, 3), size)
    if rng.random() < 0.3:
        mask = mask * streaks(rng, size)
    return mask, []


def wedge(rng):
    """Points of a triangle in the corner."""
    width, depth = log_uniform(rng, 22, 150, 2)
    return [(0, 0), (width, 0), (0, depth)]


def bite(rng):
    """Points of a ragged triangle at the upper edge."""
    middle = rng.uniform(30, UNIT - 30)
    width = log_uniform(rng, 14, 120)
    depth = log_uniform(rng, 12, 90)
    left = (middle - width / 2, 0)
    shoulder = (middle + width / 2 * rng.uniform(0.5, 1), depth * rng.uniform(0.3, 1))
    tip = (middle + rng.uniform(-width / 3, width / 3), depth)
    right = (middle + width / 2, 0)
    return [left, shoulder, tip, right]


def polygon(rng):
    """Points of a polygon with three to seven corners, wider than high."""
    x, y = rng.uniform(40, UNIT - 40, 2)
    radius = log_uniform(rng, 10, 75)
    corners = rng.integers(3, 8)
    points = []
    for angle in np.sort(rng.random(corners)) * 2 * math.pi:
        dx = radius * rng.uniform(0.4, 2.2) * math.cos(angle)
        dy = radius * rng.uniform(0.5, 1.2) * math.sin(angle)
        points.append((x + dx, y + dy))
    return points


# ---------------------------------------------------------------- what is drawn how often


class Drawing(NamedTuple):
    """A drawing, and how it is laid over cells.

    smooth, textured: its share among the drawings of its kind, in smooth cells (mono) and textured ones (poly).
    upright: it is only mirrored, since fingers and busbars run as in the images. low, high: share of light that it
    takes away where the mask is 1.
    """

    draw: Callable
    smooth: float
    textured: float
    upright: bool
    low: float
    high: float


DRAWINGS = {
    "distractor": (
        Drawing(contacts, smooth=0.2, textured=0.1, upright=True, low=0.14, high=0.9),
        Drawing(fingers, smooth=0.5, textured=0.25, upright=True, low=0.08, high=0.5),
        Drawing(blobs, smooth=0.3, textured=0.15, upright=False, low=0.08, high=0.5),
        Drawing(clouds, smooth=0.0, textured=0.5, upright=False, low=0.1, high=0.8),
    ),
    "crack": (
        Drawing(crack, smooth=0.5, textured=0.65, upright=False, low=0.15, high=0.65),
        Drawing(along_busbar, smooth=0.2, textured=0.25, upright=True, low=0.15, high=0.65),
        Drawing(gray_part, smooth=0.05, textured=0.1, upright=False, low=0.15, high=0.65),
        Drawing(cross, smooth=0.25, textured=0.0, upright=False, low=0.3, high=0.9),
        Drawing(arc, smooth=0.1, textured=0.05, upright=True, low=0.1, high=0.5),
    ),
    "inactive": (Drawing(inactive, smooth=1.0, textured=1.0, upright=False, low=0.64, high=0.96),),
    "broken": (Drawing(broken_corner, smooth=1.0, textured=1.0, upright=False, low=0.6, high=0.97),),
    "strip": (Drawing(strip, smooth=1.0, textured=1.0, upright=False, low=0.64, high=0.96),),
}
CLASSES_OF_KIND = {  # the labels that it gets
    "distractor": (),
    "crack": ("crack",),
    "inactive": ("inactive",),
    "broken": ("crack", "inactive"),
    "strip": ("inactive",),
}
