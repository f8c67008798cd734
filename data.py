"""Cells and labels: fill images/, read tables, divide them (elcells/data/splits.py), and serve batches.

$ python data.py                     # fill images/ from the package elpv-dataset, print a summary
$ python data.py --data my/data.csv  # summary of your own table
$ python data.py --variants elpv6    # write the six variants of every cell, with their table
$ python data.py --agree a.csv b.csv # how far two people agree, and a page of the cells on which they do not
"""

import argparse
import contextlib
import copy
import importlib.util
import os
import shutil
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from tqdm import tqdm

from elcells.data.cache import load_sources
from elcells.data.images import SUFFIXES, THREADS, as_stored, file_of, open_image
from elcells.data.splits import (  # dividing cells is this file's business too, and lies below for its length
    SPLIT_SEED,
    VARIANTS,
    adapt_parts,
    combination,
    expand_variants,
    fold_parts,
    groups,
    originals,
    record_split,
    recorded_part,
    split_cells,
    split_parts,
    stratified_folds,
)
from elcells.data.tables import CLASSES, in_order, read_rows
from elcells.devices import send
from elcells.files import InputError, atomic_path, print_any_name

# torch and scikit-learn are imported where they are used: a program that only reads images needs neither.

__all__ = ["CellDataset", "adapt_parts", "expand_variants", "fill_images", "fold_parts", "groups", "limit_cells"]
__all__ += ["originals", "read_table", "read_tables", "record_split", "recorded_part", "split_cells", "split_parts"]
__all__ += ["source_weights", "stratified_folds", "summary", "write_variants"]

RESERVED = ("filename", "path", "cell", "variant", "transform", "image", "fold", "source", "weight")  # of our own
IDENTIFIERS = ("module", "type", "source")  # text, whatever they look like: 01 is not 1, 7E10 not 70E9


# ---------------------------------------------------------------- table


def read_table(path="data.csv", classes=CLASSES, images=None):
    """Read a `;`-separated table of images and 0/1 labels.

    path: table with the columns `filename` and one per class; more columns are kept (`type` and `module` are used
        where they stand). One row a cell, or one row an image with the variants named by the prefixes of VARIANTS.
    images: folder that the file names are relative to; default: the table's folder.
    Returns a DataFrame, one row an image, with the table's columns (labels as int) and
        path (Path), cell (str, the same for all variants of one cell), variant (str, a key of VARIANTS: what the file
        shows), transform (str: the variant still to be made from the file, "" as read) and source (str: the table's
        own column, else the name of its folder).
    Raises InputError, naming line and column, for anything that is no such table.
    """
    path, wanted = Path(path), ["filename", *classes]
    reserved = [c for c in classes if c in RESERVED]
    if reserved:
        raise InputError(f"{path}: label column {reserved[0]!r} has a name that the program uses itself; rename it")
    table = read_rows(path, wanted)
    for name in classes:
        labels = pd.to_numeric(table[name], errors="coerce")
        bad = ~labels.isin([0, 1])
        if bad.any():
            row = bad.idxmax()
            raise InputError(f"{path}, line {row}: {name} is {table[name][row]!r}, expected 0 or 1")
        table[name] = labels.astype(int)
    for row in table.index[table["filename"] == ""]:
        raise InputError(f"{path}, line {row}: filename is empty")
    for name in table.columns.difference([*wanted, *IDENTIFIERS]):
        with contextlib.suppress(ValueError):
            table[name] = pd.to_numeric(table[name])
    table["path"] = image_paths(table["filename"], Path(images) if images else path.parent)
    twice = table["path"].map(os.path.normpath).duplicated()
    if twice.any():
        row = twice.idxmax()
        raise InputError(f"{path}, line {row}: {table['filename'][row]} stands there twice; remove one")
    table["cell"], table["variant"] = _cells(table["filename"])
    table["transform"] = ""
    folder = os.path.basename(os.path.dirname(os.path.abspath(path)))
    table["source"] = table["source"].where(table["source"] != "", folder) if "source" in table else folder
    differs = (table.groupby("cell")[list(classes)].transform("nunique") > 1).any(axis=1)
    if differs.any():
        row = table.index[differs & (table["variant"] != "")][0]
        raise InputError(
            f"{path}, line {row}: {table['filename'][row]} is labelled unlike another variant of the same cell"
        )
    return table.reset_index(drop=True)


def read_tables(paths, classes=CLASSES, images=None):
    """`read_table` of several tables as one DataFrame, whose column `source` tells them apart.

    Cells and modules of different sources are different ones, whatever their names: they become "source:name". One
    table alone keeps its names.
    Raises InputError as read_table does, and where two tables have a source in common.
    """
    tables = [read_table(path, classes, images) for path in paths]
    if len(tables) == 1:
        return tables[0]
    seen = {}
    for path, table in zip(paths, tables):
        for source in table["source"].unique():
            if source in seen:
                raise InputError(
                    f"{path}: its cells' source is {source!r}, as in {seen[source]}; give one of them a column "
                    "`source`, or put them into folders of other names"
                )
        seen.update(dict.fromkeys(table["source"], path))
        for name in ("cell", "module"):
            if name in table:
                table[name] = (table["source"] + ":" + table[name]).where(table[name] != "", "")
    return pd.concat(tables, ignore_index=True).fillna(dict.fromkeys(IDENTIFIERS, ""))


def source_weights(table, given, balanced=False):
    """How many times as often as others each row is drawn in training: list of int.

    given: dict of source -> such a number. balanced: where it gives none, sources beside the first one together count
    as much as that.
    Raises InputError for a source that the table has not.
    """
    sources = table["source"]
    for name in given:
        if name not in set(sources):
            there = ", ".join(sources.unique())
            raise InputError(f"--weight {name}={given[name]}: no source {name!r}, there are {there}")
    own = (sources != sources[0]).sum()
    usual = max(1, round((len(table) - own) / own)) if balanced and own else 1
    return [given.get(s, usual if s != sources[0] else 1) for s in sources]


def image_paths(names, root):
    """Paths (list) of file names below `root`; where not all are there, but all are by their last part alone, these."""
    files = [Path(n.replace("\\", "/")) for n in names]
    paths = [as_stored(root / f) for f in files]
    if not all(file_of(p)[0].exists() for p in paths):
        flat = [as_stored(root / f.name) for f in files]
        if len(set(flat)) == len(flat) and all(file_of(p)[0].exists() for p in flat):
            return flat
    return paths


def _cells(names):
    """Cell and variant (two lists of str) of file names.

    A cell is its file's name without the suffix, or with it where two files differ by no more than that. A name like
    rot_front.png without a front.png is no variant of anything.
    """
    files = [PurePosixPath(n.replace("\\", "/")) for n in names]
    prefixes = [next((p for p in VARIANTS if p and f.name.startswith(p)), "") for f in files]
    whole = {str(f) for f in files}
    originals = [f.with_name(f.name.removeprefix(p)) if p else f for f, p in zip(files, prefixes)]
    prefixes = [p if str(o) in whole else "" for o, p in zip(originals, prefixes)]
    owners = [str(o if p else f) for f, o, p in zip(files, originals, prefixes)]
    suffixes = {o: PurePosixPath(o).suffix for o in owners}
    short = {o: o.removesuffix(s) if s.lower() in SUFFIXES else o for o, s in suffixes.items()}
    count = Counter(short.values())
    return [short[o] if count[short[o]] == 1 else o for o in owners], prefixes


def summary(table, classes=CLASSES):
    """What is in a table, as text: cells, each combination of labels, by type and by module where it has them."""
    cells = table.drop_duplicates("cell")
    counts = combination(cells, classes)
    lines = [f"{len(cells)} cells, {len(table)} images"]
    lines += [f"  {name}: {n}" for name, n in counts.value_counts(sort=False).sort_index().items()]
    for by in ("source", "type", "module"):
        if by in cells and (by != "source" or cells[by].nunique() > 1):
            counted = pd.crosstab(cells[by].values, counts.values)
            counted = counted.loc[sorted(counted.index, key=in_order)]
            counted.insert(0, "cells", counted.sum(axis=1))
            counted.index.name, counted.columns.name = None, by
            lines += ["", counted.to_string()]
    return "\n".join(lines)


def limit_cells(table, limit, classes=CLASSES, seed=SPLIT_SEED):
    """A stratified handful: all images of `limit` cells, at least three of each combination of labels.

    Three is what a split into training, validation and test part needs.
    Raises InputError when `limit` is too small for that.
    """
    cells = table.drop_duplicates("cell")
    shuffled = np.random.default_rng(seed).permutation(len(cells))
    by_label = cells.iloc[shuffled].groupby(combination(cells, classes).values[shuffled])["cell"]
    counts = by_label.size()
    if limit < 3 * len(counts):
        raise InputError(
            f"{limit} cells are too few, at least {3 * len(counts)} are needed (3 of each combination of labels)"
        )
    quota = (counts * min(1, limit / len(cells))).round().clip(lower=3)
    while quota.sum() > limit:
        quota[quota.idxmax()] -= 1
    chosen = set().union(*(names.head(int(quota[label])) for label, names in by_label))
    return table[table["cell"].isin(chosen)].reset_index(drop=True)


# ---------------------------------------------------------------- images


def fill_images(table):
    """Copy missing images of a table that are ELPV cells from the installed package elpv-dataset.

    A row is an ELPV cell where its file name, module and probability are those of this project's data.csv; a file of
    somebody's own that is only called like one is never replaced.
    Returns how many were copied. Raises InputError when images are missing that the package does not hold.
    """
    missing = table[[not file_of(p)[0].exists() for p in table["path"]]]
    if missing.empty:
        return 0
    own = read_rows(Path(__file__).with_name("data.csv"), ["filename", "module", "probability"])
    elpv = {(r.filename, r.module, float(r.probability)) for r in own.itertuples()}
    spec = importlib.util.find_spec("elpv_dataset")
    source = Path(spec.origin).parent / "data" / "images" if spec else None
    for row in missing.itertuples():
        if (row.filename, getattr(row, "module", None), getattr(row, "probability", None)) not in elpv:
            raise InputError(f"{row.path}: no such file, and no cell of the project's own table; mend the row")
        if source is None or not (source / row.path.name).exists():
            raise InputError(f"{row.path}: no such file; `pip install elpv-dataset` holds the ELPV cells")
    paths = missing["path"].unique()
    for path in tqdm(paths, desc="images", unit="image", leave=False):
        with atomic_path(path) as temporary:
            shutil.copyfile(source / path.name, temporary)
    return len(paths)


# ---------------------------------------------------------------- data set


class CellDataset:
    """Images and labels of table rows, served a batch at a time.

    table: DataFrame whose `image` column (int) is each row's place in `images`, and whose `transform` column names
        the variant to make of it. Its column `weight` (int), where there is one: how many times as often as others a
        row is drawn in training.
    images: uint8 (P, 1, S, S), from load_images.
    """

    def __init__(self, table, images, classes=CLASSES):
        self.table, self.images, self.index = table, images, table["image"].to_numpy()
        self.labels = np.array(table[list(classes)], np.float32)
        self.transforms = table["transform"].to_numpy()
        self.weights = table["weight"].to_numpy() if "weight" in table else np.ones(len(table), int)

    def __len__(self):
        return len(self.table)

    def to(self, device):
        """The same with its images on a GPU, so that no step waits for a copy (ELPV: 236 MB); a CPU reads the mapped
        file."""
        import torch

        if torch.device(device).type == "cpu" or isinstance(self.images, torch.Tensor):
            return self
        moved = copy.copy(self)
        used, moved.index = np.unique(self.index, return_inverse=True)
        moved.images = torch.from_numpy(self.images[used]).to(device)
        return moved

    def batch(self, rows):
        """Rows (int array or range) as tensors: images uint8 (B, 1, S, S), labels float32 (B, C)."""
        import torch

        rows = np.asarray(rows)
        if not isinstance(self.images, torch.Tensor):
            images = torch.from_numpy(self.images[self.index[rows]])
        else:
            images = self.images[send(torch.from_numpy(self.index[rows]), self.images.device)]
        transforms = self.transforms[rows]
        for name in sorted(set(transforms) - {""}):
            those = send(torch.from_numpy(np.flatnonzero(transforms == name)), images.device)
            images[those] = VARIANTS[name][0](images[those])
        return images, torch.from_numpy(self.labels[rows])


# ---------------------------------------------------------------- command


def write_variants(table, folder, classes=CLASSES):
    """Write the six-variant tree: folder/images/*.png (lossless, mode and bit depth kept) and folder/data.csv.

    Files that are there already are kept, so an interrupted run goes on. The table is written last.
    Returns the number of images in the tree. Raises InputError for a table that already holds variants, or whose
    names would collide.
    """
    if (table["variant"] != "").any():
        raise InputError("the table already has variants; they are made of a table of one row a cell")
    folder = Path(folder)
    stems = table["path"].map(lambda p: p.stem)
    if stems.duplicated().any():
        raise InputError(f"two images are called {stems[stems.duplicated()].iloc[0]}; rename one")

    def write(path):
        image = None
        for prefix, (_, transpose) in VARIANTS.items():
            target = folder / "images" / f"{prefix}{path.stem}.png"
            if not target.exists():
                image = image or open_image(path)
                with atomic_path(target) as temporary:
                    (image.transpose(transpose) if transpose is not None else image).save(temporary, compress_level=4)

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in tqdm(pool.map(write, table["path"]), "variants", len(table), unit="cell", leave=False):
            pass
    ours = {"path", "cell", "variant", "transform"} | ({"source"} if table["source"].nunique() == 1 else set())
    columns = [c for c in table.columns if c not in ours]
    rows = pd.concat(
        [table[columns].assign(filename=[f"images/{prefix}{stem}.png" for stem in stems]) for prefix in VARIANTS]
    )
    with atomic_path(folder / "data.csv") as temporary:
        rows.to_csv(temporary, sep=";", index=False)
    return len(rows)


def add_table_options(parser, several=False):
    """The options that say which table and images to read, the same for every script; several: or tables."""
    if several:
        text = "tables of images and labels, each a source of its own (data.csv)"
        parser.add_argument("--data", nargs="+", default=["data.csv"], metavar="CSV", help=text)
    else:
        text = "table of images and labels (%(default)s)"
        parser.add_argument("--data", default="data.csv", metavar="CSV", help=text)
    parser.add_argument("--images", metavar="DIR", help="folder of its file names (the table's folder)")
    parser.add_argument(
        "--classes", nargs="+", default=list(CLASSES), metavar="NAME", help="label columns to learn (crack inactive)"
    )


def main(argv=None):
    """Command line of this file; returns the exit code."""
    print_any_name()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_table_options(parser, several=True)
    parser.add_argument("--variants", metavar="DIR", help="write the six variants of every cell as files into DIR")
    agree = "compare two people's tables of the same cells; those in dispute go into the page --disputes"
    parser.add_argument("--agree", nargs=2, metavar="CSV", help=agree)
    parser.add_argument("--disputes", default="disputes.html", metavar="FILE", help="(%(default)s)")
    args = parser.parse_args(argv)
    try:
        if args.agree:
            from elcells.pages.agreement import report_agreement  # needs scikit-learn

            a, b = (read_table(path, args.classes, args.images) for path in args.agree)
            root = args.images or Path(args.agree[0]).parent
            report_agreement(*args.agree, a, b, args.classes, os.path.abspath(root), args.disputes)
            return 0
        table = read_tables(args.data, args.classes, args.images)
        filled = fill_images(table)
        if filled:
            print(f"{filled} images copied from elpv-dataset into {table['path'][0].parent}")
        print(summary(table, args.classes))
        load_sources(table, tell=print)
        if args.variants:
            print(f"\n{write_variants(table, args.variants, args.classes)} images and data.csv in {args.variants}")
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
        return 0
    except (InputError, OSError) as error:
        print(f"data.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
