"""Images of a run: losses, precision and recall, reliability, the worst errors."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve

from elcells.evaluation.metrics import calibration_error, metrics_table, reliability
from elcells.files import atomic_path, printable

# Okabe and Ito's, safe for the colour-blind
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def save(figure, path, dpi=120):
    """Write a figure as PNG, complete or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")


def plot_losses(history, classes, path):
    """Train and validation loss (log scale) and F1 of each class against the epoch."""
    table = pd.DataFrame(history)
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, label, colour in (("train_loss", "training", COLOURS[0]), ("val_loss", "validation", COLOURS[1])):
        left.plot(table["epoch"], table[name], "o-", label=label, color=colour, markersize=4)
    left.set(xlabel="epoch", ylabel="binary cross entropy", yscale="log", title="Loss")
    for i, name in enumerate((*classes, "mean")):
        style = "o--" if name == "mean" else "o-"
        right.plot(table["epoch"], table[f"f1_{name}"], style, label=name, color=COLOURS[i % 7], markersize=4)
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
        m, colour = table[name], COLOURS[i % 7]
        precision, recall, _ = precision_recall_curve(labels[:, i], probabilities[:, i])
        axes.step(recall, precision, where="post", color=colour, label=f"{name}: {m['average_precision']:.3f}")
        axes.plot(m["recall"], m["precision"], "o", color=colour, label=f"threshold {m['threshold']:.2f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set_title("Test part: precision and recall (average precision)")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    save(figure, path)


def plot_reliability(labels, probabilities, classes, path):
    """Share of positives against the probability, in tenths, of each class, with how many cells each tenth has."""
    figure = Figure(figsize=(5 * len(classes), 5), layout="constrained")
    grid = figure.subplots(2, len(classes), squeeze=False, height_ratios=(3, 1), sharex=True)
    for i, (name, (above, below)) in enumerate(zip(classes, grid.T)):
        count, p, share = reliability(labels[:, i], probabilities[:, i]).T
        error = calibration_error(labels[:, i], probabilities[:, i])
        above.plot([0, 1], [0, 1], color="gray", linestyle="--", label="perfect")
        above.plot(p, share, "o-", color=COLOURS[i % 7], label="measured")
        above.set(ylabel="share of positives", xlim=(0, 1), ylim=(0, 1.02))
        above.set_title(f"{name}: expected calibration error {error:.3f}")
        above.grid(alpha=0.3)
        above.legend(loc="upper left")
        below.bar((np.arange(len(count)) + 0.5) / len(count), count, 0.9 / len(count), color=COLOURS[i % 7])
        below.set(xlabel="probability", ylabel="cells", yscale="log")
    save(figure, path)


def plot_errors(labels, probabilities, thresholds, dataset, classes, path, columns=8):
    """Contact sheet: per class the worst misses and the worst false alarms at its threshold, most certain first."""
    kinds = []
    for i, name in enumerate(classes):
        y, p, threshold = labels[:, i] > 0.5, probabilities[:, i], np.broadcast_to(thresholds, labels.shape)[:, i]
        for kind, wrong, order in (("missed", y & (p < threshold), p), ("false alarm", ~y & (p >= threshold), -p)):
            rows = np.flatnonzero(wrong)
            rows = rows[np.argsort(order[rows], kind="stable")]
            kinds.append((f"{name}: {kind}", f"{len(rows)} of {y.sum() if kind == 'missed' else (~y).sum()}", rows, p))
    columns = max(2, min(columns, max(len(rows) for _, _, rows, _ in kinds)))
    figure = Figure(figsize=(1.7 * columns + 0.6, 2 * len(kinds) + 0.5))
    grid = figure.subplots(len(kinds), columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for line, (title, count, rows, p) in zip(grid, kinds):
        line[0].text(-0.1, 0.5, f"{title}\n{count}", transform=line[0].transAxes, rotation=90, ha="right", va="center")
        for axes, row in zip(line, rows[:columns]):
            axes.imshow(dataset.batch([row])[0][0, 0].numpy(), cmap="gray", vmin=0, vmax=255)
            name = printable(dataset.table["path"][row].stem)
            axes.set_title(f"{name}  {p[row]:.2f}", fontsize=9, parse_math=False)
    figure.suptitle("Errors on the test part, the surest first, with the network's probability")
    figure.tight_layout(rect=(0.03, 0, 1, 0.99))
    save(figure, path)
