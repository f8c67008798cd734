"""What a report says of how bad defects are: of each cell, and added up over cells.

What a person took back does not count, and what a person added was not measured.
"""

from elcells.inference.severity import part_of_shape
from elcells.records.module_severity import MODES
from elcells.records.rows import corrected_severity, final_calls

LENGTH_BELOW, AREA_BELOW, HAS_SHAPE = 1, 2, 4  # bits; templates/report_severity.js has the same


def measured_columns(record):
    """Which of crack_length and inactive_area the record has for any cell: two of bool."""
    query = "SELECT count(crack_length) > 0, count(inactive_area) > 0 FROM cells"
    return [bool(value) for value in record.connection.execute(query).fetchone()]


def severity_and_shape(row, labels, classes):
    """([length, area, mode, bits], image that shows them or None) of a row of Record.cells; (None, None) for others.

    labels: the cell's Labels, or None. length: in cell widths, area: in 0..1; None where there is no such defect, or
    where it was not measured.
    """
    calls = dict(zip(classes, final_calls(row, labels, classes)))
    is_crack, is_inactive = (bool(calls.get(name)) for name in ("crack", "inactive"))
    if not is_crack and not is_inactive:
        return None, None
    length, area, mode = corrected_severity(row, labels, classes)
    length = length if is_crack else None
    area = area if is_inactive else None
    shape = part_of_shape(row["shape"], is_crack, is_inactive) if row["shape"] else None
    below = row["below"].split()
    flags = LENGTH_BELOW * (length is not None and "crack_length" in below)
    flags |= AREA_BELOW * (area is not None and "inactive_area" in below)
    flags |= HAS_SHAPE * (shape is not None)
    return [None if length is None else round(length, 3), None if area is None else round(area, 4), mode, flags], shape


def data_of_sums(sums):
    """A SeveritySums as [sum of lengths, cells with one, cells with a crack without one, mean area or None, cells by
    mode...]."""
    area = None if sums.mean_area is None else round(sums.mean_area, 5)
    unknown = sums.cracked - sums.measured_cracked
    modes = [sums.modes[mode] for mode in MODES.values()]
    return [round(sums.length, 3), sums.measured_cracked, unknown, area, *modes]
