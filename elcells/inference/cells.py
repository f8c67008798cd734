"""Predictions for cells."""

from collections import namedtuple
from dataclasses import dataclass, replace

import numpy as np

from elcells.data.images import IMAGE_SIZE, square_side
from elcells.data.levels import NEARLY_BLACK
from elcells.inference.class_maps import as_bytes
from elcells.inference.darkness import dark_part
from elcells.inference.doubt import UNSURE, doubt
from elcells.inference.severity import LEAST_PIXELS, severity_of
from elcells.inference.small import with_side

NO_LIGHT = 0.025  # mean pixel in 0..1, as of the black cells of a module
DIM_NOTE = f"are dim (mean pixel under {NEARLY_BLACK}): what is only noise there looks sound"
TOO_DARK = "nearly black: not judged"  # the error of a dead cell of a module, or of an image without light
# Fields of a CellResult that are columns of every table
MEASURED = ("brightness", "dark_part", "dark_ratio")
SEVERITY = ("crack_length", "inactive_area", "crack_mode", "below")
DECIMALS = {**dict.fromkeys(MEASURED, 3), "crack_length": 3, "inactive_area": 4}  # of those that are numbers


# Where a cell lies in its module, row and column counted from 1
Place = namedtuple("Place", "module row column")


@dataclass(frozen=True)
class CellResult:
    """The prediction for the image of a cell; a cell that was not judged has an error, but no calls."""

    filename: str
    calls: tuple = ()  # 0 or 1 for each class
    probabilities: tuple = ()  # for each class, in 0..1
    brightness: float | None = None  # mean pixel in 0..1
    error: str = ""
    place: Place | None = None
    notes: tuple = ()  # what was assumed when the image was read; not in the table
    map: bytes | None = None  # class maps, uint8 (C, h, w), of a cell with a defect or near a threshold
    dark_part: float | None = None  # share of the cell in 0..1, 0 where nothing is dark; None where it was not judged
    dark_ratio: float | None = None  # brightness of that part relative to the rest or the module's cells
    size: tuple = (IMAGE_SIZE, IMAGE_SIZE)  # (height, width) in pixels before it was made square; not in the table
    shorter_side: int | None = None  # in its image, in pixels, where it was stretched since then; not in the table
    # As in Severity; None where it was not judged, or the network has no class of that name
    crack_length: float | None = None
    inactive_area: float | None = None
    crack_mode: str = ""
    below: str = ""  # names with spaces between
    shape: bytes | None = None

    @property
    def judged(self):
        return bool(self.calls)

    @property
    def is_dark(self):
        """Whether it, or a part of it, is dark, although it was judged."""
        return bool(self.dark_part)

    @property
    def nearly_black(self):
        """Whether it was too dark to judge."""
        return self.error == TOO_DARK

    def defects(self, classes):
        """Names of the classes that it was called."""
        return [name for name, call in zip(classes, self.calls) if call]

    def row(self, classes):
        """Values for a table: file name, calls, probabilities, MEASURED, SEVERITY, error."""
        judged = [*self.calls, *(f"{p:.4f}" for p in self.probabilities)] if self.judged else [""] * 2 * len(classes)
        measured = [shown(name, getattr(self, name)) for name in (*MEASURED, *SEVERITY)]
        return [self.filename, *judged, *measured, self.error]


def shown(name, value):
    """The value of a column of MEASURED or SEVERITY as text, "" for None."""
    return f"{value:.{DECIMALS[name]}f}" if name in DECIMALS and value is not None else value or ""


def cell_of_image(name, pixels, notes=(), size=(IMAGE_SIZE, IMAGE_SIZE)):
    """An image of a cell, uint8 (S, S), as the pair that `judge` takes; one without light is not judged.

    size: its (height, width) before it was made square.
    """
    brightness = float(pixels.mean()) / 255
    if brightness < NO_LIGHT:
        return None, CellResult(name, brightness=brightness, error=TOO_DARK, notes=tuple(notes))
    if brightness < NEARLY_BLACK:
        notes = (*notes, DIM_NOTE)
    share, ratio = dark_part(pixels)
    notes = tuple(notes)
    return pixels, CellResult(name, brightness=brightness, notes=notes, dark_part=share, dark_ratio=ratio, size=size)


def judge(engine, thresholds, cells):
    """Run an Engine over cells, pairs of pixels uint8 (S, S) and CellResult; returns the CellResults with calls.

    Those without pixels (None) stay as they are.
    """
    results = [cell for _, cell in cells]
    places_by_side = {}
    for place, (pixels, cell) in enumerate(cells):
        if pixels is not None:
            places_by_side.setdefault(engine.side_for(square_side(cell.size, cell.shorter_side)), []).append(place)
    for side, places in places_by_side.items():
        judged = judge_at_side(engine, thresholds, [cells[place] for place in places], side)
        for place, result in zip(places, judged):
            results[place] = result
    return results


def judge_at_side(engine, thresholds, cells, side):
    """`judge` cells that have pixels, all as images of `side` pixels."""
    images = np.stack([with_side(pixels, side) for pixels, _ in cells])[:, None]
    sizes = [cell.size for _, cell in cells]
    results = []
    for (pixels, cell), seen in zip(cells, engine.look_at(images, thresholds, sizes)):
        calls = (seen.probabilities >= thresholds).astype(int)
        has_map = seen.map is not None and (calls.any() or doubt(seen.probabilities[None], thresholds)[0] < UNSURE)
        judged = replace(
            cell,
            probabilities=tuple(seen.probabilities),
            calls=tuple(calls),
            map=as_bytes(seen.map) if has_map else None,
        )
        results.append(with_severity(judged, engine, pixels, seen.follow_lines))
    return results


def with_severity(result, engine, pixels, follow_lines):
    """A CellResult with the severity of what it was called.

    pixels: uint8 (S, S). follow_lines: as in Seen; called for cells with a crack alone.
    """
    called = dict(zip(engine.classes, result.calls))
    has_pixels = (result.shorter_side or min(result.size)) >= LEAST_PIXELS
    lines = follow_lines() if follow_lines and has_pixels and called.get("crack") else None
    severity = severity_of(pixels, lines, called.get("crack"), called.get("inactive"), result.size)
    return replace(
        result,
        crack_length=severity.crack_length if engine.has_lines else None,
        inactive_area=severity.inactive_area if "inactive" in called else None,
        crack_mode=severity.crack_mode,
        below=" ".join(severity.below),
        shape=severity.shape,
    )
