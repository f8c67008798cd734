"""The HTML report of `predict.py`: counts, histograms, folders, modules, and the cells worth looking at."""

import os
import time
from collections import Counter, defaultdict

import numpy as np
from PIL import Image

from elcells.data.images import size_of
from elcells.files import OVERLAYS, InputError, counted, printable
from elcells.modules.cutting import CORNERS
from elcells.modules.grid import Grid
from elcells.modules.overlay import LEGEND_HEIGHT, NO_DEFECT, TOO_DARK_VERDICT
from elcells.pages.page import UNSURE, PageImage, doubt, fill, images_with_maps, jpeg
from elcells.records.exports import counts_of_modules
from elcells.records.record import image_name

REPORT_CELLS = 1000  # the surest defects that the report shows
REPORT_UNSURE = 200  # cells without a defect, nearest to the thresholds, that it shows
REPORT_BLACK = 100  # nearly black ones
REPORT_MODULES = 50  # modules
REPORT_LINES = 200  # unreadable files, folders
BINS = 20  # of a histogram


def counts_for_page(cells, classes):
    """Counts of all CellResults, histograms of their probabilities, folders and errors, a dict that JSON can hold."""
    names = ("cells", *classes, NO_DEFECT, "unreadable")
    folders = defaultdict(Counter)
    histograms = np.zeros((len(classes), BINS), int)
    errors = []
    for cell in cells:
        folder = folders[os.path.dirname(cell.filename) or "."]
        folder["cells"] += 1
        if cell.judged:
            folder.update(cell.defects(classes) or [NO_DEFECT])
            bins = np.minimum(np.array(cell.probabilities) * BINS, BINS - 1).astype(int)
            histograms[range(len(bins)), bins] += 1
        elif not cell.nearly_black:
            folder["unreadable"] += 1
            errors.append(cell.error)
    total = sum(folders.values(), Counter())
    counts = [(name, total[name]) for name in names]
    nearly_black = sum(cell.nearly_black for cell in cells)
    if nearly_black:
        counts.append((TOO_DARK_VERDICT, nearly_black))
    most_defects_first = sorted(folders.items(), key=lambda item: -sum(item[1][c] for c in classes))
    rows = [[folder, *(counter[name] for name in names)] for folder, counter in most_defects_first]
    return {
        "counts": counts,
        "histograms": histograms.tolist(),
        "folder_columns": ["folder", *names],
        "folders": rows[:REPORT_LINES],
        "unreadable": errors[:REPORT_LINES],
        "unreadable_count": len(errors),
    }


def cells_to_show(cells, thresholds):
    """The CellResults that the report shows, each once, and a text about them.

    Those with a defect, the surest first; those without one that are nearest to a threshold; nearly black ones.
    """
    judged = [cell for cell in cells if cell.judged]
    defective = [cell for cell in judged if any(cell.calls)]
    defective.sort(key=lambda cell: -max(p for p, call in zip(cell.probabilities, cell.calls) if call))
    unsure = [cell for cell in judged if not any(cell.calls) and doubt_of(cell, thresholds) < UNSURE]
    unsure.sort(key=lambda cell: doubt_of(cell, thresholds))
    nearly_black = [cell for cell in judged if cell.nearly_black]
    few = f"; the {REPORT_CELLS} surest are shown" if len(defective) > REPORT_CELLS else ""
    note = (
        f"{counted(len(defective), 'cell has', 'cells have')} a defect{few}. Also shown are the cells without a defect "
        "that are nearest to a threshold, and nearly black cells, which are too dark to judge."
    )
    shown = [*defective[:REPORT_CELLS], *unsure[:REPORT_UNSURE], *nearly_black[:REPORT_BLACK]]
    return list({cell.filename: cell for cell in shown}.values()), note


def doubt_of(cell, thresholds):
    """`doubt` of one cell, a float."""
    return float(doubt([cell.probabilities], thresholds)[0])


def common_folder(paths):
    """The folder, with its last separator, that all files lie in; "" where that says nothing."""
    try:
        root = os.path.commonpath({os.path.dirname(path) for path in paths})
    except ValueError:  # absolute and relative ones
        return ""
    return "" if root in ("", ".", os.sep) else os.path.join(root, "")


def cell_entry(cell, name, image, maps, target, thresholds):
    """A cell as the page takes it, under the name that it shows; thumb and src are "" where its image is gone."""
    distance = doubt_of(cell, thresholds)
    entry = {"file": printable(name), "p": cell.probabilities, "calls": cell.calls, "maps": maps}
    entry |= {"unsure": distance < UNSURE, "doubt": distance, "dark": cell.nearly_black}
    try:
        return entry | {"thumb": image.thumbnail(), "src": image.source(target)}
    except InputError:
        return entry | {"thumb": "", "src": ""}


def module_entry(row, counts, folder, cells, entries, target, classes):
    """A module as the page takes it.

    row: of Record.modules. counts: of its cells of each class, and of nearly black ones. folder: of the results. cells:
    its CellResults. entries: known ones of cells.
    """
    with Image.open(folder / OVERLAYS / f"{row['name']}.png") as image:
        size = image.size
        source = jpeg(image, max(size), 82)
    scale = max(size[0], size[1] - LEGEND_HEIGHT) / max(size_of(image_name(row)))
    corners = np.array([row[k] for k in CORNERS]).reshape(4, 2)
    outlines = Grid((corners + 0.5) * scale - 0.5, row["columns"], row["rows"], size[::-1]).cells()
    areas = []
    for cell in cells:
        entry = entries.get(cell.filename) or {"src": PageImage(cell.filename).source(target), "maps": None}
        outline = outlines[cell.place.row - 1, cell.place.column - 1]
        judgement = ", ".join(f"{name} {p:.3f}" for name, p in zip(classes, cell.probabilities)) or cell.error
        text = f"row {cell.place.row}, column {cell.place.column}: {judgement}"
        points = " ".join(f"{x:.0f},{y:.0f}" for x, y in outline)
        areas.append({"points": points, "text": text, "src": entry["src"], "maps": entry["maps"]})
    of_each = ", ".join(f"{count} {name}" for name, count in zip([*classes, TOO_DARK_VERDICT], counts))
    return {
        "file": printable(image_name(row)),
        "text": f"{row['columns']}x{row['rows']} cells of {row['cell_pixels']} pixels, {of_each}.",
        "doubt": "" if row["sure"] else row["why"],
        "image": source,
        "size": size,
        "cells": areas,
    }


def modules_to_show(record):
    """Rows of a record's modules, those not sure first, then those with most defective cells; the counts of their cells
    (`counts_of_modules`); and the errors of images in which no module was found."""
    counts = counts_of_modules(record)
    rows = list(record.modules())
    modules = [row for row in rows if row["image"] is not None]
    modules.sort(key=lambda row: (row["sure"], -sum(counts[row["image"]][:-1])))
    return modules, counts, [row["error"] for row in rows if row["image"] is None]


def write_report(record, engine):
    """Write report.html into a record's folder; modules come first. engine: makes the class maps."""
    classes = record.classes
    target = record.folder / "report.html"
    info = record.info
    thresholds = info["thresholds"]
    cells = list(record.results())
    root = common_folder([cell.filename for cell in cells])
    shown, note = cells_to_show(cells, thresholds)
    entries = {}
    for cell, (image, maps) in zip(shown, images_with_maps([PageImage(cell.filename) for cell in shown], engine)):
        name = cell.filename.removeprefix(root)
        entries[cell.filename] = cell_entry(cell, name, image, maps, target, thresholds)
    modules, counts, failed = modules_to_show(record)
    cells_of = defaultdict(list)
    for cell in cells:
        if cell.place:
            cells_of[cell.place.module].append(cell)
    data = {
        "model": f"{info['network']}, cells in {printable(root)}" if root else info["network"],
        "when": time.strftime("%Y-%m-%d %H:%M"),
        "classes": classes,
        "thresholds": thresholds,
        "note": note,
        "cells": list(entries.values()),
        "modules": [
            module_entry(row, counts[row["image"]], record.folder, cells_of[row["name"]], entries, target, classes)
            for row in modules[:REPORT_MODULES]
        ],
        "module_count": len(modules),
        "module_folder": str(record.folder / OVERLAYS) if modules else "",
        "failed": failed,
        **counts_for_page(cells, classes),
    }
    fill("report.html", target, data)
