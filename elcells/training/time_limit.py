"""How much training fits into a time (`train.py --max-time`)."""

import time
from dataclasses import replace

import numpy as np
import torch

from elcells.distributed import sum_over_processes, world
from elcells.training.graphs import undone
from elcells.training.line_training import BATCH as LINE_BATCH

TRAINING_SHARE = 0.9  # of the time; the rest is for evaluation and checkpoints
TIMED_STEPS = 5  # after one to warm up
LINE_COST = 0.6  # time of a cell in the decoder's training, of that in the network's
LINE_SHARE = 0.25  # of the time at most for the decoder of crack lines


def recipe_within(trainer, seconds):
    """The Recipe of a Trainer's run that has not begun, with as many epochs (1 or more) as fit into so many seconds.

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
    recipe = trainer.recipe
    seconds *= TRAINING_SHARE
    seconds_per_line_step = LINE_COST * seconds_per_step * LINE_BATCH / recipe.batch_size
    wanted = recipe.line_steps if trainer.trains_lines else 0
    line_steps = min(wanted, int(LINE_SHARE * seconds / seconds_per_line_step))
    seconds -= line_steps * seconds_per_line_step
    epochs = max(1, int(seconds / (trainer.batches.steps * seconds_per_step)))
    return replace(recipe, epochs=epochs, line_steps=line_steps)
