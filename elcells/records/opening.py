"""Opening the record of a results folder, to write or to read it."""

import contextlib
import sqlite3
from pathlib import Path

from elcells.files import ANY_NAME, MODULES, OVERLAYS, RECORD, InputError, locked
from elcells.modules.cutting import CORNERS
from elcells.records.record import RESERVED, Record
from elcells.records.rows import quoted

LOCK = ".results.lock"
VERSION = 12  # of the tables below, and of what lengths and probabilities in them mean
APPLICATION = int.from_bytes(b"ELce", "big")  # SQLite's application_id, which tells a record from other databases


TABLES = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY, started TEXT, finished TEXT, network TEXT, sha256 TEXT, trained TEXT, classes TEXT,
    operating_point TEXT, thresholds TEXT, engine TEXT,
    version TEXT, key TEXT, derived INTEGER
);
CREATE TABLE images (
    id INTEGER PRIMARY KEY, path TEXT NOT NULL, page INTEGER NOT NULL, bytes INTEGER, modified INTEGER,
    grid TEXT NOT NULL, corners TEXT NOT NULL, status TEXT NOT NULL, error TEXT NOT NULL,
    notes TEXT NOT NULL, metadata TEXT NOT NULL, run INTEGER REFERENCES runs, judged TEXT, since TEXT,
    UNIQUE (path, page)
);
CREATE TABLE modules (
    image INTEGER PRIMARY KEY REFERENCES images ON DELETE CASCADE, name TEXT UNIQUE, columns INTEGER, rows INTEGER,
    score REAL, lead REAL, sure INTEGER, why TEXT, cell_pixels INTEGER, bend REAL, {corners}, nodes TEXT
);
CREATE TABLE cells (
    image INTEGER REFERENCES images ON DELETE CASCADE, row INTEGER, "column" INTEGER, file TEXT, brightness REAL,
    dark_part REAL, dark_ratio REAL, error TEXT, {classes}, crack_length REAL, inactive_area REAL, crack_mode TEXT,
    below TEXT, map BLOB, shape BLOB, PRIMARY KEY (image, row, "column")
) WITHOUT ROWID;
CREATE TABLE labels (
    image INTEGER REFERENCES images ON DELETE CASCADE, row INTEGER, "column" INTEGER, class TEXT, label INTEGER,
    who TEXT, time TEXT, PRIMARY KEY (image, row, "column", class, who)
) WITHOUT ROWID;
CREATE TABLE lenses (
    camera TEXT, width INTEGER, height INTEGER, grid TEXT, bend REAL, PRIMARY KEY (camera, width, height, grid)
) WITHOUT ROWID;
"""


def connect(path, **options):
    """A connection to a record's file; names that are no UTF-8 come back as they were given."""
    connection = sqlite3.connect(path, **options)
    connection.row_factory = sqlite3.Row
    connection.text_factory = lambda raw: raw.decode("utf-8", ANY_NAME)
    return connection


@contextlib.contextmanager
def writing(folder, info):
    """The context with the Record of a results folder, made where there is none, for a run as RunInfo says.

    Raises InputError while another run writes it, for a file that is no record, and as Record.begin does.
    """
    folder = Path(folder)
    busy = f"{folder}: another run is writing there; wait for it, or give another --out"
    with locked(folder / LOCK, busy):
        for part in (".", OVERLAYS, MODULES):
            for leftover in (folder / part).glob(".tmp*"):  # of a run that was killed
                leftover.unlink(missing_ok=True)
        try:
            with contextlib.closing(open_file(folder, info.classes)) as connection:
                record = Record(folder, connection)
                record.begin(info)
                yield record
                connection.execute("PRAGMA journal_mode = DELETE")  # can be read in a folder that can't be written
        except sqlite3.DatabaseError as error:
            raise InputError(f"{folder / RECORD}: can't be written ({error}); the same command goes on") from None


def open_file(folder, classes):
    """A connection for writing to a folder's record, whose tables are made where they are missing."""
    path = folder / RECORD
    with contextlib.ExitStack() as stack:
        try:
            connection = stack.enter_context(contextlib.closing(connect(path, timeout=0)))
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            if marks_of(connection) == (0, 0) and not connection.execute("SELECT * FROM sqlite_master").fetchone():
                make_tables(connection, classes)
            elif marks_of(connection) != (APPLICATION, VERSION):
                raise InputError(f"{path}: {what_else(connection)}; give another --out")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA foreign_keys = ON")
        except sqlite3.DatabaseError as error:
            raise InputError(f"{path}: can't be used as a record ({error}); give another --out") from None
        stack.pop_all()  # nothing is wrong with it
        return connection


def what_else(connection):
    """What a database is that is no record of this version."""
    application, version = marks_of(connection)
    if application != APPLICATION:
        return "is no record"
    way_out = "update the program" if version > VERSION else "report.py --labels takes labels.csv into a new one"
    return f"is a record of version {version}, and this program writes version {VERSION} ({way_out})"


def marks_of(connection):
    """The two numbers in a database that tell what it is and of which version."""
    return tuple(connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))


def make_tables(connection, classes):
    """Make the tables of a new record; raises InputError for classes of names that it can't hold."""
    taken = [*RESERVED, *(f"p_{name.lower()}" for name in classes)]
    for place, name in enumerate(classes):
        if name.lower() in (*taken, *(other.lower() for other in classes[:place])):
            raise InputError(
                f"the network's class {name!r} has a name that a record uses itself; rename it and train again"
            )
    columns = [quoted(name) + " INTEGER" for name in classes] + [quoted(f"p_{name}") + " REAL" for name in classes]
    tables = TABLES.format(corners=", ".join(f"{name} REAL" for name in CORNERS), classes=", ".join(columns))
    marks = f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION};"
    connection.executescript(f"BEGIN; {tables} {marks} COMMIT;")


@contextlib.contextmanager
def changing(folder):
    """The context with the Record of a results folder, to change it though nothing is judged.

    Raises InputError where there is none, and while a run writes it.
    """
    folder = Path(folder)
    with reading(folder):
        pass
    with locked(folder / LOCK, f"{folder}: a run is writing there; wait for it"):
        try:
            with contextlib.closing(open_file(folder, ())) as connection:
                record = Record(folder, connection)
                record.classes = record.info["classes"]
                record.set_derived(0)
                yield record
                record.set_derived(1)
                connection.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.DatabaseError as error:
            raise InputError(f"{folder / RECORD}: can't be written ({error}); the same command goes on") from None


@contextlib.contextmanager
def reading(folder):
    """The context with the Record of a results folder, for reading. Raises InputError where there is none."""
    path = Path(folder) / RECORD
    if not path.is_file():
        raise InputError(f"{folder}: no {RECORD} there; make one with `python predict.py IMAGES --out {folder}`")
    try:
        with contextlib.closing(connect(path, timeout=1)) as connection:
            connection.execute("PRAGMA query_only = ON")
            if marks_of(connection) != (APPLICATION, VERSION):
                raise InputError(f"{path}: {what_else(connection)}; judge the images again into another folder")
            record = Record(folder, connection)
            if not connection.execute("SELECT count(*) FROM runs").fetchone()[0]:  # a run was killed as it began
                raise InputError(f"{folder}: no results there yet; run `python predict.py IMAGES --out {folder}` again")
            record.classes = record.info["classes"]
            yield record
    except sqlite3.DatabaseError as error:
        raise InputError(f"{path}: can't be read ({error}); is a run writing it?") from None
