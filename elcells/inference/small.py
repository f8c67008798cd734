"""Cells of few pixels, which a network sees as smaller images: enlarged to its full size they are mere blur."""

import copy

import cv2
import numpy as np
from scipy.special import expit

from elcells.inference.doubt import logits_of

# Chosen with the default network on six field modules and on ELPV's validation cells with few pixels
FEW = 60  # a cell with fewer pixels along the side of its square is small
SMALLER = 0.2  # its image is smaller by about this share of the full side
STRIDE = 32  # of a network's last layer
OVERRATED = 1.5  # logits by which probabilities of smaller images are lowered, for thresholds of the default recipes


def small_side(size):
    """Side of the images of small cells for a network of images with `size` pixels; None for a network of few pixels.

    It differs by a multiple of STRIDE, so that each layer pads an image as it does in the full size. With 225 pixels
    instead of 236 of 300, dark rims looked inactive.
    """
    side = size - STRIDE * round(SMALLER * size / STRIDE)
    return side if FEW < side < size else None


def with_side(pixels, side):
    """A gray image, uint8 (S, S), with `side` pixels instead."""
    if len(pixels) == side:
        return pixels
    return cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)


def lowered(probabilities, images, small_size):
    """Probabilities (B, C) that a network gave for images (B, 1, S, S); where S is small_size, lower by OVERRATED."""
    if images.shape[-1] != small_size:
        return probabilities
    return expit(logits_of(probabilities) - OVERRATED).astype(np.float32)


def for_side(proto, side):
    """A network, an onnx.ModelProto without its decoder of crack lines, that takes images of `side` pixels instead.

    Its layers take any size. Only the shapes that are written down and the means of the image's rows are of one size.
    """
    proto = copy.deepcopy(proto)
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    full_side = dims[3].dim_value
    for dim in dims[2:]:
        dim.dim_value = side
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.name in ("kernel_shape", "strides") and list(attribute.ints) == [1, full_side]:
                attribute.ints[:] = [1, side]
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        value.ClearField("type")  # runtimes work out its shape
    return proto
