"""What changed between two records of the same modules and cells: new, gone and unchanged defects."""

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from elcells.files import InputError, one_line, printable
from elcells.inference.cells import TOO_DARK, shown
from elcells.inference.doubt import UNSURE, doubt
from elcells.modules.turning import turn_of
from elcells.records.matching import Item, items, match, why_nothing
from elcells.records.rows import corrected_severity, final_calls, place_of, quoted
from elcells.records.runs import FIXED

NEW, GONE, UNCHANGED, NONE, NOT_COMPARABLE = "new", "gone", "unchanged", "none", "not comparable"
STATES = {(0, 1): NEW, (1, 0): GONE, (1, 1): UNCHANGED, (0, 0): NONE}
CERTAIN, NEAR, ONE_RECORD = "", "near", "one record"  # why a change is uncertain; see Change
COMPARED = ("crack_length", "inactive_area")  # that are compared
BLACK = "nearly_black"  # what may be new, gone or unchanged in a cell besides the classes
WHEN = ("before", "now")
OTHER_SIZE = 1.5  # ratio of two images' resolutions from which their calls are hard to compare
OTHER_LENS = 0.01  # difference of two bends from which the cells' edges are cut elsewhere
LENS_NOTE = "cut with another lens now; small changes at the edge mean little"


@dataclass(frozen=True, slots=True)
class Seen:
    """A cell in one of the records.

    calls: final ones, 1, 0 or None (not judged), for each class and for being nearly black. network: its own calls for
    each class. probabilities: for each class, or None. labels: of people, 1, 0 or None for each class. who: labelled
    it, or "". file: relative to the record's folder, "" for an image of a cell. severity: values of COMPARED as people
    corrected the calls, None where they are not known. below: those of COMPARED of which nothing
    was found.
    """

    calls: tuple
    network: tuple
    probabilities: tuple
    labels: tuple
    who: str
    file: str
    severity: tuple = (None,) * len(COMPARED)
    below: tuple = ()


@dataclass(frozen=True, slots=True)
class Change:
    """A cell in both records; before, now: Seen.

    states: one of STATES or NOT_COMPARABLE for each class and for being nearly black. uncertain: for each of them
    CERTAIN, NEAR (a change that a small change of a probability may have made) or ONE_RECORD (a change that only a
    person's label in one of the records made, where nobody labelled the cell in the other one).
    """

    row: int
    column: int
    before: Seen
    now: Seen
    states: tuple
    uncertain: tuple

    @property
    def is_change(self):
        """Whether something is new or gone."""
        return NEW in self.states or GONE in self.states


@dataclass(frozen=True)
class Compared:
    """An image in both records; before, now: Item. how: "serial" or "file name", by which they were matched.

    cells: list of Change. counts: Counter of (place in Change.states, state, why it is uncertain). notes: what to
    bear in mind about a module, sentences. turned: degrees clockwise, or 0.
    """

    before: Item
    now: Item
    how: str
    cells: list
    counts: Counter
    notes: tuple = ()
    turned: int = 0

    def count(self, place, state, whys=(CERTAIN, NEAR, ONE_RECORD)):
        """Number of cells whose state number `place` is this one, and is uncertain for one of these reasons."""
        return sum(self.counts[place, state, why] for why in whys)

    def without_sound_cells(self):
        """The same without the cells that have no defect in either record."""
        return replace(self, cells=[cell for cell in self.cells if any(state != NONE for state in cell.states)])


class Side:
    """One of the two records, as far as it is compared. when: of WHEN. classes: that both records have."""

    def __init__(self, when, record, classes):
        self.when = when
        self.record = record
        self.classes = classes
        self.info = record.info
        self.thresholds = [self.info["thresholds"][record.classes.index(name)] for name in classes]
        self.people = record.people()
        self.modules = {row["image"]: dict(row) for row in record.modules() if row["image"] is not None}
        columns = [name for c in record.classes for name in (c, f"p_{c}")] + [*COMPARED, "crack_mode", "below"]
        self.query = (
            f'SELECT image, row, "column", brightness, error, file, {", ".join(map(quoted, columns))} FROM cells '
            "WHERE image = ?"
        )

    def rows(self, item):
        """The rows of an Item's cells."""
        return self.record.connection.execute(self.query, (item.image,))

    def cells(self, item):
        """{(row, column): Seen} of an Item's cells."""
        return {(row["row"], row["column"]): self.seen(row) for row in self.rows(item)}

    def seen(self, row):
        """A row as Seen. Of a cell that is nearly black or has another error only people's calls count."""
        every = self.record.classes
        given = self.people.get(place_of(row))
        labels = dict(zip(every, given.values if given else [None] * len(every)))
        black = row["error"] == TOO_DARK
        judged = not (black or row["error"])
        calls = dict(zip(every, final_calls(row, given, every))) if judged else labels
        return Seen(
            (*(calls[name] for name in self.classes), None if row["error"] and not black else int(black)),
            tuple(row[name] if judged else None for name in self.classes),
            tuple(row[f"p_{name}"] for name in self.classes),
            tuple(labels[name] for name in self.classes),
            (given and given.who) or "",
            row["file"],
            tuple(corrected_severity(row, given, every)[:2]),
            tuple(row["below"].split()),
        )

    def brightness(self, item):
        """Mean pixels of a module's cells, float (rows, columns), NaN where they are not known."""
        columns, rows = map(int, item.grid.split("x"))
        values = np.full((rows, columns), np.nan)
        for row in self.rows(item):
            values[row["row"] - 1, row["column"] - 1] = np.nan if row["brightness"] is None else row["brightness"]
        return values


@dataclass
class Comparison:
    """Two records compared. before, now: Record, opened for reading. not_compared: sentences about matched images.

    Raises InputError where they are one record, or have no class in common.
    """

    before: object
    now: object
    not_compared: list = field(default_factory=list)

    def __post_init__(self):
        before, now = self.before, self.now
        if before.folder.resolve() == now.folder.resolve():
            raise InputError(f"{now.folder}: is compared with itself; give --before the folder of an earlier record")
        self.classes = tuple(name for name in now.classes if name in before.classes)
        if not self.classes:
            other, own = (", ".join(record.classes) for record in (before, now))
            raise InputError(f"{before.folder}: has other classes ({other}) than {now.folder} ({own})")
        self.sides = [Side(when, record, self.classes) for when, record in zip(WHEN, (before, now))]
        self.items = [[*items(record)] for record in (before, now)]
        self.matches = match(*self.items)

    def compared(self):
        """Yield a Compared for each image that is in both records; those that can't be compared are noted."""
        for before, now, how in self.matches.pairs:
            why = self.obstacle((before, now))
            if why:
                self.not_compared.append(f"{now.shown}: {why}")
            else:
                yield self.compare((before, now), how)

    def obstacle(self, pair):
        """Why a pair of Items can't be compared, or ""."""
        for side, item in zip(self.sides, pair):
            if item.error:
                return f"{side.when}: {one_line(item.error)}"
            if item.grid and item.image not in side.modules:
                return f"{side.when}: no module was found"
        before, now = pair
        if before.grid == now.grid:
            return ""
        turned = self.turned(pair)
        return f"{before.grid} cells before, {now.grid} now" + (f"; {turned_by(turned)}" if turned else "")

    def compare(self, pair, how):
        """The Compared of a pair of Items."""
        before, now = (side.cells(item) for side, item in zip(self.sides, pair))
        nothing = (None,) * len(self.classes)
        none = Seen((*nothing, None), nothing, nothing, nothing, "", "")
        cells = [self.change(*place, before.get(place, none), now.get(place, none)) for place in sorted(before | now)]
        counts = Counter()
        for cell in cells:
            counts.update(zip(range(len(cell.states)), cell.states, cell.uncertain))
        turned = self.turned(pair) if pair[0].grid else 0
        notes = self.notes(pair, turned) if pair[0].grid else ()
        return Compared(*pair, how, cells, counts, notes, turned)

    def change(self, row, column, before, now):
        """The Change of a cell from two Seen."""
        states = tuple(STATES.get(pair, NOT_COMPARABLE) for pair in zip(before.calls, now.calls))
        uncertain = (*(self.why_uncertain(k, states[k], before, now) for k in range(len(self.classes))), CERTAIN)
        return Change(row, column, before, now, states, uncertain)

    def why_uncertain(self, k, state, before, now):
        """Why class k of a cell in a state is an uncertain change; before, now: Seen."""
        if state not in (NEW, GONE):
            return CERTAIN
        labelled_once = (before.labels[k] is None) != (now.labels[k] is None)
        if labelled_once and STATES.get((before.network[k], now.network[k])) != state:
            return ONE_RECORD
        if self.is_near(0, k, before) or self.is_near(1, k, now) or self.is_by_threshold(k, before, now):
            return NEAR
        return CERTAIN

    def is_by_threshold(self, k, before, now):
        """Whether class k of two Seen has changed only because the records have different thresholds."""
        if before.labels[k] is not None or now.labels[k] is not None:
            return False
        pair = before.probabilities[k], now.probabilities[k]
        thresholds = [side.thresholds[k] for side in self.sides]
        return None not in pair and any((pair[0] >= t) == (pair[1] >= t) for t in thresholds)

    def is_near(self, number, k, seen):
        """Whether the network called class k of a Seen in record 0 or 1 with a probability near the threshold."""
        if seen.labels[k] is not None:
            return False
        return doubt([[seen.probabilities[k]]], [self.sides[number].thresholds[k]])[0] < UNSURE

    def turned(self, pair):
        """By how many degrees clockwise a module seems to be turned, or 0."""
        return turn_of(*(side.brightness(item) for side, item in zip(self.sides, pair)))

    def notes(self, pair, turned):
        """What to bear in mind about a module, a tuple of sentences."""
        rows = [side.modules[item.image] for side, item in zip(self.sides, pair)]
        notes = [f"{turned_by(turned)}; compared as it stands, counted in no total"] if turned else []
        notes += [f"grid not sure {when}: {row['why']}" for when, row in zip(WHEN, rows) if not row["sure"]]
        sizes = [row["cell_pixels"] for row in rows]
        if max(sizes) > OTHER_SIZE * min(sizes):
            notes.append(f"cells of {sizes[0]} pixels before and {sizes[1]} now: one image shows finer cracks")
        bends = [row["bend"] for row in rows]
        if None not in bends and abs(bends[1] - bends[0]) > OTHER_LENS:
            notes.append(LENS_NOTE)
        return tuple(notes)

    def warnings(self):
        """Sentences about why nothing matches, and about what differs in how the records were judged."""
        before, now = (side.info for side in self.sides)
        differences = []
        for column, what in FIXED.items():
            if before[column] != now[column]:
                a, b = (self.setting(column, info) for info in (before, now))
                differences.append(f"another {what} ({f'{a} before, {b} now' if a != b else f'both are called {a}'})")
        lines = [] if self.matches.pairs or self.matches.doubtful else [why_nothing(*self.items)]
        lines += [f"Judged with {' and '.join(differences)}: changes may come from that."] if differences else []
        other = sorted({*self.before.classes} ^ {*self.now.classes})
        return lines + [f"Only one record has the class {name}; it is not compared." for name in other]

    def setting(self, column, info):
        """The value of a setting of a run for people. info: of a Record."""
        if column == "thresholds":
            return ", ".join(f"{name} {value:.3f}" for name, value in zip(info["classes"], info["thresholds"]))
        return printable(info["network" if column == "sha256" else column])


def turned_by(degrees):
    """What is said of a module that was turned."""
    return f"the image seems to be turned by {degrees} degrees"


# ---------------------------------------------------------------- comparison.csv


def comparison_fields(classes):
    """Columns of comparison.csv."""
    of_class = ("{}", "{}_uncertain", "{}_before", "{}_now", "p_{}_before", "p_{}_now")
    of_classes = [name.format(c) for c in classes for name in of_class]
    severity = [f"{what}_{when}" for what in COMPARED for when in WHEN]
    of_images = [f"{what}_{when}" for what in ("image", "cell", "person") for when in WHEN]
    return ["module", "serial", "row", "column", *of_classes, *severity, BLACK, *of_images, "matched_by", "notes"]


def comparison_rows(comparison, compared):
    """Yield the rows of comparison.csv about a Compared, lists in the order of comparison_fields."""
    module = comparison.sides[1].modules.get(compared.now.image, {}).get("name", "")
    end = [compared.how, "; ".join(compared.notes)]
    serial = compared.now.serial or compared.before.serial
    images = [item.name for item in (compared.before, compared.now)]
    for cell in compared.cells:
        seen = (cell.before, cell.now)
        row = [module, serial, *((cell.row, cell.column) if module else (None, None))]
        for k, _ in enumerate(comparison.classes):
            probabilities = [None if s.probabilities[k] is None else f"{s.probabilities[k]:.4f}" for s in seen]
            row += [cell.states[k], int(cell.uncertain[k] != CERTAIN), *(s.calls[k] for s in seen), *probabilities]
        row += [shown(name, s.severity[k]) for k, name in enumerate(COMPARED) for s in seen]
        yield [*row, cell.states[-1], *images, *(s.file for s in seen), *(s.who for s in seen), *end]
