"""How good a results folder of field modules is, by the cells that people marked in the images.

$ python predict.py modules/ --grid 16x8 --out out
$ python -m benchmarks.field out field.csv     # module;row;column;crack;boxes

In the table `module` is the number at the end of the image's name (field_7.png), `crack` is 0 or 1, and `boxes` names
whatever people marked on the cell; nobody marked inactive regions.
"""

import argparse
import re

from sklearn.metrics import average_precision_score

from elcells import open_results
from elcells.data.tables import read_rows
from elcells.files import InputError, command

PLACE = ["number", "row", "column"]


def judged_and_marked(folder, table):
    """The judged cells of a results folder with what people marked: a DataFrame. Raises InputError where none match."""
    cells = open_results(folder).cells
    cells = cells[cells["module"] != ""].fillna(
        {"p_crack": 0, "crack": 0, "inactive": 0}
    )  # what was not judged is missed
    cells["number"] = [int((re.findall(r"(\d+)\.\w+$", image) or [-1])[0]) for image in cells["image"]]
    marked = read_rows(table, ["module", "row", "column", "crack", "boxes"]).rename(columns={"module": "number"})
    try:
        marked = marked.astype(dict.fromkeys([*PLACE, "crack"], int)).rename(columns={"crack": "marked"})
    except ValueError as error:
        raise InputError(f"{table}: module, row, column and crack must be whole numbers ({error})") from None
    both = cells.astype(dict.fromkeys(PLACE, int)).merge(marked, on=PLACE)
    if both.empty:
        raise InputError(f"{table}: no row belongs to a module of {folder}")
    return both


def lines_about(cells):
    """Figures of the cells, lines."""
    hits = int((cells["crack"] * cells["marked"]).sum())
    marked = int(cells["marked"].sum())
    f1 = 2 * hits / max(1, marked + int(cells["crack"].sum()))
    precision = average_precision_score(cells["marked"], cells["p_crack"])
    found = f"{hits} of {marked} cracks found, F1 {f1:.3f}, average precision {precision:.3f}"
    inactive = cells[cells["inactive"] == 1]
    unmarked = int((inactive["boxes"] == "").sum())
    return [
        f"{len(cells)} cells of {cells['number'].nunique()} modules: {found}",
        f"{len(inactive)} calls of inactive, {unmarked} of them on cells on which people marked nothing",
    ]


@command
def main(argv=None):
    """Command line of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="results of predict.py")
    parser.add_argument("table", help="what people marked")
    args = parser.parse_args(argv)
    print("\n".join(lines_about(judged_and_marked(args.folder, args.table))))


if __name__ == "__main__":
    raise SystemExit(main())
