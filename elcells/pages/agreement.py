"""How far two people agree on the labels of the same cells."""

from sklearn.metrics import cohen_kappa_score, f1_score

from elcells.files import InputError
from elcells.pages.review import write_page


def compare(a, b, classes):
    """Two tables of `data.read_table` on the cells that both have, by file name.

    Returns (pairs, figures): a DataFrame with path and the columns NAME_a and NAME_b, and a dict of class -> dict of
    cells, kappa (Cohen 1960; None where one label is all there is), f1, and the counts both, only_a, only_b.
    Raises InputError where they have no cell in common.
    """
    columns = ["filename", "path", *classes]
    pairs = a[columns].merge(b[["filename", *classes]], on="filename", suffixes=("_a", "_b"))
    if pairs.empty:
        raise InputError("the two tables have no file name in common, so there is nothing to compare")
    figures = {}
    for name in classes:
        x, y = pairs[f"{name}_a"], pairs[f"{name}_b"]
        varied = x.nunique() > 1 or y.nunique() > 1
        figures[name] = {
            "cells": len(pairs),
            "kappa": float(cohen_kappa_score(x, y)) if varied else None,
            "f1": float(f1_score(x, y, zero_division=0)) if varied else None,
            **{k: int(v.sum()) for k, v in (("both", x & y), ("only_a", x & ~y & 1), ("only_b", ~x & 1 & y))},
        }
    return pairs, figures


def words(labels, classes):
    """Labels of a cell in words."""
    return " and ".join(c for c, v in zip(classes, labels) if v) or "neither"


def report_agreement(first, second, a, b, classes, root, target):
    """Print how far the tables first and second (names) agree, and write the cells in dispute as a review page."""
    pairs, figures = compare(a, b, classes)
    print(f"{len(pairs)} cells stand in both tables; {first} has {len(a)}, {second} {len(b)}.")
    print(f"{'':12}kappa     F1   both   only the first   only the second")
    for name, f in figures.items():
        kappa, f1 = (f"{f[k]:.3f}" if f[k] is not None else "-" for k in ("kappa", "f1"))
        print(f"{name:10}{kappa:>7}{f1:>7}{f['both']:7}{f['only_a']:17}{f['only_b']:18}")
    sides = [pairs[[f"{c}_{side}" for c in classes]].to_numpy() for side in "ab"]
    differ = (sides[0] != sides[1]).any(1)
    if not differ.any():
        print("No cell is in dispute.")
        return
    said = zip(*([words(row, classes) for row in side[differ]] for side in sides))
    cells = [
        {"path": str(path), "why": f"{first}: {x}. {second}: {y}.", "p": None, "maps": None}
        for path, (x, y) in zip(pairs["path"][differ], said)
    ]
    count = write_page(target, cells, classes, [0.5] * len(classes), root)
    print(f"{differ.sum()} cells are in dispute; {target} shows {count} of them, to label anew.")
