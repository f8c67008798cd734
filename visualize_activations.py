"""Show what the layers of a trained network respond to, and where it sees cracks and inactive regions.

$ python visualize_activations.py                      # best checkpoint, one test cell of each kind
$ python visualize_activations.py 3 --cells cell0398 my/image.png
$ python visualize_activations.py --cells cell0398 --layers layer1 layer4 --channels layer2
"""

import argparse
import math
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F
from torchvision.models.feature_extraction import get_graph_node_names

import data
from elcells.data.images import read_image
from elcells.devices import pick_device
from elcells.evaluation.plots import save
from elcells.files import InputError, print_any_name, printable
from elcells.training.checkpoints import find_checkpoint
from elcells.training.cpu import ReLU
from model import TRACER, load_model, map_layers, outputs_of

COLOURS = "plasma"


# ---------------------------------------------------------------- layers


def convolutions(network):
    """Names of a network's convolutions in order of depth (list of str)."""
    modules = dict(network.named_modules())
    return [n for n in get_graph_node_names(network, tracer_kwargs=TRACER)[1] if isinstance(modules.get(n), nn.Conv2d)]


def check_layers(network, names):
    """Raise InputError, listing what there is, for a layer that a network does not have."""
    there = [n for n, m in network.named_modules() if n and not isinstance(m, (nn.ReLU, ReLU))]
    for name in names:
        if name not in there:
            raise InputError(f"no layer {name!r}; there are: {', '.join(there)}")


@torch.inference_mode()
def activations(model, image, layers):
    """Outputs of layers for one image: {name: float (channels, h, w)}. image: uint8 (S, S)."""
    extract = outputs_of(model.network, layers)
    return {n: a[0].cpu() for n, a in extract(model.normalise(as_batch(model, image[None]))).items() if a.ndim == 4}


def as_batch(model, images):
    """uint8 (N, S, S) numpy -> uint8 (N, 1, S, S) tensor on the model's device."""
    return torch.from_numpy(np.ascontiguousarray(images))[:, None].to(next(model.parameters()).device)


# ---------------------------------------------------------------- class maps


def stage_gradients(model, images, names):
    """Logits (N, C), and for each stage its output (N, K, h, w) with a graph that autograd can go back to."""
    outputs = outputs_of(model.network, [*names, "fc"])(model.normalise(images).requires_grad_())
    return outputs["fc"], [outputs[n] for n in names]


def grad_cam(outputs, gradients):
    """Selvaraju et al. 2017: channels weighted by their mean gradient. (N, K, h, w) twice -> (N, 1, h, w).

    On the last stage of a network that ends in average pooling and a linear layer (ResNet-34), this is the exact class
    activation map of Zhou et al. 2016, without its constant.
    """
    return F.relu((gradients.mean((2, 3), keepdim=True) * outputs).sum(1, keepdim=True))


def layer_cam(outputs, gradients):
    """Jiang et al. 2021: each place weighted by its own positive gradient. (N, K, h, w) twice -> (N, 1, h, w)."""
    return F.relu((F.relu(gradients) * outputs).sum(1, keepdim=True))


def grad_cam_plus(outputs, gradients):
    """Chattopadhay et al. 2018 (Grad-CAM++), for an exponential of the logit. (N, K, h, w) twice -> (N, 1, h, w)."""
    g2, g3 = gradients**2, gradients**3
    alpha = g2 / (2 * g2 + outputs.sum((2, 3), keepdim=True) * g3 + 1e-12)
    return F.relu(((alpha * F.relu(gradients)).sum((2, 3), keepdim=True) * outputs).sum(1, keepdim=True))


METHODS = {  # name -> (how, stages counted from the last, enlargement of the input)
    "Grad-CAM": (grad_cam, (3,), 1),
    "Grad-CAM x2": (grad_cam, (3,), 2),
    "Grad-CAM++ stage 3": (grad_cam_plus, (2,), 1),
    "LayerCAM 3-4": (layer_cam, (2, 3), 1),
    "LayerCAM 2-4": (layer_cam, (1, 2, 3), 1),
    "LayerCAM 2-3": (layer_cam, (1, 2), 1),
    "LayerCAM 1-3": (layer_cam, (0, 1, 2), 1),
}
SHARP = "LayerCAM 2-4"  # the best of them on the validation part (benchmarks/class_maps.py)


def class_map(model, images, index, method):
    """Where a network sees a class.

    images: uint8 (N, S, S). index: of the class. method: a key of METHODS. Maps of several stages are each scaled to
    a maximum of 1 and multiplied, so that what the deep one sees is placed by the fine ones.
    Returns float32 (N, S, S), 0 and more, largest value 1 (or all 0).
    """
    how, chosen, enlarge = METHODS[method]
    size = images.shape[-1]
    batch = as_batch(model, images)
    if enlarge != 1:
        batch = F.interpolate(batch.float() / 255, scale_factor=enlarge, mode="bilinear", align_corners=False)
    names = [map_layers(model.network)[i] for i in chosen]
    logits, outputs = stage_gradients(model, batch, names)
    gradients = torch.autograd.grad(logits[:, index].sum(), outputs)
    product = torch.ones(len(images), 1, size, size, device=batch.device)
    for output, gradient in zip(outputs, gradients):
        one = F.interpolate(how(output.detach(), gradient), (size, size), mode="bilinear", align_corners=False)
        product = product * one / one.amax((2, 3), keepdim=True).clamp(min=1e-12)
    product = product ** (1 / len(names))
    return (product / product.amax((2, 3), keepdim=True).clamp(min=1e-12))[:, 0].cpu().numpy()


@torch.inference_mode()
def probabilities(model, images):
    """Probabilities (N, C) of uint8 images (N, S, S)."""
    parts = [as_batch(model, images[i : i + 32]) for i in range(0, len(images), 32)]
    return torch.cat([model.probabilities(model(part)) for part in parts]).cpu().numpy()


# ---------------------------------------------------------------- images


def grid_of(panels, title, path, columns=7, dpi=100):
    """Panels [(title, 2-d array, colour map)] in one figure of equal squares."""
    rows = math.ceil(len(panels) / columns)
    columns = min(columns, len(panels))
    figure = Figure(figsize=(2 * columns, 2.3 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, panel in zip(grid.flat, panels):
        name, image, colours = panel
        limits = {"vmin": 0, "vmax": 255} if image.dtype == np.uint8 else {}
        axes.imshow(image, cmap=colours, **limits)
        axes.set_title(name, fontsize=9)
    for axes in grid.flat:
        axes.axis("off")
    figure.suptitle(title, parse_math=False)
    save(figure, path, dpi)


def feature_maps(model, image, name, layers, path, dpi=100):
    """The input, then each layer's output averaged over its channels, in order of depth."""
    panels = [("input", image, "gray")]
    for layer, a in activations(model, image, layers).items():
        panels.append((f"{layer}\n{a.shape[0]} x {a.shape[1]}x{a.shape[2]}", a.mean(0).numpy(), "viridis"))
    grid_of(panels, f"{name}: mean of each layer's channels (channels x height x width), dark to bright", path, dpi=dpi)


def channel_maps(model, image, name, layer, path, count=16):
    """The `count` channels of one layer that vary most over the image, strongest first."""
    a = activations(model, image, [layer])
    if layer not in a:
        raise InputError(f"--channels {layer}: its output is no map; take a convolution or a stage")
    a = a[layer]
    strongest = a.std((1, 2)).argsort(descending=True)[:count].tolist()
    panels = [("input", image, "gray"), *((f"channel {k}", a[k].numpy(), "viridis") for k in strongest)]
    grid_of(panels, f"{name}: {layer}, strongest {len(strongest)} of {len(a)} channels", path, columns=6)


def overlay(axes, image, heat, probability):
    """A gray cell under a class map: transparent where weak, never stronger than the probability."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    strength = heat * probability
    return axes.imshow(strength, cmap=COLOURS, vmin=0, vmax=1, alpha=np.clip(1.6 * strength - 0.15, 0, 0.75))


def class_maps(model, image, name, path):
    """For each class: the cell, Grad-CAM of the last stage, and the sharper map."""
    p = probabilities(model, image[None])[0]
    methods = ("Grad-CAM", SHARP)
    figure = Figure(figsize=(9.6, 3.2 * len(p) + 0.3), layout="constrained")
    grid = figure.subplots(len(p), 3, squeeze=False)
    for index, (label, line) in enumerate(zip(model.classes, grid)):
        line[0].imshow(image, cmap="gray", vmin=0, vmax=255)
        line[0].set_title(f"{label}: probability {p[index]:.3f}", fontsize=10)
        for axes, method in zip(line[1:], methods):
            shown = overlay(axes, image, class_map(model, image[None], index, method)[0], p[index])
            axes.set_title(method, fontsize=10)
    for axes in grid.flat:
        axes.axis("off")
    figure.colorbar(shown, ax=grid, shrink=0.6, label="map x probability")
    figure.suptitle(f"{name}: where the network sees each class", parse_math=False)
    save(figure, path, dpi=100)


# ---------------------------------------------------------------- command


def cell_image(given, table, model):
    """(name, uint8 (S, S)) of an image's path or a cell of the table. Raises InputError for neither."""
    size = model.config["image_size"]
    if Path(given).is_file():
        return printable(Path(given).stem), read_image(given, size)
    rows = table[[given in (p.stem, c, f) for p, c, f in zip(table["path"], table["cell"], table["filename"])]]
    if rows.empty:
        raise InputError(f"{given}: neither an image file nor a cell of the table")
    data.fill_images(rows)
    return printable(rows["path"].iloc[0].stem), read_image(rows["path"].iloc[0], size)


def part_of(table, checkpoint, model, part):
    """The cells of a checkpoint's "test" or "val" part; where it has no record, those of the default split."""
    split = checkpoint.get("split")
    if not split:
        _, val, test = data.split_parts(table, classes=model.classes)
        split = data.record_split(val, test, "cell")
    return data.recorded_part(table, split, part)


def telling_cells(table, checkpoint, model, candidates=12):
    """Of each combination of labels in the test part the cell that the network is most rightly sure of."""
    test = part_of(table, checkpoint, model, "test")
    cells = []
    for _, rows in test.groupby(data.combination(test, model.classes).values):
        rows = rows.head(candidates)
        data.fill_images(rows)
        images = np.stack([read_image(p, model.config["image_size"]) for p in rows["path"]])
        y, p = rows[list(model.classes)].to_numpy(), probabilities(model, images)
        cells.append(str(rows["path"].iloc[np.where(y == 1, p, 1 - p).min(1).argmax()]))
    return cells


def options():
    """The parser of this script's command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint", nargs="?", default="best", help="best, last, an epoch's number or a path (%(default)s)"
    )
    group = parser.add_argument_group("images")
    group.add_argument(
        "--cells", nargs="+", metavar="CELL", help="cells of the table or image files (a test cell of each kind)"
    )
    group.add_argument("--layers", nargs="+", metavar="LAYER", help="layers of the grid (every convolution)")
    group.add_argument("--channels", metavar="LAYER", help="also show the 16 strongest channels of this layer")
    group.add_argument("--out", default="plots", metavar="DIR", help="folder of the images (%(default)s)")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (%(default)s)")
    group = parser.add_argument_group("table")
    group.add_argument("--data", default="data.csv", metavar="CSV", help="table with the cells (%(default)s)")
    group.add_argument("--images", metavar="DIR", help="folder of its file names (the table's folder)")
    return parser


def main(argv=None):
    """Command line of this file; returns the exit code."""
    print_any_name()
    args = options().parse_args(argv)
    try:
        model, checkpoint = load_model(find_checkpoint(args.checkpoint), pick_device(args.device))
        network, out = model.network, Path(args.out)
        check_layers(network, [*(args.layers or []), *([args.channels] if args.channels else [])])
        only_files = args.cells and all(Path(c).is_file() for c in args.cells)
        table = None if only_files else data.read_table(args.data, model.classes, args.images)
        for given in args.cells or telling_cells(table, checkpoint, model):
            name, image = cell_image(given, table, model)
            written = [out / f"feature_maps_{name}.png", out / f"cam_{name}.png"]
            feature_maps(model, image, name, args.layers or convolutions(network), written[0])
            class_maps(model, image, name, written[1])
            if args.channels:
                written.append(out / f"channels_{name}_{args.channels}.png")
                channel_maps(model, image, name, args.channels, written[-1])
            p = probabilities(model, image[None])[0]
            found = ", ".join(f"{c} {v:.3f}" for c, v in zip(model.classes, p))
            print(f"{name}: {found}   {' '.join(map(str, written))}")
    except (InputError, OSError) as error:
        print(f"visualize_activations.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
