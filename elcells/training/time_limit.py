"""How many epochs fit into a time (`train.py --max-time`)."""

import time

import numpy as np
import torch

from elcells.distributed import sum_over_processes, world
from elcells.training.graphs import undone

TRAINING_SHARE = 0.9  # of the time; the rest is for evaluation and checkpoints
TIMED_STEPS = 5  # after one to warm up


def epochs_within(trainer, seconds):
    """How many epochs (1 or more) of a Trainer's run that has not begun fit into so many seconds.

    A few steps are timed, and undone.
    """
    rows = np.arange(min(trainer.recipe.batch_size, len(trainer.train_set)))
    times = []
    trainer.training_mode()
    with trainer.fast_layers(), undone(trainer.trained, trainer.optimizer):
        for _ in range(1 + TIMED_STEPS):
            started = time.monotonic()
            loss = trainer.run_step(trainer.batches.of_step(rows, epoch=0, step=0), seed=0)
            float(loss)  # waits for a GPU
            times.append(time.monotonic() - started)
    median = torch.tensor(float(np.median(times[1:])), device=trainer.device)
    seconds_per_step = sum_over_processes(median).item() / world()
    return max(1, int(TRAINING_SHARE * seconds / (trainer.batches.steps * seconds_per_step)))
