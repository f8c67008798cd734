"""Show what the layers of a trained network respond to, and where it sees cracks and inactive regions.

$ python visualize_activations.py                      # best checkpoint, one test cell of each kind
$ python visualize_activations.py 3 --cells cell0398 my/image.png
$ python visualize_activations.py --cells cell0398 --layers blocks.2 last --channels blocks.4
"""

import argparse
import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

import data
from elcells.colours import class_colour
from elcells.data.images import read_image
from elcells.devices import pick_device
from elcells.evaluation.plots import save
from elcells.files import InputError, command, printable
from elcells.training.checkpoints import find_checkpoint
from model import load_model

CANDIDATES = 12  # cells of each combination of labels, of which one is shown
CHANNELS = 16  # of a layer that are shown


# ---------------------------------------------------------------- layers


def convolutions(network):
    """Names of a network's convolutions in order of depth (list of str)."""
    return [name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)]


def check_layers(network, names):
    """Raise InputError, listing the layers, for a name that the network does not have."""
    layers = [name for name, layer in network.named_modules() if name and not isinstance(layer, (nn.ReLU, nn.ReLU6))]
    for name in names:
        if name not in layers:
            raise InputError(f"no layer {name!r}; there are: {', '.join(layers)}")


def watch_layers(model, images, layers):
    """Logits (N, C) of uint8 images (N, S, S), and the output of each of the layers: {name: tensor}."""
    outputs = {}

    def keep(name, layer, inputs, output):
        outputs[name] = output
        return output.clone()  # which the next layer may overwrite

    hooks = [model.network.get_submodule(name).register_forward_hook(partial(keep, name)) for name in layers]
    logits = model(as_batch(model, images))
    for hook in hooks:
        hook.remove()
    return logits, outputs


@torch.inference_mode()
def activations(model, image, layers):
    """Outputs of those layers that give maps, for one image, uint8 (S, S): {name: float (channels, h, w)}."""
    _, outputs = watch_layers(model, image[None], layers)
    return {name: output[0].cpu() for name, output in outputs.items() if output.ndim == 4}


def as_batch(model, images):
    """uint8 (N, S, S) numpy -> uint8 (N, 1, S, S) tensor on the model's device."""
    return torch.from_numpy(images)[:, None].to(next(model.parameters()).device)


@torch.inference_mode()
def image_probabilities(model, images):
    """Probabilities (N, C) of a few images, uint8 (N, S, S)."""
    return model.probabilities(model(as_batch(model, images))).cpu().numpy()


@torch.inference_mode()
def line_probabilities(model, image):
    """Probability that a crack's line runs there, float32 (S, S), for one image, uint8 (S, S)."""
    lines = model.crack_lines(as_batch(model, image[None]))
    return F.interpolate(lines, image.shape, mode="bilinear", align_corners=False)[0, 0].cpu().numpy()


# ---------------------------------------------------------------- class maps


def grad_cam(model, images, index):
    """Where a network sees a class: channels of the last stage, weighted by their mean gradient; Selvaraju et al. 2017.

    For a network that ends in average pooling and a linear layer (ResNet-34), this is the class activation map of Zhou
    et al. 2016.
    images: uint8 (N, S, S). index: of the class.
    Returns float32 (N, S, S), 0 and more, largest value 1 (or all 0).
    """
    [(output, gradient)] = outputs_and_gradients(model, images, index, model.kind.map_layers[-1:])
    maps = sum_of_channels(gradient.mean((2, 3), keepdim=True) * output, images.shape[-1])
    return (maps / maximum(maps)).cpu().numpy()


def layer_cam(model, images, index):
    """Like grad_cam, but sharper: each place is weighted by its own positive gradient (LayerCAM, Jiang et al. 2021).

    The maps of the last three stages are multiplied, so that the fine ones place what the deep one sees.
    """
    layers = model.kind.map_layers[1:]
    product = 1
    for output, gradient in outputs_and_gradients(model, images, index, layers):
        maps = sum_of_channels(F.relu(gradient) * output, images.shape[-1])
        product = product * maps / maximum(maps)
    mean = product ** (1 / len(layers))
    return (mean / maximum(mean)).cpu().numpy()


METHODS = {"Grad-CAM": grad_cam, "LayerCAM": layer_cam}


def outputs_and_gradients(model, images, index, layers):
    """Each layer's output, and the gradient there of a class's logit: a list of pairs of float (N, K, h, w)."""
    logits, outputs = watch_layers(model, images, layers)
    gradients = torch.autograd.grad(logits[:, index].sum(), [outputs[layer] for layer in layers])
    return [(outputs[layer].detach(), gradient) for layer, gradient in zip(layers, gradients)]


def sum_of_channels(maps, size):
    """Positive part of the sum over channels, enlarged to the image: float (N, K, h, w) -> (N, size, size)."""
    positive = F.relu(maps.sum(1, keepdim=True))
    return F.interpolate(positive, (size, size), mode="bilinear", align_corners=False)[:, 0]


def maximum(maps):
    """Maximum of each map (N, S, S), to divide by: (N, 1, 1), not 0."""
    return maps.amax((1, 2), keepdim=True).clamp(min=1e-12)


# ---------------------------------------------------------------- plots


def plot_panels(image, maps, title, path, columns=7):
    """Plot an image, uint8 (S, S), and maps {name: float (h, w)} as equal squares of one figure."""
    rows = math.ceil((1 + len(maps)) / columns)
    columns = min(columns, 1 + len(maps))
    figure = Figure(figsize=(2 * columns, 2.3 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    panels[0].imshow(image, cmap="gray", vmin=0, vmax=255)
    panels[0].set_title("input", fontsize=9)
    for axes, (name, values) in zip(panels[1:], maps.items()):
        axes.imshow(values, cmap="viridis")
        axes.set_title(name, fontsize=9)
    figure.suptitle(title, parse_math=False)
    save(figure, path, dpi=100)


def plot_feature_maps(model, image, name, layers, path):
    """Plot the image, then each layer's output averaged over its channels, in order of depth. image: uint8 (S, S)."""
    maps = {}
    for layer, output in activations(model, image, layers).items():
        channels, height, width = output.shape
        maps[f"{layer}\n{channels} x {height}x{width}"] = output.mean(0).numpy()
    title = f"{name}: mean of each layer's channels (channels x height x width), dark to bright"
    plot_panels(image, maps, title, path)


def plot_channels(model, image, name, layer, path):
    """Plot the channels of one layer that vary most over the image, strongest first. image: uint8 (S, S)."""
    outputs = activations(model, image, [layer])
    if layer not in outputs:
        raise InputError(f"--channels {layer}: its output is no map; take a convolution or a stage")
    output = outputs[layer]
    strongest = output.std((1, 2)).argsort(descending=True)[:CHANNELS].tolist()
    maps = {f"channel {channel}": output[channel].numpy() for channel in strongest}
    plot_panels(image, maps, f"{name}: {layer}, strongest {len(maps)} of {len(output)} channels", path, columns=6)


def overlay(axes, image, heat, probability):
    """Show a gray cell under a class map: transparent where weak, never stronger than the probability."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    strength = heat * probability
    return axes.imshow(strength, cmap="plasma", vmin=0, vmax=1, alpha=np.clip(1.6 * strength - 0.15, 0, 0.75))


def plot_class_maps(model, image, name, probabilities, path):
    """Plot for each class (its colour behind its name) cell and heat maps. image: uint8 (S, S). probabilities: (C,).

    Beside the maps of "crack" stands where crack lines run, if the model tells that.
    """
    rows = len(model.classes)
    columns = 1 + len(METHODS) + bool(model.lines)
    figure = Figure(figsize=(3.2 * columns, 3.2 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for index, (label, probability) in enumerate(zip(model.classes, probabilities)):
        grid[index, 0].imshow(image, cmap="gray", vmin=0, vmax=255)
        box = {"boxstyle": "round", "facecolor": class_colour(index), "edgecolor": "none"}
        title = f"{label}: probability {probability:.3f}"
        grid[index, 0].set_title(title, fontsize=10, parse_math=False, bbox=box)
        for axes, (method, maps_of) in zip(grid[index, 1:], METHODS.items()):
            heat = overlay(axes, image, maps_of(model, image[None], index)[0], probability)
            axes.set_title(f"{method} of {label}", fontsize=10, parse_math=False)
    if model.lines:
        axes = grid[model.classes.index("crack"), -1]
        overlay(axes, image, line_probabilities(model, image), 1)
        axes.set_title("probability of crack lines", fontsize=10)
    for axes in grid.flat:
        axes.axis("off")
    label = "heat: map x probability" + (", or probability of crack lines" if model.lines else "")
    figure.colorbar(heat, ax=grid, shrink=0.6, label=label)
    figure.suptitle(f"{name}: heat maps of where the network sees each class", parse_math=False)
    save(figure, path, dpi=100)


# ---------------------------------------------------------------- command


def named_cell(cell, table, size):
    """(name, image uint8 (size, size)) of an image's path or a cell of the table; raises InputError for neither."""
    path = Path(cell)
    if not path.is_file():
        is_cell = table["path"].map(lambda path: path.stem) == cell
        rows = table[is_cell | (table["cell"] == cell) | (table["filename"] == cell)]
        if rows.empty:
            raise InputError(f"{cell}: neither an image file nor a cell of the table")
        data.fill_images(rows)
        path = rows["path"].iloc[0]
    return printable(path.stem), read_image(path, size)


def surest_cells(test, model):
    """For each combination of labels in the table `test`, the cell among the first few that is predicted most surely.

    Returns a list of (name, image uint8 (S, S)).
    """
    cells = []
    for _, rows in test.groupby(data.combination(test, model.classes).values):
        rows = rows.head(CANDIDATES)
        data.fill_images(rows)
        images = np.stack([read_image(path, model.metadata.image_size) for path in rows["path"]])
        labels = rows[list(model.classes)].to_numpy()
        probabilities = image_probabilities(model, images)
        surest = np.where(labels == 1, probabilities, 1 - probabilities).min(1).argmax()
        cells.append((printable(rows["path"].iloc[surest].stem), images[surest]))
    return cells


def show_cell(model, image, name, layers, channels, out):
    """Write all plots of an image, uint8 (S, S), to the folder `out`, and print its probabilities as it lies.

    layers: names for the feature maps. channels: the layer whose channels are shown too, or None.
    """
    [probabilities] = image_probabilities(model, image[None])
    paths = [out / f"feature_maps_{name}.png", out / f"cam_{name}.png"]
    plot_feature_maps(model, image, name, layers, paths[0])
    plot_class_maps(model, image, name, probabilities, paths[1])
    if channels:
        paths.append(out / f"channels_{name}_{channels}.png")
        plot_channels(model, image, name, channels, paths[2])
    text = ", ".join(f"{label} {probability:.3f}" for label, probability in zip(model.classes, probabilities))
    print(f"{name}: {text}   {' '.join(map(str, paths))}")


def options():
    """The parser of this script's command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    text = "best, last, an epoch's number or a path (%(default)s)"
    parser.add_argument("checkpoint", nargs="?", default="best", help=text)
    parser.add_argument("--cells", nargs="+", metavar="CELL", help="cells or image files (a test cell of each kind)")
    parser.add_argument("--layers", nargs="+", metavar="LAYER", help="of the feature maps (every convolution)")
    parser.add_argument("--channels", metavar="LAYER", help=f"also show this layer's {CHANNELS} strongest channels")
    parser.add_argument("--out", type=Path, default="plots", metavar="DIR", help="folder of the plots (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (%(default)s)")
    parser.add_argument("--data", default="data.csv", metavar="CSV", help="table with the cells (%(default)s)")
    parser.add_argument("--images", metavar="DIR", help="folder of the table's file names (the table's folder)")
    return parser


@command
def main(argv=None):
    """Command line of this file; returns the exit code."""
    args = options().parse_args(argv)
    model, checkpoint = load_model(find_checkpoint(args.checkpoint), pick_device(args.device))
    layers = args.layers or convolutions(model.network)
    check_layers(model.network, [*layers, args.channels] if args.channels else layers)
    table = None
    if not args.cells or not all(Path(cell).is_file() for cell in args.cells):
        table = data.read_table(args.data, model.classes, args.images)
    if args.cells:
        cells = (named_cell(cell, table, model.metadata.image_size) for cell in args.cells)
    else:
        test = data.part_of_checkpoint(table, checkpoint.get("split"), "test", model.classes)
        cells = surest_cells(test, model)
    for name, image in cells:
        show_cell(model, image, name, layers, args.channels, args.out)


if __name__ == "__main__":
    raise SystemExit(main())
