"""Measure how many cells a second a trained network predicts, by each way of running it.

$ python -m benchmarks.inference                  # checkpoints/best.ckp and the ONNX files of it
$ python -m benchmarks.inference --end-to-end 300 # also predict.py on so many PNG files

All ways take turns in one process, so that a machine whose speed drifts treats them alike;
medians are printed.
"""

import argparse
import copy
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

import data
from elcells.data.images import read_image
from elcells.files import InputError, atomic_path
from elcells.inference.engines import open_model
from elcells.training.checkpoints import find_checkpoint
from model import load_model

ROOT = Path(__file__).resolve().parent.parent


def eager(model):
    """The classic way: PyTorch, float32, contiguous, ResNet-34 over three equal channels. Returns a function of uint8
    batches."""
    network, channels = copy.deepcopy(model.network).to(memory_format=torch.contiguous_format).eval(), 1
    if isinstance(network, torchvision.models.ResNet):
        channels, weight = 3, network.conv1.weight.detach()
        network.conv1 = torch.nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        network.conv1.weight = torch.nn.Parameter(weight.expand(-1, 3, -1, -1) / 3)

    @torch.inference_mode()
    def run(images):
        x = model.normalise(torch.from_numpy(images))
        return torch.sigmoid(network(x.repeat(1, channels, 1, 1))).numpy()

    return run


def operations(model):
    """Multiplications and additions for one cell of the gray network."""
    size = model.config["image_size"]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 1, size, size))
    return counter.get_total_flops()


def int8_rate(side=2048, repeats=9):
    """The processor's int8 arithmetic, operations a second: the better of two libraries at one large product."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 255, (side, side), np.uint8), rng.integers(-127, 127, (side, side), np.int8)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulInteger", ["a", "b"], ["c"])],
        "product",
        [onnx.helper.make_tensor_value_info("a", onnx.TensorProto.UINT8, [side, side])],
        [onnx.helper.make_tensor_value_info("c", onnx.TensorProto.INT32, [side, side])],
        [onnx.numpy_helper.from_array(b, "b")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x, y = torch.from_numpy(a.astype(np.int8)), torch.from_numpy(b)
    best = []
    for run in (lambda: session.run(None, {"a": a}), lambda: torch._int_mm(x, y)):
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        best.append(2 * side**3 / np.median(times))
    return max(best)


def speed(run, batch, seconds):
    """Cells a second of run(batch), from its median time within `seconds`."""
    run(batch)
    times, end = [], time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        run(batch)
        times.append(time.perf_counter() - start)
    time.sleep(0.05)  # idle threads of one engine spin for a moment; they shall not slow the next
    return len(batch) / np.median(times)


def end_to_end(model, engine, paths, repeats):
    """Images a second of the whole `predict.py` on PNG files, start-up left out, beside the bare network's speed."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "list").write_text("\n".join(map(str, paths)))
        rates = []
        for _ in range(repeats):
            result = subprocess.run(
                [sys.executable, str(ROOT / "predict.py"), "-", "--model", str(model), "--engine", engine],
                stdin=open(Path(folder) / "list"),
                capture_output=True,
                text=True,
            )
            rates.append(float(result.stderr.split(" images/s")[0].split()[-1]))
    return float(np.median(rates))


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
    try:
        model, _ = load_model(find_checkpoint(args.checkpoint))
        ways = {"PyTorch eager float32": eager(model)}
        for engine in ("onnxruntime", "openvino"):
            for kind in ("float", "int8"):
                try:
                    ways[f"{engine} {kind}"] = open_model(getattr(args, kind), engine)
                except InputError as error:
                    print(error, file=sys.stderr)
        table = data.read_table(ROOT / "data.csv")
        data.fill_images(table)
        images = np.stack([read_image(p, model.config["image_size"]) for p in table["path"][:16]])[:, None]
    except InputError as error:
        print(f"inference.py: {error}", file=sys.stderr)
        return 2

    rates = {name: {1: [], 16: []} for name in ways}
    for _ in range(args.repeats):
        for n in (1, 16):
            for name, run in ways.items():
                rates[name][n].append(speed(run, images[:n], args.seconds))
    ops, rate = operations(model), int8_rate()
    medians = {name: {n: float(np.median(v)) for n, v in r.items()} for name, r in rates.items()}
    base = medians["PyTorch eager float32"]
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"{args.repeats} turns of {args.seconds:g} s, medians"
    )
    print(f"{'':24}{'batch 1':>10} cells/s {'ratio':>6}{'batch 16':>12} cells/s {'ratio':>6}")
    for name, m in medians.items():
        print(f"{name:24}{m[1]:10.1f}         {m[1] / base[1]:6.2f}{m[16]:12.1f}         {m[16] / base[16]:6.2f}")
    print(f"{ops / 1e9:.1f} G operations a cell, int8 {rate / 1e9:.0f} G/s measured: at most {rate / ops:.0f} cells/s")
    figures = {"cells_per_second": medians, "operations": ops, "int8_operations_per_second": rate}
    if args.end_to_end:
        figures["end_to_end"] = {}
        for name in list(ways)[1:]:
            engine, kind = name.split()
            bare = speed(ways[name], images, args.seconds)
            whole = end_to_end(getattr(args, kind), engine, list(table["path"])[: args.end_to_end], 2)
            bare = (bare + speed(ways[name], images, args.seconds)) / 2
            print(f"predict.py, {name:20} {whole:7.1f} images/s, {whole / bare:.0%} of the bare network's {bare:.1f}")
            figures["end_to_end"][name] = {"predict": whole, "bare": bare}
    with atomic_path(args.out) as temporary:
        temporary.write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
