"""The output table of predict.py: a row for each image, written as it is judged and read again for the pages.

It is a CSV file that `train.py --data` could read. A note beside it, TABLE.run.json, says what made it, so that another
network can't continue it.
"""

import csv
import io
import json
import os
import sys
from pathlib import Path

from elcells.files import ANY_NAME, InputError, atomic_path
from elcells.inference.cells import CellResult, Place


class OutputTable:
    """The rows of CellResults, in a file, or on the screen where `path` is None.

    An existing file is continued: an incomplete last row is cut off, and `done` holds the file names that have rows.
    of_modules: rows say where a cell lies in its module. identity: what the rows depend on, a dict that JSON can hold.
    Raises InputError for a file that something else made.
    """

    def __init__(self, path, classes, of_modules, identity):
        place = Place._fields if of_modules else ()
        header = ["filename", *classes, *(f"p_{c}" for c in classes), *place, "brightness", "error"]
        self.path = path
        self.not_judged = [""] * (2 * len(classes))
        self.done = set()
        self.file = sys.stdout
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            note = Path(f"{path}.run.json")
            if path.exists():
                _check_note(path, note, identity)
                self.done = _read_done(path, header)
            else:
                with atomic_path(note) as temporary:
                    temporary.write_text(json.dumps(identity, indent=1), encoding="utf-8")
            self.file = open(path, "a", encoding="utf-8", errors=ANY_NAME, newline="")
        self.writer = csv.writer(self.file, delimiter=";", lineterminator="\n")
        if not path or not self.file.tell():
            self.writer.writerow(header)

    def write(self, cell):
        """Add the row of a CellResult to the file."""
        judged = [*cell.calls, *(f"{p:.4f}" for p in cell.probabilities)] if cell.judged else self.not_judged
        brightness = "" if cell.brightness is None else f"{cell.brightness:.3f}"
        self.writer.writerow([cell.filename, *judged, *(cell.place or ()), brightness, cell.error])
        self.file.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.path:
            self.file.close()


def _check_note(table, note, identity):
    """Raise InputError where a table has no note, or one that says that something else began it."""
    if not note.exists():
        raise InputError(f"{table}: its note {note.name}, which says what made it, is missing; give another --csv")
    begun_by = json.loads(note.read_text(encoding="utf-8"))
    different = [key for key in identity if begun_by.get(key) != identity[key]]
    if different:
        names = " and ".join(different)
        raise InputError(f"{table}: was begun with another {names}; go on with that, or give another --csv")


def _read_done(path, expected_header):
    """File names that have rows in a table, which is cut behind its last complete row."""
    raw = path.read_bytes()
    complete = raw[: raw.rfind(b"\n") + 1]
    rows = csv.reader(io.StringIO(complete.decode("utf-8", ANY_NAME)), delimiter=";")
    header = next(rows, None)
    if header not in (None, expected_header):
        raise InputError(f"{path}: is no output of this model (its columns differ); give another --csv")
    os.truncate(path, len(complete))
    return {row[0] for row in rows}


def read_results(path, classes):
    """Yield the CellResult of each row of an output table."""
    with open(path, encoding="utf-8", errors=ANY_NAME, newline="") as file:
        for row in csv.DictReader(file, delimiter=";"):
            calls = ()
            probabilities = ()
            if row[classes[0]] != "":
                calls = tuple(int(row[c]) for c in classes)
                probabilities = tuple(float(row[f"p_{c}"]) for c in classes)
            brightness = float(row["brightness"]) if row["brightness"] else None
            place = None
            if "module" in row:
                place = Place(row["module"], int(row["row"]), int(row["column"]), int(row["sure"]))
            yield CellResult(row["filename"], calls, probabilities, brightness, row["error"], place)
