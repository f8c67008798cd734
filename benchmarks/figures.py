"""Make the images in doc/.

$ python -m benchmarks.figures                        # labels.png: cells of each label
$ python -m benchmarks.figures lite0.ckp own.ckp      # also class_maps.png of both, feature_maps.png of the first
"""

import argparse
import sys
from pathlib import Path

from matplotlib.figure import Figure

import data
import visualize_activations as vis
from elcells.data.images import read_image
from elcells.files import InputError
from model import load_model

ROOT = Path(__file__).resolve().parent.parent

CELLS = (("cell0397", "cell1108", "cell0395", "cell0415"), ("cell2000", "cell0841", "cell0786", "cell0879"))
NAMES = {(0, 0): "neither", (1, 0): "crack", (0, 1): "inactive", (1, 1): "crack and inactive"}
NETWORKS = {"efficientnet_lite0": "EfficientNet-Lite0", "resnet34": "ResNet-34", "resnet": "own network"}
EXPLAINED = {  # all from the default split's test part
    "fine crack": "cell0873",
    "small cross": "cell1591",
    "inactive corner": "cell0798",
    "both": "cell0882",
    "no defect, cloudy poly": "cell0199",
    "interrupted fingers": "cell1026",
}


def cells():
    """The project's table, by the cell's name, its images filled in."""
    table = data.read_table(ROOT / "data.csv")
    data.fill_images(table)
    return table.set_index(table["path"].map(lambda p: p.stem))


def labels(table):
    """doc/labels.png: a mono and a poly cell of each combination of labels."""
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    grid = figure.subplots(2, 4)
    for axes, cell in zip(grid.flat, CELLS[0] + CELLS[1]):
        row = table.loc[cell]
        axes.imshow(read_image(row["path"]), cmap="gray", vmin=0, vmax=255)
        axes.set_title(f"{NAMES[row['crack'], row['inactive']]}\n{cell}, {row['type']}", fontsize=10)
        axes.axis("off")
    figure.savefig(ROOT / "doc" / "labels.png", dpi=80)


def class_maps(table, models):
    """doc/class_maps.png: six test cells, and where each network sees each class in them."""
    rows = [(model, index) for model in models for index in range(len(model.classes))]
    figure = Figure(figsize=(13, 2.3 * (1 + len(rows))), layout="constrained")
    grid = figure.subplots(1 + len(rows), len(EXPLAINED))
    for column, (kind, cell) in zip(grid.T, EXPLAINED.items()):
        image = read_image(table.loc[cell, "path"])
        column[0].imshow(image, cmap="gray", vmin=0, vmax=255)
        column[0].set_title(f"{kind}\n{cell}", fontsize=11)
        for axes, (model, index) in zip(column[1:], rows):
            p = vis.probabilities(model, image[None])[0, index]
            shown = vis.overlay(axes, image, vis.class_map(model, image[None], index, vis.SHARP)[0], p)
            axes.set_title(f"{model.classes[index]} {p:.2f}", fontsize=11)
    for axes, name in zip(grid[:, 0], ["cell", *(NETWORKS[m.config["network"]] for m, _ in rows)]):
        axes.text(-0.08, 0.5, name, transform=axes.transAxes, rotation=90, va="center", ha="right", fontsize=11)
    for axes in grid.flat:
        axes.axis("off")
    figure.colorbar(shown, ax=grid, shrink=0.5, label="map x probability")
    figure.savefig(ROOT / "doc" / "class_maps.png", dpi=70)


def main(argv=None):
    """Command line of this file; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", metavar="CKP", help="of networks for 300x300 pixels (none)")
    try:
        models = [load_model(c)[0] for c in parser.parse_args(argv).checkpoints]
        table = cells()
    except InputError as error:
        print(f"figures.py: {error}", file=sys.stderr)
        return 2
    labels(table)
    if models:
        class_maps(table, models)
        image = read_image(table.loc["cell0467", "path"])
        layers = vis.convolutions(models[0].network)
        vis.feature_maps(models[0], image, "cell0467", layers, ROOT / "doc" / "feature_maps.png", dpi=60)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
