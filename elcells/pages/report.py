"""The HTML report of `predict.py`: counts, histograms, folders, modules, and the cells worth looking at."""

import csv
import heapq
import os
import time
from collections import Counter, defaultdict

import numpy as np
from PIL import Image

from elcells.data.images import file_of
from elcells.files import ANY_NAME, InputError, printable
from elcells.inference.output import read_results
from elcells.modules.cutting import CORNERS
from elcells.modules.grid import Grid
from elcells.modules.overlay import LEGEND_HEIGHT, NO_DEFECT, TOO_DARK_VERDICT
from elcells.modules.parallel import BLACK_COLUMN
from elcells.pages.page import UNSURE, PageImage, doubt, fill, images_with_maps, jpeg

REPORT_CELLS = 1000  # the surest defects that the report shows
REPORT_UNSURE = 200  # cells without a defect, nearest to the thresholds, that it shows
REPORT_BLACK = 100  # nearly black ones
REPORT_MODULES = 50  # modules
REPORT_LINES = 200  # unreadable files, folders
BINS = 20  # of a histogram


# ---------------------------------------------------------------- counts, and the cells to show


class Summary:
    """Counts of all cells of an output table, gathered one by one in bounded memory."""

    def __init__(self, classes):
        self.classes = classes
        self.names = ("cells", *classes, NO_DEFECT, "unreadable")  # of the counts of a folder
        self.folders = defaultdict(Counter)
        self.histograms = np.zeros((len(classes), BINS), int)
        self.nearly_black = 0
        self.errors = []

    def add(self, cell):
        """Count a CellResult."""
        folder = self.folders[os.path.dirname(cell.filename) or "."]
        folder["cells"] += 1
        self.nearly_black += cell.nearly_black
        if cell.judged:
            folder.update(cell.defects(self.classes) or [NO_DEFECT])
            bins = np.minimum(np.array(cell.probabilities) * BINS, BINS - 1).astype(int)
            self.histograms[range(len(bins)), bins] += 1
        elif not cell.nearly_black:
            folder["unreadable"] += 1
            if len(self.errors) < REPORT_LINES:
                self.errors.append(cell.error)

    def page_data(self):
        """Counts of all cells for the report."""
        total = sum(self.folders.values(), Counter())
        counts = [(name, total[name]) for name in self.names]
        if self.nearly_black:
            counts.append((TOO_DARK_VERDICT, self.nearly_black))
        most_defects_first = sorted(self.folders.items(), key=lambda item: -sum(item[1][c] for c in self.classes))
        rows = [[folder, *(counter[name] for name in self.names)] for folder, counter in most_defects_first]
        return {
            "counts": counts,
            "histograms": self.histograms.tolist(),
            "folder_columns": ["folder", *self.names],
            "folders": rows[:REPORT_LINES],
            "unreadable": self.errors,
            "unreadable_count": total["unreadable"],
        }


class Selection:
    """The cells that the report shows, chosen one by one in bounded memory.

    Those with a defect, the surest first; those without one that are nearest to a threshold; nearly black ones.
    """

    def __init__(self, thresholds):
        self.thresholds = thresholds
        self.defective_count = 0
        self.defective = []  # heaps of (key, number, cell)
        self.unsure = []
        self.nearly_black = []

    def add(self, cell, number):
        """Consider a CellResult; number: its place in the table, which settles ties."""
        if not cell.judged:
            return
        if cell.nearly_black and len(self.nearly_black) < REPORT_BLACK:
            self.nearly_black.append(cell)
        distance = doubt([cell.probabilities], self.thresholds)[0]
        if any(cell.calls):
            self.defective_count += 1
            surest = max(p for p, call in zip(cell.probabilities, cell.calls) if call)
            keep_largest(self.defective, (surest, number, cell), REPORT_CELLS)
        elif distance < UNSURE:
            keep_largest(self.unsure, (-distance, number, cell), REPORT_UNSURE)

    def cells(self):
        """The chosen cells, each once."""
        ordered = [*sorted(self.defective, reverse=True), *sorted(self.unsure, reverse=True)]
        chosen = [*(cell for _, _, cell in ordered), *self.nearly_black]
        return list({cell.filename: cell for cell in chosen}.values())

    def note(self):
        """A text about the chosen cells for the report."""
        few = f"; the {REPORT_CELLS} surest are shown" if self.defective_count > REPORT_CELLS else ""
        return (
            f"{self.defective_count} cells have a defect{few}. Also shown are the cells without a defect that are "
            "nearest to a threshold, and nearly black cells, which are too dark to judge."
        )


def keep_largest(heap, entry, most):
    """Put an entry on a heap that keeps the `most` largest."""
    heapq.heappush(heap, entry)
    if len(heap) > most:
        heapq.heappop(heap)


# ---------------------------------------------------------------- what the page is filled with


def common_folder(folders):
    """The folder, with its last separator, that all of them lie in; "" where that says nothing."""
    try:
        root = os.path.commonpath(list(folders))
    except ValueError:  # absolute and relative ones
        return ""
    return "" if root in ("", ".", os.sep) else os.path.join(root, "")


def cell_entry(cell, name, image, maps, target, thresholds):
    """A cell as the page takes it, under the name that it shows; thumb and src are "" where its image is gone."""
    distance = float(doubt([cell.probabilities], thresholds)[0])
    entry = {"file": printable(name), "p": cell.probabilities, "calls": cell.calls, "maps": maps}
    entry |= {"unsure": distance < UNSURE, "doubt": distance, "dark": cell.nearly_black}
    try:
        return entry | {"thumb": image.thumbnail(), "src": image.source(target)}
    except InputError:
        return entry | {"thumb": "", "src": ""}


def module_entry(row, folder, cells, entries, target, classes):
    """A module as the page takes it; row: of modules.csv, cells: its CellResults, entries: known ones of cells."""
    with Image.open(folder / f"{row['name']}.png") as image:
        size = image.size
        source = jpeg(image, max(size), 82)
    with Image.open(file_of(row["filename"])[0]) as original:
        scale = max(size[0], size[1] - LEGEND_HEIGHT) / max(original.size)
    corners = np.array([float(row[k]) for k in CORNERS]).reshape(4, 2)
    outlines = Grid((corners + 0.5) * scale - 0.5, int(row["columns"]), int(row["rows"]), size[::-1]).cells()
    areas = []
    for cell in cells:
        entry = entries.get(cell.filename) or {"src": PageImage(cell.filename).source(target), "maps": None}
        outline = outlines[cell.place.row - 1, cell.place.column - 1]
        judgement = ", ".join(f"{name} {p:.3f}" for name, p in zip(classes, cell.probabilities)) or cell.error
        text = f"row {cell.place.row}, column {cell.place.column}: {judgement}"
        points = " ".join(f"{x:.0f},{y:.0f}" for x, y in outline)
        areas.append({"points": points, "text": text, "src": entry["src"], "maps": entry["maps"]})
    counts = "".join(f"{row[name]} {name}, " for name in classes) + f"{row[BLACK_COLUMN]} {TOO_DARK_VERDICT}"
    return {
        "file": row["filename"],
        "text": f"{row['columns']}x{row['rows']} cells of {row['cell_pixels']} pixels, {counts}.",
        "doubt": row["why"] if row["sure"] != "1" else "",
        "image": source,
        "size": size,
        "cells": areas,
    }


def read_modules(folder, classes):
    """Rows (dicts of text) of folder/modules.csv, those not sure first, then those with most defective cells, and the
    errors of images in which no module was found."""
    with open(folder / "modules.csv", encoding="utf-8", errors=ANY_NAME, newline="") as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    modules = [row for row in rows if not row["error"]]
    modules.sort(key=lambda row: (row["sure"] == "1", -sum(int(row[c]) for c in classes)))
    return modules, [row["error"] for row in rows if row["error"]]


def write_report(table, target, engine, thresholds, model, modules_folder=None):
    """Write one HTML page about an output table of predict.py.

    model: name of the network's file. modules_folder: Path of the folder with modules.csv and the modules' images,
    where whole modules were cut (`predict.py --grid`); they come first.
    """
    classes = engine.classes
    summary = Summary(classes)
    selection = Selection(thresholds)
    cells_of = {}  # module -> its cells
    for number, cell in enumerate(read_results(table, classes)):
        summary.add(cell)
        selection.add(cell, number)
        if modules_folder and (len(cells_of) < REPORT_CELLS or cell.place.module in cells_of):
            cells_of.setdefault(cell.place.module, []).append(cell)
    root = common_folder(summary.folders)
    cells = selection.cells()
    entries = {}
    for cell, (image, maps) in zip(cells, images_with_maps([PageImage(cell.filename) for cell in cells], engine)):
        name = cell.filename.removeprefix(root)
        entries[cell.filename] = cell_entry(cell, name, image, maps, target, thresholds)
    modules, failed = read_modules(modules_folder, classes) if modules_folder else ([], [])
    data = {
        "model": f"{model}, cells in {printable(root)}" if root else model,
        "when": time.strftime("%Y-%m-%d %H:%M"),
        "classes": classes,
        "thresholds": [float(t) for t in thresholds],
        "note": selection.note(),
        "cells": list(entries.values()),
        "modules": [
            module_entry(row, modules_folder, cells_of.get(row["name"], []), entries, target, classes)
            for row in modules[:REPORT_MODULES]
        ],
        "module_count": len(modules),
        "module_folder": str(modules_folder or ""),
        "failed": failed,
        **summary.page_data(),
    }
    fill("report.html", target, data)
