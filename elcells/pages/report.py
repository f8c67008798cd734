"""The HTML report of a record: report.html, and its data in files beside it, so that it shows any number of cells."""

import io
import itertools
import json
import os
from collections import Counter

from PIL import Image
from tqdm import tqdm

from elcells.data.images import FINE_CRACKS, as_gray, as_lines, size_of
from elcells.files import CUT, MODULES, REPORT, InputError, folder_of_all, printable, relative
from elcells.inference.networks import shipped_sha256
from elcells.inference.origin import quality_of
from elcells.inference.severity import LEAST_PIXELS
from elcells.modules.saving import cell_name
from elcells.pages.beside import SEEN_BEFORE, Files, stamp_of, url
from elcells.pages.page import THUMBNAIL_SIDE, base64_of, browser_shows, data_uri, fill, jpeg, json_of
from elcells.pages.report_data import UNREADABLE, Contents
from elcells.pages.severity_data import data_of_sums
from elcells.records.record import WAITING
from elcells.records.rows import image_name
from elcells.records.runs import now
from elcells.records.summary import line_about_small

MODULES_A_FILE, CELLS_A_FILE = 24, 1000  # of class maps, and of images of lines
FIRST_MODULES, FIRST_CELLS = 6, 100  # that are in the page itself, for when it is mailed without its files
FIRST_BYTES = 3_000_000  # of their images
MAILED_BYTES = 20_000_000  # of a single file
PAGE_BYTES, CELL_BYTES = 75_000, 100  # of them, what the page needs without data, and a cell without its image
MODULES_SHARE = 0.6  # of these bytes at most for modules
EMBEDDED_BYTES, EMBEDDED_SIDE = 400_000, 1600  # of a module's image: larger ones are made smaller


def write_report(record, single_file=None):
    """Write a record's report.html and its files, or, with single_file (a path), everything into that one file.

    The single file has MAILED_BYTES at most: the worst modules and the first cells; it says what is left out.
    """
    contents = Contents(record)
    if single_file is not None:
        data = page_data(contents) | {"alone": True, "reviewed": False}
        first = embedded(contents, MAILED_BYTES - PAGE_BYTES - len(json_of(data)), with_maps=True)
        fill("report.html", single_file, data, {"first": first})
        return
    stamp = stamp_of(record)
    files = Files(record.folder / REPORT, stamp)
    add_sources(contents, files)
    write_chunks(contents, files)
    first = embedded(contents, FIRST_BYTES, FIRST_MODULES, FIRST_CELLS)
    fill("report.html", record.folder / "report.html", page_data(contents) | {"stamp": stamp}, {"first": first})
    files.remove_others(record)


# ---------------------------------------------------------------- its files


def write_chunks(contents, files):
    """Write the files of data: all cells that are to be looked at, the modules, class maps, crack lines and regions."""
    files.write_chunk("cells", json_of(contents.shown.data()))
    for start in range(0, len(contents.details), MODULES_A_FILE):
        some = enumerate(contents.details[start : start + MODULES_A_FILE], start)
        text = ",".join(f'"{number}":{detail}' for number, detail in some)
        files.write_chunk(f"modules-{start // MODULES_A_FILE}", f"{{{text}}}")
    for name, images in (("maps", contents.maps), ("shapes", contents.shapes)):
        parts = {}
        for number, content in images.items():
            parts.setdefault(number // CELLS_A_FILE, {})[number] = base64_of(content)
        for number, some in parts.items():
            files.write_chunk(f"{name}-{number}", json_of(some))


def add_sources(contents, files):
    """Find the URL of each shown image of a cell that is not made from its name: what no browser shows is converted."""
    shown = contents.shown
    alone = [k for k in range(len(shown)) if shown.module[k] < 0 and not shown.state[k] & UNREADABLE]
    for number in tqdm(alone, "images", unit="image", leave=False, disable=None):
        row = contents.record.connection.execute(SEEN_BEFORE, [contents.images[number]]).fetchone()
        if row["page"] or not browser_shows(row["path"]):
            source = files.converted(row)
        elif printable(row["path"]) != row["path"] or not contents.root:
            source = url(row["path"], contents.record.folder)
        else:
            continue
        if source:
            shown.sources[number] = source


# ---------------------------------------------------------------- what is in the page itself


def embedded(contents, most_bytes, most_modules=None, most_cells=None, with_maps=False):
    """What the page shows without its files: the worst modules and `ShownCells.first_to_see`, within so many bytes.

    Returns a dict that JSON can hold: data and images of the modules by number, columns of the cells, and thumbnails,
    lines (and class maps) of the cells by number.
    """
    folder = contents.record.folder
    used = 0
    first = {"modules": {}, "images": {}, "thumbs": {}, "maps": {}, "shapes": {}}
    for number in contents.worst_first()[:most_modules]:
        image = image_of_module(folder / MODULES / f"{contents.modules[number]['name']}.jpg")
        shapes = shapes_of_module(contents, number)
        used += len(image) + len(contents.details[number]) + len(json_of(shapes))
        if used > most_bytes * (1 if most_modules else MODULES_SHARE):
            break
        first["modules"][number] = json.loads(contents.details[number])
        first["images"][number] = image
        first["shapes"] |= shapes
    chosen = []
    for number in tqdm(contents.shown.first_to_see()[:most_cells], "cells", unit="cell", leave=False, disable=None):
        thumb = thumbnail(contents, number)
        levels = base64_of(contents.maps.get(number, b"") if with_maps else b"")
        shape = base64_of(contents.shapes.get(number, b""))
        used += len(thumb) + len(levels) + len(shape) + CELL_BYTES + len(json_of(contents.shown.some([number])))
        if used > most_bytes and most_cells is None:
            break
        chosen.append(number)
        first["thumbs"][number] = thumb
        if levels:
            first["maps"][number] = levels
        if shape:
            first["shapes"][number] = shape
    return first | {"cells": contents.shown.some(sorted(chosen))}


def shapes_of_module(contents, number):
    """{number of a shown cell: image of its lines as base64} of a module's cells."""
    start = json.loads(contents.details[number])["first"]
    cells = itertools.takewhile(lambda k: contents.shown.module[k] == number, range(start, len(contents.shown)))
    return {k: base64_of(contents.shapes[k]) for k in cells if k in contents.shapes}


def image_of_module(path):
    """The image of a module as a data: URI, made smaller where it is large; "" where it is gone."""
    try:
        content = path.read_bytes()
        if len(content) <= EMBEDDED_BYTES:
            return data_uri(content)
        return jpeg(Image.open(io.BytesIO(content)), EMBEDDED_SIDE, 80)
    except OSError:
        return ""


def thumbnail(contents, number):
    """A small image of a shown cell as a data: URI, "" where it is gone or no image."""
    shown = contents.shown
    record = contents.record
    if shown.module[number] < 0:
        row = record.connection.execute(SEEN_BEFORE, [contents.images[number]]).fetchone()
        path = image_name(row)
    else:
        module = contents.modules[shown.module[number]]
        path = record.folder / CUT / cell_name(module["name"], shown.place[number], module["columns"])
    try:
        return jpeg(as_gray(path)[0], THUMBNAIL_SIDE, 80)
    except InputError:
        return ""


# ---------------------------------------------------------------- its data


def page_data(contents):
    """What the page says before its first cell, a dict that JSON can hold."""
    record = contents.record
    info = record.info
    judged = record.connection.execute("SELECT min(judged), max(judged) FROM images").fetchone()
    return {
        "classes": contents.classes,
        "thresholds": info["thresholds"],
        "chunks": REPORT,
        "alone": False,
        "modules_a_file": MODULES_A_FILE,
        "cells_a_file": CELLS_A_FILE,
        "measured": contents.measured,
        "least_pixels": LEAST_PIXELS,
        "severity": data_of_sums(contents.all_severity),
        "folder": printable(record.folder.resolve().name),
        "trained": printable(info["trained"]),
        "quality": quality_of(info, shipped_sha256()),
        "operating_point": info["operating_point"],
        "judged": [(time or "")[:10] for time in judged],
        "images": record.count(),
        "kinds": contents.kinds,
        "unsure": contents.unsure,
        "dark": contents.dark,
        "shown": len(contents.shown),
        "corrected": contents.corrected,
        "people": contents.about_people(),
        "made": now(),
        "reviewed": (record.folder / "review.html").exists(),
        "assumed": assumptions(record),
        "failed": contents.failed,
        "waiting": record.count(f"status = '{WAITING}'"),
        "fine_cracks": FINE_CRACKS,
        "small": line_about_small([row["cell_pixels"] for row in contents.modules]),
        "modules": module_columns(contents),
        "base": base_url(contents),
        "root": printable(contents.root),
        "folders": folder_rows(contents),
        "histograms": contents.histograms.tolist(),
    }


def assumptions(record):
    """Lines about what was assumed about the files of the images."""
    notes = Counter()
    for row in record.images():
        notes.update(json.loads(row["notes"]))
    return [printable(line) for line in as_lines(notes)]


def module_columns(contents):
    """Columns of the table of modules."""
    rows = contents.modules
    root = folder_of_all([row["path"] for row in rows]) if rows else None
    metadata = [json.loads(row["metadata"]) for row in rows]
    fields = [name for name in contents.record.metadata_fields() if any(name in values for values in metadata)]
    return {
        "name": [row["name"] for row in rows],
        "file": [printable(relative(image_name(row), root)) for row in rows],
        "columns": [row["columns"] for row in rows],
        "rows": [row["rows"] for row in rows],
        "pixels": [row["cell_pixels"] for row in rows],
        "size": [size_of(contents.record.folder / MODULES / f"{row['name']}.jpg") for row in rows],
        "cut": [size_of(contents.record.folder / CUT / cell_name(row["name"], 0, row["columns"])) for row in rows],
        "doubt": ["" if row["sure"] else printable(row["why"]) for row in rows],
        "counts": contents.counts,
        "severity": [data_of_sums(sums) for sums in contents.severity],
        "metadata": [
            [printable(name), [printable(str(values.get(name, ""))) for values in metadata]] for name in fields
        ],
    }


def base_url(contents):
    """The URL of the folder of the images of single cells, from the page; "" where the page needs none."""
    return url(contents.root, contents.record.folder) + "/" if contents.root else ""


def folder_rows(contents):
    """[folder, {kind of cell: number}] for each folder of images of cells."""
    return [
        [printable(os.path.join(folder, "").removeprefix(contents.root)) or ".", counts]
        for folder, counts in contents.folders.items()
    ]
