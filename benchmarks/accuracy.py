"""The tables of accuracy in doc/results.md, from the committed out-of-fold probabilities.

$ python -m benchmarks.accuracy                      # doc/oof_by_cell.csv and doc/oof_by_module.csv as rows of a table
$ python -m benchmarks.accuracy doc/tta              # the same of the two files in another folder
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.foreign import doubtful
from elcells.data.tables import CLASSES
from elcells.evaluation.metrics import bootstrap_mean_f1, metrics_table

ROOT = Path(__file__).resolve().parent.parent
SPLITS = {"cell": "by cell", "module": "by module", "module_seed_1": "by module, seed 1"}
HEADER = (
    "| cells | F1 crack | F1 inactive | F1 mean | 95 % interval | F1 mean at 0.5 | AP crack | AP inactive | ECE crack "
    "| ECE inactive |\n| --- |" + " ---: |" * 9
)


def splits(folder):
    """The names in SPLITS of which a folder has out-of-fold predictions."""
    return [by for by in SPLITS if (Path(folder) / f"oof_by_{by}.csv").exists()]


def read(by, folder):
    """Out-of-fold predictions of a cross-validation of SPLITS, with each cell's module and type."""
    predicted = pd.read_csv(Path(folder) / f"oof_by_{by}.csv", sep=";")
    table = pd.read_csv(ROOT / "data.csv", sep=";")
    return predicted.merge(table[["filename", "type", "module"]], on="filename", how="left", validate="one_to_one")


def arrays(predicted):
    """Labels, probabilities and thresholds of a predicted table, float (N, C) each."""
    return (predicted[[f"{k}{c}" for c in CLASSES]].to_numpy(float) for k in ("", "p_", "threshold_"))


def line(name, predicted, by):
    """One row of the table: figures of predicted cells at the thresholds of their folds, the interval over groups."""
    y, p, thresholds = arrays(predicted)
    m, half = metrics_table(y, p, thresholds, CLASSES), metrics_table(y, p, 0.5, CLASSES)
    low, high = bootstrap_mean_f1(y, p, thresholds, predicted["filename" if by == "cell" else "module"])
    figures = [m[c]["f1"] for c in (*CLASSES, "mean")] + [f"{low:.3f} to {high:.3f}", half["mean"]["f1"]]
    figures += [m[c][k] for k in ("average_precision", "calibration_error") for c in CLASSES]
    return f"| {name} | " + " | ".join(f if isinstance(f, str) else f"{f:.3f}" for f in figures) + " |"


def lines(folder):
    """All rows: each split as a whole and, for seed 0, by type."""
    rows = []
    for by in splits(folder):
        predicted = read(by, folder)
        rows.append(line(f"{SPLITS[by]}: all {len(predicted):,}", predicted, by))
        if by in ("cell", "module"):
            rows += [line(f"{SPLITS[by]}: {kind}", part, by) for kind, part in predicted.groupby("type")]
    return rows


def any_defect(by, folder):
    """Share of cells whose being defect-free or not (either label) is told right, in 0..1."""
    y, p, thresholds = arrays(read(by, folder))
    return float(np.mean((p >= thresholds).any(1) == (y > 0).any(1)))


if __name__ == "__main__":
    chosen = sys.argv[1] if len(sys.argv) > 1 else ROOT / "doc"
    print("\n".join([HEADER, *lines(chosen)]))
    told = (f"{any_defect(by, chosen):.1%} {SPLITS[by]}" for by in splits(chosen))
    print("\nDefect-free or not, told right: " + ", ".join(told))
    for by in splits(chosen):
        print(f"Unsure or with a wrong call, {SPLITS[by]}: {doubtful(*arrays(read(by, chosen)))}")
