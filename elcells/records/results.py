"""A results folder as tables of pandas.

>>> results = open_results("results/site7")
>>> results.cells.groupby("module")["crack"].sum()
"""

import json

import pandas as pd

from elcells.inference.cells import DECIMALS
from elcells.modules.cutting import CORNERS
from elcells.records.exports import PERSON, cell_fields, cell_rows, module_fields, module_rows
from elcells.records.module_severity import MODES
from elcells.records.opening import reading

TIMES = ("started", "finished", "judged")
LISTS = ("classes", "thresholds", "notes", "corners", "metadata")  # columns that hold JSON
INTEGERS = "columns rows row column sure cell_pixels nearly_black dark id page bytes modified run".split()
REALS = ["score", "lead", "bend", *DECIMALS, *MODES, *CORNERS]


def open_results(folder):
    """The Results in a folder that `predict.py --out` made. Raises InputError where there is no record."""
    with reading(folder):
        return Results(folder)


class Results:
    """The record of a results folder (doc/record.md), read anew for each table that is asked for; nothing is changed.

    Each raises InputError while a run writes into the folder.
    """

    def __init__(self, folder):
        self.folder = folder

    @property
    def cells(self):
        """A row for each cell, with the columns of cells.csv."""
        with reading(self.folder) as record:
            rows = cell_rows(record, lambda value, decimals: value)
            labels = [f"{PERSON}_{name}" for name in record.classes]
            return frame(rows, cell_fields(record.classes), [*record.classes, *labels])

    @property
    def modules(self):
        """A row for each image of a module, with the columns of modules.csv."""
        with reading(self.folder) as record:
            metadata = record.metadata_fields()
            return frame(module_rows(record), module_fields(record.classes, metadata), record.classes, metadata)

    @property
    def images(self):
        """A row for each image: the table `images`."""
        with reading(self.folder) as record:
            return table(record.images())

    @property
    def runs(self):
        """A row for each run: the table `runs`."""
        with reading(self.folder) as record:
            return table(record.runs(["*"]))


def table(cursor):
    """The rows of an SQLite cursor as a DataFrame."""
    fields = [column[0] for column in cursor.description]
    return frame(map(tuple, cursor), fields)


def frame(rows, fields, classes=(), texts=()):
    """Rows as a DataFrame with integers that may be missing, numbers, times and text; texts: fields that are text."""
    result = pd.DataFrame(list(rows), columns=fields, dtype=object)
    for name in fields:
        column = result[name]
        if name in texts:
            result[name] = column.fillna("").astype(str)
        elif name in TIMES:
            result[name] = pd.to_datetime(column, utc=True, format="ISO8601")
        elif name in LISTS:
            result[name] = column.map(json.loads)
        elif name in INTEGERS or name in classes:
            result[name] = column.astype("Int64")
        elif name in REALS or name.startswith("p_"):
            result[name] = column.astype(float)
        else:
            result[name] = column.fillna("").astype(str)
    return result
