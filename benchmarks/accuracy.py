"""The tables of accuracy in doc/results.md, from the committed out-of-fold probabilities.

$ python -m benchmarks.accuracy                      # doc/oof_by_cell.csv and doc/oof_by_module.csv as rows of a table
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.foreign import doubtful
from elcells.data.tables import CLASSES
from elcells.evaluation.metrics import bootstrap_mean_f1, metrics_table
from elcells.files import command

ROOT = Path(__file__).resolve().parent.parent
SPLITS = ("cell", "module")
HEADER = (
    "| cells | F1 crack | F1 inactive | F1 mean | 95 % interval | F1 mean at 0.5 | AP crack | AP inactive | ECE crack "
    "| ECE inactive |\n| --- |" + " ---: |" * 9
)


def read(by):
    """Out-of-fold predictions of a cross-validation of SPLITS, with each cell's module and type."""
    predicted = pd.read_csv(ROOT / "doc" / f"oof_by_{by}.csv", sep=";")
    table = pd.read_csv(ROOT / "data.csv", sep=";")
    return predicted.merge(table[["filename", "type", "module"]], on="filename", how="left", validate="one_to_one")


def arrays(predicted):
    """Labels, probabilities and thresholds of a predicted table, float (N, C) each."""
    labels = predicted[list(CLASSES)]
    probabilities = predicted[[f"p_{c}" for c in CLASSES]]
    thresholds = predicted[[f"threshold_{c}" for c in CLASSES]]
    return labels.to_numpy(float), probabilities.to_numpy(float), thresholds.to_numpy(float)


def line(name, predicted):
    """One row of the table: figures of predicted cells at the thresholds of their folds, the interval over modules."""
    labels, probabilities, thresholds = arrays(predicted)
    figures = metrics_table(labels, probabilities, thresholds, CLASSES)
    figures_at_half = metrics_table(labels, probabilities, 0.5, CLASSES)
    low, high = bootstrap_mean_f1(labels, probabilities, thresholds, predicted["module"])
    cells = [f"{figures[c]['f1']:.3f}" for c in (*CLASSES, "mean")]
    cells.append(f"{low:.3f} to {high:.3f}")
    cells.append(f"{figures_at_half['mean']['f1']:.3f}")
    for figure in ("average_precision", "calibration_error"):
        cells += [f"{figures[c][figure]:.3f}" for c in CLASSES]
    return f"| {name} | {' | '.join(cells)} |"


def lines():
    """All rows: each split as a whole and by type."""
    rows = []
    for by in SPLITS:
        predicted = read(by)
        rows.append(line(f"by {by}: all {len(predicted):,}", predicted))
        rows += [line(f"by {by}: {kind}", part) for kind, part in predicted.groupby("type")]
    return rows


def any_defect(predicted):
    """Share of predicted cells, in 0..1, that are rightly called defective (either label) or not."""
    labels, probabilities, thresholds = arrays(predicted)
    return float(np.mean((probabilities >= thresholds).any(1) == (labels > 0).any(1)))


@command
def main(argv=None):
    """Command line of this file; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(argv)
    print(HEADER, *lines(), sep="\n")
    print()
    for by in SPLITS:
        predicted = read(by)
        print(f"by {by}: {any_defect(predicted):.1%} rightly called defective or not")
        print(f"    unsure or with a wrong call: {doubtful(*arrays(predicted))}")


if __name__ == "__main__":
    raise SystemExit(main())
