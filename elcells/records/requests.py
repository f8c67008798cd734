"""What is asked of an image, and what became of it."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from elcells.data.finding import file_of
from elcells.data.tiff import is_only_page
from elcells.files import ANY_NAME, printable
from elcells.modules.cutting import CutModule


@dataclass(frozen=True)
class Request:
    """An image to be judged, and how.

    name: as open_image takes it. path: the file's real path. page: from 1, 0 for the only image of a file.
    bytes, modified: size and time (ns) of the file. grid: (columns, rows) of a whole module, or None.
    corners: eight numbers or (). bend: the lens, or None.
    """

    name: str
    path: str
    page: int
    bytes: int
    modified: int
    grid: tuple | None = None
    corners: tuple = ()
    bend: float | None = None

    @property
    def grid_text(self):
        return "x".join(map(str, self.grid)) if self.grid else ""


@dataclass(frozen=True)
class ImageResult:
    """What became of a Request: an error, or the CellResults of its cells, of a CutModule where it shows one."""

    request: Request
    error: str = ""
    notes: tuple = ()
    cells: tuple = ()
    module: CutModule | None = None


def text(name):
    """A name that may hold bytes which are no UTF-8, as bytes for CAST(? AS TEXT)."""
    return name.encode("utf-8", ANY_NAME)


def request_of(name, grid=None, corners=None):
    """The Request for an image as find_images names it. corners: (4, 2), or None."""
    file, number = file_of(name)
    real = os.path.realpath(file)
    page = 0 if number is None or is_only_page(file, number) else number + 1
    corners = () if corners is None else tuple(np.ravel(corners).tolist())
    try:
        status = os.stat(real)
        size, time = status.st_size, status.st_mtime_ns
    except OSError:  # it is gone; who reads it says so
        size, time = 0, 0
    return Request(name, real, page, size, time, grid, corners)


def module_name(path, page):
    """A name for the files of a module: that of its file, and what tells it from files of the same name elsewhere.

    path, page: of its Request.
    """
    stem = re.sub(r"[^\w.-]+", "_", printable(Path(path).stem))
    number = f"_page{page}" if page else ""
    key = text(f"{path}#{page}")
    return f"{stem}{number}_{hashlib.sha256(key).hexdigest()[:8]}"
