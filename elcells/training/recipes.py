"""The recipes of training, and how the learning rate goes."""

import math

# What `trainer.Trainer` takes; doc/results.md has what each part of "fast" (for random weights) and "finetune" (for
# weights from another training) is worth. "classic" is the published recipe.
FAST = {
    "epochs": 16,
    "batch_size": 32,
    "optimizer": "adamw",
    "lr": 0.0014,
    "weight_decay": 0.05,
    "schedule": "cosine",
    "dihedral": True,
    "scale": 0.1,
    "light": 0.2,
    "oversample": 2,
    "synthetic": 0.75,
    "aux_loss": 1.0,
    "freeze_stages": 0,
    "normalise_brightness": True,
    "noise_std": 15.0,
    "epoch_cells": 0,
    "keep_initial": 0.0,
}
CLASSIC = {
    "epochs": 3,
    "batch_size": 16,
    "optimizer": "sgd",
    "lr": 0.01,
    "weight_decay": 1e-4,
    "schedule": "steps",
    "dihedral": False,
    "scale": 0.0,
    "light": 0.0,
    "oversample": 1,
    "synthetic": 0.0,
    "aux_loss": 0.0,
    "freeze_stages": 0,
    "normalise_brightness": False,
    "noise_std": 0.0,
    "epoch_cells": 0,
    "keep_initial": 0.0,
}
FINETUNE = FAST | {"lr": 0.0006, "freeze_stages": 2}
ADAPT = FINETUNE | {"epochs": 6, "lr": 0.0005, "synthetic": 0.0, "epoch_cells": 512, "keep_initial": 0.5}
RECIPES = {"fast": FAST, "finetune": FINETUNE, "adapt": ADAPT, "classic": CLASSIC}
MOMENTUM = 0.9  # of SGD
ENOUGH = 75  # cells of one's own from which on no more than `keep_initial` of the initial weights is kept

TENTHS, HALVES = (10, 20, 30, 40), (60, 80, 100, 130)  # epochs at which the learning rate falls, and to which share


def step_decay(epoch):
    """Factor of the learning rate: x0.1 at epochs 10, 20, 30, 40 and x0.5 at 60, 80, 100, 130."""
    return 0.1 ** sum(epoch >= e for e in TENTHS) * 0.5 ** sum(epoch >= e for e in HALVES)


def warmup_cosine(progress, warm_up=0.15):
    """Factor of the learning rate at `progress` (0..1) of a run: linear warm-up, then half a cosine down to 0.

    Goyal et al. 2017 for the warm-up, Loshchilov and Hutter 2017 for the cosine.
    """
    if progress < warm_up:
        return progress / warm_up
    return 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))


def kept_share(share, own):
    """Share of the initial weights to keep after training with `own` cells of one's own: the fewer, the more.

    share: what is kept where there are ENOUGH; 0 stays 0. With 25 cells half of the weights made a network worse.
    """
    return 1 - (1 - share) * min(1, own / ENOUGH) if share else 0.0
