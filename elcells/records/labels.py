"""What people say about cells: labels from a table into a record, and a record's calls corrected by them."""

import datetime
import re
from collections import namedtuple

from elcells.data.naming import Names
from elcells.data.tables import read_rows
from elcells.files import CUT, InputError, counted
from elcells.records.record import image_name, now, quoted
from elcells.records.requests import request_of

CELL = re.compile(rf"{CUT}/([^/]+)/r(\d+)_c(\d+)\.png$")  # the end of a cut cell's path
MOST_NAMES = 3  # of cells that a record does not have

# A row of a table: the cell (image, row, column), {class: 1, 0 or None for unsure}, the person, and the time in UTC
Given = namedtuple("Given", "cell labels who time")


def take_labels(record, path):
    """Take a table of people's labels into a record, in one transaction; returns (lines about it, whether all fit).

    path: `;`-separated with `filename`, relative to the results folder, one column a class (1, 0 or empty), and, where
    they are known, `unsure` (1), `who` and `when`. A newer label replaces an older one of the same person.
    Raises InputError, naming the line, for a value that is none, and where no row means a cell of the record.
    """
    table = read_rows(path, ["filename", *record.classes])
    names = None
    given = []
    strangers = []
    for line, row in table.iterrows():
        labels = labels_of(path, line, row, record.classes)
        cell = cut_cell(record, row["filename"])
        if cell is None:
            names = names or Names(path, [image_name(image) for image in record.images()], record.folder)
            cell = single_cell(record, names, line, row["filename"])
        if cell is None:
            strangers.append(f"line {line}: {row['filename']}")
        elif labels:
            given.append(Given(cell, labels, row.get("who", ""), time_of(path, line, row.get("when", ""))))
    if not given:
        raise InputError(f"{path}: no label of a cell in {record.folder}; give the table that its review.html saved")
    with record.connection:
        for label in given:
            for name, value in label.labels.items():
                keep_label(record, (*label.cell, name, value, label.who, label.time))
    lines = [f"{path}: labels of {counted(len(given), 'cell')} taken into the record"]
    if strangers:
        shown = ", ".join(strangers[:MOST_NAMES]) + (", …" if len(strangers) > MOST_NAMES else "")
        rows = counted(len(strangers), "row belongs", "rows belong")
        lines.append(f"{path}: {rows} to no cell of {record.folder} ({shown})")
    return lines, not strangers


def keep_label(record, values):
    """Keep a label, a row of the table `labels`, unless that person gave the cell a newer one."""
    record.connection.execute(
        "INSERT INTO labels VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET label = excluded.label, "
        "time = excluded.time WHERE excluded.time >= time",
        values,
    )


def labels_of(path, line, row, classes):
    """{class: 1, 0, or None where the person is unsure} of a row of a table; without the classes that are empty."""
    unsure = row.get("unsure", "")
    if unsure not in ("", "0", "1"):
        raise InputError(f"{path}, line {line}: unsure is {unsure!r}, expected 1, 0 or nothing")
    if unsure == "1":
        return dict.fromkeys(classes)
    for name in classes:
        if row[name] not in ("", "0", "1"):
            raise InputError(f"{path}, line {line}: {name} is {row[name]!r}, expected 1, 0 or nothing")
    return {name: int(row[name]) for name in classes if row[name]}


def time_of(path, line, text):
    """A time (ISO 8601) in UTC, which can be compared as text; now for an empty one."""
    try:
        time = datetime.datetime.fromisoformat(text or now())
    except ValueError:
        raise InputError(f"{path}, line {line}: when is {text!r}, expected a time such as {now()}") from None
    return time.astimezone(datetime.UTC).isoformat(timespec="seconds")


def cut_cell(record, filename):
    """(image, row, column) of a cell of a module by the name of its file, or None."""
    match = CELL.search(filename.replace("\\", "/"))
    if not match:
        return None
    cells = 'SELECT image, row, "column" FROM cells JOIN modules USING (image)'
    query = f'{cells} WHERE name = ? AND row = ? AND "column" = ?'
    found = record.connection.execute(query, (match[1], int(match[2]), int(match[3]))).fetchone()
    return tuple(found) if found else None


def single_cell(record, names, line, filename):
    """(image, 0, 0) of a cell with an image of its own by that image's name, or None."""
    for name in names.meant(line, filename):
        row = record.known(request_of(name))
        query = "SELECT 1 FROM cells WHERE image = ? AND row = 0"
        if row and record.connection.execute(query, (row["id"],)).fetchone():
            return row["id"], 0, 0
    return None


# ---------------------------------------------------------------- what follows from them


def corrections(record):
    """Cells whose call people changed: list of (image, class number, network's call or None, label)."""
    changed = []
    columns = ", ".join(map(quoted, record.classes))
    query = f'SELECT {columns} FROM cells WHERE image = ? AND row = ? AND "column" = ?'
    for cell, labels in record.people().items():
        row = record.connection.execute(query, cell).fetchone()
        for k, (call, label) in enumerate(zip(row, labels.values)):
            if label is not None and label != call:
                changed.append((cell[0], k, call, label))
    return changed


def agreement(record):
    """How often network and people agree: {class: (cells on which they agree, cells that both judged)}."""
    labelled = dict.fromkeys(range(len(record.classes)), 0)
    for labels in record.people().values():
        for k, label in enumerate(labels.values):
            labelled[k] += label is not None
    counts = {name: [labelled[k], labelled[k]] for k, name in enumerate(record.classes)}
    for _, k, call, _ in corrections(record):
        counts[record.classes[k]][0] -= 1
        counts[record.classes[k]][1] -= call is None
    return {name: tuple(pair) for name, pair in counts.items()}


def lines_about_people(record):
    """Lines on whose labels a record has, and how often network and people agree; none without labels."""
    people = record.people()
    if not people:
        return []
    who = sorted({labels.who or "somebody" for labels in people.values()})
    agreed = ", ".join(f"{name} {same} of {both}" for name, (same, both) in agreement(record).items())
    changed = counted(len(corrections(record)), "call")
    cells = counted(len(people), "cell")
    return [f"{cells} labelled by {', '.join(who)}; network and people agree on {agreed}; {changed} corrected."]
