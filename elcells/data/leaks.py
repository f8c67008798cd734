"""Which cells a network was trained on: the record that travels with its weights, and what it says of other cells.

A record is a dict of two sorted lists of hashes: "train", the cells that the weights were fitted to, and "val", those
that the calibration was fitted to. An image's hash is that of its file. For a cell keeps it under another name, in
another folder or table, at every --image-size, and whatever is made of a camera's depth by its other images; its name
and its pixels do not. Two cells of ELPV are too much alike to be told apart by anything coarser. A re-encoded image
is another cell.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from elcells.data.finding import file_of
from elcells.data.images import THREADS

DIGITS = 12  # of a hash: a hundred thousand cells meet a hundred thousand others' hashes once in 28,000 times
TRAINED, VALIDATED = "train", "val"  # keys of a record, and values of the column `seen`
ANY = (TRAINED, VALIDATED)
SEEN = "were in the training of this network, so what it says of them looks better than it is"  # a note on images
PLACES = {TRAINED: "training", VALIDATED: "validation part"}


def image_hashes(paths):
    """The hash of each image (list of str), of its file and of its page."""
    places = [file_of(path) for path in paths]
    files = list({file for file, _ in places})
    with ThreadPoolExecutor(THREADS) as pool:  # a file of many pages is read once
        hash_of_file = dict(zip(files, pool.map(lambda file: hashlib.sha256(file.read_bytes()), files)))
    return [hash_of_page(hash_of_file[file], page) for file, page in places]


def image_hash(path):
    """The hash of one image, as of `image_hashes`."""
    file, page = file_of(path)
    return hash_of_page(hashlib.sha256(file.read_bytes()), page)


def hash_of_page(hash_of_file, page):
    """The hash of a file's page (0 for its only image) from the file's, a hashlib object, which stays as it is."""
    hash_of_file = hash_of_file.copy()
    if page:
        hash_of_file.update(b"%d" % page)
    return hash_of_file.hexdigest()[:DIGITS]


def with_hashes(table, record=None):
    """A table with the columns `hash` and `seen`: the key of the record's list that has the row's cell, or ""."""
    table = table.assign(hash=image_hashes(table["path"]), seen="")
    if valid_record(record) is None:
        return table
    for name in (VALIDATED, TRAINED):
        cells = table["cell"][table["hash"].isin(record[name])]
        table.loc[table["cell"].isin(cells), "seen"] = name
    return table


def make_record(train, val, inherited=None):
    """The record of a network from the tables of its training and validation part.

    inherited: the record of its initial weights, whose cells count as its own.
    """
    inherited = inherited or {}
    trained = {*train["hash"], *inherited.get(TRAINED, [])}
    validated = {*val["hash"], *inherited.get(VALIDATED, [])} - trained
    return {TRAINED: sorted(trained), VALIDATED: sorted(validated)}


def hashes_of_record(record):
    """All hashes of a record, a frozenset; empty where it is none."""
    return frozenset(cell for name in ANY for cell in record[name]) if valid_record(record) else frozenset()


def valid_record(record):
    """A record as a file has it, or None where that is none."""
    if isinstance(record, dict) and all(isinstance(record.get(name), list) for name in ANY):
        return record
    return None


def contamination(table, network, part="test", kinds=ANY):
    """Which share of the cells of a table with the column `seen` a network was trained on.

    network: path of its file. part: what the table is called. kinds: values of `seen` that count.
    Returns a clause such as "81 % of the test cells (2125 of 2624) were in the training of cells.onnx", "" for none.
    """
    cells = table.drop_duplicates("cell")
    clauses = []
    for kind in kinds:
        count = int((cells["seen"] == kind).sum())
        if count:
            share = f"{100 * count / len(cells):.0f} %" if 200 * count >= len(cells) else "less than 1 %"
            subject = f"{share} of the {part} cells ({count} of {len(cells)})"
            clauses.append(f"{subject} were in the {PLACES[kind]} of {Path(network).name}")
    return " and ".join(clauses)


def leak_lines(parts, network, by):
    """What to say before training of cells that are no fair ones to judge by, a list of lines.

    parts: tables of the training, validation and test part. network: whose weights are taken. by: of the split.
    """
    train_part, val_part, test_part = parts
    lines = []
    if by == "row":
        lines.append("LEAK      variants of the test cells are trained on; the scores will claim too much")
    if tested := contamination(test_part, network):
        lines.append(f"CONTAMINATED  {tested}; the scores will claim too much")
    if validated := contamination(val_part, network, "validation", [TRAINED]):
        lines.append(f"CONTAMINATED  {validated}; the thresholds will be too sure")
    trained = contamination(train_part, network, "training", [TRAINED])
    if trained and not tested and not validated:
        lines.append(f"seen      {trained}; these stay there, whatever --test-size says")
    return lines
