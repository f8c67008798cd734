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

from elcells.devices import autocast, channels_last, send
from elcells.distributed import barrier, quiet, rank, synchronised, world
from elcells.evaluation.evaluate import calibrate, evaluate
from elcells.evaluation.metrics import calibration, f1_scores, metrics_table
from elcells.files import InputError, atomic_path, reason
from elcells.training.augmentation import augment, draw_changes, draw_light, draw_noise, uneven_light
from elcells.training.checkpoints import network_state, read_checkpoint
from elcells.training.graphs import GraphedStep
from elcells.training.recipes import MOMENTUM, step_decay, warmup_cosine
from elcells.training.synthetic import NUMBERS, SHARE
from elcells.training.weights import mixed
from model import WithAuxiliaryHead, first_layers, load_model, save_checkpoint

SAVE_SECONDS = 300  # a long epoch leaves last.ckp this often
LAST_SHARE = 0.15  # of the defect-free cells get a defect drawn in the last epochs, as many as really have one
DRAWN = 0.4  # from this strength of a drawing on (of 1) a place counts as defective
STOP_STEPS = 16  # several processes agree this often on whether one was asked to stop


class Trainer:
    """Trains a CellClassifier with binary cross entropy, and can stop and go on at any step.

    model: CellClassifier. train, val: CellDataset. folder: where checkpoints are written.
    epochs, batch_size (images a step, of all processes together), lr, weight_decay: as in any recipe.
    optimizer: "sgd" (with MOMENTUM) or "adamw" (Loshchilov and Hutter 2019).
    schedule: "steps" (`step_decay`) or "cosine" (`warmup_cosine`).
    oversample: how many times more often than a defect-free cell one with a label is drawn (1: every cell once an
        epoch; an epoch's length stays).
    dihedral: rotations by 90 degrees among the augmentations. scale: images are shown larger or smaller by up to this
        share. light: half of them get slopes of brightness of up to this share (`uneven_light`).
    synthetic: share of the epochs, from the first on, in which `defects` (SyntheticDefects) draws into half of the
        defect-free cells; in the others it draws into few (LAST_SHARE). 0: never.
    aux_loss: weight of the loss of the auxiliary segmentation head, which learns where the defects were drawn.
    freeze_stages: how many of the network's four stages stay as they are, from the first one on, their batch norms'
        statistics included; for networks that were trained before.
    epoch_cells: cells drawn in an epoch (0: as many as there are).
    keep_initial: share of the weights that training began with in those of the finished network, which forgets less so
        (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models").
    normalise_brightness: bring images to the same brightness first, in the finished network too.
    noise_std: half of the images get normal noise, of up to this standard deviation (gray levels of 255).
    device: torch.device or its name. precision: torch.float32 or torch.bfloat16 (autocast).
    seed: order, augmentation and dropout of every step follow from (seed, epoch, step) alone, so a resumed run repeats
        nothing and ends where an uninterrupted one does.
    keep_checkpoints: how many of the newest epochs' snapshots stay (None: all). notes: dict stored in every checkpoint.

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
        weight_decay=1e-4,
        schedule="steps",
        dihedral=False,
        scale=0.0,
        light=0.0,
        oversample=1,
        synthetic=0.0,
        aux_loss=0.0,
        freeze_stages=0,
        normalise_brightness=False,
        noise_std=0.0,
        epoch_cells=0,
        keep_initial=0.0,
        defects=None,
        device="cpu",
        precision=torch.float32,
        seed=0,
        keep_checkpoints=None,
        notes=None,
    ):
        self.device, self.precision, self.notes = torch.device(device), precision, notes or {}
        self.train_set, self.val_set, self.folder = train.to(device), val.to(device), Path(folder)
        self.epochs, self.batch_size, self.seed, self.keep_checkpoints = epochs, batch_size, seed, keep_checkpoints
        self.lr, self.schedule, self.dihedral, self.oversample = lr, schedule, dihedral, oversample
        self.scale, self.light, self.noise_std = scale, light, noise_std
        self.epoch_cells = epoch_cells or len(train)
        self.keep_initial, self.initial = keep_initial, {}
        if keep_initial:
            self.initial = {k: v.detach().cpu().clone() for k, v in model.network.state_dict().items()}
        self.synthetic, self.defects = synthetic, defects
        self.aux_loss = aux_loss * (synthetic > 0)
        self.model = model
        model.config["normalise_brightness"] = normalise_brightness
        network = WithAuxiliaryHead(model, self.aux_loss > 0).to(self.device, memory_format=torch.channels_last)
        self.trained = synchronised(network) if world() > 1 else network
        self.frozen = nn.ModuleList(first_layers(model.network, freeze_stages)).requires_grad_(False)
        self.parallel = DistributedDataParallel(self.trained) if world() > 1 else self.trained
        self.learning = [p for p in self.trained.parameters() if p.requires_grad]
        settings = {"lr": lr, "weight_decay": weight_decay, "fused": True}
        if optimizer == "sgd":
            self.optimizer = torch.optim.SGD(self.learning, momentum=MOMENTUM, **settings)
        else:
            self.optimizer = torch.optim.AdamW(self.learning, **settings)
        self.graphs = {} if self.device.type == "cuda" and world() == 1 else None  # of steps, by batch size
        self._learning_rate_on_device()
        self.epoch = self.step = 0  # epochs completed, steps done in the one that is under way
        self.loss_sum = torch.zeros((), device=device)
        self.seconds = 0.0  # of the epoch under way
        self.history = []  # one dict an epoch
        self.stop = False  # set it (from a signal handler) to end after the step that is under way

    @property
    def steps(self):
        """Optimiser steps an epoch."""
        return -(-self.epoch_cells // self.batch_size)

    def seconds_left(self):
        """Estimate, from the newest epoch's time, of what the epochs to come will take."""
        return self.history[-1]["seconds"] * (self.epochs - self.epoch)

    def _seed(self, *counter):
        state = np.random.SeedSequence([self.seed, *counter]).generate_state(1, np.uint64)[0]
        return int(state >> 1)

    def _generator(self, *counter):
        return torch.Generator().manual_seed(self._seed(*counter))

    def _learning_rate(self):
        if self.schedule == "steps":
            rate = self.lr * step_decay(self.epoch)
        else:
            rate = self.lr * warmup_cosine((self.epoch * self.steps + self.step + 0.5) / (self.epochs * self.steps))
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
        self.frozen.eval()

    @contextlib.contextmanager
    def undone(self):
        """Steps inside are undone at the end: weights, batch-norm statistics and optimiser, in the memory they have."""
        weights = copy.deepcopy(self.trained.state_dict())
        slots = copy.deepcopy([self.optimizer.state.get(p, {}) for p in self.learning])
        yield
        self.trained.load_state_dict(weights)
        for p, before in zip(self.learning, slots):
            for name, value in self.optimizer.state[p].items():
                if name in before:
                    value.copy_(before[name])
                else:
                    value.zero_()

    def run_step(self, batch, share=1.0):
        """`train_step` of a dict from `batch`; on one GPU as a CUDA graph, recorded at the first batch of each size."""
        key = len(batch["images"])
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
        torch.manual_seed(self._seed(self.epoch, self.step, 4, rank()))  # of dropout
        return self.train_step(**batch, share=share) if self.graphs is None else self.graphs[key](batch)

    def train_step(self, images, labels, changes, share=1.0, aux_masks=None, aux_weight=None, light=None, noise=None):
        """One optimiser step; returns the sum of the images' losses (0-d tensor).

        images: uint8 (B, 1, S, S), labels (B, C) and changes (B, 2, 3) of this process. share: B over the mean B of
        all processes. aux_masks: uint8 (B, C, S, S), where defects were drawn. aux_weight: float (B,), of each cell in
        the auxiliary loss: 0 for one with real defects, which stand who knows where; its mean over all processes is 1.
        light: float (B, 3), of `uneven_light`. noise: float (B, 1, S, S), added to the images of 0..1.
        """
        images, labels = self._changed(images, changes, light, noise), send(labels, self.device)
        with autocast(self.device, self.precision):
            logits, aux_logits = self.parallel(channels_last(images))
        loss = F.binary_cross_entropy_with_logits(logits, labels)
        total = loss
        if aux_logits is not None and aux_masks is not None:
            total = loss + self.aux_loss * self._aux_loss(aux_logits, aux_masks, changes, aux_weight)
        self.optimizer.zero_grad(set_to_none=True)
        (total * share).backward()
        self.optimizer.step()
        return loss.detach() * len(images)

    def _changed(self, images, changes, light, noise):
        """Images of a batch as the network sees them: float (B, 1, S, S) in 0..1, on the device."""
        images = augment(images.to(self.device), changes)
        if light is not None:
            images = uneven_light(images, light)
        return images if noise is None else (images + noise).clamp(0, 1)

    def _aux_loss(self, aux_logits, aux_masks, changes, aux_weight):
        """Mean binary cross entropy (0-d) of the auxiliary head's logits (B, C, h, w) and what was drawn there."""
        drawn = augment(aux_masks.to(self.device), changes)
        targets = (F.adaptive_max_pool2d(drawn, aux_logits.shape[2:]) > DRAWN).to(aux_logits.dtype)
        losses = F.binary_cross_entropy_with_logits(aux_logits, targets, reduction="none").mean((1, 2, 3))
        return (losses * send(aux_weight, self.device)).mean()

    def _order(self):
        """Rows of an epoch in order. In the pot each stands `weights` times, with a label `oversample` times that."""
        rows = np.arange(len(self.train_set))
        pot = np.concatenate([rows, *[rows[self.train_set.labels.any(1)]] * (self.oversample - 1)])
        pot = np.repeat(pot, self.train_set.weights[pot])
        pot = np.resize(pot, max(len(pot), self.epoch_cells))  # over and over where there are too few
        return pot[torch.randperm(len(pot), generator=self._generator(self.epoch)).numpy()][: self.epoch_cells]

    def batch(self, rows):
        """This process's part of a step, as `train_step` takes it, but for the share; defects are drawn in."""
        changes = draw_changes(len(rows), self._generator(self.epoch, self.step), self.dihedral, self.scale)
        mine = slice(rank(), None, world())
        images, labels = self.train_set.batch(rows[mine])
        aux_masks, light, noise = None, None, None
        aux_weight = torch.from_numpy((self.train_set.labels[rows] == 0).all(1)).float()
        aux_weight = (aux_weight / aux_weight.mean().clamp(min=1e-6))[mine]
        if self.synthetic:
            share = SHARE if self.epoch < self.synthetic * self.epochs else LAST_SHARE
            u = torch.rand(NUMBERS, len(rows), generator=self._generator(self.epoch, self.step, 1))
            images, labels, aux_masks = self.defects.draw(images, labels, u[:, mine], share)
        if self.light:
            light = draw_light(len(rows), self.light, self._generator(self.epoch, self.step, 5))[mine]
        if self.noise_std:
            generator, seed = self._generator(self.epoch, self.step, 2), self._seed(self.epoch, self.step, 3)
            noise = draw_noise(len(rows), images.shape[-1], self.noise_std, generator, seed, self.device)[mine]
        more = {"aux_masks": aux_masks, "aux_weight": aux_weight, "light": light, "noise": noise}
        return {"images": images, "labels": labels, "changes": changes[mine], **more}

    def examples(self, count=16):
        """First images of the coming epoch, as the network will see them: float (count, 1, S, S) in 0..1, labels."""
        batch = self.batch(self._order()[:count])
        return self._changed(*(batch[k] for k in ("images", "changes", "light", "noise"))), batch["labels"]

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
        """Raise InputError where the loss or a weight is no longer a number (a ReLU can hide it from the loss)."""
        state = self.model.network.state_dict()
        good = torch.stack([v.isfinite().all() for v in state.values()]).cpu().numpy()
        culprit = f"the loss became {self.loss_sum.item()}" if not self.loss_sum.isfinite() else ""
        if not good.all():
            culprit = f"{list(state)[good.argmin()]} holds numbers that are not finite"
        if culprit:
            raise InputError(
                f"{culprit} in epoch {self.epoch + 1}; train with a lower learning rate (the checkpoints in "
                f"{self.folder} are from before)"
            )

    def summed(self, value):
        """A tensor's sum over the processes (in place)."""
        if world() > 1:
            dist.all_reduce(value)
        return value

    def epochs_within(self, seconds, share=0.9):
        """How many epochs (1 or more) of a run that has not begun fit into so many seconds.

        A few steps are timed, and undone. share: of the time that is for training; the rest is for evaluation and
        checkpoints.
        """
        rows, times = np.arange(min(self.batch_size, len(self.train_set))), []
        self.training_mode()
        with self.undone():
            for _ in range(6):
                started = time.monotonic()
                float(self.run_step(self.batch(rows)))  # waits for a GPU
                times.append(time.monotonic() - started)
        step = self.summed(torch.tensor(float(np.median(times[1:])), device=self.device)).item() / world()
        return max(1, int(share * seconds / (self.steps * step)))

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
            train_loss = float(self.loss_sum) / self.epoch_cells
            config = self.model.config
            config["temperatures"] = [1.0] * len(self.model.classes)
            val_loss, labels, probabilities = self.evaluate(self.val_set)
            f1 = f1_scores(labels, probabilities)
            config.update(calibration(labels, probabilities))
            self.history.append(
                {
                    "epoch": self.epoch + 1,
                    "train_loss": train_loss,
                    "val_loss": val_loss,
                    **{f"f1_{c}": float(v) for c, v in zip(self.model.classes, f1)},
                    "f1_mean": float(f1.mean()),
                    "average_precision": metrics_table(labels, probabilities, 0.5, self.model.classes)["mean"][
                        "average_precision"
                    ],
                    "lr": float(self.optimizer.param_groups[0]["lr"]),
                    "cells_per_second": self.epoch_cells / max(self.seconds, 1e-9),
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
        """Index into history of the best epoch so far: of a cosine schedule the newest, which had the lowest rate (a
        few hundred validation cells can't tell its epochs apart); else the one of the highest mean F1 at 0.5 on the
        validation part, then the lowest loss."""
        if self.schedule == "cosine":
            return len(self.history) - 1
        return max(range(len(self.history)), key=lambda i: (self.history[i]["f1_mean"], -self.history[i]["val_loss"]))

    def calibrate(self):
        """Finish best.ckp: mix the initial weights in (`keep_initial`), and `calibrate` it on the validation part."""
        path = self.folder / "best.ckp"
        model, checkpoint = load_model(path, self.device)
        if self.keep_initial and not checkpoint.get("mixed"):
            model.network.load_state_dict(mixed(model.network.state_dict(), self.initial, self.keep_initial))
        calibrate(model, self.val_set)
        barrier()
        if rank() == 0:
            more = {k: v for k, v in checkpoint.items() if k not in ("model", "config", "versions")}
            save_checkpoint(path, model, **more | {"mixed": self.keep_initial > 0})
        barrier()

    def evaluate(self, dataset):
        """`evaluate` of this run's model in this run's precision."""
        return evaluate(self.model, dataset, self.precision)

    def save(self, path, snapshot=False):
        """Write a checkpoint (only process 0 should): a snapshot holds what it takes to use the network, else also what
        it takes to `resume` exactly here."""
        self._check_finite()
        more = {**self.notes, "epoch": self.epoch, "history": self.history}
        more["metrics"] = self.history[-1] if self.history else {}
        if not snapshot:
            optimizer = self.optimizer.state_dict()
            for group in optimizer["param_groups"]:
                group["lr"] = float(group["lr"])
            more |= {
                "aux_head": self.trained.head.state_dict() if self.trained.head else {},
                "optimizer": optimizer,
                "step": self.step,
                "seed": self.seed,
                "loss_sum": self.loss_sum.cpu(),
                "seconds": self.seconds,
                "rows": len(self.train_set),
                "initial": self.initial,
            }
        save_checkpoint(path, self.model, **more)

    def _save_epoch(self):
        self.save(self.folder / "last.ckp")
        snapshot = self.folder / f"checkpoint_{self.epoch - 1:03}.ckp"
        best = self.folder / "best.ckp"
        self.save(snapshot, snapshot=True)
        # Where there is none, the run goes on in another folder, or somebody removed it.
        if self.best_epoch() == self.epoch - 1 or not best.exists():
            with atomic_path(best) as temporary:
                try:
                    os.link(snapshot, temporary)
                except OSError:  # file systems without hard links
                    shutil.copyfile(snapshot, temporary)
        if self.keep_checkpoints is not None:
            for old in sorted(self.folder.glob("checkpoint_*.ckp"))[: -self.keep_checkpoints or None]:
                old.unlink(missing_ok=True)

    def resume(self, path):
        """Take over weights, optimiser and place in the run from a checkpoint of `save`."""
        checkpoint = read_checkpoint(path)
        try:
            if checkpoint["rows"] != len(self.train_set) or checkpoint["seed"] != self.seed:
                raise InputError(
                    f"{path}: was training on {checkpoint['rows']} images with seed {checkpoint['seed']}, now there "
                    f"are {len(self.train_set)} with seed {self.seed}; give the same table and options"
                )
            self.model.network.load_state_dict(network_state(checkpoint))
            if self.trained.head:
                self.trained.head.load_state_dict(checkpoint["aux_head"])
            self.initial = checkpoint["initial"] if self.keep_initial else {}
            self.model.config.update(checkpoint["config"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            for p in self.learning:
                for value in self.optimizer.state[p].values():
                    if value.ndim and value.shape != p.shape:
                        raise RuntimeError("its optimiser is of a network of other shapes")
            self._learning_rate_on_device()
            self.epoch, self.step, self.seconds = checkpoint["epoch"], checkpoint["step"], checkpoint["seconds"]
            self.loss_sum = checkpoint["loss_sum"].to(self.device) * (rank() == 0)
            self.history = checkpoint["history"]
        except (KeyError, RuntimeError) as error:
            raise InputError(
                f"{path}: can't go on from it ({reason(error)}); give a last.ckp of the same network"
            ) from None
