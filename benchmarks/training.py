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
from pathlib import Path

import numpy as np
import torch
from skimage.color import gray2rgb
from skimage.io import imread
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision import transforms
from torchvision.models import resnet34

import data
from benchmarks.gpu import calls_per_second, usual_model, usual_recipe
from elcells.data.cache import load_images
from elcells.data.images import IMAGE_SIZE
from elcells.data.tables import CLASSES
from elcells.devices import keep_freed_memory, pick_precision
from elcells.files import atomic_path, command
from elcells.training.synthetic import SyntheticDefects
from model import MEAN, NETWORKS, STD
from trainer import Run, Trainer

ROOT = Path(__file__).resolve().parent.parent
STEP = "training step, cells/s"
EVALUATION = "evaluation, cells/s"
PIPELINE = "data pipeline, images/s"
CELLS = 64
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


def classic_way(table, folder):
    """{what is timed: (function, number of its cells)} of the classic way; table: of CELLS cells."""
    data.write_variants(table, folder)
    variants = data.read_table(Path(folder) / "data.csv").sample(CELLS, random_state=0)
    files = ClassicDataset(variants, CLASSIC_AUGMENTATION)
    cells = ClassicDataset(table)
    batch = [files[i] for i in range(CLASSIC_BATCH)]
    network = resnet34()
    network.fc = torch.nn.Sequential(torch.nn.Linear(512, len(CLASSES)), torch.nn.Sigmoid())
    loss = torch.nn.BCELoss()
    optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.9, weight_decay=1e-4)

    def step():
        images, labels = default_collate(batch)
        network.train()
        optimizer.zero_grad()
        loss(network(images), labels).backward()
        optimizer.step()

    @torch.no_grad()
    def predict_one_by_one():
        network.eval()
        for images, _ in DataLoader(cells, batch_size=1):
            network(images)

    def load():
        for _ in DataLoader(files, CLASSIC_BATCH, shuffle=True):
            pass

    return {STEP: (step, CLASSIC_BATCH), EVALUATION: (predict_one_by_one, CELLS), PIPELINE: (load, CELLS)}


def our_way(name, table, folder, precision, defects):
    """The same of one of our networks. precision: torch.dtype. defects: SyntheticDefects."""
    images, index = load_images(table)
    cells = data.CellDataset(table.assign(image=index), images)
    trainer = Trainer(usual_model(name), cells, cells, usual_recipe(name), Run(folder, precision=precision), defects)
    rows = np.random.default_rng(0).permutation(CELLS)
    batch_size = trainer.recipe.batch_size

    def step():
        with trainer.fast_layers():
            trainer.training_mode()
            trainer.train_step(trainer.batches.of_step(rows[:batch_size], epoch=0, step=0))

    def predict():
        with trainer.fast_layers():
            trainer.evaluate(cells)

    def load():
        for start in range(0, CELLS, batch_size):
            batch = trainer.batches.of_step(rows[start : start + batch_size], epoch=0, step=start)
            batch.augmented_images("cpu")

    return {STEP: (step, batch_size), EVALUATION: (predict, CELLS), PIPELINE: (load, CELLS)}


def median_speeds(functions, repeats, seconds):
    """{name: median cells a second} of {name: (function, number of its cells)}, which take turns of so many seconds."""
    speeds = {name: [] for name in functions}
    for _ in range(repeats):
        for name, (function, cells) in functions.items():
            speeds[name].append(cells * calls_per_second(function, seconds))
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
    table = data.limit_cells(data.read_table(ROOT / "data.csv"), CELLS)
    data.fill_images(table)
    defects = SyntheticDefects()
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        ways = {"classic": classic_way(table, folder)}
        for name in args.networks:
            ways[f"ours, {name}"] = our_way(name, table, folder, precision, defects)
        for part in (STEP, EVALUATION, PIPELINE):
            figures[part] = median_speeds({name: way[part] for name, way in ways.items()}, args.repeats, args.seconds)
            for name, value in figures[part].items():
                print(f"{part:26}{name:28}{value:9.1f}{value / figures[part]['classic']:8.2f} x", flush=True)
    with atomic_path(args.out) as temporary:
        temporary.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
