"""Draw cracks, inactive regions and distractors into defect-free cells, as additional training pictures.

>>> defects = SyntheticDefects()
>>> images, labels, aux_masks = defects.draw(images, labels, torch.rand(NUMBERS, len(images)))

What cracks and dead regions look like, and how dark they are, follows real ones (doc/results.md);
the drawings are masks, drawn once and then laid over cells in ever new combinations, orientations
and strengths.
"""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from elcells.distributed import send
from elcells.files import InputError
from elcells.pictures import CLASSES, IMAGE_SIZE, THREADS

SHARE = 0.5  # of the defect-free cells that get a defect
KINDS = (0.6, 0.12, 0.28)  # of these: crack only, inactive only, both
DISTRACTORS = 0.4  # share of all defect-free cells that get distractors, with or without a defect
STRENGTHS = {"crack": (0.15, 0.65), "inactive": (0.72, 0.96), "distractor": (0.16, 1.0)}  # of light, where a mask is 1
COUNTS = {"crack": 1500, "inactive": 700, "distractor": 500}
UNIT = 300  # the drawings' coordinates are pixels of a cell of this side
NUMBERS = 3 + 3 * 5  # random numbers that a cell takes
FINE = 2  # lines are drawn so many times larger and averaged down


# ---------------------------------------------------------------- drawing one mask


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
    return mask / max(mask.max(), 1e-3)


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
    for y in UNIT * (np.arange(busbars) + 0.5) / busbars + 3 * rng.normal(size=busbars):
        for edge, inwards in ((0, 1), (UNIT, -1)):
            tip = edge + inwards * depth * rng.uniform(0.8, 1.2)
            shoulder, wide, narrow = edge + 0.8 * (tip - edge), half * rng.uniform(0.8, 1.2), half * rng.uniform(0.3, 1)
            above = [(edge, -wide), (shoulder, -wide), (tip, -narrow)]
            points = [(x, y + dy) for x, dy in above + [(x, -dy) for x, dy in above[::-1]]]
            mask = np.maximum(mask, polygon_mask(points, blur, size))
    return mask


def distractor(rng, size):
    """What must not be called a defect: contacts, and up to half as dark as these may be (0.5 in the mask, not 0.9),
    interrupted fingers (upright streaks), soft blobs, stains."""
    kind = rng.random()
    if kind < 0.2:
        return 0.9 * contacts(rng, size)
    if kind < 0.7:
        lines = []
        for _ in range(rng.integers(1, 5)):
            x, y, length = rng.uniform(10, UNIT - 10), rng.choice([20, 60, 110, 160, 210]), rng.uniform(20, 95)
            lines.append([(x, y), (x, min(y + length, UNIT - 5))])
        return 0.5 * lines_mask(lines, rng.uniform(1, 4), 1.0, size)
    mask = np.zeros((size, size), np.float32)
    for _ in range(rng.integers(1, 4)):
        x, y, r = *rng.uniform(20, UNIT - 20, 2), log_uniform(rng, 6, 40)
        t = np.linspace(0, 2 * math.pi, 12)
        points = zip(x + r * rng.uniform(0.6, 1.4, 12) * np.cos(t), y + r * rng.uniform(0.6, 1.4, 12) * np.sin(t))
        mask = np.maximum(mask, polygon_mask(list(points), r * rng.uniform(0.3, 0.8), size))
    return 0.5 * mask / max(mask.max(), 1e-3)


# ---------------------------------------------------------------- into batches


class SyntheticDefects:
    """Masks of defects, and how they are laid over batches of cells.

    classes: of the labels; only those among "crack" and "inactive" are drawn. size: side of the cells in pixels.
    seed: of the masks. device: where the batches are.
    """

    def __init__(self, classes=CLASSES, size=IMAGE_SIZE, seed=0, device="cpu", counts=COUNTS):
        if not set(CLASSES) <= set(classes):
            raise InputError(
                f"labels {', '.join(classes)}: only {' and '.join(CLASSES)} can be drawn; train without drawn defects"
            )
        self.column = {c: list(classes).index(c) for c in CLASSES}
        draw = {"crack": crack, "inactive": inactive, "distractor": distractor}
        self.masks = {}
        with ThreadPoolExecutor(THREADS) as pool:
            for number, (kind, count) in enumerate(counts.items()):

                def one(i, kind=kind, number=number):
                    mask = draw[kind](np.random.default_rng([seed, number, i]), size)
                    return torch.from_numpy((255 * mask).astype(np.uint8))

                masks = pool.map(one, range(count))
                bar = tqdm(masks, f"drawing {kind}", count, unit="mask", leave=False, disable=None)
                self.masks[kind] = torch.stack(list(bar)).to(device)

    def draw(self, images, labels, u, share=SHARE):
        """Draw into the defect-free cells of a batch.

        images: uint8 (B, 1, S, S), on any device. labels: float (B, C) and u: float (NUMBERS, B) in 0..1, random
            numbers from which all that is drawn follows, both on the CPU. share: of the defect-free cells that get a
            defect.
        Returns (images, labels, aux_masks), new tensors; the labels say what was drawn, aux_masks, uint8 (B, C, S, S),
        where.
        Cells with a label are left alone.
        """
        defect_free = labels.amax(1) == 0
        cracked = defect_free & (u[0] < share) & ((u[1] < KINDS[0]) | (u[1] >= KINDS[0] + KINDS[1]))
        dead = defect_free & (u[0] < share) & (u[1] >= KINDS[0])
        images, labels = images.clone(), labels.clone()
        aux_masks = images.new_zeros(len(images), labels.shape[1], *images.shape[2:])
        chosen = {"distractor": defect_free & (u[2] < DISTRACTORS), "crack": cracked, "inactive": dead}
        for (kind, cells), v in zip(chosen.items(), u[3:].split(5)):
            rows = cells.nonzero()[:, 0]
            v, (low, high) = send(v[:, rows].contiguous(), images.device), STRENGTHS[kind]
            masks = self.masks[kind][(v[0] * len(self.masks[kind])).long()]
            x, y, turned = (v[2:] < 0.5)[:, :, None, None]
            masks = torch.where(x, masks.flip(-1), masks)
            masks = torch.where(y, masks.flip(-2), masks)
            if kind != "distractor":  # fingers run upright
                masks = torch.where(turned, masks.transpose(-1, -2), masks)
            strength = (low + (high - low) * v[1])[:, None, None]
            there = send(rows, images.device)
            images[there, 0] = (images[there, 0] * (1 - strength / 255 * masks)).to(torch.uint8)
            if kind in self.column:
                labels[rows, self.column[kind]] = 1
                aux_masks[there, self.column[kind]] = masks
        return images, labels, aux_masks
