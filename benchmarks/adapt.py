"""What the shipped network gains from a few labelled cells of one's own, and what it forgets.

$ python -m benchmarks.adapt foreign.csv --own 3GC 4GC 2AXI --out adapt.csv
$ python -m benchmarks.adapt foreign.csv --own 8GC EL ELHn --cells 100 --draws 3 --out adapt.csv

The table is one of `train.py` with a column `series`. The labelled cells are drawn at random from the series `--own`.
The network is then judged on the rest of these series, on the other series, and on ELPV's test part, which it has
never seen. Rows are added to --out; those that it has are not run again.
"""

import argparse
import contextlib
import io
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

import data
import train
from benchmarks.foreign import probabilities_of
from elcells.data.images import read_image
from elcells.data.tables import CLASSES
from elcells.evaluation.metrics import metrics_table
from elcells.evaluation.results import number
from elcells.files import InputError, command
from predict import SHIPPED, NetworkChoice, open_network

COLUMNS = "own cells draw judged n seconds f1_crack f1_inactive f1 ap_crack ap_inactive ap".split()


def scores(labels, probabilities, thresholds):
    """F1 at the thresholds and average precision of both classes and their mean, a dict of COLUMNS."""
    table = metrics_table(labels, probabilities, thresholds, CLASSES)
    row = {"f1": table["mean"]["f1"], "ap": table["mean"]["average_precision"]}
    for c in CLASSES:
        row[f"f1_{c}"] = table[c]["f1"]
        row[f"ap_{c}"] = table[c]["average_precision"]
    return row


def judge_network(path, table):
    """`scores` of a network's file on the cells of a table."""
    engine = open_network(NetworkChoice(path))
    images = np.stack([read_image(p, engine.image_size) for p in table["path"]])[:, None]
    probabilities = probabilities_of(engine, images, np.arange(len(images)))
    return scores(table[list(CLASSES)].to_numpy(), probabilities, engine.thresholds())


def adapt(labelled, elpv, folder, seed):
    """Train the shipped network on from labelled cells (rows of a table) in a folder: (checkpoint, seconds)."""
    own = folder / "own" / "labels.csv"
    own.parent.mkdir()
    names = labelled["path"].map(lambda path: str(path.resolve()))
    labelled[list(CLASSES)].assign(filename=names).to_csv(own, sep=";", index=False)
    out = folder / "run"
    options = ["--data", str(elpv), str(own), "--weights", str(SHIPPED), "--out", str(out)]
    options += ["--recipe", "adapt", "--seed", str(seed), "--keep-checkpoints", "1"]
    started = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()):
        code = train.main(options)
    if code:
        raise InputError(f"{len(labelled)} cells, draw {seed}: train.py failed")
    return out / "checkpoints" / "best.ckp", time.monotonic() - started


def rows_of_draw(table, own, elpv, cells, draw):
    """Rows of one draw: the network adapted to `cells` of one's own (0: as it is) on the three sets of cells.

    own: which rows of the table are one's own, bool (N,). elpv: path of ELPV's table.
    """
    pool = table[own].reset_index(drop=True)
    chosen = np.random.default_rng([cells, draw]).permutation(len(pool))[:cells]
    _, _, test = data.split_parts(data.read_table(elpv))
    sets = {"own, the rest": pool.drop(index=chosen), "other sites": table[~own], "ELPV, test part": test}
    with tempfile.TemporaryDirectory() as folder:
        network, seconds = SHIPPED, 0.0
        if cells:
            network, seconds = adapt(pool.iloc[chosen], elpv, Path(folder), draw)
        common = {"cells": cells, "draw": draw, "seconds": seconds}
        return [{**common, "judged": k, "n": len(part), **judge_network(network, part)} for k, part in sets.items()]


def summary(rows):
    """Mean over the draws, and their standard deviation, as text."""
    figures = rows.groupby(["own", "judged", "cells"])[["f1", "ap", "seconds"]].agg(["mean", "std", "count"])
    figures = figures.astype(object).where(figures.notna(), None)  # one draw has no deviation
    lines = [f"{'own':16}{'judged':18}cells  draws   F1 (std)         AP (std)        seconds"]
    for (own, judged, cells), row in figures.iterrows():
        f1, ap = (f"{row[k, 'mean']:.3f} ({number(row[k, 'std'], 5).strip()})" for k in ("f1", "ap"))
        draws = row["f1", "count"]
        lines.append(f"{own:16}{judged:18}{cells:5}{draws:7.0f}   {f1}   {ap}{row['seconds', 'mean']:9.0f}")
    return "\n".join(lines)


@command
def main(argv=None):
    """Command line of this file; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", help="labelled cells of other cameras, `;`-separated, with a column series")
    parser.add_argument("--own", nargs="+", required=True, metavar="SERIES", help="series that are one's own")
    parser.add_argument(
        "--cells", nargs="+", type=int, default=[0, 25, 50, 100, 200], metavar="N", help="(%(default)s)"
    )
    parser.add_argument("--draws", type=int, default=5, metavar="N", help="of each number (%(default)s)")
    parser.add_argument("--data", default="data.csv", metavar="CSV", help="the table of ELPV (%(default)s)")
    parser.add_argument("--out", required=True, metavar="CSV", help="a row for each draw and set")
    args = parser.parse_args(argv)
    table = data.read_table(args.table)
    own = table["series"].isin(args.own)
    if not own.any() or own.all():
        raise InputError(f"{args.table}: the series {' '.join(args.own)} must be some, not all, of the table's")
    out = Path(args.out)
    name = " ".join(args.own)
    rows = pd.read_csv(out, sep=";") if out.exists() else pd.DataFrame(columns=COLUMNS)
    for cells in args.cells:
        for draw in range(args.draws if cells else 1):
            done = (rows["own"] == name) & (rows["cells"] == cells) & (rows["draw"] == draw)
            if done.any():
                continue
            new = pd.DataFrame(rows_of_draw(table, own, args.data, cells, draw)).assign(own=name)
            rows = pd.concat([rows, new], ignore_index=True) if len(rows) else new
            rows.reindex(columns=COLUMNS).to_csv(out, sep=";", index=False, float_format="%.4f")
            print(new[["cells", "draw", "judged", "f1", "ap"]].to_string(index=False, header=False), flush=True)
    print(summary(rows))


if __name__ == "__main__":
    raise SystemExit(main())
