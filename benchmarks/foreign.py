"""Judge networks on labelled cells of other cameras, which no network of this project was trained on.

$ python -m benchmarks.foreign foreign.csv                                    # cells.onnx
$ python -m benchmarks.foreign foreign.csv a/best.ckp b/best.ckp --tta        # checkpoints, over the symmetries
$ python -m benchmarks.foreign foreign.csv --orientations                     # turned and mirrored, for less noise
$ python -m benchmarks.foreign foreign.csv --errors plots/foreign_errors.png --json foreign.json

The table is one of `train.py`, `filename;crack;inactive`. Its column `series` (cells of one site or camera) divides
the figures, its column `module` groups the cells for the intervals. Where the columns `crack_pixels` and `cross_pixels`
say what people outlined, cells with crack lines and cells with nothing but crosses get figures of their own.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

import data
from elcells.data.cache import load_images
from elcells.data.images import symmetries
from elcells.evaluation.metrics import bootstrap_mean_f1, metrics_table
from elcells.evaluation.plots import plot_errors
from elcells.evaluation.results import number
from elcells.files import InputError, atomic_path
from elcells.inference.engines import Engine
from elcells.pages.page import UNSURE, doubt
from predict import SHIPPED, NetworkChoice, open_network

BATCH = 16
LINES = "crack lines"  # this and the next are parts in which every cell has a crack
CROSSES = "crosses only"
MEANS = {  # over the eight orientations: key, name and format
    "f1": ("mean F1", ".3f"),
    "average_precision": ("AP", ".3f"),
    "crosses": ("crosses found", ".3g"),
}


@dataclass(frozen=True)
class Judged:
    """A network and its single predictions of labelled cells.

    table: its column `image` numbers `images`, uint8 (P, 1, S, S). labels, probabilities: (N, C). thresholds: (C,).
    """

    engine: Engine
    thresholds: np.ndarray
    table: pd.DataFrame
    images: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray


def parts_of(table):
    """Parts of a table with figures of their own: {name: rows (N,) bool}; all, then series, then kinds of cracks."""
    parts = {"all": np.ones(len(table), bool)}
    if "series" in table:
        parts |= {s: (table["series"] == s).to_numpy() for s in sorted(table["series"].unique())}
    if {"crack_pixels", "cross_pixels"} <= set(table):
        lines = (table["crack_pixels"] > 0).to_numpy()
        parts |= {LINES: lines, CROSSES: ~lines & (table["cross_pixels"] > 0).to_numpy()}
    return parts


def interval_groups(table):
    """What the intervals are drawn from (Series of str): modules of a series, or cells where no modules are named."""
    names = table["module"].astype(str) if "module" in table else table["cell"]
    return table["series"] + "|" + names if "series" in table else names


def figures_by_part(table, labels, probabilities, thresholds, classes):
    """{part of `parts_of`: its figures} of one network's predictions, dicts that JSON can hold.

    labels, probabilities: (N, C), thresholds (C,). Where all cells have the defect only recall says something.
    """
    figures = {}
    groups = interval_groups(table)
    for name, rows in parts_of(table).items():
        if rows.any():
            interval = bootstrap_mean_f1(labels[rows], probabilities[rows], thresholds, groups[rows])
            scores = metrics_table(labels[rows], probabilities[rows], thresholds, classes)
            figures[name] = {"cells": int(rows.sum()), "mean_f1_interval_95": interval, **scores}
    return figures


def doubtful(labels, probabilities, thresholds):
    """How many cells the report calls unsure, how many have a wrong call, and how many both: dict of counts.

    labels, probabilities: (N, C), thresholds: (C,) or (N, C).
    """
    unsure = doubt(probabilities, thresholds) < UNSURE
    wrong = ((probabilities >= thresholds) != (labels > 0)).any(1)
    return {"unsure": int(unsure.sum()), "wrong": int(wrong.sum()), "both": int((unsure & wrong).sum())}


def as_text(figures, classes):
    """Lines of a table of `figures_by_part`."""
    head = "".join(f"{c:>10}  F1     AP  recall" for c in classes)
    lines = [f"{'':14}cells{head}    mean F1  (95 % interval)     AP    ECE"]
    for name, part in figures.items():
        only_recall = name in (LINES, CROSSES)
        line = f"{name:14}{part['cells']:5}"
        for c in classes:
            scores = part[c]
            positives = scores["tp"] + scores["fn"]
            f1 = scores["f1"] if positives and not only_recall else None
            ap = None if only_recall else scores["average_precision"]
            recall = scores["recall"] if positives and (c == "crack" or not only_recall) else None
            line += f"{positives:7}{number(f1, 7)}{number(ap, 7)}{number(recall, 8)}"
        if not only_recall:
            low, high = part["mean_f1_interval_95"]
            mean = part["mean"]
            line += f"{number(mean['f1'], 11)}  ({low:.3f} to {high:.3f})  "
            line += f"{number(mean['average_precision'], 9)}{number(mean['calibration_error'], 7)}"
        lines.append(line.rstrip())
    return lines


def probabilities_of(engine, images, index):
    """Probabilities (N, C) of the images uint8 (P, 1, S, S) at `index` (N,)."""
    parts = [index[i : i + BATCH] for i in range(0, len(index), BATCH)]
    bar = tqdm(parts, "judging", unit="batch", leave=False, disable=None)
    return np.concatenate([engine(np.ascontiguousarray(images[part])) for part in bar])


def judge_table(path, images, network, tta):
    """The Judged of a network's file and a table's file; images: folder of its file names, or None."""
    engine = open_network(NetworkChoice(network, tta=tta))
    table = data.read_table(path, engine.classes, images)
    pixels, table["image"] = load_images(table, engine.image_size, print)
    labels = table[list(engine.classes)].to_numpy()
    probabilities = probabilities_of(engine, pixels, table["image"].to_numpy())
    return Judged(engine, engine.thresholds(), table, pixels, labels, probabilities)


def in_orientations(judged):
    """Figures of single predictions in each of the eight orientations of all cells: {key of MEANS: [8 numbers]}.

    Their mean tells networks apart better than one orientation, in which a network may be lucky by 0.02.
    """
    engine = judged.engine
    index = judged.table["image"].to_numpy()
    predicted = [judged.probabilities]
    for turned in islice(symmetries(judged.images), 1, None):
        predicted.append(probabilities_of(engine, turned, index))
    means = [metrics_table(judged.labels, p, judged.thresholds, engine.classes)["mean"] for p in predicted]
    figures = {name: [mean[name] for mean in means] for name in ("f1", "average_precision")}
    crosses = parts_of(judged.table).get(CROSSES)
    if "crack" in engine.classes and crosses is not None and crosses.any():
        k = engine.classes.index("crack")
        figures["crosses"] = [int((p[crosses, k] >= judged.thresholds[k]).sum()) for p in predicted]
    return figures


def report_network(path, judged, tta, orientations):
    """Print the figures of one network and return them as a dict that JSON can hold."""
    classes = judged.engine.classes
    predictions = (judged.labels, judged.probabilities, judged.thresholds)
    figures = figures_by_part(judged.table, *predictions, classes)
    print(f"\n{path}{' over the symmetries' if tta else ''}, {judged.engine.name}")
    print(*as_text(figures, classes), sep="\n")
    counts = doubtful(*predictions)
    print(
        f"{counts['wrong']} cells have a wrong call, {counts['both']} of them among the {counts['unsure']} "
        f"({counts['unsure'] / len(judged.labels):.0%}) that predict.py's report calls unsure"
    )
    report = {"network": str(path), "tta": tta, "parts": figures, "doubtful": counts}
    if orientations:
        report["orientations"] = in_orientations(judged)
        parts = []
        for key, values in report["orientations"].items():
            name, form = MEANS[key]
            parts.append(f"{name} {np.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})")
        print("mean of the eight orientations: " + ", ".join(parts))
    return report


def main(argv=None):
    """Command line of this file; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", help="labelled cells, `;`-separated")
    parser.add_argument("networks", nargs="*", default=[SHIPPED], help="checkpoints or ONNX files (cells.onnx)")
    parser.add_argument("--images", metavar="DIR", help="folder of the table's file names (the table's folder)")
    group = parser.add_mutually_exclusive_group()  # the mean over the symmetries is the same in all orientations
    group.add_argument("--tta", action="store_true", help="mean over a cell's eight symmetries (checkpoints)")
    group.add_argument("--orientations", action="store_true", help="also the mean of eight orientations of all cells")
    parser.add_argument("--errors", metavar="FILE", help="plot of the last network's surest errors")
    parser.add_argument("--json", metavar="FILE", help="all figures")
    args = parser.parse_intermixed_args(argv)
    try:
        reports = []
        for path in args.networks:
            judged = judge_table(args.table, args.images, path, args.tta)
            reports.append(report_network(path, judged, args.tta, args.orientations))
        if len(reports) > 1:
            f1 = np.mean([r["parts"]["all"]["mean"]["f1"] for r in reports])
            ap = np.mean([r["parts"]["all"]["mean"]["average_precision"] for r in reports])
            print(f"\nMean of the {len(reports)} networks: mean F1 {f1:.3f}, average precision {ap:.3f}")
        if args.json:
            with atomic_path(Path(args.json)) as temporary:
                temporary.write_text(json.dumps(reports, indent=1))
        if args.errors:
            classes = judged.engine.classes
            dataset = data.CellDataset(judged.table.assign(transform=""), judged.images, classes)
            errors = Path(args.errors)
            plot_errors(judged.labels, judged.probabilities, judged.thresholds, dataset, classes, errors)
    except (InputError, OSError, ValueError) as error:
        print(f"foreign.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
