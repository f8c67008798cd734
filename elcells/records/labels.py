"""What people say about cells: labels from a table into a record, and a record's calls corrected by them."""

import datetime
import os
import re
from collections import namedtuple

from elcells.data.naming import Names
from elcells.data.tables import read_rows
from elcells.files import CUT, InputError, counted, one_line, printable
from elcells.records.record import WITHDRAWN
from elcells.records.rows import image_name, quoted
from elcells.records.runs import now

CELL = re.compile(rf"{CUT}/([^/]+)/r(\d+)_c(\d+)\.png$")  # the end of a cut cell's path
MOST_NAMES = 3  # of cells that a record does not have

# A row of a table: line, cell (image, row, column), {class: 1, 0 or None for unsure}, person, and time in UTC
Given = namedtuple("Given", "line cell labels who time")


def take_labels(record, path):
    """Take a table of people's labels into a record, in one transaction; returns (lines about it, whether all fit).

    path: `;`-separated with `filename`, relative to the results folder, one column a class (1, 0 or empty), and, where
    they are known, `unsure` (1), `who` and `when`. A newer label replaces an older one of the same person; empty labels
    with a 0 in `unsure` take back what the cell had.
    Raises InputError, naming the line, for a value that is none, for two labels of one person and time for one cell
    and class, and where no row means a cell of the record.
    """
    table = read_rows(path, ["filename", *record.classes])
    if any(f"p_{name}" in table for name in record.classes):
        raise InputError(f"{path}: has the network's calls, not a person's; give the labels.csv that review.html saved")
    saved = datetime.datetime.fromtimestamp(os.stat(path).st_mtime, datetime.UTC).isoformat(timespec="seconds")
    rows = list(record.images())
    images = {image_name(row): row["id"] for row in rows}
    names = Names(path, images, record.folder, real=True)
    since = {row["id"]: row["since"] for row in rows if row["since"]}
    given = []
    withdrawn = []
    outdated = []
    strangers = []
    for line, row in table.iterrows():
        labels = labels_of(path, line, row, record.classes)
        time = time_of(path, line, row["when"]) if row.get("when") else saved
        cell = cut_cell(record, row["filename"]) or single_cell(record, names.meant(line, row["filename"]), images)
        if cell is None:
            strangers.append(f"line {line}: {row['filename']}")
        elif labels and time < since.get(cell[0], ""):
            outdated.append(f"line {line}: {row['filename']}")
        elif labels:
            given.append(Given(line, cell, labels, row.get("who", ""), time))
        elif row.get("unsure") == "0" and row.get("when"):
            given.append(Given(line, cell, dict.fromkeys(record.classes, WITHDRAWN), row.get("who", ""), time))
            withdrawn.append(cell)
    if not given:
        what = "no row means a cell" if strangers else "no row has a label"
        what = "all labels are older than the images or grids" if outdated else what
        raise InputError(f"{path}: {what} of {record.folder}; give the labels.csv that its review.html saved")
    refuse_contradictions(path, given)
    taken = set()
    with record.connection:
        for label in given:
            for name, value in label.labels.items():
                if keep_label(record, (*label.cell, name, value, label.who, label.time)):
                    taken.add(label.cell)
    lines = [f"{path}: labels of {counted(len(taken.difference(withdrawn)), 'cell')} taken into the record"]
    if back := taken.intersection(withdrawn) - record.people().keys():
        lines.append(f"{path}: labels of {counted(len(back), 'cell')} taken back")
    if older := len({label.cell for label in given} - taken):
        lines.append(f"{path}: labels of {counted(older, 'cell')} are older than those in the record, which stay")
    for rows, what in (
        (strangers, f"to no cell of {record.folder}"),
        (outdated, "to what the image or its grid was before, and are not taken"),
    ):
        if rows:
            shown = ", ".join(rows[:MOST_NAMES]) + (", …" if len(rows) > MOST_NAMES else "")
            number = counted(len(rows), "row belongs", "rows belong")
            lines.append(one_line(printable(f"{path}: {number} {what} ({shown})")))
    return lines, not strangers and not outdated


def refuse_contradictions(path, given):
    """Raise InputError where one person says two things of one cell and class at one time."""
    said = {}
    for label in given:
        for name, value in label.labels.items():
            line, other = said.setdefault((label.cell, name, label.who, label.time), (label.line, value))
            if other != value:
                what = f"another label of {name} than in line {line}, for the same cell"
                raise InputError(f"{path}, line {label.line}: {what}; remove one")


def keep_label(record, values):
    """Keep a label, a row of the table `labels`, unless that person gave the cell a newer one; whether it was kept."""
    cursor = record.connection.execute(
        "INSERT INTO labels VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET label = excluded.label, "
        "time = excluded.time WHERE excluded.time >= time",
        values,
    )
    return cursor.rowcount > 0


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
    """A time (ISO 8601) in UTC, which can be compared as text."""
    try:
        return datetime.datetime.fromisoformat(text).astimezone(datetime.UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError):
        raise InputError(f"{path}, line {line}: when is {text!r}, expected a time such as {now()}") from None


def cut_cell(record, filename):
    """(image, row, column) of a cell of a module by the name of its file, or None."""
    match = CELL.search(filename.replace("\\", "/"))
    if not match:
        return None
    cells = 'SELECT image, row, "column" FROM cells JOIN modules USING (image)'
    query = f'{cells} WHERE name = ? AND row = ? AND "column" = ?'
    found = record.connection.execute(query, (match[1], int(match[2]), int(match[3]))).fetchone()
    return tuple(found) if found else None


def single_cell(record, names, images):
    """(image, 0, 0) of the cell whose image has one of these names, or None; images: {name: id} of the record."""
    for name in names:
        query = "SELECT image FROM cells WHERE image = ? AND row = 0"
        if record.connection.execute(query, (images[name],)).fetchone():
            return images[name], 0, 0
    return None


# ---------------------------------------------------------------- what follows from them


def labelled_cells(record):
    """Cells that people labelled: list of (image, the network's calls or None of each class, Labels)."""
    columns = ", ".join(map(quoted, record.classes))
    those = 'SELECT DISTINCT image, row, "column" FROM labels'
    query = f'SELECT image, row, "column", {columns} FROM cells JOIN ({those}) USING (image, row, "column")'
    people = record.people()
    rows = record.connection.execute(query)
    cells = ((image, calls, people.get((image, row, column))) for image, row, column, *calls in rows)
    return [cell for cell in cells if cell[-1]]


def corrections(record):
    """Cells whose call people changed: list of (image, class number, network's call or None, label)."""
    changed = []
    for image, calls, labels in labelled_cells(record):
        for k, (call, label) in enumerate(zip(calls, labels.values)):
            if label is not None and label != call:
                changed.append((image, k, call, label))
    return changed


def judged_by_people_alone(record):
    """Ids of images, one for each cell that the network did not judge and people did."""
    cells = labelled_cells(record)
    return [image for image, calls, labels in cells if calls[0] is None and any(v is not None for v in labels.values)]


def agreement(record):
    """How often network and people agree: {class: (cells on which they agree, cells that both judged)}."""
    counts = {name: [0, 0] for name in record.classes}
    for _, calls, labels in labelled_cells(record):
        for count, call, label in zip(counts.values(), calls, labels.values):
            if call is not None and label is not None:
                count[0] += call == label
                count[1] += 1
    return {name: tuple(count) for name, count in counts.items()}


def lines_about_people(record):
    """Lines on whose labels a record has, and how often network and people agree; none without labels."""
    cells = labelled_cells(record)
    if not cells:
        return []
    who = sorted({one_line(printable(labels.who)) or "somebody" for _, _, labels in cells})
    agreed = ", ".join(f"{name} {same} of {both}" for name, (same, both) in agreement(record).items())
    changed = counted(sum(call is not None for _, _, call, _ in corrections(record)), "call")
    number = counted(len(cells), "cell")
    return [f"{number} labelled by {', '.join(who)}; network and people agree on {agreed}; {changed} corrected."]
