"""Files that are complete or not there, one run a folder, and the error that users get to read."""

import contextlib
import io
import os
import re
import sys
from pathlib import Path

from filelock import FileLock, Timeout

ANY_NAME = "surrogateescape"  # how file names that are not UTF-8 are kept in text, and written as they were


class InputError(ValueError):
    """Something the user gave can't be used; its text is one sentence with the culprit and the way out."""


@contextlib.contextmanager
def atomic_path(path):
    """Yield a temporary path beside `path`; rename it to `path` when the block ends well, else remove it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp{os.getpid()}_{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is not None and Path(error.filename) == temporary:
            error.filename, error.filename2 = str(path), None  # the file that the user knows
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def sole_writer(out):
    """Hold the folder `out` against other runs, and clear what a killed one left half-written there.

    The system itself lets go of the lock when a process dies. Raises InputError where another run holds it.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / ".train.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"{out}: another `python train.py` is at work in this folder; wait for it, or take another folder"
        ) from None
    try:
        for folder in ("checkpoints", "plots"):
            for left in (out / folder).rglob(".tmp*"):
                left.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def move_aside(out):
    """Rename an earlier run's checkpoints/ and plots/ in `out`, so that a new run overwrites nothing."""
    if not any((out / "checkpoints" / name).exists() for name in ("last.ckp", "best.ckp", "folds.json")):
        return
    number = next(n for n in range(1, 10**6) if not (out / f"checkpoints_{n}").exists())
    for name in ("checkpoints", "plots"):
        if (out / name).exists():
            (out / name).rename(out / f"{name}_{number}")
    print(f"An earlier run's checkpoints/ and plots/ are now checkpoints_{number}/ and plots_{number}/.")


def reason(error, most=400):
    """An exception's message as one line: all of it but colours and numpy's names of its types, `most` characters at
    most; the name of its kind where it has none."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    text = re.sub(r"np\.\w+_?\(([^()]*)\)", r"\1", text)
    text = " ".join(text.split())
    return (text if len(text) <= most else f"{text[:most]} …") or type(error).__name__


def print_any_name():
    """Let this process print and read every file name, whatever its terminal's encoding has letters for."""
    for stream, errors in ((sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace"), (sys.stdin, ANY_NAME)):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def printable(name):
    """A file name as text that any library can draw or write, with ? for what is no letter."""
    return str(name).encode("utf-8", "replace").decode("utf-8")
