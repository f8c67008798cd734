"""The HTML report of `predict.py`: counts, histograms, folders, modules, and the cells worth looking at."""

import csv
import heapq
import itertools
import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from elcells.data.images import NEARLY_BLACK, open_image, read_image
from elcells.files import ANY_NAME, InputError, printable
from elcells.modules.cutting import CORNERS
from elcells.modules.grid import Grid
from elcells.pages.page import UNSURE, class_maps_of, doubt, fill, jpeg, read_results, source_of

REPORT_CELLS = 1000  # the surest defects that the report shows
REPORT_UNSURE = 200  # cells without a defect, nearest to the thresholds, that it shows
REPORT_BLACK = 100  # nearly black ones
REPORT_MODULES = 50  # modules
REPORT_LINES = 200  # unreadable files, folders
THUMB = 150  # pixels


class Summary:
    """What a report says of all rows of an output table, gathered row by row in bounded memory."""

    def __init__(self, classes, thresholds):
        self.classes, self.thresholds = classes, np.asarray(thresholds, float)
        self.cells = self.black = self.defect_free = self.failed = self.defective_count = 0
        self.positives = np.zeros(len(classes), int)
        self.histograms = np.zeros((len(classes), 20), int)
        self.folders, self.errors, self.dark = {}, [], []
        self.defective, self.near, self.number = [], [], itertools.count()

    def add(self, row):
        """Take in a row of `read_results`."""
        self.cells += 1
        folder = self.folders.setdefault(os.path.dirname(row["filename"]) or ".", Counter())
        folder["cells"] += 1
        if "p" not in row:
            if "nearly black" in row["error"]:  # a dead cell of a module
                self.black += 1
            else:
                self.failed += 1
                folder["unreadable"] += 1
                self.errors += [row["error"]] * (len(self.errors) < REPORT_LINES)
            return
        found, p = np.array(row["found"]), np.array(row["p"])
        self.positives += found
        for k, bin_ in enumerate(np.minimum((p * 20).astype(int), 19)):
            self.histograms[k, bin_] += 1
        for name, value in zip(self.classes, found):
            folder[name] += int(value)
        folder["no defect"] += int(not found.any())
        self.defect_free += not found.any()
        row["doubt"] = float(doubt(p[None], self.thresholds)[0])
        row["dark"] = float(row["brightness"]) < NEARLY_BLACK
        if row["dark"]:
            self.black += 1
            if len(self.dark) < REPORT_BLACK:
                self.dark.append(row)
        if found.any():
            self.defective_count += 1
            keep(self.defective, (max(p[found > 0]), next(self.number), row), REPORT_CELLS)
        elif row["doubt"] < UNSURE:
            keep(self.near, (-row["doubt"], next(self.number), row), REPORT_UNSURE)

    def shown(self):
        """The rows that the report shows, each once."""
        rows = [row for heap in (self.defective, self.near) for *_, row in sorted(heap, reverse=True)]
        return list({row["filename"]: row for row in [*rows, *self.dark]}.values())


def keep(heap, item, most):
    """Put an item on a heap that keeps the `most` largest."""
    (heapq.heappush if len(heap) < most else heapq.heappushpop)(heap, item)


def as_cell(row, name, target, maps):
    """A row as the page takes it, by the name that it shows; its image is missing where it can't be read any more."""
    about = {"file": printable(name), "p": row["p"], "found": row["found"]}
    about.update(unsure=row["doubt"] < UNSURE, doubt=row["doubt"], dark=row["dark"], maps=maps)
    try:
        thumb = jpeg(Image.fromarray(read_image(row["filename"], THUMB)), THUMB, 80)
        return {**about, "thumb": thumb, "src": source_of(row["filename"], target)}
    except InputError:
        return {**about, "thumb": "", "src": ""}


def common_folder(folders):
    """The folder, with its last separator, that all of them lie in; "" where that says nothing."""
    try:
        root = os.path.commonpath(list(folders))
    except ValueError:  # absolute and relative ones
        return ""
    return "" if root in ("", ".", os.sep) else os.path.join(root, "")


def module_parts(about, rows, target, classes, maps):
    """Modules of about/modules.csv as the page takes them: those not sure first, then those with most defective cells.

    rows: dict of module -> its cells' rows. Returns (modules, how many there are, errors of those not found).
    """
    with open(about / "modules.csv", encoding="utf-8", errors=ANY_NAME, newline="") as file:
        table = list(csv.DictReader(file, delimiter=";"))
    modules = [m for m in table if not m["error"]]
    modules.sort(key=lambda m: (m["sure"] == "1", -sum(int(m[c]) for c in classes)))
    parts = []
    for m in modules[:REPORT_MODULES]:
        with Image.open(about / f"{m['name']}.png") as opened:
            size, image = opened.size, jpeg(opened, max(opened.size), 82)
        columns, lines = int(m["columns"]), int(m["rows"])
        quad = np.array([float(m[k]) for k in CORNERS]).reshape(4, 2)
        factor = size[0] / open_image(m["filename"]).width
        shapes = Grid((quad + 0.5) * factor - 0.5, columns, lines, size[::-1]).cells()
        cells = []
        for row in rows.get(m["name"], []):
            r, c = int(row["row"]), int(row["column"])
            found = ", ".join(f"{k} {v:.3f}" for k, v in zip(classes, row["p"])) if "p" in row else row["error"]
            points = " ".join(f"{x:.0f},{y:.0f}" for x, y in shapes[r - 1, c - 1])
            seen = maps.get(row["filename"])
            cells.append([points, source_of(row["filename"], target), f"row {r}, column {c}: {found}", seen])
        counts = ", ".join(f"{m[k]} {k.replace('_', ' ')}" for k in (*classes, "nearly_black"))
        text = f"{columns}x{lines} cells of {m['cell_pixels']} pixels, {counts}."
        doubts = m["why"] if m["sure"] != "1" else ""
        parts.append(
            {"file": m["filename"], "text": text, "doubt": doubts, "image": image, "size": size, "cells": cells}
        )
    return parts, len(modules), [m["error"] for m in table if m["error"]]


def write_report(table, target, engine, model, about=None, class_maps=None):
    """One HTML page about an output table of predict.py.

    about: folder with modules.csv and the modules' images, where whole modules were cut (`predict.py --grid`); they
    stand first. class_maps: function from uint8 images (B, 1, S, S) to maps (B, C, h, w), or None.
    """
    summary, of_modules = Summary(engine.classes, engine.thresholds), {}
    for row in read_results(table, engine.classes):
        summary.add(row)
        if about and (len(of_modules) < REPORT_CELLS or row["module"] in of_modules):
            of_modules.setdefault(row["module"], []).append(row)
    shown = summary.shown()
    root = common_folder(summary.folders)
    maps = class_maps_of((row["filename"] for row in shown), class_maps, engine.image_size)
    modules, module_count, failed = [], 0, []
    if about:
        modules, module_count, failed = module_parts(Path(about), of_modules, target, engine.classes, maps)
    counts = [("cells", summary.cells), *zip(engine.classes, summary.positives.tolist())]
    counts += [("no defect", int(summary.defect_free)), ("unreadable", summary.failed)]
    counts += [("nearly black", int(summary.black))] * bool(summary.black)
    few = f"; the {REPORT_CELLS} surest are shown" * (summary.defective_count > REPORT_CELLS)
    names = ("cells", *engine.classes, "no defect", "unreadable")
    folders = sorted(summary.folders.items(), key=lambda f: -sum(f[1][c] for c in engine.classes))
    fill(
        "report.html",
        target,
        {
            "model": Path(model).name + f", cells in {printable(root)}" * bool(root),
            "when": time.strftime("%Y-%m-%d %H:%M"),
            "classes": list(engine.classes),
            "thresholds": [float(t) for t in engine.thresholds],
            "counts": counts,
            "histograms": summary.histograms.tolist(),
            "folders": [[name, *(int(n[k]) for k in names)] for name, n in folders[:REPORT_LINES]],
            "note": f"{summary.defective_count} cells have a defect{few}. Beside them are those without one that are "
            "nearest to a threshold, and nearly black ones, which the probabilities can't tell.",
            "cells": [
                as_cell(row, row["filename"].removeprefix(root), target, maps.get(row["filename"])) for row in shown
            ],
            "modules": modules,
            "module_count": module_count,
            "module_folder": str(about or ""),
            "failed": failed,
            "unreadable": summary.errors,
            "unreadable_count": summary.failed,
        },
    )
