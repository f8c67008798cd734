"""The page on which a person labels cells, the most doubtful first."""

import hashlib
import os
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from elcells.data.images import symmetries
from elcells.files import InputError, folder_of_all, relative
from elcells.pages.page import UNSURE, PageImage, doubt, fill, images_with_maps

MOST = 5000  # cells of a page
TURNED = 200  # cells at most, the next nearest to the thresholds, whose eight symmetries are compared
TURNED_SHARE = 40  # of the judged cells one in so many at most: these take a fifth of the time of judging all
SAMPLE = 100  # sure cells, drawn at random
NEAR = "close to a threshold"
DIFFER = "judged differently when turned or mirrored"
RANDOM = "sure, drawn at random"


@dataclass(frozen=True)
class ReviewCell:
    """A cell to label: its image, why it is shown, a network's probabilities of it and class maps as text, or None."""

    image: PageImage
    why: str
    probabilities: tuple | None = None
    maps: str | None = None


def depends_on_orientation(image, engine, thresholds):
    """Whether an Engine calls the eight symmetries of a PageImage differently; False where the image is gone."""
    try:
        pixels = image.pixels(engine.image_size)
    except InputError:
        return False
    calls = engine(np.stack([*symmetries(pixels[None])])) >= thresholds
    return bool((calls.any(0) != calls.all(0)).any())


def choose(cells, engine, thresholds):
    """Which judged cells are shown, in order, and why: list of (CellResult, reason, PageImage).

    The cells near a threshold first, the nearest in front; then those of the next nearest whose eight symmetries the
    network judges differently; then SAMPLE of the others.
    """
    doubts = doubt([cell.probabilities for cell in cells], thresholds)
    order = np.argsort(doubts, kind="stable")
    near = [k for k in order if doubts[k] < UNSURE][:MOST]
    others = [k for k in order if doubts[k] >= UNSURE]
    images = [PageImage(cell.filename) for cell in cells]
    turned = min(TURNED, max(1, len(cells) // TURNED_SHARE))
    bar = tqdm(others[:turned], "symmetries", unit="cell", leave=False, disable=None)
    differ = [k for k in bar if depends_on_orientation(images[k], engine, thresholds)]
    sample = np.random.default_rng(0).permutation(np.setdiff1d(others, differ))[:SAMPLE]
    chosen = [(cells[k], NEAR, images[k]) for k in near]
    chosen += [(cells[k], DIFFER, images[k]) for k in differ]
    chosen += [(cells[k], RANDOM, images[k]) for k in sample]
    return chosen[:MOST]


def root_of(paths):
    """The folder that holds all images; a table of labels belongs there."""
    return folder_of_all(paths) or os.path.dirname(os.path.abspath(paths[0]))


def write_page(target, cells, classes, thresholds, root, embed=False):
    """Write the page and return how many cells it shows; cells that can't be read are left out.

    cells: iterable of ReviewCell, of which one at a time is held. root: folder of the table of labels. embed: put the
    images into the page.
    """
    entries = []
    for cell in cells:
        try:
            source = cell.image.source(target, embed)
        except InputError:
            continue
        name = relative(cell.image.path, root)
        entries.append({"file": name, "src": source, "why": cell.why, "p": cell.probabilities, "maps": cell.maps})
    if not entries:
        raise InputError(f"{target}: no cell to look at, so no page is written")
    names = "\n".join([*classes, *(entry["file"] for entry in entries)])
    key = hashlib.sha256(names.encode("utf-8", "replace")).hexdigest()[:16]
    from_here = relative(root, os.getcwd())
    place = f"{root if from_here.startswith('..') else from_here}, beside the images"
    thresholds = [round(float(t), 4) for t in thresholds]
    data = {"classes": list(classes), "thresholds": thresholds, "cells": entries, "key": key, "place": place}
    fill("review.html", target, data)
    return len(entries)


def write_review(record, engine):
    """Write review.html into a record's folder; returns how many cells it shows. engine: makes the class maps."""
    thresholds = record.info["thresholds"]
    judged = [cell for cell in record.results() if cell.judged]
    if not judged:
        return 0
    chosen = choose(judged, engine, thresholds)
    images = images_with_maps([image for _, _, image in chosen], engine)
    cells = (ReviewCell(image, why, cell.probabilities, maps) for (cell, why, _), (image, maps) in zip(chosen, images))
    root = root_of([cell.filename for cell in judged])
    return write_page(record.folder / "review.html", cells, record.classes, thresholds, root)
