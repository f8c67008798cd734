"""How near a probability is to its threshold, and a second look at the cells that are near to one."""

import numpy as np
from scipy.special import expit, logit

UNSURE = 1.0  # a probability nearer to its threshold, in logits, may fall on either side
TURN = 2.0  # a cell with a probability nearer to its threshold is judged in all four turns


def logits_of(probabilities):
    """Logits of probabilities, which are kept off 0 and 1."""
    return logit(np.clip(np.asarray(probabilities, float), 1e-4, 1 - 1e-4))


def doubt(probabilities, thresholds):
    """How far each cell is from another call, in logits (N,).

    probabilities: (N, C). thresholds: (C,), or (N, C) where each cell has its own.
    """
    return np.abs(logits_of(probabilities) - logits_of(thresholds)).min(1)


def turned(image):
    """The other three turns by quarters of an image (1, S, S): (3, 1, S, S)."""
    return np.stack([np.rot90(image, quarters, (-2, -1)) for quarters in (1, 2, 3)])


def mean_of_turns(upright, others):
    """Probabilities, float32 (C,), by the mean of a cell's logits in all four turns.

    A network sees a faint crack in one turn and not in another; the mean depends less on how the cell lies.
    upright: probabilities (C,). others: probabilities (3, C) of the other turns.
    """
    return expit(logits_of([upright, *others]).mean(0)).astype(np.float32)
