"""Cut images of whole modules into images of their cells.

$ python cut_module.py modules/ --grid 10x6 --out cells/     # 10 columns, 6 rows as the images show them
$ python cut_module.py m1.png --grid 6x20 --out cells/       # half-cut cells
$ python cut_module.py m7.png --grid 10x6 --out cells/ --corners corners.csv

`python predict.py modules/ --grid 10x6 --csv cells.csv --report cells.html` cuts modules and judges their cells.
"""

import argparse
import sys

from tqdm import tqdm

from elcells.data.finding import SUFFIXES, find_images
from elcells.files import InputError, command, counted
from elcells.modules.cutting import corners_of_images, grid_size
from elcells.modules.overlay import NO_DEFECT, TOO_DARK_VERDICT, draw_module
from elcells.modules.parallel import BLACK_COLUMN, ModulesTable, cut_modules, folders_of, module_names, warnings_of


def options():
    """The parser of this script's command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", metavar="IMAGES", help="folders, files, globs, or - for a list on stdin")
    parser.add_argument("--grid", required=True, metavar="CxR", help="columns x rows of cells as the image shows them")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the cells; DIR_modules gets modules.csv")
    corners = "rough corners (filename;x1;y1 … x4;y4) of modules that are not found"
    parser.add_argument("--corners", metavar="CSV", help=corners)
    return parser


@command
def main(argv=None):
    """Command line of this file; returns the exit code: 0, 2 for bad input, 3 when some modules are not sure
    or some folders can't be read."""
    args = options().parse_args(argv)
    columns, rows = grid_size(args.grid)
    found = find_images(args.inputs)
    for line in found.lines():
        print(line, file=sys.stderr)
    if not found.paths:
        raise InputError(f"{' '.join(args.inputs)}: no images there ({' '.join(sorted(SUFFIXES))})")
    cells_folder, modules_folder = folders_of(args.out)
    table_path = modules_folder / "modules.csv"
    if table_path.exists():
        raise InputError(f"{table_path}: already exists; give another --out")
    corners = corners_of_images(args.corners, found.paths) if args.corners else {}
    images = list(zip(found.paths, module_names(found.paths)))
    with ModulesTable(table_path, [BLACK_COLUMN]) as table:
        cut = cut_modules(images, cells_folder, columns, rows, corners)
        for name, module in tqdm(cut, total=len(images), unit="module", leave=False):
            if module.cells:
                verdicts = [TOO_DARK_VERDICT if black else NO_DEFECT for black in module.black]
                draw_module(module, modules_folder / f"{name}.png", verdicts)
            table.add(module, name, [int(module.black.sum()) if module.cells else ""])
    lines, all_sure = warnings_of(table.modules)
    for line in lines:
        print(line, file=sys.stderr)
    count = sum(not module.error for module in table.modules)
    modules = counted(len(images), "module")
    print(f"{count} of {modules} cut into {cells_folder}; {modules_folder} shows them, with modules.csv.")
    return 0 if all_sure and not found.unreadable else 3


if __name__ == "__main__":
    raise SystemExit(main())
