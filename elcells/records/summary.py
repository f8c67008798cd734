"""What the user should look at in a record."""

from elcells.files import counted
from elcells.records.record import FAILED, WAITING

FINE_CRACKS = 150  # pixels of a cell; fine cracks are missed with fewer
MOST_LINES = 20  # about single images


def lines_about(record):
    """Lines about images that failed, modules that are not sure, and small cells; of the whole record."""
    errors = [row["error"] for row in record.images() if row["status"] == FAILED]
    if waiting := record.count(f"status = '{WAITING}'"):
        errors.insert(0, f"{counted(waiting, 'image')} of a run that was stopped not judged yet; give them again.")
    modules = [row for row in record.modules() if row["image"] is not None]
    return lines_of(errors, modules, "report.html")


def lines_of(errors, modules, where):
    """The same from lines about images and rows of the table `modules` with their paths. where: all of them are."""
    doubtful = [row for row in modules if not row["sure"]]
    lines = [f"{row['path']}: not sure ({row['why']}); look at its image, or give --corners" for row in doubtful]
    lines = errors + lines
    if len(lines) > MOST_LINES:
        lines[MOST_LINES:] = [f"… and {len(lines) - MOST_LINES} more; {where} has them all."]
    small = [row["cell_pixels"] for row in modules if row["cell_pixels"] < FINE_CRACKS]
    if small:
        few = f"{len(small)} of {counted(len(modules), 'module')}"
        verb = "has" if len(small) == 1 else "have"
        lines.append(
            f"{few} {verb} under {FINE_CRACKS} pixels a cell (down to {min(small)}): fine cracks will be missed."
        )
    return lines
