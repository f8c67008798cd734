"""How far two people agree on the labels of the same cells."""

import hashlib
import os

from elcells.files import ANY_NAME, InputError, counted
from elcells.pages.review import ReviewCell, write_page


def same_cells(a, b):
    """A key for each row of two tables (two lists), equal for rows of one image: the file that it is.

    Tables without a file in common are compared by file name: each person may have had a copy of the images.
    """
    files = [[os.path.normcase(os.path.realpath(path)) for path in table["path"]] for table in (a, b)]
    if set(files[0]) & set(files[1]):
        return files
    return [[os.path.normpath(name.replace("\\", "/")) for name in table["filename"]] for table in (a, b)]


def compare(a, b, classes):
    """Two tables of `data.read_table` on the cells that both have (`same_cells`).

    Returns (pairs, figures): a DataFrame with path and the columns NAME_a and NAME_b, and a dict of class -> dict of
    kappa (Cohen 1960) and f1 (both None where all labels are the same), and the counts both, only_a, only_b.
    Raises InputError where they have no cell in common.
    """
    keys_a, keys_b = same_cells(a, b)
    first = a[["path", *classes]].assign(key=keys_a)
    second = b[[*classes]].assign(key=keys_b)
    pairs = first.merge(second, on="key", suffixes=("_a", "_b"))
    if pairs.empty:
        raise InputError("the two tables have no image and no file name in common, so there is nothing to compare")
    figures = {}
    for name in classes:
        in_a = pairs[f"{name}_a"] == 1
        in_b = pairs[f"{name}_b"] == 1
        both = int((in_a & in_b).sum())
        only_a = int((in_a & ~in_b).sum())
        only_b = int((in_b & ~in_a).sum())
        figures[name] = {"kappa": None, "f1": None, "both": both, "only_a": only_a, "only_b": only_b}
        if in_a.nunique() > 1 or in_b.nunique() > 1:
            neither = len(pairs) - both - only_a - only_b
            by_chance = (both + only_a) * (only_a + neither) + (both + only_b) * (only_b + neither)
            figures[name]["kappa"] = 2 * (both * neither - only_a * only_b) / by_chance
            figures[name]["f1"] = 2 * both / (2 * both + only_a + only_b)
    return pairs, figures


def words(labels, classes):
    """Labels of a cell in words."""
    return " and ".join(c for c, label in zip(classes, labels) if label) or "neither"


def cells_in_dispute(pairs, first, second, classes):
    """A ReviewCell for each of the `pairs` whose labels differ; first, second: the tables' names."""
    cells = []
    for _, pair in pairs.iterrows():
        in_a = words([pair[f"{c}_a"] for c in classes], classes)
        in_b = words([pair[f"{c}_b"] for c in classes], classes)
        if in_a != in_b:
            cells.append(ReviewCell(str(pair["path"]), f"{first}: {in_a}. {second}: {in_b}."))
    return cells


def report_agreement(first, second, a, b, classes, root, target):
    """Print how far the tables a and b agree, and write the cells in dispute as a review page.

    first, second: the tables' names. root: folder of the page's table of labels.
    """
    pairs, figures = compare(a, b, classes)
    print(f"{counted(len(pairs), 'cell is', 'cells are')} in both tables; {first} has {len(a)}, {second} {len(b)}.")
    print(f"{'':12}kappa     F1   both   only the first   only the second")
    for name, counts in figures.items():
        kappa = "-" if counts["kappa"] is None else f"{counts['kappa']:.3f}"
        f1 = "-" if counts["f1"] is None else f"{counts['f1']:.3f}"
        print(f"{name:10}{kappa:>7}{f1:>7}{counts['both']:7}{counts['only_a']:17}{counts['only_b']:18}")
    cells = cells_in_dispute(pairs, first, second, classes)
    if not cells:
        print("No cell is in dispute.")
        return
    key = hashlib.sha256("\n".join(map(os.path.realpath, (first, second))).encode("utf-8", ANY_NAME)).hexdigest()[:16]
    more = {"opinion": "What the two tables say", "steps": []}
    count = write_page(target, cells, classes, [0.5] * len(classes), root, key, more)
    print(f"{counted(len(cells), 'cell is', 'cells are')} in dispute; {target} shows {count} of them, to label anew.")
