"""How near a probability is to its threshold, and further looks at the cells that are near to one."""

import numpy as np
from scipy.special import expit, logit

UNSURE = 1.0  # a probability nearer to its threshold, in logits, may fall on either side
# A cell near a threshold is looked at again, turned by these quarters to the left: first by one, then, where the mean
# of both is still near one, by two and three. How near in logits, never more at the second step than at the first, for
# cells of usual and of small size: see doc/judging.md.
FURTHER_TURNS = (1,), (2, 3)
TURNS = (0, *FURTHER_TURNS[0], *FURTHER_TURNS[1])
NEAR = 2.5, 1.0
NEAR_SMALL = 4.0, 3.0


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


def turned(image, quarters):
    """An image (1, S, S) turned to the left by each number of quarters: (len(quarters), 1, S, S)."""
    return np.stack([np.rot90(image, number, (-2, -1)) for number in quarters])


def turned_back(values, quarters):
    """Values (..., h, w) of an image that was turned by so many quarters to the left, as they lie upright."""
    return np.rot90(values, -quarters, (-2, -1))


def mean_of_turns(probabilities):
    """Probabilities, float32 (C,), by the mean of a cell's logits in several turns; probabilities: (turns, C).

    A network sees a faint crack in one turn and not in another; the mean depends less on how the cell lies.
    """
    return expit(logits_of(probabilities).mean(0)).astype(np.float32)
