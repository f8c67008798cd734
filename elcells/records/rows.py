"""What the rows of a record's tables mean."""

import json
from collections import namedtuple

from elcells.modules.cutting import CORNERS
from elcells.records.requests import module_name

Labels = namedtuple("Labels", "values who time")  # of a person for a cell; values: 1, 0 or None (unsure) for each class


def image_name(row):
    """The name of a row's image as open_image takes it."""
    return f"{row['path']}#page={row['page']}" if row["page"] else row["path"]


def place_of(row):
    """What tells a cell from the others of its record, (image, row, column); row: of `cells` or `labels`."""
    return row["image"], row["row"], row["column"]


def cell_name_of(record, row):
    """The name of a cell's image as open_image takes it; row: of Record.cells."""
    return str(record.folder / row["file"]) if row["file"] else image_name(row)


def final_calls(row, labels, classes):
    """A cell's calls (1, 0 or None for each class), those of people in place of the network's where there are any.

    row: of Record.cells. labels: the cell's Labels, or None.
    """
    values = labels.values if labels else [None] * len(classes)
    return tuple(row[name] if value is None else value for name, value in zip(classes, values))


def corrected_severity(row, labels, classes):
    """[crack_length, inactive_area, crack_mode] of a cell as people corrected its calls.

    What a person took back is 0 or "". What only a person saw was not measured: None or "".
    row: of Record.cells. labels: the cell's Labels, or None.
    """
    length, area, mode = row["crack_length"], row["inactive_area"], row["crack_mode"]
    if labels is None:
        return [length, area, mode]
    calls = dict(zip(classes, final_calls(row, labels, classes)))
    corrected = {name: call for name, call in calls.items() if row[name] not in (None, call)}
    if "crack" in corrected:
        length = None if corrected["crack"] else 0.0
        mode = ""
    if "inactive" in corrected:
        area = None if corrected["inactive"] else 0.0
        mode = "B" if mode == "C" and not corrected["inactive"] else mode  # a dark part that is not inactive is gray
    return [length, area, mode]


def darkness_of(row):
    """[share of a cell that is dark, its relative brightness] of a row of Record.cells, or None."""
    return [round(row["dark_part"], 3), round(row["dark_ratio"], 3)] if row["dark_part"] else None


def count_of_labelled(connection, image):
    """How many cells of an image, by its id, people labelled."""
    query = 'SELECT count(*) FROM (SELECT DISTINCT row, "column" FROM labels WHERE image = ?)'
    return connection.execute(query, (image,)).fetchone()[0]


def quoted(name):
    """A column's name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def module_row(result):
    """A row of `modules` for an ImageResult."""
    module = result.module
    names = ("columns", "rows", "score", "lead", "why", "cell_pixels", "bend")
    row = {name: getattr(module, name) for name in names} | {
        "name": module_name(result.request.path, result.request.page)
    }
    corners = [round(float(value), 1) for value in module.corners]
    row |= {"sure": int(module.sure), "nodes": json.dumps(module.nodes, separators=(",", ":"))}
    return row | dict(zip(CORNERS, corners))
