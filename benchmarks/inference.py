"""Measure how many cells a second a trained network predicts, by each way of running it.

$ python -m benchmarks.inference                  # checkpoints/best.ckp and the ONNX files of it
$ python -m benchmarks.inference --end-to-end 300 # also predict.py on so many PNG files

All ways take turns in one process, so that a machine whose speed drifts treats them alike; medians are printed.
"""

import argparse
import copy
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torchvision

import data
from elcells.data.images import read_image
from elcells.files import InputError, atomic_path
from elcells.inference.engines import open_model
from elcells.training.checkpoints import find_checkpoint
from model import load_model

ROOT = Path(__file__).resolve().parent.parent
EAGER = "PyTorch eager float32"
BATCHES = (1, 16)


def eager(model):
    """A network the classic way, as a function of uint8 batches: PyTorch, float32, contiguous; ResNet-34 over three
    equal channels."""
    network = copy.deepcopy(model.network).to(memory_format=torch.contiguous_format).eval()
    channels = 1
    if isinstance(network, torchvision.models.ResNet):
        channels = 3
        weight = network.conv1.weight.detach()
        network.conv1 = torch.nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        network.conv1.weight = torch.nn.Parameter(weight.expand(-1, 3, -1, -1) / 3)

    @torch.inference_mode()
    def run(images):
        x = model.normalise(torch.from_numpy(images))
        return torch.sigmoid(network(x.repeat(1, channels, 1, 1))).numpy()

    return run


def speed(run, batch, seconds):
    """Cells a second of run(batch), from its median time within `seconds`."""
    run(batch)
    times = []
    end = time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        run(batch)
        times.append(time.perf_counter() - start)
    time.sleep(0.05)  # idle threads of one engine spin for a moment; they shall not slow the next
    return len(batch) / np.median(times)


def end_to_end(model, engine, paths):
    """Images a second of the whole `predict.py` on PNG files, start-up left out."""
    result = subprocess.run(
        [sys.executable, str(ROOT / "predict.py"), "-", "--model", str(model), "--engine", engine],
        input="\n".join(map(str, paths)),
        capture_output=True,
        text=True,
    )
    return float(result.stderr.split(" images/s")[0].split()[-1])


def open_files(files):
    """{(engine, kind): Engine} of the ONNX files {kind: path} that can be opened; says why others can't."""
    engines = {}
    for engine in ("onnxruntime", "openvino"):
        for kind, path in files.items():
            try:
                engines[engine, kind] = open_model(path, engine)
            except InputError as error:
                print(error, file=sys.stderr)
    return engines


def print_speeds(speeds):
    """Cells a second, {way: {batch size: value}}, and their ratio to PyTorch's."""
    print("".join([f"{'':24}", *(f"{f'batch {n}':>10} cells/s  ratio" for n in BATCHES)]))
    for name, of_batches in speeds.items():
        ratios = (f"{v:10.1f}         {v / speeds[EAGER][n]:6.2f}" for n, v in of_batches.items())
        print(f"{name:24}" + "".join(ratios))


def main(argv=None):
    """Command line of this file; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="best", help="of the same network as the files (%(default)s)")
    parser.add_argument("--float", default="onnx/best.onnx", metavar="FILE", help="(%(default)s)")
    parser.add_argument("--int8", default="onnx/best_int8.onnx", metavar="FILE", help="(%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each way (%(default)s)")
    parser.add_argument("--seconds", type=float, default=2, help="of each turn (%(default)s)")
    parser.add_argument("--end-to-end", type=int, default=0, metavar="N", help="also time predict.py on N cells")
    parser.add_argument("--out", default="inference.json", metavar="FILE", help="figures (%(default)s)")
    args = parser.parse_args(argv)
    files = {"float": args.float, "int8": args.int8}
    try:
        model, _ = load_model(find_checkpoint(args.checkpoint))
        table = data.read_table(ROOT / "data.csv")
        data.fill_images(table)
        paths = list(table["path"])
        images = np.stack([read_image(p, model.metadata.image_size) for p in paths[: max(BATCHES)]])[:, None]
    except InputError as error:
        print(f"inference.py: {error}", file=sys.stderr)
        return 2
    engines = open_files(files)
    ways = {EAGER: eager(model), **{" ".join(key): engine for key, engine in engines.items()}}
    turns = {name: {n: [] for n in BATCHES} for name in ways}
    for _ in range(args.repeats):
        for n in BATCHES:
            for name, run in ways.items():
                turns[name][n].append(speed(run, images[:n], args.seconds))
    figures = {"cells_per_second": {}}
    for name, of_batches in turns.items():
        figures["cells_per_second"][name] = {n: float(np.median(values)) for n, values in of_batches.items()}
    processor = platform.processor() or platform.machine()
    print(f"{processor}, {torch.get_num_threads()} threads, {args.repeats} turns of {args.seconds:g} s, medians")
    print_speeds(figures["cells_per_second"])
    if args.end_to_end:
        figures["end_to_end"] = {}
        for engine, kind in engines:
            rate = end_to_end(files[kind], engine, paths[: args.end_to_end])
            print(f"predict.py, {engine} {kind}: {rate:.1f} images/s")
            figures["end_to_end"][f"{engine} {kind}"] = rate
    with atomic_path(args.out) as temporary:
        temporary.write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
