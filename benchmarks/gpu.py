"""Measure everything on a GPU in one go: is it right, how fast is a step, a whole run, inference.

$ python -m benchmarks.gpu                       # some 6 minutes; prints tables, writes gpu.json
$ python -m benchmarks.gpu --only card step      # single parts
$ python -m benchmarks.gpu --device cpu --tiny   # the same script in minutes without a GPU: a trial, no figures

Each part stands by itself: one that fails is reported, and the others go on. Rates are set against
the arithmetic limit: the network's operations over the card's measured rate of matrix products.
"""

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import nn

import data
from data import CellDataset
from elcells.data.cache import load_images
from elcells.data.images import IMAGE_SIZE
from elcells.devices import autocast, keep_freed_memory, pick_device, send
from elcells.evaluation.evaluate import evaluate
from elcells.files import InputError, atomic_path
from elcells.training.recipes import RECIPES
from elcells.training.synthetic import SyntheticDefects
from elcells.training.weights import load_initial_weights
from model import NETWORKS, build_model, first_layers, load_model
from trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent

DEFAULT = "efficientnet_lite0"
PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class Bench:
    """What the parts share: options, cells, drawn defects, a folder, and the default run's checkpoint."""

    def __init__(self, args, folder):
        self.args, self.folder, self.device = args, Path(folder), pick_device(args.device)
        self.size, self.batches = (64, (4, 8)) if args.tiny else (IMAGE_SIZE, (32, 128, 512))
        self.short = ["--limit", "48", "--image-size", "64", "--epochs", "2"] if args.tiny else []
        table = data.read_table(ROOT / "data.csv")
        table = data.limit_cells(table, 48) if args.tiny else table
        data.fill_images(table)
        self.images, table["image"] = load_images(table, self.size)
        train, val, self.test_rows = data.split_parts(table)
        self.parts = data.originals(train), val
        self.on = {"cpu": self.images}
        if self.device.type != "cpu":
            self.on[str(self.device)] = torch.from_numpy(np.array(self.images)).to(self.device)
        counts = {"crack": 40, "inactive": 40, "distractor": 40} if args.tiny else {}
        self.defects = {
            d: SyntheticDefects(size=self.size, device=d, **({"counts": counts} if counts else {}))
            for d in {"cpu", str(self.device)}
        }
        self.best = self.folder / "default" / "checkpoints" / "best.ckp"

    def synchronise(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def timed(self, run, seconds=1.0, least=5):
        """Median seconds of run(), each time until the device is done, after two to warm up."""
        for _ in range(2):
            run()
        self.synchronise()
        times, end = [], time.perf_counter() + (0.1 if self.args.tiny else seconds)
        while len(times) < least or time.perf_counter() < end:
            started = time.perf_counter()
            run()
            self.synchronise()
            times.append(time.perf_counter() - started)
        return float(np.median(times))

    def rate(self, run, seconds=1.0):
        """Runs a second of run() in a row, as in training: the device is waited for at the end alone."""
        for _ in range(2):
            run()
        self.synchronise()
        started, count = time.perf_counter(), 0
        while count < 5 or time.perf_counter() - started < (0.1 if self.args.tiny else seconds):
            run()
            count += 1
        self.synchronise()
        return count / (time.perf_counter() - started)

    def of_limit(self, cells_per_s, gflop_per_cell, precision):
        """Share of the rate at which the device, busy with large matrix products alone, would do the same arithmetic
        (None where `card` was not measured)."""
        rate = self.figures.get("card", {}).get(f"tflops_{precision}")
        return rate and cells_per_s * gflop_per_cell / (1000 * rate)

    def trainer(self, name=DEFAULT, device=None, cells=None, still=False, **settings):
        """A Trainer of the default recipe for a network. still: without dropout and noise, which each device draws by
        its own generator."""
        device = self.device if device is None else torch.device(device)
        torch.manual_seed(0)
        model = build_model(name, width=32, image_size=self.size)
        weights = load_initial_weights(model, "imagenet" if name == DEFAULT else "none")["used"]
        recipe = RECIPES["fast" if weights == "random" else "finetune"] | settings
        if still:
            recipe["noise_std"] = 0.0
            for module in model.modules():
                module.p = 0.0 if isinstance(module, nn.Dropout) else getattr(module, "p", None)
        sets = (CellDataset(t.head(cells or len(t)), self.on[str(device)]) for t in self.parts)
        options = {"device": device, "defects": self.defects[str(device)]}
        return Trainer(model, *sets, self.folder / "trainer", **recipe, **options)

    def test(self, device="cpu"):
        """The test part as a CellDataset on a device."""
        return CellDataset(self.test_rows, self.on[str(device)])

    def command(self, *words, **environment):
        """Run one of the project's commands; returns its wall seconds. Raises RuntimeError with what it printed."""
        words = [sys.executable, *words]
        started = time.perf_counter()
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=os.environ | environment)
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, words))}: {done.stdout[-1500:]} {done.stderr[-3000:]}")
        return time.perf_counter() - started

    def train(self, out, *options):
        """train.py with options; returns {"seconds", "training" (of them in steps), "val_f1", "test_f1", ...}."""
        out = self.folder / out
        device = ["--device", self.device.type]
        seconds = self.command(
            ROOT / "train.py", "--data", ROOT / "data.csv", "--out", out, *device, *self.short, *options
        )
        report = json.loads((out / "checkpoints" / "report.json").read_text())
        result = {"seconds": seconds, "test_f1": report["at_threshold"]["mean"]["f1"]}
        if (out / "checkpoints" / "metrics.csv").exists():
            with open(out / "checkpoints" / "metrics.csv", newline="") as file:
                rows = list(csv.DictReader(file, delimiter=";"))
            result |= {"val_f1": float(rows[-1]["f1_mean"]), "training": sum(float(r["seconds"]) for r in rows)}
        return result


def operations(trainer):
    """Arithmetic of one cell: (forward, forward and backward), in floating-point operations of convolutions and linear
    layers; a layer that learns takes its forward work twice more on the way back."""
    counts = [0, 0]

    def count(module, inputs, output):
        forward = 2 * module.weight[0].numel() * output[0].numel()
        counts[0] += forward
        counts[1] += forward * (3 if module.weight.requires_grad else 1)

    layers = [m for m in trainer.model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [m.register_forward_hook(count) for m in layers]
    size = trainer.model.config["image_size"]
    with torch.no_grad():
        trainer.model.eval()
        trainer.model(torch.zeros(1, 1, size, size, dtype=torch.uint8, device=trainer.device))
    for hook in hooks:
        hook.remove()
    return counts


# ---------------------------------------------------------------- parts


def card(bench):
    """The device's name and its rates of large matrix products and copies."""
    about = {"device": platform.processor() or platform.machine(), "torch": torch.__version__}
    if bench.device.type == "cuda":
        about |= {"device": torch.cuda.get_device_name(), "cudnn": torch.backends.cudnn.version()}
    n = 512 if bench.args.tiny else 8192
    for name, dtype in PRECISIONS.items():
        a, b = (torch.randn(n, n, device=bench.device, dtype=dtype) for _ in range(2))
        about[f"tflops_{name}"] = 2 * n**3 / bench.timed(lambda a=a, b=b: a @ b) / 1e12
    x = torch.randn(n * n * 4, device=bench.device)
    y = torch.empty_like(x)
    about["copy_tb_per_s"] = 2 * x.numel() * 4 / bench.timed(lambda: y.copy_(x)) / 1e12
    return about


def default_run(bench):
    """`python train.py` whole, as a process of its own: wall time and scores."""
    return bench.train("default")


def same_losses(bench):
    """Losses of the first 20 steps on the CPU and on the device, from the same seed, in float32."""
    losses = {}
    for device in ("cpu", bench.device):
        trainer = bench.trainer(device=device, still=True, batch_size=bench.batches[0] // 2)
        trainer.training_mode()
        order, found = trainer._order(), []
        for step in range(20):
            trainer.step = step
            rows = np.resize(order, (step + 1) * trainer.batch_size)[-trainer.batch_size :]
            trainer._learning_rate()
            found.append(float(trainer.train_step(**trainer.batch(rows))) / len(rows))
        losses[str(device)] = found
    a, b = np.array(losses["cpu"]), np.array(losses[str(bench.device)])
    return {"largest_difference": float(np.abs(a - b).max()), "after_5": float(np.abs(a - b)[:5].max()), **losses}


def resume(bench):
    """A run of two epochs in bfloat16, the same again, and one stopped and resumed: largest differences of weights."""

    def run(stop=None):
        trainer = bench.trainer(cells=8 * bench.batches[0], epochs=2, precision=torch.bfloat16, keep_checkpoints=0)
        if stop:
            step = trainer.run_step

            def counted(*batch):
                trainer.stop = trainer.step + 1 == stop
                return step(*batch)

            trainer.run_step = counted
            trainer.fit()
            trainer = bench.trainer(cells=8 * bench.batches[0], epochs=2, precision=torch.bfloat16, keep_checkpoints=0)
            trainer.resume(trainer.folder / "last.ckp")
        trainer.fit()
        return {k: v.float().cpu() for k, v in trainer.model.network.state_dict().items()}

    whole, again, parts = run(), run(), run(stop=3)

    def difference(other):
        return float(max((whole[k] - other[k]).abs().max() for k in whole))

    return {"same_again": difference(again), "resumed": difference(parts)}


def frozen_processes(bench):
    """Two processes train together: do the frozen stages, batch-norm statistics included, stay as they were?"""
    out = bench.folder / "processes"
    options = ["--data", ROOT / "data.csv", "--limit", 48, "--epochs", 1, "--out", out, "--device", bench.device.type]
    options += ["--image-size", bench.size]
    seconds = bench.command(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, ROOT / "train.py", *options
    )
    model, _ = load_model(out / "checkpoints" / "best.ckp")
    start = build_model(DEFAULT, image_size=bench.size)
    load_initial_weights(start, "imagenet")
    before, after = (nn.ModuleList(first_layers(m.network, 2)).state_dict() for m in (start, model))
    changed = [k for k in before if not torch.equal(before[k], after[k])]
    moved = any(not torch.equal(p, q) for p, q in zip(start.parameters(), model.parameters()))
    return {"seconds": seconds, "tensors": len(before), "changed": len(changed), "others_learn": moved}


def evaluation(bench):
    """Probabilities of the test cells by the default run's checkpoint: the CPU's against the device's."""
    model, _ = load_model(bench.best)
    reference = evaluate(model, bench.test())[2]
    found = {"cells": len(reference)}
    for name, precision in PRECISIONS.items():
        p = evaluate(model.to(bench.device), bench.test(bench.device), precision)[2]
        found[name] = float(np.abs(p - reference).max())
    return found


def commands(bench):
    """predict.py, export_onnx.py and visualize_activations.py with --device: seconds of each whole process."""
    image = str(bench.test_rows["path"].iloc[0])
    seconds, device = {}, ["--device", bench.device.type]
    table, out = ["--data", ROOT / "data.csv"], bench.folder / "out"
    folder = bench.test_rows["path"].iloc[0].parent
    inputs = [folder] if not bench.args.tiny else bench.test_rows["path"].tolist()
    seconds["predict"] = bench.command(
        ROOT / "predict.py", *inputs, "--model", bench.best, "--csv", out / "cells.csv", *device, "--batch-size", 64
    )
    seconds["export"] = bench.command(ROOT / "export_onnx.py", bench.best, "--out", out, *table, *device)
    seconds["visualize"] = bench.command(
        ROOT / "visualize_activations.py", bench.best, "--cells", image, "--out", out, *table, *device
    )
    return seconds


def step_speed(bench, name, precision, size, way="plain"):
    """Cells/s of the whole step (batch, drawn defects, augmentation, network) and of the step on a constant batch."""
    trainer = bench.trainer(name, precision=PRECISIONS[precision], batch_size=size)
    rows = np.resize(np.random.default_rng(0).permutation(len(trainer.train_set)), size)
    trainer.training_mode()
    pinned = {k: v if v is None else send(v, bench.device) for k, v in trainer.batch(rows).items()}
    if way == "plain":
        trainer.graphs = None
    if way == "graph, compiled":
        trainer.parallel.compile()

    def whole():
        trainer.step += 1
        trainer.run_step(trainer.batch(rows))

    constant = size * bench.rate(lambda: trainer.run_step(pinned), 0.7)
    found = {"cells_per_s": size * bench.rate(whole, 0.7), "constant": constant}
    found["share"] = found["cells_per_s"] / constant
    found["gflop_per_cell"] = operations(trainer)[1] / 1e9
    found["of_limit"] = bench.of_limit(found["cells_per_s"], found["gflop_per_cell"], precision)
    if bench.device.type == "cuda":
        found["gigabytes"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def step(bench):
    """Speed of a step: networks, precisions, batch sizes; with torch.compile and as a CUDA graph."""
    cuda = bench.device.type == "cuda"
    usual = "graph" if cuda else "plain"  # what a run does
    combinations = [(n, p, b, usual) for p in PRECISIONS for n in NETWORKS for b in bench.batches]
    if cuda:
        combinations += [(n, "bfloat16", bench.batches[0], "plain") for n in NETWORKS]
        combinations += [(DEFAULT, "bfloat16", b, "plain") for b in bench.batches[1:]]
    return speeds(bench, combinations)


def compiled(bench):
    """Speed of a step that torch.compile made, recorded as a CUDA graph too."""
    return speeds(bench, [(DEFAULT, "bfloat16", b, "graph, compiled") for b in bench.batches[1:2]])


def speeds(bench, combinations):
    """`step_speed` of each of the combinations, shown as it comes."""
    found, cuda = {}, bench.device.type == "cuda"
    for name, precision, size, way in combinations:
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        key = f"{name} {precision} {size} {way}"
        try:
            found[key] = step_speed(bench, name, precision, size, way)
        except Exception as error:  # out of memory, or what a compiler can't do
            found[key] = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        bench.show(key, found[key])
    return found


def pipeline(bench):
    """What a batch costs beside the network, in ms: picking, drawing defects, noise (host, and until the device is
    done), and augmentation on the device."""
    found = {}
    for size in bench.batches:
        for name, settings in (("drawn", {}), ("not drawn", {"synthetic": 0.0}), ("no noise", {"noise_std": 0.0})):
            trainer = bench.trainer(batch_size=size, **settings)
            rows = np.resize(np.arange(len(trainer.train_set)), size)
            found[f"batch {size} {name}, device"] = 1000 * bench.timed(lambda t=trainer, r=rows: t.batch(r), 0.4)
            started = time.perf_counter()
            for _ in range(5):
                trainer.batch(rows)
            found[f"batch {size} {name}, host"] = 1000 * (time.perf_counter() - started) / 5
            bench.synchronise()
        batch = trainer.batch(rows)
        with torch.no_grad():
            augment = lambda t=trainer, b=batch: t._changed(  # noqa: E731
                b["images"], b["changes"], b["light"], b["noise"]
            )
            found[f"augment {size}, device"] = 1000 * bench.timed(augment, 0.4)
    return found


def profile(bench):
    """Where the device's time goes in a step of the default network, batch 32 and 512 (PyTorch's profiler)."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    found = {}
    for size in (bench.batches[0], bench.batches[-1]):
        trainer = bench.trainer(precision=torch.bfloat16, batch_size=size)
        rows = np.resize(np.arange(len(trainer.train_set)), size)
        trainer.training_mode()
        for _ in range(3):
            trainer.train_step(**trainer.batch(rows))
        bench.synchronise()
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (bench.device.type == "cuda")
        with record(activities=activities) as recorded:
            for _ in range(5):
                trainer.train_step(**trainer.batch(rows))
            bench.synchronise()
        key = "self_device_time_total" if bench.device.type == "cuda" else "self_cpu_time_total"
        events = sorted(recorded.key_averages(), key=lambda e: -getattr(e, key))[:25]
        found[str(size)] = [[e.key[:90], round(getattr(e, key) / 5000, 3), e.count // 5] for e in events]
        waits = {e.key: e.count / 5 for e in recorded.key_averages() if "Synchron" in e.key}
        found[f"waits a step, {size}"] = waits
    return found


def runs(bench):
    """Whole runs side by side, for their scores and not their times: the default over three seeds, the same with batch
    and rate scaled, the classic recipe on ResNet-34 from random weights, and cross-validation by module."""
    tiny = bench.args.tiny
    jobs = {f"batch 32, seed {s}": ["--seed", s] for s in (1, 2)}  # seed 0 is `default_run`
    jobs |= {
        f"batch 128, twice the rate, seed {s}": [*"--batch-size 128 --lr 0.0012 --seed".split(), s] for s in (0, 1, 2)
    }
    jobs["classic, resnet34, random weights"] = "--recipe classic --model resnet34 --weights none".split()
    jobs["5 folds by module"] = "--folds 2 --limit 400".split() if tiny else "--folds 5 --split module".split()

    def one(job):
        number, (name, options) = job
        if bench.late():
            return name, {"error": "not measured: out of time"}
        try:
            return name, bench.train(f"run_{number}", *options)
        except Exception as error:
            return name, {"error": str(error)[-600:]}

    found = {}
    with ThreadPoolExecutor(1 if tiny else 3) as pool:
        for name, result in pool.map(one, enumerate(jobs.items())):
            bench.show(name, result)
            found[name] = result
    return found


def inference(bench):
    """Cells/s of the default network: PyTorch in float32 and bfloat16, ONNX Runtime where it has CUDA."""
    model, _ = load_model(bench.best, bench.device)
    model = model.to(memory_format=torch.channels_last)
    trainer = bench.trainer()
    found = {"gflop_per_cell": operations(trainer)[0] / 1e9}
    for size in (1, *bench.batches):
        images = torch.from_numpy(np.resize(test_images(bench), (size, 1, bench.size, bench.size)))
        for name, precision in PRECISIONS.items():

            def run(images=images, precision=precision):
                with torch.inference_mode(), autocast(bench.device, precision):
                    return model.probabilities(model(send(images, bench.device)))

            cells = size * bench.rate(run, 0.4)
            limit = bench.of_limit(cells, found["gflop_per_cell"], name)
            found[f"pytorch {name}, batch {size}"] = {"cells_per_s": cells, "of_limit": limit}
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        from elcells.inference.engines import open_model

        engine = open_model(bench.folder / "out" / "best.onnx", "onnxruntime", device="cuda")
        images = np.resize(test_images(bench), (bench.batches[1], 1, bench.size, bench.size))
        found[f"onnxruntime, batch {len(images)}"] = len(images) * bench.rate(lambda: engine(images))
    else:
        found["onnxruntime"] = "its CUDA provider is not installed"
    return found


def test_images(bench):
    """Test cells as one array, uint8 (N, 1, S, S)."""
    return bench.images[bench.test_rows["image"].to_numpy()]


PARTS = {
    f.__name__: f
    for f in (
        card,
        default_run,
        evaluation,
        same_losses,
        resume,
        commands,
        inference,
        pipeline,
        step,
        runs,
        compiled,
        frozen_processes,
        profile,
    )
}


def text(value):
    """A figure as people read it."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, dict):
        return "  ".join(f"{k} {text(v)}" for k, v in value.items())
    return str(value)[:1500]


def main(argv=None):
    """Command line of this file; returns the exit code: 1 when a part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="(%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="48 cells at 64 pixels: try the script, not the device")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="parts (all)")
    parser.add_argument("--minutes", type=float, default=6, help="no part begins after that (%(default)s)")
    parser.add_argument("--out", default="gpu.json", metavar="FILE", help="figures (%(default)s)")
    args = parser.parse_args(argv)
    keep_freed_memory()
    started, figures = time.perf_counter(), {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(args, folder)
            bench.figures = figures
            bench.late = lambda: time.perf_counter() - started > 60 * args.minutes
            bench.show = lambda key, row: print(
                f"  {key:44}" + "  ".join(f"{k} {text(v)}" for k, v in row.items()), flush=True
            )
            for name in args.only:
                began = time.perf_counter()
                print(f"{name}: {PARTS[name].__doc__.splitlines()[0]}", flush=True)
                if bench.late():
                    print("  not measured: out of time")
                    continue
                try:
                    figures[name] = PARTS[name](bench)
                except Exception as error:
                    figures[name] = {"error": f"{type(error).__name__}: {error}"}
                    traceback.print_exc(limit=-4, file=sys.stdout)
                if name not in ("step", "compiled", "runs"):
                    for key, value in figures[name].items():
                        if not isinstance(value, list) or name == "profile":
                            print(f"  {key:44}{text(value)}", flush=True)
                print(f"  ({time.perf_counter() - began:.0f} s)", flush=True)
                with atomic_path(args.out) as temporary:
                    temporary.write_text(json.dumps(figures, indent=1))
    except InputError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        return 2
    return int(any("error" in f for f in figures.values()))


if __name__ == "__main__":
    raise SystemExit(main())
