"""How well whole modules are cut into cells, on modules composed of ELPV cells whose corners are known.

$ python -m benchmarks.modules                       # 100 modules of each level
$ python -m benchmarks.modules --levels hard --count 500 --jobs 2 --out doc/modules.csv
$ python -m benchmarks.modules --levels hard --lens -0.03    # one camera: each alone, and with the median lens of 15

Seeds below 10,000 are for trying things out, those above for reporting.
"""

import argparse
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pandas as pd
from tqdm import tqdm

from benchmarks.composed_modules import LEVELS, ElpvCells, compose
from elcells.files import atomic_path, command
from elcells.modules.cutting import cut_cells, doubts
from elcells.modules.lens import LENS_IMAGES
from elcells.modules.search import FOUND, find_grid

REPORTED = 10_000  # the first seed that nothing was tuned on
RIGHT = 0.03  # of a cell: the largest error of a module whose cells are all right
WRONG_GRID = 0.5  # of a cell: a larger error means that the grid is wrong


all_cells = cache(ElpvCells)  # each process opens the table once


@dataclass(frozen=True)
class Trial:
    """A module to compose and cut."""

    level: str
    seed: int
    lens: float | None  # of the camera; None: a random one
    known_lens: float | None = None  # that the fit is given


def cut_composed(trial):
    """The row of a module in the results: errors are in units of a cell's side, seconds are CPU time."""
    composed, truth = compose(all_cells(), trial.seed, trial.level, lens=trial.lens)
    image = composed.astype(np.float32)
    started = time.process_time()
    grid, score, lead = find_grid(image, *truth.grid, bend=trial.known_lens)
    seconds = time.process_time() - started
    sure = score >= FOUND and not doubts(grid, image.shape, score, lead, cut_cells(image, grid))
    error = np.linalg.norm(grid.nodes() - truth.nodes, axis=-1) / grid.cell_side()
    return {
        "level": trial.level,
        "seed": trial.seed,
        "grid": "x".join(map(str, truth.grid)),
        "width": image.shape[1],
        "height": image.shape[0],
        "side": truth.side,
        "error": error.max(),
        "mean_error": error.mean(),
        "score": score,
        "lead": lead,
        "sure": int(sure),
        "bend": grid.bend,
        "seconds": seconds,
    }


def cut_all(trials, pool):
    """The results of trials, a DataFrame with a row for each; prints a line for each level."""
    rows = pd.DataFrame(tqdm(pool.map(cut_composed, trials), total=len(trials), unit="module", leave=False))
    print("In % of modules; errors in % of a cell; not flagged: called sure all the same.")
    print("                right   all cells   median   95 % of    wrong,   3 to 50 %     flagged   CPU s a")
    print("level    count   grid  within 3 %    error  worst cells not fl. off, not fl. for nothing  module")
    for level, modules in rows.groupby("level", sort=False):
        error = modules["error"]
        sure = modules["sure"] == 1
        wrong = error > WRONG_GRID
        right = error <= RIGHT
        off = ~wrong & ~right
        print(
            f"{level:8}{len(modules):6}{100 * (~wrong).mean():7.1f}{100 * right.mean():12.1f}"
            f"{100 * modules['mean_error'].median():9.2f}{100 * error.quantile(0.95):11.2f}"
            f"{100 * (wrong & sure).mean():10.1f}{100 * (off & sure).mean():12.1f}"
            f"{100 * (~sure & right).mean():12.1f}{modules['seconds'].mean():10.2f}"
        )
    return rows


def with_known_lens(trials, rows):
    """The trials again, with the median lens of the first sure modules of their level, as cut_module.py has it."""
    first = rows[rows["sure"] == 1].groupby("level").head(LENS_IMAGES)
    bends = first.groupby("level")["bend"].median()
    return [replace(trial, known_lens=bends.get(trial.level)) for trial in trials]


@command
def main(argv=None):
    """Command line of this file; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=list(LEVELS), help="(all)")
    parser.add_argument("--count", type=int, default=100, metavar="N", help="modules of each level (%(default)s)")
    parser.add_argument("--seed", type=int, default=REPORTED, metavar="N", help="of the first module (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (%(default)s)")
    parser.add_argument("--out", metavar="CSV", help="a row for each module")
    lens = "all modules are of one camera with this relative displacement at the corners, below 0: barrel"
    parser.add_argument("--lens", type=float, metavar="B", help=lens)
    args = parser.parse_args(argv)
    seeds = range(args.seed, args.seed + args.count)
    trials = [Trial(level, seed, args.lens) for level in args.levels for seed in seeds]
    os.environ["OMP_NUM_THREADS"] = "1"  # in the processes
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        rows = cut_all(trials, pool)
        if args.lens is not None:
            print(f"\nWith a known lens: the median of the first {LENS_IMAGES} sure ones")
            cut_all(with_known_lens(trials, rows), pool)
    if args.out:
        with atomic_path(args.out) as temporary:
            rows.to_csv(temporary, sep=";", index=False, float_format="%.4f", lineterminator="\n")


if __name__ == "__main__":
    raise SystemExit(main())
