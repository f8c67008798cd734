"""Random changes of training pictures, a batch at a time, on the device that it is on."""

import torch

from elcells.distributed import send


def draw_changes(count, generator=None, turns=False):
    """Small random changes for `count` pictures, for `augment`.

    Flips (each axis with probability 1/2), rotation +-3 degrees, shift +-2 % of the side, crop of 98..100 % of the
    area at a random place; with `turns` also a right-angle turn (probability 1/2), which makes all eight symmetries
    of the square equally likely.
    generator: torch.Generator on the CPU. Returns float32 (count, 2, 3), affine maps from places in the result to
    places in the picture, both spanning -1..1.
    """

    u = torch.rand(9, count, generator=generator)
    angle = torch.deg2rad((2 * u[0] - 1) * 3)
    scale = torch.sqrt(1 - 0.02 * u[1])
    shift = 2 * 0.02 * (2 * u[2:4] - 1) + (1 - scale) * (2 * u[4:6] - 1)
    flip_x, flip_y = torch.where(u[6:8] < 0.5, 1.0, -1.0)
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    x, y = torch.stack([cos * flip_x, sin * flip_x]), torch.stack([-sin * flip_y, cos * flip_y])
    if turns:
        x, y = torch.where(u[8] < 0.5, x, y), torch.where(u[8] < 0.5, y, x)
    return torch.stack([x, y, shift]).permute(2, 1, 0)


def augment(images, changes, size=None):
    """Apply `draw_changes` in one resampling pass (bilinear, edge pixels repeated), on the device of the images.

    images: uint8 (B, 1, S, S). changes: (B, 2, 3). size: side of the result (S); a smaller one is reached by
    antialiased shrinking first. Returns float32 (B, 1, size, size) in 0..1.
    """

    images = shrink(images, size)
    # Places as complex numbers, x + iy: thirteen times as fast as PyTorch's affine_grid on a CPU.
    changes = torch.view_as_complex(send(changes.transpose(1, 2).contiguous(), images.device))
    across, down, shift = changes[:, :, None].unbind(1)
    side = images.shape[-1]
    at = (2 * torch.arange(side, device=images.device) + 1) / side - 1
    grid = torch.view_as_real((across * at)[:, None, :] + (down * at + shift)[:, :, None])
    return torch.nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def shrink(images, size=None):
    """uint8 images (B, 1, S, S) as float32 (B, 1, size, size) in 0..1, shrunk with antialiasing where size < S."""
    from torch.nn.functional import interpolate

    images = images.float() / 255
    if size is None or size == images.shape[-1]:
        return images
    return interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
