"""How bad a cell's defects are: where its cracks run, how long they are, and which share of the cell is inactive.

Crack lines come from the network (its second output); the inactive region comes from brightness alone. The constants
were chosen on 545 foreign cells with outlines drawn by people (doc/results.md).
"""

import cv2
import numpy as np
from scipy import ndimage

SIDE = 300  # pixels of the cell in which regions are looked for
DARK = 0.5  # an inactive region is darker than this share of what the place would have
COARSE = 20  # pixels of the cell from which that is worked out
AROUND = 7  # of these: the surroundings of a place
LIT = 80  # percentile of the surroundings that an active place would have
LEAST_LIT = 0.7  # of the cell's 70th percentile: it would have at least as much
SOFT = 1.0  # standard deviation of the blur, in pixels
MARGIN = 3  # pixels at the cell's edge that do not count
OPENING = 9  # pixels: what is narrower is a busbar, a finger or a crack
LEAST_AREA = 60  # pixels
RIM = 8  # pixels: a part that is mostly nearer to an edge is the gap between cells
CORNER = 36  # pixels along both edges: likewise a chamfered corner
MOSTLY = 0.6


def inactive_region(cell):
    """Where a cell is dark, bool (SIDE, SIDE): regions darker than half of their surroundings.

    cell: uint8 (h, w). The rim and chamfered corners do not count, nor does what is as narrow as a busbar.
    """
    cell = cv2.resize(cell, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    coarse = cv2.resize(cell, (COARSE, COARSE), interpolation=cv2.INTER_AREA).astype(np.float32)
    around = ndimage.percentile_filter(coarse, LIT, size=AROUND, mode="reflect")
    usual = np.maximum(around, LEAST_LIT * np.percentile(coarse, 70))
    dark = (cv2.GaussianBlur(cell, (0, 0), SOFT) < DARK * cv2.resize(usual, (SIDE, SIDE))).astype(np.uint8)
    to_edge = np.minimum(np.arange(SIDE), np.arange(SIDE)[::-1])
    nearest = np.minimum(to_edge[:, None], to_edge)
    dark[nearest < MARGIN] = 0
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (OPENING, OPENING))
    dark = cv2.morphologyEx(dark, cv2.MORPH_OPEN, kernel)
    count, label, stats, _ = cv2.connectedComponentsWithStats(dark, connectivity=4)
    area = stats[:, cv2.CC_STAT_AREA]
    kept = area >= LEAST_AREA
    for place in (to_edge[:, None] + to_edge < CORNER, nearest < RIM):
        kept &= np.bincount(label.ravel(), place.ravel(), minlength=count) < MOSTLY * area
    kept[0] = False
    return kept[label]
