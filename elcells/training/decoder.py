"""The decoder of crack lines: from a network's features to where cracks run."""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

FIRST_LOGIT = -3  # of a line, before training: lines are rare
WIDTH = 32  # maps of the pyramid
FINE_WIDTH = 24  # at half the image's resolution


class LineDecoder(nn.Module):
    """Where cracks run: a feature pyramid (Lin et al. 2017) on a network's stages, down to half the image's resolution.

    maps: how many the features of strides 2, 4, 8 and 16 have. Normalised images (N, 1, S, S) and these features ->
    logits (N, 1, S / 2, S / 2), rounded up. norms: whether there are batch norms, which training needs; `folded` makes
    the same function without.
    """

    def __init__(self, maps, norms=True):
        super().__init__()
        convolution = partial(layer, norm=norms)
        self.norms = nn.ModuleList(nn.BatchNorm2d(number) if norms else nn.Identity() for number in maps)
        self.coarse = nn.Sequential(convolution(maps[3], 48, 1), nn.Conv2d(48, WIDTH, 1))
        self.side_8 = nn.Conv2d(maps[2], WIDTH, 1)
        self.side_4 = nn.Conv2d(maps[1], WIDTH, 1)
        self.side_2 = nn.Conv2d(maps[0], FINE_WIDTH, 1)
        self.side_1 = nn.Conv2d(4, FINE_WIDTH, 1)  # the image's 2x2 pixels as four maps
        self.merge_8 = convolution(WIDTH, WIDTH, 3)
        self.merge_4 = convolution(WIDTH, WIDTH, 3)
        self.narrow = nn.Conv2d(WIDTH, FINE_WIDTH, 1)
        self.merge_2 = convolution(FINE_WIDTH, FINE_WIDTH, 3)
        self.last = nn.Conv2d(FINE_WIDTH, 1, 1)
        nn.init.constant_(self.last.bias, FIRST_LOGIT)

    def forward(self, images, features):
        stride_2, stride_4, stride_8, stride_16 = (norm(maps) for norm, maps in zip(self.norms, features))
        x = self.coarse(stride_16)
        x = self.merge_8(F.relu(enlarged(x, stride_8) + self.side_8(stride_8)))
        x = self.merge_4(F.relu(enlarged(x, stride_4) + self.side_4(stride_4)))
        odd = images.shape[3] % 2
        fine = self.side_2(stride_2) + self.side_1(F.pixel_unshuffle(F.pad(images, (0, odd, 0, odd)), 2))
        x = self.merge_2(F.relu(enlarged(self.narrow(x), stride_2) + fine))
        return self.last(x)


def layer(in_maps, maps, kernel, norm):
    """Convolution, batch norm if `norm`, and ReLU; the size stays the same."""
    convolution = nn.Conv2d(in_maps, maps, kernel, padding=kernel // 2, bias=not norm)
    return nn.Sequential(convolution, nn.BatchNorm2d(maps) if norm else nn.Identity(), nn.ReLU(inplace=True))


@torch.no_grad()
def folded(decoder):
    """A LineDecoder without batch norms that is the same function as one with them is in evaluation."""
    maps = [norm.num_features for norm in decoder.norms]
    plain = LineDecoder(maps, norms=False).to(next(decoder.parameters()).device)
    first = (decoder.side_2, decoder.side_4, decoder.side_8, decoder.coarse[0][0])
    fused = {pair[0]: fuse_conv_bn_eval(pair[0].eval(), pair[1].eval()) for pair in layers_with_norm(decoder)}
    for ours, theirs in zip(convolutions(plain), convolutions(decoder)):
        theirs_fused = fused.get(theirs, theirs)
        ours.weight.copy_(theirs_fused.weight)
        ours.bias.copy_(theirs_fused.bias)
        if theirs in first:
            norm = decoder.norms[first.index(theirs)]
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            shift = norm.bias - scale * norm.running_mean
            ours.bias.add_(ours.weight[:, :, 0, 0] @ shift)
            ours.weight.mul_(scale[:, None, None])
    return plain.eval()


def convolutions(decoder):
    """A LineDecoder's convolutions, in order."""
    return [module for module in decoder.modules() if isinstance(module, nn.Conv2d)]


def layers_with_norm(decoder):
    """A LineDecoder's layers of a convolution and a batch norm."""
    sequences = [module for module in decoder.modules() if isinstance(module, nn.Sequential)]
    return [module for module in sequences if isinstance(module[1], nn.modules.batchnorm._BatchNorm)]


def enlarged(maps, like):
    """Maps exactly twice as large, then cut to the size of others (19 -> 38, 38 -> 75), so that nothing shifts."""
    maps = doubled(maps) if maps.is_cuda else F.interpolate(maps, scale_factor=2, mode="bilinear")
    return maps[..., : like.shape[2], : like.shape[3]]


def doubled(maps):
    """Maps twice as large, bilinear: PyTorch's own gradient on a GPU adds up in an order that changes."""
    for dimension in (2, 3):
        length = maps.shape[dimension]
        first = maps.narrow(dimension, 0, 1)
        last = maps.narrow(dimension, length - 1, 1)
        before = torch.cat([first, maps.narrow(dimension, 0, length - 1)], dimension)
        after = torch.cat([maps.narrow(dimension, 1, length - 1), last], dimension)
        pairs = [0.75 * maps + 0.25 * before, 0.75 * maps + 0.25 * after]
        maps = torch.stack(pairs, dimension + 1).flatten(dimension, dimension + 1)
    return maps
