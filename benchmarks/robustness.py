"""Measure how much a network loses on images that were taken or cut in another way than its training images.

$ python -m benchmarks.robustness                                       # checkpoints/best.ckp, its validation part
$ python -m benchmarks.robustness checkpoints/fold_*/best.ckp           # all folds of a cross-validation together
$ python -m benchmarks.robustness --part test --only "as they are" "blur, sigma 2 pixels"

Cells are judged as predict.py judges them. Whole images of 300x300 pixels are changed and keep their labels, so a part
of the loss by cutting comes from defects at the cell's edge that are no longer in the image.
"""

import argparse
import io
import json
from functools import partial

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional as tv
from tqdm import tqdm

import data
from elcells.data.cache import load_images
from elcells.evaluation.metrics import metrics_table
from elcells.files import InputError, atomic_path, command
from elcells.inference.networks import Network, open_network
from elcells.training.checkpoints import find_checkpoint, read_checkpoint


def zoom(images, factor=1.0, shift=0, degrees=0):
    """Enlarge about the centre, shift to the right (pixels) and turn; what lies outside the image is black."""
    smooth = {"interpolation": tv.InterpolationMode.BILINEAR, "fill": 0}
    return tv.affine(images, degrees, [shift, 0], factor, [0.0, 0.0], **smooth)


def resolution(images, side, sigma=0):
    """Images as from a camera with `side` pixels for a cell, whose noise has a standard deviation of sigma."""
    small = noise(tv.resize(images, [side], antialias=True), sigma)
    return tv.resize(small, [images.shape[-1]], tv.InterpolationMode.BICUBIC, antialias=True)


def curve(images, gain=1.0, gamma=1.0):
    """Gray levels 255 * (gain * level / 255) ** gamma; what is too bright is cut off at 255."""
    return (255 * (gain * images.float() / 255).clamp(max=1) ** gamma).round().byte()


def noise(images, sigma):
    """Gray levels plus normal noise of standard deviation sigma, the same in every run."""
    drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + sigma * drawn).round().clamp(0, 255).byte()


def compress(images, quality):
    """Images as they come out of a JPEG file of that quality."""
    decoded = []
    for image in images[:, 0].numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        decoded.append(np.array(Image.open(file)))
    return torch.from_numpy(np.stack(decoded))[:, None]


# Each takes and returns uint8 images (N, 1, S, S).
CHANGES = {
    "as they are": lambda images: images,
    "cut closer, cell 104 %": partial(zoom, factor=1.04),
    "cut closer, cell 107 %": partial(zoom, factor=1.07),
    "cut wider, cell 96 %, black around": partial(zoom, factor=0.96),
    "cut wider, cell 93 %, black around": partial(zoom, factor=0.93),
    "shifted by 6 pixels": partial(zoom, shift=6),
    "shifted by 12 pixels": partial(zoom, shift=12),
    "turned by 2 degrees": partial(zoom, degrees=2),
    "turned by 5 degrees": partial(zoom, degrees=5),
    "camera of 200 pixels a cell": partial(resolution, side=200),
    "camera of 150 pixels a cell": partial(resolution, side=150),
    "camera of 150 pixels, noise of 3 gray levels": partial(resolution, side=150, sigma=3),
    "camera of 100 pixels, noise of 3 gray levels": partial(resolution, side=100, sigma=3),
    "blur, sigma 1 pixel": partial(tv.gaussian_blur, kernel_size=[7, 7], sigma=1.0),
    "blur, sigma 2 pixels": partial(tv.gaussian_blur, kernel_size=[13, 13], sigma=2.0),
    "noise, sigma 5 gray levels": partial(noise, sigma=5),
    "noise, sigma 15 gray levels": partial(noise, sigma=15),
    "half as bright": partial(curve, gain=0.5),
    "a quarter as bright": partial(curve, gain=0.25),
    "1.5 times as bright, cut off at 255": partial(curve, gain=1.5),
    "gamma 0.7": partial(curve, gamma=0.7),
    "gamma 1.4": partial(curve, gamma=1.4),
    "JPEG, quality 75": partial(compress, quality=75),
    "JPEG, quality 30": partial(compress, quality=30),
}


def predict_changed(path, table, pixels, part, changes):
    """{change: labels, probabilities and thresholds, each (cells, classes)} of a checkpoint's part "val" or "test".

    Probabilities are those of predict.py. table, pixels: all cells. changes: {name: function as in CHANGES}.
    """
    checkpoint = read_checkpoint(path)
    if "split" not in checkpoint:
        raise InputError(f"{path}: has no record of its parts; take the best.ckp of a finished run")
    engine = open_network(Network(str(path)))
    rows = data.part_of_checkpoint(table, checkpoint["split"], part, engine.classes)
    images, labels = data.CellDataset(rows, pixels, engine.classes).batch(np.arange(len(rows)))
    thresholds = engine.thresholds()
    predicted = {}
    for name, change in tqdm(changes.items(), unit="change", leave=False, disable=None):
        changed = tv.resize(change(images), [engine.image_size], antialias=True).numpy()
        probabilities = engine.judged(changed, thresholds)
        predicted[name] = (labels.numpy(), probabilities, np.tile(thresholds, (len(rows), 1)))
    return predicted


def print_figures(figures, classes):
    """F1 and average precision under each change, one line each."""
    columns = [*classes, "mean"]
    print(f"{'images':46}" + "".join(f"{f'{name} {c}':>13}" for name in ("F1", "AP") for c in columns))
    for change, scores in figures.items():
        values = [scores[c][key] for key in ("f1", "average_precision") for c in columns]
        print(f"{change:46}" + "".join(f"{v:13.3f}" for v in values))


@command
def main(argv=None):
    """Command line of this file; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", default=["best"], help="best, last or paths (best)")
    parser.add_argument("--part", choices=("val", "test"), default="val", help="of each checkpoint (%(default)s)")
    parser.add_argument(
        "--only", nargs="+", choices=CHANGES, metavar="CHANGE", help=f"{'; '.join(CHANGES)} (all)".replace("%", "%%")
    )
    parser.add_argument("--out", default="robustness.json", metavar="FILE", help="figures (%(default)s)")
    data.add_table_options(parser)
    args = parser.parse_args(argv)
    table = data.read_table(args.data, args.classes, args.images)
    data.fill_images(table)
    images, table["image"] = load_images(table)
    changes = {name: CHANGES[name] for name in args.only or CHANGES}
    paths = [find_checkpoint(checkpoint) for checkpoint in args.checkpoints]
    predicted = [predict_changed(path, table, images, args.part, changes) for path in paths]
    figures = {}
    for name in changes:
        labels, probabilities, thresholds = map(np.concatenate, zip(*[of_network[name] for of_network in predicted]))
        figures[name] = metrics_table(labels, probabilities, thresholds, args.classes)
    print(f"{len(labels)} cells of the {args.part} part of {len(predicted)} networks; F1 at their thresholds\n")
    print_figures(figures, args.classes)
    with atomic_path(args.out) as temporary:
        temporary.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
