"""Measure training on a GPU in one go: is it right, how fast is a step, how fast a whole run.

$ python -m benchmarks.gpu                       # at most 6 minutes; prints tables, writes gpu.json
$ python -m benchmarks.gpu --only card step      # single parts (default_run makes the network that some others use)
$ python -m benchmarks.gpu --only larger_batches --foreign foreign.csv    # long parts run only where they are named
$ python -m benchmarks.gpu --device cpu --tiny   # try the script in minutes without a GPU; its figures mean nothing

Each part stands by itself: one that fails is reported, and the others go on.
"""

import argparse
import gc
import itertools
import json
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import data
from benchmarks.composed_modules import ElpvCells, compose
from benchmarks.foreign import report_network
from elcells import open_results
from elcells.data.cache import load_images
from elcells.data.images import IMAGE_SIZE
from elcells.devices import autocast, channels_last, keep_freed_memory, pick_device, send
from elcells.evaluation.evaluate import evaluate
from elcells.files import atomic_path, command, reason
from elcells.training.recipes import FAST, FINETUNE
from elcells.training.synthetic import COUNTS, SyntheticDefects
from elcells.training.weights import load_initial_weights
from model import DEFAULT, NETWORKS, build_model, first_layers, load_model
from trainer import Run, Trainer

ROOT = Path(__file__).resolve().parent.parent
PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}
SAME_STEPS = 20  # whose losses are compared
SOME_IMAGES = 40  # that are judged on the CPU, too
LEAST_CALLS = 2  # of what is timed
MODULES = 16  # that are cut and judged
NOT_SURE = 3  # exit code of predict.py where a module is not sure
LARGER_BATCHES = (128, 256)  # of cells
SEEDS = 3
SECONDS = 0.7  # of a timing


def usual_recipe(network):
    """The recipe of a network's usual initial weights: ImageNet's for the default network, random ones for others."""
    return FINETUNE if network == DEFAULT else FAST


def usual_model(network, image_size=IMAGE_SIZE):
    """A network with its usual initial weights, the same ones each time."""
    torch.manual_seed(0)
    model = build_model(network, image_size=image_size, normalise_brightness=usual_recipe(network).normalise_brightness)
    load_initial_weights(model, "imagenet" if network == DEFAULT else "none")
    return model


def calls_per_second(function, seconds):
    """How often function() runs in a second, in a row as in training: a GPU is waited for only at the end."""
    function()  # warms up
    wait_for_gpu()
    started = time.perf_counter()
    count = 0
    while count < LEAST_CALLS or time.perf_counter() - started < seconds:
        function()
        count += 1
    wait_for_gpu()
    return count / (time.perf_counter() - started)


def wait_for_gpu():
    """Wait until a GPU, if there is one, has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Bench:
    """What the parts share.

    device: its name. tiny: whether the script is only tried. minutes: after which nothing begins. folder: for all
    files. foreign: table of cells of other cameras, or None.
    """

    def __init__(self, device, tiny, minutes, folder, foreign=None):
        self.device = pick_device(device)
        self.tiny = tiny
        self.deadline = time.monotonic() + 60 * minutes
        self.folder = Path(folder)
        self.foreign = foreign
        self.size = 64 if tiny else IMAGE_SIZE  # of images
        self.batches = (4, 8) if tiny else (32, 128, 512)  # cells in each
        table = data.read_table(ROOT / "data.csv")
        if tiny:
            table = data.limit_cells(table, 48)
        data.fill_images(table)
        images, table["image"] = load_images(table, self.size)
        train, val, test = data.split_parts(table)
        parts = [data.CellDataset(part, images) for part in (data.originals(train), val, test)]
        counts = dict.fromkeys(COUNTS, 40) if tiny else COUNTS
        self.sets = {}  # device -> training, validation and test part
        self.defects = {}
        for name in {"cpu", str(self.device)}:
            self.sets[name] = [part.to(name) for part in parts]
            self.defects[name] = SyntheticDefects(size=self.size, device=name, counts=counts)

    def is_late(self):
        """Whether the deadline has passed."""
        return time.monotonic() > self.deadline

    def checkpoint(self, run="default"):
        """That of a run; RuntimeError where it was not run."""
        path = self.folder / run / "checkpoints" / "best.ckp"
        if not path.exists():
            raise RuntimeError(f"needs the checkpoint of the part {run}_run")
        return path

    def trainer(self, recipe, network=DEFAULT, device=None, precision=torch.float32):
        """A Trainer of a network on the device (or another one) with its usual initial weights."""
        device = str(device or self.device)
        train_set, val_set, _ = self.sets[device]
        run = Run(self.folder / "trainer", device, precision, keep_checkpoints=0)
        return Trainer(usual_model(network, self.size), train_set, val_set, recipe, run, self.defects[device])

    def run_command(self, *words, device=None, accepted=(0,)):
        """Run one of the project's commands on the device (or another one); returns its seconds.

        accepted: exit codes. Raises RuntimeError for others.
        """
        words = [sys.executable, *map(str, words), "--device", device or self.device.type]
        started = time.perf_counter()
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, encoding="utf-8")
        if done.returncode not in accepted:
            raise RuntimeError(f"{' '.join(words)}: {done.stdout[-1500:]} {done.stderr[-3000:]}")
        return time.perf_counter() - started


# ---------------------------------------------------------------- parts


def card(bench):
    """The device's name and its software."""
    is_gpu = bench.device.type == "cuda"
    name = torch.cuda.get_device_name() if is_gpu else platform.processor() or platform.machine()
    return {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda}


def default_run(bench):
    """`python train.py` whole, as a process of its own: wall time, seconds in steps, and scores."""
    return whole_run(bench, "default")


def whole_run(bench, name, *options):
    """The same with options of train.py, into a folder of that name."""
    out = bench.folder / name
    short = ["--limit", 48, "--image-size", 64, "--epochs", 2] if bench.tiny else []
    if bench.tiny and "classic" not in options:
        short += ["--line-steps", 4]
    seconds = bench.run_command("train.py", "--out", out, *options, *short)
    report = json.loads((out / "checkpoints" / "report.json").read_text(encoding="utf-8"))
    return {
        "seconds": seconds,
        "training": sum(epoch["seconds"] for epoch in report["history"]),
        "val_f1": report["history"][-1]["f1_mean"],
        "test_f1": report["at_threshold"]["mean"]["f1"],
    }


def evaluation(bench):
    """Probabilities, and crack lines, of test cells by the default run's checkpoint: the CPU's against the device's."""
    model, _ = load_model(bench.checkpoint())
    _, _, expected = evaluate(model, bench.sets["cpu"][2])
    images, _ = bench.sets["cpu"][2].batch(np.arange(len(expected))[:16])
    with torch.no_grad():
        lines = model.crack_lines(images)
        model.to(bench.device)
        differences = (model.crack_lines(images.to(bench.device)).cpu() - lines).abs()
    figures = {"cells": len(expected), "lines": float(differences.max())}
    for name, precision in PRECISIONS.items():
        _, _, probabilities = evaluate(model, bench.sets[str(bench.device)][2], precision)
        figures[name] = float(np.abs(probabilities - expected).max())
    return figures


def same_losses(bench):
    """Losses of the first steps in float32 from the same seed, on the CPU and on the device."""
    on_cpu = first_losses(bench, torch.device("cpu"))
    on_device = first_losses(bench, bench.device)
    differences = np.abs(np.subtract(on_cpu, on_device))
    figures = {"largest_difference": float(differences.max()), "after_5": float(differences[:5].max())}
    return figures | {"cpu": on_cpu, str(bench.device): on_device}


def first_losses(bench, device):
    """Mean losses (list) of the first steps, without noise and dropout, which each device draws by itself."""
    recipe = replace(usual_recipe(DEFAULT), batch_size=bench.batches[0] // 2, noise_std=0.0)
    trainer = bench.trainer(recipe, device=device)
    for module in trainer.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    trainer.training_mode()
    losses = []
    for rows in trainer.batches.of_epoch(0)[:SAME_STEPS]:
        batch = trainer.batches.of_step(rows, trainer.epoch, trainer.step)
        losses.append(float(trainer.next_step(batch)) / len(rows))
    return losses


def resume(bench):
    """Largest differences of weights between a run, the same again, and one that was stopped and resumed."""
    whole = weights_after_run(bench)
    others = {"same_again": weights_after_run(bench), "resumed": weights_after_run(bench, stop_after=3)}
    return {name: float(max((whole[k] - other[k]).abs().max() for k in whole)) for name, other in others.items()}


def weights_after_run(bench, stop_after=None):
    """The network's weights (dict) after two short epochs in bfloat16.

    stop_after: steps after which the run is stopped, to be resumed by another Trainer.
    """
    batch_size = bench.batches[0]
    recipe = replace(usual_recipe(DEFAULT), batch_size=batch_size, epoch_cells=8 * batch_size, epochs=2)
    trainer = bench.trainer(recipe, precision=torch.bfloat16)
    if stop_after:
        run_step = trainer.run_step

        def stopping_step(batch, seed):
            trainer.stop = trainer.step + 1 == stop_after
            return run_step(batch, seed)

        trainer.run_step = stopping_step
        trainer.fit()
        trainer = bench.trainer(recipe, precision=torch.bfloat16)
        trainer.resume(trainer.folder / "last.ckp")
    trainer.fit()
    return {k: v.float().cpu() for k, v in trainer.model.network.state_dict().items()}


def frozen_processes(bench):
    """Two processes train together: do the frozen stages, batch-norm statistics included, stay as they were?"""
    out = bench.folder / "processes"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    options = ["--limit", 48, "--epochs", 1, "--line-steps", 4, "--image-size", bench.size, "--out", out]
    seconds = bench.run_command(*torchrun, "train.py", *options)
    trained, _ = load_model(out / "checkpoints" / "best.ckp")
    start = usual_model(DEFAULT, bench.size)
    stages = usual_recipe(DEFAULT).freeze_stages
    before = nn.ModuleList(first_layers(start, stages)).state_dict()
    after = nn.ModuleList(first_layers(trained, stages)).state_dict()
    return {
        "seconds": seconds,
        "tensors": len(before),
        "changed": sum(not torch.equal(before[name], after[name]) for name in before),
        "others_learn": not torch.equal(start.network.fc.weight, trained.network.fc.weight),
    }


def commands(bench):
    """Seconds of the commands with the default run's checkpoint, and how predict.py differs from itself on the CPU."""
    checkpoint = bench.checkpoint()
    images = sorted((ROOT / "images").glob("*.png"))
    images = images[:SOME_IMAGES] if bench.tiny else images
    outs = [bench.folder / name for name in ("on_device", "on_cpu")]
    predict = ("predict.py", "--model", checkpoint, "--out")
    seconds = {"predict.py": bench.run_command(*predict, outs[0], *images)}
    bench.run_command(*predict, outs[1], *images[:SOME_IMAGES], device="cpu")
    for name in ("export_onnx.py", "visualize_activations.py"):
        seconds[name] = bench.run_command(name, checkpoint, "--out", bench.folder / name)
    on_device, on_cpu = (open_results(out).cells.set_index("image") for out in outs)
    on_device = on_device.loc[on_cpu.index]
    differences = {name: float((on_device[name] - on_cpu[name]).abs().max()) for name in ("p_crack", "p_inactive")}
    differences["calls"] = int((on_device[["crack", "inactive"]] != on_cpu[["crack", "inactive"]]).any(axis=1).sum())
    cracked = (on_device["crack"] == 1) & (on_cpu["crack"] == 1)
    lengths = on_device["crack_length"][cracked] - on_cpu["crack_length"][cracked]
    differences["crack_length"] = float(lengths.abs().max()) if len(lengths) else "no crack"
    return {"images": len(images), "compared": len(on_cpu), "seconds": seconds, "differences": differences}


def step(bench):
    """Cells/s of a training step by network, precision and batch size, and without CUDA graphs."""
    has_graphs = bench.device.type == "cuda"
    ways = [(*way, has_graphs) for way in itertools.product(PRECISIONS, NETWORKS, bench.batches)]
    if has_graphs:
        smallest, *larger = bench.batches
        ways += [("bfloat16", network, smallest, False) for network in NETWORKS]
        ways += [("bfloat16", DEFAULT, size, False) for size in larger]
    figures = {}
    for precision, network, size, graphs in ways:
        if bench.is_late():
            break
        name = f"{network} {precision} {size} {'graph' if graphs else 'plain'}"
        figures[name] = step_rates(bench, network, PRECISIONS[precision], size, graphs)
    return figures


def step_rates(bench, network, precision, size, graphs, compiled=False):
    """Cells/s of the whole step (batch, drawn defects, augmentation, network) and of the step on a constant batch."""
    gc.collect()  # the previous Trainer refers to itself, so only this frees its memory
    torch.cuda.empty_cache()
    trainer = bench.trainer(replace(usual_recipe(network), batch_size=size), network, precision=precision)
    if not graphs:
        trainer.run_step = trainer.seeded_step
    if compiled:
        trainer.parallel = torch.compile(trainer.parallel)
    trainer.training_mode()
    rows = np.resize(np.random.default_rng(0).permutation(len(trainer.train_set)), size)
    batch = trainer.batches.of_step(rows, epoch=0, step=0)
    batch = replace(batch, **{name: send(value, bench.device) for name, value in batch.tensors().items()})

    def whole_step():
        trainer.next_step(trainer.batches.of_step(rows, trainer.epoch, trainer.step))

    with trainer.fast_layers():
        constant = size * calls_per_second(lambda: trainer.next_step(batch), SECONDS)
        whole = size * calls_per_second(whole_step, SECONDS)
    return {"cells_per_s": whole, "constant": constant, "share": whole / constant}


def inference(bench):
    """Cells/s of the default network by precision and batch size."""
    model = usual_model(DEFAULT, bench.size).to(bench.device, memory_format=torch.channels_last).eval()
    test_set = bench.sets[str(bench.device)][2]
    figures = {}
    for (name, precision), size in itertools.product(PRECISIONS.items(), (1, *bench.batches)):
        images = channels_last(test_set.batch(np.resize(np.arange(len(test_set)), size))[0].to(bench.device))
        with torch.inference_mode(), autocast(bench.device, precision):
            figures[f"{name} {size}"] = size * calls_per_second(partial(model, images), SECONDS)
    return figures


def modules(bench):
    """Seconds of predict.py for composed modules, cut and judged by the default run's checkpoint."""
    checkpoint = bench.checkpoint()
    folder = bench.folder / "modules"
    folder.mkdir()
    cells = ElpvCells()
    rows = ["filename;grid"]
    for seed in range(2 if bench.tiny else MODULES):
        image, truth = compose(cells, seed, "easy")
        Image.fromarray(image).save(folder / f"{seed}.png")
        rows.append(f"{seed}.png;{'x'.join(map(str, truth.grid))}")
    (folder / "grids.csv").write_text("\n".join(rows), encoding="utf-8")
    options = ["--metadata", folder / "grids.csv", "--out", bench.folder / "judged", "--model", checkpoint]
    seconds = bench.run_command("predict.py", *options, *sorted(folder.glob("*.png")), accepted=(0, NOT_SURE))
    return {"modules": len(rows) - 1, "seconds": seconds}


def larger_batches(bench):
    """The default run with larger batches, its rate scaled by the root of the size (Malladi et al. 2022)."""
    figures = {}
    for size, seed in itertools.product(LARGER_BATCHES, range(SEEDS)):
        name = f"{size} seed {seed}"
        if bench.is_late():
            figures[name] = "out of time"
            continue
        rate = FAST.lr * (size / FAST.batch_size) ** 0.5
        figures[name] = whole_run(bench, name, "--batch-size", size, "--lr", rate, "--seed", seed)
        if bench.foreign:
            judged = report_network(bench.checkpoint(name), bench.foreign, None, orientations=False, errors=None)
            mean = judged["parts"]["all"]["mean"]
            figures[name] |= {"foreign_f1": mean["f1"], "foreign_ap": mean["average_precision"]}
    return figures


def classic(bench):
    """The classic recipe with ResNet-34 from random weights, whole."""
    return whole_run(bench, "classic", "--model", "resnet34", "--recipe", "classic", "--weights", "none")


def compiled(bench):
    """Cells/s of the default network's step by torch.compile, to be compared with those of `step`; recorded on CUDA."""
    torch._dynamo.config.recompile_limit = 64  # each kind of block is compiled on its own
    figures = {}
    for size in bench.batches:
        if bench.is_late():
            break
        figures[str(size)] = step_rates(bench, DEFAULT, torch.bfloat16, size, graphs=True, compiled=True)
    return figures


PARTS = (
    card,
    default_run,
    evaluation,
    same_losses,
    resume,
    commands,
    step,
    frozen_processes,
    inference,
    modules,
    larger_batches,
    compiled,
    classic,
)
LONG = (larger_batches, compiled, classic)  # minutes each: only where they are asked for


# ---------------------------------------------------------------- command


def as_text(value):
    """A figure as people read it."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, dict):
        return "  ".join(f"{name} {as_text(v)}" for name, v in value.items())
    return str(value)


def measure_part(part, bench):
    """Measure a part of PARTS and print its figures; returns them, {"error": ...} where it failed."""
    print(f"{part.__name__}: {part.__doc__.splitlines()[0]}", flush=True)
    started = time.monotonic()
    try:
        figures = {"not measured": "out of time"} if bench.is_late() else part(bench)
    except Exception as error:
        traceback.print_exc(limit=-4, file=sys.stdout)
        figures = {"error": f"{type(error).__name__}: {reason(error)}"}
    for name, value in figures.items():
        if not isinstance(value, list):
            print(f"  {name:44}{as_text(value)}")
    print(f"  ({time.monotonic() - started:.0f} s)", flush=True)
    return figures


@command
def main(argv=None):
    """Command line of this file; returns the exit code: 1 when a part failed."""
    names = [part.__name__ for part in PARTS]
    short = [part.__name__ for part in PARTS if part not in LONG]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="(%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="48 cells at 64 pixels: try the script, not the device")
    parser.add_argument(
        "--only", nargs="+", choices=names, default=short, metavar="PART", help="parts (all but the long ones)"
    )
    parser.add_argument("--minutes", type=float, default=6, help="nothing begins after that (%(default)s)")
    parser.add_argument("--foreign", metavar="CSV", help="cells of other cameras that judge larger batches")
    parser.add_argument("--out", default="gpu.json", metavar="FILE", help="figures (%(default)s)")
    args = parser.parse_args(argv)
    keep_freed_memory()
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args.device, args.tiny, args.minutes, folder, args.foreign)
        for part in PARTS:
            if part.__name__ not in args.only:
                continue
            figures[part.__name__] = measure_part(part, bench)
            with atomic_path(args.out) as temporary:
                temporary.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return int(any("error" in figures_of_part for figures_of_part in figures.values()))


if __name__ == "__main__":
    raise SystemExit(main())
