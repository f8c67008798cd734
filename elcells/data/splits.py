"""Variants of cells, and the division of cells into training, validation and test part without leaks."""

import warnings

import numpy as np
import pandas as pd
from PIL import Image

from elcells.data.leaks import ANY, TRAINED
from elcells.data.tables import CLASSES
from elcells.files import InputError, counted

# scikit-learn is imported where it is used: programs that only read images import this file too.

SPLIT_SEED = 2
RARE = "rare"  # stratum of all combinations of labels that only one group has

# Variants of a cell, by the prefix of their files' names: made from a tensor (..., H, W), and from a Pillow image.
VARIANTS = {
    "": lambda images: images,
    "rot_": lambda images: images.rot90(1, (-2, -1)),
    "rot2_": lambda images: images.rot90(3, (-2, -1)),
    "rot3_": lambda images: images.rot90(2, (-2, -1)),
    "mirrh_": lambda images: images.flip(-2),
    "mirrv_": lambda images: images.flip(-1),
}
TRANSPOSES = {
    "rot_": Image.Transpose.ROTATE_90,
    "rot2_": Image.Transpose.ROTATE_270,
    "rot3_": Image.Transpose.ROTATE_180,
    "mirrh_": Image.Transpose.FLIP_TOP_BOTTOM,
    "mirrv_": Image.Transpose.FLIP_LEFT_RIGHT,
}


def combination(table, classes=CLASSES):
    """Labels of each row as one string such as 'crack=1 inactive=0' (Series of str)."""
    rows = table[list(classes)].to_numpy()
    return pd.Series([" ".join(f"{name}={label}" for name, label in zip(classes, row)) for row in rows])


def expand_variants(table):
    """All six variants of each row (DataFrame of 6 N rows); batches make them from the one file without loss.

    A table that already lists variants as files is returned unchanged.
    """
    if (table["variant"] != "").any():
        return table
    return pd.concat([table.assign(variant=name, transform=name) for name in VARIANTS], ignore_index=True)


def in_cell_order(table):
    """The rows by variant to be made, cell and file: a split belongs to cells, in whatever order a table lists them."""
    place = table["transform"].map(list(VARIANTS).index)
    return table.assign(place=place).sort_values(["place", "cell", "filename"], ignore_index=True).drop(columns="place")


def originals(table):
    """The rows that show a cell as it is, not turned or mirrored; validation and test use only these."""
    return table[table["variant"] == ""].reset_index(drop=True)


def group_keys(table, by):
    """The group of each row (Series of str), which a split keeps together: by "cell", "module" or "row" (each image).

    Raises InputError for a missing column or blank entries.
    """
    if by == "row":
        return table["filename"] + "|" + table["transform"]
    if by not in table:
        raise InputError(f"no column {by!r} in the table, which splitting by {by} needs; give --split cell")
    blank = table[by] == ""
    if blank.any():
        name = table["filename"][blank.idxmax()]
        raise InputError(f"{name} and {blank.sum() - 1} more have no {by}, which splitting by {by} needs; fill it in")
    return table[by].astype(str)


def stratified_folds(labels, keys, folds):
    """Divide all rows into `folds` parts of similar labels, keeping groups together.

    Uses scikit-learn's StratifiedGroupKFold, or the much faster StratifiedKFold if no group has two rows. The parts
    depend on the order of the rows.
    labels: Series, whose values keep their shares in every part. keys: Series, the group of each row.
    Returns a list of int arrays, the rows of each part. Raises InputError if there are fewer groups than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if keys.nunique() < folds:
        raise InputError(
            f"{keys.nunique()} groups are too few for {folds} parts; give fewer --folds, a larger --test-size or "
            "--val-size, or --split cell"
        )
    kind = StratifiedKFold if keys.is_unique else StratifiedGroupKFold
    splitter = kind(folds, shuffle=True, random_state=SPLIT_SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some combinations of labels are rarer than the folds
        return [test for _, test in splitter.split(labels, labels, keys)]


def split_cells(table, test_size=0.1, by="cell", classes=CLASSES, kept=ANY):
    """Stratified split into training and test rows.

    Rows of one group never stand on both sides; the combinations of labels keep their shares. It does not depend on the
    order of the rows.

    table: DataFrame from read_table.
    test_size: share of groups in the test part, 0 < test_size < 1; by module the nearest 1/k.
    by: "cell" (the image and all its variants); "module" (all cells of a module: the fold of scikit-learn's
        StratifiedGroupKFold whose label shares come closest to the whole table's); or "row" (each image by itself, as
        the original recipe did: variants of one cell stand on both sides, so its scores are too good).
    kept: which cells stay out of the test part, by the table's column `seen` (`with_hashes`), if it has one and if the
        other cells are enough for a test part with every label.
    Returns (train, test), two DataFrames with fresh indices. A combination of labels that only one group has is
    stratified together with the other rare ones.
    Raises InputError if a label has too few groups to appear on both sides.
    """
    if not 0 < test_size < 1:
        raise InputError(f"test size is {test_size}, expected a share between 0 and 1")
    if by not in ("cell", "module", "row"):
        raise InputError(f"can't split by {by!r}, expected cell, module or row")
    table = in_cell_order(table)
    in_test = _drawn(table, test_size, by, classes)
    if "seen" in table and (in_test & table["seen"].isin(kept)).any():
        unseen_in_test = _drawn_from_unseen(table, test_size, by, classes, kept)
        if _one_sided(table, unseen_in_test, classes) is None:
            in_test = unseen_in_test
    one_sided = _one_sided(table, in_test, classes)
    if one_sided:
        name, value = one_sided
        count = group_keys(table, by)[table[name] == value].nunique()
        raise InputError(
            f"{name}={value}: {counted(count, by)} with this label can't stand on both sides of the split; "
            "add more such cells or leave the label out of --classes"
        )
    return table[~in_test].reset_index(drop=True), table[in_test].reset_index(drop=True)


def _drawn(table, test_size, by, classes):
    """Which rows `split_cells` draws for the test part (bool array); all, where that is not fewer."""
    labels = combination(table, classes)
    keys = group_keys(table, by)
    if test_size >= 1 or keys.nunique() == 1:
        return np.ones(len(table), bool)
    if by == "module":
        return _typical_fold(labels, keys, max(2, round(1 / test_size)))
    return keys.isin(_stratified_sample(labels, keys, test_size)).to_numpy()


def _drawn_from_unseen(table, test_size, by, classes, kept):
    """`_drawn` from the groups without a kept cell alone: as many, or all where there are fewer."""
    keys = group_keys(table, by)
    is_unseen = ~keys.isin(keys[table["seen"].isin(kept)]).to_numpy()
    in_test = np.zeros(len(table), bool)
    groups = keys[is_unseen].nunique()
    if groups > 0:
        share = test_size * keys.nunique() / groups
        in_test[is_unseen] = _drawn(table[is_unseen].reset_index(drop=True), share, by, classes)
    return in_test


def _one_sided(table, in_test, classes):
    """(class, label) of a label that is not on both sides of a split, or None."""
    for name in classes:
        for value in table[name].unique():
            has_value = (table[name] == value).to_numpy()
            if not (in_test & has_value).any() or not (~in_test & has_value).any():
                return name, value
    return None


def _typical_fold(labels, keys, folds):
    """The fold whose shares of labels come closest to those of all rows, as a bool array (N,)."""
    shares = labels.value_counts(normalize=True)

    def distance(rows):
        fold_shares = labels[rows].value_counts(normalize=True).reindex(shares.index, fill_value=0)
        return ((fold_shares - shares) ** 2 / shares).sum()

    in_fold = np.zeros(len(labels), bool)
    in_fold[min(stratified_folds(labels, keys, folds), key=distance)] = True
    return in_fold


def _stratified_sample(labels, keys, share):
    """A share of the groups of each combination of labels, at least one of each that several groups have (list)."""
    rng = np.random.default_rng(SPLIT_SEED)
    is_rare = keys.groupby(labels.to_numpy()).transform("nunique") == 1
    strata = labels.mask(is_rare.to_numpy(), RARE).to_numpy()
    sample = []
    for stratum, stratum_keys in keys.groupby(strata):
        shuffled = rng.permutation(stratum_keys.unique())
        least = 0 if stratum == RARE else 1
        sample.extend(shuffled[: max(least, round(share * len(shuffled)))])
    return sample


def split_parts(table, by="cell", test_size=0.1, val_size=0.1, classes=CLASSES):
    """Training, validation and test part of a table, ready to be made into data sets.

    Each source is divided by itself: first the test part is taken, then the validation part from the rest. The
    training part holds the six variants of its cells, the others the cells as they are (by="row": the images that fell
    into each part, whatever the variant). Cells that the initial weights were trained on stay in the training part
    (`split_cells`).
    Returns (train, val, test), three DataFrames. Raises InputError as split_cells does.
    """

    def split(cells):
        rows = expand_variants(cells) if by == "row" else cells
        rest, test = split_cells(rows, test_size, by, classes)
        train, val = split_cells(rest, val_size, by, classes, kept=[TRAINED])
        if by == "row":
            return train, val, test
        return expand_variants(train), originals(val), originals(test)

    return _split_each_source(table, split)


def fold_parts(table, folds, fold, by="cell", val_size=0.1, classes=CLASSES):
    """`split_parts` for cross-validation: every image is in the test part of one of the folds 0 ... folds - 1."""

    def split(cells):
        rows = expand_variants(cells) if by == "row" else originals(cells)
        tested = stratified_folds(combination(rows, classes), group_keys(rows, by), folds)[fold]
        in_test = np.zeros(len(rows), bool)
        in_test[tested] = True
        train, val = split_cells(rows[~in_test].reset_index(drop=True), val_size, by, classes, kept=[TRAINED])
        if by != "row":  # variants that the table lists as files belong to training too
            train = expand_variants(cells[cells["cell"].isin(train["cell"])].reset_index(drop=True))
        return train, val, rows[in_test].reset_index(drop=True)

    return _split_each_source(table, split)


def adapt_parts(table, test_size=0.1, val_size=0.1, classes=CLASSES, folds=0, fold=0):
    """`split_parts` for adapting a network to new cells, those of all sources but the first.

    The first source is divided as in training, so that its test part shows what the network has forgotten. The new
    cells are few: they go into training and, beside the first source's, into validation, and none are tested. With
    `folds`, the test part holds the new cells of one fold instead of the first source's. A table of one source has
    only new cells and is divided by split_parts or fold_parts.
    """
    is_first = table["source"] == table["source"].iloc[0]
    if is_first.all():
        if folds:
            return fold_parts(table, folds, fold, val_size=val_size, classes=classes)
        return split_parts(table, test_size=test_size, val_size=val_size, classes=classes)
    first_cells = table[is_first].reset_index(drop=True)
    new_cells = table[~is_first].reset_index(drop=True)
    first_train, first_val, test = split_parts(first_cells, test_size=test_size, val_size=val_size, classes=classes)
    if folds:
        new_train, new_val, test = fold_parts(new_cells, folds, fold, val_size=val_size, classes=classes)
    else:
        new_train, new_val = _split_each_source(
            new_cells, lambda cells: split_cells(cells, val_size, "cell", classes, kept=[TRAINED])
        )
    train = pd.concat([first_train, expand_variants(new_train)], ignore_index=True)
    val = pd.concat([first_val, originals(new_val)], ignore_index=True)
    return train, val, test


def _split_each_source(table, split):
    """The parts that split(cells) makes of each source's cells, joined; so no source changes another one's split."""
    table = in_cell_order(table)
    sources = sorted(table["source"].unique())
    if len(sources) == 1:
        return split(table)
    splits = []
    for source in sources:
        cells = table[table["source"] == source].reset_index(drop=True)
        try:
            splits.append(split(cells))
        except InputError as error:
            raise InputError(f"source {source}: {error}") from None
    return tuple(pd.concat(parts, ignore_index=True) for parts in zip(*splits))
