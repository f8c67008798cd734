"""What a report shows of a record: counts of all cells, the table of modules, and columns of the cells to look at.

Each cell is what people said, and what the network called where they said nothing.
"""

import itertools
import json
import os
from array import array
from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np

from elcells.files import folder_of_all, printable
from elcells.inference.cells import TOO_DARK
from elcells.inference.doubt import unsure_bounds
from elcells.pages.page import json_of
from elcells.pages.severity_data import measured_columns, severity_and_shape
from elcells.records.labels import agreement, corrections, judged_by_people_alone
from elcells.records.module_severity import SeveritySums
from elcells.records.record import FAILED
from elcells.records.rows import darkness_of, final_calls, image_name, place_of

# Bits of a cell's state; templates/report.js has the same
UNSURE_CALL, BLACK, UNREADABLE, LABELLED, CORRECTED, SHOWN, MAPPED, DARK = (1 << k for k in range(8))
# Kinds of cells beside the sums of their calls' bits; a dark cell with a call is of that call's kind
DARK_KIND, BLACK_KIND, UNREADABLE_KIND = -1, -2, -3
BINS = 20  # of a histogram
DENSE = ("module", "place", "state", "calls")  # columns of cells
SPARSE = ("errors", "people", "sources", "darkness", "severity")  # columns that few cells have
STEPS = 10_000  # probabilities are whole numbers of such parts


class Judged(NamedTuple):
    """What a cell is. state, calls, network: bits, network's calls last. severity, shape: of `severity_and_shape`."""

    state: int
    calls: int
    network: int
    severity: list | None
    shape: bytes | None


class Judgement:
    """Says what a cell is. classes, thresholds: of the record."""

    def __init__(self, classes, thresholds):
        self.classes = classes
        self.near = list(zip(*(bounds.tolist() for bounds in unsure_bounds(thresholds))))
        self.columns = [f"p_{name}" for name in classes]

    def of(self, row, labels):
        """The Judged of a row of Record.cells; labels: of a person, or None."""
        network = [row[name] for name in self.classes]
        judged = network[0] is not None
        told = labels is not None and any(value is not None for value in labels.values)
        state = LABELLED if labels else 0
        if told and judged and any(value not in (None, call) for value, call in zip(labels.values, network)):
            state |= CORRECTED
        if not told:
            if row["error"] == TOO_DARK:
                state |= BLACK
            elif not judged:
                state |= UNREADABLE
            elif labels or self.is_near(row):
                state |= UNSURE_CALL
        final = [0] * len(network) if state & (BLACK | UNREADABLE) else final_calls(row, labels, self.classes)
        calls = bits(final)
        if row["dark_part"]:
            state |= DARK
        if state or calls:
            state |= SHOWN | (MAPPED if row["map"] else 0)
        return Judged(state, calls, bits(network), *severity_and_shape(row, labels, self.classes))

    def is_near(self, row):
        """Whether a judged cell is within UNSURE of a threshold."""
        return any(low < row[name] < high for name, (low, high) in zip(self.columns, self.near))

    def probabilities(self, row):
        """A cell's probabilities as whole numbers of STEPS, -1 where it was not judged."""
        return [-1 if row[name] is None else round(row[name] * STEPS) for name in self.columns]


def kind_of(state, calls):
    """The kind of a cell by its state and its calls, both bits."""
    if state & BLACK:
        return BLACK_KIND
    if state & UNREADABLE:
        return UNREADABLE_KIND
    return DARK_KIND if state & DARK and not calls else calls


def bits(calls):
    """Calls (1, 0 or None for each class) as one number."""
    return sum(1 << k for k, call in enumerate(calls) if call)


class ShownCells:
    """Columns of cells, as the page takes them.

    A cell's place is its number in its module, row by row, or, for an image of a cell, in `names`.
    """

    def __init__(self, classes):
        self.module = array("i")  # number of the module, -1 for an image of a cell
        self.place = array("i")
        self.state = array("B")
        self.calls = array("i")
        self.p = [array("h") for _ in classes]
        self.names = []
        self.errors = {}
        self.people = {}  # number of the cell: [values, who, time, network's calls]
        self.sources = {}  # number of the cell: URL of its image, where that is not made from its name
        self.darkness = {}  # number of the cell: [share that is dark, its relative brightness]
        self.severity = {}  # number of the cell: as in `severity_and_shape`

    def __len__(self):
        return len(self.state)

    def add(self, module, place, judged, probabilities, row, labels):
        """Add a cell. judged: its Judged."""
        number = len(self)
        self.module.append(module)
        self.place.append(place)
        self.state.append(judged.state)
        self.calls.append(judged.calls)
        for column, p in zip(self.p, probabilities):
            column.append(p)
        if row["error"]:
            self.errors[number] = printable(row["error"])
        if darkness := darkness_of(row):
            self.darkness[number] = darkness
        if judged.severity:
            self.severity[number] = judged.severity
        if labels:
            self.people[number] = [labels.values, printable(labels.who or "somebody"), labels.time, judged.network]

    def data(self):
        """The same for JSON."""
        columns = {name: list(getattr(self, name)) for name in DENSE}
        p = [list(column) for column in self.p]
        return columns | {"p": p, "names": self.names} | {name: getattr(self, name) for name in SPARSE}

    def some(self, chosen):
        """The same of some cells by their numbers, which it has as `index`."""
        columns = {name: [getattr(self, name)[k] for k in chosen] for name in DENSE}
        columns["p"] = [[column[k] for k in chosen] for column in self.p]
        alone = [n for n, k in enumerate(chosen) if self.module[k] < 0]
        columns["names"] = [self.names[columns["place"][n]] for n in alone]
        for place, n in enumerate(alone):
            columns["place"][n] = place
        for name in SPARSE:
            values = getattr(self, name)
            columns[name] = {n: values[k] for n, k in enumerate(chosen) if k in values}
        return columns | {"index": chosen}

    def first_to_see(self):
        """Numbers of all cells: by turns one that people corrected or that is dark or nearly black, and one of the
        surest defects."""
        state = np.frombuffer(self.state, np.uint8) if len(self) else np.zeros(0, np.uint8)
        special = np.flatnonzero(state & (CORRECTED | DARK | BLACK))
        special = special[np.argsort(state[special] & CORRECTED == 0, kind="stable")].tolist()
        both = itertools.zip_longest(special, self.surest_first())
        return list(dict.fromkeys(number for pair in both for number in pair if number is not None))

    def surest_first(self):
        """Numbers of all cells: those with a defect, the highest probability first, then the others."""
        calls = np.frombuffer(self.calls, np.int32) if len(self) else np.zeros(0, int)
        called = (calls[:, None] >> np.arange(len(self.p))) & 1
        p = np.stack([np.asarray(column) for column in self.p], 1) if len(self) else np.zeros((0, len(self.p)))
        return np.argsort(-np.where(called, p, -1).max(1, initial=-1), kind="stable").tolist()


class Contents:
    """What a report shows, made from a record in one pass over its cells."""

    def __init__(self, record):
        self.record = record
        self.classes = record.classes
        self.judgement = Judgement(self.classes, record.info["thresholds"])
        self.people = record.people()
        self.shown = ShownCells(self.classes)
        self.images = array("q")  # id of each shown cell's image
        self.maps = {}  # number of a shown cell: its class map, bytes
        self.shapes = {}  # number of a shown cell: image of its crack lines and inactive region, bytes
        self.kinds = Counter()
        self.unsure = 0
        self.dark = 0
        self.corrected = 0
        self.histograms = np.zeros((len(self.classes), BINS), int)
        self.folders = defaultdict(Counter)
        self.root = root_of(record)
        images = list(record.modules())
        self.modules = [row for row in images if row["image"] is not None]
        self.failed = [printable(row["error"]) for row in images if row["image"] is None and row["status"] == FAILED]
        self.details = [""] * len(self.modules)  # JSON of each module's nodes and cells
        self.numbers = {row["image"]: number for number, row in enumerate(self.modules)}
        # Of each module: cells, each class, dark, nearly black, any of these, with a correction
        self.counts = [[0] * (len(self.classes) + 5) for _ in self.modules]
        self.measured = measured_columns(record)
        self.severity = [SeveritySums() for _ in self.modules]
        self.all_severity = SeveritySums()
        self.read()

    def read(self):
        """Go through all cells."""
        cells = first = image = None
        for row in self.record.cells():
            number = self.numbers.get(row["image"], -1) if row["file"] else -1
            if row["image"] != image:
                self.end_module(image, cells, first)
                image, first = row["image"], len(self.shown)
                cells = ShownCells(self.classes) if number >= 0 else None
            labels = self.people.get(place_of(row)) if self.people else None
            judged = self.judgement.of(row, labels)
            p = self.judgement.probabilities(row)
            self.count(row, judged, p)
            self.all_severity.add(row, labels, self.classes)
            place = 0
            if number >= 0:
                place = (row["row"] - 1) * self.modules[number]["columns"] + row["column"] - 1
                cells.add(number, place, judged, p, row, labels)
                self.count_of_module(number, judged)
                self.severity[number].add(row, labels, self.classes)
            if judged.state & SHOWN:
                self.show(row, number, place, judged, p, labels)
        self.end_module(image, cells, first)

    def end_module(self, image, cells, first):
        """Keep a module whose cells are complete. first: number of its first shown cell."""
        if cells is not None:
            number = self.numbers[image]
            columns = {name: values for name, values in cells.data().items() if name not in ("module", "names")}
            nodes = json.loads(self.modules[number]["nodes"])
            self.details[number] = json_of({"nodes": nodes, "first": first, **columns})

    def show(self, row, number, place, judged, p, labels):
        """Take up a cell that is to be looked at."""
        if number < 0:
            place = len(self.shown.names)
            self.shown.names.append(printable(image_name(row).removeprefix(self.root)))
        if row["map"]:
            self.maps[len(self.shown)] = row["map"]
        if judged.shape:
            self.shapes[len(self.shown)] = judged.shape
        self.images.append(row["image"])
        self.shown.add(number, place, judged, p, row, labels)

    def count(self, row, judged, p):
        """Count a cell."""
        state, calls, *_ = judged
        kind = kind_of(state, calls)
        self.kinds[kind] += 1
        self.dark += bool(state & DARK)
        self.unsure += bool(state & UNSURE_CALL)
        self.corrected += bool(state & CORRECTED)
        if p[0] >= 0:
            for k, value in enumerate(p):
                self.histograms[k, min(value * BINS // STEPS, BINS - 1)] += 1
        if not row["file"]:
            self.folders[os.path.dirname(row["path"])][kind] += 1

    def count_of_module(self, number, judged):
        """Count a cell of a module."""
        state, calls, *_ = judged
        counts = self.counts[number]
        counts[0] += 1
        for k in range(len(self.classes)):
            counts[1 + k] += calls >> k & 1
        counts[-4] += bool(state & DARK)
        counts[-3] += bool(state & BLACK)
        counts[-2] += bool(calls or state & (DARK | BLACK))
        counts[-1] += bool(state & CORRECTED)

    def worst_first(self):
        """Numbers of the modules, those with the largest share of cells with a defect, dark or nearly black first."""
        shares = [counts[-2] / max(1, counts[0]) for counts in self.counts]
        return sorted(range(len(shares)), key=lambda number: -shares[number])

    def about_people(self):
        """What people said: cells by person, and how often network and people agree, a dict that JSON can hold."""
        given = self.shown.people.values()
        return {
            "who": Counter(name for _, name, *_ in given).most_common(),
            "unsure": sum(all(value is None for value in values) for values, *_ in given),
            "agreement": list(agreement(self.record).values()),  # of each class: cells that agree, cells of both
            "corrected": sum(call is not None for _, _, call, _ in corrections(self.record)),  # calls, not cells
            "alone": len(judged_by_people_alone(self.record)),
        }


def root_of(record):
    """The folder, with its last separator, that all images of single cells lie in; "" where there is none."""
    query = "SELECT min(path), max(path) FROM images WHERE grid = ''"  # whatever folder these share, all share
    paths = record.connection.execute(query).fetchone()
    folder = folder_of_all(paths) if paths[0] is not None else None
    return os.path.join(folder, "") if folder else ""
