"""Files beside a page, which it loads where it needs them: chunks of data, and images that no browser shows."""

import hashlib
import os
import re
from pathlib import Path
from urllib.parse import quote

from elcells.data.images import as_gray
from elcells.files import ANY_NAME, InputError, atomic_path, printable
from elcells.pages.page import SHOWN_SIDE, browser_shows, json_of
from elcells.records.rows import image_name

# That a page's writer makes
OWN_FILE = re.compile(r"(cells|modules|maps|shapes)(-\d+)?\.js|.*_[0-9a-f]{8}\.jpg|\.tmp\d+_.*")
SEEN_BEFORE = "SELECT path, page, bytes, modified FROM images WHERE id = ?"


def stamp_of(*records):
    """What tells the state of Records from any other, text: a page takes no chunk of another state."""
    digest = hashlib.sha256()
    for record in records:
        for query in ("SELECT path, page, status, judged, metadata FROM images", "SELECT * FROM labels"):
            for row in record.connection.execute(query):
                digest.update(repr(tuple(row)).encode("utf-8", ANY_NAME))
    return digest.hexdigest()[:16]


def source_of(image, record, files):
    """Where a page in the record's folder finds an image, by its id: a URL, None where it can't be read.

    files: Files, which get a copy of an image that no browser shows.
    """
    row = record.connection.execute(SEEN_BEFORE, [image]).fetchone()
    if not row["page"] and browser_shows(row["path"]):
        return url(row["path"], files.folder.parent)
    return files.converted(row)


class Files:
    """The files of one page in a folder (Path) beside it. stamp: `stamp_of` what the page shows."""

    def __init__(self, folder, stamp=""):
        self.folder = folder
        self.stamp = stamp
        self.names = set()

    def write_chunk(self, name, text):
        """Write NAME.js, which gives the page the value of this JSON; it stays untouched where it is the same."""
        path = self.folder / f"{name}.js"
        self.names.add(path.name)
        content = f"chunk({json_of(name)},{text},{json_of(self.stamp)});\n".encode()
        if not path.is_file() or path.stat().st_size != len(content) or path.read_bytes() != content:
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)

    def converted(self, row):
        """The URL of an image that no browser shows, converted once; row: of SEEN_BEFORE. None where it is gone."""
        path = self.folder / converted_name(row)
        if not path.is_file():
            try:
                image = as_gray(image_name(row))[0].convert("L")
            except InputError:
                return None
            image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
            with atomic_path(path) as temporary:
                image.save(temporary, "JPEG", quality=88)
        self.names.add(path.name)
        return f"{self.folder.name}/{quote(path.name)}"

    def remove_others(self, record=None):
        """Remove what an earlier page left here; what was converted stays while the record has its source."""
        names = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
        others = {name for name in names - self.names if OWN_FILE.fullmatch(name)}
        if record and any(name.endswith(".jpg") for name in others):
            rows = record.connection.execute("SELECT path, page, bytes, modified FROM images")
            others -= set(map(converted_name, rows))
        for name in others:
            (self.folder / name).unlink(missing_ok=True)


def converted_name(row):
    """The name of the file of an image that is converted as it was when it was judged; row: of SEEN_BEFORE."""
    stem = re.sub(r"[^\w.-]+", "_", printable(Path(row["path"]).stem))[:60]
    key = "#".join(map(str, row)).encode("utf-8", ANY_NAME)
    return f"{stem}_{hashlib.sha256(key).hexdigest()[:8]}.jpg"


def url(path, folder):
    """The URL of a file or folder from a page in `folder`."""
    try:
        return quote(os.fsencode(os.path.relpath(path, folder).replace(os.sep, "/")))
    except ValueError:  # another drive of Windows
        return Path(path).as_uri()
