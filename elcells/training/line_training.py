"""The decoder of crack lines, trained on after the network, which stays as it is.

First on drawn cracks alone, whose every pixel is known; then also on real ones, with its own sure pixels as labels
("pseudo labels", Lee 2013), held to what people said: no line in a cell without a crack.
"""

import math
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms.functional import gaussian_blur
from tqdm import tqdm

from elcells.devices import autocast, channels_last, send
from elcells.distributed import quiet, rank, share_buffers, world
from elcells.inference.engine import in_batches
from elcells.training.augmentation import augment
from elcells.training.auxiliary import line_loss
from elcells.training.batches import Batches
from elcells.training.bfloat16 import fast_layers, is_slow
from elcells.training.decoder import folded
from elcells.training.line_drawings import LINE_DRAWINGS
from elcells.training.streams import Stream, stream_generator
from elcells.training.synthetic import MASK_NUMBERS, SMOOTH, draw_masks, of_masks, texture

BATCH = 16
RATE = 0.003  # of AdamW, with half a cosine down to nothing
WARM_UP = 0.05  # of the steps
WEIGHT_DECAY = 0.01
AVERAGED = 0.99  # the decoder that is kept is a mean over about the last 100 steps
DRAWN_ALONE = 0.5  # of the steps, before there are pseudo labels
REAL_CRACKS = 3  # cells with a label come this often
MANY_EPOCHS = 10**6
MASKS = {"island": 700, "network": 500, "pads": 250}
SHARES = {"network": 0.25, "island": 0.35, "pads": 0.3}  # of the defect-free cells that get one too
NOISE = 30.0  # twice as much as the network gets: lines are lost in less noise than verdicts
BLUR = (0.3, 1.3)  # standard deviations in pixels, of half of the cells
BLUR_SIZE = 9
EDGE = 4  # pixels to either side of a dark region's edge: it may be a crack, or not
SURE = 0.5  # from this probability on a pixel of a real crack is on a line
UNSURE = 0.1  # up to this one it is on none
CORNER = 0.1  # of the side: no pseudo label lies nearer to a corner, along both edges together


class LineTraining:
    """Trains a LineDecoder on the features of a CellClassifier, which stay as they are.

    model: CellClassifier. decoder: LineDecoder with batch norms. dataset: CellDataset. recipe: Recipe of the network's
    training, which gives the augmentation. defects: SyntheticDefects. run: Run.
    """

    def __init__(self, model, decoder, dataset, recipe, defects, run):
        self.model = model.eval().requires_grad_(False)
        self.decoder = decoder
        self.dataset = dataset
        self.run = run
        self.device = torch.device(run.device)
        self.steps = recipe.line_steps
        self.first_epoch = recipe.epochs  # so that no batch is one of the network's training
        batch = max(BATCH, 2 * world())
        recipe = replace(recipe, batch_size=batch, oversample=REAL_CRACKS, epoch_cells=batch * self.steps)
        recipe = replace(recipe, noise_std=NOISE)
        recipe = replace(recipe, epochs=MANY_EPOCHS)  # many defects are drawn in all but the last ones
        self.batches = Batches(dataset, recipe, defects, run.seed, self.device)
        self.crack = defects.column["crack"]
        self.inactive = defects.column["inactive"]
        size = model.metadata.image_size
        self.masks = {
            kind: draw_masks(len(defects.masks) + k, kind, drawings, MASKS[kind], size, run.seed, self.device)
            for k, (kind, drawings) in enumerate(LINE_DRAWINGS.items())
        }
        self.pseudo_labels = {}  # row of a cell with a crack: (lines, known), uint8 (S / 2, S / 2) each

    def fit(self, asked_to_stop):
        """Train; returns the finished decoder without batch norms, or None where asked_to_stop() says so."""
        parallel = DistributedDataParallel(self.decoder) if world() > 1 else self.decoder
        averaged = AveragedModel(self.decoder, multi_avg_fn=get_ema_multi_avg_fn(AVERAGED), use_buffers=True)
        optimizer = torch.optim.AdamW(self.decoder.parameters(), RATE, weight_decay=WEIGHT_DECAY)
        all_rows = self.batches.of_epoch(self.first_epoch)
        slow = is_slow(self.device, self.run.precision)
        with (
            tqdm(total=self.steps, desc="crack lines", unit="step", leave=False, **quiet()) as bar,
            fast_layers(self.model, active=slow),
            fast_layers(self.decoder, active=slow),
        ):
            for step, rows in enumerate(all_rows):
                if asked_to_stop():
                    return None
                if step == round(DRAWN_ALONE * self.steps):
                    self.make_pseudo_labels(averaged.module)
                for group in optimizer.param_groups:
                    group["lr"] = RATE * rate_at(step / self.steps)
                loss = self.loss(parallel.train(), rows, step)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                averaged.update_parameters(self.decoder)
                bar.update()
        share_buffers(averaged)
        return folded(averaged.module)

    # ---------------------------------------------------------------- steps

    def loss(self, decoder, rows, step):
        """The loss (0-d) of a step with rows (int array) of all processes; decoder: LineDecoder, maybe in parallel."""
        rows_here = rows[rank() :: world()]
        batch = self.batches.of_step(rows, self.first_epoch, step)
        batch.images = batch.images.to(self.device)
        batch.lines = batch.lines.to(self.device)
        known = self.where_known(batch)
        self.draw_more(batch, rows, step)
        known[batch.lines > 0] = 1
        for number, row in enumerate(rows_here):
            if row in self.pseudo_labels:
                lines, is_known = self.pseudo_labels[row]
                batch.lines[number, 0] = lines
                known[number, 0] = is_known
        images = self.blurred(batch.augmented_images(self.device), step)
        known = augment(255 * known, batch.changes) > 0.99
        with autocast(self.device, self.run.precision):
            with torch.no_grad():
                _, normalised, features = self.model.features(channels_last(images))
            logits = decoder(normalised, features)
        return line_loss(logits.float(), batch.augmented_lines(self.device), known.float())

    def blurred(self, images, step):
        """Images, float (B, 1, S, S), half of them out of focus, noise and all: as cameras and resizing leave them."""
        generator = stream_generator(self.run.seed, Stream.BLUR, self.first_epoch, step)
        low, high = BLUR
        sigma = low + (high - low) * torch.rand((), generator=generator).item()
        sharp, soft = images.tensor_split(2)
        return torch.cat([sharp, gaussian_blur(soft, [BLUR_SIZE, BLUR_SIZE], [sigma, sigma])])

    def where_known(self, batch):
        """Where it is known whether a line runs, uint8 (B, 1, S / 2, S / 2): not in cells with a real crack, and not
        at the edges of drawn dark regions."""
        known = send(batch.lines_known, self.device)[:, None, None, None].expand_as(batch.lines).to(torch.uint8)
        dark = send(batch.aux_masks[:, self.inactive, None], self.device).float()
        window = 2 * EDGE + 1
        step = F.max_pool2d(dark, window, 1, EDGE) + F.max_pool2d(-dark, window, 1, EDGE)
        is_edge = F.max_pool2d((step > 75).float(), 2, 2, ceil_mode=True) > 0
        return torch.where(is_edge, 0, known)

    def draw_more(self, batch, rows, step):
        """Draw LINE_DRAWINGS into the defect-free cells of a batch, in place. rows: as in `loss`."""
        generator = stream_generator(self.run.seed, Stream.MORE_CRACKS, self.first_epoch, step)
        free = torch.from_numpy((self.dataset.labels[rows] == 0).all(1))
        for kind, share in SHARES.items():
            whether, *numbers = torch.rand(1 + MASK_NUMBERS, len(rows), generator=generator)
            chosen = (free & (whether < share))[rank() :: world()].nonzero()[:, 0]
            numbers = torch.stack(numbers)[:, rank() :: world()][:, chosen]
            places = send(chosen, self.device)
            smooth = (texture(batch.images[places]) < SMOOTH).long()
            masks, lines, strength = self.masks[kind].choose(smooth, send(numbers.contiguous(), self.device))
            light = 1 - of_masks(strength) / 255 * masks
            batch.images[places, 0] = (batch.images[places, 0] * light).to(torch.uint8)
            batch.lines[places, 0] = torch.maximum(batch.lines[places, 0], lines)

    # ---------------------------------------------------------------- pseudo labels

    def make_pseudo_labels(self, decoder):
        """Take the sure pixels of all training cells with a crack as labels. decoder: LineDecoder that is sure."""
        was_training = decoder.training
        decoder.eval()
        rows = np.flatnonzero(self.dataset.labels[:, self.crack])
        for some in tqdm(in_batches(rows, BATCH), "pseudo labels", unit="batch", leave=False, **quiet()):
            images, _ = self.dataset.batch(some)
            seen = self.seen_lines(decoder, images.to(self.device))
            is_line = (seen > SURE) & ~near_corners(seen)
            may_be_line = F.max_pool2d((seen > UNSURE).float(), 3, 1, 1) > 0
            known = is_line | ~may_be_line
            for row, lines, is_known in zip(some, is_line, known):
                self.pseudo_labels[int(row)] = (255 * lines[0].to(torch.uint8), is_known[0].to(torch.uint8))
        decoder.train(was_training)

    @torch.no_grad()
    def seen_lines(self, decoder, images):
        """Probabilities of lines, float (N, 1, S / 2, S / 2), in gray images: the mean over the images mirrored."""
        total = 0
        for mirror in ((), (2,), (3,), (2, 3)):
            with autocast(self.device, self.run.precision):
                _, normalised, features = self.model.features(channels_last(images.flip(mirror)))
                logits = decoder(normalised, features)
            total = total + torch.sigmoid(logits.float()).flip(mirror)
        return total / 4


def near_corners(maps):
    """Which places of maps (N, 1, h, w) are near a corner, bool (h, w)."""
    side = maps.shape[-1]
    numbers = torch.arange(side, device=maps.device)
    to_edge = torch.minimum(numbers, side - 1 - numbers)
    return to_edge[:, None] + to_edge < CORNER * side


def rate_at(progress):
    """The learning rate, relative to the highest, at a share of the steps: a linear warm-up, then half a cosine."""
    return min(1, progress / WARM_UP + 0.01) * (1 + math.cos(math.pi * progress)) / 2
