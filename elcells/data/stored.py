"""An image file's pixels as they are stored, upright, with what the file says about them."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

Image.MAX_IMAGE_PIXELS = None  # switches off Pillow's own limit, which differs from ours
# About metadata that Pillow does not understand. Not by `catch_warnings`, which threads can't use at the same time.
warnings.filterwarnings("ignore", module=r"PIL\.")
ORIENTATION = 0x0112  # tag of Exif
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_DEPTH, PNG_COLOUR = 24, 25  # places of bytes in a PNG file
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601


@dataclass(frozen=True, eq=False)
class StoredImage:
    """Pixels of an image file.

    pixels: integers (H, W), or (H, W, 3) RGB. alpha: (H, W) of the same type, or None. bits: per sample that the file
    says are used, 0 where it says nothing. white_is_zero: the file says that it is a negative.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    bits: int = 0
    white_is_zero: bool = False

    @property
    def is_deep(self):
        """Whether its scale has to be worked out (`levels.scaled`): it is not of 8 unsigned bits."""
        return self.pixels.dtype != np.uint8 or self.bits not in (0, 8)

    @property
    def has_transparency(self):
        """Whether parts are transparent. Some programs write an alpha of zero everywhere, which is none."""
        return self.alpha is not None and self.alpha.max() > 0 and self.alpha.min() < np.iinfo(self.alpha.dtype).max

    def gray(self):
        """Luma of the pixels, white being high and transparent parts black: uint8 (H, W); float64 (H, W) if deep."""
        if self.is_deep:
            values = self.pixels.astype(np.float64)
            gray = values @ LUMA if values.ndim == 3 else values
            if self.white_is_zero:
                gray = 2 ** (self.bits or 8 * self.pixels.dtype.itemsize) - 1 - gray
        else:
            gray = np.asarray(Image.fromarray(self.pixels).convert("L"))
        if self.has_transparency:
            opacity = self.alpha / np.iinfo(self.alpha.dtype).max
            gray = (gray * opacity).round().astype(gray.dtype)
        return gray

    def image(self):
        """The same as a PIL image, to be saved without loss; raises ValueError where Pillow has no such image."""
        depth = self.pixels.dtype.itemsize
        if self.white_is_zero or depth > 2 or (depth == 2 and (self.pixels.ndim == 3 or self.alpha is not None)):
            raise ValueError("it can't be saved as PNG without loss; save it as gray of 8 or 16 bits")
        pixels = self.pixels if self.alpha is None else np.dstack([self.pixels, self.alpha])
        return Image.fromarray(np.ascontiguousarray(pixels))


def upright(pixels, orientation):
    """An array (H, W, ...) as the Exif or TIFF tag Orientation (1 to 8) wants it shown; None stays None."""
    if pixels is None or not 2 <= orientation <= 8:
        return pixels
    if orientation in (2, 5, 7, 4):  # mirrored ones
        pixels = pixels[:, ::-1]
    quarters = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    return np.rot90(pixels, quarters)


def read_stored(path, check_size):
    """The StoredImage of a file that is no TIFF; raises what Pillow raises for a damaged one.

    check_size: function of width and height that raises an error for an image that is too large.
    """
    with Image.open(path) as image:
        check_size(*image.size)
        image.load()
        orientation = image.getexif().get(ORIENTATION, 1)
        if image.format == "PNG" and (deep := deep_png(path)) is not None:
            return split_alpha(upright(deep, orientation))
        if image.mode == "F":
            raise ValueError("floating-point pixels have no known scale; save it with 8 or 16 bits")
        if image.mode.startswith("I"):
            pixels = upright(np.asarray(image), orientation)
            if image.format == "PPM":  # Pillow has scaled it to 16 bits
                return StoredImage(pixels.astype(np.uint16), bits=16)
            return StoredImage(pixels)
        return split_alpha(np.asarray(ImageOps.exif_transpose(as_rgb(image))))


def exif_of(image):
    """EXIF data of an image that Pillow opened, without decoding it: Pillow would look behind a PNG's pixels too."""
    return Image.Exif() if image.format == "PNG" and "exif" not in image.info else image.getexif()


def size_of_file(path):
    """(width, height), upright, of a file that is no TIFF, without decoding it."""
    with Image.open(path) as image:
        turned = exif_of(image).get(ORIENTATION, 1) >= 5
        return image.size[::-1] if turned else image.size


def as_rgb(image):
    """A PIL image of 8 bits a channel in mode L, LA, RGB or RGBA."""
    if image.mode in ("1", "L"):
        return image.convert("L")
    if image.mode in ("LA", "La"):
        return image.convert("LA")
    has_alpha = image.mode in ("RGBA", "RGBa", "PA") or "transparency" in image.info
    return image.convert("RGBA" if has_alpha else "RGB")


def split_alpha(pixels):
    """A StoredImage of an array (H, W) or (H, W, 1 to 4) whose even number of channels ends with alpha."""
    if pixels.ndim == 2:
        return StoredImage(pixels)
    alpha = None
    if pixels.shape[2] in (2, 4):
        alpha = pixels[..., -1]
        pixels = pixels[..., :-1]
    return StoredImage(pixels[..., 0] if pixels.shape[2] == 1 else pixels, alpha)


def has_deep_pixels(path):
    """Whether a file that is no TIFF has more than 8 bits a sample, according to its header."""
    with Image.open(path) as image:
        return image.mode.startswith("I") or png_kind(path)[0] == 16


def png_kind(path):
    """(bits per sample, colour type) of a PNG file; zeros for other files."""
    with open(path, "rb") as file:
        start = file.read(PNG_COLOUR + 1)
    if not start.startswith(PNG_START) or len(start) <= PNG_COLOUR:
        return 0, 0
    return start[PNG_DEPTH], start[PNG_COLOUR]


def deep_png(path):
    """A PNG of 16 bits a channel and several channels as uint16 (H, W, C), which Pillow cuts to 8 bits; else None."""
    bits, colour = png_kind(path)
    if bits != 16 or colour == 0:
        return None
    import imagecodecs  # rarely needed

    return imagecodecs.png_decode(Path(path).read_bytes())
