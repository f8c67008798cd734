"""Plots of a run: losses, precision and recall, reliability, the worst errors."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve

from elcells.colours import class_colour
from elcells.evaluation.metrics import calibration_error, metrics_table, reliability
from elcells.files import atomic_path, printable

MOST_ERRORS = 8  # shown of a kind


def save(figure, path, dpi=120):
    """Write a figure as PNG, complete or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")


def plot_losses(history, classes, path):
    """Train and validation loss (log scale) and F1 of each class against the epoch."""
    table = pd.DataFrame(history)
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(table["epoch"], table["train_loss"], "o-", label="training", color="black", markersize=4)
    left.plot(table["epoch"], table["val_loss"], "o-", label="validation", color="gray", markersize=4)
    left.set(xlabel="epoch", ylabel="binary cross entropy (log scale)", yscale="log", title="Loss")
    for i, name in enumerate(classes):
        right.plot(table["epoch"], table[f"f1_{name}"], "o-", label=name, color=class_colour(i), markersize=4)
    right.plot(table["epoch"], table["f1_mean"], "o--", label="mean", color="black", markersize=4)
    right.set(xlabel="epoch", ylabel="F1 at 0.5", ylim=(0, 1.02), title="F1 on the validation part")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    save(figure, path)


def plot_precision_recall(labels, probabilities, thresholds, classes, path):
    """Precision against recall of each class on the test part, with the thresholds in use marked."""
    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axes = figure.subplots()
    table = metrics_table(labels, probabilities, thresholds, classes)
    for i, name in enumerate(classes):
        if not 0 < labels[:, i].sum() < len(labels):
            continue
        figures = table[name]
        precision, recall, _ = precision_recall_curve(labels[:, i], probabilities[:, i])
        label = f"{name}: {figures['average_precision']:.3f}"
        axes.step(recall, precision, where="post", color=class_colour(i), label=label)
        label = f"threshold {figures['threshold']:.2f}"
        axes.plot(figures["recall"], figures["precision"], "o", color=class_colour(i), label=label)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set_title("Test part: precision and recall (average precision)")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    save(figure, path)


def plot_reliability(labels, probabilities, classes, path):
    """Share of positives in each tenth of the probability, and how many cells it has, for each class."""
    figure = Figure(figsize=(5 * len(classes), 5), layout="constrained")
    grid = figure.subplots(2, len(classes), squeeze=False, height_ratios=(3, 1), sharex=True)
    for i, name in enumerate(classes):
        above, below = grid[:, i]
        count, probability, share = reliability(labels[:, i], probabilities[:, i]).T
        error = calibration_error(labels[:, i], probabilities[:, i])
        above.plot([0, 1], [0, 1], color="gray", linestyle="--", label="perfect")
        above.plot(probability, share, "o-", color=class_colour(i), label="measured")
        above.set(ylabel="share of positives", xlim=(0, 1), ylim=(0, 1.02))
        above.set_title(f"{name}: expected calibration error {error:.3f}")
        above.grid(alpha=0.3)
        above.legend(loc="upper left")
        centres = (np.arange(len(count)) + 0.5) / len(count)
        below.bar(centres, count, 0.9 / len(count), color=class_colour(i))
        below.set(xlabel="probability", ylabel="cells (log scale)", yscale="log")
    save(figure, path)


def plot_errors(labels, probabilities, thresholds, dataset, classes, path):
    """Contact sheet: per class the worst misses and the worst false alarms at its threshold, the surest first."""
    thresholds = np.asarray(thresholds)
    lines = []  # title, rows of the data set, probabilities of the class
    for i, name in enumerate(classes):
        p = probabilities[:, i]
        is_positive = labels[:, i] > 0.5
        is_called = p >= thresholds[..., i]
        lowest_first = np.argsort(p, kind="stable")
        highest_first = np.argsort(-p, kind="stable")
        missed = lowest_first[(is_positive & ~is_called)[lowest_first]]
        alarms = highest_first[(is_called & ~is_positive)[highest_first]]
        lines.append((f"{name}: missed\n{len(missed)} of {is_positive.sum()}", missed, p))
        lines.append((f"{name}: false alarm\n{len(alarms)} of {(~is_positive).sum()}", alarms, p))
    columns = max(2, min(MOST_ERRORS, max(len(rows) for _, rows, _ in lines)))
    figure = Figure(figsize=(1.7 * columns + 0.6, 2 * len(lines) + 0.5))
    grid = figure.subplots(len(lines), columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for panels, (title, rows, p) in zip(grid, lines):
        panels[0].text(-0.1, 0.5, title, transform=panels[0].transAxes, rotation=90, ha="right", va="center")
        for axes, row in zip(panels, rows[:columns]):
            axes.imshow(dataset.batch([row])[0][0, 0].numpy(), cmap="gray", vmin=0, vmax=255)
            name = printable(dataset.table["path"][row].stem)
            axes.set_title(f"{name}  {p[row]:.2f}", fontsize=9, parse_math=False)
    figure.suptitle("The surest errors, with the network's probability")
    figure.tight_layout(rect=(0.03, 0, 1, 0.99))
    save(figure, path)
