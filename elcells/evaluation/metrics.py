"""Labels and probabilities in, figures out: thresholds, temperatures, F1, calibration error, bootstrap."""

import math

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from sklearn.metrics import average_precision_score, roc_auc_score


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

    labels, probabilities (N, C); thresholds (C,), or (N, C) where each image has its own.
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
