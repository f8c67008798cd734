"""How bad a cell's defects are: where its cracks run and how long they are, and which share of the cell is inactive.

Crack lines come from the network's second output; the inactive region comes from brightness alone. The constants were
chosen on 545 foreign cells with outlines drawn by people (doc/results.md).
"""

import io
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.morphology import skeletonize

from elcells.data.images import is_square

SIDE = 300  # pixels of the cell in which lines and regions are measured

SURE_LINE = 0.5  # probability that a crack's line reaches somewhere
LINE = 0.15  # and has all along
LEAST_LENGTH = 14  # pixels: what is shorter may be a speck
SHORTEST = (LEAST_LENGTH - 1) / SIDE  # length in cell widths of a line of so many pixels
LEAST_PIXELS = 100  # of a cell in its image: in fewer no line can be followed

DARK = 0.5  # an inactive region is darker than this share of what the place would have
GRAY = 0.75  # likewise a part that a crack partly cut off
COARSE = 20  # pixels of the cell from which that is worked out
AROUND = 7  # of these: the surroundings of a place
LIT = 80  # percentile of the surroundings that an active place would have
LEAST_LIT = 0.85  # of the cell's 70th percentile: it would have at least as much
LEAST_OF_BRIGHTEST = 0.7  # of its 97th percentile likewise, where most of the cell is dark
SOFT = 1.0  # standard deviation of the blur, in pixels
GAP = 16  # pixels from a cell's edge: what is dark no farther, and from end to end, is the gap between cells
BUSBAR = 0.85  # rows whose median is darker than this show a busbar,
BUSBAR_WIDTH = 20  # if there are no more of them side by side
MARGIN = 3  # pixels at the cell's edge that do not count
OPENING = 9  # pixels: what is narrower is a busbar, a finger or a crack
LEAST_AREA = 60  # pixels of an inactive region
LEAST_GRAY = 400  # of a gray part
RIM = 8  # pixels: a part that is mostly nearer to an edge is the gap between cells
CORNER = 36  # pixels along both edges: likewise a chamfered corner
MOSTLY = 0.6
BESIDE = 9  # pixels from a crack to a part that it cut off

SHAPE_SIDE = 150  # pixels of the image that shows lines and region
SHAPE_COLOURS = (0, 0, 0, 230, 30, 30, 40, 110, 255)  # nothing, crack line, inactive region
SHAPE_LINE, SHAPE_REGION = 1, 2  # numbers of these colours
SHAPE_OPACITY = bytes([0, 255, 90])


class Severity(NamedTuple):
    """How bad a cell's defects are.

    crack_length: in cell widths; 0 without the verdict, None where no line can be followed. inactive_area: share of the
    cell in 0..1; 0 without the verdict. crack_mode: "A", "B" or "C", or "" where it is not known. below: names of what
    is too small to be measured, although the verdict is yes; it has the smallest number that can be. shape: image that
    shows lines and region (`shape_image`), or None where there are none.
    """

    crack_length: float | None
    inactive_area: float
    crack_mode: str
    below: tuple
    shape: bytes | None


def severity_of(cell, lines, is_crack, is_inactive, size=(1, 1)):
    """The Severity of a cell with these verdicts.

    cell: uint8 (S, S), as the network gets it. lines: float (h, w), probability that a crack runs there, or None where
    that is not known. size: (height, width) of the cell in its image: what was mirrored to make it square does not
    count.
    """
    if not is_crack and not is_inactive:
        return Severity(0.0, 0.0, "", (), None)
    edges = distances_to_edges(size)
    inside = edges.min(0) >= 0
    nothing = np.zeros((SIDE, SIDE), bool)
    can_be_followed = is_crack and lines is not None
    skeleton = crack_lines(lines) & inside if can_be_followed else nothing
    brightness = relative_brightness(cell) if is_inactive or skeleton.any() else None
    dark = regions(brightness < DARK, edges, LEAST_AREA) if is_inactive else nothing
    gray = nothing
    if skeleton.any():
        is_gray = brightness < GRAY
        is_gray[busbars(brightness)] = False
        gray = regions(is_gray, edges, LEAST_GRAY)
    length = None if is_crack and lines is None else length_of(skeleton) / SIDE
    area = float(dark.sum() / inside.sum())
    below = []
    if can_be_followed and length < SHORTEST:
        below.append("crack_length")
        length = SHORTEST
    if is_inactive and not area:
        below.append("inactive_area")
        area = LEAST_AREA / float(inside.sum())
    shape = shape_image(skeleton, dark) if skeleton.any() or dark.any() else None
    return Severity(length, area, mode_of(skeleton, dark, gray), tuple(below), shape)


@lru_cache(maxsize=16)  # the cells of a module have the same size, or nearly
def distances_to_edges(size):
    """How far each pixel is from the nearer edge along y and along x, int (2, SIDE, SIDE); below 0 outside of the cell.

    size: (height, width) of a cell that was mirrored at its longer edges until it was square.
    """
    distances = []
    if is_square(size):
        size = (1, 1)  # it was stretched
    for pixels in size:
        outside = (SIDE - round(SIDE * pixels / max(size))) // 2
        numbers = np.arange(SIDE)
        distances.append(np.minimum(numbers, numbers[::-1]) - outside)
    return np.stack(np.broadcast_arrays(distances[0][:, None], distances[1]))


# ---------------------------------------------------------------- cracks


def crack_lines(lines):
    """The middle of the crack lines, bool (SIDE, SIDE), one pixel wide; lines: probabilities, float (h, w)."""
    lines = cv2.resize(lines, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    label, count = ndimage.label(lines > LINE, np.ones((3, 3)))
    sure = np.zeros(count + 1, bool)
    sure[label[lines > SURE_LINE]] = True
    sure[0] = False
    skeleton = skeletonize(sure[label])
    long = np.bincount(label[skeleton], minlength=count + 1) >= LEAST_LENGTH
    return skeleton & long[label]


def length_of(skeleton):
    """Length of lines one pixel wide, bool (h, w), in pixels: steps to the side count 1, oblique ones sqrt(2)."""
    straight = (skeleton[1:] & skeleton[:-1]).sum() + (skeleton[:, 1:] & skeleton[:, :-1]).sum()
    oblique = 0
    for turned in (skeleton, skeleton[:, ::-1]):
        step = turned[1:, 1:] & turned[:-1, :-1]
        oblique += (step & ~turned[1:, :-1] & ~turned[:-1, 1:]).sum()  # else the straight steps are counted
    return float(straight + np.sqrt(2) * oblique)


def mode_of(skeleton, dark, gray):
    """The mode of a cell's cracks: "A" without a darker part beside them, "B" with a gray one, "C" with a dark one.

    "" where there is no crack line. skeleton, dark, gray: bool (SIDE, SIDE). The modes are those of Köntges et al.
    2014, "Review of Failures of Photovoltaic Modules" (IEA-PVPS T13-01).
    """
    if not skeleton.any():
        return ""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * BESIDE + 1, 2 * BESIDE + 1))
    beside = cv2.dilate(skeleton.astype(np.uint8), kernel) > 0
    if (beside & dark).any():
        return "C"
    return "B" if (beside & gray).any() else "A"


# ---------------------------------------------------------------- dark parts


def has_dark_region(cell, size):
    """Whether a cell, uint8 (S, S), has a region as dark as an inactive one; size: as in `severity_of`."""
    return bool(regions(relative_brightness(cell) < DARK, distances_to_edges(tuple(size)), LEAST_AREA).any())


def relative_brightness(cell):
    """How bright a cell, uint8 (S, S), is in each place, relative to what the place would have: float (SIDE, SIDE)."""
    cell = cv2.resize(cell, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    coarse = cv2.resize(cell, (COARSE, COARSE), interpolation=cv2.INTER_AREA).astype(np.float32)
    around = ndimage.percentile_filter(coarse, LIT, size=AROUND, mode="reflect")
    middle, brightest = np.percentile(coarse, (70, 97))
    usual = np.maximum(around, max(LEAST_LIT * middle, LEAST_OF_BRIGHTEST * brightest, 1))
    brightness = cv2.GaussianBlur(cell, (0, 0), SOFT) / cv2.resize(usual, (SIDE, SIDE))
    for lines in (brightness, brightness[:, ::-1], brightness.T, brightness.T[:, ::-1]):
        lines[:, : gap_width(lines)] = 1
    return brightness


def gap_width(brightness):
    """How many columns at the left edge are the gap between cells, which is dark from top to bottom."""
    is_dark = np.median(brightness[:, : GAP + 1], axis=0) < DARK
    width = int(np.argmin(is_dark))
    return 0 if is_dark.all() else width  # a dark part of the cell, if it is wider


def busbars(brightness):
    """Which rows show a busbar, bool (SIDE,): narrow runs of rows that are darker over most of the cell's width."""
    label, count = ndimage.label(np.median(brightness, axis=1) < BUSBAR)
    is_narrow = np.bincount(label, minlength=count + 1) <= BUSBAR_WIDTH
    return (label > 0) & is_narrow[label]


def regions(below, edges, least):
    """The regions of at least so many pixels among the pixels that are below, bool (SIDE, SIDE) likewise.

    edges: of `distances_to_edges`. The rim and chamfered corners do not count, nor does what is as narrow as a busbar.
    """
    below = below.astype(np.uint8)
    nearest = edges.min(0)
    below[nearest < MARGIN] = 0
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (OPENING, OPENING))
    below = cv2.morphologyEx(below, cv2.MORPH_OPEN, kernel)
    count, label, stats, _ = cv2.connectedComponentsWithStats(below, connectivity=4)
    area = stats[:, cv2.CC_STAT_AREA]
    kept = area >= least
    is_in_one = label > 0
    for place in (edges.sum(0) < CORNER, nearest < RIM):
        kept &= np.bincount(label[is_in_one & place], minlength=count) < MOSTLY * area
    kept[0] = False
    return kept[label]


# ---------------------------------------------------------------- to be shown


def shape_image(skeleton, dark):
    """Crack lines in red and inactive regions in a transparent blue: the bytes of a PNG, to be laid over the cell."""
    halves = [mask[::2, ::2] | mask[1::2, ::2] | mask[::2, 1::2] | mask[1::2, 1::2] for mask in (skeleton, dark)]
    return shape_of_numbers(np.where(halves[0], SHAPE_LINE, SHAPE_REGION * halves[1]).astype(np.uint8))


def shape_of_numbers(numbers):
    """The bytes of a PNG; numbers: of SHAPE_COLOURS, uint8 (SHAPE_SIDE, SHAPE_SIDE)."""
    image = Image.fromarray(numbers, "P")
    image.putpalette(SHAPE_COLOURS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=SHAPE_OPACITY, bits=2)
    return buffer.getvalue()


def shape_numbers(shape):
    """The numbers of SHAPE_COLOURS, uint8 (SHAPE_SIDE, SHAPE_SIDE), of the bytes that `shape_image` gave."""
    return np.array(Image.open(io.BytesIO(shape)))


def part_of_shape(shape, lines, region):
    """The same image with its lines or its region alone, as these are true; None where it would show nothing."""
    numbers = shape_numbers(shape)
    kept = numbers * (lines * (numbers == SHAPE_LINE) | region * (numbers == SHAPE_REGION))
    if not kept.any():
        return None
    return shape if (kept == numbers).all() else shape_of_numbers(kept)
