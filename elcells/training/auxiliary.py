"""The auxiliary heads: further tasks that help the network to learn, and are dropped after training."""

import torch
from torch import nn
from torch.nn import functional as F

from elcells.training.decoder import LineDecoder

DRAWN = 0.4  # from this strength of a drawing on (of 1) a place counts as defective
ON_LINE = 0.3  # from this share of a pixel on a line runs through it
LINE_RATE = 4  # the decoder of lines starts from random weights: its learning rate, as a multiple of the network's
BESIDE_WEIGHT = 0.3  # of the pixels next to a line, as its course is not that exact
LINE_WEIGHT = 3  # of pixels on a line, which are rare
ENTROPY_WEIGHT = 4  # of the cross entropy, a mean over many empty pixels
DICE_WEIGHT = 0.5


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
            maps = model.feature_maps()
            regions = nn.Sequential(nn.BatchNorm2d(maps[3]), nn.ReLU(), nn.Conv2d(maps[3], len(model.classes), 1))
            self.heads = nn.ModuleDict({"regions": regions, "lines": LineDecoder(maps)})

    def forward(self, images):
        if self.heads is None:
            return self.model(images), None, None
        logits, normalised, features = self.model.features(images)
        regions = self.heads["regions"](features[3])
        lines = self.heads["lines"](normalised, features)
        return logits, regions.float(), lines.float()


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

    logits: (B, 1, h, w). lines: float (B, 1, h, w) in 0..1, where cracks run. known: float, 1 where that is known, else
    0: of each pixel, or (B, 1, 1, 1) of each cell.
    """
    targets = (lines > ON_LINE).to(logits.dtype)
    beside = F.max_pool2d(targets, 3, 1, 1) - targets
    weights = (1 - (1 - BESIDE_WEIGHT) * beside) * known
    line_weights = 1 + (LINE_WEIGHT - 1) * targets
    entropy = F.binary_cross_entropy_with_logits(logits, targets, weight=weights * line_weights)
    predicted = torch.sigmoid(logits) * weights
    targets = targets * weights
    dice = 1 - (2 * (predicted * targets).sum() + 1) / (predicted.sum() + targets.sum() + 1)
    return ENTROPY_WEIGHT * entropy + DICE_WEIGHT * dice
