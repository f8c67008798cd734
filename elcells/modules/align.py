"""Turn the image of a single cell upright and crop it tightly, where it shows the cell's border.

A square is fitted to where the light ends on its four sides; what lies outside the image is unknown, not dark. Where no
border shows, as in ELPV's own images, the image is left as it is. Distances are in units of the image's side.
"""

import itertools

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.optimize import least_squares

PIECES = 10  # of each side of the square
SAMPLE_STEP = 0.004  # between two samples
TURNS = range(-12, 13, 3)  # degrees, of the squares that are tried first
SIZES = (0.8, 0.9, 1.0)  # of the squares that are tried first
FIRST_WINDOW = (0.08, 0.02)  # as below
FIRST_SHIFT = 0.07  # the most by which the light may end elsewhere than a first square
WINDOWS = ((0.09, 0.024), (0.06, 0.02), (0.04, 0.016), (0.03, 0.012), (0.02, 0.012))  # search; flank of an edge
LEAST_FIT_SCALE = 0.006  # of the fit: pieces that are farther off count less and less
PRIOR = (0.003, 0.3, 0.02, 0.02)  # how much turn, size and shifts are held back

LIT = 0.1  # of the brightest pixels: darker ones do not count for the usual brightness
BLUR = 0.8  # pixels
DARK_BEHIND = 0.4  # of the light before an edge: the most behind it
CLEAR_FALL = 0.5  # of the image's usual brightness: such a fall is a clear edge
SEEN = 0.5  # how clear a piece must be to count
SEEN_OF_A_SIDE = 0.3  # of its pieces: one side at least must show so many, else the cell stays as it is
SEEN_IN_ALL = 4  # pieces that must be seen


def sides_of_square(square, size):
    """Corners, vectors to the next corner and, as long, normals outwards: three float (4, 2), clockwise, in pixels."""
    turn, log_size, right, down = square  # radians, logarithm of the share of the image's size, shift
    cos = np.cos(turn)
    sin = np.sin(turn)
    turned = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2 @ np.array([[cos, sin], [-sin, cos]])
    corners = (turned * np.exp(log_size) + np.array([right, down])) * size + (size - 1) / 2
    along = np.roll(corners, -1, axis=0) - corners
    return corners, along, np.stack([along[:, 1], -along[:, 0]], 1)


def light_ends(image, square, window, flank):
    """For each piece of the four sides where the light ends, outwards, and how clearly: two float (4, PIECES)."""
    size = np.array(image.shape[::-1], float)
    part = (np.arange(PIECES)[:, None] + np.linspace(0.1, 0.9, 5)) / PIECES
    beside = round(flank / SAMPLE_STEP)  # samples on each side of an edge whose means are compared
    reach = round(window / SAMPLE_STEP) + beside
    offset = np.arange(-reach, reach + 1) * SAMPLE_STEP
    ends = []
    for corner, along, normal in zip(*sides_of_square(square, size)):
        points = corner + part[..., None, None] * along + offset[:, None] * normal
        inside = ((points > -0.5) & (points < size - 0.5)).all(-1)
        gray = ndimage.map_coordinates(image, [points[..., 1], points[..., 0]], order=1, mode="nearest")
        median = np.ma.median(np.ma.array(gray, mask=~inside), 1).filled(np.nan)
        profiles = np.where(inside.sum(1) >= 3, median, np.nan)
        ends.append(light_end(profiles, offset, beside))
    shift, clear = zip(*ends)
    return np.array(shift), np.array(clear)


def light_end(profiles, offset, beside):
    """Offset at which the light ends along profiles (N, S), NaN outside the image, and how clearly: two float (N,)."""
    around = np.lib.stride_tricks.sliding_window_view(profiles, 2 * beside + 1, axis=1)
    before = around[..., :beside].mean(-1)
    behind = around[..., beside + 1 :].mean(-1)
    offset = offset[beside:-beside]
    number = np.arange(len(offset))
    known = np.isfinite(before + behind)
    fall = np.where(known & (behind < DARK_BEHIND * before), before - behind, 0) / CLEAR_FALL
    steepest = fall.argmax(1)
    weight = np.where(np.abs(number - steepest[:, None]) <= 2, fall, 0) ** 2
    shift = (weight * offset).sum(1) / np.maximum(weight.sum(1), 1e-9)
    last_known = np.where(known, number, -1).max(1)
    cut_off = (last_known < len(offset) - 1) & (steepest >= last_known - 2)  # still falling where the image ends
    return shift, np.where(cut_off, 0, np.clip(fall.max(1), 0, 1))


def residuals(square, seen, clear, size):
    """How far the sides of a square are from where they are seen, and the square from the whole image: float (N,)."""
    corners, along, normal = sides_of_square(square, size)
    outwards = normal / np.linalg.norm(along, axis=1, keepdims=True)
    off = ((seen - corners[:, None]) * outwards[:, None]).sum(-1) / size.mean() * clear
    return np.concatenate([off.ravel(), square * PRIOR])


def first_square(image):
    """The square, of a few turns and sizes, on whose sides the light ends most clearly."""
    squares = [(np.deg2rad(degrees), np.log(size), 0, 0) for degrees, size in itertools.product(TURNS, SIZES)]
    ends = [light_ends(image, square, *FIRST_WINDOW) for square in squares]
    seen = [(clear * (np.abs(shift) < FIRST_SHIFT)).sum() for shift, clear in ends]
    return squares[np.argmax(seen)]


def find_cell(gray):
    """The square around a cell in an image, float32 (H, W), and how clear its sides are, float (4, PIECES)."""
    size = np.array(gray.shape[::-1], float)
    lit = gray[gray > LIT * np.percentile(gray, 99)]
    usual = float(np.median(lit)) if lit.size else 0.0
    image = ndimage.gaussian_filter(gray / max(usual, 1.0), BLUR)
    square = first_square(image)
    middle = ((np.arange(PIECES) + 0.5) / PIECES)[:, None]  # of the pieces
    for window, flank in WINDOWS:
        shift, clear = light_ends(image, square, window, flank)
        corners, along, normal = sides_of_square(square, size)
        seen = corners[:, None] + middle * along[:, None] + normal[:, None] * shift[..., None]
        scale = max(LEAST_FIT_SCALE, window / 8)
        fitted = least_squares(residuals, square, loss="cauchy", f_scale=scale, max_nfev=30, args=(seen, clear, size))
        square = fitted.x
    _, clear = light_ends(image, square, *WINDOWS[-1])
    return square, clear


def align_cell(pixels):
    """A cell's image, uint8 (S, S), upright and filling it, and whether it was changed (bool).

    Missing parts are filled with the edge's pixels.
    """
    square, clear = find_cell(pixels.astype(np.float32))
    seen = clear > SEEN
    if seen.mean(1).max() < SEEN_OF_A_SIDE or clear[seen].sum() < SEEN_IN_ALL:
        return pixels, False
    side = len(pixels)
    corners, _, _ = sides_of_square(square, np.array([side, side], float))
    upper_left, upper_right, _, lower_left = corners + 0.5
    right_x, right_y = (upper_right - upper_left) / side
    down_x, down_y = (lower_left - upper_left) / side
    margin = side // 2
    x, y = upper_left + margin
    padded = Image.fromarray(np.pad(pixels, margin, "edge"))
    affine = (right_x, down_x, x, right_y, down_y, y)
    return np.asarray(padded.transform((side, side), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)), True
