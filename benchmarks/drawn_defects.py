"""Show what `train.py` draws into defect-free cells: a sheet of 24 of them.

$ python -m benchmarks.drawn_defects           # plots/drawn_defects.png
"""

import argparse

import torch
from matplotlib.figure import Figure

import data
from elcells.data.cache import load_images
from elcells.evaluation.plots import save
from elcells.files import command
from elcells.training.synthetic import COUNTS, NUMBERS, SyntheticDefects

ROWS = 3  # of the sheet
COLUMNS = 8


def drawn_cells(table, classes, seed):
    """Defect-free cells of a table with defects drawn in: images uint8 (N, 1, S, S) and labels (N, C)."""
    count = ROWS * COLUMNS
    defect_free = table[table[classes].sum(axis=1) == 0]
    cells = defect_free.sample(count, random_state=seed).reset_index(drop=True)
    data.fill_images(cells)
    pixels, cells["image"] = load_images(cells)
    images, labels = data.CellDataset(cells, pixels, classes).batch(range(count))
    defects = SyntheticDefects(classes, counts=dict.fromkeys(COUNTS, 200), seed=seed)
    numbers = torch.rand(NUMBERS, count, generator=torch.Generator().manual_seed(seed))
    drawn = defects.draw(images, labels, numbers)
    return drawn.images, drawn.labels


@command
def main(argv=None):
    """Command line of this file; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data.add_table_options(parser)
    parser.add_argument("--out", default="plots/drawn_defects.png", metavar="FILE", help="image (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of cells and drawings (%(default)s)")
    args = parser.parse_args(argv)
    images, labels = drawn_cells(data.read_table(args.data, args.classes, args.images), args.classes, args.seed)
    figure = Figure(figsize=(16, 6.6), layout="constrained")
    for axes, image, row in zip(figure.subplots(ROWS, COLUMNS).flat, images, labels):
        axes.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=255)
        axes.set_title(" and ".join(c for c, label in zip(args.classes, row) if label) or "neither", fontsize=10)
        axes.axis("off")
    save(figure, args.out, dpi=80)
    print(f"{args.out}: defect-free cells with drawn defects")


if __name__ == "__main__":
    raise SystemExit(main())
