"""Measure training against the classic recipe: pipeline, step, evaluation, time to a score, scale.

$ python -m benchmarks.training                              # images/s and cells/s of both
$ python -m benchmarks.training --to-f1 0.7 --seeds 0 1 2    # wall time until validation is so good
$ python -m benchmarks.training --scale 1 10 50              # time and memory with more cells

All ways take turns in one process, so that a machine whose speed drifts treats them alike;
medians are printed.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
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
from data import CellDataset
from elcells.data.cache import load_images
from elcells.data.images import IMAGE_SIZE
from elcells.data.tables import CLASSES
from elcells.devices import autocast, keep_freed_memory, pick_precision
from elcells.evaluation.metrics import f1_scores
from elcells.files import InputError, atomic_path
from elcells.training.augmentation import augment, draw_changes
from elcells.training.recipes import RECIPES
from elcells.training.synthetic import NUMBERS, SyntheticDefects
from elcells.training.weights import load_initial_weights
from model import MEAN, NETWORKS, STD, build_model
from trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent

CPU = torch.device("cpu")

# ---------------------------------------------------------------- the classic recipe


CLASSIC_AUGMENTATION = [
    transforms.RandomHorizontalFlip(),
    transforms.RandomVerticalFlip(),
    transforms.RandomAffine(3, translate=(0.02, 0.02)),
    transforms.RandomResizedCrop(IMAGE_SIZE, scale=(0.98, 1), ratio=(1, 1)),
]


class ClassicDataset(Dataset):
    """Image files, read and changed one at a time: float (3, 300, 300), and labels (2,)."""

    def __init__(self, table, augmentation=()):
        self.paths, self.labels = list(table["path"]), table[list(CLASSES)].to_numpy(np.float32)
        normalise = transforms.Normalize([MEAN] * 3, [STD] * 3)
        self.transform = transforms.Compose([transforms.ToPILImage(), *augmentation, transforms.ToTensor(), normalise])

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return self.transform(gray2rgb(imread(self.paths[i]))), self.labels[i]


class Classic:
    """ResNet-34 with three input channels, float32, Sigmoid and BCELoss, SGD.

    start: state dict of torchvision's ResNet-34 for our classes, whose weights it takes over.
    """

    def __init__(self, start):
        self.network = resnet34()
        self.network.fc = torch.nn.Linear(512, len(CLASSES))
        self.network.load_state_dict(start)
        self.network.fc = torch.nn.Sequential(self.network.fc, torch.nn.Sigmoid())
        self.loss = torch.nn.BCELoss()
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.01, 0.9, weight_decay=1e-4)

    def step(self, images, labels):
        self.network.train()
        self.optimizer.zero_grad()
        self.loss(self.network(images), labels).backward()
        self.optimizer.step()

    def evaluate(self, table):
        self.network.eval()
        with torch.no_grad():
            p = [self.network(images).numpy() for images, _ in DataLoader(ClassicDataset(table), batch_size=1)]
        return np.concatenate(p)


class CheapClassic(Classic):
    """The same recipe on our images in memory, in our precision and layout: the same course of training (but for
    rounding) in a third of the time, to learn how many images it needs."""

    def __init__(self, start, precision):
        super().__init__(start)
        self.network.to(memory_format=torch.channels_last)
        self.precision = precision

    def step(self, images, labels):
        self.network.train()
        self.optimizer.zero_grad()
        with autocast(torch.device("cpu"), self.precision):
            logits = self.network.fc[0](self.features(images))
        torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), labels).backward()
        self.optimizer.step()

    def features(self, images):
        body, images = self.network, ((images - MEAN) / STD).expand(-1, 3, -1, -1)
        x = body.maxpool(body.relu(body.bn1(body.conv1(images.contiguous(memory_format=torch.channels_last)))))
        return body.avgpool(body.layer4(body.layer3(body.layer2(body.layer1(x))))).flatten(1)

    def evaluate(self, dataset):
        self.network.eval()
        parts = []
        with torch.no_grad(), autocast(torch.device("cpu"), self.precision):
            for start in range(0, len(dataset), 32):
                images = dataset.batch(range(start, min(start + 32, len(dataset))))[0].float() / 255
                parts.append(self.network.fc(self.features(images)).float().numpy())
        return np.concatenate(parts)


# ---------------------------------------------------------------- turn by turn


def rate(run, count, seconds):
    """Images a second of run(), which works on `count` of them, from its median time within `seconds`."""
    run()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return count / float(np.median(times))


def turns(ways, repeats, seconds):
    """{name: median rate} of ways {name: (function, images)}, which take turns."""
    rates = {name: [] for name in ways}
    for _ in range(repeats):
        for name, (run, count) in ways.items():
            rates[name].append(rate(run, count, seconds))
    return {name: float(np.median(r)) for name, r in rates.items()}


def our_trainer(name, train, val, folder, precision, defects, seed=0, **settings):
    """A Trainer with the recipe that train.py takes by default for a network, and that recipe's name.

    efficientnet_lite0 starts from ImageNet weights (where its package is installed), the others from random ones.
    """
    torch.manual_seed(seed)
    model = build_model(name, width=32)
    weights = load_initial_weights(model, "imagenet" if name == "efficientnet_lite0" else "none")["used"]
    recipe = "fast" if weights == "random" else "finetune"
    options = {"defects": defects, "precision": precision, "seed": seed, "keep_checkpoints": 0}
    return Trainer(model, train, val, folder, **RECIPES[recipe] | settings, **options), recipe


def ways_of(args, table, precision, folder):
    """What is measured: {part: {name: (function, pixels)}}, the classic way first."""
    torch.manual_seed(0)
    classic = Classic(resnet34(num_classes=len(CLASSES)).state_dict())
    handful = data.limit_cells(table, 64)
    data.write_variants(handful, folder)
    files = data.read_table(folder / "data.csv")
    files = files.sample(args.cells, random_state=0).reset_index(drop=True)
    pixels, handful["image"] = load_images(handful)
    ours = CellDataset(handful, pixels)
    b, defects = RECIPES["fast"]["batch_size"], SyntheticDefects()
    trainers = {name: our_trainer(name, ours, ours, folder, precision, defects)[0] for name in args.networks}
    rows = np.resize(np.random.default_rng(0).permutation(len(ours)), args.cells)

    def classic_images(augmentation):
        for _ in DataLoader(ClassicDataset(files, augmentation), batch_size=16, shuffle=True):
            pass

    def our_images(draw):
        for start in range(0, args.cells, b):
            images, labels = ours.batch(rows[start : start + b])
            if draw:
                images, _, _ = defects.draw(images, labels, torch.rand(NUMBERS, len(images)))
            augment(images, draw_changes(len(images), dihedral=True))

    def our_step(trainer):
        trainer.training_mode()
        trainer.train_step(**trainer.batch(rows[:b]))

    images, labels = ours.batch(rows[:b])
    normalised = ((images / 255 - MEAN) / STD).expand(-1, 3, -1, -1).contiguous()
    steps = {"classic": (lambda: classic.step(normalised[:16], labels[:16]), 16)}
    steps |= {f"ours, {name}": (partial(our_step, t), b) for name, t in trainers.items()}
    try:
        import timm
    except ImportError:
        print("no timm: its ResNet-34 is left out (`pip install timm`)", file=sys.stderr)
    else:
        other = timm.create_model("resnet34", num_classes=2).to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(other.parameters(), 0.01, 0.9, weight_decay=1e-4)
        batch = normalised.contiguous(memory_format=torch.channels_last)

        def timm_step():
            optimizer.zero_grad()
            with autocast(torch.device("cpu"), precision):
                logits = other(batch)
            torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), labels).backward()
            optimizer.step()

        steps["timm's resnet34, our precision"] = (timm_step, b)
    return {
        "data pipeline, pixels/s": {
            "classic": (lambda: classic_images(CLASSIC_AUGMENTATION), args.cells),
            "classic without augmentation": (lambda: classic_images([]), args.cells),
            "ours": (lambda: our_images(False), args.cells),
            "ours with synthetic defects": (lambda: our_images(True), args.cells),
        },
        "training step, cells/s": steps,
        "evaluation, cells/s": {
            "classic": (lambda: classic.evaluate(handful), len(handful)),
            **{f"ours, {name}": (partial(t.evaluate, ours), len(ours)) for name, t in trainers.items()},
        },
    }


def measure_rates(args, table, precision):
    """Measure and print the speeds of both; returns {part: {name: rate}}."""
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, 300x300 pixels, ours "
        f"in {str(precision).removeprefix('torch.')}; {args.repeats} turns of {args.seconds:g} s, medians\n"
    )
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for part, ways in ways_of(args, table, precision, Path(folder)).items():
            figures[part] = turns(ways, args.repeats, args.seconds)
            for name, value in figures[part].items():
                print(f"{part:28}{name:36}{value:9.1f}{value / figures[part]['classic']:8.2f} x")
    steps, pipeline = (figures[part] for part in ("training step, cells/s", "data pipeline, images/s"))
    shares = {name: steps[f"ours, {name}"] / pipeline["ours with synthetic defects"] for name in args.networks}
    print("our data pipeline's share of a step: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items()))
    return {**figures, "pipeline_share": shares}


# ---------------------------------------------------------------- time to a score


def course(run, take, labels, evaluate, sixths, clock):
    """Train in the classic way; returns [(seconds, mean F1 at 0.5)] after each sixth of an epoch.

    run: Classic. take: `endless`. sixths: how many. clock: function of the sixths done, the seconds that it took.
    """
    points = []
    for images, targets, at_end in take:
        run.step(images, targets)
        if at_end:
            f1 = float(f1_scores(labels, evaluate()).mean())
            points.append((clock(len(points) + 1), f1))
            print(f"    after {len(points)}/6 epochs, {points[-1][0]:.0f} s: mean F1 {f1:.3f}", flush=True)
            if len(points) == sixths:
                return points


def endless(rows, batch_size, sixth, seed, load):
    """Batches of load(rows), reshuffled when all were seen; the third value tells the end of each sixth."""
    rng, done = np.random.default_rng(seed), 0
    while True:
        order = rng.permutation(rows)
        for start in range(0, rows, batch_size):
            chosen = order[start : start + batch_size]
            before, done = done // sixth, done + len(chosen)
            yield *load(chosen), done // sixth > before


def race_ours(args, name, train, val, seed):
    """Our recipe for a network; returns [(seconds, mean F1)] of the epochs."""
    precision, settings = pick_precision(args.precision, CPU), {"epochs": args.epochs} if args.epochs else {}
    with tempfile.TemporaryDirectory() as folder:
        trainer, recipe = our_trainer(name, train, val, folder, precision, SyntheticDefects(), seed, **settings)
        used = trainer.model.config["initial_weights"]["used"]
        print(f"\nseed {seed}, ours, {name}, {recipe} recipe from {used} weights", flush=True)
        began, points = time.monotonic(), []

        def tell(trainer):
            f1, seconds = trainer.history[-1]["f1_mean"], time.monotonic() - began
            print(f"    {seconds:.0f} s: mean F1 {f1:.3f}", flush=True)
            points.append((seconds, f1))

        trainer.fit(tell)
        return points


def race_classic(args, start, train, val, seed):
    """The classic recipe as it is. train, val: tables of the six variants and of the validation cells."""
    files = ClassicDataset(train, CLASSIC_AUGMENTATION)
    run = Classic(start)

    def load(rows):
        images, targets = zip(*(files[r] for r in rows))
        return torch.stack(images), torch.from_numpy(np.stack(targets))

    began = time.monotonic()
    take = endless(len(files), 16, len(files) // 6, seed, load)
    labels = val[list(CLASSES)].to_numpy()
    return course(run, take, labels, lambda: run.evaluate(val), args.sixths, lambda _: time.monotonic() - began)


def race_cheap_classic(args, start, six, val, precision, rates, seed):
    """The classic recipe's course by CheapClassic, its time reckoned from the measured rates of Classic."""
    run = CheapClassic(start, precision)

    def load(rows):
        images, targets = six.batch(rows)
        return augment(images, draw_changes(len(images))), targets

    pipeline, step, evaluation = (
        rates[part]["classic"] for part in ("data pipeline, images/s", "training step, cells/s", "evaluation, cells/s")
    )
    seconds = len(six) / 6 * (1 / step + 1 / pipeline) + len(val) / evaluation
    take = endless(len(six), 16, len(six) // 6, seed, load)
    return course(run, take, val.labels, lambda: run.evaluate(val), args.sixths, lambda sixths: sixths * seconds)


def race(args, table, precision, rates):
    """Train both for every seed; prints the wall time until the validation mean F1 (at 0.5) reaches each goal."""
    images, table["image"] = load_images(table)
    train, val, _ = data.split_parts(table)
    ours_train, six, ours_val = (CellDataset(t, images) for t in (data.originals(train), train, val))
    if not args.cheap_classic and args.sixths:
        data.write_variants(table, args.variants)
        files = data.read_table(Path(args.variants) / "data.csv")
        train = files[files["cell"].isin(train["cell"])].reset_index(drop=True)
    figures = []
    for seed in args.seeds:
        f = {"seed": seed}
        for name in args.networks:
            f[f"ours, {name}"] = race_ours(args, name, ours_train, ours_val, seed)
        if args.sixths:
            torch.manual_seed(seed)
            start = resnet34(num_classes=len(CLASSES)).state_dict()
            print(
                f"\nseed {seed}, classic" + " (time reckoned from its measured steps)" * args.cheap_classic, flush=True
            )
            if args.cheap_classic:
                f["classic"] = race_cheap_classic(args, start, six, ours_val, precision, rates, seed)
            else:
                f["classic"] = race_classic(args, start, train, val, seed)
        figures.append(f)

    def first(points, goal):
        return next((seconds for seconds, f1 in points if f1 >= goal), None)

    print(f"\n{f'{len(ours_val)} validation cells':29} best F1" + "".join(f"{f's to {g:g}':>11}" for g in args.to_f1))
    for f in figures:
        for name, points in f.items():
            if name != "seed":
                times = (first(points, goal) for goal in args.to_f1)
                shown = "".join(f"{t:11.0f}" if t else f"{f'> {points[-1][0]:.0f}':>11}" for t in times)
                print(f"seed {f['seed']}   {name:20}{max(f1 for _, f1 in points):8.3f}{shown}")
    return figures


# ---------------------------------------------------------------- more cells

SCALE = """
import os, resource, sys, time
started = time.monotonic()
import numpy as np, torch
import data
from elcells.training.augmentation import draw_changes
from elcells.distributed import pick_precision
from elcells.data.cache import load_images
from elcells.training.recipes import RECIPES
from model import build_model
from trainer import Trainer
table = data.read_table({table!r})
read = time.monotonic()
images, table["image"] = load_images(table, {size})
loaded = time.monotonic()
train, val, test = data.split_parts(table)
sets = [data.CellDataset(data.originals(t), images) for t in (train, val)]
model = build_model("resnet", width=16, image_size={size})
settings = RECIPES["fast"]
trainer = Trainer(model, *sets, {folder!r}, precision=pick_precision("auto", torch.device("cpu")), **settings)
order = torch.randperm(len(sets[0])).numpy()
times = []
for start in range(0, 200 * 16, 16):
    rows = np.resize(order, start + 16)[start:]
    before = time.monotonic()
    images, labels = sets[0].batch(rows)
    trainer.train_step(images, labels, draw_changes(len(images)))
    times.append(time.monotonic() - before)
    if not start:
        first = time.monotonic()
status = dict(line.split(":") for line in open("/proc/self/status") if ":" in line)
print(read - started, loaded - read, first - started, np.median(times), int(status["RssAnon"].split()[0]) / 1024,
      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def measure_scale(args, table):
    """Time and memory of a run's start and of 200 steps with 1, 10, ... times the cells, all read from disk."""
    print("times  cells     cache, s  start with cache, s  step, ms  memory, MB  with mapped images")
    figures = []
    for times in args.scale:
        with tempfile.TemporaryDirectory() as folder:
            many = data.pd.concat([table] * times, ignore_index=True)
            copy = np.repeat(np.arange(times), len(table))
            many["filename"] = [f"{c:02}/{p.name}" for c, p in zip(copy, many["path"])]
            for name, path in zip(many["filename"], many["path"]):
                target = Path(folder) / name
                target.parent.mkdir(exist_ok=True)
                os.link(path, target) if os.stat(path).st_dev == os.stat(folder).st_dev else target.symlink_to(path)
            many[["filename", *CLASSES]].to_csv(f"{folder}/data.csv", sep=";", index=False)
            text = SCALE.format(table=f"{folder}/data.csv", folder=folder, size=args.size)
            runs = []
            for _ in range(2):  # the first builds the cache
                done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, cwd=ROOT)
                if done.returncode:
                    raise InputError(done.stderr.strip().splitlines()[-1])
                runs.append([float(v) for v in done.stdout.split()])
        f = {"times": times, "cells": len(many), "cache": runs[0][1], "start": runs[1][2], "step": runs[1][3]}
        f |= {"memory": runs[1][4], "memory_mapped": runs[1][5]}
        figures.append(f)
        print(
            f"{times:5}{len(many):7}{f['cache']:13.1f}{f['start']:21.1f}{1000 * f['step']:10.1f}"
            f"{f['memory']:12.0f}{f['memory_mapped']:12.0f}",
            flush=True,
        )
    return figures


# ---------------------------------------------------------------- command


def main(argv=None):
    """Command line of this file; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="turns of each way (%(default)s)")
    parser.add_argument("--seconds", type=float, default=2, help="of each turn (%(default)s)")
    parser.add_argument("--cells", type=int, default=128, help="images of the pipeline's turn (%(default)s)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of ours (%(default)s)")
    parser.add_argument("--to-f1", type=float, nargs="+", metavar="F1", help="also train both, for so good an F1")
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=NETWORKS,
        default=list(NETWORKS),
        help="ours; resnet is 32 maps wide, efficientnet_lite0 starts from ImageNet weights (all)",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of --to-f1 (%(default)s)")
    parser.add_argument("--epochs", type=int, help="of our run for --to-f1 (the recipe's)")
    parser.add_argument("--sixths", type=int, default=18, help="of an epoch that classic trains, or 0 (%(default)s)")
    parser.add_argument(
        "--cheap-classic",
        action="store_true",
        help="let classic learn in our precision and from our array, and charge it its own steps' measured time",
    )
    parser.add_argument("--variants", default="images/variants", metavar="DIR", help="classic's files (%(default)s)")
    parser.add_argument("--scale", type=int, nargs="+", metavar="N", help="instead: cost with N times the cells")
    parser.add_argument("--size", type=int, default=IMAGE_SIZE, help="side of --scale's images (%(default)s)")
    parser.add_argument("--out", default="training.json", metavar="FILE", help="figures (%(default)s)")
    args = parser.parse_args(argv)
    keep_freed_memory()  # for all ways alike, as they share the process
    try:
        table = data.read_table(ROOT / "data.csv")
        data.fill_images(table)
        if args.scale:
            figures = {"scale": measure_scale(args, table)}
        else:
            precision = pick_precision(args.precision, CPU)
            figures = measure_rates(args, table, precision)
            if args.to_f1:
                figures["race"] = race(args, table, precision, figures)
    except InputError as error:
        print(f"training.py: {error}", file=sys.stderr)
        return 2
    with atomic_path(args.out) as temporary:
        temporary.write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
