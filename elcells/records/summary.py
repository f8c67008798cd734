"""What the user should look at in a record."""

from elcells.data.images import FINE_CRACKS
from elcells.files import counted
from elcells.records.labels import corrections, lines_about_people
from elcells.records.record import FAILED, WAITING
from elcells.records.rows import quoted

MOST_LINES = 20  # about single images


def lines_about(record):
    """Lines about a whole record: its counts, images that failed, modules that are not sure, and small cells."""
    errors = [row["error"] for row in record.images() if row["status"] == FAILED]
    if waiting := record.count(f"status = '{WAITING}'"):
        errors.insert(0, f"{counted(waiting, 'image')} of a run that was stopped not judged yet; give them again.")
    modules = [row for row in record.modules() if row["image"] is not None]
    dropped = []
    if record.dropped:
        cells = counted(record.dropped, "cell")
        dropped = [
            f"Labels of {cells} were dropped: since people gave them, the image, its grid or its corners changed."
        ]
    return [counts_of(record), *dropped, *lines_about_people(record), *lines_of(errors, modules, "report.html")]


def counts_of(record):
    """Such as "results: 300 images, 312 cells, 40 crack, 12 inactive, 1 failed; report.html shows them"."""
    sums = ", ".join(f"sum({quoted(name)})" for name in record.classes)
    cells, *defects = record.connection.execute(f"SELECT count(*), {sums} FROM cells").fetchone()
    defects = [number or 0 for number in defects]
    for _, k, call, label in corrections(record):
        defects[k] += label - (call or 0)
    counts = [counted(record.count(), "image"), counted(cells, "cell")]
    counts += [f"{number} {name}" for name, number in zip(record.classes, defects)]
    if failed := record.count(f"status = '{FAILED}'"):
        counts.append(f"{failed} failed")
    pages = "report.html shows them"
    if (record.folder / "review.html").exists():
        pages += ", review.html is for labelling"
    return f"{record.folder}: {', '.join(counts)}; {pages}."


def lines_of(errors, modules, where):
    """The lines of `lines_about` from lines about images and rows of the table `modules` with their paths.

    where: the page that has all of them.
    """
    doubtful = [row for row in modules if not row["sure"]]
    lines = [f"{row['path']}: not sure ({row['why']}); look at its image, or give --corners" for row in doubtful]
    lines = errors + lines
    if len(lines) > MOST_LINES:
        lines[MOST_LINES:] = [f"… and {len(lines) - MOST_LINES} more; {where} has them all."]
    small = line_about_small([row["cell_pixels"] for row in modules])
    return [*lines, small] if small else lines


def line_about_small(cell_pixels):
    """Such as "2 of 6 modules have under 150 pixels a cell …" from the pixels of a cell of each module, or ""."""
    small = [pixels for pixels in cell_pixels if pixels < FINE_CRACKS]
    if not small:
        return ""
    few = f"{len(small)} of {counted(len(cell_pixels), 'module')}"
    verb = "has" if len(small) == 1 else "have"
    return f"{few} {verb} under {FINE_CRACKS} pixels a cell (down to {min(small)}): fine cracks will be missed."
