"""Draw cracks, inactive regions and distractors into defect-free cells, as additional training images.

>>> defects = SyntheticDefects()
>>> drawn = defects.draw(images, labels, torch.rand(NUMBERS, len(images)))

The masks of drawings.py are drawn once and then laid over cells in ever new combinations, orientations and strengths.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from elcells.data.images import IMAGE_SIZE, THREADS
from elcells.data.tables import CLASSES
from elcells.devices import send
from elcells.files import InputError
from elcells.training.drawings import CLASSES_OF_KIND, DRAWINGS
from elcells.training.shapes import thin_lines

SHARE = 0.5  # of the defect-free cells that get a defect
LAST_SHARE = 0.15  # of them in the last epochs: as many as really have a defect
CRACK_ONLY = 0.6  # of these
INACTIVE_ONLY = 0.05  # of these
STRIP_ONLY = 0.08  # of these
BROKEN = 0.13  # of these; the others get a crack and an inactive region
DISTRACTORS = 0.4  # share of all defect-free cells that get distractors, with or without a defect
COUNTS = {"distractor": 800, "crack": 1800, "inactive": 700, "broken": 500, "strip": 200}  # masks of each kind
CELL_NUMBERS = 3  # random numbers that a cell takes: whether it gets a defect, which ones, and whether a distractor
MASK_NUMBERS = 6  # and for each kind: which mask, its strength, mirrored twice, transposed, which drawing
NUMBERS = CELL_NUMBERS + MASK_NUMBERS * len(DRAWINGS)
SMOOTH = 0.014  # texture of mono cells; 95 % of ELPV's mono cells and 4 % of its poly cells are below it


def texture(images):
    """How much the brightness of gray images, uint8 (B, 1, S, S), changes along the fingers: float (B,).

    It is the median step between neighbouring fiftieths of the side, as a share of the mean. Poly cells have more of it
    than mono ones.
    """
    coarse = F.adaptive_avg_pool2d(images.float(), 50)
    steps = (coarse[..., 1:] - coarse[..., :-1]).abs().flatten(1).sort(1).values
    median_step = steps[:, steps.shape[1] // 2]
    return median_step / coarse.mean((1, 2, 3)).clamp(1)


class Drawn(NamedTuple):
    """A batch into which defects were drawn: new tensors.

    images: uint8 (B, 1, S, S). labels: float (B, C), with what was drawn. aux_masks: uint8 (B, C, S, S), where the
    defects of each class take light away, or the edge of a broken corner. lines: uint8 (B, 1, S / 2, S / 2), where
    cracks run; S / 2 is rounded up. contrast: float (B, 1, S, S), the share of the light that drawn cracks take, less
    within an inactive region; it is 0 for broken corners.
    """

    images: torch.Tensor
    labels: torch.Tensor
    aux_masks: torch.Tensor
    lines: torch.Tensor
    contrast: torch.Tensor


@dataclass
class Masks:
    """The masks of one kind and the drawings that they are of, on one device. D: drawings of the kind.

    masks: uint8 (N, S, S), those of one drawing side by side. lines: uint8 (N, S / 2, S / 2), of cracks.
    first, number: int (D,), where its masks begin and how many they are. cumulated_share: float (2, D - 1), of the
    drawings, in textured and in smooth cells. upright: bool (D,). low, high: float (D,), range of the strength.
    """

    masks: torch.Tensor
    lines: torch.Tensor
    first: torch.Tensor
    number: torch.Tensor
    cumulated_share: torch.Tensor
    upright: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    def choose(self, smooth, numbers):
        """Masks, lines and strengths for cells: uint8 (B, S, S), uint8 (B, S / 2, S / 2) and float (B,).

        smooth: int (B,), 1 for mono cells. numbers: float (MASK_NUMBERS, B) in 0..1, random.
        """
        which_mask, how_strong, mirror_x, mirror_y, transpose, which_drawing = numbers
        drawing = (which_drawing[:, None] >= self.cumulated_share[smooth]).sum(1)
        chosen = self.first[drawing] + (which_mask * self.number[drawing]).long()
        is_transposed = of_masks((transpose < 0.5) & ~self.upright[drawing])
        turned = []
        for masks in (self.masks[chosen], self.lines[chosen]):
            masks = torch.where(of_masks(mirror_x < 0.5), masks.flip(-1), masks)
            masks = torch.where(of_masks(mirror_y < 0.5), masks.flip(-2), masks)
            turned.append(torch.where(is_transposed, masks.transpose(-1, -2), masks))
        strength = self.low[drawing] + (self.high - self.low)[drawing] * how_strong
        masks, lines = turned
        return masks, lines, strength


def edges(masks):
    """The edges of regions, six pixels wide in cells of any size: uint8 (B, S, S) of masks likewise."""
    masks = masks[:, None].float()
    return (F.max_pool2d(masks, 7, 1, 3) + F.max_pool2d(-masks, 7, 1, 3))[:, 0].to(torch.uint8)


def of_masks(values):
    """One value per mask (B,) in a shape that meets masks (B, S, S)."""
    return values[:, None, None]


def draw_masks(number, kind, drawings, count, size, seed, device):
    """The Masks of one kind: `count` of them from its drawings, by their shares. number: of the kind, for the seed."""
    shares = np.array([max(d.smooth, d.textured) for d in drawings])
    numbers = np.maximum(1, (count * shares / shares.sum()).round().astype(int))
    drawing_of_mask = np.repeat(np.arange(len(drawings)), numbers)

    def draw_mask(i):
        rng = np.random.default_rng([seed, number, i])
        mask, lines = drawings[drawing_of_mask[i]].draw(rng, size)
        return torch.from_numpy((255 * mask).astype(np.uint8)), torch.from_numpy(thin_lines(lines, (size + 1) // 2))

    with ThreadPoolExecutor(THREADS) as pool:
        drawn = pool.map(draw_mask, range(len(drawing_of_mask)))
        bar = tqdm(drawn, f"drawing {kind}", len(drawing_of_mask), unit="mask", leave=False, disable=None)
        masks, lines = map(torch.stack, zip(*bar))
    shares = np.array([[d.textured for d in drawings], [d.smooth for d in drawings]])
    cumulated = np.cumsum(shares / shares.sum(1, keepdims=True), 1)[:, :-1]

    def on_device(values, kind):
        return torch.from_numpy(np.asarray(values, kind)).to(device)

    return Masks(
        masks=masks.to(device),
        lines=lines.to(device),
        first=on_device(np.cumsum(numbers) - numbers, np.int64),
        number=on_device(numbers, np.int64),
        cumulated_share=on_device(cumulated, np.float32),
        upright=on_device([d.upright for d in drawings], bool),
        low=on_device([d.low for d in drawings], np.float32),
        high=on_device([d.high for d in drawings], np.float32),
    )


class SyntheticDefects:
    """Masks of defects, and how they are laid over batches of cells.

    classes: of the labels; "crack" and "inactive", which are drawn, must be among them. size: side of the cells in
    pixels. seed: of the masks. device: where the batches are. counts: masks of each kind (COUNTS).
    """

    def __init__(self, classes=CLASSES, size=IMAGE_SIZE, seed=0, device="cpu", counts=None):
        if not set(CLASSES) <= set(classes):
            raise InputError(
                f"labels {', '.join(classes)}: only {' and '.join(CLASSES)} can be drawn; train without drawn defects"
            )
        counts = counts or COUNTS
        self.column = {name: list(classes).index(name) for name in CLASSES}
        self.masks = {
            kind: draw_masks(number, kind, drawings, counts[kind], size, seed, device)
            for number, (kind, drawings) in enumerate(DRAWINGS.items())
        }

    def draw(self, images, labels, numbers, share=SHARE):
        """Draw into the defect-free cells of a batch; cells with a label are left alone.

        images: uint8 (B, 1, S, S), on any device. labels: float (B, C) and numbers: float (NUMBERS, B) in 0..1, from
            which all that is drawn follows, both on the CPU. share: of the defect-free cells that get a defect.
        Returns Drawn.
        """
        smooth = (texture(images) < SMOOTH).long()
        images = images.clone()
        labels = labels.clone()
        aux_masks = images.new_zeros(len(images), labels.shape[1], *images.shape[2:])
        contrast = torch.zeros_like(images, dtype=torch.float32)
        all_lines = images.new_zeros(len(images), 1, *self.masks["crack"].lines.shape[1:])
        chosen = self.choose_cells(labels, numbers[:CELL_NUMBERS], share)
        for (kind, is_chosen), mask_numbers in zip(chosen.items(), numbers[CELL_NUMBERS:].split(MASK_NUMBERS)):
            cells = is_chosen.nonzero()[:, 0]
            places = send(cells, images.device)
            mask_numbers = send(mask_numbers[:, cells].contiguous(), images.device)
            masks, lines, strength = self.masks[kind].choose(smooth[places], mask_numbers)
            taken = of_masks(strength) / 255 * masks
            images[places, 0] = (images[places, 0] * (1 - taken)).to(torch.uint8)
            all_lines[places, 0] = torch.maximum(all_lines[places, 0], lines)
            if kind == "crack":
                contrast[places, 0] = taken
            elif kind == "inactive":
                contrast[places, 0] *= 1 - taken  # a crack within a dark region is hardly seen
            for name in CLASSES_OF_KIND[kind]:
                column = self.column[name]
                labels[cells, column] = 1
                aux_masks[places, column] = edges(masks) if (name, kind) == ("crack", "broken") else masks
        return Drawn(images, labels, aux_masks, all_lines, contrast)

    def choose_cells(self, labels, numbers, share):
        """Which cells get which kind of drawing: {kind: bool (B,)}, in the order of DRAWINGS."""
        whether, which, whether_distractor = numbers
        defect_free = labels.amax(1) == 0
        gets_defect = defect_free & (whether < share)
        only_crack = which < CRACK_ONLY
        only_inactive = ~only_crack & (which < CRACK_ONLY + INACTIVE_ONLY)
        only_strip = ~only_crack & ~only_inactive & (which < CRACK_ONLY + INACTIVE_ONLY + STRIP_ONLY)
        broken = which > 1 - BROKEN
        return {
            "distractor": defect_free & (whether_distractor < DISTRACTORS),
            "crack": gets_defect & ~(only_inactive | only_strip | broken),
            "inactive": gets_defect & ~(only_crack | only_strip | broken),
            "broken": gets_defect & broken,
            "strip": gets_defect & only_strip,
        }
