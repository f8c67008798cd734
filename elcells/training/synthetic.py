"""Draw cracks, inactive regions and distractors into defect-free cells, as additional training images.

>>> defects = SyntheticDefects()
>>> images, labels, aux_masks = defects.draw(images, labels, torch.rand(NUMBERS, len(images)))

The masks of drawings.py are drawn once and then laid over cells in ever new combinations, orientations and strengths.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from elcells.data.images import IMAGE_SIZE, THREADS
from elcells.data.tables import CLASSES
from elcells.devices import send
from elcells.files import InputError
from elcells.training.drawings import DRAWINGS

SHARE = 0.5  # of the defect-free cells that get a defect
KINDS = (0.6, 0.05, 0.35)  # of these: crack only, inactive only, both
DISTRACTORS = 0.4  # share of all defect-free cells that get distractors, with or without a defect
COUNTS = {"distractor": 800, "crack": 1800, "inactive": 700}
NUMBERS = 3 + 3 * 6  # random numbers that a cell takes
SMOOTH = 0.014  # texture of ELPV's mono cells: below in 95 %; of poly cells in 4 %


def texture(images):
    """How much the brightness of gray images, uint8 (B, 1, S, S), changes along the fingers: float (B,), the median
    step between neighbouring fiftieths of the side, as a share of the mean. Poly cells have more of it than mono ones.
    """
    coarse = F.adaptive_avg_pool2d(images.float(), 50)
    steps = (coarse[..., 1:] - coarse[..., :-1]).abs().flatten(1).sort(1).values
    steps = steps[:, steps.shape[1] // 2]
    return steps / coarse.mean((1, 2, 3)).clamp(1)


class SyntheticDefects:
    """Masks of defects, and how they are laid over batches of cells.

    classes: of the labels; only those among "crack" and "inactive" are drawn. size: side of the cells in pixels.
    seed: of the masks. device: where the batches are. counts: masks of each kind.
    """

    def __init__(self, classes=CLASSES, size=IMAGE_SIZE, seed=0, device="cpu", counts=COUNTS):
        if not set(CLASSES) <= set(classes):
            raise InputError(
                f"labels {', '.join(classes)}: only {' and '.join(CLASSES)} can be drawn; train without drawn defects"
            )
        self.column = {c: list(classes).index(c) for c in CLASSES}
        self.masks, self.drawings = {}, {}
        with ThreadPoolExecutor(THREADS) as pool:
            for number, (kind, drawings) in enumerate(DRAWINGS.items()):
                shares = np.array([max(d.smooth, d.textured) for d in drawings])
                numbers = np.maximum(1, (counts[kind] * shares / shares.sum()).round().astype(int))
                draws = np.repeat([d.draw for d in drawings], numbers)

                def one(i, draws=draws, number=number):
                    mask = draws[i](np.random.default_rng([seed, number, i]), size)
                    return torch.from_numpy((255 * mask).astype(np.uint8))

                masks = pool.map(one, range(len(draws)))
                bar = tqdm(masks, f"drawing {kind}", len(draws), unit="mask", leave=False, disable=None)
                self.masks[kind] = torch.stack(list(bar)).to(device)
                shares = np.array([[d.textured for d in drawings], [d.smooth for d in drawings]])
                table = {
                    "share": np.float32(np.cumsum(shares / shares.sum(1, keepdims=True), 1)[:, :-1]),
                    "first": np.cumsum(numbers) - numbers,
                    "number": numbers,
                    "upright": np.array([d.upright for d in drawings]),
                    **{name: np.float32([getattr(d, name) for d in drawings]) for name in ("low", "high")},
                }
                self.drawings[kind] = {k: torch.from_numpy(v).to(device) for k, v in table.items()}

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
        chosen = {"distractor": defect_free & (u[2] < DISTRACTORS), "crack": cracked, "inactive": dead}
        smooth = (texture(images) < SMOOTH).long()
        images, labels = images.clone(), labels.clone()
        aux_masks = images.new_zeros(len(images), labels.shape[1], *images.shape[2:])
        for (kind, cells), v in zip(chosen.items(), u[3:].split(6)):
            rows = cells.nonzero()[:, 0]
            there, v, table = (
                send(rows, images.device),
                send(v[:, rows].contiguous(), images.device),
                self.drawings[kind],
            )
            which = (v[5, :, None] >= table["share"][smooth[there]]).sum(1)
            masks = self.masks[kind][table["first"][which] + (v[0] * table["number"][which]).long()]
            x, y, turned = (v[2:5] < 0.5)[:, :, None, None]
            masks = torch.where(x, masks.flip(-1), masks)
            masks = torch.where(y, masks.flip(-2), masks)
            masks = torch.where(turned & ~table["upright"][which, None, None], masks.transpose(-1, -2), masks)
            strength = table["low"][which] + (table["high"] - table["low"])[which] * v[1]
            images[there, 0] = (images[there, 0] * (1 - strength[:, None, None] / 255 * masks)).to(torch.uint8)
            if kind in self.column:
                labels[rows, self.column[kind]] = 1
                aux_masks[there, self.column[kind]] = masks
        return images, labels, aux_masks
