"""Measure training against the classic way: training step, evaluation, data pipeline.

$ python -m benchmarks.training                          # a table on the screen, and training.json
$ python -m benchmarks.training --networks resnet34 --precision fp32

The classic way is ResNet-34 with three input channels in float32, images from files, Sigmoid and BCELoss, SGD. All ways
take turns in one process, so that a machine whose speed drifts treats them alike; medians are printed.
"""

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Sized
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from skimage.color import gray2rgb
from skimage.io import imread
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.models import resnet34

import data
from benchmarks.inference import speed
from elcells.data.cache import load_images
from elcells.data.images import IMAGE_SIZE
from elcells.data.tables import CLASSES
from elcells.devices import keep_freed_memory, pick_precision
from elcells.files import InputError, atomic_path
from elcells.training.recipes import FAST, FINETUNE
from elcells.training.synthetic import SyntheticDefects
from elcells.training.weights import load_initial_weights
from model import DEFAULT, MEAN, NETWORKS, STD, build_model
from trainer import Run, Trainer

ROOT = Path(__file__).resolve().parent.parent
CELLS = 64  # that are trained on and evaluated
CLASSIC_BATCH = 16
CLASSIC_AUGMENTATION = [
    transforms.RandomHorizontalFlip(),
    transforms.RandomVerticalFlip(),
    transforms.RandomAffine(3, translate=(0.02, 0.02)),
    transforms.RandomResizedCrop(IMAGE_SIZE, scale=(0.98, 1), ratio=(1, 1)),
]


class ClassicDataset(Dataset):
    """Image files, read and changed one at a time: float (3, 300, 300), and labels (2,)."""

    def __init__(self, table, augmentation=()):
        self.paths = list(table["path"])
        self.labels = table[list(CLASSES)].to_numpy(np.float32)
        normalise = transforms.Normalize([MEAN] * 3, [STD] * 3)
        self.transform = transforms.Compose([transforms.ToPILImage(), *augmentation, transforms.ToTensor(), normalise])

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return self.transform(gray2rgb(imread(self.paths[i]))), self.labels[i]


class Classic:
    """ResNet-34 with three input channels, float32, Sigmoid and BCELoss, SGD, from random weights."""

    def __init__(self):
        self.network = resnet34()
        self.network.fc = torch.nn.Sequential(torch.nn.Linear(512, len(CLASSES)), torch.nn.Sigmoid())
        self.loss = torch.nn.BCELoss()
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.01, 0.9, weight_decay=1e-4)

    def step(self, batch):
        """A training step. batch: list of (image, labels) of a ClassicDataset."""
        images, labels = torch.utils.data.default_collate(batch)
        self.network.train()
        self.optimizer.zero_grad()
        self.loss(self.network(images), labels).backward()
        self.optimizer.step()

    def evaluate(self, dataset):
        """Predict all images of a ClassicDataset, one at a time."""
        self.network.eval()
        with torch.no_grad():
            for images, _ in DataLoader(dataset, batch_size=1):
                self.network(images)


def usual_recipe(name):
    """The recipe of a network's usual initial weights: ImageNet's for the default network, random ones for others."""
    return FINETUNE if name == DEFAULT else FAST


def usual_model(name, image_size=IMAGE_SIZE):
    """A network with its usual initial weights, the same ones each time."""
    torch.manual_seed(0)
    model = build_model(name, image_size=image_size)
    load_initial_weights(model, "imagenet" if name == DEFAULT else "none")
    return model


@dataclass(frozen=True)
class Way:
    """One way of doing a part: a function, and the cells that it is called with."""

    run: Callable
    cells: Sized


def ways_of(table, networks, cells, precision, folder):
    """What is measured: {part: {name: Way}}, the classic way first.

    table: all cells. networks: names of ours. cells: how many go through the pipeline in a turn. precision:
    torch.dtype of ours. folder: gets the classic way's files.
    """
    handful = data.limit_cells(table, CELLS)
    data.write_variants(handful, folder)
    variants = data.read_table(folder / "data.csv").sample(cells, random_state=0).reset_index(drop=True)
    files = ClassicDataset(variants, CLASSIC_AUGMENTATION)
    images, handful["image"] = load_images(handful)
    dataset = data.CellDataset(handful, images)
    defects = SyntheticDefects()
    run = Run(folder, precision=precision)
    trainers = {n: Trainer(usual_model(n), dataset, dataset, usual_recipe(n), run, defects) for n in networks}
    batches = next(iter(trainers.values())).batches
    rows = np.resize(np.random.default_rng(0).permutation(len(dataset)), cells)
    batch_size = FAST.batch_size
    classic = Classic()

    def load_files(dataset):
        for _ in DataLoader(dataset, batch_size=CLASSIC_BATCH, shuffle=True):
            pass

    def make_batches(rows):
        for start in range(0, len(rows), batch_size):
            batches.batch(rows[start : start + batch_size], epoch=0, step=start).augmented_images("cpu")

    def step(trainer, rows):
        with trainer.fast_layers():
            trainer.training_mode()
            trainer.train_step(trainer.batches.batch(rows, epoch=0, step=0))

    def evaluate(trainer, dataset):
        with trainer.fast_layers():
            trainer.evaluate(dataset)

    pipeline = {"classic": Way(load_files, files), "ours": Way(make_batches, rows)}
    steps = {"classic": Way(classic.step, [files[i] for i in range(CLASSIC_BATCH)])}
    evaluations = {"classic": Way(classic.evaluate, ClassicDataset(handful))}
    for name, trainer in trainers.items():
        steps[f"ours, {name}"] = Way(partial(step, trainer), rows[:batch_size])
        evaluations[f"ours, {name}"] = Way(partial(evaluate, trainer), dataset)
    return {
        "training step, cells/s": steps,
        "evaluation, cells/s": evaluations,
        "data pipeline, images/s": pipeline,
    }


def median_speeds(ways, repeats, seconds):
    """{name: median cells a second} of ways {name: Way}, which take turns of so many seconds."""
    speeds = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            speeds[name].append(speed(way.run, way.cells, seconds))
    return {name: float(np.median(values)) for name, values in speeds.items()}


def main(argv=None):
    """Command line of this file; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="ours (all)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of ours (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each way (%(default)s)")
    parser.add_argument("--seconds", type=float, default=2, help="of each turn (%(default)s)")
    parser.add_argument("--cells", type=int, default=128, help="images of the pipeline's turn (%(default)s)")
    parser.add_argument("--out", default="training.json", metavar="FILE", help="figures (%(default)s)")
    args = parser.parse_args(argv)
    keep_freed_memory()  # for all ways alike, as they share the process
    precision = pick_precision(args.precision, torch.device("cpu"))
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {IMAGE_SIZE}x{IMAGE_SIZE} "
        f"pixels, ours in {str(precision).removeprefix('torch.')}; {args.repeats} turns of {args.seconds:g} s, medians"
    )
    figures = {}
    try:
        table = data.read_table(ROOT / "data.csv")
        data.fill_images(table)
        with tempfile.TemporaryDirectory() as folder:
            for part, ways in ways_of(table, args.networks, args.cells, precision, Path(folder)).items():
                figures[part] = median_speeds(ways, args.repeats, args.seconds)
                for name, value in figures[part].items():
                    ratio = value / figures[part]["classic"]
                    print(f"{part:26}{name:28}{value:9.1f}{ratio:8.2f} x", flush=True)
        with atomic_path(args.out) as temporary:
            temporary.write_text(json.dumps(figures, indent=1))
    except (InputError, OSError) as error:
        print(f"training.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
