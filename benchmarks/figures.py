"""Make the images in doc/.

$ python -m benchmarks.figures                        # labels.png: cells of each label; severity.jpg
$ python -m benchmarks.figures lite0.ckp own.ckp      # also class_maps.png of both
"""

import argparse
import io
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

import data
from elcells.data.images import read_image
from elcells.files import command
from elcells.inference.calls import Cells, read
from elcells.inference.cells import judge
from elcells.inference.networks import SHIPPED
from model import load_model
from visualize_activations import image_probabilities, layer_cam, overlay

DOC = Path(__file__).resolve().parent.parent / "doc"

MONO = ("cell0397", "cell1108", "cell0395", "cell0415")  # neither, crack, inactive, both
POLY = ("cell2000", "cell0841", "cell0786", "cell0879")  # the same
LABELS = {(0, 0): "neither", (1, 0): "crack", (0, 1): "inactive", (1, 1): "crack and inactive"}
NETWORK_TITLES = {"efficientnet_lite0": "EfficientNet-Lite0", "resnet34": "ResNet-34", "resnet": "own network"}
MEASURED = tuple(f"cell{n}" for n in ("0010", "0386", "0464", "0513", "0427", "0882", "0889", "1626", "1306", "0208"))
EXPLAINED = {  # all from the default split's test part
    "fine crack": "cell0873",
    "small cross": "cell1591",
    "inactive corner": "cell0798",
    "both": "cell0882",
    "no defect, cloudy poly": "cell0199",
    "interrupted fingers": "cell1026",
}


def figure_of_labels(table):
    """doc/labels.png: a mono and a poly cell of each combination of labels. table: indexed by the cell's name."""
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    for axes, cell in zip(figure.subplots(2, 4).flat, MONO + POLY):
        row = table.loc[cell]
        axes.imshow(read_image(row["path"]), cmap="gray", vmin=0, vmax=255)
        axes.set_title(f"{LABELS[row['crack'], row['inactive']]}\n{cell}, {row['type']}", fontsize=10)
        axes.axis("off")
    figure.savefig(DOC / "labels.png", dpi=80)


def figure_of_class_maps(table, models):
    """doc/class_maps.png: six test cells, and where each network sees each class in them."""
    rows = [(model, index) for model in models for index in range(len(model.classes))]
    figure = Figure(figsize=(13, 2.3 * (1 + len(rows))), layout="constrained")
    grid = figure.subplots(1 + len(rows), len(EXPLAINED))
    for column, (kind, cell) in zip(grid.T, EXPLAINED.items()):
        image = read_image(table.loc[cell, "path"])
        column[0].imshow(image, cmap="gray", vmin=0, vmax=255)
        column[0].set_title(f"{kind}\n{cell}", fontsize=11)
        for axes, (model, index) in zip(column[1:], rows):
            probability = image_probabilities(model, image[None])[0, index]
            shown = overlay(axes, image, layer_cam(model, image[None], index)[0], probability)
            axes.set_title(f"{model.classes[index]} {probability:.2f}", fontsize=11)
    row_names = ["cell"] + [NETWORK_TITLES[model.metadata.network] for model, _ in rows]
    for axes, name in zip(grid[:, 0], row_names):
        axes.text(-0.08, 0.5, name, transform=axes.transAxes, rotation=90, va="center", ha="right", fontsize=11)
    for axes in grid.flat:
        axes.axis("off")
    figure.colorbar(shown, ax=grid, shrink=0.5, label="map x probability")
    figure.savefig(DOC / "class_maps.png", dpi=70)


def figure_of_severity(table):
    """doc/severity.jpg: test cells with the crack lines and inactive regions of `cells.onnx`, and their numbers."""
    cells = Cells(SHIPPED)
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    for axes, name in zip(figure.subplots(2, 5).flat, MEASURED):
        path = table.loc[name, "path"]
        [cell] = judge(cells.engine, cells.thresholds, [read(path, cells.engine.image_size)])
        image = Image.open(path).convert("RGB")
        if cell.shape:
            shape = Image.open(io.BytesIO(cell.shape)).convert("RGBA").resize(image.size, Image.Resampling.NEAREST)
            image.paste(shape, (0, 0), shape)
        axes.imshow(image)
        length = f"{cell.crack_length:.2f} cell widths" if cell.calls[0] else "no crack"
        mode = f", mode {cell.crack_mode}" if cell.crack_mode else ""
        area = f"{100 * cell.inactive_area:.1f} % inactive" if cell.calls[1] else "not inactive"
        axes.set_title(f"{length}{mode}\n{area}", fontsize=10)
        axes.set_xlabel(name, fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.savefig(DOC / "severity.jpg", dpi=70, pil_kwargs={"quality": 80})


@command
def main(argv=None):
    """Command line of this file; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    text = "checkpoints of networks for 300x300 pixels (none)"
    parser.add_argument("checkpoints", nargs="*", metavar="CKP", help=text)
    args = parser.parse_args(argv)
    models = [load_model(path)[0] for path in args.checkpoints]
    table = data.read_table(DOC.parent / "data.csv")
    data.fill_images(table)
    table = table.set_index(table["path"].map(lambda path: path.stem))
    figure_of_labels(table)
    figure_of_severity(table)
    if models:
        figure_of_class_maps(table, models)


if __name__ == "__main__":
    raise SystemExit(main())
