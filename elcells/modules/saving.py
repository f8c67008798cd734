"""Files of modules: their names, the images of their cells, and the image that shows them."""

import contextlib
import re
from collections import Counter
from pathlib import Path

from PIL import Image

from elcells.colours import NO_DEFECT, TOO_DARK_VERDICT
from elcells.files import atomic_path, folder_of_all, relative
from elcells.modules.cutting import cut_image
from elcells.modules.overlay import draw_module

CELL = re.compile(r"(\.tmp\d+_)?r\d+_c\d+\.png")  # a cell's file, or one that is being written


def module_names(paths):
    """A name for each module image: its relative path without the suffix, or with it where names would be the same."""
    root = folder_of_all(paths)
    names = [relative(path, root).lstrip("/") for path in paths]
    if root is None:  # drives of Windows
        names = [name.replace(":", "") for name in names]
    with_suffix = [re.sub(r"#page=(\d+)$", r"_page\1", name) for name in names]
    without = [re.sub(r"\.[A-Za-z]+(_page\d+)?$", r"\1", name) for name in with_suffix]
    count = Counter(without)
    return [long if count[short] > 1 else short for long, short in zip(with_suffix, without)]


def folders_of(out):
    """Folders of the cells (out) and of the modules' images and modules.csv (out_modules, beside it)."""
    out = Path(out)
    return out, out.with_name(f"{out.name}_modules")


def cell_name(name, place, columns):
    """File name of a module's cell, counted from 0 row by row: name/r01_c01.png."""
    row, column = divmod(place, columns)
    return f"{name}/r{row + 1:02}_c{column + 1:02}.png"


def cut_and_save(name, folder, *arguments):
    """Cut one image, as cut_image(*arguments), and save its cells as folder/name/r01_c01.png …; returns the CutModule.

    Cells that an earlier run left there, with another grid or half-written, are removed.
    """
    module = cut_image(*arguments)
    paths = [Path(folder) / cell_name(name, place, module.columns) for place in range(len(module.cells))]
    for path, cell in zip(paths, module.cells):
        with atomic_path(path) as temporary:
            Image.fromarray(cell).save(temporary, "PNG", compress_level=1)
    remove_cells(Path(folder) / name, paths)
    return module


def remove_cells(folder, kept=()):
    """Remove the cells in a module's folder, except those at the paths `kept`, and the folder if it is empty then."""
    if not folder.is_dir():
        return
    for path in set(folder.iterdir()).difference(kept):
        if CELL.fullmatch(path.name):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty
        folder.rmdir()


def shown_path(folder, name):
    """Path of the image that shows a module, in the folder of these."""
    return Path(folder) / f"{name}.jpg"


def cut_and_show(cells_folder, shown_folder, grid, item):
    """Cut an image, save its cells and the image that shows them; returns (CutModule without images, black cells).

    item: its path, the name for its files, its rough corners and its lens, or None for these.
    """
    path, name, corners, bend = item
    module = cut_and_save(name, cells_folder, path, *grid, corners, bend)
    image = shown_path(shown_folder, name)
    if not module.cells:
        image.unlink(missing_ok=True)
        return module, None
    verdicts = [TOO_DARK_VERDICT if black else NO_DEFECT for black in module.black]
    draw_module(module, image, verdicts, judged=False)
    return module.without_images(), int(module.black.sum())
