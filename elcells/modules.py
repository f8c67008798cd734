"""Whole modules: a picture cut into its cells, what is known of each module, and the picture with the verdicts."""

import csv
import io
import multiprocessing
import os
import re
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from elcells.files import InputError, atomic_path, reason
from elcells.outline import FOUND, LEAD, SURE, find_grid
from elcells.pictures import IMAGE_SIZE, as_gray
from elcells.tables import read_rows

FINE_CRACKS = 150  # pixels a cell; with fewer fine cracks are missed
LENS_PICTURES = 15  # of a folder, from which its lens is found
DARK = 0.25  # a darker cell, against its module's middle one, is black
PORTRAIT = ((6, 10), (6, 12), (6, 20), (6, 24), (4, 9), (8, 16), (8, 12))
USUAL = (*PORTRAIT, *((rows, columns) for columns, rows in PORTRAIT))  # grids that are guessed
DRAWN = 1600  # longest side in pixels of a module's picture with its verdicts
CORNERS = [f"{axis}{k}" for k in (1, 2, 3, 4) for axis in "xy"]


def grid_size(text):
    """(columns, rows) of a text such as 10x6; raises ValueError for another."""
    found = re.fullmatch(r"(\d{1,2})[xX](\d{1,2})", text)
    columns, rows = map(int, found.groups()) if found else (0, 0)
    if not 1 <= columns <= 40 or not 1 <= rows <= 40 or columns * rows < 2:
        raise ValueError(f"{text!r}: expected COLUMNSxROWS as the picture shows them, such as 10x6")
    return columns, rows


def module_names(paths):
    """A name for each module picture, a relative path without the suffix, or with it where two differ by no more."""
    folders = {os.path.dirname(os.path.abspath(p)) for p in paths}
    root = os.path.commonpath(folders) if folders else ""
    whole = [Path(os.path.relpath(os.path.abspath(p), root)).as_posix() for p in paths]
    pages = [re.sub(r"#page=(\d+)$", r"_page\1", name) for name in whole]
    short = [re.sub(r"\.[A-Za-z]+(_page\d+)?$", r"\1", name) for name in pages]
    count = Counter(short)
    return [page if count[name] > 1 else name for page, name in zip(pages, short)]


def read_corners(path):
    """Rough corners of modules: dict of picture's file name -> (4, 2) pixels x, y, clockwise from the upper left.

    The table's columns are filename, x1, y1 … x4, y4, as modules.csv has them. Raises InputError, naming the line.
    """
    corners = {}
    for line, row in read_rows(path, ["filename", *CORNERS]).iterrows():
        if all(row[k] == "" for k in CORNERS):
            continue
        try:
            corners[Path(row["filename"]).name] = np.array([float(row[k]) for k in CORNERS]).reshape(4, 2)
        except ValueError:
            raise InputError(f"{path}, line {line}: x1 … y4 must be eight numbers, the corners in pixels") from None
    return corners


def cut_cells(image, grid, most=IMAGE_SIZE):
    """Upright pictures of a grid's cells, row by row: list of uint8 (h, w).

    image: float32 (H, W) in 0..255. A cell keeps the picture's resolution, up to `most` pixels along its longer side;
    square and half cells get exactly that shape. Each is taken by the perspective of its own four corners, so the lens
    is followed cell by cell.
    """
    size = grid.cell_size()
    width, height = np.round(size * min(1, most / size.max())).astype(int)
    for ratio in (1, 2):
        if (
            abs(np.log2(width / height)) < 0.2 + (ratio == 2)
            and abs(abs(np.log2(width / height)) - np.log2(ratio)) < 0.2
        ):
            long = max(width, height)
            width, height = (long, long // ratio) if width >= height else (long // ratio, long)
    factor = max(1.0, size.max() / most)
    picture = Image.fromarray(image)
    if factor > 1.2:
        picture = picture.resize([max(1, round(n / factor)) for n in picture.size], Image.Resampling.BILINEAR)
    scale = np.array(picture.size) / image.shape[::-1]
    target = np.array([[0, 0], [width, 0], [width, height], [0, height]], float)
    cells = []
    for corners in grid.cells().reshape(-1, 4, 2):
        pixels = (corners + 0.5) * scale
        equations = [[x, y, 1, 0, 0, 0, -u * x, -u * y] for (x, y), (u, _) in zip(target, pixels)]
        equations += [[0, 0, 0, x, y, 1, -v * x, -v * y] for (x, y), (_, v) in zip(target, pixels)]
        coefficients = np.linalg.solve(np.array(equations), pixels.T.ravel())
        cell = picture.transform((width, height), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)
        cells.append(np.clip(np.rint(np.asarray(cell)), 0, 255).astype(np.uint8))
    return cells


def black_cells(cells):
    """Which of a module's cells are black: bool (N,); dead ones, against its middle one, or all of a black picture."""
    brightness = np.array([cell.mean() for cell in cells]) / 255
    return brightness < DARK * max(np.median(brightness), 0.1)


def cut_picture(path, columns, rows, corners=None, bend=None):
    """Cut the picture of a module.

    Returns a dict: filename, columns, rows, score (up to 1), lead (over the best other grid), sure (0 or 1), why (what
    is not sure), cell_pixels, bend, x1 … y4 (the module's corners), error; and, where a module was found: grid, cells
    (list of uint8), black (bool (N,)), notes, small (gray PIL image of at most DRAWN pixels).
    """
    about = {"filename": str(path), "columns": columns, "rows": rows, "sure": 0, "why": "", "error": "", "notes": []}
    try:
        gray, about["notes"] = as_gray(path)
    except InputError as error:
        return {**about, "error": reason(error)}
    image = np.asarray(gray, np.float32)
    if min(image.shape) < 64 or np.ptp(image[::4, ::4]) < 8:
        return {**about, "error": f"{path}: too small or too even to show a module"}
    grid, score, lead = find_grid(image, columns, rows, corners, bend)
    about.update(score=score, lead=lead)
    if not score >= FOUND:
        return {**about, "error": f"{path}: no module of {columns}x{rows} cells found (score {score:.2f})"}
    cells = cut_cells(image, grid)
    black = black_cells(cells)
    lines = black.reshape(rows, columns)
    why = []
    if score < SURE:
        why.append("the grid is not clearly seen")
    if lead < LEAD and corners is None:
        why.append("another place of the grid fits nearly as well")
    if black.mean() > 0.2:
        why.append(f"{black.sum()} cells are black")
    if corners is None and max(edge.mean() for edge in (lines[0], lines[-1], lines[:, 0], lines[:, -1])) >= 0.5:
        why.append("a border line of cells is dark")
    width, height = grid.cell_size()
    if (
        max(width, height) > 1.5 * min(width, height)
        and min(columns, rows) > 1
        and (rows > columns) != (width > height)
    ):
        why.append(f"half cells would lie across the strings: is it really {columns}x{rows}?")
    inside = grid.nodes()
    beyond = 0.03 * grid.cell_size()
    if (inside < -0.5 - beyond).any() or (inside > np.array(image.shape[::-1]) - 0.5 + beyond).any():
        why.append("the module goes beyond the picture")
    small = gray.convert("L")
    small.thumbnail((DRAWN, DRAWN))
    return {
        **about,
        "sure": int(not why),
        "why": ", ".join(why),
        "cell_pixels": round(float(grid.cell_size().max())),
        "bend": grid.bend,
        **dict(zip(CORNERS, grid.corners().ravel())),
        "grid": grid,
        "cells": cells,
        "black": black,
        "small": small,
    }


def lens_of(paths, columns, rows, run=map):
    """The lens (bend) of the camera that took pictures of one size, or None where they do not agree.

    The median of the first LENS_PICTURES on which the grid is sure; one picture alone is less exact. run: map, or that
    of a pool.
    """
    if len(paths) < 5:
        return None
    found = [a["bend"] for a in run(cut_for_lens, [(p, columns, rows) for p in paths[:LENS_PICTURES]]) if a["sure"]]
    if len(found) < 5 or np.subtract(*np.quantile(found, [0.8, 0.2])) > 0.02:
        return None
    return float(np.median(found))


def cut_for_lens(job):
    """cut_picture without the pictures; takes one argument, for pools."""
    return {k: v for k, v in cut_picture(*job).items() if k in ("bend", "sure")}


def cell_name(name, place, columns):
    """File name of a module's cell, counted from 0 row by row: name/r01_c01.png."""
    return f"{name}/r{place // columns + 1:02}_c{place % columns + 1:02}.png"


def save_cells(module, name, folder):
    """Write a module's cells as PNG files folder/name/r01_c01.png …"""
    for place, cell in enumerate(module["cells"]):
        path = Path(folder) / cell_name(name, place, module["columns"])
        with atomic_path(path) as temporary:
            Image.fromarray(cell).save(temporary, "PNG", compress_level=1)


MODULE_COLUMNS = [
    "filename",
    "name",
    "columns",
    "rows",
    "score",
    "lead",
    "sure",
    "why",
    "cell_pixels",
    "bend",
    *CORNERS,
]


def module_row(module, name, counts):
    """A row of modules.csv."""
    known = {**module, "name": name}

    def text(value):
        return f"{value:.4f}" if isinstance(value, float) and abs(value) < 10 else value

    row = [
        text(known.get(k, "")) if k not in CORNERS else f"{known[k]:.1f}" if k in known else "" for k in MODULE_COLUMNS
    ]
    return [*row, *counts, module["error"]]


class ModulesTable:
    """modules.csv, written a row at a time; `done` has the names of those that were there, where it goes on."""

    def __init__(self, path, more=()):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.columns, self.rows, self.done = [*MODULE_COLUMNS, *more, "error"], [], set()
        if path.exists():
            raw = path.read_bytes()
            whole = raw[: raw.rfind(b"\n") + 1]  # a killed run may have left half a row
            path.write_bytes(whole)
            before = csv.DictReader(io.StringIO(whole.decode("utf-8", "replace")), delimiter=";")
            if before.fieldnames and before.fieldnames != self.columns:
                raise InputError(f"{path}: is no output of this program or model; give another --csv")
            self.done = {row["name"] for row in before}
        self.file = open(path, "a", encoding="utf-8", errors="replace", newline="")
        self.writer = csv.writer(self.file, delimiter=";", lineterminator="\n")
        if not self.file.tell():
            self.writer.writerow(self.columns)

    def add(self, module, name, counts):
        """Write a module's row; counts: what was found in its cells, in the order of `more`."""
        self.rows.append(module_row(module, name, counts))
        self.writer.writerow(self.rows[-1])
        self.file.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def cut_job(job):
    """Cut one picture and save its cells under a folder: job is (path, name, folder, columns, rows, corners, bend)."""
    path, name, folder, *how = job
    module = cut_picture(path, *how)
    if "cells" in module:
        save_cells(module, name, folder)
    return name, module


def cut_modules(pictures, folder, columns, rows, corners, processes=None):
    """Cut modules in processes of their own, a few ahead of what the caller takes; yields (name, module) in order.

    pictures: list of (path, name). corners: from read_corners. The lens of each size of picture is found first, from
    some of them (`lens_of`). One or two pictures need no other process. Memory does not grow with
    their number.
    """
    processes = processes or max(1, (os.cpu_count() or 2) // 2)
    given = {path: corners.get(Path(path).name) for path, _ in pictures}

    def jobs(run):
        sizes = {}
        for path, _ in pictures:
            sizes.setdefault(picture_size(path), []).append(path)
        lenses = {size: lens_of(paths, columns, rows, run) for size, paths in sizes.items()}
        for size, paths in sizes.items():
            lenses.update(dict.fromkeys(paths, lenses[size]))
        return [(path, name, folder, columns, rows, given[path], lenses[path]) for path, name in pictures]

    if len(pictures) <= 2:
        yield from map(cut_job, jobs(map))
        return
    context = multiprocessing.get_context("spawn")  # the network's threads do not survive a fork
    with ProcessPoolExecutor(processes, context) as pool:
        waiting = deque()
        try:
            for job in jobs(pool.map):
                waiting.append(pool.submit(cut_job, job))
                if len(waiting) > processes + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def picture_size(path):
    """(width, height) as a picture file says, without decoding it; (0, 0) where it can't be read."""
    try:
        with Image.open(re.sub(r"#page=\d+$", "", str(path)) if not Path(path).exists() else path) as image:
            return image.size
    except Exception:
        return 0, 0


def guess_grid(path):
    """The likeliest of the USUAL grids for a picture, "10x6", or "" where none stands out."""
    gray = as_gray(path)[0]
    gray.thumbnail((900, 900))
    image = np.asarray(gray, np.float32)
    scores = sorted(((find_grid(image, *grid, quick=True)[1], grid) for grid in USUAL), reverse=True)
    return "{}x{}".format(*scores[0][1]) if scores[0][0] >= SURE and scores[0][0] - scores[1][0] > 0.05 else ""


def folders_of(out):
    """Where cells go, and where their modules' pictures and modules.csv go: out, and out_modules beside it."""
    out = Path(out)
    return out, out.with_name(f"{out.name}_modules")


def warnings_of(rows):
    """Lines about modules that the user should look at, and whether all are sure; rows: of a ModulesTable."""
    lines, small, sure = [], [], True
    for row in rows:
        known = dict(zip(MODULE_COLUMNS, row))
        sure = sure and bool(known["sure"])
        if row[-1]:
            lines.append(row[-1])
            continue
        if not known["sure"]:
            lines.append(f"{known['filename']}: not sure ({known['why']}); look at its picture, or give --corners")
        if known["cell_pixels"] < FINE_CRACKS:
            small.append(known["cell_pixels"])
    if small:
        few = f"{len(small)} of {len(rows)} modules have under {FINE_CRACKS} pixels a cell (down to {min(small)})"
        lines.append(f"{few}: fine cracks will be missed.")
    return lines, sure
