"""Masks of drawn distractors: what looks like a defect and is none. See drawings.py for what a drawing is."""

import math

import numpy as np
from PIL import Image
from scipy import ndimage

from elcells.training.shapes import (
    UNIT,
    busbar_heights,
    grain_noise,
    lines_mask,
    log_uniform,
    patches,
    polygon_mask,
    scaled,
    union,
)


def contacts(rng, size):
    """The dark ends of two to five busbars, at the same heights at both edges."""
    masks = []
    busbars = rng.integers(2, 6)
    half_width = rng.uniform(5, 15)
    depth = rng.uniform(8, 28)
    blur = rng.uniform(0.8, 2.5)
    for y in busbar_heights(busbars) + 3 * rng.normal(size=busbars):
        for edge, inwards in ((0, 1), (UNIT, -1)):
            tip = edge + inwards * depth * rng.uniform(0.8, 1.2)
            shoulder = edge + 0.8 * (tip - edge)
            wide = half_width * rng.uniform(0.8, 1.2)
            narrow = half_width * rng.uniform(0.3, 1)
            above = [(edge, y - wide), (shoulder, y - wide), (tip, y - narrow)]
            below = [(tip, y + narrow), (shoulder, y + wide), (edge, y + wide)]
            masks.append(polygon_mask(above + below, blur, size))
    return union(masks), []


def fingers(rng, size):
    """Interrupted fingers: one to four upright streaks."""
    lines = []
    for _ in range(rng.integers(1, 5)):
        x = rng.uniform(10, UNIT - 10)
        top = rng.choice([20, 60, 110, 160, 210])
        bottom = min(top + rng.uniform(20, 95), UNIT - 5)
        lines.append([(x, top), (x, bottom)])
    return lines_mask(lines, rng.uniform(1, 4), 1.0, size), []


def blobs(rng, size):
    """One to three soft blobs or stains."""
    masks = []
    for _ in range(rng.integers(1, 4)):
        x, y = rng.uniform(20, UNIT - 20, 2)
        radius = log_uniform(rng, 9, 40)
        angles = np.linspace(0, 2 * math.pi, 12)
        outline_x = x + radius * rng.uniform(0.6, 1.4, 12) * np.cos(angles)
        outline_y = y + radius * rng.uniform(0.6, 1.4, 12) * np.sin(angles)
        masks.append(polygon_mask(list(zip(outline_x, outline_y)), radius * rng.uniform(0.3, 0.8), size))
    return scaled(union(masks)), []


def clouds(rng, size):
    """Dislocation clouds of poly cells, in patches: blotches along the grain, branching threads, or dark dots."""
    kind = rng.random()
    if kind < 0.45:
        mask = blotches(rng)
    elif kind < 0.7:
        mask = threads(rng)
    else:
        mask = dots(rng)
    image = Image.fromarray((255 * mask / max(mask.max(), 0.3)).clip(0, 255).astype(np.uint8))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), np.float32) / 255, []


def blotches(rng):
    """Blotches along the grain, float (CLOUD_SIDE, CLOUD_SIDE)."""
    noise = grain_noise(rng, rng.uniform(0.7, 1.8), rng.uniform(1.5, 5))
    extent = patches(rng, rng.integers(1, 7), 8, 45)
    return np.clip(1.3 * extent + 0.5 * noise * extent - 0.45, 0, 1)


def threads(rng):
    """Branching threads, where smooth noise is near zero, float (CLOUD_SIDE, CLOUD_SIDE)."""
    noise = grain_noise(rng, *log_uniform(rng, 1.3, 4, 2))
    extent = patches(rng, rng.integers(1, 6), 10, 50)
    mask = np.clip(1 - np.abs(noise) / rng.uniform(0.2, 0.5), 0, 1) * np.clip(1.5 * extent - 0.2, 0, 1)
    return ndimage.gaussian_filter(mask, rng.uniform(0.3, 0.8))


def dots(rng):
    """Clusters of dark dots, float (CLOUD_SIDE, CLOUD_SIDE)."""
    noise = grain_noise(rng, *log_uniform(rng, 0.9, 2.5, 2))
    extent = patches(rng, rng.integers(1, 5), 5, 25) + rng.uniform(0, 0.25)
    return ndimage.gaussian_filter(np.clip(2 * (noise * np.sqrt(extent) - rng.uniform(0.7, 1.3)), 0, 1), 0.7)
