"""The table of accuracy in doc/results.md, from the committed out-of-fold probabilities.

$ python -m doc.accuracy                      # doc/oof_by_cell.csv and doc/oof_by_module.csv as rows of a table
$ python -m doc.accuracy doc/no_noise         # the same of the two files in another folder
$ python -m doc.accuracy doc doc/no_noise     # of the mean of the logits of both, at 0.5
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit, logit

ROOT = Path(__file__).resolve().parent.parent
DOC = ROOT / "doc"
from elcells.metrics import bootstrap_mean_f1, metrics_table
from elcells.pictures import CLASSES

HEADER = (
    "| cells | F1 crack | F1 inactive | F1 mean | 95 % interval | F1 mean at 0.5 | AP crack | AP inactive | ECE crack "
    "| ECE inactive |\n| --- |" + " ---: |" * 9
)


def read(by, *folders):
    """Out-of-fold predictions of a cross-validation by "cell" or "module", with each cell's module and type.

    Of several folders (doc, if none) the mean of their logits, as `train.py --join` judges; its thresholds are 0.5, as
    those of each fold's validation part are not in the files.
    """
    first, *others = (pd.read_csv(Path(folder) / f"oof_by_{by}.csv", sep=";") for folder in folders or [DOC])
    for c in CLASSES if others else ():
        parts = [first[["filename", f"p_{c}"]].merge(other, on="filename")[f"p_{c}_y"] for other in others]
        mean = np.mean([logit(p.clip(1e-6, 1 - 1e-6)) for p in (first[f"p_{c}"], *parts)], axis=0)
        first[f"p_{c}"], first[f"threshold_{c}"] = expit(mean), 0.5
    table = pd.read_csv(ROOT / "data.csv", sep=";")
    return first.merge(table[["filename", "type", "module"]], on="filename", how="left", validate="one_to_one")


def splits(*folders):
    """The splits, of "cell" and "module", of which all folders (doc, if none) have the predictions."""
    there = {by: [Path(folder) / f"oof_by_{by}.csv" for folder in folders or [DOC]] for by in ("cell", "module")}
    return [by for by, files in there.items() if all(file.exists() for file in files)]


def line(name, judged, by):
    """One row of the table: figures of judged cells at the thresholds of their folds, the interval over groups."""
    y, p, thresholds = (judged[[f"{k}{c}" for c in CLASSES]].to_numpy(float) for k in ("", "p_", "threshold_"))
    m, half = metrics_table(y, p, thresholds, CLASSES), metrics_table(y, p, 0.5, CLASSES)
    low, high = bootstrap_mean_f1(y, p, thresholds, judged["module" if by == "module" else "filename"])
    figures = [m[c]["f1"] for c in (*CLASSES, "mean")] + [f"{low:.3f} to {high:.3f}", half["mean"]["f1"]]
    figures += [m[c][k] for k in ("average_precision", "calibration_error") for c in CLASSES]
    return f"| {name} | " + " | ".join(f if isinstance(f, str) else f"{f:.3f}" for f in figures) + " |"


def lines(*folders):
    """All rows: each split as a whole and by type."""
    rows = []
    for by in splits(*folders):
        judged = read(by, *folders)
        rows.append(line(f"by {by}: all {len(judged):,}", judged, by))
        rows += [line(f"by {by}: {kind}", part, by) for kind, part in judged.groupby("type")]
    return rows


def any_defect(by, *folders):
    """Share of cells whose being sound or not (either label) is told right, in 0..1."""
    judged = read(by, *folders)
    y, p, thresholds = (judged[[f"{k}{c}" for c in CLASSES]].to_numpy(float) for k in ("", "p_", "threshold_"))
    return float(np.mean((p >= thresholds).any(1) == (y > 0).any(1)))


if __name__ == "__main__":
    print("\n".join([HEADER, *lines(*sys.argv[1:])]))
    told = (f"{any_defect(by, *sys.argv[1:]):.1%} by {by}" for by in splits(*sys.argv[1:]))
    print("\nSound or not, told right: " + ", ".join(told))
