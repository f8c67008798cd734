"""How well whole modules are cut into cells, on modules composed of ELPV cells whose corners are known.

$ python -m benchmarks.modules                       # easy, medium, hard, strings, layouts: 100 modules each
$ python -m benchmarks.modules --levels hard --count 500 --jobs 2 --out doc/modules.csv
$ python -m benchmarks.modules --levels hard --lens -0.03    # one camera: each alone, and with the median lens of 15

Seeds below 10,000 are for trying things out, those above for reporting.
"""

import argparse
import csv
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from tqdm import tqdm

from benchmarks.composed_modules import LEVELS, Cells, compose
from elcells.files import atomic_path, command
from elcells.modules.cutting import cut_cells, doubts
from elcells.modules.lens import LENS_IMAGES
from elcells.modules.search import FOUND, find_grid

REPORTED = 10_000  # the first seed that nothing was tuned on


@cache
def all_cells():
    """ELPV's Cells; each process opens the table once."""
    return Cells()


@dataclass(frozen=True)
class Job:
    """A module to compose and cut."""

    level: str
    seed: int
    lens: float | None  # of the camera; None: a random one
    known_lens: float | None = None  # that the fit is given


def cut_composed(job):
    """The row of a module in the results: errors are in units of a cell's side, seconds are CPU time."""
    composed, truth = compose(all_cells(), job.seed, job.level, lens=job.lens)
    image = composed.astype(np.float32)
    started = time.process_time()
    grid, score, lead = find_grid(image, *truth.grid, bend=job.known_lens)
    seconds = time.process_time() - started
    sure = score >= FOUND and not doubts(grid, image.shape, score, lead, cut_cells(image, grid))
    error = np.linalg.norm(grid.nodes() - truth.nodes, axis=-1) / grid.cell_side()
    return {
        "level": job.level,
        "seed": job.seed,
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


def level_line(rows):
    """A level's line of the table."""
    error = np.array([row["error"] for row in rows])
    sure = np.array([row["sure"] for row in rows], bool)
    median = np.median([row["mean_error"] for row in rows])
    seconds = np.mean([row["seconds"] for row in rows])
    wrong = error > 0.5
    right = error <= 0.03
    off = ~wrong & ~right
    return (
        f"{rows[0]['level']:8}{len(rows):6}{100 * (~wrong).mean():7.1f}{100 * right.mean():12.1f}"
        f"{100 * median:9.2f}{100 * np.quantile(error, 0.95):11.2f}{100 * (wrong & sure).mean():10.1f}"
        f"{100 * (off & sure).mean():12.1f}{100 * (~sure & right).mean():12.1f}{seconds:10.2f}"
    )


def print_levels(rows, levels):
    """Print the table of cut modules, a line a level."""
    print("In % of modules; errors in % of a cell; not flagged: called sure all the same.")
    print("                right   all cells   median   95 % of    wrong,   3 to 50 %     flagged   CPU s a")
    print("level    count   grid  within 3 %    error  worst cells not fl. off, not fl. for nothing  module")
    for level in levels:
        print(level_line([row for row in rows if row["level"] == level]))


def cut_all(levels, seeds, lens, processes):
    """Cut a module of each level and seed, print the table and return its rows.

    lens: of the one camera that took all; they are cut again with the median lens, as cut_modules does.
    """
    jobs = [Job(level, seed, lens) for level in levels for seed in seeds]
    os.environ["OMP_NUM_THREADS"] = "1"  # in the processes
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        rows = list(tqdm(pool.map(cut_composed, jobs), total=len(jobs), unit="module", leave=False))
        print_levels(rows, levels)
        if lens is not None:
            known = {}
            for level in levels:
                bends = [row["bend"] for row in rows if row["level"] == level and row["sure"]]
                known[level] = float(np.median(bends[:LENS_IMAGES])) if bends else None
            print(f"\nWith a known lens: the median of the first {LENS_IMAGES} sure ones")
            jobs = [replace(job, known_lens=known[job.level]) for job in jobs]
            print_levels(list(pool.map(cut_composed, jobs)), levels)
    return rows


def write_rows(rows, path):
    """Write a row for each module as CSV."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=";", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{value:.4f}" if isinstance(value, float) else value for key, value in row.items()})


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
    rows = cut_all(args.levels, range(args.seed, args.seed + args.count), args.lens, args.jobs)
    if args.out:
        write_rows(rows, args.out)


if __name__ == "__main__":
    raise SystemExit(main())
