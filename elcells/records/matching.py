"""Which images of two records show the same module or cell."""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from elcells.files import counted, printable
from elcells.records.record import WAITING


@dataclass(frozen=True, slots=True)
class Item:
    """An image of a record, as far as it takes to find it in another one.

    image: its id. tail: folders and the name of its file without its suffix, and the page. grid: "10x6", or "" for a
    cell. serial: of the module, "" where it is not known. error: why it was not judged, or "".
    """

    image: int
    path: str
    page: int
    grid: str
    serial: str
    tail: tuple
    error: str

    @property
    def name(self):
        """As open_image takes it."""
        return f"{self.path}#page={self.page}" if self.page else self.path

    @property
    def shown(self):
        """For people."""
        name = printable(self.name)
        return f"{name} (serial {printable(self.serial)})" if self.serial else name


@dataclass
class Matches:
    """What images(before) and images(now) have in common.

    pairs: (Item before, Item now, "serial" or "file name"). doubtful, only_before, only_now: sentences about images
    that are not compared, because it is not clear which image is theirs, or because there is none.
    """

    pairs: list = field(default_factory=list)
    doubtful: list = field(default_factory=list)
    only_before: list = field(default_factory=list)
    only_now: list = field(default_factory=list)


def items(record):
    """Yield an Item for each image of a record."""
    for row in record.images():
        path = Path(row["path"])
        serial = str(json.loads(row["metadata"]).get("serial") or "").strip()
        tail = (*path.parts[:-1], (path.stem, row["page"]))
        error = "not judged yet" if row["status"] == WAITING else row["error"]
        yield Item(row["id"], row["path"], row["page"], row["grid"], serial, tail, error)


def match(before, now):
    """The Matches of two lists of Items.

    Modules with a serial that stands in both records are the same, all others have the same file name. Where a serial
    or a name stands several times, the longest end of the path that tells them apart decides; images that nothing
    tells apart are doubtful. Cells are matched with cells, and modules with modules.
    """
    found = Matches()
    for is_module in (True, False):
        groups = defaultdict(lambda: ([], []))
        both = [[item for item in side if bool(item.grid) == is_module] for side in (before, now)]
        shared = {item.serial for item in both[0]} & {item.serial for item in both[1]} - {""}
        for side, side_items in enumerate(both):
            for item in side_items:
                by_serial = item.serial in shared
                groups[("serial", item.serial) if by_serial else ("file name", *item.tail[-1])][side].append(item)
        for (how, *_), group in groups.items():
            match_group(found, how, *group)
    return found


def match_group(found, how, before, now):
    """Add to the Matches `found` what becomes of Items with the same serial, or file name; how: which it is."""
    left = [{item.image: item for item in side} for side in (before, now)]
    for key in keys_of(before, now):
        unique = [only_ones(side, key) for side in (before, now)]
        for name, item in unique[0].items():
            other = unique[1].get(name)
            if other and item.image in left[0] and other.image in left[1] and can_be_one(item, other):
                found.pairs.append((left[0].pop(item.image), left[1].pop(other.image), how))
    report_rest(found, how, [*left[0].values()], [*left[1].values()])


def keys_of(before, now):
    """Functions that name an Item, the longest names first: by the end of its path without the suffix, then with it."""
    if len(before) == 1 == len(now):  # nothing to tell apart
        yield lambda item: ""
        return
    deepest = max(len(item.tail) for item in before + now) if before and now else 0
    for with_suffix in (False, True):
        for length in range(deepest, 0, -1):
            yield lambda item, n=length, suffix=with_suffix: (*item.tail[-n:], Path(item.path).suffix if suffix else "")


def only_ones(group, key):
    """{name: Item} of the Items whose name, key(item), no other of the group has."""
    named = defaultdict(list)
    for item in group:
        named[key(item)].append(item)
    return {name: same[0] for name, same in named.items() if len(same) == 1}


def can_be_one(a, b):
    """Whether two Items can show the same module: not where they have serials that differ."""
    return not a.serial or not b.serial or a.serial == b.serial


def why_nothing(before, now):
    """A sentence about two lists of Items that have nothing in common: what comes nearest to it, with an example."""
    if not before or not now:
        return f"The record {'of now' if before else 'before'} has no image."
    named = {item.tail[-1]: item for item in before}
    pairs = [(named[item.tail[-1]], item) for item in now if item.tail[-1] in named]
    same_kind = [pair for pair in pairs if bool(pair[0].grid) == bool(pair[1].grid)]
    other_kind = [pair for pair in pairs if bool(pair[0].grid) != bool(pair[1].grid)]
    others = "other serials", "correct the serials with `report.py --metadata` where they show the same module"
    kinds = "a grid in one record only", "judge both with the same --grid"
    for those, (but, advice) in ((same_kind, others), (other_kind, kinds)):
        if those:
            images = counted(len(those), "image has", "images have")
            example = f"for example {those[0][0].shown} before and {those[0][1].shown} now"
            return f"No image is in both records. {images} the same file name but {but}, {example}; {advice}."
    example = f"the first are {before[0].shown} before and {now[0].shown} now"
    return f"No image is in both records: no serial and no file name stands in both ({example})."


def report_rest(found, how, before, now):
    """Add to the Matches what is left of a group: Items that may have a partner are doubtful, others have none."""
    for side, others, alone in ((before, now, found.only_before), (now, before, found.only_now)):
        serials = {other.serial for other in others}
        for item in side:
            if not others or (item.serial and not {"", item.serial} & serials):
                alone.append(item.shown)
                continue
            what = f"serial {printable(item.serial)}" if how == "serial" else f"file name {printable(item.tail[-1][0])}"
            stands = f"{counted(len(before), 'image')} before and {len(now)} now have the {what}"
            found.doubtful.append(f"{item.shown}: {stands}, and nothing tells them apart")
