"""Judge networks on labelled cells of other cameras, which no network of this project was trained on.

$ python -m benchmarks.foreign foreign.csv                                    # cells.onnx
$ python -m benchmarks.foreign foreign.csv a/best.ckp b/best.ckp --tta        # checkpoints, over the symmetries
$ python -m benchmarks.foreign foreign.csv --orientations                     # turned and mirrored, for less noise
$ python -m benchmarks.foreign foreign.csv --errors plots/foreign_errors.png --json foreign.json

The table is one of `train.py`, `filename;crack;inactive`. Its column `series` (cells of one site or camera) divides
the figures, its column `module` groups the cells for the intervals. Where the columns `crack_pixels` and `cross_pixels`
say what people outlined, cells with crack lines and cells with nothing but crosses stand apart.
"""

import argparse
import json
import sys
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

import data
from elcells.data.cache import load_images
from elcells.data.images import symmetries
from elcells.evaluation.metrics import bootstrap_mean_f1, metrics_table
from elcells.evaluation.plots import plot_errors
from elcells.evaluation.results import number
from elcells.files import InputError, atomic_path
from elcells.pages.page import UNSURE, doubt
from predict import SHIPPED, open_network

BATCH = 16
LINES, CROSSES = "crack lines", "crosses only"  # parts in which every cell has a crack


def kinds(table):
    """What is judged apart of a table: {name: rows (N,) bool}; the whole, then series, then kinds of cracks."""
    parts = {"all": np.ones(len(table), bool)}
    if "series" in table:
        parts |= {s: (table["series"] == s).to_numpy() for s in sorted(table["series"].unique())}
    if {"crack_pixels", "cross_pixels"} <= set(table):
        lines = (table["crack_pixels"] > 0).to_numpy()
        parts |= {LINES: lines, CROSSES: ~lines & (table["cross_pixels"] > 0).to_numpy()}
    return parts


def groups(table):
    """What the intervals draw (Series of str): modules of a series, or cells where no modules are named."""
    names = table["module"].astype(str) if "module" in table else table["cell"]
    return table["series"] + "|" + names if "series" in table else names


def judge(table, labels, probabilities, thresholds, classes):
    """{part of `kinds`: its figures} of one network's predictions, dicts that JSON can hold.

    labels, probabilities: (N, C), thresholds (C,). Of cells that all have the defect only recall says something.
    """
    found, drawn = {}, groups(table)
    for name, rows in kinds(table).items():
        if rows.any():
            figures = metrics_table(labels[rows], probabilities[rows], thresholds, classes)
            interval = bootstrap_mean_f1(labels[rows], probabilities[rows], thresholds, drawn[rows])
            found[name] = {"cells": int(rows.sum()), "mean_f1_interval_95": interval, **figures}
    return found


def doubtful(labels, probabilities, thresholds):
    """How many cells the report calls unsure, how many have a wrong call, and how many both: dict of counts.

    labels, probabilities: (N, C), thresholds: (C,) or (N, C).
    """
    unsure = doubt(probabilities, thresholds) < UNSURE
    wrong = ((probabilities >= thresholds) != (labels > 0)).any(1)
    return {"unsure": int(unsure.sum()), "wrong": int(wrong.sum()), "both": int((unsure & wrong).sum())}


def as_text(found, classes):
    """Lines of a table of what `judge` found."""
    head = "".join(f"{c:>10}  F1     AP  recall" for c in classes)
    lines = [f"{'':14}cells{head}    mean F1  (95 % interval)     AP    ECE"]

    for name, part in found.items():
        alone = name in (LINES, CROSSES)
        line = f"{name:14}{part['cells']:5}"
        for c in classes:
            m = part[c]
            there = m["tp"] + m["fn"]
            f1 = None if alone or not there else m["f1"]
            recall = m["recall"] if there and (c == "crack" or not alone) else None
            line += f"{there:7}{number(f1, 7)}{number(None if alone else m['average_precision'], 7)}{number(recall, 8)}"
        if not alone:
            low, high = part["mean_f1_interval_95"]
            mean = part["mean"]
            line += f"{number(mean['f1'], 11)}  ({low:.3f} to {high:.3f})  "
            line += f"{number(mean['average_precision'], 9)}{number(mean['calibration_error'], 7)}"
        lines.append(line.rstrip())
    return lines


def predict(engine, images, index):
    """Probabilities (N, C) of the images uint8 (P, 1, S, S) at `index` (N,)."""
    parts = [index[i : i + BATCH] for i in range(0, len(index), BATCH)]
    bar = tqdm(parts, "judging", unit="batch", leave=False, disable=None)
    return np.concatenate([engine(np.ascontiguousarray(images[part])) for part in bar])


def in_orientations(engine, images, table, upright):
    """Figures of single predictions in each of the eight orientations of all cells: {name: [8 numbers]}.

    upright: the probabilities (N, C) of the cells as they come, the first of the eight.
    Their mean tells networks apart better than one orientation, in which a network may be lucky by 0.02.
    """
    labels, index = table[list(engine.classes)].to_numpy(), table["image"].to_numpy()
    predicted = [upright, *(predict(engine, turned, index) for turned in islice(symmetries(images), 1, None))]
    means = [metrics_table(labels, p, engine.thresholds, engine.classes)["mean"] for p in predicted]
    found = {name: [mean[name] for mean in means] for name in ("f1", "average_precision")}
    crosses = kinds(table).get(CROSSES)
    if "crack" in engine.classes and crosses is not None and crosses.any():
        k = list(engine.classes).index("crack")
        found["crosses"] = [int((p[crosses, k] >= engine.thresholds[k]).sum()) for p in predicted]
    return found


def main(argv=None):
    """Command line of this file; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", help="labelled cells, `;`-separated")
    parser.add_argument("networks", nargs="*", default=[SHIPPED], help="checkpoints or ONNX files (cells.onnx)")
    parser.add_argument("--images", metavar="DIR", help="folder of the table's file names (the table's folder)")
    group = parser.add_mutually_exclusive_group()  # the mean over the symmetries is the same in all orientations
    group.add_argument("--tta", action="store_true", help="mean over a cell's eight symmetries (checkpoints)")
    group.add_argument("--orientations", action="store_true", help="also the mean of eight orientations of all cells")
    parser.add_argument("--errors", metavar="FILE", help="image of the last network's surest errors")
    parser.add_argument("--json", metavar="FILE", help="all figures")
    args = parser.parse_intermixed_args(argv)
    try:
        report = []
        for path in args.networks:
            engine = open_network(path, tta=args.tta)
            table = data.read_table(args.table, engine.classes, args.images)
            images, table["image"] = load_images(table, engine.image_size, print)
            labels = table[list(engine.classes)].to_numpy()
            p = predict(engine, images, table["image"].to_numpy())
            found = judge(table, labels, p, engine.thresholds, engine.classes)
            print(
                f"\n{path}{' over the symmetries' * args.tta}, {engine.name}", *as_text(found, engine.classes), sep="\n"
            )
            counts = doubtful(labels, p, engine.thresholds)
            print(
                f"{counts['wrong']} cells have a wrong call, {counts['both']} of them among the "
                f"{counts['unsure']} ({counts['unsure'] / len(p):.0%}) that predict.py's report calls unsure"
            )
            report.append({"network": str(path), "tta": args.tta, "parts": found, "doubtful": counts})
            if args.orientations:
                report[-1]["orientations"] = turned = in_orientations(engine, images, table, p)
                shown = {
                    "f1": ("mean F1", ".3f"),
                    "average_precision": ("AP", ".3f"),
                    "crosses": ("crosses found", ".3g"),
                }
                line = (
                    f"{name} {np.mean(turned[k]):{form}} ({min(turned[k]):{form}} to {max(turned[k]):{form}})"
                    for k, (name, form) in shown.items()
                    if k in turned
                )
                print("mean of the eight orientations: " + ", ".join(line))
        if len(report) > 1:
            f1, ap = (np.mean([r["parts"]["all"]["mean"][k] for r in report]) for k in ("f1", "average_precision"))
            print(f"\nMean of the {len(report)} networks: mean F1 {f1:.3f}, average precision {ap:.3f}")
        if args.json:
            with atomic_path(Path(args.json)) as temporary:
                temporary.write_text(json.dumps(report, indent=1))
        if args.errors:
            dataset = data.CellDataset(table.assign(transform=""), images, engine.classes)
            plot_errors(labels, p, engine.thresholds, dataset, engine.classes, Path(args.errors))
    except (InputError, OSError, ValueError) as error:
        print(f"foreign.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
