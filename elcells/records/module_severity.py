"""How bad the defects of cells are together, as people corrected their calls."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from elcells.records.rows import corrected_severity, final_calls, place_of

MODES = {"mode_A": "A", "mode_B": "B", "mode_C": "C"}  # columns of shares of a module's cells: the crack_mode
MODULE_SEVERITY = ("crack_length", "inactive_area", *MODES)  # columns of modules.csv


@dataclass
class SeveritySums:
    """What cells add up to."""

    cells: int = 0
    cracked: int = 0
    measured: int = 0  # cells whose length of cracks is known
    measured_cracked: int = 0  # those of them that are cracked
    length: float = 0.0  # in cell widths
    areas: int = 0  # cells whose inactive area is known
    area: float = 0.0  # in cells
    modes: Counter = field(default_factory=Counter)

    def add(self, row, labels, classes):
        """Count a cell, a row of Record.cells. labels: its Labels, or None."""
        calls = dict(zip(classes, final_calls(row, labels, classes)))
        is_cracked = bool(calls.get("crack"))
        length, area, mode = corrected_severity(row, labels, classes)
        self.cells += 1
        self.cracked += is_cracked
        self.modes[mode] += 1
        if length is not None:
            self.measured += 1
            self.measured_cracked += is_cracked
            self.length += length
        if area is not None:
            self.areas += 1
            self.area += area

    @property
    def mean_area(self):
        """The mean inactive area, or None where it is not known of any cell."""
        return self.area / self.areas if self.areas else None

    def of_module(self):
        """Values of MODULE_SEVERITY; None for what is not known of any cell, or of any cell with a crack."""
        area = None if self.mean_area is None else round(self.mean_area, 6)
        if not self.measured or (self.cracked and not self.measured_cracked):
            return [None, area, *(None for _ in MODES)]
        modes = [round(self.modes[mode] / self.cells, 4) for mode in MODES.values()]
        return [round(self.length, 3), area, *modes]


def severity_of_modules(record):
    """{id of an image: values of MODULE_SEVERITY}."""
    people = record.people()
    modules = defaultdict(SeveritySums)
    for row in record.connection.execute("SELECT * FROM cells WHERE row > 0"):
        modules[row["image"]].add(row, people.get(place_of(row)), record.classes)
    return {image: module.of_module() for image, module in modules.items()}
