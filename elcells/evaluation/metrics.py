"""Labels and probabilities in, figures out: F1, average precision, calibration error, bootstrap."""

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

BINS = 10  # of the probability, for calibration
OF_CALLS = ("precision", "recall", "f1")  # figures that need a cell with the label or with the call
DRAWS = 2000  # of the bootstrap


def reliability(labels, probabilities):
    """Of one class, for each of BINS equal ranges of the probability: (cells, mean probability, share of positives).

    labels, probabilities (N,). Returns float (BINS, 3), the last two NaN where there is no cell.
    """
    y = np.asarray(labels, np.float64)
    p = np.asarray(probabilities, np.float64)
    place = np.minimum((p * BINS).astype(int), BINS - 1)
    count = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean_probability = np.bincount(place, p, BINS) / count
        share = np.bincount(place, y, BINS) / count
    return np.stack([count, mean_probability, share], 1)


def calibration_error(labels, probabilities):
    """Expected calibration error of one class: mean distance of probability and share of positives in `reliability`."""
    count, p, y = reliability(labels, probabilities).T
    return float(np.nansum(count * np.abs(p - y)) / count.sum())


def f1_scores(labels, probabilities, thresholds=0.5):
    """F1 of each class (C,), in 0..1; 0 where nothing is positive and nothing is called so."""
    called = np.asarray(probabilities) >= np.asarray(thresholds)
    labels = np.asarray(labels) > 0.5
    hits = (called & labels).sum(0)
    return 2 * hits / np.maximum(called.sum(0) + labels.sum(0), 1)


def class_metrics(labels, probabilities, threshold):
    """Precision, recall, F1, confusion counts, average precision and ROC AUC of one class.

    labels (N,), probabilities (N,), threshold (N,) or one for all (their mean is reported). The two ranking figures are
    None where only one kind of label is there.
    """
    y = np.asarray(labels) > 0.5
    called = np.asarray(probabilities) >= threshold
    tp = int((y & called).sum())
    fp = int((~y & called).sum())
    fn = int((y & ~called).sum())
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

    A class that no cell has and none is called has no part in the means of precision, recall and F1.

    labels, probabilities (N, C); thresholds (C,), or (N, C) where each image has its own.
    """
    labels = np.asarray(labels)
    probabilities = np.asarray(probabilities)
    thresholds = np.broadcast_to(thresholds, labels.shape)
    table = {c: class_metrics(labels[:, i], probabilities[:, i], thresholds[:, i]) for i, c in enumerate(classes)}
    mean = {}
    for name in ("precision", "recall", "f1", "average_precision", "roc_auc", "calibration_error"):
        counted = [m for m in table.values() if name not in OF_CALLS or m["tp"] + m["fp"] + m["fn"]] or table.values()
        values = [m[name] for m in counted if m[name] is not None]
        mean[name] = float(np.mean(values)) if values else None
    return {**table, "mean": mean}


def interval_groups(table):
    """What an interval is drawn from: (the group of each row, a Series of str; "modules" or "cells").

    Cells of a module are alike: they share its make, its history and its photograph. So whole modules are drawn where
    the table's column `module` names at least two; cells without a module count as one each. Modules of two sources or
    series are different even if they have one name.
    """
    cells = table["cell"].astype(str)
    if "module" not in table or table["module"].nunique() < 2:
        return cells, "cells"
    modules = table["module"].astype(str)
    names = modules
    for column in ("series", "source"):
        if column in table:
            names = table[column].astype(str) + "|" + names
    return names.where(modules != "", cells), "modules"


def bootstrap_mean_f1(labels, probabilities, thresholds, groups):
    """95 % interval (low, high) of the mean F1 over classes, from drawing groups (cells, modules) with replacement.

    labels, probabilities (N, C); groups (N,). The percentile bootstrap of Efron (1979). A class that no drawn cell has
    and none is called has no part in the mean of that draw.
    """
    y = np.asarray(labels) > 0.5
    called = np.asarray(probabilities) >= np.asarray(thresholds)
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    hits = np.zeros((len(names), y.shape[1]))
    labelled_and_called = np.zeros_like(hits)
    np.add.at(hits, member, y & called)
    np.add.at(labelled_and_called, member, y.astype(int) + called)
    weights = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), DRAWS)
    drawn = weights @ labelled_and_called
    f1 = 2 * (weights @ hits) / np.maximum(drawn, 1)
    mean_f1 = f1.sum(1) / np.maximum((drawn > 0).sum(1), 1)
    low, high = np.percentile(mean_f1, [2.5, 97.5])
    return float(low), float(high)
