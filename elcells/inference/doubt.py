"""How near a probability is to its threshold, and a second look at the cells that are near to one."""

import numpy as np
from scipy.special import expit, logit

UNSURE = 1.0  # a probability nearer to its threshold, in logits, may fall on either side
NEAR = 2.0  # a cell with a probability nearer to its threshold is judged in all four turns


def logits_of(probabilities):
    """Logits of probabilities, which are kept within 0.0001 and 0.9999."""
    return logit(np.clip(np.asarray(probabilities, float), 1e-4, 1 - 1e-4))


def doubt(probabilities, thresholds):
    """How far each cell is from another call, in logits (N,).

    probabilities: (N, C). thresholds: (C,), or (N, C) where each cell has its own.
    """
    return np.abs(logits_of(probabilities) - logits_of(thresholds)).min(1)


def unsure_bounds(thresholds):
    """The probabilities between which a call is UNSURE, (low, high), float (C,) each; thresholds: (C,)."""
    middle = logits_of(thresholds)
    return expit(middle - UNSURE), expit(middle + UNSURE)


def other_turns(image):
    """The other three turns of an image (1, S, S), by one to three quarters to the left: (3, 1, S, S)."""
    return np.stack([np.rot90(image, quarters, (-2, -1)) for quarters in (1, 2, 3)])


def turned_back(values, quarters):
    """Values (..., h, w) of an image that was turned by so many quarters to the left, as they lie upright."""
    return np.rot90(values, -quarters, (-2, -1))


def mean_of_turns(probabilities):
    """Probabilities, float32 (C,), by the mean of a cell's logits in all four turns; probabilities: (4, C).

    A network sees a faint crack in one turn and not in another; the mean depends less on how the cell lies.
    """
    return expit(logits_of(probabilities).mean(0)).astype(np.float32)
