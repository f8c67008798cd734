"""Cells of whole modules as the network takes them, and modules with their verdicts."""

from PIL import Image

from elcells.colours import TOO_DARK_VERDICT
from elcells.data.images import to_square
from elcells.inference.cells import TOO_DARK, CellResult, Place
from elcells.modules.overlay import draw_module, verdict
from elcells.modules.saving import cell_name


def cells_of_module(module, name, folder, size):
    """A CutModule's cells, whose files are in `folder`, as pairs that `judge` takes; black ones have no pixels."""
    cells = []
    for number, (cell, black) in enumerate(zip(module.cells, module.black)):
        row, column = divmod(number, module.columns)
        place = Place(name, row + 1, column + 1)
        path = f"{folder}/{cell_name(name, number, module.columns)}"
        result = CellResult(path, brightness=cell.mean() / 255, error=TOO_DARK if black else "", place=place)
        cells.append((None if black else to_square(Image.fromarray(cell), size), result))
    return cells


def draw_results(module, path, results, classes):
    """Save the image of a module with the verdicts of its cells and the probabilities of their defects."""
    verdicts = [verdict(cell.calls, classes) if cell.judged else TOO_DARK_VERDICT for cell in results]
    texts = []
    for cell in results:
        texts.append("\n".join(f"{p:.2f}" for p, call in zip(cell.probabilities, cell.calls) if call))
    draw_module(module, path, verdicts, texts)
