"""Random changes of training images, a batch at a time, on the device that it is on."""

import torch
from torch.nn import functional as F

from elcells.devices import send


def draw_changes(count, generator=None, dihedral=False, scale=0.0):
    """Small random changes for `count` images, for `augment`.

    Flips (each axis with probability 1/2), rotation +-3 degrees, shift +-2 % of the side, crop of 98..100 % of the
    area at a random place; with `dihedral` also a rotation by 90 degrees (probability 1/2), which makes all eight
    symmetries of the square equally likely.
    scale: cells are shown larger or smaller by up to this share. generator: torch.Generator on the CPU.
    Returns float32 (count, 2, 3), affine maps from places in the result to places in the image, both spanning -1..1.
    """
    u = torch.rand(10, count, generator=generator)
    angle = torch.deg2rad((2 * u[0] - 1) * 3)
    crop = torch.sqrt(1 - 0.02 * u[1])
    shift = 2 * 0.02 * (2 * u[2:4] - 1) + (1 - crop) * (2 * u[4:6] - 1)
    flip_x, flip_y = torch.where(u[6:8] < 0.5, 1.0, -1.0)
    cos, sin = crop * torch.cos(angle), crop * torch.sin(angle)
    x, y = torch.stack([cos * flip_x, sin * flip_x]), torch.stack([-sin * flip_y, cos * flip_y])
    if dihedral:
        x, y = torch.where(u[8] < 0.5, x, y), torch.where(u[8] < 0.5, y, x)
    zoom = torch.exp(scale * (2 * u[9] - 1))
    return torch.stack([zoom * x, zoom * y, shift]).permute(2, 1, 0)


def augment(images, changes):
    """Apply `draw_changes` in one resampling pass (bilinear, edge pixels repeated), on the device of the images.

    images: uint8 (B, C, S, S). changes: (B, 2, 3). Returns float32 (B, C, S, S) in 0..1.
    """
    # Places as complex numbers, x + iy: thirteen times as fast as PyTorch's affine_grid on a CPU.
    changes = torch.view_as_complex(send(changes.transpose(1, 2).contiguous(), images.device))
    across, down, shift = changes[:, :, None].unbind(1)
    size = images.shape[-1]
    at = (2 * torch.arange(size, device=images.device) + 1) / size - 1
    grid = torch.view_as_real((across * at)[:, None, :] + (down * at + shift)[:, :, None])
    return F.grid_sample(images.float() / 255, grid, padding_mode="border", align_corners=False)


def draw_light(count, most, generator=None):
    """Uneven light for half of `count` images, for `uneven_light`: a slope in x, one in y and a fall from the centre
    to the edges, each up to `most` of the brightness.

    generator: torch.Generator on the CPU. Returns float32 (count, 3).
    """
    u = torch.rand(4, count, generator=generator)
    return torch.where(u[0] < 0.5, most * (2 * u[1:] - 1), 0).T.contiguous()


def uneven_light(images, light):
    """Images, float (B, 1, S, S) in 0..1, under the light of `draw_light` (B, 3), on the device of the images."""
    at = torch.linspace(-1, 1, images.shape[-1], device=images.device)
    x, y = at, at[:, None]
    across, down, fall = send(light, images.device)[:, :, None, None, None].unbind(1)
    return (images * (1 + across * x + down * y + fall * (x * x + y * y))).clamp(0, 1)


def draw_noise(count, size, std, generator, seed, device="cpu"):
    """A camera's noise for half of `count` images: normal, its standard deviation up to `std`, mostly less.

    std: gray levels of 255. generator: torch.Generator on the CPU, of the standard deviations. seed: of the noise
    itself, which is drawn on `device`. Returns float32 (count, 1, size, size), to be added to images in 0..1.
    """
    u = torch.rand(2, count, 1, 1, 1, generator=generator)
    sigma = send(torch.where(u[0] < 0.5, std / 255 * u[1] ** 2, 0), device)
    there = torch.Generator(device)
    there.manual_seed(seed)
    return sigma * torch.randn(count, 1, size, size, generator=there, device=device)
