"""The lens of the camera that took a folder's images, from the modules that are surely found."""

import numpy as np
from PIL import Image

from elcells.data.images import file_of
from elcells.modules.cutting import cut_image

LENS_IMAGES = 15  # of one size, from which the lens is found
FEWEST = 5  # modules on which a lens can be based
ALIKE = 0.02  # the most by which the middle three fifths of their bends may differ


def lens_of(paths, columns, rows, run=map):
    """The lens (bend) of the camera that took images of one size, or None where they do not agree.

    The median of the first LENS_IMAGES on which the grid is sure; that of one image is less exact. run: map, or that of
    a pool.
    """
    if len(paths) < FEWEST:
        return None
    modules = run(cut_for_lens, [(path, columns, rows) for path in paths[:LENS_IMAGES]])
    bends = [module.bend for module in modules if module.sure]
    if len(bends) < FEWEST or np.subtract(*np.quantile(bends, [0.8, 0.2])) > ALIKE:
        return None
    return float(np.median(bends))


def cut_for_lens(job):
    """The summary of cut_image(*job), for pools."""
    return cut_image(*job).summary()


def lenses_of(paths, columns, rows, run=map):
    """The lens for each image, from all those of its size: dict of path -> bend or None."""
    of_size = {}
    for path in paths:
        of_size.setdefault(pixel_size(path), []).append(path)
    lenses = {}
    for alike in of_size.values():
        lenses.update(dict.fromkeys(alike, lens_of(alike, columns, rows, run)))
    return lenses


def pixel_size(path):
    """(width, height) as an image file says, without decoding it; (0, 0) where it can't be read."""
    try:
        with Image.open(file_of(path)[0]) as image:
            return image.size
    except Exception:
        return 0, 0
