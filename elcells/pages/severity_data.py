"""What a report says of how bad defects are: of each cell, and added up over cells.

What a person took back does not count, and what a person added was not measured.
"""

from elcells.inference.severity import part_of_shape
from elcells.records.rows import corrected_severity, final_calls

MODES = "ABC"
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


class Sums:
    """Severity added up over cells: lengths of crack lines, inactive areas, and cells of each mode."""

    def __init__(self):
        self.length = 0.0
        self.cracked = [0, 0]  # cells whose length is known, and others with a crack
        self.area = 0.0
        self.cells = 0  # whose inactive area is known
        self.modes = [0] * len(MODES)

    def add(self, row, judged, classes):
        """Add a cell, a row of Record.cells. judged: its Judged."""
        length, area, mode, _ = judged.severity or (None, None, "", 0)
        called = [name for k, name in enumerate(classes) if judged.calls >> k & 1]
        if "crack" in called:
            self.cracked[length is None] += 1
            self.length += length or 0
        if row["inactive_area"] is not None and (area is not None or "inactive" not in called):
            self.cells += 1
            self.area += area or 0
        if mode:
            self.modes[MODES.index(mode)] += 1

    def data(self):
        """[sum of lengths, cells with one, cells with a crack without one, mean area or None, cells by mode...]."""
        area = round(self.area / self.cells, 5) if self.cells else None
        return [round(self.length, 3), *self.cracked, area, *self.modes]
