"""The page on which people label cells: the most doubtful first, or whole modules."""

import json
import os
import shlex
import subprocess
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from urllib.parse import quote

import numpy as np

from elcells.data.tables import CLASSES
from elcells.files import CUT, MODULES, REPORT, InputError, folder_of_all, printable, relative
from elcells.inference.doubt import UNSURE, doubt
from elcells.pages.beside import Files, source_of, stamp_of
from elcells.pages.page import address_of, base64_of, fill, json_of
from elcells.records.rows import cell_name_of, darkness_of, image_name, place_of

MOST = 5000  # cells near a threshold, and labelled cells, that a page shows
SAMPLE = 100  # sure cells, drawn at random
BLOCK = 10_000  # cells of a record that are held at a time
CHUNK = 20  # modules of a file of them
CHUNKS = "review"  # folder of these files
NEAR = "close to a threshold"
RANDOM = "sure, drawn at random"
LABELLED = "labelled before"
RULES = {  # of doc/labels.md, as short as they fit beside a cell: (what it is, what it is not)
    "crack": (
        "a thin dark line that can be followed over a twentieth of the cell's side or more: straight and oblique, "
        "curved, jagged or branching; it may be faint. Also the jagged edge of a disconnected part, and a small star "
        "or X of thin arms.",
        "a busbar; an interrupted finger (a straight dark streak at right angles to the busbars); smudges, stains, "
        "belt marks; grain boundaries; a dark corner from which no line leaves.",
    ),
    "inactive": (
        "a region darker than about 40 % of its bright neighbourhood, at least a twenty-fifth of the cell's side wide "
        "and high, with a sharp edge; or a nearly black blob.",
        "a gray part that still glows, even between cracks; chamfered corners and the dark frame; one interrupted "
        "finger; soldering spots; a cell that is dim all over.",
    ),
}


@dataclass(frozen=True)
class ReviewCell:
    """A cell to label: its image's path, why it is shown, a network's probabilities and class maps (bytes), or None.

    source: the URL of the image for a browser; where there is none, `address_of` finds it. dark: of `darkness_of`.
    shape: image of its crack lines and inactive region, bytes.
    """

    path: str
    why: str
    probabilities: tuple | None = None
    maps: bytes | None = None
    source: str | None = None
    dark: list | None = None
    shape: bytes | None = None


# ---------------------------------------------------------------- which cells


def probabilities_of(record, row):
    """Rounded probabilities of a row of Record.cells, a tuple, or None where it was not judged."""
    if row[record.classes[0]] is None:
        return None
    return tuple(round(row[f"p_{name}"], 4) for name in record.classes)


def smallest(pairs, count):
    """The `count` pairs (number, anything) with the smallest numbers, in order."""
    return sorted(pairs, key=itemgetter(0))[:count]


def choose(record):
    """Which cells are shown, in order, and why: list of (row of Record.cells, reason).

    The judged cells near a threshold first, the nearest in front; then SAMPLE of the other judged ones; then those that
    people labelled and that are not among them.
    """
    thresholds = record.info["thresholds"]
    people = record.people()
    generator = np.random.default_rng(0)
    near, sure, labelled = [], [], []
    rows = iter(record.cells())
    while block := list(islice(rows, BLOCK)):
        labelled += [row for row in block if place_of(row) in people]
        judged = [row for row in block if row[record.classes[0]] is not None]
        if judged:
            doubts = doubt([probabilities_of(record, row) for row in judged], thresholds)
            draws = generator.random(len(judged))
            near = smallest(near + [(d, row) for d, row in zip(doubts, judged) if d < UNSURE], MOST)
            sure += [(draw, row) for draw, d, row in zip(draws, doubts, judged) if d >= UNSURE]
            sure = smallest(sure, SAMPLE)
    chosen = [(row, NEAR) for _, row in near] + [(row, RANDOM) for _, row in sure]
    shown = {place_of(row) for row, _ in chosen}
    return chosen + [(row, LABELLED) for row in labelled[:MOST] if place_of(row) not in shown]


# ---------------------------------------------------------------- what is said about them


def table_name(path, folder):
    """The name of an image in a table of labels in a folder: relative to it, bytes that are no UTF-8 as \\udcXX.

    path: an image's real path, or that of a file in the folder.
    """
    folder = os.path.abspath(folder)
    inside = os.path.abspath(path).startswith(os.path.join(folder, ""))
    return relative(path, folder if inside else os.path.realpath(folder)).encode("utf-8", "backslashreplace").decode()


def in_shell(path):
    """A path as it is typed into a shell: relative to the current folder where it lies in it, in quotes if needed."""
    short = relative(path, os.getcwd())
    short = os.path.abspath(path) if short.startswith("..") else short
    return subprocess.list2cmdline([short]) if os.name == "nt" else shlex.quote(short)


def next_steps(folder, classes):
    """What to do with a table in its folder: list of (text, command as a list of words for a shell).

    A word that is a path is (the path as it is typed now, its name in the folder), for the folder may be moved.
    """
    place = in_shell(folder), ""
    table = in_shell(Path(folder) / "labels.csv"), "labels.csv"
    adapt = ["--data", "data.csv", table, "--weights", "cells.onnx", "--recipe", "adapt"]
    if set(classes) != set(CLASSES):
        adapt = ["--data", table, "--classes", *map(shlex.quote, classes)]
    return [
        ("Correct the report:", ["python", "report.py", place, "--labels", table]),
        ("From about 100 labels on, train a network on them:", ["python", "train.py", *adapt]),
    ]


def write_page(target, cells, classes, thresholds, folder, key, more):
    """Write the page and return how many cells it shows; there is no page without cells.

    cells: iterable of ReviewCell, of which one at a time is held. folder: the table of labels belongs there. key: under
    which a browser keeps the labels, the same for every page about the same cells. more: further data of the page:
    `steps` (`next_steps`), `opinion` (what is hidden until a cell has a label), `given` (`given_labels`), `modules`
    (`write_modules`).
    """
    entries = []
    for cell in cells:
        try:
            source = cell.source or address_of(cell.path, target)
        except InputError:  # the page says so; the image may come back
            source = ""
        entry = {"file": table_name(cell.path, folder), "src": source, "why": cell.why, "p": cell.probabilities}
        more_of_cell = {"maps": base64_of(cell.maps), "dark": cell.dark, "shape": base64_of(cell.shape)}
        entries.append(entry | {name: value for name, value in more_of_cell.items() if value})
    if not entries:  # nor an earlier one
        Path(target).unlink(missing_ok=True)
        return 0
    data = {"classes": list(classes), "thresholds": [round(float(t), 4) for t in thresholds], "cells": entries}
    data |= {
        "key": key,
        "place": os.path.abspath(folder),
        "is_beside": os.path.realpath(folder) == os.path.realpath(Path(target).parent),
        "rules": {name: RULES[name] for name in classes if name in RULES},
    }
    fill("review.html", target, data | {"chunks": CHUNKS, "given": [], "since": [], "modules": []} | more)
    return len(entries)


def write_review(record):
    """Write review.html and the files in review/ into a record's folder."""
    chosen = choose(record)
    stamp = stamp_of(record)
    cells = (review_cell(record, row, why) for row, why in chosen)
    more = {
        "opinion": "The network's opinion",
        "given": given_labels(record),
        "since": changes_of_images(record),
        "modules": write_modules(record, stamp),
        "stamp": stamp,
        "steps": next_steps(record.folder, record.classes),
    }
    target = record.folder / "review.html"
    write_page(target, cells, record.classes, record.info["thresholds"], record.folder, record.key, more)


def review_cell(record, row, why):
    """The ReviewCell of a row of Record.cells; what no browser shows is converted once, for the report too."""
    source = quote(row["file"]) or source_of(row["image"], record, Files(record.folder / REPORT))
    return ReviewCell(
        cell_name_of(record, row),
        why,
        probabilities_of(record, row),
        row["map"],
        source,
        darkness_of(row),
        row["shape"],
    )


def changes_of_images(record):
    """When images changed whose labels were dropped then: list of (file name, or folder of cut cells; time)."""
    query = (
        "SELECT path, page, name, since FROM images LEFT JOIN modules ON modules.image = images.id WHERE since != ''"
    )
    changes = []
    for row in record.connection.execute(query):
        place = f"{CUT}/{row['name']}/" if row["name"] else table_name(image_name(row), record.folder)
        changes.append((place, row["since"]))
    return changes


def given_labels(record):
    """The labels that people gave to the cells of a record: list of (file name, labels, who, when)."""
    people = record.people()
    if not people:
        return []
    given = []
    for row in record.cells():
        if labels := people.get(place_of(row)):
            name = table_name(cell_name_of(record, row), record.folder)
            given.append((name, labels.values, labels.who, labels.time))
    return given


# ---------------------------------------------------------------- modules


def write_modules(record, stamp):
    """Write the modules of a record into the files review/modules-K.js, CHUNK to a file; older ones are removed.

    Returns what the page needs to find them: list of (name, title, what is known of it, columns, rows, file's name).
    """
    files = Files(record.folder / CHUNKS, stamp)
    modules = {row["image"]: row for row in record.modules() if row["name"] is not None}
    root = folder_of_all([row["path"] for row in modules.values()]) if modules else None
    by_image = groupby(record.cells(), itemgetter("image"))
    found = ((modules[image], cells) for image, cells in by_image if image in modules)
    listed = []
    while entries := [(row, module_entry(record, row, cells)) for row, cells in islice(found, CHUNK)]:
        name = f"modules-{len(files.names)}"
        listed += [(row["name"], *titles_of(row, root), row["columns"], row["rows"], name) for row, _ in entries]
        files.write_chunk(name, json_of([entry for _, entry in entries]))
    files.remove_others()
    return listed


def module_entry(record, row, cells):
    """What the page shows of a module, a dict that JSON can hold.

    row: of Record.modules. cells: its rows of Record.cells; each becomes row, column, name of its file, probabilities,
    class maps or None, `darkness_of`, and the image of its crack lines or None.
    """
    listed = []
    for cell in cells:
        seen = probabilities_of(record, cell), base64_of(cell["map"]), darkness_of(cell), base64_of(cell["shape"])
        listed.append((cell["row"], cell["column"], Path(cell["file"]).name, *seen))
    name = quote(row["name"])
    shown = {"name": row["name"], "image": f"{MODULES}/{name}.jpg", "folder": f"{CUT}/{name}", "cells": listed}
    return shown | {"columns": row["columns"], "rows": row["rows"], "nodes": json.loads(row["nodes"])}


def titles_of(row, root):
    """What a module is called, as in the report, and what is known of it: "A1 (m.png)", "serial A1 · string 2 · m.png".

    row: of Record.modules. root: the folder that its file is named from.
    """
    file = printable(relative(image_name(row), root))
    metadata = json.loads(row["metadata"]).items()
    known = [(printable(name), printable(value)) for name, value in metadata if value not in (None, "")]
    serial = next((value for name, value in known if name.lower() == "serial"), None)
    return f"{serial} ({file})" if serial else file, " · ".join([*map(" ".join, known), file])
