"""Cells of whole modules as the network takes them, and modules with their verdicts."""

import numpy as np
from PIL import Image

from elcells.colours import DARK_VERDICT, NO_DEFECT, TOO_DARK_VERDICT
from elcells.data.images import to_square
from elcells.inference.cells import TOO_DARK, CellResult, Place
from elcells.inference.darkness import dark_part
from elcells.modules.overlay import draw_module, verdict
from elcells.modules.saving import cell_name


def cells_of_module(module, name, folder, size):
    """A CutModule's cells, whose files are in `folder`, as pairs that `judge` takes; black ones have no pixels."""
    cells = []
    usual = float(np.median([np.median(cell) for cell in module.cells])) if module.cells else None
    shorter_side = round(module.grid.cell_size().min()) if module.cells else None
    for number, (cell, black) in enumerate(zip(module.cells, module.black)):
        row, column = divmod(number, module.columns)
        place = Place(name, row + 1, column + 1)
        path = f"{folder}/{cell_name(name, number, module.columns)}"
        if black:
            cells.append((None, CellResult(path, brightness=cell.mean() / 255, error=TOO_DARK, place=place)))
            continue
        share, ratio = dark_part(cell, usual)
        darkness = {"dark_part": share, "dark_ratio": ratio}
        sides = {"size": cell.shape, "shorter_side": shorter_side}
        result = CellResult(path, brightness=cell.mean() / 255, place=place, **sides, **darkness)
        cells.append((to_square(Image.fromarray(cell), size), result))
    return cells


def draw_results(module, path, results, classes):
    """Save the image of a module: its cells' verdicts, probabilities of defects, how dark they are, and crack lines."""
    verdicts = [verdict_of(cell, classes) for cell in results]
    draw_module(module, path, verdicts, [text_of(cell) for cell in results], shapes=[cell.shape for cell in results])


def verdict_of(cell, classes):
    """The verdict of a CellResult; a dark cell without a call has one of its own."""
    if not cell.judged:
        return TOO_DARK_VERDICT
    called = verdict(cell.calls, classes)
    return DARK_VERDICT if called == NO_DEFECT and cell.is_dark else called


def text_of(cell):
    """What stands at a CellResult: the probabilities of its defects, and "dark" with its brightness."""
    lines = [f"{p:.2f}" for p, call in zip(cell.probabilities, cell.calls) if call]
    if cell.is_dark:
        lines.append(f"{DARK_VERDICT} {cell.dark_ratio:.2f}")
    return "\n".join(lines)
