"""What a run says: its epochs as lines, the report on a test part as JSON, table and CSV; TensorBoard."""

import json
import platform

import numpy as np
import torch

from elcells.data.tables import in_order
from elcells.evaluation.metrics import bootstrap_mean_f1, metrics_table
from elcells.evaluation.plots import plot_errors, plot_precision_recall, plot_reliability
from elcells.files import InputError, atomic_path


def progress_line(trainer):
    """The newest epoch as one line aligned under progress_header."""
    row = trainer.history[-1]
    left = round(trainer.seconds_left())
    scores = [row[f"f1_{c}"] for c in (*trainer.model.classes, "mean")]
    return (
        f"{row['epoch']:5}  {row['train_loss']:10.4f}  {row['val_loss']:8.4f}  "
        + "  ".join(f"{v:{max(len(c) + 3, 5)}.3f}" for c, v in zip((*trainer.model.classes, "mean"), scores))
        + f"  {row['cells_per_second']:7.1f}  {left // 3600:2}:{left // 60 % 60:02}:{left % 60:02}"
    )


def progress_header(classes):
    """Header of the lines of progress_line."""
    names = "  ".join(f"{'F1 ' + c:>{max(len(c) + 3, 5)}}" for c in (*classes, "mean"))
    return f"epoch  train loss  val loss  {names}  cells/s      left"


def make_report(labels, probabilities, thresholds, rows, classes, by):
    """The figures of a test part as a dict that JSON can hold.

    labels, probabilities: (N, C). thresholds: (C,), or (N, C) where each image has its own. rows: DataFrame of the N
    images. by: what the split kept together.
    """
    thresholds = np.broadcast_to(thresholds, labels.shape)

    def figures(chosen):
        y, p = labels[chosen], probabilities[chosen]
        return {
            "cells": int(rows["cell"][chosen].nunique()),
            "images": int(chosen.sum()),
            "at_threshold": metrics_table(y, p, thresholds[chosen], classes),
            "at_0.5": metrics_table(y, p, np.full(y.shape, 0.5), classes),
        }

    def by_column(name):
        values = sorted(rows[name].unique(), key=in_order) if name in rows else []
        return {str(v): figures((rows[name] == v).to_numpy()) for v in values}

    everything = np.ones(len(rows), bool)
    group = rows["module"] if by == "module" else rows["cell"]
    report = {
        "split_by": by,
        **figures(everything),
        "mean_f1_interval_95": bootstrap_mean_f1(labels, probabilities, thresholds, group),
        "by_source": by_column("source") if rows["source"].nunique() > 1 else {},
        "by_type": by_column("type"),
        "by_module": by_column("module"),
    }
    if by == "row":
        report["leak"] = "variants of these cells were trained on: the figures claim more than new cells will give"
    return report


def number(value, width):
    """A figure with three decimals, right-aligned in `width` characters; a dash for None."""
    return f"{value:{width}.3f}" if value is not None else f"{'-':>{width}}"


def report_text(report, name):
    """The report as the table that stands on the screen."""
    low, high = report["mean_f1_interval_95"]
    lines = [
        f"Test part: {report['cells']} cells, {report['images']} images, split by {report['split_by']}, {name}",
        f"{'':18}precision  recall     F1  (at)    F1 at 0.5  av. precision  ROC AUC    ECE    TP   FP   FN    TN",
    ]

    for part, figures in {"": report, **report["by_source"], **report["by_type"]}.items():
        for c, m in figures["at_threshold"].items():
            counts = f"{m['tp']:6}{m['fp']:5}{m['fn']:5}{m['tn']:6}" if "tp" in m else ""
            at = f"({m['threshold']:.2f})" if "threshold" in m else ""
            ranking = number(m["average_precision"], 15) + number(m["roc_auc"], 9) + number(m["calibration_error"], 7)
            lines.append(
                f"{part + ' ' * bool(part) + c:18}{number(m['precision'], 9)}{number(m['recall'], 8)}"
                f"{number(m['f1'], 7)}  {at:6}{number(figures['at_0.5'][c]['f1'], 11)}{ranking}{counts}"
            )
    lines.append(f"Mean F1 {report['at_threshold']['mean']['f1']:.3f}, 95 % interval {low:.3f} to {high:.3f}")
    if "leak" in report:
        lines.append(f"LEAK: {report['leak']}.")
    return "\n".join(lines)


def write_predictions(predicted, classes, path, extra=()):
    """A table with predictions as CSV: file name, extra columns, labels, probabilities, thresholds."""
    transform = ["transform"] if (predicted["transform"] != "").any() else []
    figures = [f"{k}_{c}" for k in ("p", "threshold") for c in classes]
    source = ["source"] if predicted["source"].nunique() > 1 else []
    columns = ["filename", *source, *transform, *extra, *classes, *figures]
    with atomic_path(path) as temporary:
        predicted[columns].to_csv(temporary, sep=";", index=False)


def open_tensorboard(folder, epoch):
    """TensorBoard's writer of a run's course from `epoch` on; InputError where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("TensorBoard is not installed; `pip install tensorboard`") from None
    return SummaryWriter(str(folder), purge_step=epoch + 1)


def write_tensorboard(writer, trainer):
    """The newest epoch's figures, and images that the next one will train on."""
    row = dict(trainer.history[-1])
    epoch = row.pop("epoch")
    for name, value in row.items():
        if value is not None:
            writer.add_scalar(name, value, epoch)
    if trainer.epoch < trainer.epochs:
        images, labels = trainer.examples()
        writer.add_images("examples", images, epoch)
        names = (" and ".join(c for c, y in zip(trainer.model.classes, row) if y) or "neither" for row in labels)
        writer.add_text("labels of the examples", ", ".join(names), epoch)
    writer.flush()


def write_results(predicted, dataset, classes, by, out, prefix, name, more):
    """Report, plots, and the table on the screen, of a predicted test part (or of all cells, out of fold).

    predicted: table with labels, p_... and threshold_... columns. dataset: CellDataset of its rows. by: what the split
    kept together. prefix: of the files' names. name: what predicted, for the table. more: dict to add to the report.
    """
    labels, probabilities, thresholds = (
        predicted[[f"{k}{c}" for c in classes]].to_numpy(np.float64) for k in ("", "p_", "threshold_")
    )
    report = {**make_report(labels, probabilities, thresholds, predicted, classes, by), **more}
    with atomic_path(out / "checkpoints" / f"{prefix}report.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1))
    plots = out / "plots"
    plot_precision_recall(labels, probabilities, thresholds, classes, plots / f"{prefix}precision_recall.png")
    plot_reliability(labels, probabilities, classes, plots / f"{prefix}reliability.png")
    plot_errors(labels, probabilities, thresholds, dataset, classes, plots / f"{prefix}errors.png")
    print(report_text(report, name))
    print(f"\n{out / 'checkpoints' / f'{prefix}report.json'} has all figures, {plots} the images.")


def about(model, checkpoint):
    """What a report says of the network and its training, as a dict."""
    keys = ("network", "width", "classes", "mean", "std", "image_size", "normalise_brightness", "tta")
    return {
        "initial_weights": model.config["initial_weights"],
        "best_epoch": checkpoint.get("epoch"),
        "config": {k: model.config[k] for k in keys},
        "settings": checkpoint.get("settings", {}),
        "history": checkpoint.get("history", []),
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "versions": checkpoint.get("versions", {}),
    }
