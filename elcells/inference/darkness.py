"""Which part of a cell is much darker than the rest of it, or than the other cells of its module.

Brightness alone decides this, not the network, which takes a straight dark half for a defect-free cell and sees each
cell at the same brightness. The constants were chosen on ELPV (doc/modules.md has the figures).
"""

import numpy as np

DARK = 0.5  # of the reference
RIM = 0.05  # of a side: soft dark edges and chamfered corners of defect-free cells
LEAST = 0.08  # of a side: what is narrower is a busbar, a crack or a finger
SMOOTHED = 0.06  # of a side, twice as wide as the busbars of old cells
LEVEL = 0.7  # quantile of a line's pixels that is its brightness: most of a dark line is dark
EDGE = 0.6  # brightness inside an edge relative to that outside: light that fades at a module's border has no edge
BLUR = 3  # lines on either side of an edge, in cells of few pixels; else half of LEAST
WHOLE = 0.9  # of the lines: the others are too few to be seen as lit
SAMPLES = 100  # lines and pixels that are looked at: every third one of a cell of 300 pixels
FEWEST = 16  # lines: a smaller cell is dark as a whole, or not at all


def dark_part(cell, usual=None):
    """How much of a cell is dark, and how dark: (share of the cell in 0..1, its brightness relative to the reference).

    cell: uint8 (h, w), as the camera gave it. usual: median brightness of the cells of its module, in 0..255, or None
    for a cell alone. Rows over the full width, or columns over the full height, are dark if they are under DARK of the
    reference: the brightness of the cell's other lines or, in a module, `usual` where that is more. The rim does not
    count, so a part at a cell's edge is found from RIM + LEAST of the side on. The whole cell can be dark, (1.0, …),
    only in a module; of a single cell at least an eighth must be lit. A cell without a dark part has (0.0, None).
    """
    cell = cell[:: max(1, cell.shape[0] // SAMPLES), :: max(1, cell.shape[1] // SAMPLES)]
    has_lines = min(cell.shape) >= FEWEST
    parts = [dark_lines(profile_of(lines), usual) for lines in (cell, cell.T)] if has_lines else []
    # Across a part that is wider than LEVEL all lines look dark: the lines along it tell how wide it is
    share, ratio = max((part for part in parts if part[0] < WHOLE), key=lambda part: part[0], default=(0.0, None))
    if share or not usual:
        return share, ratio
    relative = float(np.median(cell) / usual)
    return (1.0, relative) if relative < DARK else (0.0, None)


def profile_of(lines):
    """Brightness of lines, uint8 (N, M), without the rim: float (n,). Busbars, cracks and fingers leave no trace."""
    rims = [round(RIM * length) for length in lines.shape]
    inner = lines[rims[0] : len(lines) - rims[0], rims[1] : lines.shape[1] - rims[1]]
    level = int(LEVEL * inner.shape[1])
    levels = np.partition(inner, level, axis=1)[:, level].astype(float)
    half = max(1, round(SMOOTHED * len(lines) / 2))
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(levels, half, "edge"), 2 * half + 1)
    return np.median(windows, axis=1)


def dark_lines(profile, usual):
    """(share of the lines that are dark, their brightness relative to the reference); (0.0, None) where none are.

    profile: float (n,) of `profile_of`. usual: as in dark_part.
    """
    least = usual or 0.0
    # Of the brightest lines, since only a band may be lit
    reference = max(least, np.sort(profile)[int((1 - LEAST) * len(profile))])
    while True:
        is_dark = profile < DARK * reference
        rest = least if is_dark.all() else max(least, np.median(profile[~is_dark]))
        if rest >= reference:
            break
        reference = rest
    in_strip = strips(is_dark, profile)
    if not in_strip.any():
        return 0.0, None
    rim = round(RIM * len(profile) / (1 - 2 * RIM))
    return float(np.pad(in_strip, rim, "edge").mean()), float(np.median(profile[in_strip]) / reference)


def strips(is_dark, profile):
    """The same lines, bool (n,), without runs of fewer than LEAST of them, and without those that only fade away."""
    bounds = np.flatnonzero(np.diff(np.concatenate([[0], is_dark, [0]])))
    near = max(BLUR, round(LEAST * len(profile) / 2))
    kept = np.zeros_like(is_dark)
    for start, end in bounds.reshape(-1, 2):
        first, last = start, end - 1
        has_edge = end - start == len(profile)
        if first > 0:
            has_edge |= profile[min(first + near, last)] < EDGE * profile[max(0, first - near)]
        if end < len(profile):
            has_edge |= profile[max(last - near, first)] < EDGE * profile[min(last + near, len(profile) - 1)]
        kept[start:end] = has_edge and end - start >= LEAST * len(profile)
    return kept
