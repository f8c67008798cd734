"""Whole modules judged cell by cell: cut by other processes, while the network works."""

from dataclasses import dataclass

from PIL import Image
from tqdm import tqdm

from elcells.data.images import to_square
from elcells.inference.cells import TOO_DARK, CellResult, Place, judge
from elcells.modules.overlay import TOO_DARK_VERDICT, draw_module, verdict
from elcells.modules.parallel import cell_name, cut_modules


@dataclass(frozen=True)
class ModuleLayout:
    """What images of whole modules show: columns x rows of cells, and rough corners of some (`read_corners`)."""

    columns: int
    rows: int
    corners: dict


def cells_of_module(module, name, folder, size):
    """A CutModule's cells, whose files are in `folder`, as pairs that `judge` takes; black ones have no pixels."""
    cells = []
    for number, (cell, black) in enumerate(zip(module.cells, module.black)):
        row, column = divmod(number, module.columns)
        place = Place(name, row + 1, column + 1, int(module.sure))
        path = f"{folder}/{cell_name(name, number, module.columns)}"
        result = CellResult(path, brightness=cell.mean() / 255, error=TOO_DARK if black else "", place=place)
        cells.append((None if black else to_square(Image.fromarray(cell), size), result))
    return cells


def judge_modules(engine, thresholds, named, folder, layout):
    """Yield (name, CutModule, CellResults of its cells) of whole modules, while other processes cut the next.

    named: list of (path, name). folder: of the cells' files.
    """
    with tqdm(total=len(named) * layout.columns * layout.rows, unit="cell", leave=False) as bar:
        for name, module in cut_modules(named, folder, layout.columns, layout.rows, layout.corners):
            cells = cells_of_module(module, name, folder, engine.image_size)
            results = judge(engine, thresholds, cells)
            bar.update(len(results))
            yield name, module, results


def draw_results(module, path, results, classes):
    """Save the image of a module with the verdicts of its cells and the probabilities of their defects."""
    verdicts = [verdict(cell.calls, classes) if cell.judged else TOO_DARK_VERDICT for cell in results]
    texts = []
    for cell in results:
        texts.append(" ".join(f"{p:.2f}" for p, call in zip(cell.probabilities, cell.calls) if call))
    draw_module(module, path, verdicts, texts)
