"""How right crack lines, crack lengths and inactive areas are, against outlines that people drew.

$ python -m benchmarks.severity foreign.csv outlines/                  # cells.onnx
$ python -m benchmarks.severity foreign.csv outlines/ --network my/best.ckp --json severity.json
$ python -m benchmarks.severity foreign.csv outlines/ --modules 6      # also composed modules with drawn cracks

The table is one of `train.py`, `filename;crack;inactive`. The outlines are images called like the cells, NAME.png, with
gray values 1 in dark parts and 3 on crack lines. Only what the network calls crack or inactive is measured, as in
`predict.py`; then once more at half of the brightness, with noise and blur. The composed modules show ELPV's
defect-free cells, every fourth with a drawn crack of known length, at various numbers of pixels a cell.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from scipy.stats import pearsonr, spearmanr
from skimage.morphology import skeletonize
from torchvision.transforms import functional as tv
from tqdm import tqdm

import data
from benchmarks.composed_modules import ElpvCells, compose
from benchmarks.robustness import curve, noise
from elcells.data.cache import load_images
from elcells.data.images import size_of, to_square
from elcells.files import InputError, atomic_path, command, reason
from elcells.inference.networks import SHIPPED, Network, open_network
from elcells.inference.severity import SIDE, crack_lines, length_of, severity_of
from elcells.modules.cutting import cut_cells
from elcells.modules.search import find_grid
from elcells.training.drawings import crack
from elcells.training.shapes import UNIT

NEAR = 3  # pixels of SIDE: a line counts as found where another one runs so near
DARK_PART, CRACK_LINE = 1, 3  # gray values of outlines
OUTLINE_VALUES = 9  # an outline has no higher ones
OUTLINED = 100  # of 255: a pixel of a resized outline
CELL_PIXELS = (33, 50, 75, 100, 150, 200, 300)  # of composed modules
CRACKED = 4  # every so many cells of them have a crack
STRENGTH = (0.3, 0.6)  # share of the light that it takes


class Measured:
    """What is measured in images, uint8 (N, S, S), by an Engine.

    sizes: (height, width) of each cell in its file, N tuples, or None where all are square.
    skeletons: bool (N, SIDE, SIDE). lengths: in cell widths, areas: 0..1, float (N,) each. calls: (N, 2) bool.
    """

    def __init__(self, engine, images, sizes=None):
        crack, inactive = (engine.classes.index(name) for name in ("crack", "inactive"))
        thresholds = engine.thresholds()
        self.skeletons = np.zeros((len(images), SIDE, SIDE), bool)
        self.lengths = np.zeros(len(images))
        self.areas = np.zeros(len(images))
        self.calls = np.zeros((len(images), 2), bool)
        sizes = [(SIDE, SIDE)] * len(images) if sizes is None else sizes
        for number, seen in enumerate(engine.look_at(images[:, None], thresholds, sizes)):
            calls = seen.probabilities >= thresholds
            self.calls[number] = calls[[crack, inactive]]
            has_lines = seen.follow_lines and self.calls[number, 0]
            lines = seen.follow_lines() if has_lines else None
            severity = severity_of(images[number], lines, *self.calls[number], sizes[number])
            self.lengths[number] = severity.crack_length
            self.areas[number] = severity.inactive_area
            if has_lines:
                self.skeletons[number] = crack_lines(lines)


# ---------------------------------------------------------------- against people's outlines


def outlines_of(table, folder):
    """Crack lines, bool (N, SIDE, SIDE) of one pixel, and dark shares, float (N,), that people outlined."""
    lines = np.zeros((len(table), SIDE, SIDE), bool)
    areas = np.zeros(len(table))
    for number, name in enumerate(table["filename"]):
        outline = read_outline(folder / f"{Path(name).stem}.png")
        areas[number] = (outline == DARK_PART).mean()
        is_line = cv2.resize(255 * (outline == CRACK_LINE).astype(np.uint8), (SIDE, SIDE)) >= OUTLINED
        lines[number] = skeletonize(is_line)
    return lines, areas


def read_outline(path):
    """Gray values, uint8 (h, w), of an outline; InputError where it is missing, no image, or has other values."""
    if not path.is_file():
        raise InputError(f"{path}: no such outline; draw it, or remove the cell from the table")
    try:
        outline = np.asarray(Image.open(path))
    except OSError as error:
        raise InputError(f"{path}: can't be read as an image ({reason(error)}); draw it again") from None
    if outline.ndim != 2 or outline.max() > OUTLINE_VALUES:
        raise InputError(f"{path}: must be gray, with {DARK_PART} in dark parts and {CRACK_LINE} on crack lines")
    return outline


def near(lines, others):
    """How many pixels of lines lie near others; both bool (h, w)."""
    return int((lines & (ndimage.distance_transform_edt(~others) <= NEAR)).sum()) if others.any() else 0


def against_outlines(measured, lines, areas):
    """Figures of a Measured against `outlines_of`, a dict that JSON can hold."""
    found = sum(near(ours, theirs) for ours, theirs in zip(measured.skeletons, lines))
    covered = sum(near(theirs, ours) for ours, theirs in zip(measured.skeletons, lines))
    precision = found / max(1, measured.skeletons.sum())
    recall = covered / max(1, lines.sum())
    lengths = np.array([length_of(skeleton) for skeleton in lines]) / SIDE
    has_line = lengths > 0
    return {
        "cells": len(lines),
        "with_lines": int(has_line.sum()),
        "line_f1": 2 * precision * recall / max(1e-9, precision + recall),
        "line_precision": precision,
        "line_recall": recall,
        "length_pearson": float(pearsonr(measured.lengths, lengths)[0]),
        "length_spearman": float(spearmanr(measured.lengths, lengths)[0]),
        "length_median_error": float(np.median(np.abs(measured.lengths - lengths)[has_line])),
        "length_sum": float(measured.lengths.sum() / lengths.sum()),
        "area_pearson": float(pearsonr(measured.areas, areas)[0]),
        "area_mean_error": float(np.abs(measured.areas - areas).mean()),
    }


def against_another_exposure(measured, changed):
    """Figures of the same cells at two exposures, two of Measured; only cells with the same calls, a dict."""
    cracked = measured.calls[:, 0] & changed.calls[:, 0]
    inactive = measured.calls[:, 1] & changed.calls[:, 1]
    lengths = measured.lengths[cracked]
    change = np.abs(changed.lengths[cracked] - lengths) / lengths
    return {
        "cracked": int(cracked.sum()),
        "other_crack_calls": int((measured.calls[:, 0] != changed.calls[:, 0]).sum()),
        "length_median_change": float(np.median(change)),
        "length_within_10_percent": float((change <= 0.1).mean()),
        "length_sum_change": float(changed.lengths[cracked].sum() / lengths.sum() - 1),
        "inactive": int(inactive.sum()),
        "area_within_1_point": float((np.abs(changed.areas - measured.areas)[inactive] <= 0.01).mean()),
    }


def another_exposure(images):
    """Images, uint8 (N, S, S), at half of the brightness, with noise of 10 gray levels, then blur of a pixel."""
    images = noise(curve(torch.from_numpy(images[:, None]), gain=0.5), 10)
    return tv.gaussian_blur(images, [7, 7], [1.0, 1.0])[:, 0].numpy()


# ---------------------------------------------------------------- on composed modules


class CrackedCells(ElpvCells):
    """ELPV's defect-free cells, every CRACKED-th with a drawn crack; `length` sums up the lengths, in cell widths."""

    def __init__(self):
        super().__init__()
        self.table = self.table[(self.table["crack"] == 0) & (self.table["inactive"] == 0)]
        self.modules = [module for module in self.modules if (self.table["module"] == module).sum() >= 8]
        self.length = 0.0

    def images(self, module, count, side):
        cells = super().images(module, count, SIDE)
        rng = np.random.default_rng([count, side, self.modules.index(module)])
        self.length = 0.0
        for cell in cells[::CRACKED]:
            mask, lines = crack(rng, SIDE)
            cell *= 1 - rng.uniform(*STRENGTH) * mask
            self.length += sum(length_inside(line) for line in lines)
        small = [Image.fromarray(cell).resize((side, side), Image.Resampling.BOX) for cell in cells]
        return np.stack([np.asarray(cell) for cell in small])


def length_inside(line):
    """Length, in cell widths, of what lies in the cell of a line, points (x, y) in pixels of UNIT."""
    line = np.asarray(line)
    steps = np.linalg.norm(np.diff(line, axis=0), axis=1)
    middles = (line[1:] + line[:-1]) / 2
    return steps[((middles > 0) & (middles < UNIT)).all(1)].sum() / UNIT


def on_composed_modules(engine, count):
    """{pixels a cell: sum of the lengths that are measured, as a share of what was drawn}, a list for each module."""
    cells = CrackedCells()
    shares = {}
    for side in tqdm(CELL_PIXELS, unit="size", leave=False):
        shares[side] = []
        for seed in range(count):
            image, truth = compose(cells, seed, "easy", side=side)
            image = image.astype(np.float32)
            grid, *_ = find_grid(image, *truth.grid)
            cut = [to_square(Image.fromarray(cell), engine.image_size) for cell in cut_cells(image, grid)]
            shares[side].append(Measured(engine, np.stack(cut)).lengths.sum() / cells.length)
    return shares


# ---------------------------------------------------------------- command


@command
def main(argv=None):
    """Command line of this file; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", help="labelled cells, `;`-separated")
    parser.add_argument("outlines", type=Path, help="folder of the outlines")
    parser.add_argument("--network", default=SHIPPED, metavar="FILE", help="checkpoint or ONNX file (cells.onnx)")
    parser.add_argument("--modules", type=int, default=0, metavar="N", help="composed modules of each size (none)")
    parser.add_argument("--json", metavar="FILE", help="all figures")
    args = parser.parse_args(argv)
    engine = open_network(Network(str(args.network)))
    if not engine.has_lines:
        raise InputError(f"{args.network}: does not tell where cracks run; train it with --line-steps")
    table = data.read_table(args.table, engine.classes)
    outlines = outlines_of(table, args.outlines)
    cached_images, index = load_images(table, engine.image_size, print)
    images = np.ascontiguousarray(cached_images[index][:, 0])
    sizes = [size_of(path)[::-1] for path in table["path"]]
    measured = Measured(engine, images, sizes)
    figures = {
        "outlines": against_outlines(measured, *outlines),
        "exposure": against_another_exposure(measured, Measured(engine, another_exposure(images), sizes)),
    }
    for name, values in figures.items():
        print(name, *(f"  {key:26}{value:8.3f}" for key, value in values.items()), sep="\n")
    if args.modules:
        figures["modules"] = on_composed_modules(engine, args.modules)
        print("modules  pixels a cell, sum of lengths as a share of what was drawn")
        for side, shares in figures["modules"].items():
            print(f"  {side:4} {np.mean(shares):6.2f}  ({min(shares):.2f} to {max(shares):.2f})")
    if args.json:
        with atomic_path(Path(args.json)) as temporary:
            temporary.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
