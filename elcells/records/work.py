"""The work behind a record: images are read or cut, judged, and their files are written; by this process or others."""

import contextlib
import functools
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from elcells.data.images import THREADS, camera_name, examine, read_errors, size_of
from elcells.data.leaks import SEEN, hashes_of_record, image_hash
from elcells.data.levels import NEARLY_BLACK
from elcells.data.suspicions import LIKE_MODULE
from elcells.files import CUT, MODULES, OVERLAYS, InputError, atomic_path, counted, one_line, reason
from elcells.inference.cells import DIM_NOTE, CellResult, cell_of_image, judge
from elcells.inference.networks import Network, open_network
from elcells.inference.onnx_files import cores
from elcells.modules.cutting import CutModule
from elcells.modules.judging import cells_of_module, draw_results
from elcells.modules.lens import FEWEST, lens_of
from elcells.modules.saving import cut_and_save
from elcells.records.record import JUDGED, is_same_file
from elcells.records.requests import ImageResult, Request, module_name

WORKERS_A_CORE = 4  # more would only wait
JPEG_QUALITY = 90  # of modules in their own resolution


@dataclass(frozen=True)
class Work:
    """How Requests become ImageResults: in two steps, so that the next ones are read while the network works.

    network: Network. folder: of the results, for the files of modules; "" where there are none.
    """

    network: Network
    folder: str = ""

    def prepare(self, requests):
        """Read the images of Requests, and cut modules: list of Prepared."""
        size = open_network(self.network).image_size
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(lambda request: self.prepared(request, size), requests))

    def prepared(self, request, size):
        """One Request read or cut."""
        try:
            if request.grid:
                return self.prepared_module(request, size)
            return prepared_cell(request, size, trained_on(self.network))
        except OSError:  # the results can't be written
            raise
        except Exception as error:  # one odd image must not end a run
            text = f"{request.name}: can't be judged ({reason(error)})"
            return Prepared(request, () if request.grid else ((None, CellResult(request.name, error=text)),), text)

    def prepared_module(self, request, size):
        """A module cut, and its cells saved in the folder."""
        name = module_name(request.path, request.page)
        folder = Path(self.folder) / CUT
        corners = np_corners(request.corners)
        module = cut_and_save(name, folder, request.name, *request.grid, corners, request.bend)
        cells = cells_of_module(module, name, CUT, size)
        notes = module.notes
        if cells and np.median([cell.brightness for _, cell in cells]) < NEARLY_BLACK:
            notes = (*notes, DIM_NOTE)
        return Prepared(request, tuple(cells), module.error, notes, module)

    def finish(self, prepared):
        """Judge what was prepared, all cells together, and draw modules: list of ImageResult."""
        engine = open_network(self.network)
        thresholds = engine.thresholds(self.network.operating_point)
        judged = iter(judge(engine, thresholds, [cell for image in prepared for cell in image.cells]))
        results = []
        for image in prepared:
            cells = tuple(next(judged) for _ in image.cells)
            module = None
            if image.module is not None and not image.error:
                name = module_name(image.request.path, image.request.page)
                draw_results(image.module, Path(self.folder) / OVERLAYS / f"{name}.jpg", cells, engine.classes)
                with atomic_path(Path(self.folder) / MODULES / f"{name}.jpg") as temporary:
                    image.module.image.save(temporary, "JPEG", quality=JPEG_QUALITY)
                module = image.module.without_images()
            results.append(ImageResult(image.request, image.error, image.notes, cells, module))
        return results


@dataclass(frozen=True, eq=False)
class Prepared:
    """A Request whose image is read: its cells as pairs that `judge` takes, or an error."""

    request: Request
    cells: tuple = ()
    error: str = ""
    notes: tuple = ()
    module: CutModule | None = None


@functools.lru_cache(maxsize=2)
def trained_on(network):
    """Hashes of the images that a Network was trained or calibrated with, as far as its file says."""
    return hashes_of_record(open_network(network).metadata.get("trained_on"))


def prepared_cell(request, size, known=frozenset()):
    """The image of a cell; known: hashes of images that the network was trained with."""
    try:
        pixels, notes, own_size = examine(request.name, size)
        with read_errors(request.name):
            was_in_training = bool(known) and image_hash(request.name) in known
    except InputError as error:
        text = one_line(str(error))
        return Prepared(request, ((None, CellResult(request.name, error=text)),), text)
    if was_in_training:
        notes = (*notes, SEEN)
    cell = cell_of_image(request.name, pixels, notes, own_size)
    return Prepared(request, (cell,), "", cell[1].notes)


def np_corners(corners):
    """Eight numbers as find_grid takes them, float (4, 2), or None for ()."""
    return np.array(corners, float).reshape(4, 2) if corners else None


# ---------------------------------------------------------------- who does it


class Here:
    """This process does the work; the next images are read in threads meanwhile."""

    AHEAD = 3  # tasks

    def results(self, work, tasks):
        """Yield the ImageResults of tasks (lists of Requests), in order."""
        with ThreadPoolExecutor(2) as pool:
            waiting = []
            try:
                for task in tasks:
                    waiting.append(pool.submit(work.prepare, task))
                    if len(waiting) > self.AHEAD:
                        yield from work.finish(waiting.pop(0).result())
                while waiting:
                    yield from work.finish(waiting.pop(0).result())
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def map(self, function, items, files_of_item=None):
        """Results of a function, in order."""
        return map(function, items)


def check_workers(count):
    """Raise InputError for a number of --workers that is none, or more than the cores can use."""
    if count < 1:
        raise InputError(f"--workers {count}: must be at least 1")
    if count > (most := WORKERS_A_CORE * cores()):
        raise InputError(f"--workers {count}: give at most {most}, {WORKERS_A_CORE} for each core that it may use")


@contextlib.contextmanager
def workers(count=1, address=None):
    """The context with what does the work: this process, `count` others, or the Dask cluster at an address."""
    if address is None and count == 1:
        yield Here()
        return
    from elcells.records.cluster import cluster  # needs Dask

    with cluster(count, address) as others:
        yield others


def tasks_of(requests, batch_size):
    """Requests as tasks (lists): a module is one, cells are taken together."""
    tasks = []
    for request in requests:
        if request.grid or not tasks or tasks[-1][0].grid or len(tasks[-1]) == batch_size:
            tasks.append([])
        tasks[-1].append(request)
    return tasks


# ---------------------------------------------------------------- modules


def with_lenses(lens, requests, todo, who):
    """Requests of modules that are to do, with the lens of their camera.

    The lens is found once for all images of a camera that have one size, before the first of them is judged. Where
    the images do not name their camera, it is that of their folder. requests: all of the run. lens: as Record.lens,
    which keeps it, so that no later run finds another.
    """
    waiting = {(request.path, request.page) for request in todo if request.grid}
    if not waiting:
        return todo
    groups = {}
    modules = [request for request in requests if request.grid]
    with ThreadPoolExecutor(THREADS) as pool:
        cameras = pool.map(lambda request: (camera_name(request.name), size_of(request.name)), modules)
        for request, (camera, size) in zip(modules, cameras):
            key = camera or os.path.dirname(request.path), size, request.grid
            groups.setdefault(key, []).append(request)
    bends = {}
    for (camera, size, grid), members in groups.items():
        if waiting.isdisjoint((member.path, member.page) for member in members):
            continue
        names = [os.path.join(os.getcwd(), member.name) for member in members]  # a worker's folder may be another
        find = functools.partial(lens_of, names, *grid, functools.partial(with_bar, who.map))
        bend = lens(camera, size, members[0].grid_text, find if len(members) >= FEWEST else None)
        bends.update({(member.path, member.page): bend for member in members})
    return [replace(request, bend=bends.get((request.path, request.page))) for request in todo]


def with_bar(run, function, items):
    """run(function, items) behind a bar."""
    return tqdm(run(function, items), "lens of the camera", len(items), unit="module", leave=False)


def forget_gone(record, requests):
    """Remove from a record what its images were and can't be again, so that nothing waits for them.

    These are pages that a changed file has no more, and files that are gone and were never judged.
    Returns their number.
    """
    forgotten = 0
    asked = {}
    for request in requests:
        asked.setdefault(request.path, {})[request.page] = request
    for row in list(record.images()):
        pages = asked.get(row["path"])
        if pages is None:
            gone = row["status"] != JUDGED and is_gone(row["path"])
        elif row["page"] in pages:
            gone = False
        else:
            request = next(iter(pages.values()))
            gone = not is_same_file(row, request) or bool(row["page"]) != bool(request.page)
        if gone:
            remove_files(record.folder, module_name(row["path"], row["page"]))
            record.forget(row["id"])
            forgotten += 1
    return forgotten


def lines_about_gone(record, requests):
    """A line about images of a record that are gone from the disk, though their results stay."""
    asked = {request.path for request in requests}
    gone = sum(row["path"] not in asked and not os.path.lexists(row["path"]) for row in record.images())
    if not gone:
        return []
    images = counted(gone, f"image of {record.folder} is", f"images of {record.folder} are")
    return [f"{images} gone from the disk; the results stay and count. For images that were moved give a new --out."]


def refuse_other_grids(record, requests):
    """Raise InputError where an image is now to be cut otherwise, and its cells would be lost, although people labelled
    them, the grid is sure, or it looks like a cell. A file that is another one now may have another grid."""
    labelled = {row["image"] for row in record.connection.execute("SELECT DISTINCT image FROM labels")}
    sure = {row["image"] for row in record.connection.execute("SELECT image FROM modules WHERE sure")}
    of_people, of_sure_modules, of_cells = [], [], []
    for request in requests:
        row = record.known(request.path, request.page)
        if row is None or row["grid"] == request.grid_text:
            continue
        if row["id"] in labelled:
            of_people.append(f"{request.name}: people labelled it as {row['grid'] or 'a cell'}")
        elif is_same_file(row, request) and row["id"] in sure:
            of_sure_modules.append(f"{request.name}: was surely cut as {row['grid']}")
        elif is_same_file(row, request) and is_judged_cell(row):
            of_cells.append(f"{request.name}: was judged as a cell")
    if others := of_people or of_sure_modules or of_cells:
        more = f", like {len(others) - 1} other images" if len(others) > 1 else ""
        raise InputError(f"{others[0]}{more}; give --grid or --metadata as before, or another --out")


def is_judged_cell(row):
    """Whether an image, a row of a record, was judged as a cell and does not look like a module."""
    return not row["grid"] and row["status"] == JUDGED and LIKE_MODULE not in json.loads(row["notes"])


def is_gone(path):
    """Whether a file is gone, though its folder is there."""
    return not os.path.lexists(path) and os.path.isdir(os.path.dirname(path))


def remove_files(folder, name):
    """Remove the files of a module, by its name."""
    shutil.rmtree(folder / CUT / name, ignore_errors=True)
    for shown in (folder / OVERLAYS / f"{name}.jpg", folder / MODULES / f"{name}.jpg"):
        shown.unlink(missing_ok=True)


def tidy(record, result):
    """Remove the files of a module that an image was, where its new result has none."""
    request = result.request
    row = record.known(request.path, request.page)
    is_module = request.grid and not result.error
    if not is_module and (request.grid or row["grid"]):
        remove_files(record.folder, module_name(request.path, request.page))
