"""Cut images of whole modules into images of their cells.

$ python cut_module.py modules/ --grid 10x6 --out cells/     # 10 columns, 6 rows as the images show them
$ python cut_module.py m1.png --grid 6x20 --out cells/       # half-cut cells
$ python cut_module.py m7.png --grid 10x6 --out cells/ --corners corners.csv

`python predict.py modules/ --grid 10x6 --csv cells.csv --report cells.html` cuts and judges in one go.
"""

import argparse
import sys

from tqdm import tqdm

from elcells.data.images import find_images
from elcells.files import InputError, print_any_name
from elcells.modules.cutting import grid_size, read_corners
from elcells.modules.overlay import draw_module
from elcells.modules.parallel import ModulesTable, cut_modules, folders_of, module_names, warnings_of


def options():
    """The parser of this script's command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", metavar="IMAGES", help="folders, files, globs, or - for a list on stdin")
    parser.add_argument("--grid", required=True, metavar="CxR", help="columns x rows of cells as the image shows them")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the cells; DIR_modules gets modules.csv")
    parser.add_argument("--corners", metavar="CSV", help="rough corners (filename;x1;y1 … x4;y4) of modules that fail")
    return parser


def run(args):
    """Cut what args ask for; returns the exit code."""
    columns, rows = grid_size(args.grid)
    corners = read_corners(args.corners) if args.corners else {}
    paths = list(find_images(args.inputs))
    if not paths:
        raise InputError(f"{' '.join(args.inputs)}: no images there")
    cells, about = folders_of(args.out)
    if (about / "modules.csv").exists():
        raise InputError(f"{about / 'modules.csv'}: is there already; give another --out")
    images = list(zip(paths, module_names(paths)))
    with ModulesTable(about / "modules.csv", ["nearly_black"]) as table:
        made = cut_modules(images, cells, columns, rows, corners)
        for name, module in tqdm(made, total=len(images), unit="module", leave=False):
            if "cells" in module:
                shown = ["nearly black" if black else "no defect" for black in module["black"]]
                draw_module(module, about / f"{name}.png", shown)
            table.add(module, name, [int(module["black"].sum()) if "cells" in module else ""])
    lines, sure = warnings_of(table.rows)
    for line in lines:
        print(line, file=sys.stderr)
    found = sum(not row[-1] for row in table.rows)
    print(f"{found} of {len(table.rows)} modules cut into {cells}; {about} shows them, with modules.csv.")
    return 0 if sure else 3


def main(argv=None):
    """Command line of this file; returns the exit code: 0, 2 for bad input, 3 when some modules are not sure."""
    print_any_name()
    args = options().parse_args(argv)
    try:
        return run(args)
    except (InputError, OSError) as error:
        print(f"cut_module.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
