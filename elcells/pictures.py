"""Picture files as gray arrays of one size: opening, decoding, caching; and the constants of the input."""

import contextlib
import hashlib
import os
import unicodedata
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from elcells.files import InputError, atomic_path

CLASSES = ("crack", "inactive")
MEAN, STD = 0.597, 0.161  # of the cells' pixels in 0..1
BRIGHTNESS = 0.638  # of a cell (`model.normalise_brightness`), the mean of ELPV's: the pixels' mean stays as it is
IMAGE_SIZE = 300  # side in pixels
SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".pgm"}
MAX_PIXELS = 100_000_000  # a picture that claims more is refused before it is decoded
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit, of another size and with another message
THREADS = max(2, os.cpu_count() or 2)  # for decoding and encoding pictures; zlib runs outside Python's lock


def as_stored(path):
    """A path as the file system has it, where that is in another Unicode form (Macs write u and two dots, not ü)."""
    if not path.exists():
        for form in ("NFC", "NFD"):
            other = path.with_name(unicodedata.normalize(form, path.name))
            if other.exists():
                return other
    return path


def open_picture(path):
    """Open a picture file as an upright, decoded PIL image of its own mode.

    Raises InputError for a file that is missing, no picture, damaged, or larger than MAX_PIXELS.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about what it could make nothing of
            image = Image.open(as_stored(Path(path)))
            if image.width * image.height > MAX_PIXELS:
                raise InputError(
                    f"{path}: {image.width}x{image.height} pixels, more than the {MAX_PIXELS // 10**6} million "
                    "allowed; cut it into cells first"
                )
            image.load()
            return ImageOps.exif_transpose(image)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # Pillow's decoders raise many kinds for a damaged file
        raise InputError(f"{path}: can't be read as a picture ({error})") from None


def read_picture(path, size=IMAGE_SIZE):
    """Read a picture as gray, 8 bit, size x size.

    8- and 16-bit gray (full scale), palette, RGB, RGBA and CMYK are converted to gray (ITU-R 601 luma); other sizes
    are resized with antialiasing (Pillow, bilinear).
    Returns uint8 (size, size). Raises InputError as open_picture does.
    """
    image = open_picture(path)
    if image.mode.startswith("I"):
        gray = Image.fromarray(np.asarray(image).astype(np.float32) / 257)
    elif image.mode == "F":
        raise InputError(f"{path}: floating-point pixels have no known scale; save it with 8 or 16 bits")
    else:
        gray = image.convert("L")
    if gray.size != (size, size):
        gray = gray.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.array(gray)
    return pixels if pixels.dtype == np.uint8 else np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def load_pictures(table, size=IMAGE_SIZE):
    """All pictures of a table as one array, decoded once and cached on disk beside the first picture.

    The cache is a .npy file that is mapped, not read; its name carries a hash of the pictures' paths and one of their
    sizes and times, so a changed table or picture makes a new one (the outdated one is removed).
    Returns (pictures, index): uint8 (P, 1, size, size), read-only, and int (N,), the picture of each row.
    Raises InputError for the first picture that can't be read.
    """
    paths, index = np.unique([str(p) for p in table["path"]], return_inverse=True)
    try:
        stats = [os.stat(p) for p in paths]
    except OSError as error:
        raise InputError(f"{error.filename}: can't be read ({error.strerror})") from None

    def digest(things):
        return hashlib.sha256(repr(things).encode()).hexdigest()[:16]

    folder = Path(paths[0]).parent
    names = digest((size, [os.path.relpath(p, folder) for p in paths]))
    stamp = digest([(s.st_size, s.st_mtime_ns) for s in stats])
    cache = folder / f".cache_{names}_{stamp}.npy"
    with contextlib.suppress(OSError, ValueError):
        pictures = np.load(cache, mmap_mode="r")
        if pictures.shape == (len(paths), 1, size, size):
            return pictures, index

    def decode_into(array):
        with ThreadPoolExecutor(THREADS) as pool:
            pixels = pool.map(lambda p: read_picture(p, size), paths)
            try:
                for i, p in enumerate(tqdm(pixels, "decoding", len(paths), unit="picture", leave=False)):
                    array[i, 0] = p
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    shape = (len(paths), 1, size, size)
    try:
        with atomic_path(cache) as temporary:
            array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            decode_into(array)
            array.flush()
    except OSError:  # a read-only or full disk costs the cache, not the run
        array = np.empty(shape, np.uint8)
        decode_into(array)
        return array, index
    for outdated in folder.glob(f".cache_{names}_*.npy"):
        if outdated != cache:
            with contextlib.suppress(OSError):
                outdated.unlink()
    return np.load(cache, mmap_mode="r"), index
