"""Find the defects in images of cells or whole modules with a trained network; needs no PyTorch for an ONNX model.

$ python predict.py images/ --out results                        # cells; rows on the screen without --out
$ python predict.py modules/ --grid 10x6 --out results/site7     # whole modules, 10 columns of 6 cells
$ find . -name '*.tif' | python predict.py - --model checkpoints/best.ckp --out results

The folder gets a record (results.sqlite), cells.csv, modules.csv, results.xlsx, report.html and review.html. The same
command again goes on where it stopped, tries what failed once more, and takes up new and changed images.
"""

import argparse
import contextlib
import csv
import sys
import time
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from elcells.data.finding import SUFFIXES, find_images
from elcells.data.images import as_lines
from elcells.data.suspicions import LIKE_MODULE
from elcells.files import InputError, command, counted, from_here, printable
from elcells.inference.cells import MEASURED, SEVERITY
from elcells.inference.networks import SHIPPED, Network, default_path, open_network
from elcells.inference.origin import describe_network, warning_about
from elcells.inference.severity import LEAST_PIXELS
from elcells.modules.cutting import corners_of_images, grid_size, guess_grid
from elcells.modules.lens import FEWEST
from elcells.pages.derived import derive
from elcells.records.metadata import grids_of, keep_metadata, read_metadata
from elcells.records.opening import writing
from elcells.records.requests import request_of
from elcells.records.runs import RunInfo
from elcells.records.summary import lines_about
from elcells.records.work import (
    Work,
    check_workers,
    forget_gone,
    lines_about_gone,
    refuse_other_grids,
    tasks_of,
    tidy,
    with_lenses,
    workers,
)

SEEN_LENS = 0.02  # of the image's radius: a bend that moves cells at the edge


def say(*lines):
    """Print lines on stderr, apart from the rows."""
    for line in lines:
        print(line, file=sys.stderr)


class Tally:
    """What a run counts for its summary. engine: the Engine at work. unit: "image" or "module"."""

    def __init__(self, engine, unit):
        self.engine = engine
        self.unit = unit
        self.count = 0
        self.failed = 0
        self.nearly_black = 0
        self.dark = 0  # or partly
        self.crack_length = 0.0  # in cell widths
        self.too_small = 0  # cells with a crack that have too few pixels to measure its length
        self.inactive_area = 0.0  # in cells
        self.measured_areas = 0  # cells whose inactive area is known
        self.defects = Counter()  # cells of each class
        self.notes = Counter()
        self.lens_alone = 0  # modules whose lens was found in their own image
        self.like_module = None  # name of the first image that looks like a module
        self.started = time.monotonic()

    def add(self, result):
        """Count an ImageResult."""
        self.count += 1
        self.failed += bool(result.error)
        self.notes.update(result.notes)
        if result.module and result.request.bend is None:
            self.lens_alone += abs(result.module.bend or 0) > SEEN_LENS
        for cell in result.cells:
            self.defects.update(cell.defects(self.engine.classes))
            self.nearly_black += cell.nearly_black
            self.dark += cell.is_dark
            self.add_severity(cell)
        if LIKE_MODULE in result.notes and self.like_module is None:
            self.like_module = result.request.name

    def add_severity(self, cell):
        """Count how bad a CellResult is."""
        has_crack = "crack" in cell.defects(self.engine.classes)
        self.too_small += has_crack and self.engine.has_lines and cell.crack_length is None
        self.crack_length += cell.crack_length or 0
        if cell.inactive_area is not None:
            self.inactive_area += cell.inactive_area
            self.measured_areas += 1

    def severity_lines(self):
        """Lines on how bad the cells' defects are."""
        parts = []
        if self.crack_length:
            parts.append(f"cracks are {self.crack_length:.1f} cell widths long in all")
        if self.inactive_area:
            share = 100 * self.inactive_area / self.measured_areas
            parts.append(f"{f'{share:.1f}' if share >= 0.05 else 'under 0.1'} % of the cells' area is inactive")
        lines = []
        if parts:
            text = "; ".join(parts)
            lines.append(f"{text[0].upper()}{text[1:]}.")
        if self.defects["crack"] and not self.engine.has_lines:
            lines.append("The network does not tell where cracks run: no lengths.")
        if self.too_small:
            verb = "has" if self.too_small == 1 else "have"
            cells = counted(self.too_small, "cell with a crack", "cells with a crack")
            lines.append(f"{cells} {verb} under {LEAST_PIXELS} pixels on the shorter side: too few for a length.")
        return lines

    def lines(self):
        """The summary, a list of lines."""
        if not self.count:
            return []
        counts = ", ".join(f"{self.defects[name]} {name}" for name in self.engine.classes)
        speed = f"{self.count / (time.monotonic() - self.started):.2g} {self.unit}s/s with {self.engine.name}"
        failed = f", {self.failed} failed" if self.failed else ""
        lines = [f"{counted(self.count, self.unit)}: {counts} cells{failed}; {speed}"]
        lines += self.severity_lines()
        if self.nearly_black:
            verb = "is" if self.nearly_black == 1 else "are"
            lines.append(f"{counted(self.nearly_black, 'cell')} {verb} nearly black: too dark to judge.")
        if self.dark:
            verb, whose = ("is", "its") if self.dark == 1 else ("are", "their")
            lines.append(
                f"{counted(self.dark, 'cell')} {verb} dark or partly dark: under half of the brightness of {whose} "
                "module's cells, or of the rest of the cell."
            )
        if self.lens_alone:
            lines.append(
                f"{counted(self.lens_alone, 'module')} with a lens that was found in the image alone; with {FEWEST} "
                "images of a camera in a folder it is found better, and so are the cells at the edge."
            )
        lines += as_lines(self.notes)
        grid = guess_grid(self.like_module) if self.like_module else ""
        if grid:
            lines.append(f"{self.like_module} looks like --grid {grid}.")
        return lines


# ---------------------------------------------------------------- what is judged, and by what


def requests_of(args, classes):
    """The Requests for all images that the inputs stand for, what the user's table says about them, {(path, page):
    {column: text}}, and the Found; raises InputError where there are none. classes: of the network."""
    found = find_images(args.inputs)
    say(*found.lines())
    if not found.paths:
        raise InputError(f"{' '.join(args.inputs)}: no images there ({' '.join(sorted(SUFFIXES))})")
    grid = grid_size(args.grid) if args.grid is not None else None
    corners = corners_of_images(args.corners, found.paths) if args.corners is not None else {}
    metadata, lines = read_metadata(args.metadata, found.paths, classes) if args.metadata is not None else ({}, [])
    say(*lines)
    grids = grids_of(args.metadata, metadata)
    requests = {}
    metadata_of = {}
    for name in found.paths:
        request = request_of(name, grids.get(name, grid), corners.get(name))
        requests[request.path, request.page] = request  # x.tif#page=1 may be all of x.tif
        if name in metadata:
            metadata_of[request.path, request.page] = metadata[name]
    return list(requests.values()), metadata_of, found


def network_of(args):
    """The Network that judges; prints which it is."""
    path, why = (args.model, "") if args.model else default_path()
    network = Network(
        str(path),
        args.device,
        batch_size=args.batch_size,
        operating_point=args.operating_point,
        maps=bool(args.out),
        threads=args.threads,
    )
    engine = open_network(network)
    say(describe_network(from_here(path), engine.metadata) + why)
    if warning := warning_about(engine.metadata, from_here(SHIPPED)):
        say(warning)
    return network


def info_of(network):
    """The RunInfo of a Network."""
    engine = open_network(network)
    return RunInfo(
        network=printable(Path(network.path).name),
        sha256=network.sha256(),
        trained=printable(describe_network(Path(network.path).name, engine.metadata)),
        classes=engine.classes,
        operating_point=network.operating_point,
        thresholds=tuple(round(float(t), 6) for t in engine.thresholds(network.operating_point)),
        engine=engine.name,
    )


# ---------------------------------------------------------------- results


def print_rows(requests, network, who):
    """Judge cells and print their rows; returns whether all could be judged."""
    engine = open_network(network)
    engine.thresholds(network.operating_point)  # says what is no operating point before the first row
    tally = Tally(engine, "image")
    writer = csv.writer(sys.stdout, delimiter=";", lineterminator="\n")
    writer.writerow(["filename", *engine.classes, *(f"p_{c}" for c in engine.classes), *MEASURED, *SEVERITY, "error"])
    tasks = tasks_of(requests, network.batch_size)
    with tqdm(total=len(requests), unit="image", leave=False) as bar:
        for result in who.results(Work(network), tasks):
            [cell] = result.cells
            writer.writerow(cell.row(engine.classes))
            tally.add(result)
            bar.update()
    say(*tally.lines())
    return not tally.failed


def fill_record(record, requests, metadata, network, who):
    """Judge the images that a record does not have as they are now, and take up the results; returns whether any.

    metadata: what the user's table says about images, {(path, page): {column: text}}.
    """
    asked = requests
    requests = [record.with_grid(request) for request in asked]
    kept = sum(before != now for before, now in zip(asked, requests))
    if kept:
        say(f"{counted(kept, 'image')} cut by a grid before, and so again; give another --out to judge them as cells.")
    refuse_other_grids(record, requests)
    forgotten = forget_gone(record, requests)
    say(*lines_about_gone(record, requests))
    todo = [request for request in requests if not record.is_done(request)]
    done = len(requests) - len(todo)
    if done:
        say(f"{counted(done, 'image')} of {len(requests)} judged before.")
    todo = with_lenses(record.lens, requests, [record.with_corners(request) for request in todo], who)
    record.expect(todo)
    keep_metadata(record, metadata)
    unit = "module" if all(request.grid for request in requests) else "image"
    tally = Tally(open_network(network), unit)
    tasks = tasks_of(todo, network.batch_size)
    with tqdm(total=len(requests), initial=done, unit=unit, leave=False) as bar:
        for result in who.results(Work(network, str(record.folder)), tasks):
            tidy(record, result)
            record.add(result)
            tally.add(result)
            bar.update()
    say(*tally.lines())
    return bool(forgotten or todo or metadata)


@contextlib.contextmanager
def hint_on_stop():
    """The context in which Ctrl-C also says how a record is gone on with."""
    try:
        yield
    except KeyboardInterrupt:
        say("", "What is judged is kept; the same command goes on.")
        raise


# ---------------------------------------------------------------- command


def options():
    """The parser of this script's command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", metavar="IMAGES", help="folders, files, globs, or - for a list on stdin")
    text = "folder of the results (rows on the screen)"
    parser.add_argument("--out", type=Path, metavar="DIR", help=text)
    group = parser.add_argument_group("whole modules")
    text = "the images show modules of so many columns x rows of cells, such as 10x6"
    group.add_argument("--grid", metavar="CxR", help=text)
    text = "rough corners (filename;x1;y1 … x4;y4, as in modules.csv) of modules that are not found"
    group.add_argument("--corners", metavar="CSV", help=text)
    text = "what else is known (filename;serial;string;…), for the report; a column grid gives each image its grid"
    group.add_argument("--metadata", metavar="CSV", help=text)
    group = parser.add_argument_group("network")
    text = "ONNX file or checkpoint (the newer of onnx/best.onnx and checkpoints/best.ckp, else cells.onnx)"
    group.add_argument("--model", type=Path, metavar="FILE", help=text)
    text = "thresholds: f1 or recall (never higher, misses at most 5 %% of the validation part's defects) (%(default)s)"
    group.add_argument("--operating-point", default="f1", metavar="NAME", help=text)
    group = parser.add_argument_group("speed")
    text = "processes of this machine that share the work (%(default)s)"
    group.add_argument("--workers", type=int, default=1, metavar="N", help=text)
    text = "let the workers of a Dask cluster do the work, such as tcp://10.0.0.1:8786 (doc/cluster.md)"
    group.add_argument("--dask", metavar="ADDRESS", help=text)
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(%(default)s)")
    group.add_argument("--batch-size", type=int, default=16, metavar="N", help="images at a time (%(default)s)")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads for an ONNX file, 0: all (0)")
    return parser


def check_options(args):
    """Raise InputError for options that contradict each other."""
    if args.batch_size < 1:
        raise InputError(f"--batch-size {args.batch_size}: must be at least 1")
    check_workers(args.workers)
    if args.dask and args.workers > 1:
        raise InputError("--workers: is for processes of this machine; --dask has its cluster's workers")
    if args.threads is not None and args.threads < 0:
        raise InputError(f"--threads {args.threads}: must be 0 (all) or more")
    if args.corners is not None and args.grid is None and args.metadata is None:
        raise InputError("--corners: needs --grid, or --metadata with a column grid")
    for name in ("grid", "metadata"):
        if getattr(args, name) is not None and not args.out:
            raise InputError(f"--{name}: needs --out, the folder of the results")


@command
def main(argv=None):
    """Command line of this file; returns the exit code: 0, 2 for bad input, 3 when some images could not be judged or
    some modules are not sure."""
    args = options().parse_args(argv)
    check_options(args)
    network = network_of(args)
    requests, metadata, found = requests_of(args, open_network(network).classes)
    with workers(args.workers, args.dask) as who:
        if not args.out:
            complete = print_rows(requests, network, who)
        else:
            with writing(args.out, info_of(network)) as record, hint_on_stop():
                changed = fill_record(record, requests, metadata, network, who)
                if changed or not record.is_derived():
                    derive(record)
                record.end()
                say(*lines_about(record))
                complete = record.is_complete()
    return 0 if complete and not found.unreadable else 3


if __name__ == "__main__":
    raise SystemExit(main())
