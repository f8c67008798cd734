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
from elcells.data.images import read_image
from elcells.data.tables import CLASSES
from elcells.evaluation.metrics import metrics_table
from elcells.files import InputError, command
from elcells.inference.networks import SHIPPED, Network, open_network

COLUMNS = "own cells draw judged n seconds f1_crack f1_inactive f1 ap_crack ap_inactive ap".split()


def judge_network(path, table):
    """F1 at the thresholds and average precision of a network's file, which looks at each of a table's cells once."""
    engine = open_network(Network(str(path)))
    images = np.stack([read_image(p, engine.image_size) for p in table["path"]])[:, None]
    labels = table[list(CLASSES)].to_numpy()
    figures = metrics_table(labels, engine(images), engine.thresholds(), CLASSES)
    row = {"f1": figures["mean"]["f1"], "ap": figures["mean"]["average_precision"]}
    for c in CLASSES:
        row[f"f1_{c}"] = figures[c]["f1"]
        row[f"ap_{c}"] = figures[c]["average_precision"]
    return row


def adapt(labelled, elpv, folder, seed):
    """Train the shipped network on from labelled cells (rows of a table) in a folder: (checkpoint, seconds)."""
    table_path = folder / "own" / "labels.csv"
    table_path.parent.mkdir()
    names = labelled["path"].map(lambda path: str(path.resolve()))
    labelled[list(CLASSES)].assign(filename=names).to_csv(table_path, sep=";", index=False)
    out = folder / "run"
    options = ["--data", str(elpv), str(table_path), "--weights", str(SHIPPED), "--out", str(out)]
    options += ["--recipe", "adapt", "--seed", str(seed), "--keep-checkpoints", "1"]
    started = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()):
        code = train.main(options)
    if code:
        raise InputError(f"{len(labelled)} cells, draw {seed}: train.py failed")
    return out / "checkpoints" / "best.ckp", time.monotonic() - started


def rows_of_draw(table, at_site, elpv, cells, draw):
    """Rows of one draw: the network adapted to `cells` of the site (0: as it is) on the three sets of cells.

    at_site: which rows of the table are of the site, bool (N,). elpv: path of ELPV's table.
    """
    pool = table[at_site].reset_index(drop=True)
    chosen = np.random.default_rng([cells, draw]).permutation(len(pool))[:cells]
    _, _, test = data.split_parts(data.read_table(elpv))
    sets = {"own, the rest": pool.drop(index=chosen), "other sites": table[~at_site], "ELPV, test part": test}
    with tempfile.TemporaryDirectory() as folder:
        network, seconds = SHIPPED, 0.0
        if cells:
            network, seconds = adapt(pool.iloc[chosen], elpv, Path(folder), draw)
        common = {"cells": cells, "draw": draw, "seconds": seconds}
        return [{**common, "judged": k, "n": len(part), **judge_network(network, part)} for k, part in sets.items()]


def mean_and_deviation(values):
    """Text such as "0.912 (0.010)" for a Series; one value has no deviation."""
    deviation = f"{values.std():.3f}" if len(values) > 1 else "-"
    return f"{values.mean():.3f} ({deviation})"


def means_of_draws(rows):
    """A table of the means over the draws, as text."""
    lines = [f"{'own':16}{'judged':18}cells  draws   F1 (std)         AP (std)        seconds"]
    for (site, judged, cells), draws in rows.groupby(["own", "judged", "cells"]):
        f1 = mean_and_deviation(draws["f1"])
        ap = mean_and_deviation(draws["ap"])
        lines.append(f"{site:16}{judged:18}{cells:5}{len(draws):7}   {f1}   {ap}{draws['seconds'].mean():9.0f}")
    return "\n".join(lines)


@command
def main(argv=None):
    """Command line of this file; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", help="labelled cells of other cameras, `;`-separated, with a column series")
    parser.add_argument("--own", nargs="+", required=True, metavar="SERIES", help="the series of the site")
    numbers = [0, 25, 50, 100, 200]
    parser.add_argument("--cells", nargs="+", type=int, default=numbers, metavar="N", help="labelled (%(default)s)")
    parser.add_argument("--draws", type=int, default=5, metavar="N", help="of each number (%(default)s)")
    parser.add_argument("--data", default="data.csv", metavar="CSV", help="the table of ELPV (%(default)s)")
    parser.add_argument("--out", required=True, metavar="CSV", help="a row for each draw and set")
    args = parser.parse_args(argv)
    table = data.read_table(args.table)
    at_site = table["series"].isin(args.own)
    if not at_site.any() or at_site.all():
        raise InputError(f"{args.table}: the series {' '.join(args.own)} must be some, not all, of the table's")
    out = Path(args.out)
    site = " ".join(args.own)
    rows = pd.read_csv(out, sep=";") if out.exists() else pd.DataFrame(columns=COLUMNS)
    for cells in args.cells:
        for draw in range(args.draws if cells else 1):
            done = (rows["own"] == site) & (rows["cells"] == cells) & (rows["draw"] == draw)
            if done.any():
                continue
            new = pd.DataFrame(rows_of_draw(table, at_site, args.data, cells, draw)).assign(own=site)
            rows = pd.concat([rows, new], ignore_index=True) if len(rows) else new
            rows.reindex(columns=COLUMNS).to_csv(out, sep=";", index=False, float_format="%.4f")
            print(new[["cells", "draw", "judged", "f1", "ap"]].to_string(index=False, header=False), flush=True)
    print(means_of_draws(rows))


if __name__ == "__main__":
    raise SystemExit(main())
