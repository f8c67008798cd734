"""Layers that replace PyTorch's in bfloat16 on a CPU compute what PyTorch's do, and go again."""

import numpy as np
import pytest
import torch
from torch import nn

from elcells.training.bfloat16 import DepthwiseConv2d, ReLU, ReLU6, fast_layers
from model import NETWORKS, build_model, lite_convolution


def cells(small, n=2):
    return torch.from_numpy(np.array(small[1][:n]))


@pytest.mark.parametrize("kernel, stride", [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_in_bfloat16_a_depthwise_convolutions_gradient_is_that_of_float32(small, kernel, stride):
    torch.manual_seed(0)
    layer = DepthwiseConv2d(8, 8, kernel, stride, padding=kernel // 2, groups=8, bias=False)
    x = (cells(small, 16).float() / 255).view(2, 8, 64, 64).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    gradient = torch.randn(out.shape).bfloat16()
    by_x, by_weight = torch.autograd.grad(out, (x, layer.weight), gradient)
    x32, weight = x.detach().float().requires_grad_(), layer.weight.detach().requires_grad_()
    out32 = torch.nn.functional.conv2d(x32, weight, None, stride, kernel // 2, groups=8)
    by_x32, by_weight32 = torch.autograd.grad(out32, (x32, weight), gradient.float())
    assert out.dtype == torch.bfloat16 and torch.allclose(out.float(), out32, atol=0.02)
    assert by_x.dtype == torch.bfloat16 and by_weight.dtype == torch.float32
    assert torch.allclose(by_x.float(), by_x32, rtol=2**-7, atol=1e-4)  # a bfloat16 has eight bits
    assert torch.allclose(by_weight, by_weight32, rtol=1e-4, atol=1e-2)  # sums of 8,192 products


@pytest.mark.parametrize("layer, original", [(ReLU, nn.ReLU), (ReLU6, nn.ReLU6)])
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
def test_relu_is_pytorchs(layer, original, precision):
    torch.manual_seed(0)
    special = torch.tensor([0.0, -0.0, 6.0, 5.97, 6.03, -6.0, 1e-40, -1e-40, 3e38, float("inf"), -float("inf")])
    x = torch.cat([special, 4 * torch.randn(1000)]).to(precision).requires_grad_()
    gradient = torch.randn(len(x)).to(precision)
    expected = original()(x)
    assert torch.equal(layer(inplace=True)(x.detach().clone()), expected)
    y = layer(inplace=True)(x * 1)
    assert torch.equal(y, expected)
    by_x = [torch.autograd.grad(out, x, gradient, retain_graph=True)[0] for out in (y, expected)]
    assert torch.equal(*by_x)


@pytest.mark.parametrize("maps, kernel, groups", [(1, 3, 1), (8, 1, 1), (8, 5, 8)])
def test_a_batch_norm_that_does_not_learn_is_part_of_the_convolution(small, maps, kernel, groups):
    torch.manual_seed(0)
    layers = nn.Sequential(lite_convolution(maps, 8, kernel, groups=groups)).eval()
    norm = layers[0][1]
    for values, low in ((norm.weight, 0.5), (norm.bias, -1), (norm.running_mean, -1), (norm.running_var, 0.5)):
        nn.init.uniform_(values, low, low + 2)
    x = cells(small, 16).float() / 255
    x = x if maps == 1 else x.view(2, 8, 64, 64)
    with torch.no_grad():
        exact = layers(x)
        norm.register_forward_hook(lambda *_: pytest.fail("the batch norm was called"))
        with fast_layers(layers), torch.autocast("cpu", torch.bfloat16):
            out = layers(x)
    assert out.dtype == torch.bfloat16 and exact.std() > 0.1
    assert (out.float() - exact).abs().max() < 0.05


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_are_exchanged_for_the_time_of_the_context_alone(name):
    network = build_model(name, width=16).network
    layers = [type(module) for module in network.modules()]
    state = {k: v.data_ptr() for k, v in network.state_dict().items()}
    with fast_layers(network, active=False):
        assert [type(module) for module in network.modules()] == layers
    with pytest.raises(KeyError), fast_layers(network):
        exchanged = [type(module) for module in network.modules()]
        assert exchanged != layers and all(issubclass(new, old) for new, old in zip(exchanged, layers))
        assert {k: v.data_ptr() for k, v in network.state_dict().items()} == state
        raise KeyError
    assert [type(module) for module in network.modules()] == layers
