"""The lens of the camera that took a folder's images, from the modules that are surely found."""

from functools import partial

import numpy as np

from elcells.modules.cutting import cut_image

LENS_IMAGES = 15  # of one size, from which the lens is found
FEWEST = 5  # modules on which a lens can be based
AGREEING = 0.02  # the most by which the middle three fifths of their bends may differ


def bend_of(path, columns, rows):
    """The bend that fits one image, or None where its module is not sure."""
    module = cut_image(path, columns, rows)
    return module.bend if module.sure else None


def lens_of(paths, columns, rows, run):
    """The lens (bend) of the camera that took images of one size, or None where they do not agree.

    The median of the first LENS_IMAGES on which the grid is sure; that of one image is less exact. run: map, or that of
    a pool.
    """
    if len(paths) < FEWEST:
        return None
    bends = run(partial(bend_of, columns=columns, rows=rows), paths[:LENS_IMAGES])
    bends = [bend for bend in bends if bend is not None]
    if len(bends) < FEWEST or np.subtract(*np.quantile(bends, [0.8, 0.2])) > AGREEING:
        return None
    return float(np.median(bends))
