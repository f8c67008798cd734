"""How cells are divided into training, validation and test part, so that nothing of a cell stands on two sides."""

import functools
import warnings

import numpy as np
import pandas as pd
from PIL import Image

from elcells.data.tables import CLASSES
from elcells.files import InputError

# scikit-learn is imported where it is used: programs that only read images come by here too.

SPLIT_SEED = 2
RARE = "rare"  # stratum of the combinations of labels that a single group has

# Prefix of a variant's file name -> (on a tensor (1, H, W), the same as a lossless Pillow operation).
VARIANTS = {
    "": (lambda a: a, None),
    "rot_": (lambda a: a.rot90(1, (-2, -1)), Image.Transpose.ROTATE_90),
    "rot2_": (lambda a: a.rot90(3, (-2, -1)), Image.Transpose.ROTATE_270),
    "rot3_": (lambda a: a.rot90(2, (-2, -1)), Image.Transpose.ROTATE_180),
    "mirrh_": (lambda a: a.flip(-2), Image.Transpose.FLIP_TOP_BOTTOM),
    "mirrv_": (lambda a: a.flip(-1), Image.Transpose.FLIP_LEFT_RIGHT),
}


def combination(table, classes=CLASSES):
    """Labels of each row as one string such as 'crack=1 inactive=0' (Series of str)."""
    return pd.Series([" ".join(f"{c}={v}" for c, v in zip(classes, row)) for row in table[list(classes)].values])


def expand_variants(table):
    """All six variants of each row (DataFrame of 6 N rows), to be made exactly from the one file when it is used.

    A table that brings its variants as files is returned unchanged.
    """
    if (table["variant"] != "").any():
        return table
    parts = [table.assign(variant=v, transform=v) for v in VARIANTS]
    return pd.concat(parts, ignore_index=True)


def originals(table):
    """The rows that show a cell as it is, not turned or mirrored (what validation and test are measured on)."""
    return table[table["variant"] == ""].reset_index(drop=True)


def groups(table, by):
    """Key of what must not be divided by a split (Series of str): by "cell", "module", or "row" (each image)."""
    if by == "row":
        return table["filename"] + "|" + table["transform"]
    if by not in table:
        raise InputError(f"no column {by!r} in the table, which splitting by {by} needs; split by cell")
    blank = table[by] == ""
    if blank.any():
        name = table["filename"][blank.idxmax()]
        raise InputError(f"{name} and {blank.sum() - 1} more have no {by}, which splitting by {by} needs; fill it in")
    return table[by].astype(str)


def stratified_folds(labels, keys, folds, seed=SPLIT_SEED):
    """Rows of each of `folds` parts, which together are all rows (scikit-learn's StratifiedGroupKFold, or the much
    faster StratifiedKFold where no group has two rows).

    labels: Series, whose values keep their shares in every part. keys: Series, whose groups stay together.
    Returns a list of int arrays. Raises InputError when there are fewer groups than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if keys.nunique() < folds:
        raise InputError(f"{keys.nunique()} groups are too few for {folds} parts; take fewer parts or split by cell")
    kind = StratifiedKFold if keys.is_unique else StratifiedGroupKFold
    splitter = kind(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # about combinations rarer than the folds
        warnings.simplefilter("ignore", UserWarning)
        return [test for _, test in splitter.split(labels, labels, keys)]


def split_cells(table, test_size=0.1, by="cell", seed=SPLIT_SEED, classes=CLASSES):
    """Stratified split into training and test rows.

    Rows of one group never stand on both sides; the combinations of labels keep their shares.

    table: DataFrame from read_table.
    test_size: share of groups in the test part, 0 < test_size < 1; by module the nearest 1/k.
    by: "cell" (the image and all its variants); "module" (all cells of a module: scikit-learn's
        StratifiedGroupKFold, the fold whose shares of labels come closest to the whole table's); or "row" (each
        image by itself, as the original recipe did: variants of one cell stand on both sides, so its scores
        claim too much).
    Returns (train, test), two DataFrames with fresh indices.
    A combination that only one group has goes with the other rare ones.
    Raises InputError when a label has too few groups to appear on both sides.
    """
    if not 0 < test_size < 1:
        raise InputError(f"test size is {test_size}, expected a share between 0 and 1")
    if by not in ("cell", "module", "row"):
        raise InputError(f"can't split by {by!r}, expected cell, module or row")
    labels = combination(table, classes)
    keys = groups(table, by)
    if by == "module":
        parts = stratified_folds(labels, keys, max(2, round(1 / test_size)), seed)
        shares = labels.value_counts(normalize=True)

        def distance(rows):
            part = labels[rows].value_counts(normalize=True).reindex(shares.index, fill_value=0)
            return ((part - shares) ** 2 / shares).sum()

        in_test = pd.Series(False, index=table.index)
        in_test.iloc[min(parts, key=distance)] = True
    else:
        rng = np.random.default_rng(seed)
        test = []
        alone = keys.groupby(labels.values).transform("nunique") == 1
        for stratum, names in keys.groupby(labels.mask(alone.values, RARE).values):
            names = rng.permutation(names.unique())
            least = 0 if stratum == RARE else 1
            test.extend(names[: max(least, round(test_size * len(names)))])
        in_test = keys.isin(test)
    for name in classes:
        for value in table[name].unique():
            has = (table[name] == value).values
            if not (in_test & has).any() or not (~in_test & has).any():
                n = keys[has].nunique()
                raise InputError(
                    f"{name}={value}: {n} {by}{'s' * (n != 1)} with this label can't stand on both sides of the split; "
                    "add more such cells or leave the label out"
                )
    return table[~in_test].reset_index(drop=True), table[in_test].reset_index(drop=True)


def by_source(split):
    """A function from a table to its parts, made to divide the cells of each source by themselves.

    So a table is divided alone as it is beside others. Raises InputError as the function does, naming the source.
    """

    @functools.wraps(split)
    def each(table, *args, **more):
        names = table["source"].unique()
        if len(names) == 1:
            return split(table, *args, **more)
        parts = []
        for name in names:
            try:
                parts.append(split(table[table["source"] == name].reset_index(drop=True), *args, **more))
            except InputError as error:
                raise InputError(f"source {name}: {error}") from None
        return tuple(pd.concat(part, ignore_index=True) for part in zip(*parts))

    return each


@by_source
def split_parts(table, by="cell", test_size=0.1, val_size=0.1, seed=SPLIT_SEED, classes=CLASSES):
    """Training, validation and test part of a table, ready to be made into data sets.

    First the test part is taken, then the validation part from the rest, from each source's cells. The training part
    holds the six variants of its cells, the others the cells as they are (by="row": just the images that fell into
    them, whatever the variant).
    Returns (train, val, test), three DataFrames. Raises InputError as split_cells does.
    """
    rest, test = split_cells(expand_variants(table) if by == "row" else table, test_size, by, seed, classes)
    train, val = split_cells(rest, val_size, by, seed, classes)
    if by == "row":
        return train, val, test
    return expand_variants(train), originals(val), originals(test)


def adapt_parts(table, val_size=0.1, seed=SPLIT_SEED, classes=CLASSES, folds=0, fold=0):
    """`split_parts` for adapting a network to one's own cells, those of all sources but the first.

    The first source's cells are divided as ever, so that its test part shows what was forgotten. One's own are few, so
    they are for training and, beside the first source's, for validation; with `folds` those of one fold are the test
    part instead. A table of one source is all one's own, and divided as ever.
    """
    first = table["source"] == table["source"].iloc[0]
    if first.all():
        return (
            fold_parts(table, folds, fold, "cell", val_size, seed, classes)
            if folds
            else split_parts(table, "cell", 0.1, val_size)
        )
    train, first_val, test = split_parts(
        table[first].reset_index(drop=True), val_size=val_size, seed=seed, classes=classes
    )
    own = table[~first].reset_index(drop=True)
    if folds:
        own_train, val, test = fold_parts(own, folds, fold, "cell", val_size, seed, classes)
    else:
        own_train, val = by_source(split_cells)(own, val_size, "cell", seed, classes)
    both = [train, expand_variants(own_train)], [first_val, originals(val)]
    return *(pd.concat(parts, ignore_index=True) for parts in both), test


@by_source
def fold_parts(table, folds, fold, by="cell", val_size=0.1, seed=SPLIT_SEED, classes=CLASSES):
    """`split_parts` for cross-validation: every image is in the test part of one of the folds 0 ... folds - 1."""
    rows = expand_variants(table) if by == "row" else originals(table)
    in_test = np.zeros(len(rows), bool)
    in_test[stratified_folds(combination(rows, classes), groups(rows, by), folds, seed)[fold]] = True
    train, val = split_cells(rows[~in_test].reset_index(drop=True), val_size, by, seed, classes)
    if by != "row":  # a table's own variants of the training cells belong to training
        train = expand_variants(table[table["cell"].isin(train["cell"])].reset_index(drop=True))
    return train, val, rows[in_test].reset_index(drop=True)


def record_split(val, test, by, seed=SPLIT_SEED):
    """What a checkpoint stores of a split, a dict: by, seed, and the groups of the validation and the test part."""
    return {"by": by, "seed": seed, **{k: sorted(set(groups(t, by))) for k, t in (("val", val), ("test", test))}}


def recorded_part(table, split, part):
    """Rows of a recorded split's "train", "val" or "test" part in a table, each cell as it is (see split_parts).

    Raises InputError when the table holds none of them.
    """
    rows = expand_variants(table) if split["by"] == "row" else originals(table)
    keys = groups(rows, split["by"])
    if rows["source"].nunique() == 1 and any(key.startswith(f"{rows['source'][0]}:") for key in split["test"]):
        keys = rows["source"] + ":" + keys  # one of the tables that it was trained on
    recorded = {k: [key.replace("\\", "/") for key in split[k]] for k in ("val", "test")}  # some from Windows
    chosen = ~keys.isin(recorded["val"] + recorded["test"]) if part == "train" else keys.isin(recorded[part])
    if not chosen.any():
        raise InputError(f"the table holds no cell of the checkpoint's {part} part; give its own table")
    return rows[chosen].reset_index(drop=True)
