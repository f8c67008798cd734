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
import itertools
import re
import sys
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from elcells.data.images import LIKE_MODULE, SUFFIXES, THREADS, as_lines, examine, find_images
from elcells.files import InputError, command
from elcells.inference.cells import CellResult, judge
from elcells.inference.class_maps import onnx_class_maps, weighted
from elcells.inference.engines import ENGINES, PRECISIONS, Engine, open_model
from elcells.inference.output import OutputTable
from elcells.modules.align import align_cell
from elcells.modules.cutting import grid_size, guess_grid, read_corners
from elcells.modules.judging import ModuleLayout, draw_results, judge_modules
from elcells.modules.parallel import ModulesTable, folders_of, module_names, warnings_of
from elcells.pages.report import write_report
from elcells.pages.review import write_review

BATCHES_AHEAD = 4  # decoded while the network works; bounds the memory
SHIPPED = Path(__file__).resolve().parent / "cells.onnx"


def say(*lines):
    """Print lines where they do not mix with the rows."""
    for line in lines:
        print(line, file=sys.stderr)


def counts_text(counts, classes):
    """Text such as "3 crack, 1 inactive"."""
    return ", ".join(f"{counts[c]} {c}" for c in classes)


@dataclass(frozen=True)
class NetworkChoice:
    """Which network predicts (an ONNX file or a checkpoint), and how it is run."""

    path: Path
    operating_point: str = "f1"
    tta: bool = False  # the mean over an image's eight symmetries; only for checkpoints
    device: str = "auto"
    engine: str = "auto"  # this and the next two are only for ONNX files (`open_model`)
    precision: str = "float32"
    threads: int = 0


@dataclass(frozen=True)
class ImageChoice:
    """Which images are judged, and how they are taken."""

    inputs: list  # folders, files, globs, or -
    shard: tuple = (1, 1)  # (K, N): every N-th of them from the K-th on
    layout: ModuleLayout | None = None  # of whole modules
    align: bool = False
    batch_size: int = 16


@dataclass(frozen=True)
class Output:
    """Where results go: the table (None: the screen) and the pages that are asked for."""

    table: Path | None
    report: Path | None
    review: Path | None
    embed: bool


# ---------------------------------------------------------------- networks


def open_network(choice):
    """Open an ONNX file or a checkpoint, which needs PyTorch, as an Engine."""
    path = Path(choice.path)
    if path.suffix == ".onnx":
        if choice.tta:
            raise InputError(f"--tta: {path} can't be changed; export it with `python export_onnx.py --tta`")
        return open_model(path, choice.engine, choice.threads, choice.device, choice.precision)
    if choice.engine != "auto" or choice.threads or choice.precision != "float32":
        raise InputError(f"{path}: PyTorch runs a checkpoint; engine, its precision and threads are for ONNX files")
    return open_checkpoint(path, choice.tta, choice.device)


def open_checkpoint(path, tta=False, device="auto"):
    """Open a checkpoint as an Engine; tta: predict by the mean over an image's eight symmetries."""
    import torch

    from elcells.devices import keep_freed_memory, pick_device
    from model import load_model

    keep_freed_memory()
    device = pick_device(device)
    model, _ = load_model(path, device)
    model = model.to(memory_format=torch.channels_last)
    operating_points = model.calibrated(tta).operating_points
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

    name = f"pytorch on {device.type}"
    return Engine(run, model.classes, model.metadata.image_size, name, operating_points, class_maps)


def default_model():
    """The newer of onnx/best.onnx and checkpoints/best.ckp, else the shipped network; prints the choice."""
    models = [path for path in (Path("onnx/best.onnx"), Path("checkpoints/best.ckp")) if path.exists()]
    if not models:
        say(f"No onnx/best.onnx nor checkpoints/best.ckp here: taking {SHIPPED.name} (doc/model_card.md).")
        return SHIPPED
    models.sort(key=lambda path: path.stat().st_mtime_ns)
    if len(models) == 2:
        say(f"Taking {models[1]}, which is newer than {models[0]}.")
    return models[-1]


# ---------------------------------------------------------------- images of cells


def read_cell(path, size, align=False):
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


def batches(paths, size, batch_size, threads=THREADS, align=False):
    """Yield lists of `batch_size` results of read_cell, decoded in threads a few batches ahead."""
    paths = iter(paths)
    waiting = deque()

    def submit_next():
        batch = list(itertools.islice(paths, batch_size))
        if batch:
            waiting.append([pool.submit(read_cell, path, size, align) for path in batch])

    with ThreadPoolExecutor(threads) as pool:
        try:
            for _ in range(BATCHES_AHEAD):
                submit_next()
            while waiting:
                yield [future.result() for future in waiting.popleft()]
                submit_next()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def judge_images(engine, thresholds, paths, batch_size=16, align=False):
    """Yield the CellResult of each image file, in order."""
    for cells in batches(paths, engine.image_size, batch_size, align=align):
        yield from judge(engine, thresholds, cells, batch_size)


def predict_cells(engine, thresholds, paths, images, table):
    """Judge image files of cells, write their rows and print a summary; returns whether all could be read."""
    unreadable = nearly_black = 0
    defects, notes = Counter(), Counter()
    examples = {}  # an image for each note
    started = time.monotonic()
    results = judge_images(engine, thresholds, paths, images.batch_size, images.align)
    for cell in tqdm(results, total=len(paths), unit="image", leave=False):
        table.write(cell)
        unreadable += not cell.judged
        nearly_black += cell.nearly_black
        defects.update(cell.defects(engine.classes))
        notes.update(cell.notes)
        examples.update({note: cell.filename for note in cell.notes if note not in examples})
    seconds = time.monotonic() - started
    speed = f"{len(paths) / seconds:.1f} images/s with {engine.name}" if paths else "nothing left to do"
    say(f"{len(paths)} images: {counts_text(defects, engine.classes)}, {unreadable} unreadable; {speed}")
    if nearly_black:
        say(f"{nearly_black} of them are nearly black (dead or underexposed): too dark to judge.")
    say(*as_lines(notes))
    if LIKE_MODULE in notes:
        grid = guess_grid(examples[LIKE_MODULE])
        if grid:
            say(f"The first of them looks like --grid {grid}.")
    return not unreadable


# ---------------------------------------------------------------- images of whole modules


def predict_modules(engine, thresholds, named, images, table):
    """Cut whole modules, judge their cells, write rows and print a summary; returns whether all modules are sure.

    named: list of (path, name), including those that a resumed run has done.
    """
    classes = engine.classes
    cells_folder, modules_folder = folders_of(table.path.with_suffix(""))
    defects, notes = Counter(), Counter()
    drawing = None  # of the module before
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(1))
        modules = stack.enter_context(ModulesTable(modules_folder / "modules.csv", [*classes, "nearly_black"]))
        left = [(path, name) for path, name in named if name not in modules.done]
        judged = judge_modules(engine, thresholds, left, cells_folder, images.layout, images.batch_size)
        stack.enter_context(contextlib.closing(judged))
        for name, module, results in judged:
            for cell in results:
                if cell.filename not in table.done:
                    table.write(cell)
            table.flush()  # before the module is noted as done
            counts = Counter(itertools.chain.from_iterable(cell.defects(classes) for cell in results))
            defects.update(counts)
            notes.update(module.notes)
            if results:
                if drawing:
                    drawing.result()
                drawing = pool.submit(draw_results, module, modules_folder / f"{name}.png", results, classes)
                modules.add(module, name, [*(counts[c] for c in classes), int(module.black.sum())])
            else:
                modules.add(module, name, [""] * (len(classes) + 1))
        if drawing:
            drawing.result()
    seconds = time.monotonic() - started
    count = len(modules.modules)
    speed = f"{count / seconds:.2f} modules/s with {engine.name}" if count else "nothing left to do"
    lines, all_sure = warnings_of(modules.modules)
    say(f"{count} modules: {counts_text(defects, classes)} cells; {speed}")
    say(*lines, *as_lines(notes), f"{modules_folder} shows the modules.")
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
    group.add_argument("--model", metavar="FILE", help=text)
    text = "thresholds: f1 (highest F1) or recall (misses 5 %% of each defect) (%(default)s)"
    group.add_argument("--operating-point", default="f1", metavar="NAME", help=text)
    group.add_argument("--tta", action="store_true", help="mean over an image's eight symmetries (checkpoints)")
    group = parser.add_argument_group("results")
    group.add_argument("--csv", metavar="FILE", help="write the rows there (the screen)")
    group.add_argument("--resume", action="store_true", help="continue --csv: skip the images that it has")
    group.add_argument("--report", metavar="FILE", help="write an HTML page with counts and the defective cells")
    text = "write an HTML page on which to label cells, those first on which a look pays most"
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
    group.add_argument("--engine", choices=ENGINES, default="auto", help="what runs an ONNX file (%(default)s)")
    text = "of openvino; auto: bfloat16 where it is fast, which moves probabilities (%(default)s)"
    group.add_argument("--engine-precision", choices=PRECISIONS, default="float32", help=text)
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(%(default)s)")
    group.add_argument("--batch-size", type=int, default=16, metavar="N", help="images at a time (%(default)s)")
    group.add_argument("--threads", type=int, default=0, metavar="N", help="of the network, 0: all (%(default)s)")
    return parser


def images_of(args):
    """The ImageChoice of parsed options; InputError for options that contradict each other."""
    if args.batch_size < 1:
        raise InputError(f"--batch-size {args.batch_size}: must be at least 1")
    if args.corners and not args.grid:
        raise InputError("--corners: needs --grid")
    if args.align and args.grid:
        raise InputError("--align: is for single cells; --grid cuts them upright anyway")
    layout = None
    if args.grid:
        layout = ModuleLayout(*grid_size(args.grid), read_corners(args.corners) if args.corners else {})
    return ImageChoice(args.inputs, args.shard, layout, args.align, args.batch_size)


def output_of(args):
    """The Output of parsed options; InputError for options that contradict each other."""
    page = args.report or args.review
    table = args.csv or (page and Path(page).with_suffix(".csv"))
    if args.embed and not args.review:
        raise InputError("--embed: needs --review, whose images it puts into the page")
    if args.grid and not table:
        raise InputError("--grid: needs --csv or --report; the cells and the modules' images go beside it")
    if args.resume and not table:
        raise InputError("--resume: needs --csv, the file to continue")
    if table and Path(table).exists() and not args.resume:
        raise InputError(f"{table}: already exists; add --resume to continue it, or give another --csv")
    return Output(table and Path(table), args.report, args.review, args.embed)


def identity(network, images):
    """What must be the same for a table to be continued, as the note beside it has it."""
    return {
        "network": hashlib.sha256(network.path.read_bytes()).hexdigest(),
        "operating point": network.operating_point,
        "tta": network.tta,
        "grid": f"{images.layout.columns}x{images.layout.rows}" if images.layout else "",
        "align": images.align,
    }


def write_pages(network, engine, output, modules_folder):
    """Write the pages that are asked for; modules_folder: of the modules' images, or None."""
    thresholds = engine.thresholds(network.operating_point)
    if network.path.suffix == ".onnx":
        engine = replace(engine, class_maps=onnx_class_maps(network.path, network.threads))
    if output.report:
        write_report(output.table, output.report, engine, thresholds, network.path.name, modules_folder)
        say(f"{output.report} shows them.")
    if output.review:
        count = write_review(output.table, output.review, engine, thresholds, output.embed)
        say(f"{output.review}: {count} cells to label, the doubtful ones first.")


def run(network, images, output):
    """Judge images, write the table and the pages; returns the exit code."""
    engine = open_network(network)
    thresholds = engine.thresholds(network.operating_point)
    paths = list(find_images(images.inputs))
    if not paths:
        raise InputError(f"{' '.join(images.inputs)}: no images there ({' '.join(sorted(SUFFIXES))})")
    number, shares = images.shard
    share = slice(number - 1, None, shares)
    with OutputTable(output.table, engine.classes, bool(images.layout), identity(network, images)) as table:
        if images.layout:
            named = list(zip(paths, module_names(paths)))
            complete = predict_modules(engine, thresholds, named[share], images, table)
        else:
            left = [path for path in paths[share] if path not in table.done]
            complete = predict_cells(engine, thresholds, left, images, table)
    if output.report or output.review:
        modules_folder = folders_of(output.table.with_suffix(""))[1] if images.layout else None
        write_pages(network, engine, output, modules_folder)
    return 0 if complete else 3


@command
def main(argv=None):
    """Command line of this file; returns the exit code: 0, 2 for bad input, 3 when some images can't be read
    or some modules are not sure."""
    args = options().parse_args(argv)
    images = images_of(args)
    output = output_of(args)
    path = Path(args.model) if args.model else default_model()
    network = NetworkChoice(
        path, args.operating_point, args.tta, args.device, args.engine, args.engine_precision, args.threads
    )
    return run(network, images, output)


if __name__ == "__main__":
    raise SystemExit(main())
