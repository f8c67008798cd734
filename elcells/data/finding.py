"""Where images are: folders, globs, lists and pages of files."""

import glob
import os
import re
import sys
import unicodedata
from pathlib import Path

from elcells.data.tiff import pages_of
from elcells.files import InputError

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".pgm"}


def as_stored(path):
    """The Path as the file system has it, which may use the other Unicode form (Macs write ü as u and two dots)."""
    if not path.exists():
        for form in ("NFC", "NFD"):
            other = path.with_name(unicodedata.normalize(form, path.name))
            if other.exists():
                return other
    return path


def file_of(path):
    """The file (Path) that holds an image, and the number of the image's page from 0: FILE#page=2 is page 1 of FILE.

    A file whose own name ends like that is taken as it is.
    """
    file = as_stored(Path(path))
    page = re.fullmatch(r"(.*)#page=(\d+)", str(path), re.DOTALL)
    if page is None or file.exists():
        return file, 0
    return as_stored(Path(page[1])), int(page[2]) - 1


def find_images(inputs):
    """Find the image files of folders (searched recursively, by suffix), globs, files, and "-" (a list on stdin).

    Yields each str path once, a folder's in order of name; each page of a TIFF counts as an image.
    Raises InputError for an input that leads nowhere.
    """
    seen = set()
    for name in inputs:
        for file in _files_of(name):
            for page in pages_of(file):
                if page not in seen:
                    seen.add(page)
                    yield page


def _files_of(name):
    """The str paths that one input of find_images stands for."""
    if name == "-":
        lines = (line.rstrip("\r\n") for line in sys.stdin)
        return (line for line in lines if line)
    if os.path.isdir(name):
        return _walk(name)
    if os.path.exists(name):
        return [name]
    stored = as_stored(Path(name))
    if stored.exists():
        return [str(stored)]
    if file_of(name)[0].exists():  # a page of a file
        return [name]
    matches = sorted(path for path in glob.glob(name, recursive=True) if Path(path).suffix.lower() in SUFFIXES)
    if not matches:
        raise InputError(f"{name}: no such file or folder, and no image matches it")
    return matches


def _walk(folder):
    """Yield the image files below a folder, sorted folder by folder; links are followed, but no folder twice."""
    entered = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                yield os.path.join(root, name)
