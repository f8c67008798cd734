"""Training cells as a camera with few pixels shows them and cutting a module leaves them."""

import math

import torch
from torch.nn import functional as F

from elcells.devices import send

SIDES = (88, 104, 122, 144)  # pixels of a cell: with so many, real defects are expected to stay visible
BLURS = (0.25, 0.5, 0.8, 1.1)  # of the camera: standard deviations in its pixels; of field modules 0.75 to 1.05
GAP = 0.05  # of the side: the most that the dark gap between cells covers of a cell
BORDER_GAP = 0.1  # the same, added at one side of every second cell, as at the border of a module
SOFTNESS = (0.002, 0.014)  # of the gap's edge, in sides
DARKNESS = (0.3, 0.95)  # of the gap
VISIBLE = 0.04  # contrast of a crack that is seen
LEAST_SEEN = 14  # of the small image's pixels: a crack that covers fewer looks like a speck
NUMBERS = 11  # random numbers that a cell takes


class LowResolution:
    """Cells of `size` pixels as cameras of few pixels show them: of 88 to 144 pixels, blurred, and enlarged again.

    Taking down, blur and enlarging are linear and the same along rows and columns: one matrix does all three.
    """

    def __init__(self, size, device="cpu"):
        sides = [min(side, size) for side in SIDES]
        matrices = [matrix(size, side, blur) for side in sides for blur in BLURS]
        self.sides = torch.tensor(sides).repeat_interleave(len(BLURS)).to(device)
        self.matrices = torch.stack(matrices).to(device)

    def show(self, images, contrast, numbers, share):
        """Show a share of the cells in a low resolution, with the dark gap between cells along their edges.

        Cells stay as they are where a drawn crack would no longer be seen.
        images: uint8 (B, 1, S, S), and contrast: float (B, 1, S, S), of drawn cracks (of `Drawn`), on the device.
        numbers: float (NUMBERS, B) in 0..1, random, on the CPU. Returns uint8 (B, 1, S, S), a new tensor.
        """
        whether, which_side, which_blur, *gap_numbers = numbers
        chosen = (whether < share).nonzero()[:, 0]
        kind = len(BLURS) * (len(SIDES) * which_side).long() + (len(BLURS) * which_blur).long()
        places = send(chosen, images.device)
        kind = send(kind[chosen], images.device)
        matrices = self.matrices[kind][:, None]
        gaps = send(torch.stack(gap_numbers)[:, chosen].contiguous(), images.device)
        cells = images[places]
        contrast = contrast[places]
        shown = (matrices @ (cells * light_inside_gaps(gaps, images.shape[-1])) @ matrices.mT).clamp(0, 255)
        seen = (matrices @ contrast @ matrices.mT > VISIBLE).float().mean((1, 2, 3)) * self.sides[kind] ** 2
        crack_is_lost = (contrast.amax((1, 2, 3)) > 0) & (seen < LEAST_SEEN)
        images = images.clone()
        images[places] = torch.where(crack_is_lost[:, None, None, None], cells, shown.round().to(torch.uint8))
        return images


def matrix(size, side, blur):
    """The matrix (size, size) that takes lines of pixels down to `side` pixels, blurs them and enlarges them again.

    blur: standard deviation, in pixels of the small image; it is done at twice its size. Beyond the edge the image is
    mirrored.
    """
    identity = torch.eye(size)[None, None]
    doubled = F.interpolate(identity, size=(2 * side, size), mode="bilinear", antialias=True)
    reach = math.ceil(6 * blur)
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (offsets / (2 * blur)) ** 2)
    kernel = (kernel / kernel.sum())[None, None, :, None]
    blurred = F.conv2d(F.pad(doubled, (0, 0, reach, reach), mode="reflect"), kernel)
    small = F.avg_pool2d(blurred, (2, 1))
    return enlarging(side, size) @ small[0, 0]


def enlarging(side, size):
    """The matrix (size, side) that enlarges lines of pixels as `to_square` does."""
    return F.interpolate(torch.eye(side)[None, None], size=(size, side), mode="bicubic", antialias=True)[0, 0]


def light_inside_gaps(numbers, size):
    """How much light (N, 1, size, size) the gaps between cells leave; numbers: float (8, N) in 0..1, random.

    The soft edge of a gap reaches into the cell even where the gap itself lies outside, at a width of 0.
    """
    border, border_width, darkness, softness, *widths = numbers
    softness = within(SOFTNESS, softness)[:, None]
    depth = within(DARKNESS, darkness)[:, None]
    distance = (torch.arange(size, device=numbers.device) + 0.5) / size
    lines = []
    for number, width in enumerate(widths):
        at_border = (8 * border).floor() == number  # 4 to 7: at no side
        width = GAP * width**2 + BORDER_GAP * at_border * border_width
        lines.append(1 - depth * torch.sigmoid((width[:, None] - distance) / softness))
    left, right, top, bottom = lines
    columns = left * right.flip(-1)
    rows = top * bottom.flip(-1)
    return rows[:, None, :, None] * columns[:, None, None, :]


def within(limits, numbers):
    """Numbers in 0..1 spread over a range (low, high)."""
    low, high = limits
    return low + (high - low) * numbers
