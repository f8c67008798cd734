"""Random changes of training images, a batch at a time, on the device of the images."""

import torch
from torch.nn import functional as F

from elcells.devices import send

ROTATION = 3  # degrees to either side, at most
WIDE_ROTATION = 6  # the same with `handling`; half of the cells are turned by less than 1.5
SHIFT = 0.02  # of the side, at most
CROP = 0.02  # of the area that is cut off, at most


def draw_changes(count, generator=None, dihedral=False, scale=0.0, handling=False):
    """Draw small random changes for `count` images, for `augment`.

    Flips (each axis with probability 1/2), rotation +-3 degrees, shift +-2 % of the side, crop of 98..100 % of the
    area at a random place; with `dihedral` also a rotation by 90 degrees (probability 1/2), which makes all eight
    symmetries of the square equally likely.
    scale: cells are shown larger or smaller by up to this share. handling: rotate by up to 6 degrees, half of them by
    less than 1.5. generator: torch.Generator on the CPU.
    Returns float32 (count, 2, 3), affine maps from the result's coordinates to the image's, both -1..1.
    """
    numbers = torch.rand(10, count, generator=generator)
    rotation, crop, shift, crop_place, flip, quarter_turn, zoom = numbers.split((1, 1, 2, 2, 2, 1, 1))
    turn = signed(rotation)
    angle = torch.deg2rad(WIDE_ROTATION * turn * turn.abs() if handling else ROTATION * turn)
    side = torch.sqrt(1 - CROP * crop)
    offset = 2 * SHIFT * signed(shift) + (1 - side) * signed(crop_place)
    flip_x, flip_y = torch.where(flip < 0.5, 1.0, -1.0)
    cos = side * torch.cos(angle)
    sin = side * torch.sin(angle)
    x = torch.cat([cos * flip_x, sin * flip_x])
    y = torch.cat([-sin * flip_y, cos * flip_y])
    if dihedral:
        is_upright = quarter_turn < 0.5
        x, y = torch.where(is_upright, x, y), torch.where(is_upright, y, x)
    factor = torch.exp(scale * signed(zoom))
    return torch.stack([factor * x, factor * y, offset]).permute(2, 1, 0)


def signed(numbers):
    """Numbers in 0..1 spread over -1..1."""
    return 2 * numbers - 1


def augment(images, changes, black=None):
    """Apply `draw_changes` in one resampling pass (bilinear), on the device of the images.

    images: uint8 (B, C, S, S). changes: (B, 2, 3). black: bool (B,), which images are black beyond their edge; the
        others repeat their edge's pixels.
    Returns float32 (B, C, S, S) in 0..1.
    """
    # Coordinates as complex numbers, x + iy: thirteen times as fast as PyTorch's affine_grid on a CPU.
    changes = torch.view_as_complex(send(changes.transpose(1, 2).contiguous(), images.device))
    across, down, offset = changes[:, :, None].unbind(1)
    size = images.shape[-1]
    pixel_centres = (2 * torch.arange(size, device=images.device) + 1) / size - 1
    columns = across * pixel_centres
    rows = down * pixel_centres + offset
    grid = torch.view_as_real(columns[:, None, :] + rows[:, :, None])
    moved = F.grid_sample(images.float() / 255, grid, padding_mode="border", align_corners=False)
    if black is None:
        return moved
    outside = (grid.abs() > 1).any(-1) & send(black, images.device)[:, None, None]
    return moved.masked_fill(outside[:, None], 0)


def draw_light(count, most, generator=None):
    """Draw uneven light for half of `count` images, for `uneven_light`.

    It has a slope in x, a slope in y and a fall from the centre to the edges, each up to `most` of the brightness.
    generator: torch.Generator on the CPU. Returns float32 (count, 3).
    """
    numbers = torch.rand(4, count, generator=generator)
    is_uneven = numbers[0] < 0.5
    return torch.where(is_uneven, most * signed(numbers[1:]), 0).T.contiguous()


def uneven_light(images, light):
    """Put images, float (B, 1, S, S) in 0..1, under the light of `draw_light` (B, 3), on the device of the images."""
    x = torch.linspace(-1, 1, images.shape[-1], device=images.device)
    y = x[:, None]
    across, down, fall = send(light, images.device)[:, :, None, None, None].unbind(1)
    return (images * (1 + across * x + down * y + fall * (x * x + y * y))).clamp(0, 1)


def draw_noise(count, size, std, generator, seed, device="cpu"):
    """Draw a camera's noise for half of `count` images: normal, its standard deviation up to `std`, mostly less.

    std: gray levels of 255. generator: torch.Generator on the CPU, for the standard deviations. seed: of the noise
    itself, which is drawn on `device`. Returns float32 (count, 1, size, size), to be added to images in 0..1.
    """
    choice, strength = torch.rand(2, count, 1, 1, 1, generator=generator)
    sigma = send(torch.where(choice < 0.5, std / 255 * strength**2, 0), device)
    noise_generator = torch.Generator(device)
    noise_generator.manual_seed(seed)
    return sigma * torch.randn(count, 1, size, size, generator=noise_generator, device=device)
