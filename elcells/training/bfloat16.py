"""Layers that train faster in bfloat16 on CPUs; they replace PyTorch's own for the time of a training.

PyTorch is slow there in four places: the gradients of depthwise convolutions, ReLU and its kin, and batch norms that do
not learn. doc/results.md has what that is worth.
"""

import contextlib
import math

import torch
from torch import nn
from torchvision.ops import Conv2dNormActivation


@contextlib.contextmanager
def fast_layers(network, active=True):
    """Exchange a network's layers for faster ones, and undo it at the end; parameters and buffers stay the same."""
    for module in network.modules():
        is_depthwise = type(module) is nn.Conv2d and module.groups == module.in_channels > 1
        if active and (type(module) in EXCHANGED or is_depthwise):
            module.__class__ = DepthwiseConv2d if is_depthwise else EXCHANGED[type(module)]
    try:
        yield
    finally:
        for module in network.modules():
            if isinstance(module, FASTER):
                module.__class__ = type(module).__base__


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution with its gradient in float32: in bfloat16 it takes four times as long."""

    def forward(self, x):
        if x.dtype != torch.bfloat16 or not x.requires_grad:
            return super().forward(x)
        return _DepthwiseInBfloat16.apply(x, self.weight, self)


class _DepthwiseInBfloat16(torch.autograd.Function):
    @staticmethod
    def forward(context, x, weight, layer):
        context.save_for_backward(x, weight)
        context.layer = layer
        return layer._conv_forward(x, weight.to(x.dtype), None)

    @staticmethod
    def backward(context, gradient):
        x, weight = context.saved_tensors
        layer = context.layer
        down, aside = layer.padding
        gradient = gradient.float()
        x32 = x.float()

        def by_weight(x, weight, aside):
            return gradients(gradient, x, weight, layer, (down, aside), by_weight=True)[1]

        by_input = gradients(gradient, x32, weight, layer, layer.padding, by_input=True)[0].to(x.dtype)
        if weight.shape[3] != 5:
            return by_input, by_weight(x32, weight, aside), None
        # oneDNN is fast only for kernels of up to three columns: the left three, then the right three.
        three = weight[..., :3]
        left = by_weight(nn.functional.pad(x, (aside, 0)).float(), three, 0)
        right = by_weight(nn.functional.pad(x, (0, aside)).float(), three, 0)
        return by_input, torch.cat([left, right[..., 1:]], 3), None


def gradients(gradient, x, weight, layer, padding, by_input=False, by_weight=False):
    """A convolution's gradients (by its input, its weight, its bias), None where not asked for."""
    dilation = (1, 1)
    no_transposed = False
    output_padding = (0, 0)
    asked = (by_input, by_weight, False)
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, None, layer.stride, padding, dilation, no_transposed, output_padding, layer.groups, asked
    )


class ReLU(nn.ReLU):
    """max(x, 0), in place; of bfloat16 as of 16-bit integers, whose order is the same from 0 on.

    PyTorch's own goes through float32 number by number, which takes eight times as long. A NaN becomes 0.
    """

    def forward(self, x):
        return _ReLUOfBits.apply(x, math.inf) if x.dtype == torch.bfloat16 else super().forward(x)


class ReLU6(nn.ReLU6):
    """min(max(x, 0), 6) likewise; a NaN becomes 0 or 6."""

    def forward(self, x):
        return _ReLUOfBits.apply(x, 6) if x.dtype == torch.bfloat16 else super().forward(x)


class _ReLUOfBits(torch.autograd.Function):
    @staticmethod
    def forward(context, x, top):
        top_bits = torch.tensor(top, dtype=torch.bfloat16).view(torch.int16).item()
        x.view(torch.int16).clamp_(0, top_bits)
        context.mark_dirty(x)
        context.save_for_backward(x)
        context.top = top
        return x

    @staticmethod
    def backward(context, gradient):
        (y,) = context.saved_tensors
        if context.top == math.inf:
            return torch.ops.aten.threshold_backward(gradient, y, 0), None
        return torch.ops.aten.hardtanh_backward(gradient, y, 0, context.top), None


class ConvolutionWithNorm(Conv2dNormActivation):
    """A batch norm that doesn't learn becomes part of the convolution before it."""

    def forward(self, x):
        convolution, norm, *activation = self
        if norm.training:
            return super().forward(x)
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        weight = convolution.weight * scale[:, None, None, None]
        x = convolution._conv_forward(x, weight, norm.bias - norm.running_mean * scale)
        return activation[0](x) if activation else x


EXCHANGED = {nn.ReLU: ReLU, nn.ReLU6: ReLU6, Conv2dNormActivation: ConvolutionWithNorm}
FASTER = (DepthwiseConv2d, *EXCHANGED.values())
