"""Cells and their labels: fill images/, read and describe tables, write variants, and serve batches.

$ python data.py                     # fill images/ from the package elpv-dataset, print a summary
$ python data.py --data my/data.csv  # summary of your own table
$ python data.py --variants elpv6    # write the six variants of every cell, with their table
$ python data.py --agree a.csv b.csv # compare two people's labels, and write a page of the cells in dispute
"""

import argparse
import contextlib
import copy
import importlib.util
import os
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from tqdm import tqdm

from elcells.data.cache import load_sources
from elcells.data.finding import SUFFIXES, as_stored, file_of
from elcells.data.images import THREADS, image_to_save
from elcells.data.recorded_split import part_of_checkpoint  # noqa: F401 (scripts use it as data.part_of_checkpoint)
from elcells.data.splits import (  # noqa: F401 (scripts use them as data.split_parts, ...)
    SPLIT_SEED,
    TRANSPOSES,
    VARIANTS,
    adapt_parts,
    combination,
    fold_parts,
    in_cell_order,
    originals,
    split_parts,
)
from elcells.data.tables import CLASSES, in_order, read_rows
from elcells.files import InputError, atomic_path, command, counted

# torch and scikit-learn are imported where they are used: a program that only reads images needs neither.

# not for labels
RESERVED = set("filename path cell variant transform image fold source weight hash seen".split())
IDENTIFIERS = ("module", "type", "source")  # always text: 01 is not 1, and 7E10 is not 70E9


# ---------------------------------------------------------------- table


def read_table(path="data.csv", classes=CLASSES, images=None):
    """Read a `;`-separated table of images and 0/1 labels.

    path: table with the columns `filename` and one per class; other columns are kept (`type`, `module` and `source`
        are used if present; rows without labels that `unsure` explains are left out). One row per cell, or one row per
        image with variants named by the prefixes of VARIANTS.
    images: folder that the file names are relative to; default: the table's folder.
    Returns a DataFrame, one row per image, with the table's columns (labels as int) and
        path (Path), cell (str, the same for all variants of one cell), variant (str, a key of VARIANTS: what the file
        shows), transform (str: the variant still to be made from the file, "" as read) and source (str: the table's
        own column, else the name of its folder).
    Raises InputError, naming line and column, for anything else.
    """
    path = Path(path)
    for name in classes:
        if name in RESERVED:
            raise InputError(f"{path}: label column {name!r} has a name that the program uses itself; rename it")
    table = read_rows(path, ["filename", *classes])
    if "unsure" in table:  # of review.html: 1 for unsure, 0 without labels for one that was taken back
        is_blank = (table[list(classes)] == "").all(axis=1)
        has_no_label = (table["unsure"] == "1") | ((table["unsure"] == "0") & is_blank)
        if has_no_label.all():
            raise InputError(f"{path}: has no label, only cells of which people were unsure; label some")
        if count := has_no_label.sum():
            print(f"{path}: {counted(count, 'cell is', 'cells are')} left out, of which people were unsure.")
        table = table[~has_no_label]
    for name in classes:
        table[name] = _labels(path, table[name])
    if line := _first_line(table["filename"] == ""):
        raise InputError(f"{path}, line {line}: filename is empty")
    for name in table.columns.difference(["filename", *classes, *IDENTIFIERS]):
        with contextlib.suppress(ValueError):
            table[name] = pd.to_numeric(table[name])
    table["path"] = image_paths(table["filename"], Path(images) if images else path.parent)
    table["cell"], table["variant"] = _cells(table["filename"])
    table["transform"] = ""
    if "source" not in table:
        table["source"] = ""
    table["source"] = table["source"].replace("", Path(os.path.abspath(path)).parent.name)
    _check_cells(path, table, classes)
    return table.reset_index(drop=True)


def _labels(path, column):
    """A column of text (Series, indexed by line) as 0/1 labels (Series of int)."""
    labels = pd.to_numeric(column, errors="coerce")
    if line := _first_line(~labels.isin([0, 1])):
        way_out = "" if column[line] else "; label the cell or remove the row"  # one of predict.py, not judged
        raise InputError(f"{path}, line {line}: {column.name} is {column[line]!r}, expected 0 or 1{way_out}")
    return labels.astype(int)


def _check_cells(path, table, classes):
    """Raise InputError if two rows name one file, or variants of one cell have different labels."""
    if line := _first_line(table["path"].map(os.path.normpath).duplicated()):
        raise InputError(f"{path}, line {line}: {table['filename'][line]} appears twice; remove one")
    differs = (table.groupby("cell")[list(classes)].transform("nunique") > 1).any(axis=1)
    if line := _first_line(differs & (table["variant"] != "")):
        name = table["filename"][line]
        raise InputError(f"{path}, line {line}: {name} has other labels than another variant of the same cell")


def _first_line(is_wrong):
    """The first line at which a bool Series, indexed by line from 2 on, is true; None if there is none."""
    return is_wrong.idxmax() if is_wrong.any() else None


def read_tables(paths, classes=CLASSES, images=None):
    """Read several tables (`read_table`) into one DataFrame, whose column `source` tells them apart.

    Cells and modules of different sources are different even if they have one name, so they become "source:name". A
    single table keeps its names.
    Raises InputError as read_table does, and if two tables have a source in common.
    """
    tables = [read_table(path, classes, images) for path in paths]
    if len(tables) == 1:
        return tables[0]
    table_of_source = {}
    for path, table in zip(paths, tables):
        for source in table["source"].unique():
            if source in table_of_source:
                raise InputError(
                    f"{path}: source {source!r} is also in {table_of_source[source]}; give one of the tables a column "
                    "`source`, or put them into folders of different names"
                )
            table_of_source[source] = path
        for name in ("cell", "module"):
            if name in table:
                table[name] = (table["source"] + ":" + table[name]).where(table[name] != "", "")
    return pd.concat(tables, ignore_index=True).fillna(dict.fromkeys(IDENTIFIERS, ""))


def source_weights(table, weights, balanced=False):
    """How often each row is drawn in training, compared with a row of weight 1: list of int.

    weights: dict of source -> weight. balanced: all sources but the first, where `weights` does not name them,
    are weighted so that together they count as much as the first.
    Raises InputError for a source that the table does not have.
    """
    sources = table["source"]
    for name in weights:
        if name not in set(sources):
            raise InputError(f"source {name!r}: not in the table, which has {', '.join(sources.unique())}")
    is_first = sources == sources.iloc[0]
    other_weight = 1
    if balanced and not is_first.all():
        other_weight = max(1, round(is_first.sum() / (~is_first).sum()))
    weight_of = dict.fromkeys(sources, other_weight) | {sources.iloc[0]: 1} | weights
    return [weight_of[source] for source in sources]


def image_paths(names, root):
    """Paths (list) of images by their names relative to `root`.

    If some are missing, but all lie directly in `root`, without their folders, these are the paths.
    """
    files = [Path(name.replace("\\", "/")) for name in names]
    paths = [as_stored(root / file) for file in files]
    if all(file_of(path)[0].exists() for path in paths):
        return paths
    flat = [as_stored(root / file.name) for file in files]
    if len(set(flat)) == len(flat) and all(file_of(path)[0].exists() for path in flat):
        return flat
    return paths


def _cells(names):
    """Cell and variant (two lists of str) of file names.

    A cell is named after the file of its original, without the suffix unless two originals differ only in that.
    A name like rot_front.png is a variant only if the table has front.png.
    """
    files = [PurePosixPath(name.replace("\\", "/")) for name in names]
    known = {str(file) for file in files}
    originals_of_files = []
    variants = []
    for file in files:
        prefix = next((p for p in VARIANTS if p and file.name.startswith(p)), "")
        original = str(file.parent / file.name.removeprefix(prefix))
        is_variant = prefix != "" and original in known
        originals_of_files.append(original if is_variant else str(file))
        variants.append(prefix if is_variant else "")
    short_names = {name: _without_suffix(name) for name in originals_of_files}
    count = Counter(short_names.values())
    cells = [short_names[name] if count[short_names[name]] == 1 else name for name in originals_of_files]
    return cells, variants


def _without_suffix(name):
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in SUFFIXES else name


def summary(table, classes=CLASSES, by=None):
    """The contents of a table as text: cells by combination of labels; by source and type if it has them, and by the
    column `by`. Raises InputError where there is no such column."""
    cells = table.drop_duplicates("cell")
    labels = combination(cells, classes)
    lines = [f"{len(cells)} cells, {len(table)} images"]
    for name, count in labels.value_counts(sort=False).sort_index().items():
        lines.append(f"  {name}: {count}")
    if by and by not in cells:
        raise InputError(f"--by {by}: the table has no such column, it has {', '.join(table.columns)}")
    columns = [name for name in ("source", "type") if name in cells]
    if cells["source"].nunique() == 1:
        columns.remove("source")
    for column in dict.fromkeys([*columns, *([by] if by else [])]):
        counts = pd.crosstab(cells[column].to_numpy(), labels.to_numpy())
        counts = counts.loc[sorted(counts.index, key=in_order)]
        counts.insert(0, "cells", counts.sum(axis=1))
        counts.index.name = None
        counts.columns.name = column
        lines += ["", counts.to_string()]
    return "\n".join(lines)


def limit_cells(table, limit, classes=CLASSES):
    """A stratified handful: all images of `limit` cells, at least three of each combination of labels.

    Which cells does not depend on the order of the rows, which stays as it is.
    Raises InputError if `limit` is too small for that.
    """
    least = 3  # of each combination: one for each of the training, validation and test part
    cells = in_cell_order(table).drop_duplicates("cell")
    shuffled = cells.iloc[np.random.default_rng(SPLIT_SEED).permutation(len(cells))]
    cells_by_label = shuffled.groupby(combination(shuffled, classes).to_numpy())["cell"]
    counts = cells_by_label.size()
    if limit < least * len(counts):
        needed = f"{least * len(counts)} are needed ({least} of each combination of labels)"
        raise InputError(f"{limit} cells are too few, at least {needed}; give a larger --limit")
    quota = (counts * min(1, limit / len(cells))).round().clip(lower=least)
    while quota.sum() > limit:
        quota[quota.idxmax()] -= 1
    chosen = []
    for label, names in cells_by_label:
        chosen.extend(names.head(int(quota[label])))
    return table[table["cell"].isin(chosen)].reset_index(drop=True)


# ---------------------------------------------------------------- images


def fill_images(table, tell=None):
    """Copy missing images of a table from the installed package elpv-dataset, if they are ELPV cells.

    A row is an ELPV cell if this project's data.csv has its file name, module and probability; so a user's missing
    file that only shares an ELPV name is never replaced.
    tell: function that gets a line if images were copied.
    Raises InputError for missing images that the package does not hold.
    """
    missing = table[[not file_of(path)[0].exists() for path in table["path"]]]
    if missing.empty:
        return
    rows = read_rows(Path(__file__).with_name("data.csv"), ["filename", "module", "probability"])
    elpv_cells = {(row.filename, row.module, float(row.probability)) for row in rows.itertuples()}
    package = importlib.util.find_spec("elpv_dataset")
    folder = Path(package.origin).parent / "data" / "images" if package else None
    for row in missing.itertuples():
        if (row.filename, getattr(row, "module", None), getattr(row, "probability", None)) not in elpv_cells:
            raise InputError(
                f"{row.path}: no such file, and no cell of the project's own table; correct the row of {row.filename}"
            )
        if folder is None or not (folder / row.path.name).exists():
            raise InputError(f"{row.path}: no such file; `pip install elpv-dataset` holds the ELPV cells")
    paths = missing["path"].unique()
    for path in tqdm(paths, desc="images", unit="image", leave=False):
        with atomic_path(path) as temporary:
            shutil.copyfile(folder / path.name, temporary)
    if tell:
        tell(f"{len(paths)} images copied from elpv-dataset into {paths[0].parent}")


def write_variants(table, folder):
    """Write the six variants of each cell: folder/images/*.png (lossless, mode and depth kept) and folder/data.csv.

    Existing images are kept, so an interrupted run goes on. The table is written last.
    Returns the number of images. Raises InputError for a table that already holds variants, or whose file names would
    collide.
    """
    if (table["variant"] != "").any():
        raise InputError("the table already has variants; give one with one row per cell")
    folder = Path(folder)
    stems = table["path"].map(lambda path: path.stem)
    if stems.duplicated().any():
        raise InputError(f"two images are called {stems[stems.duplicated()].iloc[0]}; rename one")

    def write(path):
        image = None
        for prefix in VARIANTS:
            target = folder / "images" / f"{prefix}{path.stem}.png"
            if target.exists():
                continue
            with atomic_path(target) as temporary:
                if prefix == "" and path.suffix == ".png":  # byte for byte, which is how a cell is known again
                    shutil.copyfile(path, temporary)
                    continue
                image = image or image_to_save(path)
                turned = image.transpose(TRANSPOSES[prefix]) if prefix else image
                turned.save(temporary, compress_level=4)

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in tqdm(pool.map(write, table["path"]), "variants", len(table), unit="cell", leave=False):
            pass
    rows = table.drop(columns=["path", "cell", "variant", "transform"])
    if table["source"].nunique() == 1:
        rows = rows.drop(columns="source")
    parts = [rows.assign(filename=[f"images/{prefix}{stem}.png" for stem in stems]) for prefix in VARIANTS]
    with atomic_path(folder / "data.csv") as temporary:
        pd.concat(parts).to_csv(temporary, sep=";", index=False)
    return len(VARIANTS) * len(table)


class CellDataset:
    """Images and labels of table rows, served a batch at a time.

    table: DataFrame whose column `image` (int) is each row's place in `images`, and whose column `transform` names the
        variant to make from it. An optional column `weight` (int) says how often a row is drawn in training.
    images: uint8 (P, 1, S, S), from load_images.
    """

    def __init__(self, table, images, classes=CLASSES):
        self.table = table
        self.images = images
        self.index = table["image"].to_numpy()
        self.labels = np.array(table[list(classes)], np.float32)
        self.transforms = table["transform"].to_numpy()
        self.weights = table["weight"].to_numpy() if "weight" in table else np.ones(len(table), int)
        self.device = "cpu"  # where batches come out

    def __len__(self):
        return len(self.table)

    def to(self, device):
        """The data set with its images on a GPU, so that no step waits for a copy (ELPV: 236 MB); for a CPU, itself.

        Images that would take more than half of the GPU's free memory stay on the host, and batches are sent.
        """
        import torch

        device = torch.device(device)
        if device.type in ("cpu", torch.device(self.device).type):
            return self
        moved = copy.copy(self)
        moved.device = device
        used, index = np.unique(self.index, return_inverse=True)
        size = len(used) * self.images[:1].nbytes
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")
        if size > free / 2:
            free, size = f"{free / 1e9:.1f} GB", f"{size / 1e9:.1f} GB"
            print(f"The GPU has {free} of free memory: {size} of images stay on the host, which is slower.")
        else:
            moved.index = index
            moved.images = torch.from_numpy(self.images[used]).to(device)
        return moved

    def batch(self, rows):
        """Rows (int array or range) as tensors: images uint8 (B, 1, S, S), labels float32 (B, C)."""
        import torch

        from elcells.devices import send

        rows = np.asarray(rows)
        if isinstance(self.images, torch.Tensor):
            images = self.images[send(torch.from_numpy(self.index[rows]), self.images.device)]
        else:
            images = send(torch.from_numpy(self.images[self.index[rows]]), self.device)
        transforms = self.transforms[rows]
        for name in sorted(set(transforms) - {""}):
            places = send(torch.from_numpy(np.flatnonzero(transforms == name)), images.device)
            images[places] = VARIANTS[name](images[places])
        return images, torch.from_numpy(self.labels[rows])


# ---------------------------------------------------------------- command


def add_table_options(parser, several=False):
    """Add the options for the table and its images; several: for one or more tables."""
    if several:
        text = "tables of images and labels, each a source of its own (data.csv)"
        parser.add_argument("--data", nargs="+", default=["data.csv"], metavar="CSV", help=text)
    else:
        parser.add_argument("--data", default="data.csv", metavar="CSV", help="table of images and labels (data.csv)")
    text = "folder that file names are relative to (the table's folder)"
    parser.add_argument("--images", metavar="DIR", help=text)
    text = "label columns to learn (crack inactive)"
    parser.add_argument("--classes", nargs="+", default=list(CLASSES), metavar="NAME", help=text)


def options():
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_table_options(parser, several=True)
    parser.add_argument("--by", metavar="COLUMN", help="count cells by this column too, such as module")
    parser.add_argument("--variants", metavar="DIR", help="write the six variants of every cell as files into DIR")
    text = "compare two people's tables of the same cells, and write a page of the cells in dispute"
    parser.add_argument("--agree", nargs=2, metavar="CSV", help=text)
    parser.add_argument("--disputes", default="disputes.html", metavar="FILE", help="that page (%(default)s)")
    return parser


def compare_people(paths, classes, images, page):
    """Print how far two tables agree, and write a page of the cells in dispute."""
    from elcells.pages.agreement import report_agreement

    first, second = (read_table(path, classes, images) for path in paths)
    root = os.path.abspath(images or Path(paths[0]).parent)
    report_agreement(*paths, first, second, classes, root, page)


@command
def main(argv=None):
    """Command line of this file; returns the exit code."""
    args = options().parse_args(argv)
    if args.agree:
        compare_people(args.agree, args.classes, args.images, args.disputes)
        return
    table = read_tables(args.data, args.classes, args.images)
    fill_images(table, print)
    print(summary(table, args.classes, args.by))
    load_sources(table, tell=print)
    if args.variants:
        print(f"\n{write_variants(table, args.variants)} images and data.csv in {args.variants}")


if __name__ == "__main__":
    raise SystemExit(main())
