"""Are the class maps of `visualize_activations.py` right? Deletion and the pointing game, for every method.

$ python -m benchmarks.class_maps                      # best checkpoint, test part; writes class_maps_test.json
$ python -m benchmarks.class_maps --part val my.ckp
"""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
from skimage.draw import line_aa, polygon2mask
from skimage.filters import gaussian
from skimage.filters.rank import median
from skimage.morphology import dilation, disk
from tqdm import tqdm

import data
from elcells.data.cache import load_images
from elcells.data.images import IMAGE_SIZE
from elcells.devices import pick_device
from elcells.files import InputError, atomic_path
from elcells.training.checkpoints import find_checkpoint
from model import load_model
from visualize_activations import METHODS, class_map, part_of, probabilities

SHARE = 0.05  # of the pixels that are blacked out
TOLERANCE = 15  # pixels that the maximum of a map may lie off a drawn defect


def top_pixels(maps, share=SHARE):
    """The `share` of pixels of each map with the highest values, as bool masks. maps: (N, S, S)."""
    flat = maps.reshape(len(maps), -1)
    count = round(share * flat.shape[1])
    mask = np.zeros(flat.shape, bool)
    np.put_along_axis(mask, np.argpartition(-flat, count, axis=1)[:, :count], True, axis=1)
    return mask.reshape(maps.shape)


def many_maps(model, images, index, method, batch_size=8):
    """class_map in batches; returns float32 (N, S, S)."""
    parts = [class_map(model, images[i : i + batch_size], index, method) for i in range(0, len(images), batch_size)]
    return np.concatenate(parts) if parts else np.zeros(images.shape, np.float32)


def deletion(model, images, index, method, backgrounds, draws=3, seed=0):
    """How far a class's probability falls when the map's top pixels are replaced by the local median.

    images, backgrounds (their local medians): uint8 (N, S, S). Returns (mean fall with the map's pixels, mean fall
    with the same masks moved to `draws` random places).
    """
    rng = np.random.default_rng(seed)
    before = probabilities(model, images)[:, index]
    masks = top_pixels(many_maps(model, images, index, method))
    falls = [before - probabilities(model, np.where(masks, backgrounds, images))[:, index]]
    for _ in range(draws):
        moved = np.stack([np.roll(m, rng.integers(0, m.shape[0], 2), (0, 1)) for m in masks])
        falls.append(before - probabilities(model, np.where(moved, backgrounds, images))[:, index])
    return float(falls[0].mean()), float(np.mean(falls[1:]))


def draw_defect(image, name, rng):
    """Draw a defect into a cell: a dark oblique line for "crack", a black wedge at an edge for any other class.

    image: uint8 (S, S). Returns (uint8 (S, S), bool (S, S): where it is).
    """
    size = image.shape[0]
    if name == "crack":
        angle = rng.choice([-1, 1]) * rng.uniform(0.5, 1.1)
        length = size * rng.uniform(0.2, 0.5)
        x, y = rng.uniform(0.1, 0.9 - 0.4 * length / size, 2) * size
        ends = np.clip([y, x, y + length * math.sin(angle), x + length * math.cos(angle)], 0, size - 1).astype(int)
        rows, columns, strength = line_aa(*ends)
        mask = np.zeros((size, size))
        mask[rows, columns] = strength
        mask = gaussian(mask, 0.8)
        dark = 1 - rng.uniform(0.35, 0.6) * mask / mask.max()
    else:
        along, depth, width = rng.uniform(0.15, 0.85), rng.uniform(0.08, 0.2), rng.uniform(0.15, 0.3)
        corners = np.array([[-0.05, along - width / 2], [depth, along], [-0.05, along + width / 2]]) * size
        mask = np.rot90(polygon2mask((size, size), corners), rng.integers(4)).astype(float)
        dark = 1 - 0.9 * gaussian(mask, 1.2)
    return np.clip(image * dark, 0, 255).astype(np.uint8), mask > 0.3 * mask.max()


def pointing_game(model, defect_free, index, method, seed=0):
    """Share of drawn defects on which (within TOLERANCE pixels) the map's maximum lies; Zhang et al. 2016.

    defect_free: uint8 (N, S, S) cells without label. Only defects that the network calls positive count.
    Returns (share or None, how many counted).
    """
    rng = np.random.default_rng(seed)
    drawn, masks = zip(*(draw_defect(image, model.classes[index], rng) for image in defect_free))
    drawn, masks = np.stack(drawn), np.stack(masks)
    seen = probabilities(model, drawn)[:, index] >= model.config["thresholds"][index]
    near = disk(round(TOLERANCE * defect_free.shape[-1] / IMAGE_SIZE))
    maps = many_maps(model, drawn[seen], index, method)
    hits = [bool(dilation(mask, near).flat[heat.argmax()]) for mask, heat in zip(masks[seen], maps)]
    return (float(np.mean(hits)) if hits else None), len(hits)


def check(model, images, labels, methods, limit=40):
    """deletion and pointing_game of several methods for every class, as a list of dicts, one line each.

    images: uint8 (N, S, S); labels: 0/1 (N, C); limit: how many cells of a class, and defect-free ones, are used.
    """
    lines = []
    defect_free = images[labels.sum(1) == 0][:limit]
    around = np.ones((images.shape[-1] // 5, images.shape[-1] // 5), np.uint8)  # larger than most defects
    with tqdm(total=len(methods) * len(model.classes), desc="checking", leave=False) as bar:
        for index, name in enumerate(model.classes):
            chosen = images[labels[:, index] == 1][:limit]
            if not len(chosen) or not len(defect_free):
                raise InputError(f"the part has no cell with label {name}, or none without any")
            backgrounds = np.stack([median(image, around) for image in chosen])
            for method in methods:
                fall, random = deletion(model, chosen, index, method, backgrounds)
                share, count = pointing_game(model, defect_free, index, method)
                lines.append(
                    {"class": name, "method": method, "cells": len(chosen), "fall": fall, "fall_random": random}
                    | {"pointing": share, "pointing_cells": count}
                )
                bar.update()
    return lines


def main(argv=None):
    """Command line of this file; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = "best, last, an epoch's number or a path (%(default)s)"
    parser.add_argument("checkpoint", nargs="?", default="best", help=names)
    parser.add_argument("--part", choices=("test", "val"), default="test", help="cells (%(default)s)")
    parser.add_argument("--data", default="data.csv", metavar="CSV", help="table with the cells (%(default)s)")
    parser.add_argument("--images", metavar="DIR", help="folder of its file names (the table's folder)")
    parser.add_argument("--out", default=".", metavar="DIR", help="folder of the JSON file (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (%(default)s)")
    args = parser.parse_args(argv)
    try:
        model, checkpoint = load_model(find_checkpoint(args.checkpoint), pick_device(args.device))
        cells = part_of(data.read_table(args.data, model.classes, args.images), checkpoint, model, args.part)
        data.fill_images(cells)
        images, index = load_images(cells, model.config["image_size"])
        lines = check(model, np.array(images[index, 0]), cells[list(model.classes)].to_numpy(), METHODS)
        with atomic_path(Path(args.out) / f"class_maps_{args.part}.json") as temporary:
            temporary.write_text(json.dumps(lines, indent=1))
    except (InputError, OSError) as error:
        print(f"class_maps.py: {error}", file=sys.stderr)
        return 2
    print(f"Maps on the {args.part} part: fall of the probability without the top {SHARE:.0%} of pixels (a random")
    print("place of the same shape in brackets), and how often the maximum lies on a drawn defect.\n")
    for line in lines:
        hit = "-" if line["pointing"] is None else f"{line['pointing']:.2f}"
        print(
            f"{line['class']:10} {line['method']:20} fall {line['fall']:6.3f} ({line['fall_random']:6.3f}) "
            f"of {line['cells']:3} cells   pointing {hit} of {line['pointing_cells']}"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
