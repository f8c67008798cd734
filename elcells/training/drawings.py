"""Masks of drawn cracks, inactive regions and distractors, each of one cell.

A drawing is a function of (rng, size) that returns float (size, size) in 0..1: where it takes light away, and how much
of its strength. What is drawn follows real defects (doc/results.md). Coordinates are pixels of a cell of side UNIT.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

UNIT = 300  # the drawings' coordinates are pixels of a cell of this side
FINE = 2  # lines are drawn so many times larger and averaged down


def random_polyline(rng, start, angle, length, wobble, step=6):
    """Points of a line that starts at `start` and wanders, until it is long enough or leaves the cell."""
    points = [start]
    for _ in range(max(2, int(length / step))):
        angle += rng.normal() * wobble
        start = (start[0] + step * math.cos(angle), start[1] + step * math.sin(angle))
        points.append(start)
        if not (-5 < start[0] < UNIT + 5 and -5 < start[1] < UNIT + 5):
            break
    return points


def crack_angle(rng):
    """Mostly near the diagonals, along which silicon of this orientation cleaves."""
    return rng.choice([1, 3, 5, 7]) * math.pi / 4 + rng.normal() * 0.15 if rng.random() < 0.6 else rng.random() * 7


def log_uniform(rng, low, high, size=None):
    return np.exp(rng.uniform(math.log(low), math.log(high), size))


def scaled(mask):
    """A mask whose highest value is 1; one that is all but empty stays so."""
    return mask / max(mask.max(), 1e-3)


def heights(busbars):
    """Heights (float array) of so many busbars, evenly spread over a cell."""
    return UNIT * (np.arange(busbars) + 0.5) / busbars


def lines_mask(lines, width, blur, size):
    """float (size, size) in 0..1 of lines of `width` pixels (of UNIT), softened by `blur`."""
    scale = size / UNIT
    image = Image.new("L", (size * FINE, size * FINE))
    draw = ImageDraw.Draw(image)
    for line in lines:
        draw.line(
            [(x * scale * FINE, y * scale * FINE) for x, y in line], fill=255, width=max(1, round(width * scale * FINE))
        )
    image = image.reduce(FINE).filter(ImageFilter.GaussianBlur(float(blur * scale)))
    mask = np.asarray(image, np.float32) / 255
    return scaled(mask)


def polygon_mask(points, blur, size):
    """float (size, size) in 0..1 of a filled polygon with a soft edge."""
    scale, image = size / UNIT, Image.new("L", (size, size))
    ImageDraw.Draw(image).polygon([(float(x) * scale, float(y) * scale) for x, y in points], fill=255)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(float(blur * scale))), np.float32) / 255


def crack(rng, size):
    """One to three lines, straight to wandering, with branches and stars; sometimes one side is darker."""
    lines = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        start = tuple(rng.uniform(15, UNIT - 15, 2))
        if rng.random() < 0.35:  # from an edge
            along = rng.uniform(10, UNIT - 10)
            start = [(along, 8), (along, UNIT - 8), (8, along), (UNIT - 8, along)][rng.integers(4)]
        length, angle, wobble = log_uniform(rng, 18, 420), crack_angle(rng), rng.choice([0.02, 0.06, 0.2])
        line = random_polyline(rng, start, angle, length, wobble)
        lines.append(line)
        if rng.random() < 0.5 and length > 40:  # a branch
            start_of_branch = line[rng.integers(len(line))]
            lines.append(
                random_polyline(rng, start_of_branch, crack_angle(rng), length * rng.uniform(0.2, 0.7), wobble)
            )
        if rng.random() < 0.3:  # on in the other direction, which makes a star of a start within the cell
            lines.append(random_polyline(rng, start, angle + math.pi + rng.normal() * 0.2, length * 0.6, wobble))
    mask = lines_mask(lines, rng.uniform(1, 2.6), rng.uniform(0.6, 1.3), size)
    if rng.random() < 0.3 and len(lines[0]) > 4:
        depth = rng.choice([-1, 1]) * rng.uniform(20, 95)
        side = polygon_mask([*lines[0], *((x, y + depth) for x, y in lines[0][::-1])], 1.2, size)
        mask = np.maximum(mask, rng.uniform(0.15, 0.6) * side)
    return mask


def streaks(rng, size):
    """float (1, size) in 0..1: columns of a gray part, which fingers give each its own brightness."""
    noise = ndimage.gaussian_filter1d(rng.normal(size=size), rng.uniform(0.7, 4) * size / UNIT)
    return np.clip(1 - rng.uniform(0, 0.35) * np.abs(noise / noise.std()), 0, 1)[None].astype(np.float32)


def jagged(rng, start, angle, length):
    """Points of a line that keeps its direction but jumps to the side, as cracks along busbars do."""
    step, off, points, jump = 0.0, 0.0, [], rng.choice([0.4, 1.2, 2.5])
    while step < length or len(points) < 3:
        x, y = start[0] + step * math.cos(angle), start[1] + step * math.sin(angle)
        points.append((x - off * math.sin(angle), y + off * math.cos(angle)))
        if not (-5 < x < UNIT + 5 and -5 < y < UNIT + 5) and len(points) > 2:
            break
        step += rng.uniform(3, 9)
        off = 0.85 * off + rng.normal() * jump
    return points


def along_busbar(rng, size):
    """One or two jagged lines more or less along the busbars, mostly the edge of a gray part that ends at a busbar or
    at the cell's edge; often without a dark line of its own."""
    mask, busbars = np.zeros((size, size), np.float32), rng.integers(2, 6)
    ends = np.array([0, *heights(busbars), UNIT]) + rng.normal(size=busbars + 2) * 2
    for _ in range(rng.choice([1, 1, 2])):
        strip = rng.integers(busbars + 1)
        top, bottom = ends[strip], ends[strip + 1]
        near = rng.choice([rng.uniform(0.04, 0.3), rng.uniform(0.1, 0.9), rng.uniform(0.7, 0.96)])
        y, length = top + near * (bottom - top), log_uniform(rng, 40, 330)
        x = rng.choice([-4, rng.uniform(0, UNIT - 40), UNIT + 4 - length])
        line = jagged(rng, (x, y), rng.normal() * 0.07, length)
        if rng.random() < 0.75:
            end = top if rng.random() < (0.65 if near > 0.5 else 0.35) else bottom
            slant = rng.choice([3, 25])
            side = [*line, (line[-1][0] + rng.normal() * slant, end), (line[0][0] + rng.normal() * slant, end)]
            part = polygon_mask(side, rng.uniform(0.6, 1.3), size) * streaks(rng, size)
            mask = np.maximum(mask, rng.uniform(0.4, 1) * part)
            own = rng.choice([0, rng.uniform(0.2, 1)])
        else:
            own = 1
        mask = np.maximum(mask, own * lines_mask([line], rng.uniform(0.8, 2), rng.uniform(0.5, 1.2), size))
    return scaled(mask)


def gray_part(rng, size):
    """A corner, or a part at one edge, cut off by a jagged crack and darker than the rest."""
    a, b = log_uniform(rng, 40, 280, 2)
    if rng.random() < 0.5:  # a corner
        start, end, rest = (a, -2), (-2, b), [(-2, -2)]
    else:  # from the edge back to it
        start, end, rest = (a, -2), (min(a + b, UNIT + 2), log_uniform(rng, 3, 90)), [(min(a + b, UNIT + 2), -2)]
    line = jagged(rng, start, math.atan2(end[1] - start[1], end[0] - start[0]), math.dist(start, end))
    part = polygon_mask([*line, end, *rest], rng.uniform(0.6, 1.3), size)
    if rng.random() < 0.5:
        part = part * streaks(rng, size)
    own = rng.choice([0, rng.uniform(0.2, 1)])
    return np.maximum(rng.uniform(0.5, 1) * part, own * lines_mask([[*line, end]], rng.uniform(0.8, 2), 0.8, size))


def cross(rng, size):
    """One to five small crosses, as point loads leave them: a dark core with short arms, blurred by the resizing."""
    mask = np.zeros((size, size), np.float32)
    blur, turn = rng.uniform(0.8, 1.6), math.pi / 4 + rng.normal() * 0.2
    larger = rng.choice([1, 1, 1, rng.uniform(1.2, 2.5)])
    wide, ragged = larger * rng.uniform(1.5, 3.2), rng.uniform(0.1, 0.4)
    for _ in range(rng.integers(1, 6)):
        x, y = rng.uniform(12, UNIT - 12, 2)
        lines = []
        for k in range(4):
            r, t = larger * rng.uniform(2, 7), turn + k * math.pi / 2 + rng.normal() * ragged
            lines.append([(x, y), (x + r * math.cos(t), y + r * math.sin(t))])
        one = lines_mask(lines, wide, blur, size) * rng.uniform(0.5, 1)
        t = np.arange(8) * math.pi / 4 + turn
        r = larger * rng.uniform(1.8, 4.2) * (1 + ragged * rng.normal(size=8))
        core = polygon_mask(list(zip(x + r * np.cos(t), y + r * np.sin(t))), blur, size)
        mask = np.maximum(mask, rng.uniform(0.5, 1) * np.maximum(one, scaled(core)))
    return scaled(mask)


def inactive(rng, size):
    """A wedge in a corner, a bite at an edge, or a polygon anywhere."""
    kind = rng.integers(4)
    if kind == 0:
        a, b = log_uniform(rng, 22, 150, 2)
        points = [(0, 0), (a, 0), (0, b)]
    elif kind == 1:
        at, width, depth = rng.uniform(30, UNIT - 30), log_uniform(rng, 14, 120), log_uniform(rng, 12, 90)
        points = [
            (at - width / 2, 0),
            (at + width / 2 * rng.uniform(0.5, 1), depth * rng.uniform(0.3, 1)),
            (at + rng.uniform(-width / 3, width / 3), depth),
            (at + width / 2, 0),
        ]
    else:
        x, y = rng.uniform(40, UNIT - 40, 2)
        radius, corners = log_uniform(rng, 10, 75), rng.integers(3, 8)
        points = [
            (
                x + radius * rng.uniform(0.4, 2.2) * math.cos(t),
                y + radius * rng.uniform(0.5, 1.2) * math.sin(t),
            )
            for t in np.sort(rng.random(corners)) * 2 * math.pi
        ]
    return polygon_mask(points, rng.uniform(0.7, 2.5), size)


def contacts(rng, size):
    """The dark ends of two to five busbars, alike and at the same heights at both edges."""
    mask, busbars = np.zeros((size, size), np.float32), rng.integers(2, 6)
    half, depth, blur = rng.uniform(5, 15), rng.uniform(8, 28), rng.uniform(0.8, 2.5)
    for y in heights(busbars) + 3 * rng.normal(size=busbars):
        for edge, inwards in ((0, 1), (UNIT, -1)):
            tip = edge + inwards * depth * rng.uniform(0.8, 1.2)
            shoulder, wide, narrow = edge + 0.8 * (tip - edge), half * rng.uniform(0.8, 1.2), half * rng.uniform(0.3, 1)
            above = [(edge, -wide), (shoulder, -wide), (tip, -narrow)]
            points = [(x, y + dy) for x, dy in above + [(x, -dy) for x, dy in above[::-1]]]
            mask = np.maximum(mask, polygon_mask(points, blur, size))
    return mask


def fingers(rng, size):
    """Interrupted fingers: one to four upright streaks."""
    lines = []
    for _ in range(rng.integers(1, 5)):
        x, y, length = rng.uniform(10, UNIT - 10), rng.choice([20, 60, 110, 160, 210]), rng.uniform(20, 95)
        lines.append([(x, y), (x, min(y + length, UNIT - 5))])
    return lines_mask(lines, rng.uniform(1, 4), 1.0, size)


def blobs(rng, size):
    """One to three soft blobs or stains."""
    mask = np.zeros((size, size), np.float32)
    for _ in range(rng.integers(1, 4)):
        x, y, r = *rng.uniform(20, UNIT - 20, 2), log_uniform(rng, 9, 40)
        t = np.linspace(0, 2 * math.pi, 12)
        points = zip(x + r * rng.uniform(0.6, 1.4, 12) * np.cos(t), y + r * rng.uniform(0.6, 1.4, 12) * np.sin(t))
        mask = np.maximum(mask, polygon_mask(list(points), r * rng.uniform(0.3, 0.8), size))
    return scaled(mask)


def patches(rng, side, count, low, high):
    """float (side, side) in 0..1: `count` soft ellipses, their half axes from `low` to `high`."""
    y, x = np.mgrid[:side, :side]
    where = np.zeros((side, side))
    for _ in range(count):
        cy, cx, ry, rx = *rng.uniform(0, side, 2), *log_uniform(rng, low, high, 2)
        t = rng.uniform(0, math.pi)
        u, v = (x - cx) * math.cos(t) + (y - cy) * math.sin(t), (y - cy) * math.cos(t) - (x - cx) * math.sin(t)
        where = np.maximum(where, np.exp(-((u / rx) ** 2 + (v / ry) ** 2)))
    return where


def grain_noise(rng, side, across, along):
    """float (side, side) of variance 1: noise smoothed by `across` and `along` pixels, in one random direction."""
    wide = math.ceil(side * 1.5)
    noise = ndimage.gaussian_filter(rng.normal(size=(wide, wide)), (across, along))
    noise = ndimage.rotate(noise, rng.uniform(0, 180), reshape=False, order=1, mode="wrap")
    edge = (wide - side) // 2
    noise = noise[edge : edge + side, edge : edge + side]
    return noise / noise.std()


def clouds(rng, size):
    """Dislocation clouds of poly cells: blotches along the grain, branching threads, or clusters of dark dots, in
    patches."""
    side, kind = 150, rng.random()
    if kind < 0.45:  # blotches
        noise = grain_noise(rng, side, rng.uniform(0.7, 1.8), rng.uniform(1.5, 5))
        where = patches(rng, side, rng.integers(1, 7), 8, 45)
        mask = np.clip(1.3 * where + 0.5 * noise * where - 0.45, 0, 1)
    elif kind < 0.7:  # threads: where smooth noise is near zero
        noise = grain_noise(rng, side, *log_uniform(rng, 1.3, 4, 2))
        where = patches(rng, side, rng.integers(1, 6), 10, 50)
        mask = np.clip(1 - np.abs(noise) / rng.uniform(0.2, 0.5), 0, 1) * np.clip(1.5 * where - 0.2, 0, 1)
        mask = ndimage.gaussian_filter(mask, rng.uniform(0.3, 0.8))
    else:  # dots
        noise = grain_noise(rng, side, *log_uniform(rng, 0.9, 2.5, 2))
        where = patches(rng, side, rng.integers(1, 5), 5, 25) + rng.uniform(0, 0.25)
        mask = ndimage.gaussian_filter(np.clip(2 * (noise * np.sqrt(where) - rng.uniform(0.7, 1.3)), 0, 1), 0.7)
    image = Image.fromarray((255 * mask / max(mask.max(), 0.3)).clip(0, 255).astype(np.uint8))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), np.float32) / 255


# ---------------------------------------------------------------- what is drawn how often


class Drawing(NamedTuple):
    """A drawing, and how it is laid over cells.

    smooth, textured: its share among the drawings of its kind, in smooth cells (mono) and textured ones (poly).
    upright: fingers and busbars run as in the images, so it is only mirrored. low, high: share of light that it takes
    away where the mask is 1.
    """

    draw: Callable
    smooth: float
    textured: float
    upright: bool
    low: float
    high: float


DRAWINGS = {
    "distractor": (
        Drawing(contacts, 0.2, 0.1, True, 0.14, 0.9),
        Drawing(fingers, 0.5, 0.25, True, 0.08, 0.5),
        Drawing(blobs, 0.3, 0.15, False, 0.08, 0.5),
        Drawing(clouds, 0.0, 0.5, False, 0.1, 0.8),
    ),
    "crack": (
        Drawing(crack, 0.5, 0.65, False, 0.15, 0.65),
        Drawing(along_busbar, 0.2, 0.25, True, 0.15, 0.65),
        Drawing(gray_part, 0.05, 0.1, False, 0.15, 0.65),
        Drawing(cross, 0.25, 0.0, False, 0.35, 0.9),
    ),
    "inactive": (Drawing(inactive, 1.0, 1.0, False, 0.64, 0.96),),
}
