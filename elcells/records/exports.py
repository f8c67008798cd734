"""Tables that are derived from a record: cells.csv, modules.csv and results.xlsx.

The CSV files are UTF-8 with a byte order mark and separated by `;`, so that spreadsheets open them as they are. Text
that such a program would take for a formula gets a quote in front.
"""

import csv

from elcells.files import ANY_NAME, atomic_path, printable
from elcells.modules.cutting import CORNERS
from elcells.records.record import image_name

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # first characters of a formula (OWASP, "CSV Injection")
BLACK_COLUMN = "nearly_black"  # a count of cells
RUN_FIELDS = "id started finished network sha256 trained operating_point thresholds symmetries engine precision".split()


def safe(value):
    """A value as a spreadsheet may show it: text that it would take for a formula with a quote in front."""
    if isinstance(value, str) and value.startswith(FORMULA):
        return f"'{value}"
    return "" if value is None else value


def write_csv(path, fields, rows):
    """Write rows (lists) below their field names."""
    with atomic_path(path) as temporary:
        with open(temporary, "w", encoding="utf-8-sig", errors=ANY_NAME, newline="") as file:
            writer = csv.writer(file, delimiter=";", lineterminator="\n")
            writer.writerow(fields)
            writer.writerows([safe(value) for value in row] for row in rows)


# ---------------------------------------------------------------- cells


def cell_fields(classes):
    """Columns of cells.csv."""
    return [
        "filename",
        *classes,
        *(f"p_{c}" for c in classes),
        "image",
        "module",
        "row",
        "column",
        "brightness",
        "error",
    ]


def cell_rows(record, number=lambda value, decimals: None if value is None else f"{value:.{decimals}f}"):
    """Yield the rows of cells.csv, lists in the order of cell_fields; number(value, decimals): how figures are written.

    A cell's file name is that of its image, or, cut from a module, relative to the results folder.
    """
    classes = record.classes
    for row in record.cells():
        image = image_name(row)
        probabilities = [number(row[f"p_{c}"], 4) for c in classes]
        place = [row["name"], row["row"], row["column"]] if row["file"] else ["", None, None]
        calls = [row[c] for c in classes]
        brightness = number(row["brightness"], 3)
        yield [row["file"] or image, *calls, *probabilities, image, *place, brightness, row["error"]]


# ---------------------------------------------------------------- modules


def module_fields(classes):
    """Columns of modules.csv."""
    geometry = "name columns rows score lead sure why cell_pixels bend".split()
    return ["filename", *geometry, *CORNERS, *classes, BLACK_COLUMN, "error"]


def counts_of_modules(record):
    """{id of an image: (number of cells with each class ..., nearly black cells)}."""
    sums = ", ".join(f'sum("{name}")' for name in record.classes)
    query = f"SELECT image, {sums}, sum(error != '') FROM cells WHERE row > 0 GROUP BY image"
    return {image: counts for image, *counts in record.connection.execute(query)}


def module_rows(record):
    """Yield the rows of modules.csv, lists in the order of module_fields."""
    counts = counts_of_modules(record)
    for row in record.modules():
        if row["image"] is None:
            columns, rows = row["grid"].split("x")
            empty = [None] * (7 + len(CORNERS) + len(record.classes) + 1)
            yield [image_name(row), "", int(columns), int(rows), *empty, row["error"]]
            continue
        geometry = [row[name] for name in module_fields(())[1:10]]
        geometry[3:5] = [None if value is None else round(value, 4) for value in geometry[3:5]]
        geometry[8] = None if geometry[8] is None else round(geometry[8], 4)
        yield [image_name(row), *geometry, *(row[name] for name in CORNERS), *counts[row["image"]], ""]


# ---------------------------------------------------------------- all


def write_tables(record):
    """Write cells.csv, results.xlsx and, where there are modules, modules.csv into a record's folder."""
    classes = record.classes
    write_csv(record.folder / "cells.csv", cell_fields(classes), cell_rows(record))
    if record.count("grid != ''"):
        write_csv(record.folder / "modules.csv", module_fields(classes), module_rows(record))
    write_workbook(record)


def write_workbook(record):
    """Write results.xlsx, with real numbers, a row at a time."""
    from openpyxl import Workbook

    workbook = Workbook(write_only=True)
    sheets = {
        "cells": (cell_fields(record.classes), cell_rows(record, lambda value, decimals: value)),
        "modules": (module_fields(record.classes), module_rows(record)),
        "runs": (RUN_FIELDS, (list(row) for row in record.runs(RUN_FIELDS))),
    }
    for name, (fields, rows) in sheets.items():
        sheet = workbook.create_sheet(name)
        sheet.append(fields)
        for row in rows:
            sheet.append([safe(printable(value)) if isinstance(value, str) else value for value in row])
    with atomic_path(record.folder / "results.xlsx") as temporary:
        workbook.save(temporary)
