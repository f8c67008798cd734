"""Whether a module was turned from one image to the next: how bright its cells are is like a fingerprint."""

import numpy as np
from scipy.stats import rankdata

CLEAR = 0.6  # correlation, at most 1, of what a turn changes, from which it is clear
SIGMAS = 4.0  # by which it must exceed what chance does with so many cells
FEWEST = 0.5  # share of cells whose brightness must be known
FITS, UNUSUAL = 4, 5.0  # of the plane, without cells that are so many times further off than half of them: dead ones


def turn_of(before, now):
    """By how many degrees clockwise a module was turned from one image to the next: 90, 180, 270; 0 if not clearly.

    before, now: brightness of its cells, float (rows, columns), NaN where it is not known.
    """
    quarters = [k for k in range(4) if turned(before, k).shape == now.shape]
    if not quarters or min(np.isfinite(values).mean() for values in (before, now)) < FEWEST:
        return 0
    before, now = pattern(before), pattern(now)
    best, fit = 0, max(CLEAR, SIGMAS / np.sqrt(now.size / 2))
    for k in quarters:
        if k == 0:
            continue
        other = 0 if 0 in quarters else (k + 2) % 4  # the turn by k quarters is compared with this one
        expected = turned(before, k) - turned(before, other)
        seen = now - turned(now, other - k)
        correlation = (expected * seen).sum() / max(np.linalg.norm(expected) * np.linalg.norm(seen), 1e-9)
        if correlation > fit:
            best, fit = k, correlation
    return 90 * best


def turned(values, quarters):
    """An array turned clockwise by a number of quarters."""
    return np.rot90(values, -quarters)


def pattern(brightness):
    """Ranks of the cells' brightness, without the plane that the camera's place adds: float (rows, columns), mean 0."""
    values = np.where(np.isfinite(brightness), brightness, np.nanmedian(brightness)).ravel()
    y, x = (places.ravel() for places in np.indices(brightness.shape))
    plane = np.stack([np.ones(values.size), x, y], 1)
    usual = np.full(values.size, True)
    for _ in range(FITS):
        rest = values - plane @ np.linalg.lstsq(plane[usual], values[usual], rcond=None)[0]
        usual = np.abs(rest) <= UNUSUAL * np.median(np.abs(rest))
    return (rankdata(rest) - (values.size + 1) / 2).reshape(brightness.shape)
