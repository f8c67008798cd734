"""Judge networks on labelled cells of other cameras, which no network of this project was trained on.

$ python -m benchmarks.foreign foreign.csv                                    # cells.onnx
$ python -m benchmarks.foreign foreign.csv a/best.ckp b/best.ckp              # checkpoints
$ python -m benchmarks.foreign foreign.csv --orientations                     # turned and mirrored, for less noise
$ python -m benchmarks.foreign foreign.csv --errors plots/foreign_errors.png --json foreign.json

The table is one of `train.py`, `filename;crack;inactive`. Its column `series` (cells of one site or camera) divides
the figures, its column `module` groups the cells for the intervals. Where the columns `crack_pixels` and `cross_pixels`
say what people outlined, cells with crack lines and cells with nothing but crosses get figures of their own.
"""

import argparse
import json
from itertools import islice
from pathlib import Path

import numpy as np

import data
from elcells.data.cache import load_images
from elcells.data.images import size_of, square_side, symmetries
from elcells.data.leaks import contamination, with_hashes
from elcells.evaluation.metrics import bootstrap_mean_f1, interval_groups, metrics_table
from elcells.evaluation.plots import plot_errors
from elcells.evaluation.results import number
from elcells.files import atomic_path, command, counted, from_here
from elcells.inference.doubt import UNSURE, doubt
from elcells.inference.networks import SHIPPED, Network, open_network
from elcells.inference.small import with_side
from elcells.training.weights import cells_in_training

LINES = "crack lines"  # this and the next are parts in which every cell has a crack
CROSSES = "crosses only"
MEANS = {  # over the eight orientations: key, name and format
    "f1": ("mean F1", ".3f"),
    "average_precision": ("AP", ".3f"),
    "crosses": ("crosses found", ".3g"),
    "one_look_f1": ("with one look mean F1", ".3f"),
    "one_look_average_precision": ("AP", ".3f"),
}


def rows_by_part(table):
    """Parts of a table with figures of their own: {name: rows (N,) bool}; all, then series, then kinds of cracks."""
    parts = {"all": np.ones(len(table), bool)}
    if "series" in table:
        for series in sorted(table["series"].unique()):
            parts[series] = (table["series"] == series).to_numpy()
    if {"crack_pixels", "cross_pixels"} <= set(table):
        parts[LINES] = (table["crack_pixels"] > 0).to_numpy()
        parts[CROSSES] = ~parts[LINES] & (table["cross_pixels"] > 0).to_numpy()
    return parts


def figures_by_part(table, labels, probabilities, thresholds, classes):
    """{part of `rows_by_part`: its figures} of one network's predictions, dicts that JSON can hold.

    labels, probabilities: (N, C), thresholds (C,). Where all cells have the defect only recall says something.
    """
    figures = {}
    groups, _ = interval_groups(table)
    for name, rows in rows_by_part(table).items():
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


def first_and_final(engine, images, sizes):
    """Probabilities of cells by one look at each, and as predict.py judges them: float32 (2, N, C).

    images: uint8 (N, 1, S, S). sizes: int (N, 2), (height, width) of each cell in its file: predict.py shows small
    cells as smaller images.
    """
    sides = np.array([engine.side_for(square_side(size)) for size in sizes])
    probabilities = np.empty((2, len(images), len(engine.classes)), np.float32)
    for side in np.unique(sides):
        rows = np.flatnonzero(sides == side)
        shown = np.stack([with_side(image, side) for image in images[rows, 0]])[:, None]
        for row, seen in zip(rows, engine.look_at(shown, engine.thresholds(), sizes[rows])):
            probabilities[:, row] = seen.first_look, seen.probabilities
    return probabilities


def in_orientations(engine, images, sizes, table, upright):
    """Figures of the cells judged in each of the eight orientations of all of them: {key of MEANS: [8 numbers]}.

    images, sizes: of the table's rows, as for `first_and_final`. upright: what that gives for them, the first of the
    eight. The mean tells networks apart better than one orientation, in which a network may be lucky by 0.01.
    """
    thresholds = engine.thresholds()
    labels = table[list(engine.classes)].to_numpy()
    predicted = [upright]
    for orientation, turned in islice(enumerate(symmetries(images)), 1, None):
        is_sideways = orientation // 2 % 2 == 1
        predicted.append(first_and_final(engine, turned, sizes[:, ::-1] if is_sideways else sizes))
    figures = {}
    for look, prefix in enumerate(("one_look_", "")):
        means = [metrics_table(labels, p[look], thresholds, engine.classes)["mean"] for p in predicted]
        for name in ("f1", "average_precision"):
            figures[prefix + name] = [mean[name] for mean in means]
    crosses = rows_by_part(table).get(CROSSES)
    if "crack" in engine.classes and crosses is not None and crosses.any():
        k = engine.classes.index("crack")
        figures["crosses"] = [int((p[1, crosses, k] >= thresholds[k]).sum()) for p in predicted]
    return figures


def report_network(path, cells_table, folder, orientations, errors):
    """Judge one network on a table's cells, print its figures and return them as a dict that JSON can hold.

    Cells near a threshold are looked at in up to four turns, and cells of few pixels as smaller images, as predict.py
    does; `one_look` has the mean figures of the file alone.

    folder: of the table's file names, or None. orientations: also `in_orientations`. errors: file for a plot of the
    surest errors, or None.
    """
    engine = open_network(Network(str(path)))
    classes = engine.classes
    thresholds = engine.thresholds()
    table = data.read_table(cells_table, classes, folder)
    cached_images, index = load_images(table, engine.image_size, print)
    images = cached_images[index]
    labels = table[list(classes)].to_numpy()
    sizes = np.array([size_of(name)[::-1] for name in table["path"]])
    upright = first_and_final(engine, images, sizes)
    once, probabilities = upright
    figures = figures_by_part(table, labels, probabilities, thresholds, classes)
    print(f"\n{path}, {engine.name}")
    leak = contamination(with_hashes(table, cells_in_training(path, print)), path, "table's")
    if leak:
        print(f"CONTAMINATED  {leak}; the figures claim too much")
    print(*as_text(figures, classes), sep="\n")
    counts = doubtful(labels, probabilities, thresholds)
    print(
        f"{counted(counts['wrong'], 'cell')} with a wrong call, {counts['both']} of them among the {counts['unsure']} "
        f"({counts['unsure'] / len(table):.0%}) that predict.py's report calls unsure"
    )
    one_look = metrics_table(labels, once, thresholds, classes)["mean"]
    print(f"one look at each cell: mean F1 {one_look['f1']:.3f}, AP {number(one_look['average_precision'], 0)}")
    report = {
        "network": str(from_here(Path(path))),
        "parts": figures,
        "one_look": one_look,
        "doubtful": counts,
        "leak": leak,
    }
    if orientations:
        report["orientations"] = in_orientations(engine, images, sizes, table, upright)
        parts = []
        for key, (name, form) in MEANS.items():
            values = report["orientations"].get(key, [])
            if values and None not in values:
                parts.append(f"{name} {np.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})")
        print("mean of the eight orientations: " + ", ".join(parts))
    if errors:
        dataset = data.CellDataset(table.assign(image=range(len(table)), transform=""), images, classes)
        plot_errors(labels, probabilities, thresholds, dataset, classes, Path(errors))
    return report


@command
def main(argv=None):
    """Command line of this file; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", help="labelled cells, `;`-separated")
    parser.add_argument("networks", nargs="*", default=[SHIPPED], help="checkpoints or ONNX files (cells.onnx)")
    parser.add_argument("--images", metavar="DIR", help="folder of the table's file names (the table's folder)")
    parser.add_argument("--orientations", action="store_true", help="also the mean of eight orientations of all cells")
    parser.add_argument("--errors", metavar="FILE", help="plot of the last network's surest errors")
    parser.add_argument("--json", metavar="FILE", help="all figures")
    args = parser.parse_intermixed_args(argv)
    reports = []
    for path in args.networks:
        reports.append(report_network(path, args.table, args.images, args.orientations, args.errors))
    if len(reports) > 1:
        f1 = np.mean([r["parts"]["all"]["mean"]["f1"] for r in reports])
        ap = np.mean([r["parts"]["all"]["mean"]["average_precision"] for r in reports])
        print(f"\nMean of the {len(reports)} networks: mean F1 {f1:.3f}, average precision {ap:.3f}")
    if args.json:
        with atomic_path(Path(args.json)) as temporary:
            temporary.write_text(json.dumps(reports, indent=1), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
