"""What an image looks like that is not a gray cell with bright material: things that the user should be told."""

import numpy as np
from PIL import Image
from scipy import ndimage

from elcells.data.levels import NEARLY_BLACK

LIKE_MODULE = "look like whole modules, not cells: predict.py takes them with --grid COLUMNSxROWS"
MODULE_SIDE = 420  # pixels of the longer side at which modules are told from cells
MODULE_PIECES = 20  # similar pieces that make a module
LINE_WINDOW = 7  # pixels; lines between pieces are narrower
LINE_DEPTH = 0.12  # share of the local brightness by which a line is darker
PIECE_BRIGHTNESS = 0.2  # of the bright pixels' level; darker pixels belong to no piece
PIECE_AREA = 60  # least pixels of a piece
PIECE_FILL = 0.45  # least share of its bounding box that a piece fills
PIECES_SHARE = 0.06  # least share of the image that the similar pieces cover together

COLOURED = "have colours, perhaps a colour map: their brightness may be wrong; save them as gray"
COLOUR = 0.06  # mean distance of the channels, in 0..1; JPEG alone makes 0.01
SATURATED = "are saturated (over 1 % of their pixels at the top value): what is too bright can't be judged"
SATURATED_SHARE = 0.01  # 15 of the 2,624 ELPV cells have more
SATURATED_PIXELS = 10  # fewer say nothing: one pixel of a tiny image is over 1 %
INVERTED = "look inverted (bright lines on dark cells): invert them, else the result means nothing"
# All ELPV cells but one have dark lines that are stronger than their bright ones, most by a factor of eight.
INVERTED_FACTOR = 1.4  # by which bright lines are stronger than dark ones
INVERTED_LINES = 0.08  # least strength of bright lines, in parts of the image's range
LINES_SIDE = 128  # pixels of the longer side at which lines are measured
LINES = 4  # strongest ones


def suspicions(stored, gray):
    """Notes (list of str) about an image: a StoredImage and its gray, uint8 or float32 (H, W) in 0..255."""
    if is_coloured(stored.pixels):
        return [COLOURED]
    if gray.mean() < 255 * NEARLY_BLACK:  # only noise
        return []
    notes = []
    if is_saturated(stored.gray() if stored.is_deep else gray, gray):
        notes.append(SATURATED)
    if looks_inverted(gray):
        notes.append(INVERTED)
    return notes


def is_coloured(pixels):
    """True if integers (H, W, 3) are not gray; gray (H, W) never is."""
    if pixels.ndim == 2:
        return False
    step = max(1, max(pixels.shape) // LINES_SIDE)
    values = pixels[::step, ::step].astype(np.float32)
    distance = np.ptp(values, axis=2).mean()
    return bool(distance > COLOUR * max(float(np.percentile(values, 99)), 1.0))


def is_saturated(values, gray):
    """True if many stored values (H, W) are the same and the brightest ones; gray: the same in 0..255."""
    top = np.quantile(values, 0.999, method="higher")
    at_top = values >= top
    is_large = at_top.mean() > SATURATED_SHARE and at_top.sum() >= SATURATED_PIXELS
    return bool(is_large and gray[at_top].min() > 127)


def looks_inverted(gray):
    """True if the straight lines across an image, uint8 or float32 (H, W), are bright and not dark.

    Busbars, and gaps between cells, are dark in electroluminescence.
    """
    image = Image.fromarray(gray)
    factor = LINES_SIDE / max(image.size)
    small = image.resize([max(8, round(n * factor)) for n in image.size], Image.Resampling.BILINEAR)
    levels = np.asarray(small, np.float32)
    profiles = [line_profile(levels), line_profile(levels.T)]
    extent = max(float(np.ptp(np.percentile(levels, [1, 99]))), 1.0)
    strengths = np.sort(np.concatenate(profiles)) / extent
    dark, bright = -strengths[:LINES].mean(), strengths[-LINES:].mean()
    return bool(bright > INVERTED_LINES and bright > INVERTED_FACTOR * max(dark, 0))


def line_profile(levels):
    """How much brighter each column of an image is, in the median of its rows, than those beside it; without edges."""
    profile = np.median(levels, 0)
    lines = profile - ndimage.median_filter(profile, 9)
    margin = max(3, len(profile) // 25)
    return lines[margin:-margin]


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
