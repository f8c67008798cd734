"""What a record keeps about each run: which network judged, and how."""

import datetime
import json
from dataclasses import dataclass


def now_utc():
    """The time in UTC, which can be compared as text."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class RunInfo:
    """How images are judged: what a record's runs say. FIXED names what must stay the same in a record."""

    network: str
    sha256: str
    trained: str
    classes: tuple
    operating_point: str
    thresholds: tuple
    engine: str

    def row(self):
        """The same as SQLite takes it: {column: value}."""
        lists = {"classes": json.dumps(self.classes), "thresholds": json.dumps(self.thresholds)}
        return vars(self) | lists


FIXED = {  # columns of runs that can't change: what the user would call them
    "sha256": "network",
    "operating_point": "operating point",
    "thresholds": "threshold",
}


def now():
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def info_of_row(row):
    """The RunInfo of a run, from its columns (a dict, as Record.info)."""
    values = {name: row[name] for name in RunInfo.__dataclass_fields__}
    lists = {"classes": tuple(values["classes"]), "thresholds": tuple(values["thresholds"])}
    return RunInfo(**values | lists)
