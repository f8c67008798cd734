"""What a user's table says about images: serial number, string, grid, whatever columns it has."""

import json

from elcells.data.naming import Names
from elcells.data.tables import read_rows
from elcells.files import InputError, counted
from elcells.modules.cutting import grid_size
from elcells.records.exports import module_fields
from elcells.records.rows import image_name

GRID = "grid"  # the column that is not kept but says how an image is cut


def read_metadata(path, names, classes):
    """Read a `;`-separated table with `filename` and any other columns for images: {name: {column: text}}.

    names: of the images, as find_images gives them. classes: of the network. Returns this and lines about rows that
    belong to no image. Raises InputError, naming the line, where a row may mean several images or two rows mean one,
    and for a column with the name of one in modules.csv, or nearly that of GRID.
    """
    table = read_rows(path, ["filename"])
    for name in table.columns.intersection(module_fields(classes)).drop("filename"):
        raise InputError(f"{path}, line 1: modules.csv has a column {name!r} of its own; rename yours")
    for name in table.columns:
        if name != GRID and name.strip().lower() == GRID:
            raise InputError(f"{path}, line 1: the column {name!r} must be called {GRID!r}")
    images = Names(path, names)
    values = {}
    strangers = []
    for line, row in table.iterrows():
        meant = images.meant(line, row["filename"])
        for name in meant:
            if name in values:
                raise InputError(f"{path}, line {line}: {row['filename']} stands there twice; remove one row")
            values[name] = {column: text for column, text in row.items() if column != "filename" and text}
        if not meant:
            strangers.append(f"line {line}: {row['filename']}")
    if not values:
        raise InputError(f"{path}: no row belongs to any of the images (the first is {strangers[0]})")
    rows = counted(len(strangers), "row belongs", "rows belong")
    return values, [f"{path}: {rows} to no image ({strangers[0]})"] if strangers else []


def grids_of(path, metadata):
    """The grids (columns, rows) of images: {name: grid}; metadata: of read_metadata, path: of its table."""
    grids = {}
    for name, values in metadata.items():
        if values.get(GRID):
            try:
                grids[name] = grid_size(values[GRID])
            except InputError as error:
                raise InputError(f"{path}: {name}: {error}") from None
    return grids


def keep_metadata(record, metadata):
    """Keep metadata of images in a record; metadata: {(path, page): {column: text}}."""
    with record.connection:
        for row in list(record.images()):
            values = metadata.get((row["path"], row["page"]))
            if values is not None:
                kept = {column: text for column, text in values.items() if column != GRID}
                text = json.dumps(json.loads(row["metadata"]) | kept, ensure_ascii=False)
                record.connection.execute("UPDATE images SET metadata = ? WHERE id = ?", (text, row["id"]))


def metadata_of_record(record, path):
    """What a table says about the images of a record, as `keep_metadata` takes it, and lines about rows of no image."""
    rows = {image_name(row): (row["path"], row["page"]) for row in record.images()}
    metadata, lines = read_metadata(path, list(rows), record.classes)
    return {rows[name]: values for name, values in metadata.items()}, lines
