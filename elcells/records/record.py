"""The record of a results folder: one SQLite file, one transaction an image, nothing twice (doc/record.md).

An image is known by its real path and the page in its file, a cell by its image, row and column. An image is done when
it was judged as it is on the disk now; what failed or changed is judged again.
"""

import json
import secrets
from dataclasses import replace
from pathlib import Path

import elcells
from elcells.files import InputError, printable
from elcells.records.requests import ImageResult, text
from elcells.records.rows import Labels, count_of_labelled, module_row, place_of, quoted
from elcells.records.runs import FIXED, now, now_utc

JUDGED, FAILED, WAITING = "judged", "failed", "waiting"  # status of an image
AS_LABELLED = ("bytes", "modified", "grid", "corners")  # columns of an image: people's labels hold while they stay
WITHDRAWN = -1  # in place of a label: it was taken back
RESERVED = (  # names in tables that have a column for each class
    "image row column file filename module brightness error map path page metadata name person unsure who when "
    "nearly_black dark dark_part dark_ratio crack_length inactive_area crack_mode below shape "
    "mode_a mode_b mode_c"
).split()
NEW = {"metadata": "{}", "since": ""}  # what an image has that was not there before
ALL_CELLS = """
SELECT images.path, images.page, modules.name, cells.* FROM cells JOIN images ON images.id = cells.image
LEFT JOIN modules ON modules.image = cells.image ORDER BY images.path, images.page, cells.row, cells."column"
"""
ALL_MODULES = """
SELECT images.path, images.page, images.grid, images.status, images.error, images.notes, images.metadata, modules.*
FROM images LEFT JOIN modules ON modules.image = images.id WHERE images.grid != '' ORDER BY images.path, images.page
"""


class Record:
    """The record in a results folder. connection: sqlite3.Connection. run: id of the run under way."""

    def __init__(self, folder, connection):
        self.folder = Path(folder)
        self.connection = connection
        self.run = None
        self.was_derived = False  # before this run
        self.dropped = 0  # cells whose labels were dropped, because their image changed
        self._people = (None, None)  # how many changes there were before, and what people() gave

    # ---------------------------------------------------------------- reading

    @property
    def info(self):
        """The newest run: sqlite3.Row of the table runs, classes and thresholds decoded, as a dict."""
        row = dict(self.connection.execute("SELECT * FROM runs ORDER BY id DESC LIMIT 1").fetchone())
        return row | {"classes": tuple(json.loads(row["classes"])), "thresholds": json.loads(row["thresholds"])}

    @property
    def key(self):
        """What tells this record from others, text; it stays when the record is gone on with."""
        return self.connection.execute("SELECT key FROM runs ORDER BY id LIMIT 1").fetchone()[0]

    def cells(self):
        """Yield a row of each cell, in order of image and place: path, page, name of the module, columns of `cells`."""
        return self.connection.execute(ALL_CELLS)

    def metadata_fields(self):
        """Columns that the metadata of the images have, in the order in which they come."""
        rows = self.connection.execute("SELECT metadata FROM images WHERE metadata != '{}' ORDER BY id")
        return list(dict.fromkeys(name for row in rows for name in json.loads(row["metadata"])))

    def people(self):
        """{(image, row, column): Labels that people gave the cell}: the newest of each class, and who gave the last."""
        changes = (self.connection.total_changes, self.connection.execute("PRAGMA data_version").fetchone()[0])
        if self._people[0] == changes:
            return self._people[1]
        newest = {}
        for row in self.connection.execute("SELECT * FROM labels ORDER BY time, who"):
            cell = place_of(row)
            values = newest[cell].values if cell in newest else (None,) * len(self.classes)
            k = self.classes.index(row["class"])
            newest[cell] = Labels((*values[:k], row["label"], *values[k + 1 :]), row["who"], row["time"])
        newest = {cell: labels for cell, labels in newest.items() if set(labels.values) != {WITHDRAWN}}
        for cell, labels in newest.items():
            newest[cell] = labels._replace(values=tuple(None if v == WITHDRAWN else v for v in labels.values))
        self._people = (changes, newest)
        return newest

    def modules(self):
        """Yield a row of each image of a module, the columns of `images` and `modules`; without one they are None."""
        return self.connection.execute(ALL_MODULES)

    def runs(self, columns):
        """Yield a row of these columns of each run."""
        return self.connection.execute(f"SELECT {', '.join(columns)} FROM runs ORDER BY id")

    def images(self):
        """Yield a row of each image."""
        return self.connection.execute("SELECT * FROM images ORDER BY path, page")

    def count(self, condition="1"):
        """Number of images that meet an SQL condition."""
        return self.connection.execute(f"SELECT count(*) FROM images WHERE {condition}").fetchone()[0]

    def is_complete(self):
        """Whether every image that any run was asked for could be judged, and every module is sure."""
        unsure = self.connection.execute("SELECT count(*) FROM modules WHERE NOT sure").fetchone()[0]
        return not unsure and not self.count(f"status != '{JUDGED}'")

    # ---------------------------------------------------------------- work

    def known(self, path, page):
        """The row of the image of a path and page, or None."""
        query = "SELECT * FROM images WHERE path = CAST(? AS TEXT) AND page = ?"
        return self.connection.execute(query, (text(path), page)).fetchone()

    def is_done(self, request):
        """Whether a Request's image was judged as it is now and as it is asked for."""
        row = self.known(request.path, request.page)
        if row is None or row["status"] != JUDGED:
            return False
        new_corners = request.corners and json.dumps(request.corners) != row["corners"]
        return is_same_file(row, request) and row["grid"] == request.grid_text and not new_corners

    def with_grid(self, request):
        """A Request with the grid by which its image was cut before, unless it has one, that failed, or the file is
        another one now."""
        row = self.known(request.path, request.page)
        if row is None or request.grid or not row["grid"] or row["status"] == FAILED:
            return request
        if not is_same_file(row, request):
            return request
        columns, rows = row["grid"].split("x")
        return replace(request, grid=(int(columns), int(rows)))

    def with_corners(self, request):
        """A Request of a module with the corners that were once given for its image, unless it has others."""
        row = self.known(request.path, request.page)
        if row is None or request.corners or not request.grid:
            return request
        return replace(request, corners=tuple(json.loads(row["corners"])))

    def lens(self, camera, size, grid, find):
        """The bend of the lens for images of a size (width, height) of a camera, or None.

        find() finds it the first time; None where there is too little to find it.
        """
        key = (text(camera), *size, grid)
        query = "SELECT bend FROM lenses WHERE camera = CAST(? AS TEXT) AND width = ? AND height = ? AND grid = ?"
        row = self.connection.execute(query, key).fetchone()
        if row is None and find is None:
            return None
        if row is None:
            bend = find()
            with self.connection:
                self.connection.execute("INSERT INTO lenses VALUES (CAST(? AS TEXT), ?, ?, ?, ?)", (*key, bend))
            return bend
        return row["bend"]

    def expect(self, requests):
        """Note in one transaction that Requests wait to be judged, before any of their files is written.

        Should the run be killed, their earlier results no longer count, and the record knows what is missing.
        """
        with self.connection:
            for request in requests:
                row = self.known(request.path, request.page)
                waiting = {"corners": json.dumps(request.corners), "status": WAITING}
                if row is None:
                    waiting |= {"error": f"{printable(request.name)}: not judged yet", "judged": None}
                    self.insert("images", self.image_row(ImageResult(request)) | waiting | NEW)
                    continue
                self.drop_old_labels(row, ImageResult(request))
                if row["status"] == FAILED:
                    self.update_image(row["id"], {"corners": waiting["corners"]})
                else:
                    self.update_image(row["id"], waiting)

    def forget(self, image):
        """Remove an image, by its id, with its module and cells."""
        with self.connection:
            self.connection.execute("DELETE FROM images WHERE id = ?", (image,))

    def add(self, result):
        """Take up an ImageResult in one transaction; its files must be complete. An older result is replaced."""
        request = result.request
        row = self.known(request.path, request.page)
        with self.connection:
            if row is None:
                image = self.insert("images", self.image_row(result) | NEW)
            else:
                image = row["id"]
                self.drop_old_labels(row, result)
                self.update_image(image, self.image_row(result))
                for table in ("modules", "cells"):
                    self.connection.execute(f"DELETE FROM {table} WHERE image = ?", (image,))
            if result.module is not None and not result.error:
                self.insert("modules", module_row(result) | {"image": image})
            for cell in result.cells:
                self.insert("cells", self.cell_row(cell) | {"image": image})

    def drop_old_labels(self, row, result):
        """Remove the labels of an image, a row of `images`, where people labelled another state than the result's.

        Older ones are not taken any more.
        """
        new = self.image_row(result)
        if any(row[name] != new[name] for name in AS_LABELLED):
            self.drop_labels(row["id"])
            self.update_image(row["id"], {"since": now_utc()})

    def drop_labels(self, image):
        """Remove the labels of an image, by its id, and count the cells that had some."""
        self.dropped += count_of_labelled(self.connection, image)
        self.connection.execute("DELETE FROM labels WHERE image = ?", (image,))

    def image_row(self, result):
        """A row of `images` for an ImageResult, {column: value}."""
        request = result.request
        return {
            "path": text(request.path),
            "page": request.page,
            "bytes": request.bytes,
            "modified": request.modified,
            "grid": request.grid_text,
            "corners": json.dumps(request.corners),
            "status": FAILED if result.error else JUDGED,
            "error": printable(result.error),
            "notes": json.dumps(result.notes),
            "run": self.run,
            "judged": now(),
        }

    def cell_row(self, cell):
        """A row of `cells` for a CellResult."""
        calls = cell.calls or [None] * len(self.classes)
        probabilities = cell.probabilities or [None] * len(self.classes)
        row = {"row": 0, "column": 0, "file": "", "brightness": cell.brightness, "error": printable(cell.error)}
        row |= {"dark_part": rounded(cell.dark_part), "dark_ratio": rounded(cell.dark_ratio)}
        row |= {"crack_length": rounded(cell.crack_length), "inactive_area": rounded(cell.inactive_area)}
        row |= {"crack_mode": cell.crack_mode, "below": cell.below}
        row["map"] = None if cell.map is None else memoryview(cell.map)
        row["shape"] = None if cell.shape is None else memoryview(cell.shape)
        if cell.place:
            row |= {"row": cell.place.row, "column": cell.place.column, "file": cell.filename}
        row |= {name: None if call is None else int(call) for name, call in zip(self.classes, calls)}
        return row | {f"p_{name}": rounded(p) for name, p in zip(self.classes, probabilities)}

    def insert(self, table, values):
        """Insert {column: value} into a table; returns the row's id. Bytes become text, a memoryview bytes."""
        places = ", ".join("CAST(? AS TEXT)" if isinstance(value, bytes) else "?" for value in values.values())
        names = ", ".join(map(quoted, values))
        return self.connection.execute(
            f"INSERT INTO {table} ({names}) VALUES ({places})", list(values.values())
        ).lastrowid

    def update_image(self, image, values):
        """Change columns of an image's row."""
        values = {name: value for name, value in values.items() if name not in ("path", "page")}
        changes = ", ".join(f"{quoted(name)} = ?" for name in values)
        self.connection.execute(f"UPDATE images SET {changes} WHERE id = ?", [*values.values(), image])

    def begin(self, info):
        """Note that a run as RunInfo says begins; raises InputError where the record was begun otherwise."""
        first = self.connection.execute("SELECT * FROM runs ORDER BY id LIMIT 1").fetchone()
        row = info.row()
        for column, what in FIXED.items():
            if first is not None and first[column] != row[column]:
                before = first["network"] if column == "sha256" else first[column]
                raise InputError(
                    f"{self.folder}: was begun with another {what} ({before}); go on with that, or give another --out"
                )
        # A write-ahead log needs one write an image, and in exclusive mode no shared memory: it works on file servers.
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.classes = info.classes
        with self.connection:
            started = {"started": now(), "version": elcells.__version__, "key": secrets.token_hex(8)}
            self.run = self.insert("runs", row | started)
        self.was_derived = self.set_derived(0)

    def is_derived(self):
        """Whether all that is derived from the record was written before this run, and it is still there."""
        derived = ["cells.csv", "results.xlsx", "report.html", *(["modules.csv"] if self.count("grid != ''") else [])]
        return self.was_derived and all((self.folder / name).exists() for name in derived)

    def set_derived(self, value):
        """Note (1, 0) whether everything that is derived from the record is up to date; returns whether it was."""
        was = self.connection.execute("SELECT derived FROM runs ORDER BY id LIMIT 1").fetchone()[0]
        with self.connection:
            self.connection.execute("UPDATE runs SET derived = ? WHERE id = (SELECT min(id) FROM runs)", (value,))
        return bool(was)

    def end(self):
        """Note that the run has done all that it was asked for, and that everything is derived from its results."""
        with self.connection:
            self.connection.execute("UPDATE runs SET finished = ? WHERE id = ?", (now(), self.run))
        self.set_derived(1)


def is_same_file(row, request):
    """Whether a Request's file is as it was when the image of a row was asked for last."""
    return (row["bytes"], row["modified"]) == (request.bytes, request.modified)


def rounded(value):
    """A number as the record keeps it, or None."""
    return None if value is None else round(float(value), 6)
