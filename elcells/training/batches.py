"""The cells of each training step: in which order they come, and what is drawn into them."""

from dataclasses import dataclass, fields

import numpy as np
import torch

from elcells.distributed import rank, world
from elcells.training import resolution
from elcells.training.augmentation import augment, draw_changes, draw_light, draw_noise, uneven_light
from elcells.training.resolution import LowResolution
from elcells.training.streams import Stream, stream_generator, stream_seed
from elcells.training.synthetic import LAST_SHARE, NUMBERS, SHARE


@dataclass
class Batch:
    """This process's part of a training step. B: cells here, C: classes, S: pixels.

    images: uint8 (B, 1, S, S). labels: float (B, C). changes: float (B, 2, 3), of `augment`.
    aux_weight: float (B,), how much each cell counts in the auxiliary loss: 0 for one with real defects; its mean over
        all processes is 1.
    aux_masks: uint8 (B, C, S, S), where defects were drawn, or None.
    lines: uint8 (B, 1, S / 2, S / 2), where drawn cracks run, or None. lines_known: float (B,), 0 for cells with a
        real crack, since nobody marked where it runs.
    light: float (B, 3), of `uneven_light`, or None. noise: float (B, 1, S, S), added to images in 0..1, or None.
    black: bool (B,), of `augment`, or None. share: B over its mean over all processes.
    """

    images: torch.Tensor
    labels: torch.Tensor
    changes: torch.Tensor
    aux_weight: torch.Tensor
    aux_masks: torch.Tensor | None = None
    lines: torch.Tensor | None = None
    lines_known: torch.Tensor | None = None
    light: torch.Tensor | None = None
    noise: torch.Tensor | None = None
    black: torch.Tensor | None = None
    share: float = 1.0

    def __len__(self):
        return len(self.images)

    def tensors(self):
        """{name: tensor} of the fields that are set."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}

    def augmented_images(self, device):
        """The images as the network sees them: float (B, 1, S, S) in 0..1, on the device."""
        images = augment(self.images.to(device), self.changes, self.black)
        if self.light is not None:
            images = uneven_light(images, self.light)
        if self.noise is not None:
            images = (images + self.noise).clamp(0, 1)
        return images

    def augmented_masks(self, device):
        """Where defects were drawn, moved as the images are: float (B, C, S, S) in 0..1, on the device."""
        return augment(self.aux_masks.to(device), self.changes, self.black)

    def augmented_lines(self, device):
        """Where drawn cracks run, moved as the images are: float (B, 1, S / 2, S / 2) in 0..1, on the device."""
        return augment(self.lines.to(device), self.changes, self.black)


class Batches:
    """The batches of a run: what is in them follows from (seed, epoch, step) alone.

    dataset: CellDataset. recipe: Recipe. defects: SyntheticDefects, where the recipe draws defects. device: of the
    noise, which is drawn there.
    """

    def __init__(self, dataset, recipe, defects=None, seed=0, device="cpu"):
        self.dataset = dataset
        self.recipe = recipe
        self.defects = defects
        self.seed = seed
        self.device = device
        self.epoch_cells = recipe.epoch_cells or len(dataset)
        self.low_resolution = None
        if recipe.low_resolution:
            first, _ = dataset.batch([0])
            self.low_resolution = LowResolution(first.shape[-1], device)
        self.steps = -(-self.epoch_cells // recipe.batch_size)  # an epoch

    def of_epoch(self, epoch):
        """The rows (int array) of each step of an epoch: of equal number, so that none are too few for batch norm."""
        return np.array_split(self.order(epoch), self.steps)

    def order(self, epoch):
        """Rows (int array) of an epoch in order.

        They are drawn from a pot in which each row stands `weights` times, and `oversample` times that with a label.
        """
        rows = np.arange(len(self.dataset))
        labelled = rows[self.dataset.labels.any(1)]
        pot = np.concatenate([rows, *[labelled] * (self.recipe.oversample - 1)])
        pot = np.repeat(pot, self.dataset.weights[pot])
        pot = np.resize(pot, max(len(pot), self.epoch_cells))  # repeated where there are too few
        generator = stream_generator(self.seed, Stream.ORDER, epoch)
        return pot[torch.randperm(len(pot), generator=generator).numpy()][: self.epoch_cells]

    def of_step(self, rows, epoch, step):
        """This process's part of the rows (int array) of a step, a Batch, with defects drawn in."""

        def generator(stream):
            return stream_generator(self.seed, stream, epoch, step)

        count = len(rows)
        recipe = self.recipe
        rows_here = slice(rank(), None, world())
        images, labels = self.dataset.batch(rows[rows_here])
        changes = draw_changes(count, generator(Stream.AUGMENTATION), recipe.dihedral, recipe.scale, recipe.handling)
        defect_free = torch.from_numpy((self.dataset.labels[rows] == 0).all(1)).float()
        aux_weight = defect_free / defect_free.mean().clamp(min=1e-6)
        batch = Batch(images, labels, changes[rows_here], aux_weight[rows_here], share=len(images) * world() / count)
        if recipe.synthetic:
            numbers = torch.rand(NUMBERS, count, generator=generator(Stream.DRAWN_DEFECTS))
            share = SHARE if epoch < recipe.synthetic * recipe.epochs else LAST_SHARE
            drawn = self.defects.draw(images, labels, numbers[:, rows_here], share)
            batch.images, batch.labels, batch.aux_masks, batch.lines, contrast = drawn
            batch.lines_known = 1 - labels[:, self.defects.column["crack"]]
        elif recipe.low_resolution:
            contrast = torch.zeros_like(images, dtype=torch.float32)  # no crack is drawn
        if recipe.low_resolution:
            numbers = torch.rand(resolution.NUMBERS, count, generator=generator(Stream.RESOLUTION))[:, rows_here]
            batch.images = self.low_resolution.show(batch.images, contrast, numbers, recipe.low_resolution)
        if recipe.handling:
            batch.black = (torch.rand(count, generator=generator(Stream.HANDLING)) < 0.5)[rows_here]
        if recipe.light:
            batch.light = draw_light(count, recipe.light, generator(Stream.LIGHT))[rows_here]
        if recipe.noise_std:
            noise_seed = stream_seed(self.seed, Stream.NOISE, epoch, step)
            size = images.shape[-1]
            noise = draw_noise(count, size, recipe.noise_std, generator(Stream.NOISE_LEVEL), noise_seed, self.device)
            batch.noise = noise[rows_here]
        return batch
