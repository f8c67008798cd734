"""The auxiliary heads: further tasks that help the network to learn, and are dropped after training."""

from contextlib import ExitStack

import torch
from torch import nn
from torch.nn import functional as F

DRAWN = 0.4  # from this strength of a drawing on (of 1) a place counts as defective
ON_LINE = 0.3  # from this share of a pixel on a line runs through it
LINE_RATE = 4  # the decoder of lines starts from random weights: its learning rate, as a multiple of the network's
BESIDE_WEIGHT = 0.3  # of the pixels next to a line, as its course is not that exact
LINE_WEIGHT = 3  # of pixels on a line, which are rare
ENTROPY_WEIGHT = 4  # of the cross entropy, a mean over many empty pixels
DICE_WEIGHT = 0.5
FIRST_LOGIT = -3  # of a line, before training: lines are rare


class WithAuxiliaryHeads(nn.Module):
    """A CellClassifier and, if `heads`, two auxiliary heads, which only help to train it.

    `regions`, a 1x1 convolution on the third stage, says where each class is; `lines`, a LineDecoder, where cracks run.
    Gray images (N, 1, S, S) -> logits (N, C), (N, C, S / 16, S / 16) and (N, 1, S / 2, S / 2), float32. Without the
    heads the last two are None.
    """

    def __init__(self, model, heads=True):
        super().__init__()
        self.model = model
        self.heads = None
        if heads:
            self.eval()
            with torch.no_grad():
                _, _, features = self.features(torch.zeros(1, 1, 64, 64, device=next(model.parameters()).device))
            maps = [feature.shape[1] for feature in features]
            regions = nn.Sequential(nn.BatchNorm2d(maps[3]), nn.ReLU(), nn.Conv2d(maps[3], len(model.classes), 1))
            self.heads = nn.ModuleDict({"regions": regions, "lines": LineDecoder(maps)})

    def forward(self, images):
        if self.heads is None:
            return self.model(images), None, None
        logits, normalised, features = self.features(images)
        regions = self.heads["regions"](features[3])
        lines = self.heads["lines"](normalised, features)
        return logits, regions.float(), lines.float()

    def features(self, images):
        """The logits, the images as the network gets them, and its features of strides 2, 4, 8 and 16."""
        network = self.model.network
        inputs = []
        outputs = []
        with ExitStack() as hooks:
            hooks.enter_context(network.register_forward_pre_hook(lambda module, given: inputs.append(given[0])))
            for name in (self.model.kind.stem, *self.model.kind.stages[:3]):
                layer = network.get_submodule(name)
                hook = layer.register_forward_hook(lambda module, given, output: outputs.append(output))
                hooks.enter_context(hook)
            logits = self.model(images)
        return logits, inputs[0], outputs


class LineDecoder(nn.Module):
    """Where cracks run: a feature pyramid (Lin et al. 2017) on a network's stages, down to half the image's resolution.

    maps: how many the features of strides 2, 4, 8 and 16 have. Normalised images (N, 1, S, S) and these features ->
    logits (N, 1, S / 2, S / 2), rounded up.
    """

    def __init__(self, maps, width=32, fine_width=24):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(number) for number in maps)
        self.coarse = nn.Sequential(convolution(maps[3], 48, 1), nn.Conv2d(48, width, 1))
        self.side_8 = nn.Conv2d(maps[2], width, 1)
        self.side_4 = nn.Conv2d(maps[1], width, 1)
        self.side_2 = nn.Conv2d(maps[0], fine_width, 1)
        self.side_1 = nn.Conv2d(4, fine_width, 1)  # the image's 2x2 pixels as four maps
        self.merge_8 = convolution(width, width, 3)
        self.merge_4 = convolution(width, width, 3)
        self.narrow = nn.Conv2d(width, fine_width, 1)
        self.merge_2 = convolution(fine_width, fine_width, 3)
        self.last = nn.Conv2d(fine_width, 1, 1)
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


def convolution(in_maps, maps, kernel):
    """Convolution, batch norm and ReLU; the size stays the same."""
    layer = nn.Conv2d(in_maps, maps, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(maps), nn.ReLU(inplace=True))


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


def region_loss(logits, drawn, weight):
    """Mean binary cross entropy (0-d) of the head of regions.

    logits: (B, C, h, w). drawn: float (B, C, S, S) in 0..1, how strongly defects were drawn. weight: float (B,), how
    much each cell counts: 0 for one with real defects, since nobody marked where they are.
    """
    targets = (F.adaptive_max_pool2d(drawn, logits.shape[2:]) > DRAWN).to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean((1, 2, 3))
    return (losses * weight).mean()


def line_loss(logits, lines, known):
    """Cross entropy and soft Dice (0-d) of the decoder of lines; Dice is that of this process's cells.

    logits: (B, 1, h, w). lines: float (B, 1, h, w) in 0..1, where cracks run. known: float (B,), 1 where that is known,
    0 for cells with a real crack.
    """
    targets = (lines > ON_LINE).to(logits.dtype)
    beside = F.max_pool2d(targets, 3, 1, 1) - targets
    weights = (1 - (1 - BESIDE_WEIGHT) * beside) * known[:, None, None, None]
    line_weights = 1 + (LINE_WEIGHT - 1) * targets
    entropy = F.binary_cross_entropy_with_logits(logits, targets, weight=weights * line_weights)
    predicted = torch.sigmoid(logits) * weights
    targets = targets * weights
    dice = 1 - (2 * (predicted * targets).sum() + 1) / (predicted.sum() + targets.sum() + 1)
    return ENTROPY_WEIGHT * entropy + DICE_WEIGHT * dice
