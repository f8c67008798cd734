"""Tables that are derived from a record: cells.csv, modules.csv and results.xlsx (doc/record.md).

The CSV files are UTF-8 with a byte order mark and separated by `;`, so that spreadsheets open them as they are. Text
that such a program would take for a formula gets a quote in front.
"""

import csv
import datetime
import json

from elcells.files import atomic_path, needed, one_line, printable
from elcells.inference.cells import DECIMALS, MEASURED, SEVERITY
from elcells.modules.cutting import CORNERS
from elcells.records.labels import corrections, judged_by_people_alone
from elcells.records.module_severity import MODULE_SEVERITY, severity_of_modules
from elcells.records.rows import Labels, image_name, place_of, quoted

# First characters of a formula, also as wide as Chinese ones (OWASP, "CSV Injection")
FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
BLACK_COLUMN, DARK_COLUMN = "nearly_black", "dark"  # counts of cells
PERSON = "person"  # column of who labelled a cell, and beginning of the labels' columns
RUN_FIELDS = "id started network sha256 trained operating_point thresholds engine".split()
SHEET_ROWS = 2**20 - 1  # below the header; a spreadsheet has no more
TEXT_COLUMNS = "filename image name module why error started finished network sha256 trained engine".split()
WIDE, NARROW = 40, 11  # characters, of columns of text and of numbers


def safe(value):
    """A value as a spreadsheet may show it: text that it would take for a formula with a quote in front."""
    if not isinstance(value, str):
        return "" if value is None else value
    value = value.replace("\r", "\n")  # before Python 3.13 csv does not quote it
    return f"'{value}" if value.startswith(FORMULA) else value


def write_csv(path, fields, rows):
    """Write rows (lists) below their field names; bytes of names that are not UTF-8 become \\udcXX."""
    with atomic_path(path) as temporary:
        with open(temporary, "w", encoding="utf-8-sig", errors="backslashreplace", newline="") as file:
            writer = csv.writer(file, delimiter=";", lineterminator="\n")
            writer.writerow([safe(name) for name in fields])
            writer.writerows([safe(value) for value in row] for row in rows)


# ---------------------------------------------------------------- cells


def cell_fields(classes):
    """Columns of cells.csv."""
    return [
        "filename",
        *classes,
        *(f"p_{c}" for c in classes),
        *(f"{PERSON}_{c}" for c in classes),
        PERSON,
        "image",
        "module",
        "row",
        "column",
        *MEASURED,
        *SEVERITY,
        "error",
    ]


def cell_rows(record, number=lambda value, decimals: None if value is None else f"{value:.{decimals}f}"):
    """Yield the rows of cells.csv, lists in the order of cell_fields; number(value, decimals): how figures are written.

    A cell's file name is that of its image, or, cut from a module, relative to the results folder.
    """
    classes = record.classes
    people = record.people()
    nobody = Labels((None,) * len(classes), None, None)
    names = (*MEASURED, *SEVERITY)
    for row in record.cells():
        image = image_name(row)
        labels = people.get(place_of(row), nobody)
        probabilities = [number(row[f"p_{c}"], 4) for c in classes]
        place = [row["name"], row["row"], row["column"]] if row["file"] else ["", None, None]
        calls = [row[c] for c in classes]
        measured = [number(row[name], DECIMALS[name]) if name in DECIMALS else row[name] for name in names]
        given = [*labels.values, labels.who]
        yield [row["file"] or image, *calls, *probabilities, *given, image, *place, *measured, one_line(row["error"])]


# ---------------------------------------------------------------- modules


def module_fields(classes, metadata=()):
    """Columns of modules.csv; metadata: those that the user's table adds. classes: () where nothing was judged."""
    counts = [*classes, BLACK_COLUMN, DARK_COLUMN, *MODULE_SEVERITY] if classes else [BLACK_COLUMN]
    geometry = "name columns rows score lead sure why cell_pixels bend".split()
    return ["filename", *geometry, *CORNERS, *counts, "error", *metadata]


def counts_of_modules(record):
    """{id of an image: [number of cells with each class …, nearly black, dark]}, corrected by people's labels."""
    sums = ", ".join(f"coalesce(sum({quoted(name)}), 0)" for name in record.classes)
    sums += ", sum(error != ''), sum(coalesce(dark_part, 0) > 0)"
    query = f"SELECT image, {sums} FROM cells WHERE row > 0 GROUP BY image"
    counts = {image: list(numbers) for image, *numbers in record.connection.execute(query)}
    for image, k, call, label in corrections(record):
        if image in counts:
            counts[image][k] = (counts[image][k] or 0) + label - (call or 0)
    for image in judged_by_people_alone(record):
        if image in counts:
            counts[image][-2] -= 1
    return counts


def module_rows(record):
    """Yield the rows of modules.csv, lists in the order of module_fields."""
    counts = counts_of_modules(record)
    severity = severity_of_modules(record)
    fields = record.metadata_fields()
    for row in record.modules():
        values = json.loads(row["metadata"])
        metadata = [values.get(name, "") for name in fields]
        if row["image"] is None:
            columns, rows = row["grid"].split("x")
            empty = [None] * (len(module_fields(record.classes)) - 5)
            yield [image_name(row), "", int(columns), int(rows), *empty, one_line(row["error"]), *metadata]
            continue
        cells = [*counts[row["image"]], *severity[row["image"]]]
        yield [image_name(row), *module_values(row), *cells, "", *metadata]


def module_values(row):
    """What modules.csv says about a module's grid, from `name` to `y4`; row: as in the table `modules`."""
    geometry = [row[name] for name in module_fields(())[1:10]]
    for place in (3, 4, 8):
        geometry[place] = None if geometry[place] is None else round(geometry[place], 4)
    return [*geometry, *(row[name] for name in CORNERS)]


# ---------------------------------------------------------------- all


def write_tables(record):
    """Write cells.csv, results.xlsx and, where there are modules, modules.csv into a record's folder."""
    classes = record.classes
    write_csv(record.folder / "cells.csv", cell_fields(classes), cell_rows(record))
    if record.count("grid != ''"):
        fields = module_fields(classes, record.metadata_fields())
        write_csv(record.folder / "modules.csv", fields, module_rows(record))
    else:
        (record.folder / "modules.csv").unlink(missing_ok=True)
    write_workbook(record)


def write_workbook(record):
    """Write results.xlsx, with real numbers, a row at a time. The same record gives the same bytes."""
    xlsxwriter = needed("xlsxwriter")
    sheets = {
        "modules": (module_fields(record.classes, record.metadata_fields()), module_rows(record)),
        "cells": (cell_fields(record.classes), cell_rows(record, lambda value, decimals: value)),
        "runs": (RUN_FIELDS, record.runs(RUN_FIELDS)),
    }
    [begun], *_ = record.runs(["started"])
    with atomic_path(record.folder / "results.xlsx") as temporary:
        workbook = xlsxwriter.Workbook(str(temporary), {"constant_memory": True})
        workbook.set_properties({"created": datetime.datetime.fromisoformat(begun).astimezone(datetime.UTC)})
        for name, (fields, rows) in sheets.items():
            add_sheets(workbook, name, fields, rows)
        workbook.get_worksheet_by_name("modules" if record.count("grid != ''") else "cells").activate()
        try:
            workbook.close()
        except xlsxwriter.exceptions.FileCreateError as error:
            raise error.args[0] from None  # the OSError


def add_sheets(workbook, name, fields, rows):
    """Add a sheet with rows to a workbook; further ones, "name 2" …, where one can't hold them."""
    sheet = new_sheet(workbook, name, fields)
    for place, row in enumerate(rows):
        if place and place % SHEET_ROWS == 0:
            sheet = new_sheet(workbook, f"{name} {place // SHEET_ROWS + 1}", fields)
        line = place % SHEET_ROWS + 1
        for column, value in enumerate(row):
            if isinstance(value, str):
                if value:
                    sheet.write_string(line, column, printable(value))
            elif value is not None:
                sheet.write_number(line, column, value)


def new_sheet(workbook, name, fields):
    """An empty sheet below a header that stays in sight."""
    sheet = workbook.add_worksheet(name)
    sheet.freeze_panes(1, 0)
    bold = workbook.add_format({"bold": True})
    for column, field in enumerate(fields):
        width = WIDE if field in TEXT_COLUMNS else max(NARROW, len(field) + 2)
        sheet.set_column(column, column, width)
        sheet.write_string(0, column, printable(field), bold)
    return sheet
