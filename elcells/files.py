"""Paths, files that are written completely or not at all, locking a run's folder, and the error that users read."""

import contextlib
import errno
import functools
import importlib
import inspect
import io
import itertools
import os
import re
import sys
from pathlib import Path

from filelock import FileLock, Timeout

MAX_REASON = 400  # characters of another library's message that are shown
RECORD = "results.sqlite"  # of a results folder
CUT, OVERLAYS, MODULES = "cut", "overlays", "modules"  # its folders of cells cut from modules, and of images of modules
REPORT = "report"  # its folder of the files beside report.html
ANY_NAME = "surrogateescape"  # error handler that keeps file names that are not UTF-8 and writes them back unchanged


class InputError(ValueError):
    """A user's input can't be used; the text is one sentence that names the culprit and the way out."""


def needed(package):
    """Import and return a package; InputError where it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise InputError(f"the package {package} is not installed; `pip install {package}`") from None


def command(main):
    """Decorates a script's main(argv=None): errors become one line on stderr and an exit code.

    The code is main's (0 where it returns nothing), 2 for bad input and files that can't be read or written, 130 for
    Ctrl-C, and 0 where nobody reads the output any more. All file names can be printed.
    """
    script = Path(inspect.getfile(main)).name

    @functools.wraps(main)
    def run(argv=None):
        print_any_name()
        try:
            return main(argv) or 0
        except BrokenPipeError:  # `| head` has seen enough
            sys.stderr.close()
            return 0
        except (InputError, OSError) as error:
            text = file_error(error) if isinstance(error, OSError) else error
            print(f"{script}: {text}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return 130

    return run


@contextlib.contextmanager
def atomic_path(path):
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds, else remove it.

    Raises InputError for what is no file and would be replaced by one: /dev/null, a pipe.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"{path}: can't be written, it is no file; give another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp{os.getpid()}_{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, temporary, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None  # the file that the user knows
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def locked(path, message):
    """The context in which this process alone holds the lock file at `path`; raises InputError(message) where it can't.

    The operating system releases the lock when a process dies.
    """
    folder = Path(path).parent
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(message) from None
    except PermissionError as error:
        raise InputError(f"{folder}: nothing can be written there ({error.strerror}); give another folder") from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def sole_writer(out):
    """Lock the folder `out` (Path) against other runs, and remove half-written files that a killed run left there.

    Raises InputError if another run holds it.
    """
    busy = f"{out}: another `python train.py` is at work in this folder; wait for it, or give another --out"
    with locked(out / ".train.lock", busy):
        for folder in ("checkpoints", "plots"):
            for leftover in (out / folder).rglob(".tmp*"):
                leftover.unlink(missing_ok=True)
        yield


def move_aside(out):
    """Rename the checkpoints/ and plots/ of an earlier run in `out` (Path), so that a new run overwrites nothing."""
    results = ("last.ckp", "best.ckp", "folds.json")
    if not any((out / "checkpoints" / name).exists() for name in results):
        return
    number = next(n for n in itertools.count(1) if not (out / f"checkpoints_{n}").exists())
    for name in ("checkpoints", "plots"):
        if (out / name).exists():
            (out / name).rename(out / f"{name}_{number}")
    print(f"An earlier run's checkpoints/ and plots/ are now checkpoints_{number}/ and plots_{number}/.")


def file_error(error):
    """An OSError as a sentence such as "/proc/x.csv: can't be written (No such file or directory)"."""
    if error.errno is None or error.strerror is None:
        return reason(error)
    if error.filename is None:
        return f"nothing can be written ({error.strerror})"
    path = os.fsdecode(error.filename) if isinstance(error.filename, (bytes, os.PathLike)) else error.filename
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"{path}: can't be written, because a file is there where a folder is needed"
    exists = isinstance(path, str) and os.path.exists(path)
    verb = "read" if exists and not os.access(path, os.R_OK) else "written"
    return f"{path}: can't be {verb} ({error.strerror})"


def from_here(path):
    """A Path relative to the current folder where it lies in it, else as it is."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def counted(number, noun, plural=None):
    """A number and its noun: "1 image", "2 images"; plural: where that is not the noun and an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"


def folder_of_all(paths):
    """The deepest folder that holds all files, an absolute path; None where there is none: two drives of Windows."""
    try:
        return os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    except ValueError:
        return None


def relative(path, folder):
    """A path relative to a folder, with /, or the whole path where the folder is None or on another drive."""
    path = os.path.abspath(path)
    if folder is not None:
        with contextlib.suppress(ValueError):
            path = os.path.relpath(path, folder)
    return path.replace(os.path.sep, "/")


def reason(error):
    """An exception's message on one line of at most MAX_REASON characters; its class if it has no message.

    Terminal colours and the names of numpy's types are removed.
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    text = re.sub(r"np\.\w+_?\(([^()]*)\)", r"\1", text)
    text = one_line(text)
    if len(text) > MAX_REASON:
        return f"{text[:MAX_REASON]} …"
    return text or type(error).__name__


def print_any_name():
    """Let this process print any file name, including those that the terminal's encoding can't show."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def one_line(text):
    """Text without line breaks."""
    return " ".join(text.split())


def printable(name):
    """A file name as text that any library can draw or write, with ? for bytes that are not UTF-8 and control codes."""
    text = str(name).encode("utf-8", "replace").decode("utf-8")
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "?", text)
