"""Reading `;`-separated tables as text; every error names the file and the line."""

import codecs
import csv
import io
from pathlib import Path

from elcells.files import InputError

CLASSES = ("crack", "inactive")  # label columns, in the order of a network's outputs
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decode(raw):
    """Bytes of a text file as str: UTF-16 if it starts with that byte order mark (Excel), else UTF-8, else Latin-1."""
    if raw.startswith(UTF16_MARKS):
        return raw.decode("utf-16", errors="replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def read_rows(path, wanted):
    """Read a table as a DataFrame of stripped str, indexed by line number in the file; empty rows are left out.

    wanted: columns that the table must have.
    Raises InputError, naming the line, for a file that can't be read, another separator, missing or repeated columns,
    rows that are too long, or no rows.
    """
    import pandas as pd  # takes a third of a second, which programs without tables need not wait

    path = Path(path)
    lines = _split_lines(path)
    columns = lines.pop(1, [])
    _check_header(path, columns, wanted)
    rows = {}
    for line, fields in lines.items():
        if any(fields[len(columns) :]):
            raise InputError(
                f"{path}, line {line}: {len(fields)} fields, but the header has {len(columns)}; correct the row"
            )
        if any(fields):
            padding = [""] * (len(columns) - len(fields))
            rows[line] = fields[: len(columns)] + padding
    if not rows:
        raise InputError(f"{path}: no rows below the header; add one row per image")
    return pd.DataFrame(rows.values(), list(rows), columns, dtype=str)


def _split_lines(path):
    """The stripped fields of each row as a dict: number of the row's last line -> list of str."""
    try:
        text = decode(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}); give another table") from None
    reader = csv.reader(io.StringIO(text, newline=None), delimiter=";")
    lines = {}
    try:
        for fields in reader:
            lines[reader.line_num] = [field.strip() for field in fields]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not a row of a ';'-separated table ({error})") from None
    return lines


def _check_header(path, columns, wanted):
    """Raise InputError unless all wanted columns are there and no column is repeated."""
    missing = [name for name in wanted if name not in columns]
    if missing:
        for separator in (",", "\t"):
            if len(columns) == 1 and separator in columns[0]:
                raise InputError(f"{path}, line 1: columns are separated by {separator!r}, expected ';'")
        raise InputError(
            f"{path}, line 1: no column {missing[0]!r} (found: {', '.join(columns)[:200] or 'nothing'}); "
            f"the table needs {';'.join(wanted)}"
        )
    for name in columns:
        if columns.count(name) > 1:
            raise InputError(f"{path}, line 1: column {name!r} appears twice; remove one")


def in_order(identifier):
    """Sort key for identifiers: numbers by value come first, then other text in alphabetical order."""
    text = str(identifier)
    if text.isdecimal():
        return (0, int(text), text)
    return (1, 0, text)
