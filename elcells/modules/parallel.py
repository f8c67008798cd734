"""Many modules cut at once: their names, the cells' files, modules.csv, and what the user is told."""

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

from elcells.data.images import file_of
from elcells.files import InputError, atomic_path
from elcells.modules.cutting import CORNERS, cut_image

FINE_CRACKS = 150  # pixels a cell; with fewer fine cracks are missed
LENS_IMAGES = 15  # of a folder, from which its lens is found
MOST_LINES = 20  # about single modules, in the summary
MODULE_COLUMNS = "filename name columns rows score lead sure why cell_pixels bend".split() + CORNERS


def module_names(paths):
    """A name for each module image, a relative path without the suffix, or with it where two differ by no more."""
    folders = {os.path.dirname(os.path.abspath(p)) for p in paths}
    root = os.path.commonpath(folders) if folders else ""
    whole = [Path(os.path.relpath(os.path.abspath(p), root)).as_posix() for p in paths]
    pages = [re.sub(r"#page=(\d+)$", r"_page\1", name) for name in whole]
    short = [re.sub(r"\.[A-Za-z]+(_page\d+)?$", r"\1", name) for name in pages]
    count = Counter(short)
    return [page if count[name] > 1 else name for page, name in zip(pages, short)]


def lens_of(paths, columns, rows, run=map):
    """The lens (bend) of the camera that took images of one size, or None where they do not agree.

    The median of the first LENS_IMAGES on which the grid is sure; one image alone is less exact. run: map, or that
    of a pool.
    """
    if len(paths) < 5:
        return None
    found = [a["bend"] for a in run(cut_for_lens, [(p, columns, rows) for p in paths[:LENS_IMAGES]]) if a["sure"]]
    if len(found) < 5 or np.subtract(*np.quantile(found, [0.8, 0.2])) > 0.02:
        return None
    return float(np.median(found))


def cut_for_lens(job):
    """cut_image without the images; takes one argument, for pools."""
    return {k: v for k, v in cut_image(*job).items() if k in ("bend", "sure")}


def cell_name(name, place, columns):
    """File name of a module's cell, counted from 0 row by row: name/r01_c01.png."""
    return f"{name}/r{place // columns + 1:02}_c{place % columns + 1:02}.png"


def save_cells(module, name, folder):
    """Write a module's cells as PNG files folder/name/r01_c01.png …"""
    for place, cell in enumerate(module["cells"]):
        path = Path(folder) / cell_name(name, place, module["columns"])
        with atomic_path(path) as temporary:
            Image.fromarray(cell).save(temporary, "PNG", compress_level=1)


def module_row(module, name, counts):
    """A row of modules.csv."""
    known = {**module, "name": name}

    def text(value):
        return f"{value:.4f}" if isinstance(value, float) and abs(value) < 10 else value

    corners = [f"{known[k]:.1f}" if k in known else "" for k in CORNERS]
    row = [*(text(known.get(k, "")) for k in MODULE_COLUMNS if k not in CORNERS), *corners]
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
    """Cut one image and save its cells under a folder: job is (path, name, folder, columns, rows, corners, bend)."""
    path, name, folder, *how = job
    module = cut_image(path, *how)
    if "cells" in module:
        save_cells(module, name, folder)
    return name, module


def cut_modules(images, folder, columns, rows, corners, processes=None):
    """Cut modules in processes of their own, a few ahead of what the caller takes; yields (name, module) in order.

    images: list of (path, name). corners: from read_corners. The lens of each size of image is found first, from
    some of them (`lens_of`). One or two images need no other process. Memory does not grow with their number.
    """
    processes = processes or max(2, (os.cpu_count() or 2) // 2)
    given = {path: corners.get(Path(path).name) for path, _ in images}

    def jobs(run):
        sizes = {}
        for path, _ in images:
            sizes.setdefault(pixel_size(path), []).append(path)
        lenses = {size: lens_of(paths, columns, rows, run) for size, paths in sizes.items()}
        for size, paths in sizes.items():
            lenses.update(dict.fromkeys(paths, lenses[size]))
        return [(path, name, folder, columns, rows, given[path], lenses[path]) for path, name in images]

    if len(images) <= 2:
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


def pixel_size(path):
    """(width, height) as an image file says, without decoding it; (0, 0) where it can't be read."""
    try:
        with Image.open(file_of(path)[0]) as image:
            return image.size
    except Exception:
        return 0, 0


def folders_of(out):
    """Where cells go, and where their modules' images and modules.csv go: out, and out_modules beside it."""
    out = Path(out)
    return out, out.with_name(f"{out.name}_modules")


def warnings_of(rows):
    """Lines about modules that the user should look at, MOST_LINES of them, and whether all are sure.

    rows: of a ModulesTable.
    """
    lines, small, sure = [], [], True
    for row in rows:
        known = dict(zip(MODULE_COLUMNS, row))
        sure = sure and bool(known["sure"])
        if row[-1]:
            lines.append(row[-1])
            continue
        if not known["sure"]:
            lines.append(f"{known['filename']}: not sure ({known['why']}); look at its image, or give --corners")
        if known["cell_pixels"] < FINE_CRACKS:
            small.append(known["cell_pixels"])
    if len(lines) > MOST_LINES:
        lines[MOST_LINES:] = [f"… and {len(lines) - MOST_LINES} more; modules.csv has them all."]
    if small:
        few = f"{len(small)} of {len(rows)} modules have under {FINE_CRACKS} pixels a cell (down to {min(small)})"
        lines.append(f"{few}: fine cracks will be missed.")
    return lines, sure
