"""comparison.html and comparison.csv: what changed between two records of the same modules and cells."""

from collections import Counter

from elcells.colours import TOO_DARK_VERDICT
from elcells.files import counted, printable
from elcells.inference.doubt import unsure_bounds
from elcells.pages.beside import Files, stamp_of
from elcells.pages.comparison_data import MODULES_PER_CHUNK, PageData
from elcells.pages.page import fill, json_of
from elcells.records.comparison import (
    CERTAIN,
    GONE,
    LENS_NOTE,
    NEAR,
    NEW,
    NONE,
    NOT_COMPARABLE,
    ONE_RECORD,
    UNCHANGED,
    Comparison,
    comparison_fields,
    comparison_rows,
)
from elcells.records.exports import write_csv
from elcells.records.runs import now

CHUNKS = "comparison"  # folder of the page's data, beside it
MOST_NAMES = 1000  # of images that are not compared, of each kind, on the page
MOST_LINES = 20  # about single images, on the terminal


def write_comparison(record, before):
    """Compare a Record with an earlier one, both opened for reading; returns lines about what changed.

    Writes comparison.csv, a row for each cell of both, and comparison.html with its data into the folder of `record`.
    Raises InputError where the two can't be compared.
    """
    page = ComparisonPage(Comparison(before, record))
    write_csv(record.folder / "comparison.csv", comparison_fields(page.classes), page.rows())
    page.write()
    return page.lines()


class ComparisonPage:
    """The page about a Comparison; rows() must be read before all else.

    modules: Compared of images of modules. cells: Compared of images of single cells that changed. images: Counter of
    all images that are compared: (is it a module?, how it was matched). counts: Counter of all cells: (place in
    Change.states, state, why it is uncertain), without those of modules that seem to be turned. made: when.
    """

    def __init__(self, comparison):
        self.comparison = comparison
        self.classes = comparison.classes
        self.target = comparison.now.folder / "comparison.html"
        self.made = now()[:16].replace("T", " at ")
        self.modules = []
        self.cells = []
        self.images = Counter()
        self.counts = Counter()

    def rows(self):
        """Yield the rows of comparison.csv."""
        for compared in self.comparison.compared():
            is_module = bool(compared.now.grid)
            self.images[is_module, compared.how] += 1
            if not compared.turned:
                self.counts.update(compared.counts)
            if is_module:
                self.modules.append(compared.without_sound_cells())
            elif any(cell.is_change for cell in compared.cells):
                self.cells.append(compared)
            yield from comparison_rows(self.comparison, compared)
        self.modules.sort(key=self.importance)

    def importance(self, compared):
        """A key that sorts modules: most new defects that are not uncertain first, those that were turned last."""
        certain = sum(compared.count(k, NEW, [CERTAIN]) for k, _ in enumerate(self.classes))
        changes = [sum(compared.count(k, state) for k in range(len(self.classes) + 1)) for state in (NEW, GONE)]
        return (bool(compared.turned), -certain, *(-number for number in changes), compared.now.path, compared.now.page)

    def of(self, k, state):
        """[cells whose class number k is in a state, those of them that are uncertain]."""
        uncertain = sum(self.counts[k, state, why] for why in (NEAR, ONE_RECORD))
        return [self.counts[k, state, CERTAIN] + uncertain, uncertain]

    # ---------------------------------------------------------------- sentences

    def total(self):
        """What was compared, a sentence."""
        cells = sum(number for (k, *_), number in self.counts.items() if k == 0)
        modules, singles = (sum(n for (kind, _), n in self.images.items() if kind == is_module) for is_module in (1, 0))
        images = [counted(modules, "module")] if modules else []
        images += [counted(singles, "image of a cell", "images of cells")] if singles else []
        if not images:
            return "Nothing is compared."
        by_serial = sum(number for (_, how), number in self.images.items() if how == "serial")
        how = f"{by_serial} matched by serial, the others by file name" if by_serial else "matched by file name"
        how = "matched by serial" if by_serial == modules + singles else how
        turned = len(self.turned())
        without = f", without those of {counted(turned, 'module')} that seem{'s' * (turned == 1)} to be turned"
        end = f"{counted(cells, 'cell')} compared{without if turned else ''}."
        return f"{' and '.join(images)} in both records, {how}; {end}"

    def when(self):
        """When the comparison was made, a sentence."""
        return f"Compared on {self.made}. Labels that were given after that are not in it."

    def turned(self):
        """Compared of modules that seem to be turned; nothing else counts their cells."""
        return [compared for compared in self.modules if compared.turned]

    def spans(self, side):
        """The probabilities that are near the thresholds of a Side: "crack 0.25 to 0.71, …"."""
        bounds = unsure_bounds(side.thresholds)
        return ", ".join(f"{name} {low:.2f} to {high:.2f}" for name, low, high in zip(self.classes, *bounds))

    def meaning(self):
        """What the words of the page mean."""
        spans = [self.spans(side) for side in self.comparison.sides]
        near = spans[0] if spans[0] == spans[1] else f"before: {spans[0]}; now: {spans[1]}"
        return (
            "New: a defect now, none before. Gone: the other way round. The label of a person counts instead of the "
            "network's call. Uncertain: before or now, the network's probability is within 1 logit of the threshold "
            f"({near}), where another exposure can be enough to change the call: no proof that something grew or "
            "healed. A change is uncertain too where only the threshold is another one, and where it comes from a "
            "person's label in one record only: in the other one the network may be wrong as well. A nearly black cell "
            "is not judged, so its defects are not comparable, and never gone."
        )

    def lists(self):
        """Pairs of a title and sentences: all images that are not compared."""
        before, now = (printable(side.record.folder) for side in self.comparison.sides)
        matches = self.comparison.matches
        some = [
            ("can't be compared", self.comparison.not_compared),
            ("not compared, because it is not clear which is which", matches.doubtful),
            (f"only in the record before ({before})", matches.only_before),
            (f"only in the record of now ({now})", matches.only_now),
        ]
        return [(f"{counted(len(names), 'image')} {title}", first_of(names)) for title, names in some if names]

    def lines(self):
        """Lines for the terminal about what changed, warnings first."""
        before, now = (printable(side.record.folder) for side in self.comparison.sides)
        lines = [f"{now} compared with {before}:", *self.warnings(), self.total()]
        words = ((NEW, GONE, UNCHANGED), ("newly black", "lit again", "still black"))
        for k, name in enumerate((*self.classes, "nearly black") if self.images else ()):
            texts = []
            for state, word in zip(words[0], words[k == len(self.classes)]):
                number, uncertain = self.of(k, state)
                texts.append(f"{number} {word}" + (f" ({uncertain} uncertain)" if uncertain else ""))
            lines.append(f"{name}: {', '.join(texts)}")
        notes = [(compared, note) for compared in self.modules for note in compared.notes if note != LENS_NOTE]
        named = [f"{compared.now.shown}: {note}" for compared, note in notes]
        for title, sentences in self.lists():
            named += [f"{title}:", *(f"  {sentence}" for sentence in sentences)]
        if len(named) > MOST_LINES:
            named[MOST_LINES:] = [f"… and {len(named) - MOST_LINES} more lines; comparison.html has them all."]
        return [*lines, *named, f"{self.target} and comparison.csv show every cell."]

    def sides(self):
        """Rows about both records: what it is, before, now."""
        sides = self.comparison.sides
        rows = [
            ["record", *(printable(side.record.folder) for side in sides)],
            ["judged", *(judged(side.record) for side in sides)],
            ["network", *(printable(side.info["trained"] or side.info["network"]) for side in sides)],
        ]
        for k, name in enumerate(self.classes):
            rows.append([f"{name} counts from", *(f"{side.thresholds[k]:.3f}" for side in sides)])
        counts = [[side.record.count(f"grid {sign} ''") for side in sides] for sign in ("!=", "=")]
        rows += [[name, *map(str, pair)] for name, pair in zip(("modules", "images of cells"), counts) if any(pair)]
        people = [len({labels.who for labels in side.people.values()}) for side in sides]
        labels = [
            f"{len(side.people)} by {counted(n, 'person', 'people')}" if n else "none" for side, n in zip(sides, people)
        ]
        return rows + ([["cells labelled", *labels]] if any(people) else [])

    def warnings(self):
        """Sentences at the top of the page."""
        lines = self.comparison.warnings()
        if self.comparison.matches.pairs and not self.images:
            lines.append("No image that is in both records can be compared; each is named with the reason.")
        if turned := self.turned():
            cells = sum(cell.is_change for compared in turned for cell in compared.cells)
            lines.append(
                f"{counted(len(turned), 'module seems', 'modules seem')} to be turned, and compared as shown: the "
                f"changes of {counted(cells, 'cell')} there mean nothing, and no total counts them. Such modules come "
                "last."
            )
        if other_lens := sum(LENS_NOTE in compared.notes for compared in self.modules):
            lines.append(
                f"{counted(other_lens, 'module was', 'modules were')} cut with another lens now, which shifts the "
                "edges of cells: small changes there mean little. The lens is found from all modules of a folder."
            )
        return lines

    def counts_of(self, k):
        """A row of the page's counts: new, uncertain, gone, uncertain, unchanged, none, not comparable."""
        others = [self.of(k, state)[0] for state in (UNCHANGED, NONE, NOT_COMPARABLE)]
        return [*self.of(k, NEW), *self.of(k, GONE), *others]

    # ---------------------------------------------------------------- files

    def write(self):
        """Write the page, and its data into the folder CHUNKS beside it, but for what it shows at first."""
        stamp = stamp_of(*(side.record for side in self.comparison.sides))
        files = Files(self.target.parent / CHUNKS, stamp)
        data = PageData(self.comparison, self.modules, self.cells, files)
        embedded = data.first_chunks()
        for name, value in data.chunks():
            if name in embedded:
                embedded[name] = value
            else:
                files.write_chunk(name, json_of(value))
        about = {
            "chunks": CHUNKS,
            "stamp": stamp,
            "modules_per_chunk": MODULES_PER_CHUNK,
            "classes": self.classes,
            "black": TOO_DARK_VERDICT,
            "made": self.when(),
            "sides": self.sides(),
            "warnings": self.warnings(),
            "total": self.total(),
            "meaning": self.meaning(),
            "counts": [self.counts_of(k) for k in range(len(self.classes) + 1)],
            "lists": self.lists(),
            "modules": data.module_rows(),
            "changes": data.changes(),
            "small": data.small_images(),
        }
        fill("comparison.html", self.target, about, embedded)
        files.remove_others()


def first_of(names):
    """The first names in order, and how many more there are."""
    names = sorted(names)
    more = len(names) - MOST_NAMES
    return names if more <= 0 else [*names[:MOST_NAMES], f"… and {more} more"]


def judged(record):
    """The days on which a record's images were judged, such as "2026-11-28"."""
    query = "SELECT min(judged), max(judged) FROM images WHERE judged IS NOT NULL"
    first, last = (text[:10] if text else "not yet" for text in record.connection.execute(query).fetchone())
    return first if first == last else f"{first} to {last}"
