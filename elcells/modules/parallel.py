"""Cut many modules at once: their names, the cells' files, modules.csv, and what the user is told."""

import csv
import io
import multiprocessing
import os
import re
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from PIL import Image

from elcells.files import InputError, atomic_path, counted, folder_of_all, relative
from elcells.modules.cutting import CORNERS, cut_image
from elcells.modules.lens import lenses_of

FINE_CRACKS = 150  # pixels of a cell; fine cracks are missed with fewer
MOST_LINES = 20  # about single modules, in the summary
BLACK_COLUMN = "nearly_black"  # a count in modules.csv
MODULE_COLUMNS = "filename name columns rows score lead sure why cell_pixels bend".split() + CORNERS


def module_names(paths):
    """A name for each module image: its relative path without the suffix, or with it where names would be the same."""
    root = folder_of_all(paths)
    names = [relative(path, root).lstrip("/") for path in paths]
    if root is None:  # drives of Windows
        names = [name.replace(":", "") for name in names]
    with_suffix = [re.sub(r"#page=(\d+)$", r"_page\1", name) for name in names]
    without = [re.sub(r"\.[A-Za-z]+(_page\d+)?$", r"\1", name) for name in with_suffix]
    count = Counter(without)
    return [long if count[short] > 1 else short for long, short in zip(with_suffix, without)]


def folders_of(out):
    """Folders of the cells (out) and of the modules' images and modules.csv (out_modules, beside it)."""
    out = Path(out)
    return out, out.with_name(f"{out.name}_modules")


def cell_name(name, place, columns):
    """File name of a module's cell, counted from 0 row by row: name/r01_c01.png."""
    row, column = divmod(place, columns)
    return f"{name}/r{row + 1:02}_c{column + 1:02}.png"


def module_row(module, name, counts):
    """A CutModule's row of modules.csv; counts: numbers of defective cells."""

    def decimals(number):
        return "" if number is None else f"{number:.4f}"

    grid = [module.columns, module.rows, decimals(module.score), decimals(module.lead), int(module.sure), module.why]
    corners = [""] * len(CORNERS)
    if module.grid is not None:
        corners = [f"{value:.1f}" for value in module.grid.corners().ravel()]
    geometry = [module.cell_pixels, decimals(module.bend), *corners]
    return [module.filename, name, *grid, *geometry, *counts, module.error]


class ModulesTable:
    """modules.csv, written a row at a time.

    path: of the file; an existing one is continued. count_columns: names of the counts of each module.
    done: names of the modules that an existing file has. modules: the added ones, as CutModules without images.
    """

    def __init__(self, path, count_columns):
        self.modules = []
        self.done = set()
        columns = [*MODULE_COLUMNS, *count_columns, "error"]
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            raw = path.read_bytes()
            complete = raw[: raw.rfind(b"\n") + 1]  # a killed run may have left half a row
            path.write_bytes(complete)
            rows = csv.DictReader(io.StringIO(complete.decode("utf-8", "replace")), delimiter=";")
            if rows.fieldnames and rows.fieldnames != columns:
                raise InputError(f"{path}: is no output of this program or model; give another --csv")
            self.done = {row["name"] for row in rows}
        self.file = open(path, "a", encoding="utf-8", errors="replace", newline="")
        self.writer = csv.writer(self.file, delimiter=";", lineterminator="\n")
        if not self.file.tell():
            self.writer.writerow(columns)

    def add(self, module, name, counts):
        """Write a CutModule's row; counts: in the order of count_columns."""
        self.modules.append(module.without_images())
        self.writer.writerow(module_row(module, name, counts))
        self.file.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def warnings_of(modules):
    """Lines about modules (of a ModulesTable) that the user should look at, and whether all of them are sure."""
    lines = []
    for module in modules:
        if module.error:
            lines.append(module.error)
        elif not module.sure:
            lines.append(f"{module.filename}: not sure ({module.why}); look at its image, or give --corners")
    if len(lines) > MOST_LINES:
        lines[MOST_LINES:] = [f"… and {len(lines) - MOST_LINES} more; modules.csv has them all."]
    small = [module.cell_pixels for module in modules if not module.error and module.cell_pixels < FINE_CRACKS]
    if small:
        has = "has" if len(small) == 1 else "have"
        few = f"{len(small)} of {counted(len(modules), 'module')} {has} under {FINE_CRACKS} pixels a cell"
        lines.append(f"{few} (down to {min(small)}): fine cracks will be missed.")
    return lines, all(module.sure for module in modules)


def cut_and_save(name, folder, *arguments):
    """Cut one image, as cut_image(*arguments), and save its cells as folder/name/r01_c01.png …: (name, CutModule)."""
    module = cut_image(*arguments)
    for place, cell in enumerate(module.cells):
        with atomic_path(Path(folder) / cell_name(name, place, module.columns)) as temporary:
            Image.fromarray(cell).save(temporary, "PNG", compress_level=1)
    return name, module


def cut_modules(images, folder, columns, rows, corners):
    """Cut modules in several processes, a few ahead of the caller; yields (name, CutModule) in order.

    images: list of (path, name). corners: {path: (4, 2)} of some. The lens of the images of each size is found first,
    from some of them. One or two images need no other process. Memory does not grow with their number.
    """
    if len(images) <= 2:
        for path, name in images:
            yield cut_and_save(name, folder, path, columns, rows, corners.get(path))
        return
    processes = max(2, (os.cpu_count() or 2) // 2)
    context = multiprocessing.get_context("spawn")  # the network's threads do not survive a fork
    with ProcessPoolExecutor(processes, context) as pool:
        waiting = deque()
        try:
            lenses = lenses_of([path for path, _ in images], columns, rows, pool.map)
            for path, name in images:
                arguments = (path, columns, rows, corners.get(path), lenses[path])
                waiting.append(pool.submit(cut_and_save, name, folder, *arguments))
                if len(waiting) > processes + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
