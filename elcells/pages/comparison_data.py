"""What comparison.html shows of modules and cells, in chunks that it reads when they are needed."""

import contextlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

from elcells.data.images import as_gray
from elcells.files import MODULES, InputError, printable
from elcells.pages.beside import source_of, url
from elcells.pages.page import jpeg
from elcells.records.comparison import (
    CERTAIN,
    GONE,
    NEAR,
    NEW,
    NONE,
    NOT_COMPARABLE,
    ONE_RECORD,
    UNCHANGED,
    WHEN,
)

MODULES_PER_CHUNK = 25
CELLS_PER_GROUP = 100  # that have an image of their own and changed
SMALL_MODULES, SMALL_CELLS = 6, 100  # whose images stand in the page too, smaller, so that it can be mailed alone
SMALL_SIDE = 150  # pixels of such a cell
LETTERS = {NEW: "n", GONE: "g", UNCHANGED: "u", NONE: "-", NOT_COMPARABLE: "?"}
MARKS = {CERTAIN: ".", NEAR: "!", ONE_RECORD: "p"}


class PageData:
    """The data of the page about a Comparison. modules, cells: Compared of modules, and of single cells. files: Files.

    Cells lie in groups, and groups in chunks: a group is a module, or CELLS_PER_GROUP changed cells that have an image
    of their own.
    """

    def __init__(self, comparison, modules, cells, files):
        self.sides = comparison.sides
        self.classes = comparison.classes
        self.modules = modules
        self.files = files
        self.folder = files.folder.parent
        self.kinds = range(len(comparison.classes) + 1)  # places in Change.states
        singles = [(compared, cell) for compared in cells for cell in compared.cells if cell.is_change]
        self.singles = [singles[k : k + CELLS_PER_GROUP] for k in range(0, len(singles), CELLS_PER_GROUP)]
        self.groups = [[(compared, cell) for cell in compared.cells] for compared in modules] + self.singles

    def module_rows(self):
        """The rows of the page's table of modules: name, file, serial, counts, uncertain changes, notes."""
        return [self.module_row(compared) for compared in self.modules]

    def module_row(self, compared):
        """One of the rows."""
        counts = [compared.count(k, state) for k in self.kinds for state in (NEW, GONE, UNCHANGED)]
        uncertain = sum(compared.count(k, state, (NEAR, ONE_RECORD)) for k in self.kinds for state in (NEW, GONE))
        module = self.sides[1].modules[compared.now.image]
        file = printable(Path(compared.now.path).name) + (f", page {compared.now.page}" if compared.now.page else "")
        serial = printable(compared.now.serial or compared.before.serial)
        return [module["name"], file, serial, *counts, uncertain, "; ".join(compared.notes)]

    def changes(self):
        """[number of the group, place in it, two letters for each state] of each changed cell.

        Without those of modules that seem to be turned, whose changes mean nothing.
        """
        changes = []
        for number, group in enumerate(self.groups):
            for place, (compared, cell) in enumerate(group):
                if cell.is_change and not compared.turned:
                    pairs = zip(cell.states, cell.uncertain)
                    changes.append([number, place, "".join(LETTERS[state] + MARKS[why] for state, why in pairs)])
        return changes

    # ---------------------------------------------------------------- chunks

    def chunks(self):
        """Yield (name, groups) of each chunk."""
        for start in range(0, len(self.modules), MODULES_PER_CHUNK):
            modules = self.modules[start : start + MODULES_PER_CHUNK]
            yield self.chunk_of(start), [self.module_group(compared) for compared in modules]
        for number, group in enumerate(self.singles):
            cells = [self.cell_entry(*pair) | {"name": pair[0].now.shown} for pair in group]
            yield self.chunk_of(len(self.modules) + number), [{"cells": cells}]

    def chunk_of(self, group):
        """The name of the chunk in which a group lies, by the group's number."""
        single = group - len(self.modules)
        return f"cells-{single}" if single >= 0 else f"modules-{group // MODULES_PER_CHUNK}"

    def first_chunks(self):
        """{name: None} of the chunks that the page needs for what it shows at first."""
        numbers = [*range(len(self.modules))[:SMALL_MODULES], *(group for group, *_ in self.changes()[:SMALL_CELLS])]
        return dict.fromkeys(self.chunk_of(number) for number in numbers)

    def module_group(self, compared):
        """A module: its images, their sizes and captions, and the cells of which there is something to say."""
        rows = self.rows(compared)
        nodes = [np.reshape(json.loads(row["nodes"]), (row["rows"] + 1, row["columns"] + 1, 2)) for row in rows]
        paths = self.module_paths(compared)
        cells = [self.cell_entry(compared, c) | {"at": [corners_of(n, c) for n in nodes]} for c in compared.cells]
        return {
            "images": [url(path, self.folder) for path in paths],
            "sizes": [size_of_image(path, corners) for path, corners in zip(paths, nodes)],
            "captions": [caption(when, row) for when, row in zip(WHEN, rows)],
            "cells": cells,
        }

    def cell_entry(self, compared, cell):
        """A Change of a Compared."""
        seen = (cell.before, cell.now)
        return {
            "row": cell.row,
            "column": cell.column,
            "states": "".join(LETTERS[state] for state in cell.states),
            "uncertain": "".join(MARKS[why] for why in cell.uncertain),
            "p": [s.probabilities for s in seen],
            "measured": [[measured(s, k, name) for k, name in enumerate(self.classes)] for s in seen],
            "people": [[said_by(s, k) for k, _ in enumerate(s.labels)] for s in seen],
            "src": [source for source, _ in self.images_of(compared, cell)],
        }

    # ---------------------------------------------------------------- images

    def rows(self, compared):
        """The rows of Record.modules of both images of a module."""
        return [side.modules[item.image] for side, item in zip(self.sides, (compared.before, compared.now))]

    def module_paths(self, compared):
        """The files of both images of a module."""
        rows = self.rows(compared)
        return [side.record.folder / MODULES / f"{row['name']}.jpg" for side, row in zip(self.sides, rows)]

    def images_of(self, compared, cell):
        """(URL, name) of both images of a Change; the URL of an image of its own that is gone is ""."""
        images = []
        for side, seen, item in zip(self.sides, (cell.before, cell.now), (compared.before, compared.now)):
            if item.grid:
                path = side.record.folder / seen.file
                images.append((url(path, self.folder) if seen.file else "", str(path)))
            else:
                images.append((source_of(item.image, side.record, self.files) or "", item.name))
        return images

    def small_images(self):
        """{URL: the same image, smaller, as data: URI} of the first modules and the first changed cells."""
        small = {}
        for compared in self.modules[:SMALL_MODULES]:
            for path in self.module_paths(compared):
                with contextlib.suppress(InputError):  # it is gone
                    small[url(path, self.folder)] = jpeg(as_gray(path)[0])
        for group, place, _ in self.changes()[:SMALL_CELLS]:
            for address, name in self.images_of(*self.groups[group][place]):
                if address:
                    with contextlib.suppress(InputError):
                        small[address] = jpeg(as_gray(name)[0], SMALL_SIDE, 80)
        return small


def measured(seen, k, name):
    """How long the cracks of a Seen are, "1.23 cell widths", or how large its inactive area, "4.2 %"; "" for neither.

    k, name: of the class.
    """
    length, area = seen.severity
    if not seen.calls[k]:
        return ""
    if name == "crack" and length is not None:
        return "no line found" if "crack_length" in seen.below else f"{length:.2f} cell widths"
    if name == "inactive" and area is not None:
        return "no region found" if "inactive_area" in seen.below else percent(area)
    return ""


def percent(area):
    """An area in 0..1 as text, as report.html has it."""
    return "under 0.1 %" if 0 < area < 5e-4 else f"{100 * area:.1f} %"


def said_by(seen, k):
    """What a person said of class k of a Seen: "labelled by Ann", "Ann was not sure", or "" where nobody did."""
    who = printable(seen.who) or "somebody"
    if seen.labels[k] is not None:
        return f"labelled by {who}"
    return f"{who} was not sure" if seen.who and set(seen.labels) == {None} else ""


def caption(when, row):
    """What stands above a module's image; row: of Record.modules."""
    metadata = ", ".join(f"{name} {value}" for name, value in json.loads(row["metadata"]).items() if value)
    page = f", page {row['page']}" if row["page"] else ""
    texts = [f"{when}: {printable(row['path'])}{page}", printable(metadata), f"cells of {row['cell_pixels']} pixels"]
    return "; ".join(text for text in texts if text)


def corners_of(nodes, cell):
    """The corners of a Change in the image, [[x, y], …]; nodes: (rows + 1, columns + 1, 2)."""
    row, column = cell.row - 1, cell.column - 1
    return [nodes[row + y, column + x].tolist() for y, x in ((0, 0), (0, 1), (1, 1), (1, 0))]


def size_of_image(path, nodes):
    """[width, height] in pixels of a module's image; where it is gone, enough for its nodes."""
    with contextlib.suppress(OSError), Image.open(path) as image:
        return list(image.size)
    return np.ceil(nodes.max((0, 1)) + 1).astype(int).tolist()
