"""Measure training against the classic way: training step, evaluation, data pipeline.

$ python -m benchmarks.training                          # a table on the screen, and training.json
$ python -m benchmarks.training --networks resnet34 --precision fp32

The classic way is ResNet-34 with three input channels in float32, images from files, Sigmoid and BCELoss, SGD. All ways
take turns in one process, so that a machine whose speed drifts treats them alike; medians are printed.
"""

import argparse
import json
import platform
import tempfile
import time
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
from benchmarks.gpu import usual_model, usual_recipe
from elcells.data.cache import load_images
from elcells.data.images import IMAGE_SIZE
from elcells.data.tables import CLASSES
from elcells.devices import keep_freed_memory, pick_precision
from elcells.files import atomic_path, command
from elcells.training.batches import Batches
from elcells.training.recipes import FAST
from elcells.training.synthetic import SyntheticDefects
from model import MEAN, NETWORKS, STD
from trainer import Run, Trainer

ROOT = Path(__file__).resolve().parent.parent
CELLS = 64  # that are trained on and evaluated; twice as many go through the pipeline
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


def ways_of(table, networks, precision, folder):
    """What is measured: {part: {name: (function, the cells that it is called with)}}, the classic way first.

    table: all cells. networks: names of ours. precision: torch.dtype of ours. folder: gets the classic way's files.
    """
    handful = data.limit_cells(table, CELLS)
    data.write_variants(handful, folder)
    files = data.read_table(folder / "data.csv").sample(2 * CELLS, random_state=0).reset_index(drop=True)
    files = ClassicDataset(files, CLASSIC_AUGMENTATION)
    images, handful["image"] = load_images(handful)
    dataset = data.CellDataset(handful, images)
    rows = np.resize(np.random.default_rng(0).permutation(CELLS), 2 * CELLS)
    run = Run(folder, precision=precision)
    defects = SyntheticDefects()
    classic = Classic()
    batches = Batches(dataset, FAST, defects)
    pipeline = {"classic": (load_files, files), "ours": (partial(make_batches, batches), rows)}
    steps = {"classic": (classic.step, [files[i] for i in range(CLASSIC_BATCH)])}
    evaluations = {"classic": (classic.evaluate, ClassicDataset(handful))}
    for name in networks:
        trainer = Trainer(usual_model(name), dataset, dataset, usual_recipe(name), run, defects)
        steps[f"ours, {name}"] = (partial(train_step, trainer), rows[: FAST.batch_size])
        evaluations[f"ours, {name}"] = (partial(evaluate, trainer), dataset)
    return {"training step, cells/s": steps, "evaluation, cells/s": evaluations, "data pipeline, images/s": pipeline}


def load_files(dataset):
    """Read all images of a ClassicDataset in batches."""
    for _ in DataLoader(dataset, CLASSIC_BATCH, shuffle=True):
        pass


def make_batches(batches, rows):
    """Make Batches of rows, with drawn defects, as the network sees them."""
    for start in range(0, len(rows), FAST.batch_size):
        batches.of_step(rows[start : start + FAST.batch_size], epoch=0, step=start).augmented_images("cpu")


def train_step(trainer, rows):
    """A Trainer's step with rows of its training part, drawn defects included."""
    with trainer.fast_layers():
        trainer.training_mode()
        trainer.train_step(trainer.batches.of_step(rows, epoch=0, step=0))


def evaluate(trainer, dataset):
    """Evaluate a Trainer's model on a CellDataset."""
    with trainer.fast_layers():
        trainer.evaluate(dataset)


def speed(function, cells, seconds):
    """Cells a second of function(cells), from its median time within `seconds`."""
    function(cells)
    times = []
    end = time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        function(cells)
        times.append(time.perf_counter() - start)
    return len(cells) / float(np.median(times))


def median_speeds(ways, repeats, seconds):
    """{name: median cells a second} of ways {name: (function, cells)}, which take turns of so many seconds."""
    speeds = {name: [] for name in ways}
    for _ in range(repeats):
        for name, (function, cells) in ways.items():
            speeds[name].append(speed(function, cells, seconds))
    return {name: float(np.median(values)) for name, values in speeds.items()}


@command
def main(argv=None):
    """Command line of this file; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="ours (all)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of ours (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each way (%(default)s)")
    parser.add_argument("--seconds", type=float, default=2, help="of each turn (%(default)s)")
    parser.add_argument("--out", default="training.json", metavar="FILE", help="figures (%(default)s)")
    args = parser.parse_args(argv)
    keep_freed_memory()  # for all ways alike, as they share the process
    precision = pick_precision(args.precision, torch.device("cpu"))
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {IMAGE_SIZE}x{IMAGE_SIZE} "
        f"pixels, ours in {str(precision).removeprefix('torch.')}; {args.repeats} turns of {args.seconds:g} s, medians"
    )
    figures = {}
    table = data.read_table(ROOT / "data.csv")
    data.fill_images(table)
    with tempfile.TemporaryDirectory() as folder:
        for part, ways in ways_of(table, args.networks, precision, Path(folder)).items():
            figures[part] = median_speeds(ways, args.repeats, args.seconds)
            for name, value in figures[part].items():
                ratio = value / figures[part]["classic"]
                print(f"{part:26}{name:28}{value:9.1f}{ratio:8.2f} x", flush=True)
    with atomic_path(args.out) as temporary:
        temporary.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    raise SystemExit(main())
