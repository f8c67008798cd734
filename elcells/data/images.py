"""Image files as gray arrays of one size: opening and decoding them."""

import os
import warnings

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

from elcells.data.finding import file_of
from elcells.files import InputError

IMAGE_SIZE = 300  # side in pixels
THREADS = max(2, os.cpu_count() or 2)  # for decoding and encoding images; zlib runs outside Python's lock
NEARLY_BLACK = 0.13  # mean pixel in 0..1; darker cells of ELPV are only noise and have neither label (doc/labels.md)
SQUARE = 1.05  # up to this ratio of its sides an image is stretched to a square

MAX_PIXELS = 100_000_000  # larger images are refused before they are decoded
Image.MAX_IMAGE_PIXELS = None  # switches off Pillow's own limit, which differs
DEPTHS = (10, 12, 14, 16, 20, 24, 32)  # bits per pixel of cameras
BITS_PER_SAMPLE, PHOTOMETRIC, MAX_SAMPLE_VALUE = 258, 262, 281  # tags of TIFF

LIKE_MODULE = "look like whole modules, not cells: predict.py takes them with --grid COLUMNSxROWS"
CELL_SIDE = 600  # square images of at most so many pixels a side are never taken for modules
MODULE_SIDE = 420  # pixels of the longer side at which modules are told from cells
MODULE_PIECES = 20  # similar pieces that make a module
LINE_WINDOW = 7  # pixels; lines between pieces are narrower
LINE_DEPTH = 0.12  # share of the local brightness by which a line is darker
PIECE_BRIGHTNESS = 0.2  # of the bright pixels' level; darker pixels belong to no piece
PIECE_AREA = 60  # least pixels of a piece
PIECE_FILL = 0.45  # least share of its bounding box that a piece fills
PIECES_SHARE = 0.06  # least share of the image that the similar pieces cover together


def open_image(path):
    """Open an image file, or a page of one (`pages_of`), as an upright, decoded PIL image in its own mode.

    What a TIFF says about its pixels is added to the image's info: "stored" and "bits", the stored and the used bits
    per sample (0: unknown), and "white_is_zero".
    Raises InputError for a file that is missing, damaged, no image, or larger than MAX_PIXELS.
    """
    file, page = file_of(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about metadata that it does not understand
            image = Image.open(file)
            image.seek(page)
            if image.width * image.height > MAX_PIXELS:
                raise InputError(
                    f"{path}: {image.width}x{image.height} pixels, more than the {MAX_PIXELS // 10**6} million "
                    "allowed; cut it into cells first"
                )
            image.load()
            _note_tiff_tags(image)
            return ImageOps.exif_transpose(image)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # Pillow's decoders raise many kinds for a damaged file
        raise InputError(f"{path}: can't be read as an image ({error})") from None


def _note_tiff_tags(image):
    """Add to an image's info what a TIFF says about its pixels (see open_image)."""
    tags = getattr(image, "tag_v2", {})
    stored = tags.get(BITS_PER_SAMPLE, (0,))[0]
    used = int(np.max(tags.get(MAX_SAMPLE_VALUE, (0,)))).bit_length()
    if used == 0 and stored % 8:
        used = stored
    image.info["stored"] = stored
    image.info["bits"] = used
    image.info["white_is_zero"] = tags.get(PHOTOMETRIC) == 0


def deep_levels(image):
    """Gray levels of a PIL image of more than 8 bits: (float32 (H, W) in 0..255, list of assumptions as str).

    Full scale is what the file says, else the least of DEPTHS that holds all pixels. An image that leaves the upper
    half of its scale empty is brightened, because 8 bits would leave it few levels; a nearly black one is not.
    """
    pixels = np.asarray(image).astype(np.float64)
    notes = []
    if pixels.min() < 0:
        notes.append("have negative pixels, which are taken as black")
        pixels = pixels.clip(0)
    depth = image.info.get("bits", 0)
    if depth == 0 or pixels.max() >= 2**depth:  # unknown, or wrong
        depth = next(d for d in DEPTHS if pixels.max() < 2**d)
    stored = image.info.get("stored") or (16 if image.mode.startswith("I;16") else 32)
    if depth < stored:
        notes.append(f"use {depth} of {stored} bits")
    levels = pixels / (2**depth - 1)
    if image.info.get("white_is_zero"):
        levels = 1 - levels
        notes.append("are negatives according to their files (white is zero)")
    brightest = float(np.quantile(levels, 0.999))  # hot pixels aside
    if brightest < 0.5 and levels.mean() >= NEARLY_BLACK:
        levels = levels / brightest
        notes.append("are underexposed and were brightened")
    return (255 * levels.clip(0, 1)).astype(np.float32), notes


def as_gray(path):
    """An image as a gray PIL image in its own size, and what was assumed about it (list of str).

    8-bit gray, palette, RGB, RGBA and CMYK become mode L (ITU-R 601 luma), deeper ones mode F in 0..255
    (`deep_levels`). Raises InputError as open_image does, and for floating-point pixels.
    """
    image = open_image(path)
    if image.mode == "F":
        raise InputError(f"{path}: floating-point pixels have no known scale; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        levels, notes = deep_levels(image)
        return Image.fromarray(levels), notes
    return image.convert("L"), []


def examine(path, size=IMAGE_SIZE):
    """Read an image as gray, 8 bit, size x size, and tell what was assumed about it.

    An image that is not square is mirrored at its longer edges until it is, so that nothing is stretched. Other sizes
    are resized with antialiasing (Pillow, bilinear).
    Returns (uint8 (size, size), list of str). Raises InputError as `as_gray` does.
    """
    gray, notes = as_gray(path)
    may_be_module = not _is_square(gray) or min(gray.size) > CELL_SIDE
    if may_be_module and looks_like_module(gray):
        notes.append(LIKE_MODULE)
    if not _is_square(gray):
        notes.append("are not square and were mirrored to a square")
    return to_square(gray, size), notes


def read_image(path, size=IMAGE_SIZE):
    """The pixels of `examine`: uint8 (size, size)."""
    return examine(path, size)[0]


def to_square(gray, size=IMAGE_SIZE):
    """A gray PIL image (mode L or F) as uint8 (size, size), mirrored at its longer edges unless it is square."""
    if not _is_square(gray):
        missing = abs(gray.width - gray.height)
        around = (missing // 2, missing - missing // 2)
        padding = [(0, 0), around] if gray.width < gray.height else [around, (0, 0)]
        gray = Image.fromarray(np.pad(np.asarray(gray), padding, "symmetric"))
    if gray.size != (size, size):
        gray = gray.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.array(gray)
    if pixels.dtype == np.uint8:
        return pixels
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _is_square(gray):
    return max(gray.size) <= SQUARE * min(gray.size)


def looks_like_module(gray):
    """True if a gray PIL image shows many similar pieces between dark lines, as modules do and cells do not.

    Strips between busbars count as pieces too: a module has three or more per cell, a cell a handful of any size.
    """
    factor = MODULE_SIDE / max(gray.size)
    small = gray.convert("L").resize([max(1, round(n * factor)) for n in gray.size], Image.Resampling.BILINEAR)
    levels = np.asarray(small, np.float32)
    without_lines = ndimage.grey_closing(levels, (LINE_WINDOW, LINE_WINDOW))
    least_level = PIECE_BRIGHTNESS * np.percentile(levels, 95)
    is_line = without_lines - levels > LINE_DEPTH * np.maximum(without_lines, least_level)
    is_piece = ndimage.binary_opening(~is_line & (levels > least_level), np.ones((3, 3)))
    labels, _ = ndimage.label(is_piece)
    areas = np.bincount(labels.ravel())[1:]
    boxes = np.array([(y.stop - y.start) * (x.stop - x.start) for y, x in ndimage.find_objects(labels)])
    areas = areas[(areas > PIECE_AREA) & (areas > PIECE_FILL * boxes)]
    if len(areas) < MODULE_PIECES:
        return False
    similar = areas[np.abs(np.log2(areas / np.median(areas))) < 1]  # half to twice the median
    return len(similar) >= MODULE_PIECES and similar.sum() > PIECES_SHARE * levels.size


def as_lines(notes):
    """Lines such as "40 images use 12 of 16 bits." from a Counter of what `examine` assumed."""
    return [f"{count} {'image' if count == 1 else 'images'} {note}." for note, count in sorted(notes.items())]


def symmetries(images):
    """Yield the eight turned and mirrored versions of images (..., S, S), the first as they are."""
    for quarter in range(4):
        turned = np.rot90(images, quarter, (-2, -1))
        yield turned
        yield turned[..., ::-1]
