"""The images of a table as one array, decoded once and cached on disk."""

import contextlib
import errno
import json
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from elcells.data.finding import file_of
from elcells.data.images import IMAGE_SIZE, THREADS, as_lines, examine, is_deep
from elcells.data.levels import mark_of_folder
from elcells.files import InputError, atomic_path, folder_of_all

DECODING = 5  # of what is made of an image; caches of another one are decoded anew


def load_images(table, size=IMAGE_SIZE, tell=None):
    """All images of a table as one array, decoded once and cached on disk in the deepest folder that holds them all.

    A folder has one cache per size, shared by all tables: an array that is memory-mapped, and a JSON file with an
    entry for each image: its place in the array, its file's size and times, what was assumed about it, and for images
    of more than 8 bits a mark of the images beside it, which their depth depends on. New and changed images are
    decoded; images that no longer exist are dropped.
    tell: function that gets a line for each assumption about some of the images (`examine`).
    Returns (images, index): uint8 (P, 1, size, size), read-only, which may hold images of other tables too, and
    int (N,), the place of each row's image.
    Raises InputError for the first image that can't be read.
    """
    paths, rows = np.unique([os.path.abspath(p) for p in table["path"]], return_inverse=True)
    folder = folder_of_all(paths)
    if folder is None:  # on several drives of Windows: each folder has its own cache
        return load_groups(table, [os.path.dirname(p) for p in paths[rows]], size, tell)
    folder = Path(folder)
    names = [Path(p).relative_to(folder).as_posix() for p in paths]
    try:
        stamps = {name: _stamp(path) for name, path in zip(names, paths)}
    except OSError as error:
        raise InputError(f"{error.filename}: can't be read ({error.strerror}); correct the table's row") from None
    entries, images = _read_cache(folder, size)
    stale = [name for name in names if not _is_fresh(entries.get(name), folder / name, stamps[name])]
    if stale:
        entries, images = _update_cache(folder, size, entries, images, {name: stamps[name] for name in stale})
    if tell:
        notes = Counter(note for name in names for note in entries[name]["notes"])
        for line in as_lines(notes):
            tell(line)
    places = np.array([entries[name]["place"] for name in names])
    return images, places[rows]


def load_sources(table, size=IMAGE_SIZE, tell=None):
    """`load_images` of a table of several sources, each with its own cache; the images as one `JoinedImages`."""
    if table["source"].nunique() == 1:
        return load_images(table, size, tell)
    return load_groups(table, table["source"], size, tell)


def load_groups(table, groups, size, tell):
    """`load_images` of each group of a table's rows by itself; groups: a name for each row."""
    groups = np.asarray(groups)
    arrays = []
    index = np.zeros(len(table), int)
    start = 0
    for group in dict.fromkeys(groups):
        in_group = groups == group
        images, places = load_images(table[in_group], size, tell)
        index[in_group] = start + places
        start += len(images)
        arrays.append(images)
    return JoinedImages(arrays), index


class JoinedImages:
    """Several arrays of images uint8 (P, 1, S, S), indexed by rows (int array) as if they were one, without a copy."""

    def __init__(self, arrays):
        self.arrays = arrays
        self.starts = np.cumsum([0, *map(len, arrays)])

    def __getitem__(self, rows):
        rows = np.asarray(rows)
        array_numbers = np.searchsorted(self.starts, rows, "right") - 1
        images = np.empty((len(rows), *self.arrays[0].shape[1:]), np.uint8)
        for number in np.unique(array_numbers):
            chosen = array_numbers == number
            images[chosen] = self.arrays[number][rows[chosen] - self.starts[number]]
        return images


def _stamp(path):
    """Size and times of an image's file, which tell whether it has changed."""
    stat = os.stat(file_of(path)[0])
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _is_fresh(entry, path, stamp):
    """Whether a cache's entry (None: there is none) was made of a file with this stamp, beside the images of today."""
    if entry is None or entry["stamp"] != stamp:
        return False
    return entry["beside"] is None or entry["beside"] == mark_of_folder(path)


def _is_unchanged(path, stamp):
    """True if a file exists and still has this stamp."""
    with contextlib.suppress(OSError):
        return _stamp(path) == stamp
    return False


def _read_cache(folder, size):
    """A folder's cache: entries (dict of name -> {place, stamp, notes, beside}) and mapped images, or ({}, None)."""
    for _ in range(2):  # another process may replace the cache between the two reads
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            cache = json.loads((folder / f".cache_{size}.json").read_text(encoding="utf-8"))
            if cache["decoding"] != DECODING:
                break
            images = np.load(folder / cache["array"], mmap_mode="r")
            entries = cache["images"]
            places = [entry["place"] for entry in entries.values() if {"stamp", "notes", "beside"} <= entry.keys()]
            if images.shape == (len(entries), 1, size, size) and sorted(places) == list(range(len(entries))):
                return entries, images
    return {}, None


def _update_cache(folder, size, entries, images, stamps):
    """Write a new cache: the old one's images that are unchanged, then those of `stamps` (name -> stamp), decoded.

    Returns the new entries and images; in memory if the folder can't be written (read-only, disk full).
    """
    kept = [name for name in entries if name not in stamps and _is_unchanged(folder / name, entries[name]["stamp"])]

    def fill(array):
        """Fill the new array; returns its entries."""
        new_entries = {}
        for place, name in enumerate(kept):
            array[place] = images[entries[name]["place"]]
            new_entries[name] = {**entries[name], "place": place}
        for place, (name, pixels, notes, beside) in enumerate(_decode(folder, list(stamps), size), len(kept)):
            array[place, 0] = pixels
            new_entries[name] = {"stamp": stamps[name], "notes": notes, "beside": beside, "place": place}
        return new_entries

    shape = (len(kept) + len(stamps), 1, size, size)
    try:
        return _write_cache(folder, size, shape, fill)
    except OSError:
        array = np.empty(shape, np.uint8)
        return fill(array), array


def _decode(folder, names, size):
    """Yield (name, pixels, notes, mark of the images beside it or None) of each image, decoded by several threads."""

    def decode(name):
        pixels, notes, _ = examine(folder / name, size)
        return name, pixels, notes, mark_of_folder(folder / name) if is_deep(folder / name) else None

    with ThreadPoolExecutor(THREADS) as pool:
        try:
            yield from tqdm(pool.map(decode, names), "decoding", len(names), unit="image", leave=False)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _reserve(path):
    """Take a file's whole size on the disk; OSError where it is full: writing to the mapped file would kill us then."""
    if not hasattr(os, "posix_fallocate"):  # Windows takes it by itself
        return
    with open(path, "r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise  # others are file systems that can't


def _write_cache(folder, size, shape, fill):
    """Write a folder's cache and remove the previous one; fill(array) fills the array and returns the entries.

    The array's file has a new name each time, given in the JSON file. So the pair changes in one step, and no mapped
    file has to be replaced, which Windows refuses. Returns what _read_cache does.
    """
    array_path = folder / f".cache_{size}_{os.getpid()}_{time.time_ns()}.npy"
    with atomic_path(array_path) as temporary:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        _reserve(temporary)
        entries = fill(array)
        array.flush()
        del array
    with atomic_path(folder / f".cache_{size}.json") as temporary:
        cache = {"decoding": DECODING, "array": array_path.name, "images": entries}
        temporary.write_text(json.dumps(cache), encoding="utf-8")
    images = np.load(array_path, mmap_mode="r")
    for outdated in folder.glob(f".cache_{size}_*"):
        if outdated != array_path:
            with contextlib.suppress(OSError):
                outdated.unlink()
    return entries, images
