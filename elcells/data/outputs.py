"""What earlier runs wrote, which is never taken for an image to judge."""

import re
from pathlib import Path

from elcells.files import CUT, MODULES, OVERLAYS, RECORD, REPORT

TEMPORARY = re.compile(r"\.tmp\d+_")  # how names of files begin that are being written (files.atomic_path)
OF_MODULE = re.compile(r"_[0-9a-f]{8}(\.(png|jpg))?$")  # how names of a module's files end in a results folder


def is_output(path):
    """True for what this project wrote itself and never takes for an image: a file or folder, by its real path.

    These are files that are being written, cells and modules in a results folder (records/work.py), images that its
    report has converted (pages/report.py), and the modules that cut_module.py shows in CELLS_modules beside CELLS.
    """
    path = Path(path)
    if TEMPORARY.match(path.name):
        return True
    below = path.name
    for folder in path.parents:
        is_ours = folder.name in (CUT, OVERLAYS, MODULES, REPORT) and OF_MODULE.search(below)
        if is_ours and (folder.parent / RECORD).exists():
            return True
        cells = folder.name.removesuffix("_modules")
        if cells != folder.name and cells and path.suffix == ".jpg":
            name = path.relative_to(folder).with_suffix("")
            if (folder.with_name(cells) / name / "r01_c01.png").exists():
                return True
        below = folder.name
    return False
