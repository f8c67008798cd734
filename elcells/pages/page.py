"""What the HTML pages have in common: a template that is filled with JSON, images, class maps."""

import base64
import contextlib
import csv
import io
import json
import os
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image
from scipy.special import logit
from tqdm import tqdm

from elcells.data.images import as_gray, read_image
from elcells.files import ANY_NAME, InputError, atomic_path

UNSURE = 1.0  # a probability nearer to its threshold, in logits, may fall on either side
SHOWN_SIDE = 800  # pixels of an embedded image's longer side
HIGHEST = 6.0  # of a class map, in logits, as bright as it gets
BATCH = 16


def fill(template, target, data):
    """Write the page `template` of pages/templates with data, a dict that JSON can hold, in place of its word DATA, and
    page.js in place of SHARED."""
    templates = Path(__file__).with_name("templates")
    text = (templates / template).read_text(encoding="utf-8")
    shared = (templates / "page.js").read_text(encoding="utf-8")
    held = json.dumps(data).replace("<", "\\u003c")  # no </script> may stand in a file's name
    with atomic_path(target) as temporary:
        temporary.write_text(text.replace(">SHARED<", f">\n{shared}<").replace(">DATA<", f">{held}<"), encoding="utf-8")


def jpeg(image, side=SHOWN_SIDE, quality=88):
    """A gray or RGB PIL image as a data: URI, its longer side at most `side` pixels."""
    image = image.convert("L") if image.mode in ("L", "F") else image.convert("RGB")
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def source_of(path, target, embed=False):
    """Where the page `target` finds an image: a relative URL, or, for what a browser does not show right (16 bits,
    TIFF) and with embed, a data: URI.

    Raises InputError for an image that can't be read.
    """
    if not embed:
        try:
            with Image.open(path) as image:
                shown = image.format in ("PNG", "JPEG", "WEBP", "BMP") and image.mode in ("1", "L", "P", "RGB", "RGBA")
            relative = os.path.relpath(path, Path(target).parent).replace(os.sep, "/")
            relative.encode("utf-8")
            if shown:
                return quote(relative)
        except (OSError, ValueError):  # another drive of Windows, a page of a TIFF, a name that is not Unicode
            pass
    return jpeg(as_gray(path)[0])


def map_text(maps):
    """Class maps (C, h, w) as base64 of uint8."""
    levels = np.rint(255 * np.clip(maps / HIGHEST, 0, 1)).astype(np.uint8)
    return base64.b64encode(levels.tobytes()).decode()


def class_maps_of(paths, class_maps, size):
    """Class maps of image files as `map_text`: dict of path -> str; images that can't be read are left out.

    class_maps: function from uint8 images (B, 1, size, size) to maps (B, C, h, w), or None: no maps.
    """
    found, paths = {}, list(paths) if class_maps else []
    for start in tqdm(range(0, len(paths), BATCH), "class maps", unit="batch", leave=False, disable=None):
        names, images = [], []
        for path in paths[start : start + BATCH]:
            with contextlib.suppress(InputError):  # gone meanwhile
                images.append(read_image(path, size))
                names.append(path)
        if names:
            found.update(zip(names, map(map_text, class_maps(np.stack(images)[:, None]))))
    return found


def doubt(probabilities, thresholds):
    """How far each cell is from being called otherwise, in logits (N,).

    probabilities: (N, C), thresholds: (C,), or (N, C) where each cell has its own.
    """
    p, t = (np.clip(np.asarray(v, float), 1e-4, 1 - 1e-4) for v in (probabilities, thresholds))
    return np.abs(logit(p) - logit(t)).min(1)


def read_results(table, classes):
    """Rows of an output table of predict.py, one dict at a time; judged rows have `p` and `found`, lists of numbers."""
    with open(table, encoding="utf-8", errors=ANY_NAME, newline="") as file:
        reader = csv.DictReader(file, delimiter=";")
        for row in reader:
            if not set(classes) <= row.keys() or "error" not in row:
                raise InputError(f"{table}: is no output of predict.py for {', '.join(classes)}; give another --csv")
            if row[classes[0]] != "":
                row["found"] = [int(row[c]) for c in classes]
                row["p"] = [float(row[f"p_{c}"]) for c in classes]
            yield row
