"""What makes training fast on CPUs: kernels for bfloat16, and how memory is kept."""

import math

import torch
from torch import nn


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution with its gradient in float32 on a CPU: in bfloat16 it takes four times as long."""

    def forward(self, x):
        if x.dtype != torch.bfloat16 or x.device.type != "cpu" or not x.requires_grad:
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
        (down, aside), wide = context.layer.padding, weight.shape[3]

        def backward(x, weight, aside, by_x):
            geometry = context.layer.stride, (down, aside), (1, 1), False, (0, 0), context.layer.groups
            outputs = by_x, not by_x, False
            return torch.ops.aten.convolution_backward(gradient, x, weight, None, *geometry, outputs)[not by_x]

        gradient, x32 = gradient.float(), x.float()
        by_input = backward(x32, weight, aside, True).to(x.dtype)
        if wide != 5:
            return by_input, backward(x32, weight, aside, False), None
        # oneDNN is fast only for kernels of up to three columns: the left three, then the right three.
        sides = (aside, 0), (0, aside)
        left, right = (backward(nn.functional.pad(x, s).float(), weight[..., :3], 0, False) for s in sides)
        return by_input, torch.cat([left, right[..., 1:]], 3), None


class ReLU(nn.Module):
    """min(max(x, 0), top), in place; of bfloat16 on a CPU as of 16-bit integers, whose order is the same from 0 on.

    PyTorch's own goes through float32 number by number, which takes eight times as long. A NaN becomes 0 or top.
    """

    def __init__(self, top=math.inf):
        super().__init__()
        self.top = top

    def forward(self, x):
        if x.dtype == torch.bfloat16 and x.device.type == "cpu":
            return _ReLUOfBits.apply(x, self.top)
        if self.top == math.inf:
            return nn.functional.relu(x, inplace=True)
        return nn.functional.hardtanh(x, 0, self.top, inplace=not x.requires_grad)


class _ReLUOfBits(torch.autograd.Function):
    @staticmethod
    def forward(context, x, top):
        x.view(torch.int16).clamp_(0, torch.tensor(top, dtype=torch.bfloat16).view(torch.int16).item())
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
