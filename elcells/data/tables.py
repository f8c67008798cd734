"""`;`-separated tables as text: decoding, rows, columns, with the line of whatever is wrong."""

import codecs
import csv
import io
from pathlib import Path

import pandas as pd

from elcells.files import InputError

CLASSES = ("crack", "inactive")  # label columns, in the order of a network's outputs
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decode(raw):
    """Bytes of a text file as str: UTF-16 where its mark says so (Excel), UTF-8 with or without one, else Latin-1."""
    if raw.startswith(UTF16):
        return raw.decode("utf-16", errors="replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def read_rows(path, wanted):
    """A table as a DataFrame of stripped str, whose index is the lines of the file; rows without any text are left out.

    wanted: columns that it must have. Raises InputError, naming the line, for a file that can't be read, another
    separator, missing or doubled columns, rows that are too long, or no rows.
    """
    path = Path(path)
    try:
        text = decode(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}); give another table") from None
    reader = csv.reader(io.StringIO(text, newline=None), delimiter=";")
    rows = {}
    try:
        for row in reader:
            rows[reader.line_num] = [field.strip() for field in row]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not a row of a ';'-separated table ({error})") from None
    columns = rows.pop(1, [])
    missing = [c for c in wanted if c not in columns]
    if missing:
        other = next((s for s in (",", "\t") if len(columns) == 1 and s in columns[0]), None)
        if other:
            raise InputError(f"{path}, line 1: columns are separated by {other!r}, expected ';'")
        raise InputError(
            f"{path}, line 1: no column {missing[0]!r} (found: {', '.join(columns)[:200] or 'nothing'}); "
            f"the table needs {';'.join(wanted)}"
        )
    doubled = [c for c in dict.fromkeys(columns) if columns.count(c) > 1]
    if doubled:
        raise InputError(f"{path}, line 1: column {doubled[0]!r} stands there twice; remove one")
    for line, row in rows.items():
        if any(row[len(columns) :]):
            raise InputError(f"{path}, line {line}: {len(row)} fields, but the header has {len(columns)}; mend the row")
    rows = {line: (row + [""] * len(columns))[: len(columns)] for line, row in rows.items() if any(row)}
    if not rows:
        raise InputError(f"{path}: no rows below the header; add one row an image")
    return pd.DataFrame(rows.values(), list(rows), columns, dtype=str)


def in_order(identifier):
    """Key to sort identifiers by: numbers by their value, before all others."""
    text = str(identifier)
    return (0, int(text), text) if text.isdecimal() else (1, 0, text)
