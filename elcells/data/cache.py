"""The images of a table as one array, decoded once and cached on disk."""

import contextlib
import json
import os
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from elcells.data.images import IMAGE_SIZE, THREADS, as_lines, examine, file_of
from elcells.files import InputError, atomic_path


def load_images(table, size=IMAGE_SIZE, tell=None):
    """All images of a table as one array, decoded once and cached on disk in the folder that holds them all.

    A folder has one cache a size, for all tables: an array that is mapped, not read, and a JSON file with each
    image's place in it, its file's size and times, and what was assumed of it. Images that are new or have changed
    are decoded, those that are gone leave it.
    tell: function that gets a line for each thing that had to be assumed of some images (`examine`).
    Returns (images, index): uint8 (P, 1, size, size), read-only, with images of other tables among them where they
    are cached too, and int (N,), the image of each row.
    Raises InputError for the first image that can't be read.
    """
    paths, rows = np.unique([os.path.abspath(p) for p in table["path"]], return_inverse=True)
    try:
        stamps = [_stamp(p) for p in paths]
    except OSError as error:
        raise InputError(f"{error.filename}: can't be read ({error.strerror})") from None
    folder = Path(os.path.commonpath([os.path.dirname(p) for p in paths]))
    names = [Path(p).relative_to(folder).as_posix() for p in paths]
    known, images = _read_cache(folder, size)
    fresh = [i for i, name in enumerate(names) if known.get(name, {}).get("stamp") != stamps[i]]
    if fresh:
        fresh_names = {names[i] for i in fresh}
        kept = [n for n, k in known.items() if n not in fresh_names and _unchanged(folder / n, k["stamp"])]
        notes = {}

        def fill(array):
            """Copy what is kept, and decode the rest behind it."""
            for place, name in enumerate(kept):
                array[place] = images[known[name]["place"]]
            with ThreadPoolExecutor(THREADS) as pool:
                found = pool.map(lambda i: examine(paths[i], size), fresh)
                try:
                    bar = tqdm(zip(fresh, found), "decoding", len(fresh), unit="image", leave=False)
                    for place, (i, (pixels, assumed)) in enumerate(bar, len(kept)):
                        array[place, 0], notes[names[i]] = pixels, assumed
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise

        shape = (len(kept) + len(fresh), 1, size, size)
        everything = [*kept, *(names[i] for i in fresh)]

        def entries():
            now = {names[i]: {"stamp": stamps[i], "notes": notes[names[i]]} for i in fresh}
            return {n: {**(now.get(n) or known[n]), "place": place} for place, n in enumerate(everything)}

        try:
            known, images = _write_cache(folder, size, shape, fill, entries)
        except OSError:  # a read-only or full disk costs the cache, not the run
            array = np.empty(shape, np.uint8)
            fill(array)
            known, images = entries(), array
    if tell:
        for line in as_lines(Counter(note for n in names for note in known[n]["notes"])):
            tell(line)
    return images, np.array([known[n]["place"] for n in names])[rows]


class Joined:
    """Arrays of images uint8 (P, 1, S, S) that are indexed by rows (int array) as one, without being copied."""

    def __init__(self, arrays):
        self.arrays = arrays
        self.starts = np.cumsum([0, *map(len, arrays)])
        self.shape = (int(self.starts[-1]), *arrays[0].shape[1:])

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        rows = np.asarray(rows)
        which = np.searchsorted(self.starts, rows, "right") - 1
        found = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for i in np.unique(which):
            found[which == i] = self.arrays[i][rows[which == i] - self.starts[i]]
        return found


def load_sources(table, size=IMAGE_SIZE, tell=None):
    """`load_images` of a table of several sources, each with its own cache; the images as one (`Joined`)."""
    if table["source"].nunique() == 1:
        return load_images(table, size, tell)
    arrays, index = [], np.zeros(len(table), int)
    for name in table["source"].unique():
        rows = (table["source"] == name).to_numpy()
        images, places = load_images(table[rows], size, tell)
        index[rows] = places + sum(map(len, arrays))
        arrays.append(images)
    return Joined(arrays), index


def _stamp(path):
    """What tells that a file is another one than before."""
    stat = os.stat(file_of(path)[0])
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _unchanged(path, stamp):
    """True if a file is there and the same as when `stamp` was taken of it."""
    with contextlib.suppress(OSError):
        return _stamp(path) == stamp
    return False


def _read_cache(folder, size):
    """A folder's cache: dict of name -> {place, stamp, notes}, and the mapped images; empty where there is none."""
    for _ in range(2):  # another process may put a new one in its place meanwhile
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            about = json.loads((folder / f".cache_{size}.json").read_text())
            images = np.load(folder / about["array"], mmap_mode="r")
            known = about["images"]
            places = [k["place"] for k in known.values() if "stamp" in k and "notes" in k]
            if images.shape == (len(known), 1, size, size) and sorted(places) == list(range(len(known))):
                return known, images
    return {}, None


def _write_cache(folder, size, shape, fill, entries):
    """Write a folder's cache and remove the one before; fill(array) makes the images, then entries() tells of them.

    The array gets a name of its own, which the JSON file gives: the pair changes in one step, and Windows, which can't
    replace a mapped file, need not. Returns what _read_cache does.
    """
    array_path = folder / f".cache_{size}_{os.getpid()}_{time.time_ns()}.npy"
    about = folder / f".cache_{size}.json"
    with atomic_path(array_path) as temporary:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        fill(array)
        array.flush()
        del array
    known = entries()
    with atomic_path(about) as temporary:
        temporary.write_text(json.dumps({"array": array_path.name, "images": known}))
    images = np.load(array_path, mmap_mode="r")
    for outdated in folder.glob(".cache_*"):
        of_another_size = re.match(r"\.cache_\d{1,5}[_.]", outdated.name) and not outdated.match(f".cache_{size}_*")
        if outdated not in (array_path, about) and not of_another_size:
            with contextlib.suppress(OSError):
                outdated.unlink()
    return known, images
