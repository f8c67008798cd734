"""The scale of images of more than 8 bits: what is black and what is white, from a camera's other images too.

A 16-bit file seldom says how many of its bits the camera uses, nor which value stands for no light. One hot pixel or
one dark cell would mislead, so both come from percentiles, of several images of the same folder.
"""

import contextlib
import functools
import os
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from elcells.data.finding import SUFFIXES, file_of, is_system_name
from elcells.data.tiff import pages_of
from elcells.files import ANY_NAME

DEPTHS = (8, 10, 12, 14, 16, 20, 24, 32)  # bits per pixel of cameras
NEARLY_BLACK = 0.13  # mean pixel in 0..1; darker cells of ELPV are only noise and have neither label (doc/labels.md)
LOWEST, HIGHEST = 0.1, 99.9  # percentiles that hot and cold pixels do not reach
MEASURED_PIXELS = 1_000_000  # of an image, for percentiles
SAMPLES = 64  # images of a folder
SAMPLED_PIXELS = 40_000_000  # of these together, for large images
FEWEST = 6
# A black level has to show itself, because cells without dark parts have none: in the median of ELPV a cell's darkest
# pixel has 0.26 of the brightest one's value. By these rules two of its 44 modules show one that they may not have.
BLACK_SHARE = 0.005  # of white; lower black levels do not matter
BACKGROUND = 0.05  # share of an image's pixels within 2 % above its darkest one: 3 of 2,624 ELPV cells have more
AGREEING_IMAGES = 4  # whose darkest values agree
AGREEING = 0.005  # of the range, within which they do
HIGH_BLACK = 0.15  # of white; all of at least SEVERAL images are brighter, although
SEVERAL = 8
VARIED = 0.1  # of the range: the distance of the quartiles of their darkest values


@dataclass(frozen=True)
class Range:
    """Stored values of an image: its darkest and brightest ones (percentiles), their mean, and its background.

    background: share of pixels within 2 % of the range above the darkest.
    """

    low: float
    high: float
    mean: float
    background: float


@dataclass(frozen=True)
class Camera:
    """What a folder's images of one kind tell about their camera. black: level without light, 0 where none shows.
    white: brightest value. mean: of the brightest image, above black."""

    black: float
    white: float
    mean: float


def range_of(gray):
    """The Range of stored values (H, W)."""
    step = max(1, round((gray.size / MEASURED_PIXELS) ** 0.5))
    values = np.asarray(gray[::step, ::step], np.float64)
    low, high = np.percentile(values, [LOWEST, HIGHEST])
    background = float((values <= low + 0.02 * (high - low)).mean())
    return Range(float(low), float(high), float(values.mean()), background)


def depth_of(brightest):
    """The least of DEPTHS that holds the brightest value. Eight bits of which the upper half is empty are unlikely."""
    if brightest < 128:
        return DEPTHS[1]
    return next(depth for depth in DEPTHS if brightest < 2**depth)


def camera_of(ranges):
    """The Camera behind several images' Ranges."""
    white = max(r.high for r in ranges)
    lows = np.sort([r.low for r in ranges])
    black = float(lows[0]) if shows_black(ranges, lows, white) else 0.0
    return Camera(black, white, max(r.mean for r in ranges) - black)


def shows_black(ranges, lows, white):
    """Whether the darkest value of all images is the level without light.

    It is where an image has a dark background, where several images agree on it, or where it is high although images
    differ much. lows: the images' darkest values, sorted.
    """
    black = lows[0]
    extent = white - black
    if black <= BLACK_SHARE * white:
        return False
    if any(r.background > BACKGROUND and r.low - black <= AGREEING * extent for r in ranges):
        return True
    if len(lows) >= AGREEING_IMAGES and lows[AGREEING_IMAGES - 1] - black <= AGREEING * extent:
        return True
    first, third = np.percentile(lows, [25, 75])
    return len(lows) >= SEVERAL and black > HIGH_BLACK * white and third - first > VARIED * extent


# ---------------------------------------------------------------- a folder's images

_sampling = threading.Lock()  # so that threads do not sample one folder at the same time


def camera_of_image(path, stored, read):
    """The Camera that took an image (a StoredImage at `path`), from a sample of its folder, or of its file's pages.

    Images of the same type count, and where several are of the same size, only these. read: function from a path to a
    StoredImage.
    """
    place = place_of(path)
    height, width = stored.pixels.shape[:2]
    count = int(np.clip(SAMPLED_PIXELS // (height * width), FEWEST, SAMPLES))
    with _sampling:
        names = _names_in(place, os.stat(place).st_mtime_ns)[:count]
        samples = [_sample(name, *stamp(name), read) for name in names]
    samples = [sample for sample in samples if sample]
    same_type = [(shape, found) for kind, shape, found in samples if kind == stored.pixels.dtype]
    same_size = [found for shape, found in same_type if shape == stored.pixels.shape]
    ranges = same_size if len(same_size) > 1 else [found for _, found in same_type]
    return camera_of(ranges or [range_of(stored.gray())])


def place_of(path):
    """The folder in which an image lies, or its file where that has several pages."""
    file, _ = file_of(path)
    return str(file) if len(pages_of(file)) > 1 else str(file.parent)


def images_in(place):
    """Names of the images in a folder, or in a TIFF of several pages; none where it can't be read."""
    if os.path.isfile(place):
        return pages_of(place)
    try:
        names = [name for name in os.listdir(place) if Path(name).suffix.lower() in SUFFIXES]
    except OSError:
        return []
    return [os.path.join(place, name) for name in sorted(names) if not is_system_name(name)]


@functools.lru_cache(maxsize=64)
def _names_in(place, modified):
    """`images_in` a place of this time in an order in which a sample hardly changes where images are added."""
    return sorted(images_in(place), key=lambda name: (zlib.crc32(os.fsencode(os.path.basename(name))), name))


def mark_of_folder(path):
    """What changes where the images beside an image become others."""
    place = place_of(path)
    return _mark_of(place, os.stat(place).st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _mark_of(place, modified):
    """`mark_of_folder` of a place of this time."""
    names = _names_in(place, modified)
    return zlib.crc32("\n".join(map(os.path.basename, names)).encode("utf-8", ANY_NAME))


def stamp(name):
    """(size, time) of an image's file; zeros where it can't be read."""
    with contextlib.suppress(OSError):
        status = os.stat(file_of(name)[0])
        return status.st_size, status.st_mtime_ns
    return 0, 0


@functools.lru_cache(maxsize=4096)
def _sample(name, size, modified, read):
    """(type, shape, Range) of a deep image of this size and time; None for others, and for one that can't be read."""
    with contextlib.suppress(Exception):  # a damaged image tells nothing about its camera
        stored = read(name)
        if stored.is_deep:
            return stored.pixels.dtype, stored.pixels.shape, range_of(stored.gray())
    return None


# ---------------------------------------------------------------- an image


def scaled(stored, camera):
    """Gray levels of a deep StoredImage: (float32 (H, W) in 0..255, list of assumptions as str).

    Full scale is what the file says, else the least of DEPTHS that holds the camera's values above its black level.
    Images that leave the upper half of that empty are brightened, because 8 bits would leave them few levels; nearly
    black ones are not.
    """
    values = stored.gray().astype(np.float64)
    notes = []
    if stored.white_is_zero:
        notes.append("are negatives according to their files (white is zero)")
    if values.min() < 0:
        notes.append("have negative pixels, which are taken as black")
        values = values.clip(0)
    own = range_of(values)
    white = max(own.high, camera.white)
    black = camera.black
    if black:
        notes.append(f"have a black level of {black:.0f}, which was subtracted")
    depth = stored.bits
    if depth == 0 or own.high >= 2**depth:  # unknown, or wrong
        depth = depth_of(white - black)
    bits_in_file = 8 * stored.pixels.dtype.itemsize
    if depth < bits_in_file:
        notes.append(f"use {depth} of {bits_in_file} bits")
    full = 2**depth - 1
    levels = (values - black) / full
    brightest = (white - black) / full
    mean = max(own.mean - black, camera.mean) / full
    if brightest < 0.5 and mean >= NEARLY_BLACK:
        levels = levels / brightest
        notes.append("are underexposed and were brightened")
    return (255 * levels.clip(0, 1)).astype(np.float32), notes
