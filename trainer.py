"""One training run: epochs, steps, evaluation, metrics, checkpoints, and going on after an interruption.

>>> trainer = Trainer(model, train_set, val_set, "checkpoints", **RECIPES["fast"])
>>> trainer.fit()
>>> loss, labels, probabilities = trainer.evaluate(test_set)
"""

import contextlib
import copy
import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from elcells.augment import augment, draw_changes, shrink
from elcells.checkpoint import read_checkpoint, write_checkpoint
from elcells.distributed import autocast, barrier, quiet, rank, send, synchronised, world
from elcells.files import InputError, atomic_path
from elcells.graphs import GraphedStep
from elcells.metrics import calibration, f1_scores, metrics_table
from elcells.recipes import one_cycle, step_decay
from elcells.synthetic import NUMBERS, SHARE
from model import channels_last, first_layers, load_model, save_checkpoint, stages

SAVE_SECONDS = 300  # a long epoch leaves last.ckp this often
LAST_SHARE = 0.15  # of the sound cells that get a defect drawn in the last epochs, about as many as really have one
DRAWN = 0.4  # from this strength of a drawing on (of 1) a place counts as defective
STOP_STEPS = 16  # several processes agree this often on whether one was asked to stop


# ---------------------------------------------------------------- processes, device and precision


# ---------------------------------------------------------------- metrics


# ---------------------------------------------------------------- evaluation and training


@torch.inference_mode()
def evaluate(model, dataset, precision=torch.float32, batch_size=32, size=None):
    """Loss and predictions of a model on a CellDataset, without augmentation, on the device that the model is on.

    batch_size: pictures at once. size: side that they are shrunk to (as they are). Several processes share the work.
    Returns (mean binary cross entropy, labels (N, C) float32, probabilities (N, C) float32), the same in each.
    """
    model.eval()
    device = next(model.parameters()).device
    logits = torch.zeros(len(dataset), len(model.classes), device=device)
    mine = np.arange(rank(), len(dataset), world())
    for start in tqdm(range(0, len(mine), batch_size), "evaluating", unit="batch", leave=False, **quiet()):
        rows = mine[start : start + batch_size]
        images = channels_last(shrink(dataset.batch(rows)[0].to(device), size))
        with autocast(device, precision):
            logits[send(torch.from_numpy(rows), device)] = model(images)
    if world() > 1:
        dist.all_reduce(logits)
    logits, labels = logits.cpu(), torch.from_numpy(dataset.labels)
    loss = F.binary_cross_entropy_with_logits(logits, labels)
    return float(loss), dataset.labels, model.probabilities(logits).numpy()


def calibrate(model, dataset):
    """Settle a finished model's temperatures, thresholds and operating points on a CellDataset, its validation part.

    Changes model.config: `calibration` of the model as it is, and of the mean over the symmetries as "with_tta". It is
    measured in float32, as the network will be used: bfloat16 moves probabilities by about 0.005.
    """
    for tta in (True, False):
        model.config.update(tta=tta, temperatures=[1.0] * len(model.classes))
        _, labels, probabilities = evaluate(model, dataset)
        found = calibration(labels, probabilities)
        model.config.update({"with_tta": found} if tta else found)


def side_at(epoch, epochs, size):
    """Side of the training pictures in an epoch (0...): about 0.64 `size` in the first half of them, then `size`.

    The small side is a multiple of 32, the network's stride (300: 192). After Howard 2018 (DAWNBench) and Touvron et
    al. 2019.
    """
    if epoch >= epochs // 2:
        return size
    return min(size, max(64, round(0.64 * size / 32) * 32))


class WithPlaces(nn.Module):
    """A CellClassifier and a head that says where it sees each class, which only helps to train the network.

    Gray images (N, 1, S, S) -> logits (N, C) and logits (N, C, S / 16, S / 16), float32; without places just the first.
    """

    def __init__(self, model, places=True):
        super().__init__()
        self.model, self.head = model, None
        if places:
            self.layer = stages(model.network)[2]
            self.eval()
            with torch.no_grad():
                maps = self.seen(torch.zeros(1, 1, 64, 64))[1].shape[1]
            self.head = nn.Sequential(nn.BatchNorm2d(maps), nn.ReLU(), nn.Conv2d(maps, len(model.classes), 1))

    def forward(self, images):
        if self.head is None:
            return self.model(images), None
        logits, seen = self.seen(images)
        return logits, self.head(seen).float()

    def seen(self, images):
        """The logits, and the output of the network's third stage."""
        outputs = []
        layer = self.model.network.get_submodule(self.layer)
        with layer.register_forward_hook(lambda *arguments: outputs.append(arguments[-1])):
            return self.model(images), outputs[0]


class Trainer:
    """Trains a CellClassifier with binary cross entropy, and can stop and go on at any step.

    model: CellClassifier. train, val: CellDataset. folder: where checkpoints are written.
    epochs, batch_size (pictures a step, of all processes together), lr, weight_decay: as in any recipe.
    optimizer: "sgd" (with `momentum`) or "adamw" (Loshchilov and Hutter 2019).
    schedule: "steps" (`step_decay`) or "one-cycle". progressive: train on small pictures first (`side_at`).
    defective: how many times more often than a sound cell one with a label is drawn (1: every cell once an epoch; an
        epoch's length stays).
    turns: right-angle turns among the augmentations. label_smoothing: targets are this far from 0 and 1.
    synthetic: share of the epochs, from the first on, in which `defects` (SyntheticDefects) draws into half of the
        sound cells; in the others it draws into few (LAST_SHARE). 0: never.
    places: weight of the loss of a second head, which learns where the defects were drawn; dropped after training.
    frozen: how many of the network's four stages stay as they are, from the first one on, their batch norms' statistics
        included; for networks that were trained before.
    even_exposure: bring pictures to the same brightness first (`model.even_exposure`), in the finished network too.
    noise: half of the pictures get normal noise, of up to this standard deviation (gray levels of 255), mostly of less.
    device: torch.device or its name. precision: torch.float32 or torch.bfloat16 (autocast).
    seed: order, augmentation and dropout of every step follow from (seed, epoch, step) alone, so a resumed run repeats
        nothing and ends where an uninterrupted one does.
    keep: how many of the newest epoch snapshots stay (None: all). notes: dict stored in every checkpoint.

    Under torchrun each process works on its share of every batch; process 0 writes the files (last.ckp only at the end
    of epochs and on a stop).
    """

    def __init__(
        self,
        model,
        train,
        val,
        folder,
        *,
        epochs=3,
        batch_size=16,
        optimizer="sgd",
        lr=0.01,
        momentum=0.9,
        weight_decay=1e-4,
        schedule="steps",
        progressive=False,
        turns=False,
        defective=1,
        label_smoothing=0.0,
        synthetic=0.0,
        places=0.0,
        frozen=0,
        even_exposure=False,
        noise=0.0,
        defects=None,
        device="cpu",
        precision=torch.float32,
        seed=0,
        keep=None,
        notes=None,
    ):
        self.device, self.precision, self.notes = torch.device(device), precision, notes or {}
        self.train_set, self.val_set, self.folder = train.to(device), val.to(device), Path(folder)
        self.epochs, self.batch_size, self.seed, self.keep = epochs, batch_size, seed, keep
        self.schedule, self.progressive, self.turns, self.defective = schedule, progressive, turns, defective
        self.label_smoothing, self.noise = label_smoothing, noise
        self.synthetic, self.places, self.defects = synthetic, places * (synthetic > 0), defects
        self.model = model
        model.config["even_exposure"] = even_exposure
        self.trained = WithPlaces(model, self.places > 0).to(device, memory_format=torch.channels_last)
        if world() > 1:
            self.trained = synchronised(self.trained)
        self.still = nn.ModuleList(first_layers(model.network, frozen)).requires_grad_(False)
        self.parallel = DistributedDataParallel(self.trained) if world() > 1 else self.trained
        settings = {"lr": lr, "weight_decay": weight_decay, "fused": True}
        learning = [p for p in self.trained.parameters() if p.requires_grad]
        if optimizer == "sgd":
            self.optimizer = torch.optim.SGD(learning, momentum=momentum, **settings)
        else:
            self.optimizer = torch.optim.AdamW(learning, **settings)
        self.graphs = {} if self.device.type == "cuda" and world() == 1 else None
        self._learning_rate_on_device()
        self.epoch = self.step = 0  # epochs completed, steps done in the one that is under way
        self.loss_sum = torch.zeros((), device=device)
        self.seconds = 0.0  # of the epoch under way
        self.history = []  # one dict an epoch
        self.stop = False  # set it (from a signal handler) to end after the step that is under way

    @property
    def steps(self):
        """Optimiser steps an epoch."""
        return -(-len(self.train_set) // self.batch_size)

    @property
    def side(self):
        """Side of the pictures, in pixels, in the epoch under way."""
        full = self.train_set.pictures.shape[-1]
        return side_at(self.epoch, self.epochs, full) if self.progressive else full

    def pixels(self, first, epochs):
        """Pixels of one cell in the epochs from `first` on of a run of `epochs`; their time is proportional to it."""
        full = self.train_set.pictures.shape[-1]
        return sum(side_at(e, epochs, full) ** 2 if self.progressive else full**2 for e in range(first, epochs))

    def seconds_left(self):
        """Estimate, from the newest epoch's time, of what the epochs to come will take."""
        return self.history[-1]["seconds"] * self.pixels(self.epoch, self.epochs) / self.history[-1]["side"] ** 2

    def _generator(self, *counter):
        state = np.random.SeedSequence([self.seed, *counter]).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(state >> 1))

    def _learning_rate(self):
        if self.schedule == "steps":
            factor = step_decay(self.epoch)
        else:
            factor = one_cycle((self.epoch * self.steps + self.step + 0.5) / (self.epochs * self.steps))
        rate = self.optimizer.defaults["lr"] * factor
        for group in self.optimizer.param_groups:
            if self.graphs is None:
                group["lr"] = rate
            else:
                group["lr"].fill_(rate)

    def _learning_rate_on_device(self):
        """A recorded step reads the learning rate from the GPU's memory."""
        if self.graphs is not None:
            for group in self.optimizer.param_groups:
                group.update(lr=torch.tensor(float(group["lr"]), device=self.device), capturable=True)

    def training_mode(self):
        """Set the network to training, but for its frozen stages."""
        self.parallel.train()
        self.still.eval()

    @contextlib.contextmanager
    def undone(self):
        """Steps inside are undone at the end: weights, batch-norm statistics and optimiser, in the memory they have."""
        weights = copy.deepcopy(self.trained.state_dict())
        slots = copy.deepcopy({i: self.optimizer.state.get(p, {}) for i, p in enumerate(self._learning())})
        yield
        self.trained.load_state_dict(weights)
        for i, p in enumerate(self._learning()):
            for name, value in self.optimizer.state[p].items():
                value.copy_(slots[i][name]) if name in slots[i] else value.zero_()

    def _learning(self):
        return self.optimizer.param_groups[0]["params"]

    def run_step(self, batch, share=1.0):
        """`train_step` of a dict from `batch`; on one GPU as a CUDA graph, recorded at the first batch of each size."""
        key = len(batch["images"]), self.side
        if self.graphs is not None and key not in self.graphs:
            first = {k: None if v is None else send(v, self.device).clone() for k, v in batch.items()}
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with self.undone():
                with torch.cuda.stream(stream):
                    for _ in range(3):
                        self.train_step(**first)
                torch.cuda.current_stream().wait_stream(stream)
            self.graphs[key] = GraphedStep(self.train_step, first)
        torch.manual_seed(self._generator(self.epoch, self.step, 4, rank()).initial_seed())  # of dropout
        return self.train_step(**batch, share=share) if self.graphs is None else self.graphs[key](batch)

    def train_step(self, images, labels, changes, share=1.0, places=None, known=None, noise=None):
        """One optimiser step; returns the sum of the pictures' losses (0-d tensor).

        images: uint8 (B, 1, S, S), labels (B, C) and changes (B, 2, 3) of this process. share: B over the mean B of
        all processes. places: uint8 (B, C, S, S), where defects were drawn. known: float (B,), what the places of each
        cell count, 0 for one with real defects, which stand who knows where; its mean over all processes is 1.
        noise: float (B, 1, side, side), added to the pictures of 0..1.
        """
        images, labels = self._changed(images, changes, noise), send(labels, self.device)
        with autocast(self.device, self.precision):
            logits, seen = self.parallel(channels_last(images))
        targets = labels * (1 - 2 * self.label_smoothing) + self.label_smoothing
        loss = F.binary_cross_entropy_with_logits(logits, targets)
        where = self._places_loss(seen, places, changes, known) if self.places and places is not None else 0.0
        self.optimizer.zero_grad(set_to_none=True)
        ((loss + self.places * where) * share).backward()
        self.optimizer.step()
        return loss.detach() * len(images)

    def _changed(self, images, changes, noise):
        """Pictures of a batch as the network sees them: float (B, 1, side, side) in 0..1, on the device."""
        images = augment(images.to(self.device), changes, self.side)
        return images if noise is None else (images + noise).clamp(0, 1)

    def _places_loss(self, seen, places, changes, known):
        """Mean binary cross entropy (0-d) of place logits (B, C, h, w) and what was drawn there, weighted by known."""
        drawn = augment(places.to(self.device), changes, self.side)
        targets = (F.adaptive_max_pool2d(drawn, seen.shape[2:]) > DRAWN).to(seen.dtype)
        losses = F.binary_cross_entropy_with_logits(seen, targets, reduction="none").mean((1, 2, 3))
        return (losses * send(known, self.device)).mean()

    def _order(self):
        """Rows of an epoch (as many as there are), in order; those with a label stand `defective` times in the pot."""
        rows = np.arange(len(self.train_set))
        pot = np.concatenate([rows, *[rows[self.train_set.labels.any(1)]] * (self.defective - 1)])
        return pot[torch.randperm(len(pot), generator=self._generator(self.epoch)).numpy()][: len(rows)]

    def batch(self, rows):
        """This process's part of a step, as `train_step` takes it, but for the share; defects are drawn in."""
        changes = draw_changes(len(rows), self._generator(self.epoch, self.step), self.turns)
        mine = slice(rank(), None, world())
        images, labels = self.train_set.batch(rows[mine])
        places, known = None, torch.from_numpy((self.train_set.labels[rows] == 0).all(1)).float()
        known = (known / known.mean().clamp(min=1e-6))[mine]
        if self.synthetic:
            share = SHARE if self.epoch < self.synthetic * self.epochs else LAST_SHARE
            u = torch.rand(NUMBERS, len(rows), generator=self._generator(self.epoch, self.step, 1))
            images, labels, places = self.defects.draw(images, labels, u[:, mine], share)
        more = {"places": places, "known": known, "noise": self._noise(len(rows), mine) if self.noise else None}
        return {"images": images, "labels": labels, "changes": changes[mine], **more}

    def _noise(self, count, mine):
        """The noise of a step's `count` pictures, float (B, 1, side, side), on the device; of this process's part."""
        u = send(torch.rand(2, count, 1, 1, 1, generator=self._generator(self.epoch, self.step, 2)), self.device)
        sigma = torch.where(u[0] < 0.5, self.noise / 255 * u[1] ** 2, 0)
        generator = torch.Generator(self.device)
        generator.manual_seed(self._generator(self.epoch, self.step, 3).initial_seed())
        drawn = torch.randn(count, 1, self.side, self.side, generator=generator, device=self.device)
        return (sigma * drawn)[mine]

    def examples(self, count=16):
        """First pictures of the coming epoch, as the network will see them: float (count, 1, S, S) in 0..1, labels."""
        batch = self.batch(self._order()[:count])
        return self._changed(batch["images"], batch["changes"], batch["noise"]), batch["labels"]

    def _train_epoch(self):
        self.training_mode()
        order = self._order()
        batches = np.array_split(order, self.steps)  # of equal size, so that none is too small for batch norm
        started = saved = time.monotonic()
        before = self.seconds
        with tqdm(
            total=len(order),
            initial=sum(map(len, batches[: self.step])),
            desc=f"epoch {self.epoch + 1}/{self.epochs}",
            unit="cell",
            leave=False,
            mininterval=1,
            **quiet(),
        ) as bar:
            while self.step < self.steps and not self._asked_to_stop():
                rows = batches[self.step]
                batch = self.batch(rows)
                count = len(batch["images"])
                self._learning_rate()
                loss = self.run_step(batch, count * world() / len(rows))
                self.loss_sum += loss
                self.step += 1
                self.seconds = before + time.monotonic() - started
                if bar.update(len(rows)):
                    bar.set_postfix(loss=f"{loss / count:.3f}", refresh=False)
                if time.monotonic() - saved > SAVE_SECONDS and world() == 1:
                    self.save(self.folder / "last.ckp")
                    saved = time.monotonic()
        self._check_finite()

    def _asked_to_stop(self):
        if world() == 1:
            return self.stop
        if self.step % STOP_STEPS:
            return False
        stop = torch.tensor(float(self.stop), device=self.device)
        dist.all_reduce(stop)
        return bool(stop)

    def _check_finite(self):
        if not self.loss_sum.isfinite():
            raise InputError(
                f"the loss became {self.loss_sum.item()} in epoch {self.epoch + 1}; try a lower --lr (the checkpoints "
                f"in {self.folder} are from before)"
            )

    def summed(self, value):
        """A tensor's sum over the processes (in place)."""
        if world() > 1:
            dist.all_reduce(value)
        return value

    def fit(self, on_epoch=None):
        """Train until `epochs` are done or `stop` is set; on_epoch(self) is called after each epoch (in process 0).

        Writes checkpoint_NNN.ckp, best.ckp (`best_epoch`) and last.ckp. Returns True when all epochs are done.
        Raises InputError when the loss is no longer a number.
        """
        while self.epoch < self.epochs:
            self._train_epoch()
            self.loss_sum = self.summed(self.loss_sum)
            if self.step < self.steps:
                if rank() == 0:
                    self.save(self.folder / "last.ckp")
                return False
            train_loss = float(self.loss_sum) / len(self.train_set)
            config = self.model.config
            config["temperatures"] = [1.0] * len(self.model.classes)
            val_loss, labels, probabilities = self.evaluate(self.val_set, self.side)
            f1 = f1_scores(labels, probabilities)
            config.update(calibration(labels, probabilities))
            self.history.append(
                {
                    "epoch": self.epoch + 1,
                    "side": self.side,
                    "train_loss": train_loss,
                    "val_loss": val_loss,
                    **{f"f1_{c}": float(v) for c, v in zip(self.model.classes, f1)},
                    "f1_mean": float(f1.mean()),
                    "average_precision": metrics_table(labels, probabilities, 0.5, self.model.classes)["mean"][
                        "average_precision"
                    ],
                    "lr": float(self.optimizer.param_groups[0]["lr"]),
                    "cells_per_second": len(self.train_set) / max(self.seconds, 1e-9),
                    "seconds": self.seconds,
                }
            )
            self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
            self.loss_sum.zero_()
            if rank() == 0:
                self._save_epoch()
                if on_epoch:
                    on_epoch(self)
            if self.epoch < self.epochs and self._asked_to_stop():
                return False
        return True

    def best_epoch(self):
        """Index into history of the best epoch so far: of a one-cycle schedule the newest, which had the lowest rate (a
        few hundred validation cells can't tell its epochs apart, doc/results.md); else, of those on the largest
        pictures, the one of the highest mean F1 at 0.5 on the validation part, then the lowest loss."""
        if self.schedule == "one-cycle":
            return len(self.history) - 1
        return max(
            range(len(self.history)),
            key=lambda i: (self.history[i]["side"], self.history[i]["f1_mean"], -self.history[i]["val_loss"]),
        )

    def calibrate(self):
        """`calibrate` best.ckp on the validation part."""
        path = self.folder / "best.ckp"
        model, checkpoint = load_model(path, self.device)
        calibrate(model, self.val_set)
        barrier()
        if rank() == 0:
            write_checkpoint(path, {**checkpoint, "config": model.config})
        barrier()

    def evaluate(self, dataset, size=None):
        """`evaluate` of this run's model in this run's precision."""
        return evaluate(self.model, dataset, self.precision, size=size)

    def save(self, path):
        """Write a checkpoint from which `resume` goes on exactly here (only process 0 should)."""
        self._check_finite()
        optimizer = self.optimizer.state_dict()
        for group in optimizer["param_groups"]:
            group["lr"] = float(group["lr"])
        save_checkpoint(
            path,
            self.model,
            **self.notes,
            head=self.trained.head.state_dict() if self.trained.head else {},
            optimizer=optimizer,
            epoch=self.epoch,
            step=self.step,
            seed=self.seed,
            loss_sum=self.loss_sum.cpu(),
            seconds=self.seconds,
            rows=len(self.train_set),
            history=self.history,
            metrics=self.history[-1] if self.history else {},
        )

    def _save_epoch(self):
        snapshot = self.folder / f"checkpoint_{self.epoch - 1:03}.ckp"
        self.save(snapshot)
        best = self.folder / "best.ckp"  # not there: the run goes on in another folder, or somebody removed it
        for name in ["last.ckp"] + ["best.ckp"] * (self.best_epoch() == self.epoch - 1 or not best.exists()):
            with atomic_path(self.folder / name) as temporary:
                try:
                    os.link(snapshot, temporary)
                except OSError:  # file systems without hard links
                    shutil.copyfile(snapshot, temporary)
        if self.keep is not None:
            for old in sorted(self.folder.glob("checkpoint_*.ckp"))[: -self.keep or None]:
                with contextlib.suppress(FileNotFoundError):
                    old.unlink()

    def resume(self, path):
        """Take over weights, optimiser and place in the run from a checkpoint of `save`."""
        checkpoint = read_checkpoint(path)
        try:
            if checkpoint["rows"] != len(self.train_set) or checkpoint["seed"] != self.seed:
                raise InputError(
                    f"{path}: was training on {checkpoint['rows']} pictures with seed {checkpoint['seed']}, now there "
                    f"are {len(self.train_set)} with seed {self.seed}; give the same table and options"
                )
            self.model.network.load_state_dict(checkpoint["model"])
            if self.trained.head:
                self.trained.head.load_state_dict(checkpoint["head"])
            self.model.config.update(checkpoint["config"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            self._learning_rate_on_device()
            self.epoch, self.step, self.seconds = checkpoint["epoch"], checkpoint["step"], checkpoint["seconds"]
            self.loss_sum = checkpoint["loss_sum"].to(self.device) * (rank() == 0)
            self.history = checkpoint["history"]
        except (KeyError, RuntimeError) as error:
            what = str(error).splitlines()[0][:150]
            raise InputError(f"{path}: can't go on from it ({what}); give a last.ckp of the same network") from None
