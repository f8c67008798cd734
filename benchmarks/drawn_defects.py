"""A sheet of cells with drawn defects, to look at: what `train.py` draws into defect-free cells.

$ python -m benchmarks.drawn_defects           # plots/drawn_defects.png
"""

import argparse
import sys

import torch
from matplotlib.figure import Figure

import data
from elcells.data.cache import load_images
from elcells.evaluation.plots import save
from elcells.files import InputError
from elcells.training.synthetic import COUNTS, NUMBERS, SyntheticDefects


def main(argv=None):
    """Command line of this file; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data.add_table_options(parser)
    parser.add_argument("--out", default="plots/drawn_defects.png", metavar="FILE", help="image (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of cells and drawings (%(default)s)")
    args = parser.parse_args(argv)
    try:
        table = data.read_table(args.data, args.classes, args.images)
        table = table[table[args.classes].sum(axis=1) == 0].sample(24, random_state=args.seed).reset_index(drop=True)
        data.fill_images(table)
        pixels, table["image"] = load_images(table)
        images, labels = data.CellDataset(table, pixels, args.classes).batch(range(24))
        defects = SyntheticDefects(args.classes, counts={k: 200 for k in COUNTS}, seed=args.seed)
        u = torch.rand(NUMBERS, 24, generator=torch.Generator().manual_seed(args.seed))
        images, labels, _ = defects.draw(images, labels, u)
    except (InputError, OSError, ValueError) as error:
        print(f"drawn_defects.py: {error}", file=sys.stderr)
        return 2
    figure = Figure(figsize=(16, 6.6), layout="constrained")
    for axes, image, label in zip(figure.subplots(3, 8).flat, images, labels):
        axes.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=255)
        axes.set_title(" and ".join(c for c, y in zip(args.classes, label) if y) or "neither", fontsize=10)
        axes.axis("off")
    save(figure, args.out, dpi=80)
    print(f"{args.out}: defect-free cells with drawn defects")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
