"""Temperatures and thresholds: what turns a network's logits into probabilities, and probabilities into calls."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

from elcells.files import InputError

HIGHEST_TEMPERATURE = 5.0  # the lowest is its inverse
RECALL = 0.95  # of the operating point "recall"


def fit_temperature(labels, probabilities):
    """The temperature of one class that minimises the cross entropy (Guo et al. 2017).

    labels (0/1) and uncalibrated probabilities: (N,). Returns a float in 0.2..5; 1 where all labels are the same.
    """
    from scipy.optimize import minimize_scalar  # programs that only predict need not load it

    y = np.asarray(labels, np.float64)
    z = logit(np.asarray(probabilities, np.float64).clip(1e-7, 1 - 1e-7))
    if not 0 < y.mean() < 1:
        return 1.0

    def cross_entropy(log_temperature):
        x = z / np.exp(log_temperature)
        return (np.logaddexp(0, x) - y * x).mean()

    bound = math.log(HIGHEST_TEMPERATURE)
    best = minimize_scalar(cross_entropy, bounds=(-bound, bound), method="bounded")
    return float(np.exp(best.x))


def calibrated(probabilities, temperature):
    """Probabilities (float64) after dividing their logits by the temperature."""
    return expit(logit(np.asarray(probabilities, np.float64).clip(1e-7, 1 - 1e-7)) / temperature)


def expected_f1_threshold(probabilities):
    """The threshold of the highest F1 that one class's calibrated probabilities (N,) predict (Lipton et al. 2014).

    The labels are not used: with a few dozen positives the measured F1 is so rough a function of the threshold that its
    highest point is chance, and costs 0.014 of F1 on other cells. Returns a float in the middle of the gap below the
    last cell that is called positive.
    """
    p = np.append(np.sort(np.asarray(probabilities, np.float64))[::-1], 0)
    expected = 2 * np.cumsum(p[:-1]) / (np.arange(1, len(p)) + p.sum())
    best = np.argmax(expected)
    return float((p[best] + p[best + 1]) / 2)


def recall_threshold(labels, probabilities):
    """The highest threshold of one class that reaches RECALL; it needs at least one positive.

    labels (0/1) and probabilities: (N,). Returns a float in the middle of the gap below the last positive it keeps.
    """
    p = np.asarray(probabilities, np.float64)
    positives = np.sort(p[np.asarray(labels) > 0.5])
    lowest = positives[int((1 - RECALL) * len(positives) + 1e-9)]
    return float((lowest + p[p < lowest].max(initial=0)) / 2)


def choose_thresholds(operating_points, point):
    """The entry of an operating point in a dict; InputError, listing the points, for another name."""
    if point not in operating_points:
        raise InputError(f"no operating point {point!r}, the network has {', '.join(operating_points)}")
    return operating_points[point]


@dataclass(frozen=True)
class Calibration:
    """What turns logits into probabilities and calls.

    temperatures: one float per class, by which logits are divided.
    operating_points: dict of name -> one threshold per class. A cell is positive from its threshold on. "f1" is the
        usual point, "recall" misses no more than 5 % of the positives and is never higher.
    """

    temperatures: tuple
    operating_points: dict

    def thresholds(self, point="f1"):
        """The thresholds of an operating point, a tuple of floats; InputError, listing the points, for another name."""
        return choose_thresholds(self.operating_points, point)

    @classmethod
    def none(cls, count):
        """For an uncalibrated network of `count` classes: temperature 1, threshold 0.5."""
        return cls((1.0,) * count, {"f1": (0.5,) * count})

    @classmethod
    def fit(cls, labels, probabilities, lower=0.0):
        """From the labels (0/1) and uncalibrated probabilities of validation cells, (N, C) each.

        lower: logits by which the thresholds lie below those for these cells.
        A class without positives has the threshold 0.5, before it is lowered.
        """
        temperatures = []
        best_f1 = []
        high_recall = []
        for y, uncalibrated in zip(np.asarray(labels).T, np.asarray(probabilities, np.float64).T):
            temperature = fit_temperature(y, uncalibrated)
            p = calibrated(uncalibrated, temperature)
            temperatures.append(temperature)
            f1 = recall = 0.5
            if (y > 0.5).any():
                f1 = expected_f1_threshold(p)
                recall = min(recall_threshold(y, p), f1)
            best_f1.append(float(expit(logit(f1) - lower)))
            high_recall.append(float(expit(logit(recall) - lower)))
        return cls(tuple(temperatures), {"f1": tuple(best_f1), "recall": tuple(high_recall)})
