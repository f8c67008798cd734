"""Find the defects in cell pictures with a trained network; needs no PyTorch for an ONNX model.

$ python predict.py images/                                # rows on the screen, with onnx/best.onnx
$ python predict.py line1/ 'line2/**/*.png' --csv out.csv --report out.html
$ find . -name '*.tif' | python predict.py - --model checkpoints/best.ckp --csv out.csv --resume
$ torchrun --nproc-per-node 4 predict.py images/ --csv out.csv   # shared out to several processes
"""

import argparse
import base64
import contextlib
import csv
import datetime
import glob
import heapq
import html
import io
import itertools
import os
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

import data
from data import InputError, atomic_path
from engine import ENGINES, open_model

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".pgm"}
BATCHES_AHEAD = 4  # decoded while the network works; bounds the memory
SHIPPED = Path(__file__).resolve().parent / "cells.onnx"
REPORT_CELLS = 1000  # the surest defects that the report shows
NEARLY_BLACK = 0.13  # mean pixel in 0..1; darker cells of ELPV are but noise, and labelled neither (doc/labels.md)


# ---------------------------------------------------------------- input and output


def find_pictures(inputs):
    """Picture files of folders (searched recursively, by suffix), globs, files, and "-" (a list on stdin, a line each).

    Yields str paths, each folder's in order of name, each path once. Raises InputError for one that leads nowhere.
    """
    seen = set()
    for given in inputs:
        if given == "-":
            found = (line.rstrip("\r\n") for line in sys.stdin)
        elif os.path.isdir(given):
            found = walk(given)
        elif os.path.exists(given):
            found = [given]
        else:
            found = sorted(p for p in glob.glob(given, recursive=True) if Path(p).suffix.lower() in SUFFIXES)
            if not found:
                raise InputError(f"{given}: no such file or folder, and no picture matches it")
        for path in found:
            if path and path not in seen:
                seen.add(path)
                yield path


def walk(folder):
    """Picture files below a folder, sorted folder by folder."""
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(files):
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                yield os.path.join(root, name)


def columns(classes):
    """Header of the output: a table that `train.py --data` could read, with probabilities, brightness and errors."""
    return ["filename", *classes, *(f"p_{c}" for c in classes), "brightness", "error"]


def read_done(path, classes):
    """File names whose rows are in an output table, which is cut behind its last complete row.

    Raises InputError when it is the output of another program or of other classes.
    """
    with open(path, "rb+") as file:
        raw = file.read()
        file.truncate(raw.rfind(b"\n") + 1)
    rows = csv.reader(io.StringIO(raw[: raw.rfind(b"\n") + 1].decode("utf-8")), delimiter=";")
    header = next(rows, None)
    if header is not None and header != columns(classes):
        raise InputError(f"{path}: is no output of this model (its columns are others); give another --csv")
    return {row[0] for row in rows}, header is not None


def gather_parts(path, classes):
    """Append the rows that the processes of a (perhaps interrupted) run left in `path`.part* to `path`, in turn.

    Rows that `path` holds already are left out; the parts are removed when all are in.
    """
    parts = sorted(Path(path).parent.glob(f"{glob.escape(Path(path).name)}.part*"))
    done, has_header = read_done(path, classes) if Path(path).exists() else (set(), False)
    with contextlib.ExitStack() as stack:
        readers = []
        for part in parts:
            read_done(part, classes)  # cuts it behind its last complete row
            readers.append(csv.reader(stack.enter_context(open(part, encoding="utf-8", newline="")), delimiter=";"))
        writer = csv.writer(
            stack.enter_context(open(path, "a", encoding="utf-8", newline="")), delimiter=";", lineterminator="\n"
        )
        if not has_header:
            writer.writerow(columns(classes))
        for reader in readers:
            next(reader, None)
        for turn in itertools.zip_longest(*readers):
            writer.writerows(row for row in turn if row and row[0] not in done)
    for part in parts:
        part.unlink()


@contextlib.contextmanager
def processes():
    """Yield (number of this process, how many there are, add): add(numbers) sums a list over all, and waits for all.

    Under torchrun they are its processes, which PyTorch connects; else this is the only one.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield 0, 1, list
        return
    import torch
    import torch.distributed as dist

    def add(numbers):
        total = torch.tensor([0.0, *map(float, numbers)])  # gloo does not wait for anyone to sum nothing
        dist.all_reduce(total)
        return [int(n) for n in total[1:]]

    dist.init_process_group("gloo", timeout=datetime.timedelta(days=7))  # the first to be done waits for the last
    try:
        yield dist.get_rank(), world, add
    finally:
        dist.destroy_process_group()


def read_or_error(path, size):
    """(uint8 (size, size), "") or (None, what is wrong with the file)."""
    try:
        return data.read_picture(path, size), ""
    except InputError as error:
        return None, " ".join(str(error).split())


def batches(paths, size, batch_size, threads):
    """Yield (paths, pictures, errors), `batch_size` files each, decoded in threads a few batches ahead."""
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque()
        paths = iter(paths)
        try:
            while True:
                while len(waiting) < BATCHES_AHEAD and (part := list(itertools.islice(paths, batch_size))):
                    waiting.append((part, [pool.submit(read_or_error, p, size) for p in part]))
                if not waiting:
                    return
                part, futures = waiting.popleft()
                results = [f.result() for f in futures]
                yield part, [r[0] for r in results], [r[1] for r in results]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def predict(engine, paths, write, batch_size=16, threads=data.THREADS):
    """Run an Engine over picture files.

    write(row) gets one list a picture: [path, 0/1 of each class, probability of each class, brightness (mean pixel in
    0..1), error], the values empty where the file can't be read. Returns (pictures, errors, how many of them are
    NEARLY_BLACK, count of positives per class).
    """
    pictures = failed = black = 0
    positives = np.zeros(len(engine.classes), int)
    for part, images, errors in batches(paths, engine.image_size, batch_size, threads):
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
        pictures, failed = pictures + len(part), failed + len(part) - len(good)
    return pictures, failed, black, positives


# ---------------------------------------------------------------- report

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Defects in {pictures} cells</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222 }}
h1 {{ font-size: 1.5em }} .counts {{ display: flex; flex-wrap: wrap; gap: .8em; margin: 1em 0 1.5em }}
.counts div {{ background: #f2f4f7; border-radius: 6px; padding: .6em 1.1em }}
.counts b {{ display: block; font-size: 1.6em; font-variant-numeric: tabular-nums }}
table {{ border-collapse: collapse; width: 100% }} td, th {{ padding: .3em .8em; text-align: left }}
th {{ position: sticky; top: 0; background: #fff; border-bottom: 2px solid #888; cursor: pointer; white-space: nowrap }}
th[aria-sort=ascending]::after {{ content: " \\25b2" }} th[aria-sort=descending]::after {{ content: " \\25bc" }}
td {{ border-bottom: 1px solid #ddd }} td.n {{ font-variant-numeric: tabular-nums; white-space: nowrap }}
td.n span {{ display: inline-block; height: .7em; background: #0072b2; margin-left: .6em }}
td.n.yes {{ font-weight: 600 }} td.n.yes span {{ background: #d55e00 }}
img {{ display: block; width: 120px; height: 120px; image-rendering: auto }} .f {{ overflow-wrap: anywhere }}
.error {{ color: #a00 }} footer {{ color: #666; margin-top: 2em }}
</style></head><body>
<h1>Defects in solar cells</h1>
<p>{model}, {when}</p>
<div class="counts">{counts}</div>
<p>{note} Click a column's title to sort.</p>
<table><thead><tr><th>cell</th><th>file</th>{heads}</tr></thead><tbody>
{rows}
</tbody></table>
{listed}
<footer>A cell counts as positive from these probabilities on: {thresholds}.</footer>
<script>
document.querySelectorAll("th").forEach((th, i) => th.addEventListener("click", () => {{
  const body = document.querySelector("tbody"), down = th.getAttribute("aria-sort") !== "descending";
  const key = r => r.cells[i].dataset.v ?? r.cells[i].textContent;
  const order = (a, b) => i > 1 ? a - b : String(a).localeCompare(b, undefined, {{numeric: true}});
  document.querySelectorAll("th").forEach(t => t.removeAttribute("aria-sort"));
  th.setAttribute("aria-sort", down ? "descending" : "ascending");
  [...body.rows].sort((a, b) => (down ? -1 : 1) * order(key(a), key(b))).forEach(r => body.append(r));
}}));
</script></body></html>
"""


def thumbnail(path, side=120):
    """A picture as a data: URI of a small JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(data.read_picture(path, side)).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def write_report(table, target, engine, model):
    """One self-contained HTML page about an output table: counts, and the surest defects with their pictures."""
    n = len(engine.classes)
    pictures, positives, defective, errors, dark = 0, np.zeros(n, int), [], [], []
    sound = count = failed = black = 0
    with open(table, encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter=";")
        next(rows)
        for row in rows:
            pictures += 1
            if row[-1]:
                failed += 1
                errors.append(row) if len(errors) < REPORT_CELLS else None
                continue
            found, p = np.array(row[1 : 1 + n], int), [float(v) for v in row[1 + n : 1 + 2 * n]]
            positives += found
            if float(row[-2]) < NEARLY_BLACK:
                black += 1
                dark.append(row[0]) if len(dark) < REPORT_CELLS else None
            sound += not found.any()
            if found.any():
                count += 1
                push = heapq.heappush if len(defective) < REPORT_CELLS else heapq.heappushpop
                push(defective, (max(np.array(p)[found > 0]), row[0], found.tolist(), p))
    lines = []
    for _, path, found, p in sorted(defective, reverse=True):
        try:
            picture = f'<img loading="lazy" alt="" src="{thumbnail(path)}">'
        except InputError:
            picture = "(gone)"
        cells = "".join(
            f'<td class="n{" yes" * f}" data-v="{v}">{v:.3f}<span style="width:{round(60 * v)}px"></span></td>'
            for f, v in zip(found, p)
        )
        name = html.escape(path)
        lines.append(f'<tr><td data-v="{name}">{picture}</td><td class="f">{name}</td>{cells}</tr>')
    counts = [("cells", pictures), *zip(engine.classes, positives), ("no defect", sound), ("unreadable", failed)]
    counts += [("nearly black", black)] * (black > 0)
    lists = {
        "Nearly black: dead or underexposed, which the probabilities can't tell": dark,
        "Unreadable": [row[-1] for row in errors],
    }
    listed = ""
    for title, part in lists.items():
        names = "".join(f"<li>{html.escape(line)}</li>" for line in part)
        listed += f'<h2>{title}</h2><ul class="error">{names}</ul>' * bool(part)
    page = PAGE.format(
        pictures=pictures,
        model=html.escape(str(model)),
        when=time.strftime("%Y-%m-%d %H:%M"),
        counts="".join(f"<div><b>{value}</b>{html.escape(name)}</div>" for name, value in counts),
        note=f"{count} cells have a defect"
        + (f"; the {REPORT_CELLS} surest are shown." if count > REPORT_CELLS else ", the surest first."),
        heads="".join(f"<th>{html.escape(c)}</th>" for c in engine.classes),
        rows="\n".join(lines),
        listed=listed,
        thresholds=", ".join(f"{html.escape(c)} {t:.3f}" for c, t in zip(engine.classes, engine.thresholds)),
    )
    with atomic_path(target) as temporary:
        temporary.write_text(page, encoding="utf-8")


# ---------------------------------------------------------------- command


def default_model():
    """onnx/best.onnx where it is there, else checkpoints/best.ckp, else the trained network that comes along."""
    for path in ("onnx/best.onnx", "checkpoints/best.ckp"):
        if Path(path).exists():
            return path
    print(
        f"No onnx/best.onnx nor checkpoints/best.ckp here: {SHIPPED.name} judges (doc/model_card.md).", file=sys.stderr
    )
    return SHIPPED


def options():
    """The parser of this script's command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", metavar="PICTURES", help="folders, files, globs, or - for a list on stdin")
    group = parser.add_argument_group("network")
    group.add_argument(
        "--model",
        metavar="FILE",
        help="ONNX file or checkpoint (onnx/best.onnx, else checkpoints/best.ckp, else cells.onnx, which comes along)",
    )
    group.add_argument(
        "--operating-point",
        default="f1",
        metavar="NAME",
        help="thresholds: f1 (highest F1), or recall (no more than 5 %% of each defect missed), as found on the "
        "validation part (%(default)s)",
    )
    group.add_argument("--tta", action="store_true", help="mean over a picture's eight symmetries (checkpoints)")
    group = parser.add_argument_group("results")
    group.add_argument("--csv", metavar="FILE", help="write the rows there (the screen)")
    group.add_argument("--resume", action="store_true", help="go on with --csv: skip the pictures that it has")
    group.add_argument("--report", metavar="FILE", help="write an HTML page with counts and the defective cells")
    group = parser.add_argument_group("speed")
    group.add_argument("--engine", choices=ENGINES, default="auto", help="what runs an ONNX file (%(default)s)")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(%(default)s)")
    group.add_argument("--batch-size", type=int, default=16, metavar="N", help="pictures at a time (%(default)s)")
    group.add_argument("--threads", type=int, default=0, metavar="N", help="of the network, 0: all (%(default)s)")
    return parser


def run(args):
    """Predict what args ask for; returns the exit code."""
    if args.batch_size < 1:
        raise InputError(f"--batch-size {args.batch_size}: must be at least 1")
    if args.report and not args.csv:
        args.csv = str(Path(args.report).with_suffix(".csv"))
    model = args.model or default_model()
    engine = open_model(model, args.engine, args.threads, args.tta, args.device)
    engine.set_operating_point(args.operating_point)
    if args.csv and Path(args.csv).exists() and not args.resume:
        raise InputError(f"{args.csv}: is there already; add --resume to go on with it, or give another --csv")
    if args.resume and not args.csv:
        raise InputError("--resume: needs --csv, the file to go on with")
    with processes() as (rank, world, add):
        if world > 1 and (not args.csv or "-" in args.inputs):
            raise InputError("torchrun: several processes need --csv FILE, and folders or files instead of -")
        return run_share(args, engine, model, rank, world, add)


def run_share(args, engine, model, rank, world, add):
    """One process's part of `run`: every world-th picture, from the rank-th on."""
    done, target, has_header = set(), args.csv, False
    if args.csv:
        Path(args.csv).parent.mkdir(parents=True, exist_ok=True)
        if rank == 0 and (args.resume or world > 1):
            gather_parts(args.csv, engine.classes)
        add([])
        if Path(args.csv).exists():
            done, has_header = read_done(args.csv, engine.classes)
        if world > 1:
            target, has_header = f"{args.csv}.part{rank}", False

    paths = find_pictures(args.inputs)
    first = next(paths, None)
    if first is None:
        raise InputError(f"{' '.join(args.inputs)}: no pictures there ({' '.join(sorted(SUFFIXES))})")
    paths = [p for p in itertools.chain([first], paths) if p not in done][rank::world]
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(target, "a", encoding="utf-8", newline="")) if target else sys.stdout
        writer = csv.writer(file, delimiter=";", lineterminator="\n")
        if not has_header:
            writer.writerow(columns(engine.classes))
        bar = stack.enter_context(tqdm(total=len(paths), unit="picture", leave=False, position=rank))
        flushed = time.monotonic()

        def write(row):
            nonlocal flushed
            writer.writerow(row)
            bar.update()
            if time.monotonic() - flushed > 1:
                file.flush()
                flushed = time.monotonic()

        started = time.monotonic()
        pictures, failed, black, positives = predict(engine, paths, write, args.batch_size)
        seconds = time.monotonic() - started
    pictures, failed, black, *positives = add([pictures, failed, black, *positives])
    if rank > 0:
        return 0
    if world > 1:
        gather_parts(args.csv, engine.classes)
    speed = f"{pictures / seconds:.1f} pictures/s with {engine.name}" if pictures else "nothing left to do"
    found = ", ".join(f"{n} {c}" for c, n in zip(engine.classes, positives))
    print(f"{pictures} pictures: {found}, {failed} unreadable; {speed}", file=sys.stderr)
    if black:
        print(f"{black} of them are nearly black, dead or underexposed: the probabilities can't tell.", file=sys.stderr)
    if args.report:
        write_report(args.csv, args.report, engine, model)
        print(f"{args.report} shows them.", file=sys.stderr)
    return 3 if failed else 0


def main(argv=None):
    """Command line of this file; returns the exit code: 0, 2 for bad input, 3 when some pictures can't be read."""
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
