"""Image files as gray arrays of one size."""

import contextlib
import os

import numpy as np
from PIL import Image
from PIL.ExifTags import IFD, Base

from elcells.data.finding import file_of, may_be_file
from elcells.data.levels import camera_of_image, scaled
from elcells.data.stored import exif_of, has_deep_pixels, read_stored, size_of_file
from elcells.data.suspicions import LIKE_MODULE, looks_like_module, suspicions
from elcells.data.tiff import has_deep_page, is_tiff, read_page, size_of_page
from elcells.files import InputError, counted, reason

IMAGE_SIZE = 300  # side in pixels
THREADS = max(2, os.cpu_count() or 2)  # for decoding and encoding images; zlib runs outside Python's lock
SQUARE = 1.05  # up to this ratio of its sides an image is stretched to a square
NARROWEST = 10  # ratio of the sides beyond which an image shows no cell
MAX_PIXELS = 100_000_000  # larger images are refused before they are decoded
# Words of notes where they are about one image
SINGULAR = {"are": "is", "were": "was", "have": "has", "look": "looks", "use": "uses", "their": "its", "them": "it"}
FEWEST_PIXELS = 10  # along a side, below which an image shows no cell
FINE_CRACKS = 150  # pixels of a cell; fine cracks are missed with fewer
FEW_PIXELS = f"have under {FINE_CRACKS} pixels a side: fine cracks will be missed"
CELL_SIDE = 600  # square images of at most so many pixels a side are never taken for modules


@contextlib.contextmanager
def read_errors(path):
    """The context in which an image is read: whatever is wrong with it becomes an InputError that names it."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # decoders raise many kinds for a damaged file
        raise InputError(f"{path}: can't be read as an image ({reason(error)})") from None


def open_image(path):
    """The StoredImage of a file, or of a page of one (`pages_of`).

    Raises InputError for a file that is missing, damaged, no image, or larger than MAX_PIXELS, and for pixels whose
    gray is not known (floating point, Lab).
    """
    file, page = file_of(path)

    def check_size(width, height):
        if width * height > MAX_PIXELS:
            raise InputError(
                f"{path}: {width}x{height} pixels, more than the {MAX_PIXELS // 10**6} million allowed; make it smaller"
            )

    with read_errors(path):
        if page is not None and not is_tiff(file):
            raise InputError(f"{path}: only TIFF files have pages; give {file}")
        if not may_be_file(file):
            raise InputError(f"{path}: is no file that can be read as an image")
        if is_tiff(file):
            return read_page(file, page, check_size)
        return read_stored(file, check_size)


def is_deep(path):
    """Whether an image has not 8 bits a sample, according to its file's header."""
    file, page = file_of(path)
    return has_deep_page(file, page) if is_tiff(file) else has_deep_pixels(file)


def size_of(path):
    """(width, height) in pixels of an image, upright, without decoding it; (0, 0) where it can't be read."""
    try:
        file, page = file_of(path)
        return size_of_page(file, page) if is_tiff(file) else size_of_file(file)
    except Exception:  # who reads the image is told
        return 0, 0


def camera_name(path):
    """Make, model and focal length of the camera that took an image, from its EXIF data; "" where it has none."""
    try:
        with Image.open(file_of(path)[0]) as image:
            exif = exif_of(image)
            parts = [exif.get(Base.Make), exif.get(Base.Model), exif.get_ifd(IFD.Exif).get(Base.FocalLength)]
    except Exception:  # who reads the image is told
        return ""
    if not parts[1]:
        return ""
    texts = [str(part).strip("\0 ") for part in parts if part]
    return " ".join(text for text in texts if text != "nan")  # a focal length of 0/0


def image_to_save(path):
    """An image as an upright PIL image of its own mode and depth; raises InputError where Pillow has none for it."""
    with read_errors(path):
        return open_image(path).image()


def as_gray(path):
    """An image as a gray PIL image in its own size, and what was assumed about it (list of str).

    8-bit images become mode L (ITU-R 601 luma), deeper ones mode F in 0..255 (`levels.scaled`); transparent parts
    become black. Raises InputError as open_image does.
    """
    with read_errors(path):
        stored = open_image(path)
        notes = []
        if stored.is_deep:
            levels, notes = scaled(stored, camera_of_image(path, stored, open_image))
        else:
            levels = stored.gray()
        if stored.has_transparency:
            notes.append("have transparent parts, which are taken as black")
        notes += suspicions(stored, levels)
        return Image.fromarray(levels), notes


def examine(path, size=IMAGE_SIZE):
    """Read an image as gray, 8 bit, size x size, and tell what was assumed about it.

    An image that is not square is mirrored at its longer edges until it is, so that nothing is stretched. Other sizes
    are resized as in `to_square`.
    Returns (uint8 (size, size), list of str, its (height, width) as it was). Raises InputError as `as_gray` does,
    and for an image of too few pixels or a very narrow one.
    """
    gray, notes = as_gray(path)
    if fault := fault_of_size(gray.size):
        raise InputError(f"{path}: {fault}")
    with read_errors(path):
        may_be_module = not is_square(gray.size) or min(gray.size) > CELL_SIDE
        if may_be_module and looks_like_module(gray):
            notes.append(LIKE_MODULE)
        if square_side(gray.size) < FINE_CRACKS:
            notes.append(FEW_PIXELS)
        if not is_square(gray.size):
            notes.append("are not square and were mirrored to a square")
        return to_square(gray, size), notes, gray.size[::-1]


def read_image(path, size=IMAGE_SIZE):
    """The pixels of `examine`: uint8 (size, size)."""
    return examine(path, size)[0]


def to_square(gray, size=IMAGE_SIZE):
    """A gray PIL image (mode L or F) as uint8 (size, size), mirrored at its longer edges unless it is square.

    It is resized by Pillow: made smaller with antialiasing (bilinear), enlarged bicubic, which keeps thin cracks sharp.
    """
    if not is_square(gray.size):
        missing = abs(gray.width - gray.height)
        around = (missing // 2, missing - missing // 2)
        padding = [(0, 0), around] if gray.width < gray.height else [around, (0, 0)]
        gray = Image.fromarray(np.pad(np.asarray(gray), padding, "symmetric"))
    if gray.size != (size, size):
        enlarged = gray.width < size
        gray = gray.resize((size, size), Image.Resampling.BICUBIC if enlarged else Image.Resampling.BILINEAR)
    pixels = np.array(gray)
    if pixels.dtype == np.uint8:
        return pixels
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def fault_of_size(size):
    """Why an image of this (width, height) can't show a cell, or ""."""
    width, height = size
    if max(size) > NARROWEST * min(size):
        return f"{width}x{height} pixels are too narrow for a cell"
    return f"{width}x{height} pixels are too few for a cell" if min(size) < FEWEST_PIXELS else ""


def is_square(size):
    """Whether an image of this size is stretched to a square; any other is mirrored until it is one."""
    return max(size) <= SQUARE * min(size)


def square_side(size, shorter_side=None):
    """Pixels along the side of the square that a cell of this (height, width) becomes: a half cell is mirrored.

    shorter_side: of a cell that was stretched to a square, as it was.
    """
    return shorter_side or min(size) if is_square(size) else max(size)


def as_lines(notes):
    """Lines such as "40 images use 12 of 16 bits." from a Counter of what `examine` assumed."""
    lines = []
    for note, count in sorted(notes.items()):
        if count == 1:
            note = " ".join(SINGULAR.get(word, word) for word in note.split(" "))
        lines.append(f"{counted(count, 'image')} {note}.")
    return lines


def symmetries(images):
    """Yield the eight turned and mirrored versions of images (..., S, S), the first as they are."""
    for quarter in range(4):
        turned = np.rot90(images, quarter, (-2, -1))
        yield turned
        yield turned[..., ::-1]
