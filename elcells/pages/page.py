"""What the HTML pages have in common: a template that is filled with JSON, images, class maps."""

import base64
import contextlib
import io
import json
import os
import re
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from elcells.colours import CLASS_COLOURS, VERDICT_COLOURS
from elcells.data.images import as_gray
from elcells.files import atomic_path

SHOWN_SIDE = 800  # pixels of an embedded image's longer side
THUMBNAIL_SIDE = 150  # pixels
BROWSER_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
BROWSER_MODES = ("1", "L", "P", "RGB", "RGBA")


def address_of(path, target):
    """Where the page `target` finds an image file: a relative URL, or a data: URI of what a browser does not show right
    (16 bits, TIFF). Raises InputError as `as_gray` does."""
    if browser_shows(path):
        with contextlib.suppress(ValueError):  # another drive of Windows, a name that is not Unicode
            return quote(os.path.relpath(path, Path(target).parent).replace(os.sep, "/"), errors="strict")
    return jpeg(as_gray(path)[0])


def browser_shows(path):
    """Whether a browser shows an image file right; not for a page of a file, nor a file that can't be read."""
    with contextlib.suppress(OSError, ValueError), Image.open(path) as header:
        return header.format in BROWSER_FORMATS and header.mode in BROWSER_MODES
    return False


def jpeg(image, side=SHOWN_SIDE, quality=88):
    """A gray or RGB PIL image as a data: URI, its longer side at most `side` pixels."""
    image = image.convert("L") if image.mode in ("L", "F") else image.convert("RGB")
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return data_uri(buffer.getvalue())


def data_uri(content):
    """The bytes of a JPEG file as a data: URI."""
    return "data:image/jpeg;base64," + base64_of(content)


def base64_of(content):
    """Bytes as base64; None as None."""
    return None if content is None else base64.b64encode(content).decode()


def json_of(value):
    """A value as JSON that may stand in a script of a page."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")  # a file's name may contain </script>


def fill(template, target, data, chunks=None):
    """Write a page: `template` of pages/templates, in which page.css takes the place of STYLE, page.js of SHARED,
    `data` (a dict that JSON can hold) of DATA, and `chunks` of CHUNKS: {name: value} that `needChunk` of page.js finds.
    A script `NAME.js` of pages/templates takes the place of its name.
    """
    templates = Path(__file__).with_name("templates")
    data = {"palette": CLASS_COLOURS, "verdicts": VERDICT_COLOURS} | data
    parts = {
        "STYLE": (templates / "page.css").read_text(encoding="utf-8"),
        "SHARED": (templates / "page.js").read_text(encoding="utf-8"),
        "DATA": json_of(data),
        "CHUNKS": "".join(f"chunk({json_of(name)},{json_of(value)});\n" for name, value in (chunks or {}).items()),
    }
    text = (templates / template).read_text(encoding="utf-8")
    for name in re.findall(r"<script>(\w+\.js)</script>", text):
        parts[name] = (templates / name).read_text(encoding="utf-8")
    page = re.sub(rf">({'|'.join(map(re.escape, parts))})<", lambda match: f">{parts[match[1]]}<", text)
    with atomic_path(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
