"""What the HTML pages have in common: a template that is filled with JSON, images, class maps."""

import base64
import contextlib
import io
import json
import os
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image
from scipy.special import logit
from tqdm import tqdm

from elcells.data.images import as_gray, to_square
from elcells.files import InputError, atomic_path

UNSURE = 1.0  # a probability nearer to its threshold, in logits, may fall on either side
SHOWN_SIDE = 800  # pixels of an embedded image's longer side
THUMBNAIL_SIDE = 150  # pixels
HIGHEST = 6.0  # of a class map, in logits, as bright as it gets
BATCH = 16
BROWSER_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
BROWSER_MODES = ("1", "L", "P", "RGB", "RGBA")


class PageImage:
    """An image file as pages show it: decoded once, when it is first needed.

    The methods raise InputError where the file can't be read.
    """

    def __init__(self, path):
        self.path = path

    @cached_property
    def gray(self):
        """The whole image, a gray PIL image of mode L or F."""
        return as_gray(self.path)[0]

    def pixels(self, size):
        """What a network sees: uint8 (size, size)."""
        return to_square(self.gray, size)

    def thumbnail(self):
        """A small version as a data: URI."""
        return jpeg(Image.fromarray(self.pixels(THUMBNAIL_SIDE)), THUMBNAIL_SIDE, 80)

    def source(self, target, embed=False):
        """Where the page `target` finds the image: a relative URL, or a data: URI.

        The latter with embed, and for what a browser does not show right (16 bits, TIFF).
        """
        # fails for another drive of Windows, a page of a TIFF, a name that is not Unicode
        with contextlib.suppress(OSError, ValueError), Image.open(self.path) as header:
            if not embed and header.format in BROWSER_FORMATS and header.mode in BROWSER_MODES:
                return quote(os.path.relpath(self.path, Path(target).parent).replace(os.sep, "/"), errors="strict")
        return jpeg(self.gray)


def images_with_maps(images, engine):
    """Yield (PageImage, its class maps as base64 of uint8 (C, h, w), or None) for each of a list of PageImages.

    engine: makes the maps. Only some images are decoded at a time.
    """
    for start in tqdm(range(0, len(images), BATCH), "images", unit="batch", leave=False, disable=None):
        batch = images[start : start + BATCH]
        texts = [None] * len(batch)
        pixels = {}
        if engine.class_maps:
            for place, image in enumerate(batch):
                with contextlib.suppress(InputError):  # gone meanwhile
                    pixels[place] = image.pixels(engine.image_size)
        if pixels:
            maps = engine.class_maps(np.stack([*pixels.values()])[:, None])
            levels = np.rint(255 * np.clip(maps / HIGHEST, 0, 1)).astype(np.uint8)
            for place, levels_of_image in zip(pixels, levels):
                texts[place] = base64.b64encode(levels_of_image.tobytes()).decode()
        yield from zip(batch, texts)
        for image in batch:
            image.__dict__.pop("gray", None)  # what a cached_property holds


def jpeg(image, side=SHOWN_SIDE, quality=88):
    """A gray or RGB PIL image as a data: URI, its longer side at most `side` pixels."""
    image = image.convert("L") if image.mode in ("L", "F") else image.convert("RGB")
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def doubt(probabilities, thresholds):
    """How far each cell is from another call, in logits (N,).

    probabilities: (N, C). thresholds: (C,), or (N, C) where each cell has its own.
    """
    p = np.clip(np.asarray(probabilities, float), 1e-4, 1 - 1e-4)
    t = np.clip(np.asarray(thresholds, float), 1e-4, 1 - 1e-4)
    return np.abs(logit(p) - logit(t)).min(1)


def fill(template, target, data):
    """Write a page: `template` of pages/templates with data, a dict that JSON can hold, in place of its word DATA, and
    page.js in place of SHARED."""
    templates = Path(__file__).with_name("templates")
    text = (templates / template).read_text(encoding="utf-8")
    shared = (templates / "page.js").read_text(encoding="utf-8")
    json_text = json.dumps(data).replace("<", "\\u003c")  # a file's name may contain </script>
    with atomic_path(target) as temporary:
        page = text.replace(">SHARED<", f">\n{shared}<").replace(">DATA<", f">{json_text}<")
        temporary.write_text(page, encoding="utf-8")
