"""TIFF files: which of their pages are images, and the pixels of a page as the file stores them."""

import contextlib
import functools
import logging
import math
import os
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from elcells.data.stored import StoredImage, upright
from elcells.files import InputError, counted

SUFFIXES = (".tif", ".tiff")
PREVIEW = 0.3  # of the largest page's area: smaller pages are previews
REDUCED, MASK = 1, 4  # bits of the tag NewSubfileType
ALPHA = ("ASSOCALPHA", "UNASSALPHA")
# Colours that can become gray, and their channels.
COLOURS = {"MINISBLACK": 1, "MINISWHITE": 1, "PALETTE": 1, "RGB": 3, "YCBCR": 3, "SEPARATED": 4}
JPEG = (6, 7, 33007)  # compressions whose YCbCr becomes RGB as it is read
WIDEST = 32  # bits per sample
logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong with a file stands in its InputError


def is_tiff(path):
    return Path(path).suffix.lower() in SUFFIXES


def pages_of(path):
    """Names of a file's images: [path], or FILE#page=1 ... of a TIFF of several pages.

    Previews and masks are left out. A file that can't be read counts as one image.
    """
    if not is_tiff(path):
        return [str(path)]
    try:
        chosen, _ = page_table(path)
    except Exception:  # tifffile raises many kinds for a damaged file; who reads the image is told
        return [str(path)]
    if len(chosen) < 2:
        return [str(path)]
    return [f"{path}#page={number + 1}" for number in chosen]


def is_only_page(path, number):
    """Whether a file's page of this number, counted from 0, is its only image."""
    try:
        return page_table(path)[0] == (number,)
    except Exception:  # as above
        return False


def page_table(path):
    """(numbers of the pages that are images, counted from 0; offset of each page's entry, or None for a raw stack)."""
    status = os.stat(path)
    return _page_table(str(path), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _page_table(path, size, modified):
    """`page_table` of a file of this size and time: without it, reading all pages would take time squared."""
    with tifffile.TiffFile(path) as file:
        pages = list(file.pages)
        if len(pages) == 1 and (count := stack_size(file)) > 1:
            return tuple(range(count)), None
        areas = [math.prod(page.shape[:2]) for page in pages]
        offsets = tuple(page.offset for page in pages)
        numbers = [number for number, page in enumerate(pages) if not page.subfiletype & (REDUCED | MASK)]
    numbers = numbers or list(range(len(areas)))
    largest = max(areas[number] for number in numbers)
    return tuple(number for number in numbers if areas[number] >= PREVIEW * largest), offsets


def stack_size(file):
    """How many images follow each other behind the only page entry of an open TiffFile, as ImageJ writes them."""
    series = file.series[0]
    page = file.pages[0]
    is_raw = series.dataoffset is not None and page.compression == 1
    return math.prod(series.shape) // math.prod(page.shape) if is_raw else 1


def read_page(path, number, check_size):
    """A page of a TIFF file as a StoredImage; number: from 0, or None for the first that is an image.

    check_size: function of width and height that raises an error for a page that is too large.

    Raises InputError for pixels whose gray is not known, and what tifffile raises for a damaged file.
    """
    with opened_page(path, number) as (file, page, number, is_raw):
        check_size(page.imagewidth, page.imagelength)
        pixels = raw_image(file, number) if is_raw else page.asarray()
        return stored_page(path, page, np.asarray(pixels))


def size_of_page(path, number):
    """(width, height), upright, of a page of a TIFF file; number: as in read_page."""
    with opened_page(path, number) as (_, page, _, _):
        size = page.imagewidth, page.imagelength
        return size[::-1] if page.tags.valueof("Orientation", 1) >= 5 else size


def has_deep_page(path, number):
    """Whether a page of a TIFF file has not 8 bits a sample; number: as in read_page."""
    with opened_page(path, number) as (_, page, _, _):
        return page.bitspersample != 8


@contextlib.contextmanager
def opened_page(path, number):
    """The context with (TiffFile, its TiffPage, the number, whether the file is a raw stack) of a page."""
    chosen, offsets = page_table(path)
    number = chosen[0] if number is None else number
    count = len(chosen) if offsets is None else len(offsets)
    if not 0 <= number < count:
        raise InputError(f"{path}: has {counted(count, 'page')}, no page {number + 1}")
    with tifffile.TiffFile(path) as file:
        if offsets is None:
            yield file, file.pages[0], number, True
        else:
            file.filehandle.seek(offsets[number])
            yield file, tifffile.TiffPage(file, number), number, False


def raw_image(file, number):
    """The image of this number in a stack that has one page entry."""
    page = file.pages[0]
    kind = np.dtype(page.dtype).newbyteorder(file.byteorder)
    step = math.prod(page.shape) * kind.itemsize
    offset = file.series[0].dataoffset + number * step
    return np.array(np.memmap(file.filehandle.path, kind, "r", offset, page.shape)).astype(page.dtype)


def stored_page(path, page, pixels):
    """What a page's tags say about its pixels, as a StoredImage."""
    kind = getattr(page.photometric, "name", "unknown")
    if kind not in COLOURS or (kind == "YCBCR" and page.compression not in JPEG):
        raise InputError(f"{path}: {kind} colours have no known gray; save it as gray or RGB")
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    if pixels.dtype.kind not in "ui" or pixels.dtype.itemsize * 8 > WIDEST:
        raise InputError(f"{path}: {pixels.dtype} pixels have no known scale; save it with 8 or 16 bits")
    if page.axes not in ("YX", "YXS", "SYX"):
        raise InputError(f"{path}: a page of axes {page.axes} is no flat image; save each image as a page")
    if page.axes == "SYX":
        pixels = np.moveaxis(pixels, 0, -1)
    if kind == "SEPARATED":
        if pixels.shape[2:] != (4,) or pixels.dtype != np.uint8:
            raise InputError(f"{path}: inks that are not CMYK of 8 bits have no known gray; save it as gray or RGB")
        height, width, _ = pixels.shape
        pixels = np.asarray(Image.frombytes("CMYK", (width, height), pixels.tobytes()).convert("RGB"))
        kind = "RGB"
    bits = used_bits(page, pixels)
    if kind == "MINISWHITE" and pixels.dtype == np.uint8 and bits in (0, 8):
        pixels = 255 - pixels
        kind = "MINISBLACK"
    channels = COLOURS[kind]
    extra = [sample.name for sample in page.extrasamples]
    if pixels.ndim == 3 and pixels.shape[2] > channels and (not extra or extra[0] not in ALPHA):
        raise InputError(f"{path}: {pixels.shape[2]} channels of unknown meaning; save it as gray or RGB")
    alpha = None
    if pixels.ndim == 3:
        if pixels.shape[2] > channels and extra[0] == "UNASSALPHA":  # else the colours contain it
            alpha = pixels[..., channels]
        pixels = pixels[..., :channels]
        pixels = pixels[..., 0] if channels == 1 else pixels
    if kind == "PALETTE":
        pixels = np.moveaxis(page.colormap, 0, -1)[pixels]
        bits = 16 if page.colormap.max() > 255 else 8  # some programs write 8 bits
    orientation = page.tags.valueof("Orientation", 1)
    return StoredImage(upright(pixels, orientation), upright(alpha, orientation), bits, kind == "MINISWHITE")


def used_bits(page, pixels):
    """Bits per sample that a page says are used, 0 where it says nothing.

    Some programs write this image's own maximum as MaxSampleValue, or the file's full scale whatever the camera uses:
    both say nothing about the camera.
    """
    stored = pixels.dtype.itemsize * 8
    largest = int(np.max(page.tags.valueof("MaxSampleValue", 0)))
    bits = largest.bit_length()
    if 0 < bits < stored and largest == 2**bits - 1:
        return bits
    return page.bitspersample if 1 < page.bitspersample < stored else 0
