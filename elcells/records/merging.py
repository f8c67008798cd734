"""Several results folders as one: the images of all of them, each with its newest results."""

import contextlib
import datetime
import os
import shutil
import sqlite3

from tqdm import tqdm

from elcells.files import CUT, MODULES, OVERLAYS, InputError
from elcells.records.labels import keep_label
from elcells.records.opening import reading
from elcells.records.record import AS_LABELLED, JUDGED, WAITING
from elcells.records.requests import module_name, text
from elcells.records.rows import count_of_labelled
from elcells.records.runs import FIXED


def merge(record, folder):
    """Take the results in another folder into a record, with their files (hard links where the file system has them).

    Of an image that both have, the newer results count. Labels of people and metadata come along. One transaction.
    Raises InputError where another network, or the same with other settings, judged there.
    """
    with reading(folder) as other:
        check_same(record.info, other)
        try:
            with record.connection:  # should it be stopped, the record knows whose files are no longer its own
                for row in other.images():
                    have = record.known(row["path"], row["page"])
                    if have is not None and is_newer(row, have):
                        record.update_image(have["id"], {"status": WAITING})
            with record.connection:
                take_all(record, other)
        except sqlite3.DatabaseError as error:
            raise InputError(f"{folder}: can't be taken into {record.folder} ({error})") from None


def take_all(record, other):
    """Take over another record's runs, images and lenses."""
    runs = {row["id"]: take_run(record, row) for row in other.runs(["*"])}
    for row in tqdm(list(other.images()), str(other.folder), unit="image", leave=False):
        take_image(record, other, row, runs)
    for row in other.connection.execute("SELECT * FROM lenses"):
        values = (text(row["camera"]), row["width"], row["height"], row["grid"], row["bend"])
        query = "INSERT OR IGNORE INTO lenses VALUES (CAST(? AS TEXT), ?, ?, ?, ?)"
        record.connection.execute(query, values)


def check_same(info, other):
    """Raise InputError unless a Record was judged in the same way as one whose `info` this is."""
    if info["classes"] != other.classes:
        raise InputError(f"{other.folder}: its network knows other defects; only results of one network can be one")
    for column, what in FIXED.items():
        if info[column] != other.info[column]:
            raise InputError(
                f"{other.folder}: was judged with another {what}; judge the images again with one network and settings"
            )


def is_newer(row, have):
    """Whether an image's results in a row of another record count more than those in the record's row, or None."""
    if have is None:
        return True
    if row["status"] != JUDGED or have["status"] != JUDGED:
        return row["status"] == JUDGED
    there, here = (datetime.datetime.fromisoformat(image["judged"]) for image in (row, have))
    return there > here


def take_files(folder, other, name):
    """Link or copy a module's files from another results folder; those that are gone there are left out."""
    (folder / CUT).mkdir(exist_ok=True)
    cells = folder / CUT / name
    shutil.rmtree(cells, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        shutil.copytree(other / CUT / name, cells, copy_function=link_or_copy)
    for place in (f"{OVERLAYS}/{name}.jpg", f"{MODULES}/{name}.jpg"):
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            link_or_copy(other / place, folder / place)


def link_or_copy(source, target):
    """A second name for a file, or a copy on file systems without hard links. Files are replaced, never changed."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(source, target)


def take_run(record, row):
    """The id in the record of a run of another one, which is taken over unless it was before."""
    before = record.connection.execute("SELECT id FROM runs WHERE key = ?", (row["key"],)).fetchone()
    values = dict(row) | {"derived": None}
    del values["id"]
    return before["id"] if before else record.insert("runs", values)


def take_image(record, other, row, runs):
    """Take over an image with its module, cells, labels and files; runs: {id of a run there: id here}."""
    have = record.known(row["path"], row["page"])
    same = have is not None and all(have[name] == row[name] for name in AS_LABELLED)
    if is_newer(row, have):
        image = replace_image(record, row, have, same, runs[row["run"]])
        for table in ("modules", "cells"):
            for line in other.connection.execute(f"SELECT * FROM {table} WHERE image = ?", (row["id"],)):
                record.insert(table, values_of(line) | {"image": image})
        if row["grid"] or (have and have["grid"]):
            take_files(record.folder, other.folder, module_name(row["path"], row["page"]))
    else:
        image = have["id"]
        if have["metadata"] == "{}":
            record.update_image(image, {"metadata": row["metadata"]})
        if not same:  # people labelled another state of the image
            record.dropped += count_of_labelled(other.connection, row["id"])
            return
    for line in other.connection.execute("SELECT * FROM labels WHERE image = ?", (row["id"],)):
        keep_label(record, (image, *tuple(line)[1:]))


def replace_image(record, row, have, same, run):
    """Put an image's row of another record in place of the record's, if any; returns its id.

    same: whether labels of it still hold.
    """
    values = dict(row) | {"path": text(row["path"]), "run": run}
    del values["id"]
    if have is None:
        return record.insert("images", values)
    if not same:
        record.drop_labels(have["id"])
    for table in ("modules", "cells"):
        record.connection.execute(f"DELETE FROM {table} WHERE image = ?", (have["id"],))
    if values["metadata"] == "{}":
        del values["metadata"]
    record.update_image(have["id"], values)
    return have["id"]


def values_of(row):
    """A row of modules or cells as Record.insert takes it."""
    return {name: memoryview(value) if isinstance(value, bytes) else value for name, value in dict(row).items()}
