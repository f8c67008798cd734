"""How well whole modules are cut into cells, on modules composed of ELPV cells whose corners are known.

$ python -m benchmarks.modules                       # easy, medium, hard, strings, layouts: 100 modules each
$ python -m benchmarks.modules --levels hard --count 500 --jobs 2 --out doc/modules.csv
$ python -m benchmarks.modules --calls cells.onnx    # F1 of the calls by cells' resolution, against perfect corners
$ python -m benchmarks.modules --levels hard --lens -0.03    # one camera: each alone, and with the median lens of 15

Composed are perspective, turn, lens (barrel), gaps, frame, neighbouring modules, dead cells, a dead third ("string"),
dim border rows, vignetting, noise and blur. Seeds below 10,000 are for trying things out, those above for reporting.
"""

import argparse
import csv
import itertools
import os
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.transform import ProjectiveTransform
from sklearn.metrics import f1_score
from tqdm import tqdm

import data
from elcells.data.images import read_image, to_square
from elcells.files import atomic_path
from elcells.inference.engines import open_model
from elcells.modules.cutting import cut_cells, doubts
from elcells.modules.grid import Grid
from elcells.modules.outline import FOUND, find_grid
from elcells.modules.parallel import LENS_IMAGES

REPORTED = 10_000  # the first seed that nothing was tuned on
KNOBS = ("turn", "keystone", "lens", "beside", "dead", "light", "noise", "blur")  # degrees, shares, cells, gray levels
LEVELS = {
    "easy": dict(zip(KNOBS, (3, 0.05, 0, 0, 0, 0.15, 3, 0.5))),
    "medium": dict(zip(KNOBS, (8, 0.1, 0.02, 0.5, 2, 0.35, 5, 0.8))),
    "hard": dict(zip(KNOBS, (15, 0.15, 0.04, 0.85, 5, 0.55, 8, 1.1))),
}
LEVELS["string"] = {**LEVELS["medium"], "dead": 0}  # and a dead third
LEVELS["dim"] = {**LEVELS["medium"], "dead": 0}  # and a border row at 15 to 60 % of the light
LEVELS["layouts"] = LEVELS["medium"]  # other than 6x10
LEVELS["filled"] = {**LEVELS["easy"], "turn": 0.7, "keystone": 0.01}  # up to the image's edge
LAYOUTS = ((6, 12, False), (8, 16, False), (6, 20, True), (6, 24, True), (1, 10, False), (4, 9, False))  # half-cut?
SIZES = (100, 120, 140, 160, 200, 240, 300)
RESOLUTIONS = (100, 150, 200, 300)  # pixels a cell, for --calls


class Cells:
    """ELPV's cells by module: images and labels; modules: those of at least `least` cells."""

    def __init__(self, path="data.csv", least=60):
        table = data.read_table(path)
        data.fill_images(table)
        self.table = table.reset_index(drop=True)
        self.modules = [m for m, rows in self.table.groupby("module") if len(rows) >= least]

    def of(self, module, count, side):
        """Images float32 (count, side, side) of a module, busbars level, and their rows in the table."""
        rows = np.resize(np.flatnonzero(self.table["module"] == module), count)
        opened = {
            r: Image.open(self.table["path"][r]).resize((side, side), Image.Resampling.BILINEAR) for r in set(rows)
        }
        return np.stack([np.asarray(opened[r], np.float32) for r in rows]), rows


def tiles_of(cells, module, columns, rows, half, side):
    """Images of a portrait module's cells, row by row, busbars upright; halves of cells where half."""
    whole, index = cells.of(module, columns * rows // (1 + half), side)
    whole = np.rot90(whole, axes=(1, 2))
    if not half:
        return list(whole), index
    tiles = [None] * (columns * rows)
    edge = max(1, round(0.012 * side))
    for k, cell in enumerate(whole.copy()):
        cell[side // 2 - edge : side // 2 + edge] *= 0.5  # each half has dark edges of its own
        pair, column = divmod(k, columns)
        for part in range(2):
            tiles[(2 * pair + part) * columns + column] = cell[part * side // 2 : (part + 1) * side // 2]
    return tiles, np.repeat(index, 2)


def lay(canvas, rng, y0, x0, tiles, xs, ys, gain, gap_level, edge, dark):
    """Draw a module's backsheet, gaps and cells; xs, ys: starts of columns and rows from its corner."""
    h, w = tiles[0].shape

    def put(y, x, part):
        top, left = max(-y, 0), max(-x, 0)
        part = part[top : max(min(part.shape[0], canvas.shape[0] - y), top), left:]
        part = part[:, : max(canvas.shape[1] - max(x, 0), 0)]
        if part.size:
            canvas[y + top : y + top + part.shape[0], x + left : x + left + part.shape[1]] = part

    size = int(ys[-1] + h), int(xs[-1] + w)
    put(y0 - edge, x0 - edge, np.full((size[0] + 2 * edge, size[1] + 2 * edge), rng.uniform(4, 18), np.float32))
    put(y0, x0, np.full(size, gap_level * gain, np.float32))
    half_x, half_y = int(xs[min(1, len(xs) - 1)] - w) // 2, int(ys[min(1, len(ys) - 1)] - h) // 2  # of a gap
    for k, (y, x) in enumerate(itertools.product(ys, xs)):  # what shines in the gaps is the cells' light
        if k in dark:
            top, left = max(int(y) - half_y, 0), max(int(x) - half_x, 0)
            patch = min(int(y) + h + half_y, size[0]) - top, min(int(x) + w + half_x, size[1]) - left
            put(y0 + top, x0 + left, np.full(patch, gap_level * gain * dark[k], np.float32))
    for k, (y, x) in enumerate(itertools.product(ys, xs)):
        put(y0 + int(y), x0 + int(x), tiles[k] * gain * dark.get(k, 1.0))


def compose(cells, seed, level, side=None, lens=None):
    """An image of a module, uint8 (H, W), and what is true of it, a dict.

    nodes: corners of its cells, (rows + 1, columns + 1, 2) pixels x, y, in the gaps' middle; grid: (columns, rows);
    side: pixels of a cell before perspective; rows: of the table, for each cell; dark: cells that were made dark.
    """
    rng, p = np.random.default_rng(seed), LEVELS[level]
    module = cells.modules[seed % len(cells.modules)]
    columns, rows, half = LAYOUTS[seed % len(LAYOUTS)] if level == "layouts" else (6, 10, False)
    portrait = rng.random() < 0.5
    side = int(side or rng.choice(SIZES, p=[0.2, 0.2, 0.2, 0.15, 0.12, 0.08, 0.05]) * (0.6 if columns > 6 else 1))
    side += side % 2
    tiles, index = tiles_of(cells, module, columns, rows, half, side)
    typical, extra = np.median(np.stack(tiles)), 0.0 if rng.random() < 0.25 and not half else rng.uniform(0.02, 0.04)
    gap_x, gap_y = round(extra * side), round(extra * side * rng.uniform(0.8, 1.25))
    high = side // (1 + half)
    xs, ys = np.arange(columns) * (side + gap_x), np.arange(rows) * (high + gap_y)
    if half:
        ys[rows // 2 :] += int(side * rng.uniform(0.02, 0.12))
    edge, frame = int(side * rng.uniform(0.06, 0.16)), int(side * rng.uniform(0.04, 0.12))
    width, height = int(xs[-1] + side), int(ys[-1] + high)
    pad = 0 if level == "filled" else int(2.2 * side)
    around = 0 if level == "filled" else edge + frame + pad
    canvas = np.full((height + 2 * around, width + 2 * around), rng.uniform(0, 10), np.float32)
    gap_level = rng.uniform(0.3, 0.55) * typical
    if rng.random() < p["beside"]:
        chosen = rng.choice(4, rng.integers(1, 4), replace=False)
        space = 2 * (edge + frame) + int(rng.uniform(0, 0.08) * side)
        for k in chosen:
            other, _ = tiles_of(cells, rng.choice(cells.modules), columns, rows, half, side)
            y, x = ((-space - height, 0), (height + space, 0), (0, -space - width), (0, width + space))[k]
            lay(canvas, rng, around + y, around + x, other, xs, ys, rng.uniform(0.7, 1.2), gap_level, edge, {})
    count, dark = columns * rows, {}
    if level == "string":
        third = rng.integers(3)
        dark = {k: 0.07 for k in range(count) if (k % columns) * 3 // columns == third}
    elif level == "dim":
        chosen, gain = rng.integers(4), rng.uniform(0.15, 0.6)
        lines = (np.arange(count) // columns == 0, np.arange(count) // columns == rows - 1)
        lines += (np.arange(count) % columns == 0, np.arange(count) % columns == columns - 1)
        dark = {int(k): gain * rng.uniform(0.8, 1.2) for k in np.flatnonzero(lines[chosen])}
    elif p["dead"]:
        dark = {
            int(k): rng.uniform(0.03, 0.2) for k in rng.choice(count, rng.integers(0, p["dead"] + 1), replace=False)
        }
        if level == "hard" and rng.random() < 0.5:
            dark[int(rng.choice([0, columns - 1, count - columns, count - 1]))] = 0.05
    lay(canvas, rng, around, around, tiles, xs, ys, 1.0, gap_level, edge, dark)
    ends_x, ends_y = np.append(xs, xs[-1] + side + gap_x), np.append(ys, ys[-1] + high + gap_y)
    if half:  # the middle line lies in the middle of the wider gap
        ends_y = ends_y.astype(float)
        ends_y[rows // 2] = (ys[rows // 2] + ys[rows // 2 - 1] + high + gap_y) / 2
    nodes = np.stack(np.meshgrid(ends_x - gap_x / 2, ends_y - gap_y / 2), -1) + around - 0.5
    order = np.arange(count).reshape(rows, columns)
    if not portrait:  # lie it down: a quarter turn to the left
        canvas, width, height = np.rot90(canvas), height, width
        flipped = np.stack([nodes[..., 1], canvas.shape[0] - 1 - nodes[..., 0]], -1)
        nodes, order = np.rot90(flipped), np.rot90(order)
    image, to = photograph(canvas, (width, height), around, rng, p, side, lens, level == "filled")
    truth = {
        "nodes": to(nodes),
        "grid": order.shape[::-1],
        "side": side,
        "rows": index[order.ravel()],
        "dark": np.isin(order.ravel(), list(dark)),
    }
    return image, truth


def photograph(canvas, size, around, rng, p, side, lens, filled):
    """A flat image as a camera sees it, uint8, and the function that takes its points (..., 2) there."""
    width, height = size
    quad = np.array([[0, 0], [width, 0], [width, height], [0, height]], float) + around
    q = quad - quad.mean(0)
    kx, ky = rng.uniform(-p["keystone"], p["keystone"], 2)
    seen = q * np.stack([1 + kx * q[:, 1] / height, 1 + ky * q[:, 0] / width], 1)
    a = np.deg2rad(rng.uniform(-p["turn"], p["turn"]))
    seen = seen @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
    span = np.ptp(seen, axis=0)
    pixel_size = np.ceil(span / (1.0 if filled else rng.uniform(0.72, 0.92))).astype(int)
    if not filled:
        pixel_size = np.maximum(pixel_size, int(pixel_size.max() * rng.uniform(0.6, 0.75)))
    middle, radius = (pixel_size - 1) / 2, np.hypot(*pixel_size) / 2
    seen = seen - (seen.max(0) + seen.min(0)) / 2 + middle + rng.uniform(-0.3, 0.3, 2) * (pixel_size - span) / 2
    bend = -rng.uniform(0, p["lens"]) if lens is None else lens
    there = ProjectiveTransform.from_estimate(quad, seen)

    def to(points):
        d = (there(points.reshape(-1, 2)) - middle) / radius
        return (middle + radius * d * (1 + bend * (d**2).sum(-1, keepdims=True))).reshape(points.shape)

    grid = np.stack(np.meshgrid(np.arange(pixel_size[0]), np.arange(pixel_size[1])), -1)
    d = (grid.reshape(-1, 2) - middle) / radius
    flat = d.copy()
    for _ in range(8):
        flat = d / (1 + bend * (flat**2).sum(-1, keepdims=True))
    source = there.inverse(middle + radius * flat)
    image = ndimage.map_coordinates(
        canvas, [source[:, 1], source[:, 0]], order=1, mode="nearest" if filled else "constant", cval=5
    )
    image = image.reshape(pixel_size[::-1])
    d = d.reshape(*image.shape, 2)
    light = 1 - p["light"] * rng.uniform(0, 1) * (d**2).sum(-1)
    light = light * np.clip(1 + d @ rng.uniform(-0.7, 0.7, 2) * p["light"], 0.2, 2)
    image = ndimage.gaussian_filter(image * light, rng.uniform(0.2, 1) * p["blur"] / 100 * side)
    image = image * rng.uniform(0.6, 1.2) + rng.normal(0, rng.uniform(0.3, 1) * p["noise"], image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), to


# ---------------------------------------------------------------- cutting


def measure(job):
    """One module cut: dict of level, seed, cell, error (largest and mean, in cells), score, lead, sure, bend, seconds.

    job: (level, seed, lens or None for one by chance, the lens that the fit is told or None).
    """
    level, seed, lens, known = job
    composed, true = compose(measure.cells, seed, level, lens=lens)
    image = composed.astype(np.float32)
    started = time.process_time()
    grid, score, lead = find_grid(image, *true["grid"], bend=known)
    seconds = time.process_time() - started
    sure = score >= FOUND and not doubts(grid, image.shape, score, lead, cut_cells(image, grid))
    off = np.linalg.norm(grid.nodes() - true["nodes"], axis=-1) / np.sqrt(grid.cell_size().prod())
    return {
        "level": level,
        "seed": seed,
        "grid": "x".join(map(str, true["grid"])),
        "width": image.shape[1],
        "height": image.shape[0],
        "side": true["side"],
        "error": off.max(),
        "mean_error": off.mean(),
        "score": score,
        "lead": lead,
        "sure": int(sure),
        "bend": grid.bend,
        "seconds": seconds,
    }


def start_worker():
    """Each process opens the table once and computes on one thread."""
    os.environ["OMP_NUM_THREADS"] = "1"
    measure.cells = Cells()


def summary(rows):
    """A level's line of the table."""
    error, sure = np.array([r["error"] for r in rows]), np.array([r["sure"] for r in rows], bool)
    wrong, off = error > 0.5, (error > 0.03) & (error <= 0.5)
    return (
        f"{rows[0]['level']:8}{len(rows):6}{100 * (~wrong).mean():7.1f}{100 * (error <= 0.03).mean():12.1f}"
        f"{100 * np.median([r['mean_error'] for r in rows]):9.2f}{100 * np.quantile(error, 0.95):11.2f}"
        f"{100 * (wrong & sure).mean():10.1f}{100 * (off & sure).mean():12.1f}"
        f"{100 * (~sure & (error <= 0.03)).mean():12.1f}{np.mean([r['seconds'] for r in rows]):10.2f}"
    )


def print_table(rows, levels):
    """The table of cut modules, a line a level."""
    print("In % of modules; errors in % of a cell; not flagged: called sure all the same.")
    print("                right   all cells   median   95 % of    wrong,   3 to 50 %     flagged   CPU s a")
    print("level    count   grid  within 3 %    error  worst cells not fl. off, not fl. for nothing  module")
    for level in levels:
        print(summary([r for r in rows if r["level"] == level]))


def cut_all(args):
    """Cut `count` modules of each level and print the table; with --lens also as cut_modules would, the lens known."""
    jobs = [(level, args.seed + k, args.lens, None) for level in args.levels for k in range(args.count)]
    with ProcessPoolExecutor(args.jobs, initializer=start_worker) as pool:
        rows = list(tqdm(pool.map(measure, jobs), total=len(jobs), unit="module", leave=False))
        print_table(rows, args.levels)
        if args.lens is not None:
            sure = {level: [r["bend"] for r in rows if r["level"] == level and r["sure"]] for level in args.levels}
            lens = {level: float(np.median(bends[:LENS_IMAGES])) for level, bends in sure.items()}
            print(f"\nThe lens known: the median of the first {LENS_IMAGES} sure ones")
            print_table(list(pool.map(measure, [(*job[:3], lens[job[0]]) for job in jobs])), args.levels)
    if args.out:
        with atomic_path(args.out) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter=";", lineterminator="\n")
            writer.writeheader()
            writer.writerows({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in r.items()} for r in rows)


class TrueGrid(Grid):
    """The true corners of cells as a grid that cut_cells takes."""

    def __init__(self, nodes):
        self.known = nodes

    def nodes(self):
        return self.known


def judge_calls(args):
    """F1 of a network's calls on cells cut from `count` medium modules for each resolution, against perfect corners."""
    engine, cells = open_model(args.calls, "onnxruntime", args.jobs), Cells()
    classes = list(engine.classes)
    print(f"mean F1 of {args.count} medium modules each, live cells, {args.calls}")
    print("pixels a cell   cells   cut by the program   at true corners   same calls   ELPV's own images")
    for side in RESOLUTIONS:
        labels, calls = [], {"cut": [], "true": [], "own": []}
        for k in tqdm(range(args.count), unit="module", leave=False):
            composed, true = compose(cells, args.seed + k, "medium", side)
            image, live = composed.astype(np.float32), ~true["dark"]
            rows = true["rows"][live]
            labels.append(cells.table.loc[rows, classes].to_numpy())
            own = np.stack([read_image(p, engine.image_size) for p in cells.table["path"][rows]])
            for name, grid in (("cut", find_grid(image, *true["grid"])[0]), ("true", TrueGrid(true["nodes"]))):
                cut = cut_cells(image, grid)
                squares = np.stack(
                    [to_square(Image.fromarray(cut[i]), engine.image_size) for i in np.flatnonzero(live)]
                )
                calls[name].append(engine(squares[:, None]) >= engine.thresholds)
            calls["own"].append(engine(own[:, None]) >= engine.thresholds)
        y, (cut, true_, own) = np.concatenate(labels), (np.concatenate(calls[k]) for k in ("cut", "true", "own"))
        f1 = [np.mean([f1_score(y[:, c], p[:, c]) for c in range(len(classes))]) for p in (cut, true_, own)]
        same = (cut == true_).all(1).mean()
        print(f"{side:13}{len(y):8}{f1[0]:21.3f}{f1[1]:18.3f}{100 * same:11.1f} %{f1[2]:22.3f}", flush=True)


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
    calls = "instead: F1 of this network's calls on cut cells of several resolutions"
    parser.add_argument("--calls", metavar="ONNX", help=calls)
    args = parser.parse_args(argv)
    if args.calls:
        judge_calls(args)
    else:
        cut_all(args)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
