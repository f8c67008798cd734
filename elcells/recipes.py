"""The recipes of training, and how the learning rate goes."""

import math

TENTHS, HALVES = (10, 20, 30, 40), (60, 80, 100, 130)  # epochs at which the learning rate falls, and to which share
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
