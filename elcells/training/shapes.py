"""Lines, polygons and textures, of which drawings.py composes defects.

Points are (x, y) in pixels of a cell of side UNIT; masks are float (size, size) in 0..1 of a cell of any size. rng is a
numpy Generator.
"""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

UNIT = 300  # side of a cell in the drawings' coordinates
CLOUD_SIDE = 150  # side of the clouds' masks, which are resized to the cell's size
FINE = 2  # lines are drawn this many times larger, then averaged down
STEP = 6  # length of a wandering line's segments
OUTSIDE = 5  # a line ends when it is this far outside the cell


def busbar_heights(busbars):
    """Heights (float array) of so many busbars, evenly spread over a cell."""
    return UNIT * (np.arange(busbars) + 0.5) / busbars


def log_uniform(rng, low, high, size=None):
    """Random numbers between low and high whose logarithms are uniform."""
    return np.exp(rng.uniform(math.log(low), math.log(high), size))


def scaled(mask):
    """A mask whose highest value is 1; a nearly empty mask stays so."""
    return mask / max(mask.max(), 1e-3)


def union(masks):
    """The highest value of several masks at each pixel."""
    return np.maximum.reduce(masks)


def is_outside(x, y):
    """Whether a point is so far outside the cell that a line ends there."""
    return not (-OUTSIDE < x < UNIT + OUTSIDE and -OUTSIDE < y < UNIT + OUTSIDE)


def crack_angle(rng):
    """An angle, mostly near the diagonals, along which silicon of this orientation cleaves."""
    if rng.random() < 0.6:
        return rng.choice([1, 3, 5, 7]) * math.pi / 4 + rng.normal() * 0.15
    return rng.random() * 7  # radians, any direction


def random_polyline(rng, start, angle, length, wobble):
    """Points of a line that wanders from `start`, until it is long enough or leaves the cell."""
    points = [start]
    x, y = start
    for _ in range(max(2, int(length / STEP))):
        angle += rng.normal() * wobble
        x += STEP * math.cos(angle)
        y += STEP * math.sin(angle)
        points.append((x, y))
        if is_outside(x, y):
            break
    return points


def jagged_line(rng, start, angle, length):
    """Points of a line that keeps its direction but jumps to the side, as cracks along busbars do."""
    points = []
    along = 0.0
    aside = 0.0
    jump = rng.choice([0.4, 1.2, 2.5])
    while along < length or len(points) < 3:
        x = start[0] + along * math.cos(angle)
        y = start[1] + along * math.sin(angle)
        points.append((x - aside * math.sin(angle), y + aside * math.cos(angle)))
        if is_outside(x, y) and len(points) > 2:
            break
        along += rng.uniform(3, 9)
        aside = 0.85 * aside + rng.normal() * jump
    return points


def lines_mask(lines, width, blur, size):
    """Mask of lines (lists of points) of `width`, softened by `blur`, both in pixels of UNIT."""
    scale = size / UNIT
    image = Image.new("L", (size * FINE, size * FINE))
    draw = ImageDraw.Draw(image)
    for line in lines:
        points = [(x * scale * FINE, y * scale * FINE) for x, y in line]
        draw.line(points, fill=255, width=max(1, round(width * scale * FINE)))
    image = image.reduce(FINE).filter(ImageFilter.GaussianBlur(float(blur * scale)))
    return scaled(np.asarray(image, np.float32) / 255)


def thin_lines(lines, size):
    """uint8 (size, size): 255 along lines (lists of points), one pixel wide, and 0 elsewhere."""
    scale = size / UNIT
    image = Image.new("L", (size, size))
    draw = ImageDraw.Draw(image)
    for line in lines:
        draw.line([(float(x) * scale, float(y) * scale) for x, y in line], fill=255)
    return np.array(image)


def polygon_mask(points, blur, size):
    """Mask of a filled polygon whose edge is softened by `blur`, in pixels of UNIT."""
    scale = size / UNIT
    image = Image.new("L", (size, size))
    ImageDraw.Draw(image).polygon([(float(x) * scale, float(y) * scale) for x, y in points], fill=255)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(float(blur * scale))), np.float32) / 255


def streaks(rng, size):
    """float (1, size) in 0..1: columns of a gray part, each finger of which has a brightness of its own."""
    noise = ndimage.gaussian_filter1d(rng.normal(size=size), rng.uniform(0.7, 4) * size / UNIT)
    return np.clip(1 - rng.uniform(0, 0.35) * np.abs(noise / noise.std()), 0, 1)[None].astype(np.float32)


def patches(rng, count, low, high):
    """float (CLOUD_SIDE, CLOUD_SIDE) in 0..1: `count` soft ellipses, their half axes from `low` to `high`."""
    y, x = np.mgrid[:CLOUD_SIDE, :CLOUD_SIDE]
    ellipses = []
    for _ in range(count):
        centre_y, centre_x = rng.uniform(0, CLOUD_SIDE, 2)
        radius_y, radius_x = log_uniform(rng, low, high, 2)
        angle = rng.uniform(0, math.pi)
        dx = x - centre_x
        dy = y - centre_y
        u = dx * math.cos(angle) + dy * math.sin(angle)
        v = dy * math.cos(angle) - dx * math.sin(angle)
        ellipses.append(np.exp(-((u / radius_x) ** 2 + (v / radius_y) ** 2)))
    return union(ellipses)


def grain_noise(rng, across, along):
    """float (CLOUD_SIDE, CLOUD_SIDE), variance 1: noise smoothed by `across` and `along` pixels, randomly turned."""
    wide = math.ceil(CLOUD_SIDE * 1.5)  # the rotated noise fills the middle
    noise = ndimage.gaussian_filter(rng.normal(size=(wide, wide)), (across, along))
    noise = ndimage.rotate(noise, rng.uniform(0, 180), reshape=False, order=1, mode="wrap")
    edge = (wide - CLOUD_SIDE) // 2
    noise = noise[edge : edge + CLOUD_SIDE, edge : edge + CLOUD_SIDE]
    return noise / noise.std()
