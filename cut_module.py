"""Cut images of whole modules into images of their cells.

$ python cut_module.py modules/ --grid 10x6 --out cells/     # 10 columns, 6 rows as the images show them
$ python cut_module.py m1.png --grid 6x20 --out cells/       # half-cut cells
$ python cut_module.py m7.png --grid 10x6 --out cells/ --corners corners.csv

`python predict.py modules/ --grid 10x6 --out results` cuts modules and judges their cells.
"""

import argparse
import functools
import os
import sys

from tqdm import tqdm

from elcells.data.finding import SUFFIXES, find_images
from elcells.files import InputError, command, counted, locked
from elcells.modules.cutting import corners_of_images, grid_size
from elcells.modules.saving import cut_and_show, folders_of, module_names, shown_path
from elcells.records.exports import module_fields, module_values, write_csv
from elcells.records.requests import ImageResult, request_of
from elcells.records.rows import image_name, module_row
from elcells.records.summary import lines_of
from elcells.records.work import check_workers, np_corners, with_lenses, workers


def options():
    """The parser of this script's command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", metavar="IMAGES", help="folders, files, globs, or - for a list on stdin")
    parser.add_argument("--grid", required=True, metavar="CxR", help="columns x rows of cells as the image shows them")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the cells; DIR_modules gets modules.csv")
    corners = "rough corners (filename;x1;y1 … x4;y4) of modules that are not found"
    parser.add_argument("--corners", metavar="CSV", help=corners)
    text = "processes of this machine that share the work (%(default)s)"
    parser.add_argument("--workers", type=int, default=1, metavar="N", help=text)
    return parser


def cut(requests, names, folders, who):
    """Cut the modules of Requests; yields (ImageResult, name, number of its black cells) of each, in order."""
    requests = with_lenses(lambda camera, size, grid, find: find and find(), requests, requests, who)
    items = [(r.name, name, np_corners(r.corners), r.bend) for r, name in zip(requests, names)]
    function = functools.partial(cut_and_show, *folders, requests[0].grid)
    results = who.map(function, items, lambda item: [])
    for request, name, (module, black) in zip(requests, names, results):
        yield ImageResult(request, module.error, module=module), name, black


def refuse_to_replace_inputs(requests, names, cells_folder, modules_folder):
    """Raise InputError where a module's cells or the image that shows it would replace an input."""
    inputs = {request.path for request in requests}
    folders = {os.path.dirname(path) for path in inputs}
    for name in names:
        shown = shown_path(modules_folder, name)
        if os.path.realpath(shown) in inputs:
            raise InputError(f"{shown}: is an input, and the image of a module would replace it; give another --out")
        if os.path.realpath(cells_folder / name) in folders:
            raise InputError(f"{cells_folder / name}: holds inputs, and gets cells of a module; give another --out")


def row_of(result, name, black):
    """A row of modules.csv."""
    filename = image_name(vars(result.request))
    if result.error:
        empty = [""] * (len(module_fields(())) - 5)
        return [filename, name, *result.request.grid, *empty, result.error]
    return [filename, *module_values(module_row(result) | {"name": name}), black, ""]


@command
def main(argv=None):
    """Command line of this file; returns the exit code: 0, 2 for bad input, 3 when some modules are not sure
    or some folders can't be read."""
    args = options().parse_args(argv)
    grid = grid_size(args.grid)
    check_workers(args.workers)
    found = find_images(args.inputs)
    for line in found.lines():
        print(line, file=sys.stderr)
    if not found.paths:
        raise InputError(f"{' '.join(args.inputs)}: no images there ({' '.join(sorted(SUFFIXES))})")
    corners = corners_of_images(args.corners, found.paths) if args.corners is not None else {}
    requests = [request_of(name, grid, corners.get(name)) for name in found.paths]
    requests = list({(request.path, request.page): request for request in requests}.values())
    names = module_names([request.name for request in requests])
    cells_folder, modules_folder = folders_of(args.out)
    table = modules_folder / "modules.csv"
    refuse_to_replace_inputs(requests, names, cells_folder, modules_folder)
    busy = f"{modules_folder}: another run is writing there; wait for it, or give another --out"
    with locked(modules_folder / ".modules.lock", busy), workers(args.workers) as who:
        if table.exists():
            raise InputError(f"{table}: already exists; give another --out")
        results = cut(requests, names, (cells_folder, modules_folder), who)
        results = list(tqdm(results, total=len(requests), unit="module", leave=False))
        write_csv(table, module_fields(()), [row_of(*result) for result in results])
    modules = [module_row(result) | vars(result.request) for result, _, _ in results if not result.error]
    for line in lines_of([result.error for result, _, _ in results if result.error], modules, "modules.csv"):
        print(line, file=sys.stderr)
    images = counted(len(requests), "module")
    print(f"{len(modules)} of {images} cut into {cells_folder}; {modules_folder} shows them, with modules.csv.")
    all_sure = len(modules) == len(requests) and all(row["sure"] for row in modules)
    return 0 if all_sure and not found.unreadable else 3


if __name__ == "__main__":
    raise SystemExit(main())
