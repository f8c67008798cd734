"""Export a checkpoint to ONNX, check it against PyTorch, and optionally quantise it.

$ python export_onnx.py            # checkpoints/best.ckp -> onnx/best.onnx
$ python export_onnx.py 3 --int8   # checkpoint_003.ckp -> onnx/checkpoint_003.onnx and ..._int8.onnx
$ python export_onnx.py my.ckp --raw-input
"""

import argparse
import contextlib
import hashlib
import json
import logging
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from PIL import Image
from torch import nn

import data
from elcells.data.cache import load_images
from elcells.data.images import read_image
from elcells.data.tables import read_rows
from elcells.devices import pick_device
from elcells.evaluation.metrics import f1_scores, metrics_table
from elcells.files import InputError, atomic_path, print_any_name, reason
from elcells.inference.engines import open_model
from elcells.inference.quantize import quantise, round_weights
from elcells.training.checkpoints import find_checkpoint
from model import load_model, logits_of

TOLERANCE = 1e-4  # of probabilities, between ONNX Runtime and PyTorch
CHECK_CELLS = 64
CALIBRATION_CELLS = 96
SMALLER = ("int8", "int8_weights")  # files, by the option that asks for them


# ---------------------------------------------------------------- what is exported


class GrayInput(nn.Module):
    """uint8 gray (N, 1, S, S) straight from the camera -> probabilities (N, C): all of a CellClassifier."""

    def __init__(self, model):
        super().__init__()
        self.network, self.normalise = model.network, model.normalise
        self.probabilities, self.tta = model.probabilities, model.config["tta"]

    def forward(self, images):
        return self.probabilities(logits_of(self.network, self.normalise(images), self.tta))


class RawInput(GrayInput):
    """The classic form: three equal, normalised float channels (N, 3, S, S) -> probabilities (N, C).

    Normalised by mean and std alone: where the network wants the same brightness, that is done here.
    """

    def __init__(self, model):
        super().__init__(model)
        self.config = model.config

    def forward(self, images):
        images = images[:, :1]
        if self.config["normalise_brightness"]:
            images = self.normalise(images * self.config["std"] + self.config["mean"])
        return self.probabilities(logits_of(self.network, images, self.tta))


def write_onnx(module, example, path, opset):
    """Export a module with a dynamic batch to one ONNX file (dynamo exporter), named `input` and `output`."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            input_names=["input"],
            output_names=["output"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=opset,
            external_data=False,
            verbose=False,
        )
        program.save(str(path), external_data=False)


def set_metadata(path, metadata):
    """Store a dict in an ONNX file as metadata, each value as JSON; what the exporter noted of this machine goes."""
    proto = onnx.load(path)
    for part in (proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]  # stack traces, with the paths of our files
    proto.ir_version = onnx.helper.find_min_ir_version_for(proto.opset_import, True)  # for old runtimes
    onnx.helper.set_model_props(proto, {k: json.dumps(v) for k, v in metadata.items()})
    onnx.save(proto, path)


# ---------------------------------------------------------------- cells and checks


def drawn_images(count, size, seed=0):
    """Something like cells, uint8 (count, 1, size, size): grains and busbars, each of another brightness and contrast.

    Good enough to compare two ways of computing one network where no image is at hand.
    """
    rng = np.random.default_rng(seed)
    grains = rng.normal(size=(count, 12, 12)).astype(np.float32)
    smooth = [Image.fromarray(g).resize((size, size), Image.Resampling.BICUBIC) for g in grains]
    levels = rng.uniform(40, 200, (count, 1, 1)) + rng.uniform(5, 40, (count, 1, 1)) * np.stack(smooth)
    for y in (size // 6, size // 2, size - size // 6):
        levels[:, y : y + max(1, size // 60)] *= 0.4
    return np.clip(levels, 0, 255).astype(np.uint8)[:, None]


def images_to_check(args, size):
    """CHECK_CELLS images, uint8 (N, 1, size, size), of the table as far as it is there, else drawn; and their name.

    Labels do not matter here, and no image is copied from anywhere. Raises InputError for a table that was asked for
    and can't be read.
    """
    found = []
    if Path(args.data).exists() or args.data != options().get_default("data"):
        names = read_rows(args.data, ["filename"])["filename"]
        paths = data.image_paths(names, Path(args.images or Path(args.data).parent))
        for place in np.random.default_rng(0).permutation(len(paths)):
            with contextlib.suppress(InputError):
                found.append(read_image(paths[place], size)[None])
            if len(found) == CHECK_CELLS:
                return np.stack(found), f"{CHECK_CELLS} cells"
    drawn = drawn_images(CHECK_CELLS - len(found), size)
    return np.stack([*found, *drawn]), f"{len(found)} cells and " * bool(found) + f"{len(drawn)} drawn images"


class Cells:
    """What smaller files are made and measured with: cells that training did not see, and some that it saw.

    test, unseen (validation part, then test part), calibration: uint8 (N, 1, S, S). labels: (N, C) of the unseen.
    """

    def __init__(self, args, model, checkpoint):
        table = data.read_table(args.data, model.classes, args.images)
        data.fill_images(table)
        pixels, table["image"] = load_images(table, model.config["image_size"])
        split = checkpoint.get("split")
        if not split:
            _, val, test = data.split_parts(table, classes=model.classes)
            split = data.record_split(val, test, "cell")
        val, test, train = (data.recorded_part(table, split, part) for part in ("val", "test", "train"))
        unseen = data.CellDataset(data.pd.concat([val, test], ignore_index=True), pixels, model.classes)
        images, labels = unseen.batch(range(len(unseen)))
        self.unseen, self.labels, self.test = images.numpy(), labels.numpy(), images.numpy()[len(val) :]
        chosen = np.random.default_rng(0).permutation(len(train))[:CALIBRATION_CELLS]
        self.calibration = data.CellDataset(train, pixels, model.classes).batch(chosen)[0].numpy()


@torch.inference_mode()
def torch_probabilities(model, images, batch_size=32):
    """Probabilities (N, C) of a CellClassifier in float32, on the device that it is on."""
    device = next(model.parameters()).device
    parts = [torch.from_numpy(images[i : i + batch_size]).to(device) for i in range(0, len(images), batch_size)]
    return torch.cat([model.probabilities(model(part)) for part in parts]).cpu().numpy()


def engine_probabilities(engine, images, batch_size=16):
    """Probabilities (N, C) of an Engine."""
    return np.concatenate([engine(images[i : i + batch_size]) for i in range(0, len(images), batch_size)])


def check_file(path):
    """ONNX's own checker and shape inference; raises InputError where they object."""
    try:
        proto = onnx.shape_inference.infer_shapes(onnx.load(path), check_type=True, strict_mode=True)
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:
        raise InputError(f"{path.name}: not valid ONNX ({reason(error)}); nothing written") from None


def largest_difference(path, expected, images):
    """Largest difference between ONNX Runtime's probabilities and those expected, on all images and on 1 and 7."""
    engine = open_model(path, "onnxruntime", device="cpu")
    differences = [np.abs(engine_probabilities(engine, images) - expected).max()]
    for n in (1, 7):
        differences.append(np.abs(engine(images[:n]) - expected[:n]).max())
    return float(max(differences))


def cells_per_second(engine, images, batch_size=16, seconds=2.0):
    """Median speed of an Engine on batches of real images, after one to warm up."""
    batch = np.resize(images, (batch_size, *images.shape[1:]))
    engine(batch)
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        engine(batch)
        times.append(time.perf_counter() - start)
    return batch_size / statistics.median(times)


def measure(path, cells):
    """Quality, size and speed of an ONNX file on the test part, as a dict.

    f1_unseen is the mean F1 on validation and test part, by which files are compared: of the test part's positives
    alone one more or less at the threshold can be worth 0.01.
    """
    engine = open_model(path, "onnxruntime", device="cpu")
    p, tested = engine_probabilities(engine, cells.unseen), slice(-len(cells.test), None)
    table = metrics_table(cells.labels[tested], p[tested], engine.thresholds, engine.classes)
    figures = {f"f1_{c}": table[c]["f1"] for c in (*engine.classes, "mean")}
    figures["average_precision"] = table["mean"]["average_precision"]
    figures["f1_unseen"] = float(f1_scores(cells.labels, p, engine.thresholds).mean())
    figures["megabytes"] = Path(path).stat().st_size / 1e6
    figures["cells_per_second"] = cells_per_second(engine, cells.test)
    return figures


# ---------------------------------------------------------------- command


def metadata_of(model, checkpoint, path, raw):
    """What travels inside the ONNX file, as a dict of things that JSON can hold."""
    keys = (
        "network",
        "classes",
        "thresholds",
        "operating_points",
        "mean",
        "std",
        "image_size",
        "normalise_brightness",
        "initial_weights",
        "tta",
    )
    return {
        **{k: model.config[k] for k in keys},
        "input": "raw" if raw else "uint8",
        "metrics": checkpoint.get("metrics", {}),
        "epoch": checkpoint.get("epoch"),
        "checkpoint": Path(path).name,
        "checkpoint_sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
    }


def export(args):
    """Everything that the command line asks for; returns the exit code."""
    path = find_checkpoint(args.checkpoint)
    model, checkpoint = load_model(path, pick_device(args.device))
    if args.tta:
        model.average_symmetries()
    size = model.config["image_size"]
    smaller = [name for name in SMALLER if getattr(args, name)]
    cells = Cells(args, model, checkpoint) if smaller else None
    check, check_name = images_to_check(args, size)
    expected = torch_probabilities(model, check)
    model.cpu()
    module = RawInput(model) if args.raw_input else GrayInput(model)
    example = torch.zeros(2, 3, size, size) if args.raw_input else torch.zeros(2, 1, size, size, dtype=torch.uint8)
    target = Path(args.out) / f"{path.stem}{'_tta' * args.tta}{'_raw' * args.raw_input}.onnx"
    metadata = metadata_of(model, checkpoint, path, args.raw_input)
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / target.name
        write_onnx(module, example, plain, args.opset)
        set_metadata(plain, metadata)
        check_file(plain)
        difference = largest_difference(plain, expected, check)
        if not difference <= TOLERANCE:
            raise InputError(
                f"{target}: probabilities differ from PyTorch's by {difference:.1e}, more than {TOLERANCE:g}; "
                "nothing written"
            )
        set_metadata(plain, {**metadata, "largest_difference": difference})
        with atomic_path(target) as temporary:
            shutil.copyfile(plain, temporary)
        print(
            f"{target}: {plain.stat().st_size / 1e6:.1f} MB, {metadata['input']} input, opset {args.opset}, "
            f"probabilities within {difference:.1e} of PyTorch's on {check_name}"
        )
        files[target] = measure(plain, cells) if smaller else None
        for name in smaller:
            small = target.with_name(f"{target.stem}_{name}.onnx")
            work = Path(folder) / small.name
            make = quantise if name == "int8" else round_weights
            make(plain, work, as_input(cells.calibration, model, args.raw_input))
            set_metadata(work, {**metadata, "arithmetic": name})
            difference = largest_difference(work, expected, check)
            set_metadata(work, {**metadata, "arithmetic": name, "largest_difference": difference})
            files[small] = measure(work, cells)
            drop = files[target]["f1_unseen"] - files[small]["f1_unseen"]
            if drop > args.max_drop:
                print_table(files, cells)
                raise InputError(
                    f"{small}: mean F1 on validation and test cells falls by {drop:.4f}, more than --max-drop "
                    f"{args.max_drop:g}; not written"
                )
            with atomic_path(small) as temporary:
                shutil.copyfile(work, temporary)
    if smaller:
        print_table(files, cells)
        results = target.with_suffix(".json")
        with atomic_path(results) as temporary:
            temporary.write_text(json.dumps({str(k): v for k, v in files.items()}, indent=1))
    return 0


def as_input(images, model, raw):
    """uint8 images in the form that the exported file takes."""
    if not raw:
        return images
    pixels = torch.from_numpy(images).float() / 255
    return ((pixels - model.config["mean"]) / model.config["std"]).expand(-1, 3, -1, -1).numpy()


def print_table(files, cells):
    """Quality, size and speed of the files, one line each."""
    print(f"\nOn the {len(cells.test)} test cells, ONNX Runtime, batch 16, {torch.get_num_threads()} threads:")
    known = {
        "average_precision": "av. prec.",
        "f1_unseen": "F1 val+test",
        "megabytes": "MB",
        "cells_per_second": "cells/s",
    }
    headers = {k: f"  {known.get(k, k.replace('f1_', 'F1 ')):>7}" for k in next(iter(files.values()))}
    print(f"{'':23}" + "".join(headers.values()))
    for path, figures in files.items():
        row = (
            f"{figures[k]:{len(h)}.{1 if k in ('megabytes', 'cells_per_second') else 4}f}" for k, h in headers.items()
        )
        print(f"{path.name:23}" + "".join(row))


def options():
    """The parser of this script's command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint", nargs="?", default="best", help="best, last, an epoch's number or a path (%(default)s)"
    )
    group = parser.add_argument_group("file")
    group.add_argument("--out", default="onnx", metavar="DIR", help="folder of the ONNX files (%(default)s)")
    group.add_argument(
        "--raw-input", action="store_true", help="take three normalised float channels instead of uint8 gray"
    )
    group.add_argument(
        "--tta",
        action="store_true",
        help="the file gives the mean over an image's eight symmetries: a little better, eight times the work",
    )
    group.add_argument("--opset", type=int, default=18, metavar="N", help="ONNX operator set (%(default)s)")
    group = parser.add_argument_group("smaller files")
    group.add_argument("--int8", action="store_true", help="also write NAME_int8.onnx, quantised, and measure it")
    group.add_argument(
        "--int8-weights",
        action="store_true",
        help="also write NAME_int8_weights.onnx, a quarter of the size, its arithmetic in float, and measure it",
    )
    group.add_argument(
        "--max-drop",
        type=float,
        default=0.01,
        metavar="F1",
        help="refuse smaller files that lose more on validation and test cells (%(default)s)",
    )
    group = parser.add_argument_group(
        "images to check and to quantise with (to check: drawn ones where there are none)"
    )
    group.add_argument("--data", default="data.csv", metavar="CSV", help="table with the cells (%(default)s)")
    group.add_argument("--images", metavar="DIR", help="folder of its file names (the table's folder)")
    group.add_argument("--device", default="auto", help="of PyTorch's side of the check: auto, cpu, cuda (%(default)s)")
    return parser


def main(argv=None):
    """Command line of this file; returns the exit code."""
    print_any_name()
    args = options().parse_args(argv)
    try:
        if not 18 <= args.opset <= 23:
            raise InputError(f"--opset {args.opset}: the exporter writes 18 to 23")
        return export(args)
    except (InputError, OSError) as error:
        print(f"export_onnx.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
