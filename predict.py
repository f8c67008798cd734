"""Find the defects in cell images with a trained network; needs no PyTorch for an ONNX model.

$ python predict.py images/                                # rows on the screen, with onnx/best.onnx
$ python predict.py line1/ 'line2/**/*.png' --csv out.csv --report out.html
$ find . -name '*.tif' | python predict.py - --model checkpoints/best.ckp --csv out.csv --resume
$ python predict.py mine/ --review review.html             # a page on which to label the doubtful cells
$ python predict.py modules/ --grid 10x6 --csv cells.csv --report cells.html    # whole modules, 10 columns of 6 cells
"""

import argparse
import contextlib
import csv
import hashlib
import io
import itertools
import json
import re
import sys
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from elcells.data.images import LIKE_MODULE, NEARLY_BLACK, SUFFIXES, THREADS, as_lines, examine, find_images, to_square
from elcells.files import ANY_NAME, InputError, atomic_path, print_any_name
from elcells.inference.class_maps import onnx_class_maps, weighted
from elcells.inference.engines import ENGINES, PRECISIONS, Engine, open_model
from elcells.modules.align import align_cell
from elcells.modules.cutting import grid_size, guess_grid, read_corners
from elcells.modules.overlay import draw_module, verdict
from elcells.modules.parallel import ModulesTable, cell_name, cut_modules, folders_of, module_names, warnings_of
from elcells.pages.report import write_report
from elcells.pages.review import write_review

NOTHING = {"grid": "", "align": False}  # what earlier versions, which had them not, did
BATCHES_AHEAD = 4  # decoded while the network works; bounds the memory
SHIPPED = Path(__file__).resolve().parent / "cells.onnx"


# ---------------------------------------------------------------- input and output


def columns(classes, of_modules=False):
    """Header of the output: a table that `train.py --data` could read, with probabilities, brightness and errors.

    of_modules: with each cell's place in its module, and whether that is sure.
    """
    place = ["module", "row", "column", "sure"] if of_modules else []
    return ["filename", *classes, *(f"p_{c}" for c in classes), *place, "brightness", "error"]


def read_done(path, header_wanted):
    """File names whose rows are in an output table, which is cut behind its last complete row.

    Raises InputError when it is the output of another program or of other classes.
    """
    with open(path, "rb+") as file:
        raw = file.read()
        file.truncate(raw.rfind(b"\n") + 1)
    rows = csv.reader(io.StringIO(raw[: raw.rfind(b"\n") + 1].decode("utf-8", ANY_NAME)), delimiter=";")
    header = next(rows, None)
    if header is not None and header != header_wanted:
        raise InputError(f"{path}: is no output of this model (its columns are others); give another --csv")
    return {row[0] for row in rows}, header is not None


def read_or_error(path, size, align=False):
    """(uint8 (size, size), "", what was assumed) or (None, what is wrong with the file, [])."""
    try:
        pixels, notes = examine(path, size)
        if align:
            pixels, moved = align_cell(pixels)
            notes += ["were turned upright or cut tighter"] * moved
        return pixels, "", notes
    except InputError as error:
        return None, " ".join(str(error).split()), []


def batches(paths, size, batch_size, threads, align=False):
    """Yield (paths, images, errors, notes), `batch_size` files each, decoded in threads a few batches ahead."""
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque()
        paths = iter(paths)
        try:
            while True:
                while len(waiting) < BATCHES_AHEAD and (part := list(itertools.islice(paths, batch_size))):
                    waiting.append((part, [pool.submit(read_or_error, p, size, align) for p in part]))
                if not waiting:
                    return
                part, futures = waiting.popleft()
                results = [f.result() for f in futures]
                yield part, *zip(*results)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def predict(engine, paths, write, batch_size=16, threads=THREADS, align=False):
    """Run an Engine over image files.

    write(row) gets one list an image: [path, 0/1 of each class, probability of each class, brightness (mean pixel in
    0..1), error], the values empty where the file can't be read. Returns (count, errors, how many of them are
    NEARLY_BLACK, count of positives per class, Counter of what was assumed of count, the first image of each).
    """
    count, failed, black, notes, first = 0, 0, 0, Counter(), {}
    positives = np.zeros(len(engine.classes), int)
    for part, images, errors, assumed in batches(paths, engine.image_size, batch_size, threads, align):
        for path, note in ((path, note) for path, said in zip(part, assumed) for note in said):
            notes[note] += 1
            first.setdefault(note, path)
        good = [i for i, image in enumerate(images) if image is not None]
        p = engine(np.stack([images[i] for i in good])[:, None]) if good else None
        place = {i: k for k, i in enumerate(good)}
        for i, path in enumerate(part):
            if i in place:
                found = (p[place[i]] >= engine.thresholds).astype(int)
                positives += found
                brightness = images[i].mean() / 255
                black += brightness < NEARLY_BLACK
                write([path, *found, *(f"{v:.4f}" for v in p[place[i]]), f"{brightness:.3f}", ""])
            else:
                write([path, *[""] * (2 * len(engine.classes) + 1), errors[i]])
        count, failed = count + len(part), failed + len(part) - len(good)
    return count, failed, black, positives, notes, first


def predict_modules(engine, images, args, done, write, flush):
    """Cut whole modules and run an Engine over their cells, while others cut the next.

    images: list of (path, name), those of a resumed run too. done: file names of the cells that have their rows.
    write(row): as in predict, with the cell's place. flush(): brings the rows to the file, before their module is noted
    as done. Returns (modules, failed or not sure, positives per class, lines to tell).
    """
    wide, high, corners = args.grid_size
    folder, about = folders_of(Path(args.csv).with_suffix(""))
    notes, positives = Counter(), np.zeros(len(engine.classes), int)
    with (
        ModulesTable(about / "modules.csv", [*engine.classes, "nearly_black"]) as table,
        ThreadPoolExecutor(1) as drawing,
        contextlib.closing(
            cut_modules([p for p in images if p[1] not in table.done], folder, wide, high, corners)
        ) as made,
    ):
        drawn = None
        for name, module in made:
            notes.update(module["notes"])
            counts = [""] * (len(engine.classes) + 1)
            if "cells" in module:
                black = module["black"]
                live, p = np.flatnonzero(~black), np.zeros((len(black), len(engine.classes)))
                for i in range(0, len(live), args.batch_size):
                    part = live[i : i + args.batch_size]
                    squares = [to_square(Image.fromarray(module["cells"][k]), engine.image_size) for k in part]
                    p[part] = engine(np.stack(squares)[:, None])
                found = (p >= engine.thresholds) & ~black[:, None]
                for k, cell in enumerate(module["cells"]):
                    path = Path(folder) / cell_name(name, k, wide)
                    if str(path) not in done:
                        judged = [*found[k].astype(int), *(f"{v:.4f}" for v in p[k])]
                        judged = [""] * len(judged) if black[k] else judged
                        place = [name, k // wide + 1, k % wide + 1, module["sure"]]
                        error = "nearly black: not judged" if black[k] else ""
                        write([path, *judged, *place, f"{cell.mean() / 255:.3f}", error])
                positives += found.sum(0)
                counts = [*found.sum(0), int(black.sum())]
                shown = ["nearly black" if b else verdict(f, engine.classes) for f, b in zip(found, black)]
                said = [" ".join(f"{v:.2f}" for v, f in zip(*pair) if f) for pair in zip(p, found)]
                if drawn:
                    drawn.result()
                drawn = drawing.submit(draw_module, module, about / f"{name}.png", shown, said)
            flush()
            table.add(module, name, counts)
        if drawn:
            drawn.result()
    lines, sure = warnings_of(table.rows)
    return len(table.rows), not sure, positives, [*lines, *as_lines(notes)]


# ---------------------------------------------------------------- command


def open_network(path, engine="auto", threads=0, tta=False, device="auto", precision="float32"):
    """Open an ONNX file (`elcells.inference.engines.open_model`) or a checkpoint, which needs PyTorch, as an Engine.

    tta: the mean over the eight symmetries of an image, for checkpoints.
    """
    if Path(path).suffix == ".onnx":
        if tta:
            raise InputError(f"--tta: {path} can't be changed; export it with `python export_onnx.py --tta`")
        return open_model(path, engine, threads, device, precision)
    if engine != "auto" or threads or precision != "float32":
        raise InputError(f"{path}: PyTorch runs a checkpoint; engine, its precision and threads are for ONNX files")
    import torch

    from elcells.devices import keep_freed_memory, pick_device
    from model import load_model, map_layers

    keep_freed_memory()
    device = pick_device(device)
    model, _ = load_model(path, device)
    model = model.to(memory_format=torch.channels_last)
    if tta:
        model.average_symmetries()

    @torch.inference_mode()
    def run(images):
        return model.probabilities(model(torch.from_numpy(images).to(device))).cpu().numpy()

    config = model.config
    points = config["operating_points"]

    @torch.inference_mode()
    def class_maps(images):
        seen = []
        layer = model.network.get_submodule(map_layers(model.network)[-1])
        with layer.register_forward_hook(lambda *arguments: seen.append(arguments[-1])):
            model.network(model.normalise(torch.from_numpy(images).to(device)))
        return weighted(seen[0].float().cpu().numpy(), model.network.fc.weight.float().cpu().numpy())

    name = f"pytorch on {device.type}"
    return Engine(run, model.classes, config["thresholds"], config["image_size"], name, points, class_maps)


def default_model():
    """The newer of onnx/best.onnx and checkpoints/best.ckp, else the trained network that comes along; said if there
    was a choice."""
    there = [p for p in (Path("onnx/best.onnx"), Path("checkpoints/best.ckp")) if p.exists()]
    if not there:
        print(
            f"No onnx/best.onnx nor checkpoints/best.ckp here: taking {SHIPPED.name} (doc/model_card.md).",
            file=sys.stderr,
        )
        return SHIPPED
    newest = max(there, key=lambda p: p.stat().st_mtime_ns)
    if len(there) == 2:
        older = min(there, key=lambda p: p.stat().st_mtime_ns)
        print(f"Taking {newest}, which is newer than {older}.", file=sys.stderr)
    return newest


def begun_by(table, identity):
    """Note beside an output table what it is made by, or raise InputError where another one began it.

    identity: dict of the network's hash and all that changes rows. A table without a note is taken as it is.
    """
    note = Path(f"{table}.run.json")
    if Path(table).exists() and note.exists():
        before = json.loads(note.read_text())
        other = [k for k in identity if before.get(k, NOTHING.get(k)) != identity[k]]
        if other:
            raise InputError(
                f"{table}: was begun with another {' and '.join(other)}; go on with that, or give another --csv"
            )
        return
    with atomic_path(note) as temporary:
        temporary.write_text(json.dumps(identity, indent=1))


def shard(text):
    """(K, N) of a text K/N: the K-th of N shares."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r}: expected K/N with K from 1 to N, such as 2/8")
    return int(found[1]), int(found[2])


def options():
    """The parser of this script's command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", metavar="IMAGES", help="folders, files, globs, or - for a list on stdin")
    group = parser.add_argument_group("network")
    network = "ONNX file or checkpoint (the newer of onnx/best.onnx and checkpoints/best.ckp, else cells.onnx)"
    group.add_argument("--model", metavar="FILE", help=network)
    points = "thresholds: f1 (highest F1) or recall (misses 5 %% of each defect) (%(default)s)"
    group.add_argument("--operating-point", default="f1", metavar="NAME", help=points)
    group.add_argument("--tta", action="store_true", help="mean over an image's eight symmetries (checkpoints)")
    group = parser.add_argument_group("results")
    group.add_argument("--csv", metavar="FILE", help="write the rows there (the screen)")
    group.add_argument("--resume", action="store_true", help="go on with --csv: skip the images that it has")
    group.add_argument("--report", metavar="FILE", help="write an HTML page with counts and the defective cells")
    review = "write an HTML page on which to label cells, those first on which a look pays most"
    group.add_argument("--review", metavar="FILE", help=review)
    group.add_argument("--embed", action="store_true", help="put the images into the page of --review")
    aligned = "turn cells upright and cut them tightly, where their border is seen (0.1 s a cell)"
    parser.add_argument("--align", action="store_true", help=aligned)
    group = parser.add_argument_group("whole modules")
    group.add_argument(
        "--grid", metavar="CxR", help="images show modules: columns x rows of cells, as they stand there"
    )
    corners = "rough corners (filename;x1;y1 … x4;y4, as in modules.csv) of modules that are not found"
    group.add_argument("--corners", metavar="CSV", help=corners)
    group = parser.add_argument_group("speed")
    group.add_argument(
        "--shard", type=shard, default=(1, 1), metavar="K/N", help="every N-th image, from the K-th on (all)"
    )
    group.add_argument("--engine", choices=ENGINES, default="auto", help="what runs an ONNX file (%(default)s)")
    precision = "of openvino; auto: bfloat16 where it is fast, which moves probabilities (%(default)s)"
    group.add_argument("--engine-precision", choices=PRECISIONS, default="float32", help=precision)
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(%(default)s)")
    group.add_argument("--batch-size", type=int, default=16, metavar="N", help="images at a time (%(default)s)")
    group.add_argument("--threads", type=int, default=0, metavar="N", help="of the network, 0: all (%(default)s)")
    return parser


def write_pages(args, engine, model, about=None):
    """Write the pages that args ask for; about: folder of the modules' images."""
    if not args.report and not args.review:
        return
    class_maps = onnx_class_maps(model, args.threads) if Path(model).suffix == ".onnx" else engine.class_maps
    if args.report:
        write_report(args.csv, args.report, engine, model, about, class_maps)
        print(f"{args.report} shows them.", file=sys.stderr)
    if args.review:
        count = write_review(args.csv, args.review, engine, class_maps, args.embed)
        print(f"{args.review}: {count} cells to label, the doubtful ones first.", file=sys.stderr)


def run(args):
    """Predict what args ask for; returns the exit code."""
    if args.batch_size < 1:
        raise InputError(f"--batch-size {args.batch_size}: must be at least 1")
    if (args.report or args.review) and not args.csv:
        args.csv = str(Path(args.report or args.review).with_suffix(".csv"))
    if args.embed and not args.review:
        raise InputError("--embed: needs --review, whose images it puts into the page")
    model = args.model or default_model()
    engine = open_network(model, args.engine, args.threads, args.tta, args.device, args.engine_precision)
    engine.set_operating_point(args.operating_point)
    if args.grid:
        if not args.csv:
            raise InputError("--grid: needs --csv or --report; the cells and the modules' images go beside it")
        args.grid_size = (*grid_size(args.grid), read_corners(args.corners) if args.corners else {})
        if args.align:
            raise InputError("--align: is for single cells; --grid cuts them upright anyway")
    elif args.corners:
        raise InputError("--corners: needs --grid")
    if args.csv and Path(args.csv).exists() and not args.resume:
        raise InputError(f"{args.csv}: is there already; add --resume to go on with it, or give another --csv")
    if args.resume and not args.csv:
        raise InputError("--resume: needs --csv, the file to go on with")
    found = list(find_images(args.inputs))
    if not found:
        raise InputError(f"{' '.join(args.inputs)}: no images there ({' '.join(sorted(SUFFIXES))})")
    done, has_header, header = set(), False, columns(engine.classes, bool(args.grid))
    if args.csv:
        Path(args.csv).parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(Path(model).read_bytes()).hexdigest()
        identity = {"network": digest, "operating point": args.operating_point, "tta": args.tta}
        begun_by(args.csv, {**identity, "grid": args.grid or "", "align": args.align})
        if Path(args.csv).exists():
            done, has_header = read_done(args.csv, header)
    number, shards = args.shard
    paths = [p for p in found[number - 1 :: shards] if p not in done]
    with contextlib.ExitStack() as stack:
        file = sys.stdout
        if args.csv:
            file = stack.enter_context(open(args.csv, "a", encoding="utf-8", errors=ANY_NAME, newline=""))
        writer = csv.writer(file, delimiter=";", lineterminator="\n")
        if not has_header:
            writer.writerow(header)
        bar = stack.enter_context(tqdm(total=len(paths), unit="image", leave=False))
        flushed = time.monotonic()

        def write(row):
            nonlocal flushed
            writer.writerow(row)
            bar.update()
            if time.monotonic() - flushed > 1:
                file.flush()
                flushed = time.monotonic()

        started = time.monotonic()
        if args.grid:
            names = dict(zip(found, module_names(found)))
            bar.total, bar.unit = len(paths) * args.grid_size[0] * args.grid_size[1], "cell"
            modules, unsure, positives, lines = predict_modules(
                engine, [(path, names[path]) for path in paths], args, done, write, file.flush
            )
        else:
            images, failed, black, positives, notes, first = predict(
                engine, paths, write, args.batch_size, align=args.align
            )
        seconds = time.monotonic() - started
    if args.grid:
        counts = ", ".join(f"{n} {c}" for c, n in zip(engine.classes, positives))
        speed = f"{modules / seconds:.2f} modules/s with {engine.name}" if modules else "nothing left to do"
        print(f"{modules} modules: {counts} cells; {speed}", file=sys.stderr)
        for line in lines:
            print(line, file=sys.stderr)
        about = folders_of(Path(args.csv).with_suffix(""))[1]
        print(f"{about} shows the modules.", file=sys.stderr)
        write_pages(args, engine, model, about)
        return 3 if unsure else 0
    speed = f"{images / seconds:.1f} images/s with {engine.name}" if images else "nothing left to do"
    found = ", ".join(f"{n} {c}" for c, n in zip(engine.classes, positives))
    print(f"{images} images: {found}, {failed} unreadable; {speed}", file=sys.stderr)
    if black:
        print(f"{black} of them are nearly black, dead or underexposed: the probabilities can't tell.", file=sys.stderr)
    for line in as_lines(notes):
        print(line, file=sys.stderr)
    if notes[LIKE_MODULE]:
        if guess := guess_grid(first[LIKE_MODULE]):
            print(f"The first of them looks like --grid {guess}.", file=sys.stderr)
    write_pages(args, engine, model)
    return 3 if failed else 0


def main(argv=None):
    """Command line of this file; returns the exit code: 0, 2 for bad input, 3 when some images can't be read
    or some modules are not sure."""
    print_any_name()
    args = options().parse_args(argv)
    try:
        return run(args)
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
        return 0
    except (InputError, OSError) as error:
        print(f"predict.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; --resume goes on" if args.csv else "stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
