"""The auxiliary segmentation head: a second task that helps the network to learn, and is dropped after training."""

import torch
from torch import nn
from torch.nn import functional as F

DRAWN = 0.4  # from this strength of a drawing on (of 1) a place counts as defective


class WithAuxiliaryHead(nn.Module):
    """A CellClassifier and an auxiliary segmentation head on its third stage, which only helps to train it.

    Gray images (N, 1, S, S) -> logits (N, C) and logits (N, C, S / 16, S / 16) of where each class is, float32. Without
    the head the second is None.
    """

    def __init__(self, model, head=True):
        super().__init__()
        self.model = model
        self.head = None
        if head:
            self.eval()
            with torch.no_grad():
                _, features = self.features(torch.zeros(1, 1, 64, 64))
            maps = features.shape[1]
            self.head = nn.Sequential(nn.BatchNorm2d(maps), nn.ReLU(), nn.Conv2d(maps, len(model.classes), 1))

    def forward(self, images):
        if self.head is None:
            return self.model(images), None
        logits, features = self.features(images)
        return logits, self.head(features).float()

    def features(self, images):
        """The logits, and the output of the network's third stage."""
        outputs = []
        stage = self.model.network.get_submodule(self.model.kind.stages[2])
        with stage.register_forward_hook(lambda module, inputs, output: outputs.append(output)):
            logits = self.model(images)
        return logits, outputs[0]


def auxiliary_loss(aux_logits, drawn, weight):
    """Mean binary cross entropy (0-d) of the auxiliary head.

    aux_logits: (B, C, h, w). drawn: float (B, C, S, S) in 0..1, how strongly defects were drawn. weight: float (B,),
    how much each cell counts: 0 for one with real defects, since nobody marked where they are.
    """
    targets = (F.adaptive_max_pool2d(drawn, aux_logits.shape[2:]) > DRAWN).to(aux_logits.dtype)
    losses = F.binary_cross_entropy_with_logits(aux_logits, targets, reduction="none").mean((1, 2, 3))
    return (losses * weight).mean()
