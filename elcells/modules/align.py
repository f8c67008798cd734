"""Make the image of a single cell upright and tightly cropped, where the cell's border is to be seen in it.

A square is fitted to where light ends on its four sides; what lies outside the image is unknown, not dark. Where no
border shows, as in ELPV's own images, the image is left as it is.
"""

import itertools

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.optimize import least_squares

PIECES, STEP = 10, 0.004  # of each side; between samples, in sides
WINDOWS = ((0.09, 0.024), (0.06, 0.02), (0.04, 0.016), (0.03, 0.012), (0.02, 0.012))  # in sides: search, flanks


def square(v, size):
    """Corners (4, 2) of a square turned by v[0] (radians), exp(v[1]) times the image's size, moved by v[2:] sizes."""
    c, s = np.cos(v[0]), np.sin(v[0])
    unit = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
    return (unit @ np.array([[c, s], [-s, c]]) * np.exp(v[1]) + v[2:]) * size + (size - 1) / 2


def light_ends(image, v, window, flank):
    """For each piece of the four sides, float (4, PIECES): where light ends, in sides outwards, and how clearly."""
    size = np.array(image.shape[::-1], float)
    corners = square(v, size)
    t = (np.arange(PIECES)[:, None] + np.linspace(0.1, 0.9, 5)) / PIECES
    n = round(flank / STEP)
    s = np.arange(-round(window / STEP) - n, round(window / STEP) + n + 1) * STEP
    shift, clear = np.zeros((4, PIECES)), np.zeros((4, PIECES))
    for k, (a, b) in enumerate(zip(corners, np.roll(corners, -1, axis=0))):
        along = b - a
        xy = a + t[..., None, None] * along + s[:, None] * np.array([along[1], -along[0]])
        inside = ((xy > -0.5) & (xy < size - 0.5)).all(-1)
        p = ndimage.map_coordinates(image, [xy[..., 1], xy[..., 0]], order=1, mode="nearest")
        middle = np.ma.median(np.ma.array(p, mask=~inside), 1).filled(np.nan)
        p = np.where(inside.sum(1) >= 3, middle, np.nan)
        rows = np.lib.stride_tricks.sliding_window_view(p, 2 * n + 1, axis=1)
        before, behind = rows[..., :n].mean(-1), rows[..., n + 1 :].mean(-1)
        known = np.isfinite(before + behind)
        r = np.where(known & (behind < 0.4 * before), before - behind, 0) / 0.5
        at, best = s[n:-n], r.argmax(1)
        w = np.where(np.abs(np.arange(len(at)) - best[:, None]) <= 2, r, 0) ** 2
        shift[k] = (w * at).sum(1) / np.maximum(w.sum(1), 1e-9)
        last = np.where(known, np.arange(len(at)), -1).max(1)
        cut_off = (last < len(at) - 1) & (best >= last - 2)  # still falling where the image ends
        clear[k] = np.where(cut_off, 0, np.clip(r.max(1), 0, 1))
    return shift, clear


def find_cell(gray):
    """Parameters of the square around a cell (`square`), and how clear its sides are, float (4, PIECES)."""
    size = np.array(gray.shape[::-1], float)
    lit = gray[gray > 0.1 * np.percentile(gray, 99)]
    image = ndimage.gaussian_filter(gray / max(float(np.median(lit)) if lit.size else 0.0, 1.0), 0.8)
    best, v = -1.0, np.zeros(4)
    for degrees, share in itertools.product(range(-12, 13, 3), (0.8, 0.9, 1.0)):
        start = np.array([np.deg2rad(degrees), np.log(share), 0, 0])
        shift, clear = light_ends(image, start, 0.08, 0.02)
        got = (clear * (np.abs(shift) < 0.07)).sum()
        if got > best:
            best, v = got, start
    t = ((np.arange(PIECES) + 0.5) / PIECES)[:, None]
    for window, flank in WINDOWS:
        shift, clear = light_ends(image, v, window, flank)
        corners = square(v, size)
        along = np.roll(corners, -1, axis=0) - corners
        normal = np.stack([along[:, 1], -along[:, 0]], 1)
        seen = corners[:, None] + t * along[:, None] + normal[:, None] * shift[..., None]

        def miss(w, seen=seen, clear=clear):
            new = square(w, size)
            side = np.roll(new, -1, axis=0) - new
            outwards = np.stack([side[:, 1], -side[:, 0]], 1) / np.linalg.norm(side, axis=1, keepdims=True)
            off = ((seen - new[:, None]) * outwards[:, None]).sum(-1) / size.mean() * clear
            return np.concatenate([off.ravel(), w * (0.003, 0.3, 0.02, 0.02)])

        v = least_squares(miss, v, loss="cauchy", f_scale=max(0.006, window / 8), max_nfev=30).x
    return v, light_ends(image, v, 0.02, 0.012)[1]


def align_cell(pixels):
    """A cell's image, uint8 (S, S), upright and filling it, and whether it was moved (bool).

    Missing parts are filled with the edge's pixels.
    """
    v, clear = find_cell(pixels.astype(np.float32))
    if (clear > 0.5).mean(1).max() < 0.3 or clear[clear > 0.5].sum() < 4:
        return pixels, False
    side = len(pixels)
    a, b, _, d = square(v, np.array([side, side], float)) + 0.5
    (ax, ay), (bx, by) = (b - a) / side, (d - a) / side
    margin = side // 2
    padded = Image.fromarray(np.pad(pixels, margin, "edge"))
    affine = (ax, bx, a[0] + margin, ay, by, a[1] + margin)
    return np.asarray(padded.transform((side, side), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)), True
