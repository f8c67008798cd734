"""The page on which a person labels cells: those first on which a look pays most."""

import hashlib
import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from elcells.data.images import read_image, symmetries
from elcells.files import InputError
from elcells.pages.page import UNSURE, class_maps_of, doubt, fill, read_results, source_of

MOST = 5000  # cells of a page
TURNED = 200  # cells, the next nearest to the thresholds, whose eight symmetries are compared
SAMPLE = 100  # sure cells, drawn at random
NEAR, DIFFER, RANDOM = "close to a threshold", "turned or mirrored it is judged otherwise", "sure, drawn at random"


def choose(rows, engine, seed=0):
    """Which judged rows are shown, in order, and why: list of (row, reason).

    rows: dicts of `read_results`. Near ones first, by how near; then those of the next nearest whose eight symmetries
    the network does not judge alike; then SAMPLE of the others.
    """
    order = np.argsort(doubts := doubt([r["p"] for r in rows], engine.thresholds), kind="stable")
    near = [i for i in order if doubts[i] < UNSURE][:MOST]
    others = [i for i in order if doubts[i] >= UNSURE]
    differ = []
    for i in tqdm(others[:TURNED], "symmetries", unit="cell", leave=False, disable=None):
        try:
            turned = np.stack([*symmetries(read_image(rows[i]["filename"], engine.image_size)[None])])
            calls = engine(turned) >= engine.thresholds
        except InputError:  # gone meanwhile
            continue
        if calls.any(0).tolist() != calls.all(0).tolist():
            differ.append(i)
    sure = np.setdiff1d(others, differ)
    sample = np.random.default_rng(seed).permutation(sure)[:SAMPLE]
    chosen = [*((i, NEAR) for i in near), *((i, DIFFER) for i in differ), *((i, RANDOM) for i in sample)]
    return [(rows[i], why) for i, why in chosen[:MOST]]


def root_of(paths):
    """The folder that holds all images; a table of labels belongs there."""
    folders = {os.path.dirname(os.path.abspath(p)) for p in paths}
    try:
        return os.path.commonpath(folders)
    except ValueError:  # several drives of Windows
        return os.path.dirname(os.path.abspath(paths[0]))


def name_in(path, root):
    """An image's file name in a table that lies in `root`."""
    return Path(os.path.relpath(os.path.abspath(path), root)).as_posix()


def write_page(target, cells, classes, thresholds, root, embed=False):
    """Write the page; cells: dicts of path, why, p (or None) and maps (or None). Unreadable ones are left out.

    Returns how many it shows.
    """
    shown = []
    for cell in tqdm(cells, "images", unit="cell", leave=False, disable=None):
        try:
            source = source_of(cell["path"], target, embed)
        except InputError:
            continue
        shown.append({"file": name_in(cell["path"], root), "src": source, **{k: cell[k] for k in ("why", "p", "maps")}})
    if not shown:
        raise InputError(f"{target}: no cell to look at, so no page is written")
    key = hashlib.sha256("\n".join([*classes, *(c["file"] for c in shown)]).encode("utf-8", "replace")).hexdigest()
    where = os.path.relpath(root)
    place = f"{root if where.startswith('..') else where}, beside the images"
    fill(
        "review.html",
        target,
        {"classes": list(classes), "thresholds": thresholds, "cells": shown, "key": key[:16], "place": place},
    )
    return len(shown)


def write_review(table, target, engine, class_maps=None, embed=False):
    """The review page of an output table of predict.py; returns how many cells it shows.

    class_maps: function from uint8 images (B, 1, S, S) to maps (B, C, h, w), or None. embed: put images into it.
    """
    rows = [row for row in read_results(table, engine.classes) if "p" in row]
    if not rows:
        raise InputError(f"{table}: no cell was judged, so there is nothing to review")
    chosen = choose(rows, engine)
    maps = class_maps_of((row["filename"] for row, _ in chosen), class_maps, engine.image_size)
    cells = [
        {"path": row["filename"], "why": why, "p": row["p"], "maps": maps.get(row["filename"])} for row, why in chosen
    ]
    thresholds = [round(float(t), 4) for t in engine.thresholds]
    root = root_of([row["filename"] for row in rows])
    return write_page(target, cells, engine.classes, thresholds, root, embed)
