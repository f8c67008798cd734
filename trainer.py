"""One training run: epochs, steps, evaluation, metrics, checkpoints, and going on after an interruption.

>>> trainer = Trainer(model, train_set, val_set, "checkpoints", epochs=3)
>>> trainer.fit()
>>> loss, labels, probabilities = trainer.evaluate(test_set)
"""

import contextlib
import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from torch.nn import functional as F
from tqdm import tqdm

from data import InputError, atomic_path, augment
from model import read_checkpoint, save_checkpoint

TENTHS, HALVES = (10, 20, 30, 40), (60, 80, 100, 130)  # epochs at which the learning rate falls, and to which share
SAVE_SECONDS = 300  # a long epoch leaves last.ckp this often


# ---------------------------------------------------------------- device and precision


def pick_device(name="auto"):
    """torch.device for "auto" (CUDA, then Apple's MPS, then CPU), "cpu", "cuda" or "mps"; InputError if not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(d for d in ("cuda", "mps", "cpu") if there[d])
    if not there.get(name.split(":")[0]):
        raise InputError(f"--device {name}: there is none that PyTorch can use here; take --device cpu")
    return torch.device(name)


def pick_precision(name, device):
    """torch.dtype of the network's arithmetic for "auto", "fp32" or "bf16".

    "auto" is bfloat16 where the device is fast in it: CUDA with bfloat16, or a CPU with AVX512-BF16 or AMX.
    """
    if name == "auto" and device.type == "cpu":
        cpu = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        name = "bf16" if cpu.get("avx512_bf16") or cpu.get("amx_bf16") else "fp32"
    elif name == "auto":
        name = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(False) else "fp32"
    elif name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise InputError("--precision bf16: this GPU has no bfloat16; take --precision fp32")
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]


# ---------------------------------------------------------------- metrics


def best_thresholds(labels, probabilities):
    """Per class the threshold of the highest F1, in the middle of the gap below the last positive that it takes.

    labels 0/1 and probabilities: (N, C). Returns a list of C floats; 0.5 for a class without positives.
    """
    thresholds = []
    for y, p in zip(np.asarray(labels).T, np.asarray(probabilities, np.float64).T):
        if not y.any():
            thresholds.append(0.5)
            continue
        precision, recall, cuts = precision_recall_curve(y, p)
        best = np.argmax(2 * precision[:-1] * recall[:-1] / np.maximum(precision[:-1] + recall[:-1], 1e-12))
        thresholds.append(float((cuts[best] + (cuts[best - 1] if best else 0)) / 2))
    return thresholds


def f1_scores(labels, probabilities, thresholds=0.5):
    """F1 of each class (C,), in 0..1; 0 where nothing is positive and nothing is called so."""
    called = np.asarray(probabilities) >= np.asarray(thresholds)
    labels = np.asarray(labels) > 0.5
    hits, either = (called & labels).sum(0), called.sum(0) + labels.sum(0)
    return 2 * hits / np.maximum(either, 1)


def class_metrics(labels, probabilities, threshold):
    """Precision, recall, F1, confusion counts, average precision and ROC AUC of one class.

    labels (N,), probabilities (N,). The two ranking figures are None where only one kind of label is there.
    """
    y, called = np.asarray(labels) > 0.5, np.asarray(probabilities) >= threshold
    tp, fp, fn = int((y & called).sum()), int((~y & called).sum()), int((y & ~called).sum())
    both = 0 < y.sum() < len(y)
    return {
        "threshold": float(threshold),
        "precision": tp / max(tp + fp, 1),
        "recall": tp / max(tp + fn, 1),
        "f1": 2 * tp / max(2 * tp + fp + fn, 1),
        "average_precision": float(average_precision_score(y, probabilities)) if both else None,
        "roc_auc": float(roc_auc_score(y, probabilities)) if both else None,
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "tn": len(y) - tp - fp - fn,
    }


def metrics_table(labels, probabilities, thresholds, classes):
    """{class: class_metrics at the threshold, ..., "mean": their plain mean without thresholds and counts}."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    table = {c: class_metrics(labels[:, i], probabilities[:, i], thresholds[i]) for i, c in enumerate(classes)}
    mean = {}
    for name in ("precision", "recall", "f1", "average_precision", "roc_auc"):
        values = [m[name] for m in table.values() if m[name] is not None]
        mean[name] = float(np.mean(values)) if values else None
    return {**table, "mean": mean}


def bootstrap_mean_f1(labels, probabilities, thresholds, groups, draws=2000, seed=0):
    """95 % interval (low, high) of the mean F1 over classes, from drawing groups (cells, modules) with replacement.

    labels, probabilities (N, C); groups (N,). The percentile bootstrap of Efron (1979).
    """
    y, called = np.asarray(labels) > 0.5, np.asarray(probabilities) >= np.asarray(thresholds)
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    counts = np.zeros((2, len(names), y.shape[1]))
    np.add.at(counts[0], member, y & called)
    np.add.at(counts[1], member, y.astype(int) + called)
    weights = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), draws)
    f1 = 2 * (weights @ counts[0]) / np.maximum(weights @ counts[1], 1)
    low, high = np.percentile(f1.mean(1), [2.5, 97.5])
    return float(low), float(high)


# ---------------------------------------------------------------- evaluation and training


def autocast(device, precision):
    """The context in which a network runs in `precision` (torch.float32: as it is)."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


@torch.inference_mode()
def evaluate(model, dataset, precision=torch.float32, batch_size=32):
    """Loss and predictions of a model on a CellDataset, without augmentation, on the device that the model is on.

    Returns (mean binary cross entropy, labels (N, C) float32, probabilities (N, C) float32).
    """
    model.eval()
    device = next(model.parameters()).device
    logits, labels = [], []
    for start in tqdm(range(0, len(dataset), batch_size), "evaluating", unit="batch", leave=False):
        images, y = dataset.batch(range(start, min(start + batch_size, len(dataset))))
        images = images.to(device).contiguous(memory_format=torch.channels_last)
        with autocast(device, precision):
            logits.append(model(images).cpu())
        labels.append(y)
    logits, labels = torch.cat(logits), torch.cat(labels)
    loss = F.binary_cross_entropy_with_logits(logits, labels)
    return float(loss), labels.numpy(), model.probabilities(logits).numpy()


def learning_rate_factor(epoch):
    """Step decay: x0.1 at epochs 10, 20, 30, 40 and x0.5 at 60, 80, 100, 130."""
    return 0.1 ** sum(epoch >= e for e in TENTHS) * 0.5 ** sum(epoch >= e for e in HALVES)


class Trainer:
    """Trains a CellClassifier with SGD and binary cross entropy, and can stop and go on at any step.

    model: CellClassifier. train, val: CellDataset. folder: where checkpoints are written.
    epochs, batch_size, lr, momentum, weight_decay: the recipe.
    device: torch.device or its name. precision: torch.float32 or torch.bfloat16 (autocast).
    seed: order and augmentation of every step follow from (seed, epoch, step) alone, so a resumed run repeats nothing
        and ends where an uninterrupted one does.
    keep: how many of the newest epoch snapshots stay (None: all). notes: dict stored in every checkpoint.
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
        lr=0.01,
        momentum=0.9,
        weight_decay=1e-4,
        device="cpu",
        precision=torch.float32,
        seed=0,
        keep=None,
        notes=None,
    ):
        self.model = model.to(device, memory_format=torch.channels_last)
        self.train_set, self.val_set, self.folder = train, val, Path(folder)
        self.epochs, self.batch_size, self.seed, self.keep = epochs, batch_size, seed, keep
        self.device, self.precision, self.notes = torch.device(device), precision, notes or {}
        self.optimizer = torch.optim.SGD(model.parameters(), lr, momentum, weight_decay=weight_decay)
        self.epoch = self.step = 0  # epochs completed, steps done in the one that is under way
        self.loss_sum = torch.zeros((), device=device)
        self.seconds = 0.0  # of the epoch under way
        self.history = []  # one dict an epoch
        self.stop = False  # set it (from a signal handler) to end after the step that is under way

    @property
    def steps(self):
        """Optimiser steps an epoch."""
        return -(-len(self.train_set) // self.batch_size)

    def _generator(self, *counter):
        state = np.random.SeedSequence([self.seed, *counter]).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(state >> 1))

    def train_step(self, images, labels, generator):
        """One optimiser step on uint8 images (B, 1, S, S) and labels (B, C); returns the loss (0-d tensor)."""
        images, labels = images.to(self.device), labels.to(self.device)
        with autocast(self.device, self.precision):
            logits = self.model(augment(images, generator).contiguous(memory_format=torch.channels_last))
        loss = F.binary_cross_entropy_with_logits(logits, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _train_epoch(self):
        self.model.train()
        order = torch.randperm(len(self.train_set), generator=self._generator(self.epoch)).numpy()
        started = saved = time.monotonic()
        before = self.seconds
        for group in self.optimizer.param_groups:
            group["lr"] = self.optimizer.defaults["lr"] * learning_rate_factor(self.epoch)
        with tqdm(
            total=len(order),
            initial=min(self.step * self.batch_size, len(order)),
            desc=f"epoch {self.epoch + 1}/{self.epochs}",
            unit="cell",
            leave=False,
            mininterval=1,
        ) as bar:
            while self.step < self.steps and not self.stop:
                rows = order[self.step * self.batch_size : (self.step + 1) * self.batch_size]
                images, labels = self.train_set.batch(rows)
                loss = self.train_step(images, labels, self._generator(self.epoch, self.step))
                self.loss_sum += loss * len(rows)
                self.step += 1
                self.seconds = before + time.monotonic() - started
                if bar.update(len(rows)):
                    bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                if time.monotonic() - saved > SAVE_SECONDS:
                    self.save(self.folder / "last.ckp")
                    saved = time.monotonic()
        self._check_finite()

    def _check_finite(self):
        if not self.loss_sum.isfinite():
            raise InputError(
                f"the loss became {self.loss_sum.item()} in epoch {self.epoch + 1}; try a lower --lr (the checkpoints "
                f"in {self.folder} are from before)"
            )

    def fit(self, on_epoch=None):
        """Train until `epochs` are done or `stop` is set; on_epoch(self) is called after each epoch.

        Writes checkpoint_NNN.ckp, best.ckp (highest mean F1 at 0.5 on the validation part, then lowest loss) and
        last.ckp. Returns True when all epochs are done. Raises InputError when the loss is no longer a number.
        """
        while self.epoch < self.epochs:
            self._train_epoch()
            if self.step < self.steps:
                self.save(self.folder / "last.ckp")
                return False
            train_loss = float(self.loss_sum) / len(self.train_set)
            val_loss, labels, probabilities = self.evaluate(self.val_set)
            f1 = f1_scores(labels, probabilities)
            self.model.config["thresholds"] = best_thresholds(labels, probabilities)
            self.history.append(
                {
                    "epoch": self.epoch + 1,
                    "train_loss": train_loss,
                    "val_loss": val_loss,
                    **{f"f1_{c}": float(v) for c, v in zip(self.model.classes, f1)},
                    "f1_mean": float(f1.mean()),
                    "lr": self.optimizer.param_groups[0]["lr"],
                    "cells_per_second": len(self.train_set) / max(self.seconds, 1e-9),
                    "seconds": self.seconds,
                }
            )
            self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
            self.loss_sum.zero_()
            self._save_epoch()
            if on_epoch:
                on_epoch(self)
            if self.stop and self.epoch < self.epochs:
                return False
        return True

    def best_epoch(self):
        """Index into history of the best epoch so far."""
        return max(range(len(self.history)), key=lambda i: (self.history[i]["f1_mean"], -self.history[i]["val_loss"]))

    def evaluate(self, dataset):
        """`evaluate` of this run's model in this run's precision."""
        return evaluate(self.model, dataset, self.precision)

    def save(self, path):
        """Write a checkpoint from which `resume` goes on exactly here."""
        self._check_finite()
        save_checkpoint(
            path,
            self.model,
            **self.notes,
            optimizer=self.optimizer.state_dict(),
            epoch=self.epoch,
            step=self.step,
            seed=self.seed,
            loss_sum=self.loss_sum.cpu(),
            seconds=self.seconds,
            rows=len(self.train_set),
            history=self.history,
            metrics=self.history[-1] if self.history else {},
            rng=torch.get_rng_state(),
        )

    def _save_epoch(self):
        snapshot = self.folder / f"checkpoint_{self.epoch - 1:03}.ckp"
        self.save(snapshot)
        for name in ["last.ckp"] + ["best.ckp"] * (self.best_epoch() == self.epoch - 1):
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
        """Take over weights, optimiser, place in the run and random state from a checkpoint of `save`."""
        checkpoint = read_checkpoint(path)
        try:
            if checkpoint["rows"] != len(self.train_set) or checkpoint["seed"] != self.seed:
                raise InputError(
                    f"{path}: was training on {checkpoint['rows']} pictures with seed {checkpoint['seed']}, now there "
                    f"are {len(self.train_set)} with seed {self.seed}; give the same table and options"
                )
            self.model.network.load_state_dict(checkpoint["model"])
            self.model.config.update(checkpoint["config"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            self.epoch, self.step, self.seconds = checkpoint["epoch"], checkpoint["step"], checkpoint["seconds"]
            self.loss_sum = checkpoint["loss_sum"].to(self.device)
            self.history = checkpoint["history"]
            torch.set_rng_state(checkpoint["rng"])
        except (KeyError, RuntimeError) as error:
            what = str(error).splitlines()[0][:150]
            raise InputError(f"{path}: can't go on from it ({what}); give a last.ckp of the same network") from None
