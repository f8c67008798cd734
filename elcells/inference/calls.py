"""Cells judged from Python: arrays or files in, a DataFrame out.

>>> calls = Cells("cells.onnx")(["a.png", "b.png"])
>>> calls[["filename", "crack", "p_crack"]]
"""

import functools
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
from PIL import Image

from elcells.data.finding import find_images
from elcells.data.images import THREADS, examine, fault_of_size, to_square
from elcells.files import InputError, one_line
from elcells.inference.cells import DECIMALS, MEASURED, SEVERITY, CellResult, cell_of_image, judge
from elcells.inference.engine import in_batches
from elcells.inference.networks import Network, open_network

BATCHES = 4  # that are read at a time


class Cells:
    """A network that judges images of cells.

    path: of an ONNX file, which needs no PyTorch, or of a checkpoint. options: those of `Network`, such as
    device="cpu", operating_point="recall", batch_size=64. Cells are judged as predict.py judges them
    (doc/judging.md).
    Raises InputError for a file that is no network.
    """

    def __init__(self, path, **options):
        network = Network(str(path), **options)
        self.engine = open_network(network)
        self.classes = self.engine.classes
        self.thresholds = self.engine.thresholds(network.operating_point)

    def __call__(self, images):
        """Judge images: a DataFrame with a row for each, in order.

        images: uint8 array (N, H, W) or (H, W) of gray images; a list of arrays (H, W) or paths; or one path, of a
            file, a folder (all images below it) or a glob.
        Columns: filename (where there are paths), each class (0 or 1), its probability p_CLASS, brightness (mean pixel,
            0..1), dark_part (share of the cell under half of the brightness of the rest, 0..1), dark_ratio (brightness
            of that part relative to the rest), crack_length (of the crack lines, in cell widths), inactive_area (share
            of the cell, 0..1), crack_mode ("A", "B", "C" or ""), below (names of those two that are only the smallest
            value that can be measured) and error: why an image could not be judged, "" for all others. An image with
            an error has no calls. crack_length is NaN where it could not be measured: the network does not tell where
            cracks run, or the cell has a crack and fewer than 100 pixels.
        Raises InputError for arrays of another type or shape.
        """
        results = []
        read_for_network = functools.partial(read, size=self.engine.image_size)
        with ThreadPoolExecutor(THREADS) as pool:
            for batch in in_batches(as_list(images), BATCHES * self.engine.batch_size):
                cells = list(pool.map(read_for_network, batch))
                results += judge(self.engine, self.thresholds, cells)
        return self.frame(results)

    def frame(self, results):
        """CellResults as a DataFrame."""
        columns = {"filename": pd.Series([cell.filename for cell in results], dtype=str)}
        if results and not columns["filename"].any():
            del columns["filename"]
        for number, name in enumerate(self.classes):
            columns[name] = pd.array([cell.calls[number] if cell.judged else None for cell in results], dtype="Int64")
        for number, name in enumerate(self.classes):
            columns[f"p_{name}"] = reals(cell.probabilities[number] if cell.judged else None for cell in results)
        for name in (*MEASURED, *SEVERITY):
            values = [getattr(cell, name) for cell in results]
            columns[name] = reals(values) if name in DECIMALS else pd.Series(values, dtype=str)
        columns["error"] = pd.Series([cell.error for cell in results], dtype=str)
        return pd.DataFrame(columns)


def reals(values):
    """Numbers, or None, as a Series of float."""
    return pd.Series(list(values), dtype=float)


def as_list(images):
    """Images as the user gives them as a list of arrays, uint8 (H, W), and paths."""
    if isinstance(images, str | os.PathLike):
        try:
            found = find_images([os.fspath(images)])
        except InputError:
            if os.path.exists(images):  # an output of ours, a pipe
                raise
            return [images]  # its row says so
        return [*found.paths, *(folder for folder, _ in found.unreadable)]
    if isinstance(images, np.ndarray) and images.ndim == 2:
        images = [images]
    images = list(images)
    for number, image in enumerate(images):
        if isinstance(image, str | os.PathLike):
            continue
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 2:
            what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise InputError(f"image {number} is {what}; give gray images as uint8 arrays (H, W), or paths of files")
    return images


def read(image, size):
    """An array or a file as the pair of pixels and CellResult that `judge` takes."""
    name = "" if isinstance(image, np.ndarray) else os.fspath(image)
    try:
        if isinstance(image, np.ndarray):
            pixels, own_size = from_array(image, size), image.shape
        else:
            pixels, _, own_size = examine(name, size)
    except InputError as error:
        return None, CellResult(name, error=one_line(str(error)))
    return cell_of_image(name, pixels, size=own_size)


def from_array(image, size):
    """A gray image, uint8 (H, W), as uint8 (size, size); raises InputError for one that is too small or narrow."""
    if fault := fault_of_size(image.shape[::-1]):
        raise InputError(fault)
    return to_square(Image.fromarray(np.ascontiguousarray(image)), size)
