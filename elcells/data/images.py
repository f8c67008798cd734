"""Image files as gray arrays of one size: finding, opening, decoding; and the constants of the input."""

import glob
import os
import re
import sys
import unicodedata
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

from elcells.files import InputError

IMAGE_SIZE = 300  # side in pixels
SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".pgm"}
MAX_PIXELS = 100_000_000  # an image that claims more is refused before it is decoded
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit, of another size and with another message
NEARLY_BLACK = 0.13  # mean pixel in 0..1; darker cells of ELPV are but noise, and labelled neither (doc/labels.md)
SQUARE = 1.05  # up to this ratio of its sides an image is stretched to a square
DEPTHS = (10, 12, 14, 16, 20, 24, 32)  # bits that cameras have
MODULE_SIDE, MODULE_PIECES = 420, 20  # pixels in which whole modules are told from cells; pieces that make one
MODULE_FROM = 600  # a square image of fewer pixels a side is taken as a cell unseen
LIKE_MODULE = "look like whole modules, not cells: predict.py takes them with --grid COLUMNSxROWS"
BITS_PER_SAMPLE, PHOTOMETRIC, MAX_SAMPLE_VALUE = 258, 262, 281  # tags of TIFF
THREADS = max(2, os.cpu_count() or 2)  # for decoding and encoding images; zlib runs outside Python's lock


def as_stored(path):
    """A path as the file system has it, where that is in another Unicode form (Macs write u and two dots, not ü)."""
    if not path.exists():
        for form in ("NFC", "NFD"):
            other = path.with_name(unicodedata.normalize(form, path.name))
            if other.exists():
                return other
    return path


def file_of(path):
    """The file that holds an image, a Path, and the number of its page in there, from 0: FILE#page=2 is FILE's page 1.

    A file that is called so itself is that file.
    """
    file, found = as_stored(Path(path)), re.fullmatch(r"(.*)#page=(\d+)", str(path), re.DOTALL)
    if found and not file.exists():
        return as_stored(Path(found[1])), int(found[2]) - 1
    return file, 0


def pages_of(path):
    """Names of a file's images, as open_image takes them: the file's, or FILE#page=1 … of a TIFF of several pages.

    Pages of another size than the first (previews) do not count; a file that can't be read is its own one image.
    """
    if Path(path).suffix.lower() not in (".tif", ".tiff"):
        return [path]
    try:
        with Image.open(path) as image:
            sizes = []
            for number in range(getattr(image, "n_frames", 1)):
                image.seek(number)
                sizes.append(image.size)
    except Exception:
        return [path]
    pages = [f"{path}#page={number + 1}" for number, size in enumerate(sizes) if size == sizes[0]]
    return pages if len(pages) > 1 else [path]


def find_images(inputs):
    """Image files of folders (searched recursively, by suffix), globs, files, and "-" (a list on stdin, a line each);
    of TIFFs of several pages each page.

    Yields str paths, each folder's in order of name, each path once. Raises InputError for one that leads nowhere.
    """
    seen = set()
    for given in inputs:
        if given == "-":
            found = (line.rstrip("\r\n") for line in sys.stdin)
        elif os.path.isdir(given):
            found = walk(given)
        elif os.path.exists(given):
            found = [given]
        elif (stored := as_stored(Path(given))).exists():
            found = [str(stored)]
        elif file_of(given)[0].exists():
            found = [given]
        else:
            found = sorted(p for p in glob.glob(given, recursive=True) if Path(p).suffix.lower() in SUFFIXES)
            if not found:
                raise InputError(f"{given}: no such file or folder, and no image matches it")
        for path in (page for file in found if file for page in pages_of(file)):
            if path not in seen:
                seen.add(path)
                yield path


def walk(folder):
    """Image files below a folder, sorted folder by folder; a folder that links lead back to is entered once."""
    entered = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(files):
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                yield os.path.join(root, name)


def open_image(path):
    """Open an image file, or a page of one (`pages_of`), as an upright, decoded PIL image of its own mode.

    What a TIFF says of its pixels stands in the image's info: stored and used bits of a sample (0: unknown) and
    white_is_zero.
    Raises InputError for a file that is missing, no image, damaged, or larger than MAX_PIXELS.
    """
    file, page = file_of(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about what it could make nothing of
            image = Image.open(file)
            image.seek(page)
            if image.width * image.height > MAX_PIXELS:
                raise InputError(
                    f"{path}: {image.width}x{image.height} pixels, more than the {MAX_PIXELS // 10**6} million "
                    "allowed; cut it into cells first"
                )
            image.load()
            tags = getattr(image, "tag_v2", {})
            bits, most = tags.get(BITS_PER_SAMPLE, (0,))[0], tags.get(MAX_SAMPLE_VALUE, (0,))
            image.info["stored"] = bits
            image.info["bits"] = int(np.max(most)).bit_length() or (bits if bits % 8 else 0)
            image.info["white_is_zero"] = tags.get(PHOTOMETRIC) == 0
            return ImageOps.exif_transpose(image)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # Pillow's decoders raise many kinds for a damaged file
        raise InputError(f"{path}: can't be read as an image ({error})") from None


def deep_levels(image):
    """Gray levels of an image of more than 8 bits as float32 (H, W) in 0..255, and what was assumed (list of str).

    Full scale is what the file says, else the least of DEPTHS that holds all pixels. An image that leaves the upper
    half of it empty is brightened, as 8 bits would leave it few levels; a nearly black one is left black.
    """
    pixels, notes = np.asarray(image).astype(np.float64), []
    stored = image.info.get("stored") or (16 if image.mode.startswith("I;16") else 32)
    if pixels.min() < 0:
        notes.append("have negative pixels, which are taken as black")
        pixels = pixels.clip(0)
    depth = image.info.get("bits", 0)
    if not depth or pixels.max() >= 2**depth:  # unknown, or not true
        depth = next(d for d in DEPTHS if pixels.max() < 2**d)
    if depth < stored:
        notes.append(f"use {depth} of {stored} bits")
    levels = pixels / (2**depth - 1)
    if image.info.get("white_is_zero"):
        levels = 1 - levels
        notes.append("are negatives by what the file says (white is zero)")
    bright = float(np.quantile(levels, 0.999))
    if bright < 0.5 and levels.mean() >= NEARLY_BLACK:
        levels = levels / bright
        notes.append("are underexposed and were brightened")
    return (255 * levels.clip(0, 1)).astype(np.float32), notes


def as_gray(path):
    """An image as a gray PIL image in its own size, and what was assumed of it (list of str).

    8-bit gray, palette, RGB, RGBA and CMYK become mode L (ITU-R 601 luma), deeper ones F in 0..255 (`deep_levels`).
    Raises InputError as open_image does.
    """
    image = open_image(path)
    if image.mode == "F":
        raise InputError(f"{path}: floating-point pixels have no known scale; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        levels, notes = deep_levels(image)
        return Image.fromarray(levels), notes
    return image.convert("L"), []


def looks_like_module(gray):
    """True if a gray PIL image shows many alike pieces between dark lines, as a module does and a cell does not.

    Strips between busbars count too: three and more a cell. A cell has a handful, of any size.
    """
    factor = MODULE_SIDE / max(gray.size)
    small = gray.convert("L").resize([max(1, round(n * factor)) for n in gray.size], Image.Resampling.BILINEAR)
    levels = np.asarray(small, np.float32)
    closed, bright = ndimage.grey_closing(levels, (7, 7)), 0.2 * np.percentile(levels, 95)
    lines = closed - levels > 0.12 * np.maximum(closed, bright)
    labels, count = ndimage.label(ndimage.binary_opening(~lines & (levels > bright), np.ones((3, 3))))
    if count < MODULE_PIECES:
        return False
    area = np.bincount(labels.ravel())[1:]
    box = np.array([np.prod([part.stop - part.start for part in where]) for where in ndimage.find_objects(labels)])
    pieces = area[(area > 60) & (area > 0.45 * box)]
    alike = pieces[np.abs(np.log2(pieces / np.median(pieces))) < 1] if len(pieces) else pieces
    return len(alike) >= MODULE_PIECES and alike.sum() > 0.06 * levels.size


def examine(path, size=IMAGE_SIZE):
    """Read an image as gray, 8 bit, size x size, and tell what was assumed.

    An image that is no square is mirrored at its longer edges until it is one, so that nothing is stretched. Other
    sizes are resized with antialiasing (Pillow, bilinear).
    Returns (uint8 (size, size), list of str). Raises InputError as `as_gray` does.
    """
    gray, notes = as_gray(path)
    no_square = max(gray.size) > SQUARE * min(gray.size)
    if (no_square or min(gray.size) > MODULE_FROM) and looks_like_module(gray):
        notes.append(LIKE_MODULE)
    if no_square:
        notes.append("are no squares and were mirrored to one")
    return to_square(gray, size), notes


def to_square(gray, size=IMAGE_SIZE):
    """A gray PIL image, mode L or F, as uint8 (size, size), mirrored at its longer edges where it is no square."""
    if max(gray.size) > SQUARE * min(gray.size):
        short, long = min(gray.size), max(gray.size)
        missing = (long - short) // 2, long - short - (long - short) // 2
        around = [(0, 0), missing] if gray.width == short else [missing, (0, 0)]
        gray = Image.fromarray(np.pad(np.asarray(gray), around, "symmetric"))
    if gray.size != (size, size):
        gray = gray.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.array(gray)
    return pixels if pixels.dtype == np.uint8 else np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def read_image(path, size=IMAGE_SIZE):
    """The pixels of `examine`: uint8 (size, size)."""
    return examine(path, size)[0]


def as_lines(notes):
    """Lines such as "40 images use 12 of 16 bits" of a Counter of what `examine` assumed."""
    return [f"{n} image{'s' * (n != 1)} {note}." for note, n in sorted(notes.items())]


def symmetries(images):
    """Yield the eight turned and mirrored versions of images (..., S, S), the first as they are."""
    for quarter in range(4):
        turned = np.rot90(images, quarter, (-2, -1))
        yield turned
        yield turned[..., ::-1]
