"""Export a checkpoint to ONNX, check it against PyTorch, and optionally quantise it.

The file looks at a cell once. predict.py looks at one near a threshold in up to four turns, and at one of few pixels as
a smaller image. It also lowers the probability of an inactive region where no part of the cell is dark.

$ python export_onnx.py            # checkpoints/best.ckp -> onnx/best.onnx
$ python export_onnx.py 3 --int8   # checkpoint_003.ckp -> onnx/checkpoint_003.onnx and ..._int8.onnx
$ python export_onnx.py my.ckp --raw-input
"""

import argparse
import contextlib
import hashlib
import json
import logging
import statistics
import time
import warnings
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

import data
from elcells.data.cache import load_images
from elcells.data.images import read_image
from elcells.data.leaks import contamination, with_hashes
from elcells.data.tables import read_rows
from elcells.devices import pick_device
from elcells.evaluation.metrics import f1_scores, metrics_table
from elcells.files import InputError, atomic_path, command
from elcells.inference.engine import in_batches
from elcells.inference.line_decoder import LINES
from elcells.inference.onnx_files import cores, open_model
from elcells.inference.onnx_graphs import check_onnx, name_global_pooling, put_probabilities_last, set_metadata
from elcells.inference.quantize import quantise, round_weights
from elcells.inference.small import lowered, small_side, with_side
from elcells.settings import add_option, given_options, setting
from elcells.training.checkpoints import find_checkpoint
from model import load_model, logits_over_symmetries

TOLERANCE = 1e-4  # of probabilities, between ONNX Runtime and PyTorch
CHECK_CELLS = 64
LINE_CHECKS = 4  # of them, whose crack lines are compared too
CALIBRATION_CELLS = 96
BATCH = 16  # images at once
MEASURED_SECONDS = 2  # for which the speed of a file is measured
SMALLER = {"int8": quantise, "int8_weights": round_weights}  # what makes the smaller file of an option


@dataclass(frozen=True)
class Export:
    """What the command line asks for."""

    checkpoint: str = setting("best", "best, last, an epoch's number or a path")
    out: str = setting("onnx", "folder of the ONNX files", metavar="DIR")
    raw_input: bool = setting(False, "take three normalised float channels instead of uint8 gray")
    tta: bool = setting(False, "predict the mean over eight symmetries: a little better, eight times the work")
    opset: int = setting(18, "ONNX operator set", least=18, most=23)
    int8: bool = setting(False, "also write NAME_int8.onnx, quantised, and measure it")
    int8_weights: bool = setting(False, "also write and measure NAME_int8_weights.onnx, a quarter of the size")
    max_drop: float = setting(0.01, "refuse smaller files that lose more on validation and test cells", metavar="F1")
    data: str = setting("data.csv", "table of the cells to check and to quantise with", metavar="CSV")
    images: str | None = setting(None, "folder of its file names (the table's folder)", metavar="DIR")
    device: str = setting("auto", "of PyTorch's side of the check: auto, cpu, cuda", metavar="NAME")

    def path(self, ending=".onnx"):
        """Path of a file to write: the float file, or one whose name ends differently."""
        tta = "_tta" if self.tta else ""
        raw = "_raw" if self.raw_input else ""
        return Path(self.out) / f"{Path(self.checkpoint).stem}{tta}{raw}{ending}"


# ---------------------------------------------------------------- the exported network


class GrayInput(nn.Module):
    """All of a CellClassifier: uint8 gray images (N, 1, S, S), straight from the camera -> probabilities (N, C).

    Where the model has a decoder of crack lines, then also the probabilities that a line runs there, (N, 1, S / 2,
    S / 2), of the images as they stand.
    """

    def __init__(self, model, tta=False):
        super().__init__()
        self.network = model.network  # these names are in the file, where elcells/training/weights.py expects them
        self.lines = model.lines
        self.metadata = model.metadata
        self.normalise = model.normalise
        self.features = model.features
        self.probabilities = model.probabilities
        self.tta = tta

    def forward(self, images):
        logits, normalised, features = self.features(images)
        if self.tta:
            logits = logits_over_symmetries(self.network, normalised)
        probabilities = self.probabilities(logits, self.tta)
        if self.lines is None:
            return probabilities
        return probabilities, torch.sigmoid(self.lines(normalised, features))


class RawInput(GrayInput):
    """The classic form: three equal float channels (N, 3, S, S), normalised by mean and std -> probabilities (N, C)."""

    def forward(self, images):
        return super().forward(images[:, :1] * self.metadata.std + self.metadata.mean)


def as_raw_input(images, metadata):
    """uint8 images (N, 1, S, S) as RawInput takes them, float32 (N, 3, S, S)."""
    pixels = torch.from_numpy(images).float() / 255
    return ((pixels - metadata.mean) / metadata.std).expand(-1, 3, -1, -1).numpy()


def write_onnx(module, example, path, opset, outputs=("output",)):
    """Export a module with a dynamic batch to one ONNX file (dynamo exporter); its input is called `input`."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            input_names=["input"],
            output_names=list(outputs),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=opset,
            external_data=False,
            verbose=False,
        )
        program.save(str(path), external_data=False)
    name_global_pooling(path)
    put_probabilities_last(path)


def metadata_of(model, checkpoint, export):
    """The metadata of the ONNX file, as a dict that JSON can hold."""
    calibration = model.calibration_for(export.tta)
    return {
        **asdict(model.metadata),
        "thresholds": calibration.thresholds(),  # for users' own code; ours reads the operating points
        "operating_points": calibration.operating_points,
        "tta": export.tta,
        "input": "raw" if export.raw_input else "uint8",
        "metrics": checkpoint.get("metrics", {}),
        "epoch": checkpoint.get("epoch"),
        "trained_on": checkpoint.get("trained_on"),
        "checkpoint": Path(export.checkpoint).name,
        "checkpoint_sha256": hashlib.sha256(Path(export.checkpoint).read_bytes()).hexdigest(),
    }


# ---------------------------------------------------------------- comparison with PyTorch


@dataclass(frozen=True)
class Check:
    """Images on which a file is compared with PyTorch.

    looks: list of pairs of images, uint8 (N, 1, S, S), and PyTorch's probabilities, float32 (N, C); the first pair has
    the full size.
    description: what they are, in words. lines: PyTorch's crack lines of the first LINE_CHECKS images, float32 (n,
    S / 2, S / 2), or None.
    """

    looks: list
    description: str
    lines: np.ndarray | None = None

    def largest_difference(self, path):
        """Largest difference of ONNX Runtime's probabilities, for all images, seven and one, and of its crack lines."""
        engine = open_model(path, device="cpu", whole_batches=True)
        differences = []
        for images, expected in self.looks:
            expected = lowered(expected, images, engine.small_size)
            differences += [np.abs(engine(images[:n]) - expected[:n]).max() for n in (len(images), 7, 1)]
        if self.lines is not None:
            look = engine.look(self.looks[0][0][: len(self.lines)])
            differences += [np.abs(look.follow_lines(n) - lines).max() for n, lines in enumerate(self.lines)]
        return float(max(differences))


def images_to_check(export, size):
    """CHECK_CELLS images, uint8 (N, 1, size, size), and what they are in words.

    Random cells of the table whose images can be read, filled up with drawn images. Only the default table may be
    missing: raises InputError where another can't be read.
    """
    images = []
    if export.data != Export.data or Path(export.data).exists():
        names = read_rows(export.data, ["filename"])["filename"]
        paths = data.image_paths(names, Path(export.images or Path(export.data).parent))
        for place in np.random.default_rng(0).permutation(len(paths)):
            with contextlib.suppress(InputError):
                images.append(read_image(paths[place], size)[None])
            if len(images) == CHECK_CELLS:
                return np.stack(images), f"{CHECK_CELLS} cells"
    drawn = drawn_images(CHECK_CELLS - len(images), size)
    description = f"{len(drawn)} drawn images"
    if images:
        description = f"{len(images)} cells and {description}"
    return np.stack([*images, *drawn]), description


def drawn_images(count, size):
    """Rough drawings of cells, uint8 (count, 1, size, size): grains and busbars of various brightness and contrast.

    Good enough to compare two ways of computing one network.
    """
    rng = np.random.default_rng(0)
    grains = rng.normal(size=(count, 12, 12)).astype(np.float32)
    smooth = np.stack([Image.fromarray(g).resize((size, size), Image.Resampling.BICUBIC) for g in grains])
    brightness = rng.uniform(40, 200, (count, 1, 1))
    contrast = rng.uniform(5, 40, (count, 1, 1))
    levels = brightness + contrast * smooth
    for y in (size // 6, size // 2, size - size // 6):
        levels[:, y : y + max(1, size // 60)] *= 0.4
    return np.clip(levels, 0, 255).astype(np.uint8)[:, None]


@torch.inference_mode()
def torch_probabilities(model, images, tta):
    """Probabilities (N, C) of a CellClassifier in float32, on its device."""
    device = next(model.parameters()).device
    logits = [model(torch.from_numpy(batch).to(device), tta) for batch in in_batches(images, BATCH)]
    return model.probabilities(torch.cat(logits), tta).cpu().numpy()


@torch.inference_mode()
def torch_lines(model, images):
    """Probabilities (N, S / 2, S / 2) of crack lines of a CellClassifier in float32, on its device."""
    device = next(model.parameters()).device
    return model.crack_lines(torch.from_numpy(images).to(device))[:, 0].cpu().numpy()


# ---------------------------------------------------------------- quality, size and speed


@dataclass(frozen=True)
class MeasuredCells:
    """What smaller files are made and measured with.

    unseen: images of the validation part, then of the test part, uint8 (N, 1, S, S). labels: 0/1 (N, C), of unseen.
    test_count: size of the test part. calibration: images of training cells, as the exported file takes them.
    """

    unseen: np.ndarray
    labels: np.ndarray
    test_count: int
    calibration: np.ndarray


def read_cells(export, metadata, checkpoint):
    """MeasuredCells of a checkpoint (dict) with this Metadata; by the default split, if it has no record of its own."""
    split = checkpoint.get("split")
    table = data.read_table(export.data, metadata.classes, export.images)
    data.fill_images(table)
    pixels, table["image"] = load_images(table, metadata.image_size)
    val = data.part_of_checkpoint(table, split, "val", metadata.classes)
    test = data.part_of_checkpoint(table, split, "test", metadata.classes)
    train = data.part_of_checkpoint(table, split, "train", metadata.classes)
    leak = contamination(with_hashes(test, checkpoint.get("trained_on")), export.checkpoint)
    if leak:
        print(f"CONTAMINATED  {leak}; the figures claim too much")
    unseen = data.CellDataset(pd.concat([val, test], ignore_index=True), pixels, metadata.classes)
    images, labels = unseen.batch(range(len(unseen)))
    chosen = np.random.default_rng(0).permutation(len(train))[:CALIBRATION_CELLS]
    calibration = data.CellDataset(train, pixels, metadata.classes).batch(chosen)[0].numpy()
    if export.raw_input:
        calibration = as_raw_input(calibration, metadata)
    return MeasuredCells(images.numpy(), labels.numpy(), len(test), calibration)


def quality_and_speed(path, cells):
    """Figures of an ONNX file on the test part, as a dict.

    Files are compared by f1_unseen, the mean F1 on validation and test part: the test part has so few positives that
    one more or less at the threshold can be worth 0.01.
    """
    engine = open_model(path, device="cpu")
    thresholds = engine.thresholds()
    probabilities = engine(cells.unseen)
    test = slice(-cells.test_count, None)
    table = metrics_table(cells.labels[test], probabilities[test], thresholds, engine.classes)
    figures = {f"f1_{name}": metrics["f1"] for name, metrics in table.items()}
    figures["average_precision"] = table["mean"]["average_precision"]
    figures["f1_unseen"] = float(f1_scores(cells.labels, probabilities, thresholds).mean())
    figures["megabytes"] = path.stat().st_size / 1e6
    figures["cells_per_second"] = cells_per_second(engine, cells.unseen[test])
    return figures


def cells_per_second(engine, images):
    """Median speed of an Engine on batches of real images, after one to warm up."""
    batch = np.resize(images, (BATCH, *images.shape[1:]))
    engine(batch)
    times = []
    end = time.perf_counter() + MEASURED_SECONDS
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        engine(batch)
        times.append(time.perf_counter() - start)
    return BATCH / statistics.median(times)


def print_table(figures, test_count):
    """Print the figures of all files (dict of path -> quality_and_speed), one line each."""
    table = pd.DataFrame.from_dict(figures, orient="index")
    table.index = [Path(path).name for path in figures]
    print(
        f"\nOn the {test_count} test cells (f1_unseen: validation and test cells), ONNX Runtime, batch {BATCH}, "
        f"{cores()} threads:"
    )
    print(table.to_string(float_format="{:.4g}".format))


# ---------------------------------------------------------------- command


def write_files(export):
    """Write the float file and, if asked for, smaller ones and the figures of all."""
    model, checkpoint = load_model(export.checkpoint, pick_device(export.device))
    metadata = metadata_of(model, checkpoint, export)
    smaller = [option for option in SMALLER if getattr(export, option)]
    cells = read_cells(export, model.metadata, checkpoint) if smaller else None
    images, description = images_to_check(export, model.metadata.image_size)
    shown = [images]
    small_size = small_side(model.metadata.image_size)
    if small_size and not export.tta:
        shown.append(np.stack([with_side(image, small_size)[None] for [image] in images]))
    looks = [(images, torch_probabilities(model, images, export.tta)) for images in shown]
    check = Check(looks, description, torch_lines(model, images[:LINE_CHECKS]) if model.lines else None)
    write_float(export, model.cpu(), metadata, check)
    if not cells:
        return
    figures = {str(export.path()): quality_and_speed(export.path(), cells)}
    try:
        for kind in smaller:
            write_smaller(kind, export, metadata, check, cells, figures)
    finally:
        print_table(figures, cells.test_count)
    with atomic_path(export.path(".json")) as temporary:
        temporary.write_text(json.dumps(figures, indent=1), encoding="utf-8")


def write_float(export, model, metadata, check):
    """Export a model that is on the CPU; raises InputError, leaving no file, where the file differs from PyTorch."""
    path = export.path()
    size = model.metadata.image_size
    if export.raw_input:
        module = RawInput(model, export.tta)
        example = torch.zeros(2, 3, size, size)
    else:
        module = GrayInput(model, export.tta)
        example = torch.zeros(2, 1, size, size, dtype=torch.uint8)
    with atomic_path(path) as temporary:
        outputs = ["output"] if model.lines is None else ["output", LINES]
        write_onnx(module, example, temporary, export.opset, outputs)
        set_metadata(temporary, metadata)
        check_onnx(temporary, path.name)
        difference = check.largest_difference(temporary)
        if not difference <= TOLERANCE:
            raise InputError(
                f"{path}: its outputs differ from PyTorch's by {difference:.1e}, more than {TOLERANCE:g}; "
                "nothing written"
            )
        set_metadata(temporary, {**metadata, "largest_difference": difference})
    print(
        f"{path}: {path.stat().st_size / 1e6:.1f} MB, {metadata['input']} input, opset {export.opset}, "
        f"outputs within {difference:.1e} of PyTorch's on {check.description}"
    )


def write_smaller(kind, export, metadata, check, cells, figures):
    """Write a smaller file beside the float one, and add what it achieves to the figures (dict by path).

    Raises InputError, leaving no file, where it loses too much F1.
    """
    path = export.path(f"_{kind}.onnx")
    with atomic_path(path) as temporary:
        notes = SMALLER[kind](export.path(), temporary, cells.calibration)
        metadata = {**metadata, "arithmetic": kind, **notes}
        set_metadata(temporary, metadata)
        set_metadata(temporary, {**metadata, "largest_difference": check.largest_difference(temporary)})
        figures[str(path)] = quality_and_speed(temporary, cells)
        drop = figures[str(export.path())]["f1_unseen"] - figures[str(path)]["f1_unseen"]
        if drop > export.max_drop:
            raise InputError(
                f"{path}: mean F1 on validation and test cells falls by {drop:.4f}, more than --max-drop "
                f"{export.max_drop:g}; not written"
            )
    if "int8_checked_on" in notes:
        print(f"{path}: int8 arithmetic, checked on a processor with {notes['int8_checked_on']}")


def options():
    """The parser of this script's command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    checkpoint, *others = fields(Export)
    parser.add_argument("checkpoint", nargs="?", help=f"{checkpoint.metadata['text']} ({checkpoint.default})")
    for field in others:
        add_option(parser, field)
    return parser


@command
def main(argv=None):
    """Command line of this file; returns the exit code."""
    export = Export(**given_options(options().parse_args(argv), Export))
    write_files(replace(export, checkpoint=str(find_checkpoint(export.checkpoint))))


if __name__ == "__main__":
    raise SystemExit(main())
