"""Layers that train faster in bfloat16 on CPUs; they replace PyTorch's own during training.

PyTorch is slow there in four places: the gradients of depthwise convolutions, ReLU and its kin, and batch norms that do
not learn. doc/results.md has what that is worth.
"""

import contextlib
import math

import torch
from torch import nn
from torchvision.ops import Conv2dNormActivation


def is_slow(device, precision):
    """Whether PyTorch's own layers are slow on a torch.device in a precision (dtype): on a CPU in bfloat16."""
    return device.type == "cpu" and precision == torch.bfloat16


@contextlib.contextmanager
def fast_layers(network, active=True):
    """Exchange a network's layers for faster ones, and undo it at the end; parameters and buffers stay the same."""
    exchanged = [module for module in network.modules() if active and faster_class(module)]
    for module in exchanged:
        module.__class__ = faster_class(module)
    try:
        yield
    finally:
        for module in exchanged:
            module.__class__ = type(module).__base__


def faster_class(module):
    """The class that computes what a module does, faster; None where there is none."""
    if type(module) is nn.Conv2d and module.groups == module.in_channels > 1:
        return DepthwiseConv2d
    if type(module) in (nn.ReLU, nn.ReLU6) and not module.inplace:
        return None
    return FASTER.get(type(module))


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
        gradient = gradient.float()
        x32 = x.float()
        down, aside = context.layer.padding

        def gradients(x, weight, padding, wanted):
            """By the input, the weight and the bias; None where not wanted."""
            stride, groups = context.layer.stride, context.layer.groups
            return torch.ops.aten.convolution_backward(
                gradient, x, weight, None, stride, padding, (1, 1), False, (0, 0), groups, wanted
            )

        by_input, _, _ = gradients(x32, weight, (down, aside), (True, False, False))
        if weight.shape[3] != 5:
            _, by_weight, _ = gradients(x32, weight, (down, aside), (False, True, False))
            return by_input.to(x.dtype), by_weight, None
        # oneDNN is fast only for kernels of up to three columns: the left three, then the right three.
        parts = []
        for sides in ((aside, 0), (0, aside)):
            padded = nn.functional.pad(x, sides).float()
            parts.append(gradients(padded, weight[..., :3], (down, 0), (False, True, False))[1])
        return by_input.to(x.dtype), torch.cat([parts[0], parts[1][..., 1:]], 3), None


class ReLU(nn.ReLU):
    """max(x, 0), in place. bfloat16 is compared as int16: the order is the same for numbers from 0 on.

    PyTorch converts number by number to float32, which takes eight times as long. A NaN becomes 0.
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


FASTER = {nn.ReLU: ReLU, nn.ReLU6: ReLU6, Conv2dNormActivation: ConvolutionWithNorm}
