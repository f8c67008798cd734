"""The report on a test part: as JSON, as a table on the screen, as CSV, and as plots."""

import json
import platform
from dataclasses import asdict

import numpy as np
import torch

from elcells.data.tables import in_order
from elcells.evaluation.metrics import bootstrap_mean_f1, interval_groups, metrics_table
from elcells.evaluation.plots import plot_errors, plot_precision_recall, plot_reliability
from elcells.files import atomic_path

TOO_GOOD = "the figures claim more than new cells will give"


def write_results(predicted, dataset, classes, by, out, title, description, prefix=""):
    """Report, plots, and the table on the screen, of a predicted test part (or of all cells, out of fold).

    predicted: table with labels, p_... and threshold_... columns (`add_predictions`). dataset: CellDataset of its rows.
    by: what the split kept together. out: folder that gets checkpoints/ and plots/. title: of the table on the screen.
    description: dict to add to the report (`describe_run`). prefix: of the files' names.
    """
    labels = predicted[list(classes)].to_numpy(np.float64)
    probabilities = predicted[[f"p_{c}" for c in classes]].to_numpy(np.float64)
    thresholds = predicted[[f"threshold_{c}" for c in classes]].to_numpy(np.float64)
    report = make_report(labels, probabilities, thresholds, predicted, classes, by) | description
    path = out / "checkpoints" / f"{prefix}report.json"
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(report, indent=1), encoding="utf-8")
    plots = out / "plots"
    plot_precision_recall(labels, probabilities, thresholds, classes, plots / f"{prefix}precision_recall.png")
    plot_reliability(labels, probabilities, classes, plots / f"{prefix}reliability.png")
    plot_errors(labels, probabilities, thresholds, dataset, classes, plots / f"{prefix}errors.png")
    print(report_text(report, title))
    print(f"\nFigures are in {path}, plots in {plots}.")


def describe_run(model, checkpoint, job, leak=""):
    """Description of the network and its training for a report, a dict that JSON can hold.

    job: with the operating point and symmetries of the report. leak: which of the cells were trained on, a clause
    (`contamination`).
    """
    return {
        "initial_weights": model.metadata.initial_weights,
        "best_epoch": checkpoint.get("epoch"),
        "config": asdict(model.metadata),
        "settings": checkpoint.get("job", {})
        | checkpoint.get("recipe", {})
        | {"operating_point": job.operating_point, "tta": job.tta},
        "history": checkpoint.get("history", []),
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "versions": checkpoint.get("versions", {}),
        **({"leak": f"{leak}: {TOO_GOOD}"} if leak else {}),
    }


def make_report(labels, probabilities, thresholds, table, classes, by):
    """The figures of a test part, a dict that JSON can hold.

    labels, probabilities: (N, C). thresholds: (C,), or (N, C) where each image has its own. table: DataFrame of the N
    images. by: what the split kept together.
    """
    thresholds = np.broadcast_to(thresholds, labels.shape)

    def figures(chosen):
        y = labels[chosen]
        p = probabilities[chosen]
        return {
            "cells": int(table["cell"][chosen].nunique()),
            "images": int(chosen.sum()),
            "at_threshold": metrics_table(y, p, thresholds[chosen], classes),
            "at_0.5": metrics_table(y, p, 0.5, classes),
        }

    def figures_by(column):
        values = sorted(table[column].unique(), key=in_order) if column in table else []
        return {str(v): figures((table[column] == v).to_numpy()) for v in values}

    groups, unit = interval_groups(table)
    report = {
        "split_by": by,
        **figures(np.ones(len(table), bool)),
        "mean_f1_interval_95": bootstrap_mean_f1(labels, probabilities, thresholds, groups),
        "interval_draws": unit,
        "by_source": figures_by("source") if table["source"].nunique() > 1 else {},
        "by_type": figures_by("type"),
        "by_module": figures_by("module"),
    }
    if by == "row":
        report["leak"] = f"variants of these cells were trained on: {TOO_GOOD}"
    return report


def number(value, width):
    """A figure with three decimals, right-aligned in `width` characters; a dash for None."""
    return f"{value:{width}.3f}" if value is not None else f"{'-':>{width}}"


def report_text(report, title):
    """The report as the table that stands on the screen."""
    lines = [
        f"Test part: {report['cells']} cells, {report['images']} images, split by {report['split_by']}, {title}",
        f"{'':18}precision  recall     F1  (at)    F1 at 0.5  av. precision  ROC AUC    ECE    TP   FP   FN    TN",
    ]
    for part, figures in {"": report, **report["by_source"], **report["by_type"]}.items():
        for name, at_threshold in figures["at_threshold"].items():
            f1_at_half = figures["at_0.5"][name]["f1"]
            lines.append(f"{f'{part} {name}'.strip():18}{figures_as_text(at_threshold, f1_at_half)}")
    low, high = report["mean_f1_interval_95"]
    lines.append(
        f"Mean F1 {report['at_threshold']['mean']['f1']:.3f}, 95 % interval {low:.3f} to {high:.3f} "
        f"(drawing {report['interval_draws']})"
    )
    if "leak" in report:
        lines.append(f"LEAK: {report['leak']}.")
    return "\n".join(lines)


def figures_as_text(figures, f1_at_half):
    """One class's figures, or the mean's, which has no threshold and no counts, as the columns of report_text."""
    threshold = f"({figures['threshold']:.2f})" if "threshold" in figures else ""
    counts = ""
    if "tp" in figures:
        counts = f"{figures['tp']:6}{figures['fp']:5}{figures['fn']:5}{figures['tn']:6}"
    return (
        f"{number(figures['precision'], 9)}{number(figures['recall'], 8)}{number(figures['f1'], 7)}  {threshold:6}"
        f"{number(f1_at_half, 11)}{number(figures['average_precision'], 15)}{number(figures['roc_auc'], 9)}"
        f"{number(figures['calibration_error'], 7)}{counts}"
    )


def write_predictions(predicted, classes, path, extra=()):
    """A table with predictions as CSV: file name, extra columns, labels, probabilities, thresholds."""
    columns = ["filename"]
    if predicted["source"].nunique() > 1:
        columns.append("source")
    if (predicted["transform"] != "").any():
        columns.append("transform")
    columns += [*extra, *classes, *prediction_columns(classes)]
    with atomic_path(path) as temporary:
        predicted[columns].to_csv(temporary, sep=";", index=False)


def prediction_columns(classes):
    """Names of the columns of `add_predictions`."""
    return [f"p_{c}" for c in classes] + [f"threshold_{c}" for c in classes]
