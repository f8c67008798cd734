"""What the network that comes along gains from a few labelled cells of one's own, and what it forgets.

$ python -m benchmarks.adapt foreign.csv --own 3GC 4GC 2AXI --out adapt.csv
$ python -m benchmarks.adapt foreign.csv --own 8GC EL ELHn --cells 100 --draws 3 --out adapt.csv

The table is one of `train.py` with a column `series`. Cells of the series that are `--own` are drawn at random as the
labelled ones; judged are the rest of these series, the other series, and ELPV's test part, which neither network saw.
Rows are added to --out, those that it has are not run again.
"""

import argparse
import contextlib
import io
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

import data
import train
from benchmarks.foreign import predict
from elcells.data.images import read_image
from elcells.data.tables import CLASSES
from elcells.evaluation.metrics import metrics_table
from elcells.evaluation.results import number
from elcells.files import InputError
from predict import SHIPPED, open_network

COLUMNS = ["own", "cells", "draw", "judged", "n", "seconds", "f1_crack", "f1_inactive", "f1", "ap_crack", "ap_inactive"]
COLUMNS += ["ap"]


def figures(labels, probabilities, thresholds):
    """F1 at the thresholds and average precision of both classes and their mean, a dict."""
    table = metrics_table(labels, probabilities, thresholds, CLASSES)
    row = {}
    for name, short in (("f1", "f1"), ("average_precision", "ap")):
        row |= {f"{short}_{c}": table[c][name] for c in CLASSES} | {short: table["mean"][name]}
    return row


def judge(path, table):
    """`figures` of a network's file on the cells of a table."""
    engine = open_network(path)
    images = np.stack([read_image(p, engine.image_size) for p in table["path"]])[:, None]
    return figures(table[list(CLASSES)].to_numpy(), predict(engine, images, np.arange(len(images))), engine.thresholds)


def one(args, table, own, cells, draw):
    """Rows of one draw: the network after adapting to `cells` of one's own (0: as it is), on the three sets."""
    pool, others = table[own].reset_index(drop=True), table[~own]
    chosen = np.random.default_rng([cells, draw]).permutation(len(pool))[:cells]
    sets = {"own, the rest": pool.drop(index=chosen), "other sites": others}
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "own" / "labels.csv", Path(folder) / "run"
        path.parent.mkdir()
        mine = pool.iloc[chosen]
        mine = mine[list(CLASSES)].assign(filename=mine["path"].map(lambda p: str(p.resolve())))
        mine.to_csv(path, sep=";", index=False)
        given = ["--data", args.data, *[str(path)] * bool(cells), "--weights", str(SHIPPED), "--out", str(out)]
        seconds, network = 0.0, SHIPPED
        if cells:
            with contextlib.redirect_stdout(io.StringIO()):
                started = pd.Timestamp.now()
                if train.main([*given, "--recipe", "adapt", "--seed", str(draw), "--keep-checkpoints", "1"]):
                    raise InputError(f"{cells} cells, draw {draw}: train.py failed")
                seconds = (pd.Timestamp.now() - started).total_seconds()
            network = out / "checkpoints" / "best.ckp"
        rows = [{"judged": name, "n": len(part), **judge(network, part)} for name, part in sets.items()]
        elpv = data.split_parts(data.read_table(args.data))[2]
        rows.append({"judged": "ELPV, test part", "n": len(elpv), **judge(network, elpv)})
    about = {"own": " ".join(args.own), "cells": cells, "draw": draw, "seconds": seconds}
    return [{**about, **row} for row in rows]


def summary(rows):
    """Mean over the draws, and their standard deviation, as text."""
    found = rows.groupby(["own", "judged", "cells"])[["f1", "ap", "seconds"]].agg(["mean", "std", "count"])
    found = found.astype(object).where(found.notna(), None)  # of one draw there is no deviation
    lines = [f"{'own':16}{'judged':18}cells  draws   F1 (std)         AP (std)        seconds"]
    for (own, judged, cells), row in found.iterrows():
        f1, ap = (f"{row[k, 'mean']:.3f} ({number(row[k, 'std'], 5).strip()})" for k in ("f1", "ap"))
        lines.append(
            f"{own:16}{judged:18}{cells:5}{row['f1', 'count']:7.0f}   {f1}   {ap}{row['seconds', 'mean']:9.0f}"
        )
    return "\n".join(lines)


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
    try:
        table = data.read_table(args.table)
        own = table["series"].isin(args.own)
        if not own.any() or own.all():
            raise InputError(f"{args.table}: the series {' '.join(args.own)} must be some, not all, of the table's")
        out = Path(args.out)
        rows = pd.read_csv(out, sep=";") if out.exists() else pd.DataFrame(columns=COLUMNS)
        for cells in args.cells:
            for draw in range(args.draws if cells else 1):
                same = (rows["own"] == " ".join(args.own)) & (rows["cells"] == cells) & (rows["draw"] == draw)
                if not same.any():
                    new = pd.DataFrame(one(args, table, own, cells, draw))
                    rows = pd.concat([rows, new], ignore_index=True) if len(rows) else new
                    rows.reindex(columns=COLUMNS).to_csv(out, sep=";", index=False, float_format="%.4f")
                    print(new[["cells", "draw", "judged", "f1", "ap"]].to_string(index=False, header=False), flush=True)
        print(summary(rows))
    except (InputError, OSError) as error:
        print(f"adapt.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
