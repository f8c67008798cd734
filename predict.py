"""Find the defects in cell images with a trained network; needs no PyTorch for an ONNX model.

$ python predict.py images/                                # rows on the screen, with onnx/best.onnx
$ python predict.py line1/ 'line2/**/*.png' --csv out.csv --report out.html
$ find . -name '*.tif' | python predict.py - --model checkpoints/best.ckp --csv out.csv --resume
$ python predict.py mine/ --review review.html             # a page on which to label the doubtful cells
$ python predict.py modules/ --grid 10x6 --csv cells.csv --report cells.html    # whole modules, 10 columns of 6 cells
"""

import argparse
import contextlib
import hashlib
import re
import sys
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from tqdm import tqdm

from elcells.data.finding import SUFFIXES, find_images
from elcells.data.images import THREADS, as_lines, examine
from elcells.data.suspicions import LIKE_MODULE
from elcells.files import InputError, command, counted
from elcells.inference.cells import CellResult, judge
from elcells.inference.class_maps import onnx_class_maps, weighted
from elcells.inference.engines import ENGINES, PRECISIONS, Engine, open_model
from elcells.inference.origin import TRAINING, describe_network, warning_about
from elcells.inference.output import OutputTable
from elcells.modules.align import align_cell
from elcells.modules.cutting import grid_size, guess_grid, read_corners
from elcells.modules.judging import ModuleLayout, draw_results, judge_modules
from elcells.modules.parallel import BLACK_COLUMN, ModulesTable, folders_of, module_names, warnings_of
from elcells.pages.report import write_report
from elcells.pages.review import write_review

BATCHES_AHEAD = 4  # decoded while the network works; bounds the memory
SHIPPED = Path(__file__).resolve().parent / "cells.onnx"


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
        self.unreadable = 0
        self.nearly_black = 0
        self.defects = Counter()  # cells of each class
        self.notes = Counter()
        self.started = time.monotonic()

    def add(self, cells, notes):
        """Count an image by the CellResults of its cells and by its notes; returns its defects, a Counter."""
        defects = Counter()
        for cell in cells:
            defects.update(cell.defects(self.engine.classes))
            self.unreadable += not cell.judged
            self.nearly_black += cell.nearly_black
        self.count += 1
        self.defects += defects
        self.notes.update(notes)
        return defects

    def text(self, ending):
        """Such as "3 modules: 2 crack, 1 inactive cells; 0.14 modules/s with onnxruntime"; ending: of the counts."""
        counts = ", ".join(f"{self.defects[name]} {name}" for name in self.engine.classes)
        speed = "nothing left to do"
        if self.count:
            rate = self.count / (time.monotonic() - self.started)
            speed = f"{rate:.2f} {self.unit}s/s with {self.engine.name}"
        return f"{counted(self.count, self.unit)}: {counts}{ending}; {speed}"


# ---------------------------------------------------------------- networks


def open_network(path, tta=False, device="auto", **onnx_options):
    """Open an ONNX file or a checkpoint as an Engine.

    tta: predict by the mean over an image's eight symmetries; only for checkpoints. onnx_options: of `open_model`.
    """
    path = Path(path)
    if path.suffix.lower() != ".onnx":
        if onnx_options:
            raise InputError(f"{path}: PyTorch runs a checkpoint; engine, its precision and threads are for ONNX files")
        return open_checkpoint(path, tta, device)
    if tta:
        raise InputError(f"--tta: {path} can't be changed; export it with `python export_onnx.py --tta`")
    return open_model(path, device=device, **onnx_options)


def open_checkpoint(path, tta, device):
    """Open a checkpoint as an Engine; this alone needs PyTorch."""
    import torch

    from elcells.devices import keep_freed_memory, pick_device
    from model import load_model

    keep_freed_memory()
    device = pick_device(device)
    model, checkpoint = load_model(path, device)
    model = model.to(memory_format=torch.channels_last)
    operating_points = model.calibration_for(tta).operating_points
    map_layer = model.network.get_submodule(model.kind.map_layers[-1])

    @torch.inference_mode()
    def run(images):
        logits = model(torch.from_numpy(images).to(device), tta=tta)
        return model.probabilities(logits, tta=tta).cpu().numpy()

    @torch.inference_mode()
    def class_maps(images):
        features = []
        with map_layer.register_forward_hook(lambda layer, inputs, output: features.append(output)):
            model(torch.from_numpy(images).to(device))
        return weighted(features[0].float().cpu().numpy(), model.network.fc.weight.float().cpu().numpy())

    metadata = asdict(model.metadata) | {k: v for k, v in checkpoint.items() if k in TRAINING}
    name = f"pytorch on {device.type}"
    return Engine(run, model.classes, model.metadata.image_size, name, operating_points, class_maps, metadata=metadata)


def default_model():
    """The newer of onnx/best.onnx and checkpoints/best.ckp, else the shipped network; and why, for the user."""
    models = [path for path in (Path("onnx/best.onnx"), Path("checkpoints/best.ckp")) if path.exists()]
    if not models:
        return SHIPPED, " (there is no onnx/best.onnx nor checkpoints/best.ckp here)"
    models.sort(key=lambda path: path.stat().st_mtime_ns)
    if len(models) == 2:
        return models[1], f" (newer than {models[0]})"
    return models[0], ""


def from_here(path):
    """A path relative to the current folder where it lies in it, else as it is."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


# ---------------------------------------------------------------- images of cells


def read_cell(path, size, align):
    """An image file as (pixels uint8 (size, size), CellResult to be judged), or (None, CellResult with the error).

    align: turn the cell upright and cut it tightly.
    """
    try:
        pixels, notes = examine(path, size)
        if align:
            pixels, moved = align_cell(pixels)
            if moved:
                notes.append("were turned upright or cut tighter")
    except InputError as error:
        return None, CellResult(path, error=" ".join(str(error).split()))
    return pixels, CellResult(path, brightness=pixels.mean() / 255, notes=tuple(notes))


def read_batches(paths, size, align, batch_size):
    """Yield lists of `batch_size` results of read_cell, decoded in threads a few batches ahead."""
    waiting = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for path in paths:
                waiting.append(pool.submit(read_cell, path, size, align))
                if len(waiting) == BATCHES_AHEAD * batch_size:
                    yield [waiting.popleft().result() for _ in range(batch_size)]
            while waiting:
                yield [waiting.popleft().result() for _ in range(min(batch_size, len(waiting)))]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def judge_images(engine, thresholds, paths, align):
    """Yield the CellResult of each image file, in order."""
    for cells in read_batches(paths, engine.image_size, align, engine.batch_size):
        yield from judge(engine, thresholds, cells)


def predict_cells(engine, thresholds, paths, align, table):
    """Judge image files of cells, write their rows and print a summary; returns whether all could be read."""
    tally = Tally(engine, "image")
    module_path = None  # of the first image that looks like a module
    for cell in tqdm(judge_images(engine, thresholds, paths, align), total=len(paths), unit="image", leave=False):
        table.write(cell)
        tally.add([cell], cell.notes)
        if LIKE_MODULE in cell.notes and module_path is None:
            module_path = cell.filename
    say(tally.text(f", {tally.unreadable} unreadable"))
    if tally.nearly_black:
        verb = "is" if tally.nearly_black == 1 else "are"
        say(f"{tally.nearly_black} of them {verb} nearly black (dead or underexposed): too dark to judge.")
    say(*as_lines(tally.notes))
    grid = guess_grid(module_path) if module_path else ""
    if grid:
        say(f"The first of them looks like --grid {grid}.")
    return not tally.unreadable


# ---------------------------------------------------------------- images of whole modules


def predict_modules(engine, thresholds, named, layout, table):
    """Cut whole modules, judge their cells, write rows and print a summary; returns whether all modules are sure.

    named: list of (path, name), including those that a resumed run has done.
    """
    classes = engine.classes
    cells_folder, modules_folder = folders_of(table.path.with_suffix(""))
    modules_path = modules_folder / "modules.csv"
    tally = Tally(engine, "module")
    drawing = None  # of the previous module
    with ThreadPoolExecutor(1) as pool, ModulesTable(modules_path, [*classes, BLACK_COLUMN]) as modules:
        left = [(path, name) for path, name in named if name not in modules.done]
        with contextlib.closing(judge_modules(engine, thresholds, left, cells_folder, layout)) as judged:
            for name, module, cells in judged:
                for cell in cells:
                    if cell.filename not in table.done:
                        table.write(cell)
                defects = tally.add(cells, module.notes)
                if not cells:
                    modules.add(module, name, [""] * (len(classes) + 1))
                    continue
                if drawing:
                    drawing.result()
                drawing = pool.submit(draw_results, module, modules_folder / f"{name}.png", cells, classes)
                modules.add(module, name, [*(defects[c] for c in classes), int(module.black.sum())])
        if drawing:
            drawing.result()
    lines, all_sure = warnings_of(modules.modules)
    say(tally.text(" cells"), *lines, *as_lines(tally.notes), f"{modules_folder} shows the modules.")
    return all_sure


# ---------------------------------------------------------------- command


def shard(text):
    """(K, N) of a text K/N: the K-th of N shares."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r}: expected K/N with K from 1 to N, such as 2/8")
    return int(match[1]), int(match[2])


def options():
    """The parser of this script's command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", metavar="IMAGES", help="folders, files, globs, or - for a list on stdin")
    text = "turn cells upright and cut them tightly where their border is seen (0.1 s a cell)"
    parser.add_argument("--align", action="store_true", help=text)
    group = parser.add_argument_group("network")
    text = "ONNX file or checkpoint (the newer of onnx/best.onnx and checkpoints/best.ckp, else cells.onnx)"
    group.add_argument("--model", type=Path, metavar="FILE", help=text)
    text = "thresholds: f1 (highest F1) or recall (misses 5 %% of each defect) (%(default)s)"
    group.add_argument("--operating-point", default="f1", metavar="NAME", help=text)
    group.add_argument("--tta", action="store_true", help="mean over an image's eight symmetries (checkpoints)")
    group = parser.add_argument_group("results")
    group.add_argument("--csv", type=Path, metavar="FILE", help="write the rows there (the screen)")
    group.add_argument("--resume", action="store_true", help="continue --csv: skip the images that it has")
    group.add_argument("--report", metavar="FILE", help="write an HTML page with counts and the defective cells")
    text = "write an HTML page on which to label cells, the most doubtful first"
    group.add_argument("--review", metavar="FILE", help=text)
    group.add_argument("--embed", action="store_true", help="put the images into the page of --review")
    group = parser.add_argument_group("whole modules")
    text = "the images show modules of so many columns x rows of cells, such as 10x6"
    group.add_argument("--grid", metavar="CxR", help=text)
    text = "rough corners (filename;x1;y1 … x4;y4, as in modules.csv) of modules that are not found"
    group.add_argument("--corners", metavar="CSV", help=text)
    group = parser.add_argument_group("speed")
    text = "every N-th image, from the K-th on (all)"
    group.add_argument("--shard", type=shard, default=(1, 1), metavar="K/N", help=text)
    group.add_argument("--engine", choices=ENGINES, help="what runs an ONNX file (auto)")
    text = "precision of OpenVINO; auto: bfloat16 where it is faster, which changes probabilities (float32)"
    group.add_argument("--engine-precision", choices=PRECISIONS, help=text)
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(%(default)s)")
    group.add_argument("--batch-size", type=int, default=16, metavar="N", help="images at a time (%(default)s)")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads for an ONNX file, 0: all (0)")
    return parser


def check_options(args):
    """Raise InputError for options that contradict each other, and for a table that would be overwritten."""
    if args.batch_size < 1:
        raise InputError(f"--batch-size {args.batch_size}: must be at least 1")
    if args.corners and not args.grid:
        raise InputError("--corners: needs --grid")
    if args.align and args.grid:
        raise InputError("--align: is for single cells; --grid cuts them upright anyway")
    if args.embed and not args.review:
        raise InputError("--embed: needs --review, whose images it puts into the page")
    if args.grid and not args.csv:
        raise InputError("--grid: needs --csv or --report; the cells and the modules' images go beside it")
    if args.resume and not args.csv:
        raise InputError("--resume: needs --csv, the file to continue")
    if args.csv and args.csv.exists() and not args.resume:
        raise InputError(f"{args.csv}: already exists; add --resume to continue it, or give another --csv")


def run(args):
    """Judge images, write the table and the pages; returns the exit code."""
    layout = None
    if args.grid:
        layout = ModuleLayout(*grid_size(args.grid), read_corners(args.corners) if args.corners else {})
    model, why = (args.model, "") if args.model else default_model()
    onnx_options = {"engine": args.engine, "precision": args.engine_precision, "threads": args.threads}
    onnx_options = {name: value for name, value in onnx_options.items() if value is not None}
    engine = open_network(model, args.tta, args.device, **onnx_options)
    engine = replace(engine, batch_size=args.batch_size)
    network = describe_network(from_here(model), engine.metadata) + why
    warning = warning_about(engine.metadata, from_here(SHIPPED))
    about = [network, warning] if warning else [network]
    say(*about)
    thresholds = engine.thresholds(args.operating_point)
    found = find_images(args.inputs)
    say(*found.lines())
    paths = found.paths
    if not paths:
        raise InputError(f"{' '.join(args.inputs)}: no images there ({' '.join(sorted(SUFFIXES))})")
    number, shares = args.shard
    share = slice(number - 1, None, shares)
    identity = {  # what must be the same for a table to be continued
        "network": hashlib.sha256(model.read_bytes()).hexdigest(),
        "operating point": args.operating_point,
        "tta": args.tta,
        "grid": f"{layout.columns}x{layout.rows}" if layout else "",
        "align": args.align,
    }
    modules_folder = None
    with OutputTable(args.csv, engine.classes, bool(layout), identity) as table:
        if layout:
            modules_folder = folders_of(args.csv.with_suffix(""))[1]
            named = list(zip(paths, module_names(paths)))
            complete = predict_modules(engine, thresholds, named[share], layout, table)
        else:
            left = [path for path in paths[share] if path not in table.done]
            complete = predict_cells(engine, thresholds, left, args.align, table)
    if model.suffix.lower() == ".onnx" and (args.report or args.review):
        engine = replace(engine, class_maps=onnx_class_maps(model, args.threads or 0))
    if args.report:
        write_report(args.csv, args.report, engine, thresholds, ". ".join(about), modules_folder)
        say(f"{args.report} shows them.")
    if args.review:
        count = write_review(args.csv, args.review, engine, thresholds, args.embed)
        say(f"{args.review}: {counted(count, 'cell')} to label, the doubtful ones first.")
    return 0 if complete and not found.unreadable else 3


@command
def main(argv=None):
    """Command line of this file; returns the exit code: 0, 2 for bad input, 3 when some images or folders can't be read
    or some modules are not sure."""
    args = options().parse_args(argv)
    page = args.report or args.review
    if page and not args.csv:
        args.csv = Path(page).with_suffix(".csv")
    check_options(args)
    return run(args)


if __name__ == "__main__":
    raise SystemExit(main())
