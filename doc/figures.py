"""Make the pictures in doc/ that show labels.

$ python doc/figures.py    # writes doc/labels.png
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import data

CELLS = (("cell0004", "cell1108", "cell0395", "cell0415"), ("cell2000", "cell0841", "cell0786", "cell0879"))
NAMES = {(0, 0): "neither", (1, 0): "crack", (0, 1): "inactive", (1, 1): "crack and inactive"}


def labels():
    """doc/labels.png: a mono and a poly cell of each combination of labels."""
    table = data.read_table(ROOT / "data.csv").set_index("cell")
    table.index = [name.split("/")[-1] for name in table.index]
    data.fill_images(table)
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    grid = figure.subplots(2, 4)
    for axes, cell in zip(grid.flat, CELLS[0] + CELLS[1]):
        row = table.loc[cell]
        axes.imshow(data.read_picture(row["path"]), cmap="gray", vmin=0, vmax=255)
        axes.set_title(f"{NAMES[row['crack'], row['inactive']]}\n{cell}, {row['type']}", fontsize=10)
        axes.axis("off")
    figure.savefig(ROOT / "doc" / "labels.png", dpi=80)


if __name__ == "__main__":
    labels()
