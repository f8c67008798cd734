"""One training run: epochs, steps, evaluation, metrics, checkpoints, and going on after an interruption.

>>> trainer = Trainer(model, train_set, val_set, "checkpoints", **RECIPES["fast"])
>>> trainer.fit()
>>> loss, labels, probabilities = trainer.evaluate(test_set)
"""

import contextlib
import copy
import ctypes
import math
import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from data import InputError, atomic_path, augment, draw_changes, send, shrink
from elcells.graphs import GraphedStep
from model import (
    channels_last,
    first_layers,
    load_model,
    read_checkpoint,
    save_checkpoint,
    stages,
    write_checkpoint,
)
from synthetic import NUMBERS, SHARE

TENTHS, HALVES = (10, 20, 30, 40), (60, 80, 100, 130)  # epochs at which the learning rate falls, and to which share
SAVE_SECONDS = 300  # a long epoch leaves last.ckp this often
LAST_SHARE = 0.15  # of the sound cells that get a defect drawn in the last epochs, about as many as really have one
DRAWN = 0.4  # from this strength of a drawing on (of 1) a place counts as defective
STOP_STEPS = 16  # several processes agree this often on whether one was asked to stop

FAST = {
    "epochs": 16,
    "batch_size": 32,
    "optimizer": "adamw",
    "lr": 0.0014,
    "weight_decay": 0.05,
    "schedule": "one-cycle",
    "progressive": False,
    "turns": True,
    "defective": 2,
    "label_smoothing": 0.0,
    "synthetic": 0.75,
    "places": 1.0,
    "frozen": 0,
    "even_exposure": True,
    "noise": 15.0,
}
CLASSIC = {
    "epochs": 3,
    "batch_size": 16,
    "optimizer": "sgd",
    "lr": 0.01,
    "weight_decay": 1e-4,
    "schedule": "steps",
    "progressive": False,
    "turns": False,
    "defective": 1,
    "label_smoothing": 0.0,
    "synthetic": 0.0,
    "places": 0.0,
    "frozen": 0,
    "even_exposure": False,
    "noise": 0.0,
}
# What `Trainer` takes; doc/results.md has what each part of "fast" (random weights) and "finetune" (weights from
# another training) is worth.
RECIPES = {"fast": FAST, "finetune": FAST | {"epochs": 16, "lr": 0.0006, "frozen": 2}, "classic": CLASSIC}


# ---------------------------------------------------------------- processes, device and precision


def rank():
    """Number of this process, 0 in the only one or the one that writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world():
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def quiet():
    """Arguments of tqdm: only process 0 shows bars."""
    return {"disable": True} if rank() > 0 else {}


def barrier():
    """Wait until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


def keep_freed_memory():
    """Tell glibc's allocator to keep freed memory: else the system clears the same pages anew in every step.

    Worth 5 to 8 % of a training step on a CPU (doc/results.md). Does nothing on other systems.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8  # of malloc.h
        for parameter, value in ((m_mmap_max, 0), (m_trim_threshold, 2**31 - 1), (m_arena_max, 1)):
            mallopt(parameter, value)


@contextlib.contextmanager
def processes(device):
    """Join the processes that `torchrun` started; yields the device of this one.

    They talk by nccl on GPUs, by gloo elsewhere and where several share a GPU, which nccl refuses.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    backend = "gloo"
    if device.type == "cuda":
        gpus = torch.cuda.device_count()
        backend = "nccl" if int(os.environ["LOCAL_WORLD_SIZE"]) <= gpus else "gloo"
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % gpus)
        torch.cuda.set_device(device)
    dist.init_process_group(backend)
    try:
        yield device
    finally:
        dist.destroy_process_group()


class SumOverProcesses(torch.autograd.Function):
    """A tensor's sum over all processes, and on the way back its gradient's, as each of them used the sum."""

    @staticmethod
    def forward(context, value):
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context, gradient):
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batches of all processes, where PyTorch's own SyncBatchNorm can't run (CPU).

    (N, C, H, W) -> the same shape; in evaluation an ordinary batch norm.
    """

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        x32 = x.to(torch.promote_types(x.dtype, torch.float32))
        own = torch.tensor(float(x[:, 0].numel()), dtype=x32.dtype)
        count = SumOverProcesses.apply(own)
        own_var, own_mean = torch.var_mean(x32, (0, 2, 3), correction=0)
        mean = SumOverProcesses.apply(own_mean * (own / count))
        # Not the mean of squares less the squared mean, which loses digits where the mean is large.
        var = SumOverProcesses.apply((own_var + (own_mean - mean) ** 2) * (own / count))
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return torch.addcmul((self.bias - mean * scale)[:, None, None], x32, scale[:, None, None]).to(x.dtype)


def synchronised(module):
    """A network's batch norms replaced by ones over the batches of all processes, sharing its weights.

    On CUDA they are new modules: what is said of single ones (that they are frozen) must be said afterwards.
    """
    if next(module.parameters()).device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = SyncBatchNorm2d
    return module


def pick_device(name="auto"):
    """torch.device for "auto" (CUDA, then Apple's MPS, then CPU), "cpu", "cuda" or "mps"; InputError if not there.

    CUDA's convolutions are told to compute float32 as float32, not as TensorFloat-32, which has ten bits for the
    mantissa, and the same every time.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(d for d in ("cuda", "mps", "cpu") if there[d])
    if not there.get(name.split(":")[0]):
        raise InputError(f"--device {name}: there is none that PyTorch can use here; take --device cpu")
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    return torch.device(name)


def pick_precision(name, device):
    """torch.dtype of a network's arithmetic for "auto", "fp32" or "bf16".

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


def f1_thresholds(labels, probabilities):
    """Per class the threshold of the highest F1 that calibrated probabilities let expect (Lipton et al. 2014).

    The F1 is reckoned from the probabilities alone: with a few dozen positives its course over the labels is so rough
    that its highest point is chance, and costs 0.014 of F1 on other cells (doc/results.md).
    labels 0/1 and probabilities: (N, C). Returns a list of C floats, each in the middle of the gap below the last
    cell that it takes; 0.5 for a class without positives.
    """
    thresholds = []
    for y, p in zip(np.asarray(labels).T, np.asarray(probabilities, np.float64).T):
        p = np.append(np.sort(p)[::-1], 0)
        expected = 2 * np.cumsum(p[:-1]) / (np.arange(1, len(p)) + p.sum())
        best = np.argmax(expected)
        thresholds.append(float((p[best] + p[best + 1]) / 2) if y.any() else 0.5)
    return thresholds


def recall_thresholds(labels, probabilities, recall=0.95):
    """Per class the highest threshold that misses no more than 1 - recall of the positives; 0.5 without positives.

    labels 0/1 and probabilities: (N, C). Returns a list of C floats, each in the middle of the gap below.
    """
    thresholds = []
    for y, p in zip(np.asarray(labels).T > 0.5, np.asarray(probabilities, np.float64).T):
        if not y.any():
            thresholds.append(0.5)
            continue
        positives = np.sort(p[y])
        least = positives[int((1 - recall) * len(positives) + 1e-9)]
        thresholds.append(float((least + p[p < least].max(initial=0)) / 2))
    return thresholds


def fit_temperatures(labels, probabilities):
    """Per class the number that logits are divided by for the lowest cross entropy (Guo et al. 2017).

    labels 0/1 and probabilities (uncalibrated): (N, C). Returns a list of C floats in 0.2..5; 1 for a class that has
    but one kind of label.
    """
    temperatures = []
    for y, p in zip(np.asarray(labels, np.float64).T, np.asarray(probabilities, np.float64).T):
        z = logit(p.clip(1e-7, 1 - 1e-7))

        def cross_entropy(log_t, y=y, z=z):
            x = z / np.exp(log_t)
            return (np.logaddexp(0, x) - y * x).mean()

        found = minimize_scalar(cross_entropy, bounds=(-math.log(5), math.log(5)), method="bounded")
        temperatures.append(float(np.exp(found.x)) if 0 < y.mean() < 1 else 1.0)
    return temperatures


def calibrated(probabilities, temperatures):
    """Probabilities (N, C) after dividing their logits by the temperatures (C,)."""
    return expit(logit(np.asarray(probabilities, np.float64).clip(1e-7, 1 - 1e-7)) / np.asarray(temperatures))


def reliability(labels, probabilities, bins=10):
    """Of one class, for each of `bins` equal ranges of the probability: (cells, mean probability, share of positives).

    labels, probabilities (N,). Returns float (bins, 3), the last two NaN where there is no cell.
    """
    y, p = np.asarray(labels, np.float64), np.asarray(probabilities, np.float64)
    place = np.minimum((p * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        sums = (np.bincount(place, values, bins) / count for values in (p, y))
        return np.stack([count, *sums], 1)


def calibration_error(labels, probabilities):
    """Expected calibration error of one class: mean distance of probability and share of positives in `reliability`."""
    count, p, y = reliability(labels, probabilities).T
    return float(np.nansum(count * np.abs(p - y)) / count.sum())


def calibration(labels, probabilities):
    """What of a model's config follows from uncalibrated probabilities of validation cells.

    labels 0/1, probabilities: (N, C). Returns a dict: temperatures, thresholds (`f1_thresholds`) and operating_points.
    """
    temperatures = fit_temperatures(labels, probabilities)
    probabilities = calibrated(probabilities, temperatures)
    thresholds = f1_thresholds(labels, probabilities)
    points = {"f1": thresholds, "recall": recall_thresholds(labels, probabilities)}
    return {"temperatures": temperatures, "thresholds": thresholds, "operating_points": points}


def f1_scores(labels, probabilities, thresholds=0.5):
    """F1 of each class (C,), in 0..1; 0 where nothing is positive and nothing is called so."""
    called = np.asarray(probabilities) >= np.asarray(thresholds)
    labels = np.asarray(labels) > 0.5
    hits, either = (called & labels).sum(0), called.sum(0) + labels.sum(0)
    return 2 * hits / np.maximum(either, 1)


def class_metrics(labels, probabilities, threshold):
    """Precision, recall, F1, confusion counts, average precision and ROC AUC of one class.

    labels (N,), probabilities (N,), threshold (N,) or one for all (their mean is reported). The two ranking figures are
    None where only one kind of label is there.
    """
    y, called = np.asarray(labels) > 0.5, np.asarray(probabilities) >= threshold
    tp, fp, fn = int((y & called).sum()), int((~y & called).sum()), int((y & ~called).sum())
    both = 0 < y.sum() < len(y)
    return {
        "threshold": float(np.mean(threshold)),
        "precision": tp / max(tp + fp, 1),
        "recall": tp / max(tp + fn, 1),
        "f1": 2 * tp / max(2 * tp + fp + fn, 1),
        "average_precision": float(average_precision_score(y, probabilities)) if both else None,
        "roc_auc": float(roc_auc_score(y, probabilities)) if both else None,
        "calibration_error": calibration_error(y, probabilities),
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "tn": len(y) - tp - fp - fn,
    }


def metrics_table(labels, probabilities, thresholds, classes):
    """{class: class_metrics at the threshold, ..., "mean": their plain mean without thresholds and counts}.

    labels, probabilities (N, C); thresholds (C,), or (N, C) where each picture has its own.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    thresholds = np.broadcast_to(thresholds, labels.shape)
    table = {c: class_metrics(labels[:, i], probabilities[:, i], thresholds[:, i]) for i, c in enumerate(classes)}
    mean = {}
    for name in ("precision", "recall", "f1", "average_precision", "roc_auc", "calibration_error"):
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


def step_decay(epoch):
    """Factor of the learning rate: x0.1 at epochs 10, 20, 30, 40 and x0.5 at 60, 80, 100, 130."""
    return 0.1 ** sum(epoch >= e for e in TENTHS) * 0.5 ** sum(epoch >= e for e in HALVES)


def one_cycle(progress, warm_up=0.15):
    """Factor of the learning rate at `progress` (0..1) of a run: linear warm-up, then half a cosine down to 0.

    After Smith and Topin 2018, "Super-convergence"; Loshchilov and Hutter 2017 for the cosine.
    """
    if progress < warm_up:
        return progress / warm_up
    return 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))


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
