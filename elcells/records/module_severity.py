"""How bad the defects of a module's cells are together."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from elcells.records.rows import corrected_severity, final_calls, place_of

MODES = {"mode_A": "A", "mode_B": "B", "mode_C": "C"}  # columns of shares of a module's cells: the crack_mode
MODULE_SEVERITY = ("crack_length", "inactive_area", *MODES)  # columns of modules.csv


@dataclass
class ModuleSeverity:
    """What a module's cells add up to, as people corrected their calls."""

    cells: int = 0
    cracked: int = 0
    measured: int = 0  # cells whose length of cracks is known
    measured_cracked: int = 0  # those of them that are cracked
    length: float = 0.0  # in cell widths
    areas: int = 0  # cells whose inactive area is known
    area: float = 0.0  # in cells
    modes: Counter = field(default_factory=Counter)

    def add(self, is_cracked, length, area, mode):
        """Count a cell; a length or area of None is not known."""
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

    def values(self):
        """Values of MODULE_SEVERITY; None for what is not known of any cell, or of any cell with a crack."""
        area = round(self.area / self.areas, 4) if self.areas else None
        if not self.measured or (self.cracked and not self.measured_cracked):
            return [None, area, *(None for _ in MODES)]
        modes = [round(self.modes[mode] / self.cells, 4) for mode in MODES.values()]
        return [round(self.length, 3), area, *modes]


def severity_of_modules(record):
    """{id of an image: values of MODULE_SEVERITY}."""
    people = record.people()
    modules = defaultdict(ModuleSeverity)
    for row in record.connection.execute("SELECT * FROM cells WHERE row > 0"):
        labels = people.get(place_of(row))
        calls = dict(zip(record.classes, final_calls(row, labels, record.classes)))
        modules[row["image"]].add(bool(calls.get("crack")), *corrected_severity(row, labels, record.classes))
    return {image: module.values() for image, module in modules.items()}
