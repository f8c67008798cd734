"""The split that a checkpoint records: how it is written, compared, and found again in a table."""

from elcells.data.splits import combination, expand_variants, in_cell_order, originals, split_parts
from elcells.data.tables import CLASSES
from elcells.files import InputError

PARTS = ("train", "val", "test")


def record_split(parts, by, classes=CLASSES):
    """What a checkpoint stores of a split: dict of by, and of each of PARTS {cell, or image by "row": its labels}."""
    record = {"by": by}
    for name, part in zip(PARTS, parts):
        record[name] = dict(zip(_names(part, by), combination(part, classes)))
    return record


def _names(table, by):
    """What a recorded split calls each row (Series of str): its cell, or by "row" its image."""
    return table["cell"] + "|" + table["variant"] if by == "row" else table["cell"]


def difference_of_splits(before, now):
    """How a split differs from the recorded one, a clause that names a cell; "" if it does not, or without a record."""
    if not before or not now:
        return ""
    old = _places(before)
    new = _places(now)
    for name in sorted(old.keys() - new.keys()):
        return f"{name} was in the {old[name][0]} part and is missing now"
    for name in sorted(new.keys() - old.keys()):
        return f"{name} was not there and is in the {new[name][0]} part now"
    for name in sorted(old):
        if old[name][1] != new[name][1]:
            return f"{name} was labelled {old[name][1]} and is {new[name][1]} now"
    for name in sorted(old):
        if old[name] != new[name]:
            return f"{name} was in the {old[name][0]} part and is in the {new[name][0]} part now"
    return ""


def _places(split):
    """{name: (part, labels)} of a recorded split."""
    return {name: (part, labels) for part in PARTS for name, labels in split[part].items()}


def part_of_checkpoint(table, split, part, classes=CLASSES):
    """Rows of a checkpoint's "train", "val" or "test" part in a table, each cell as it is (by "row": all images).

    split: the checkpoint's record of its split (`record_split`), or None for the default split of this table by cell.
    Raises InputError if the table holds none of these cells, or can't be split.
    """
    if split is None:
        split = record_split(split_parts(table, classes=classes), "cell", classes)
    rows = in_cell_order(expand_variants(table) if split["by"] == "row" else originals(table))
    names = _names(rows, split["by"])
    source = rows["source"].iloc[0]
    if rows["source"].nunique() == 1 and any(name.startswith(f"{source}:") for name in split[part]):
        names = source + ":" + names  # the network was trained on several tables, of which this is one
    in_part = names.isin(split[part].keys())
    if not in_part.any():
        raise InputError(f"the table holds no cell of the checkpoint's {part} part; give its own table")
    return rows[in_part].reset_index(drop=True)
