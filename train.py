"""Train a classifier of defects (crack, inactive) on EL images of solar cells.

$ python train.py                             # train on all ELPV cells
$ python train.py --limit 100 --epochs 1      # a first try in 20 seconds
$ python train.py --resume                    # go on after an interruption
$ python train.py --evaluate checkpoints/best.ckp
$ python train.py --data data.csv mine/labels.csv --weights cells.onnx --recipe adapt    # to one's own cells
$ torchrun --nproc-per-node 4 train.py        # several GPUs
"""

import argparse
import contextlib
import io
import json
import re
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import data
from data import CellDataset
from elcells.data.cache import load_sources
from elcells.data.images import IMAGE_SIZE
from elcells.data.tables import CLASSES
from elcells.devices import keep_freed_memory, pick_device, pick_precision
from elcells.distributed import barrier, processes, rank, world
from elcells.evaluation.evaluate import predict
from elcells.evaluation.plots import plot_losses
from elcells.evaluation.results import (
    about,
    open_tensorboard,
    progress_header,
    progress_line,
    write_predictions,
    write_results,
    write_tensorboard,
)
from elcells.files import InputError, atomic_path, move_aside, print_any_name, sole_writer
from elcells.training.checkpoints import read_checkpoint, with_todays_names
from elcells.training.recipes import RECIPES, kept_share
from elcells.training.synthetic import SyntheticDefects
from elcells.training.weights import describe_weights, load_initial_weights, read_network, restore_norms
from model import DEFAULT, NETWORKS, WIDTH, build_model, load_model
from trainer import Trainer

# Options that a resumed run takes over from the interrupted one.
FIXED = ("model", "width", "classes", "image_size", "split", "folds", "test_size", "val_size", "limit", "seed")
ADDED = {"weight": []}  # options that earlier versions had not, and what they did
FIXED += tuple(RECIPES["fast"])
NORM_CELLS = 256  # training cells that the batch norms of a network from an ONNX file get their statistics of
REMOVED = {"progressive": False, "label_smoothing": 0.0, "momentum": 0.9}  # options that there were, and their defaults
LEAST = {
    "epochs": 1,
    "batch_size": 2,
    "image_size": 32,
    "width": 16,
    "keep_checkpoints": 0,
    "folds": 2,
    "oversample": 1,
}


# ---------------------------------------------------------------- options


def duration(text):
    """Seconds of a time such as 90s, 15m or 1.5h."""
    if not re.fullmatch(r"\d+(\.\d+)?[smh]", text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a time such as 90s, 15m or 1.5h")
    return float(text[:-1]) * {"s": 1, "m": 60, "h": 3600}[text[-1]]


def source_weight(text):
    """(source, N) of a text such as mine=3."""
    name, _, number = text.rpartition("=")
    if not name or not number.isdecimal() or not 1 <= int(number) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r}: expected SOURCE=N with N from 1 to 1000, such as mine=3")
    return [name, int(number)]


def options():
    """The parser of this script's command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def add(group, *names, **more):
        group.add_argument(*names, **more)

    group = parser.add_argument_group("data")
    data.add_table_options(group, several=True)
    text = "draw that source's cells N times as often as others (1; adapt: together as often as the first table's)"
    add(group, "--weight", nargs="+", type=source_weight, default=[], metavar="SOURCE=N", help=text)
    add(group, "--limit", type=int, metavar="N", help="take only N cells, a stratified handful")
    splits, default = ("cell", "module", "row"), "what stays on one side of a split; row leaks (%(default)s)"
    add(group, "--split", choices=splits, default="cell", help=default)
    add(group, "--folds", type=int, metavar="K", help="cross-validation: every cell is tested once, in oof.csv")
    add(group, "--test-size", type=float, default=0.1, metavar="SHARE", help="test part (%(default)s)")
    add(group, "--val-size", type=float, default=0.1, metavar="SHARE", help="validation part of the rest (%(default)s)")

    group = parser.add_argument_group("network")
    text = f"network (that of --weights; else {DEFAULT}, resnet34 with --recipe classic)"
    add(group, "--model", choices=NETWORKS, help=text)
    add(group, "--width", type=int, metavar="MAPS", help=f"width of our own network ({WIDTH})")
    add(group, "--weights", metavar="W", help="initial weights: imagenet, none or a file (imagenet; none for resnet)")
    size = f"pixels of the square input (those of --weights; else {IMAGE_SIZE})"
    add(group, "--image-size", type=int, metavar="PIXELS", help=size)

    def of_recipes(text, name):
        return f"{text} ({', '.join(f'{r}: {RECIPES[r][name]}' for r in RECIPES)})"

    group = parser.add_argument_group("training, by default as the recipe has it (doc/recipes.md)")
    recipe = "finetune: trained weights, adapt: one's own cells, fast: random weights, classic: the published one"
    add(group, "--recipe", choices=RECIPES, help=f"{recipe} (finetune, fast)")
    for name, kind, metavar, text in (
        ("epochs", int, "N", "passes over the training part"),
        ("batch-size", int, "N", "cells a step"),
        ("lr", float, "RATE", "highest learning rate"),
        ("weight-decay", float, "D", "weight decay"),
        ("freeze-stages", int, "N", "stages, of four, that do not learn, the first ones"),
        ("oversample", int, "N", "draw cells with a label N times as often as others"),
        ("synthetic", float, "SHARE", "share of the epochs with many drawn defects; 0: none are drawn"),
        ("noise-std", float, "LEVELS", "highest noise added to half of the cells, of 255"),
    ):
        add(group, f"--{name}", type=kind, metavar=metavar, help=of_recipes(text, name.replace("-", "_")))
    text = of_recipes("scale cells to the same brightness first", "normalise_brightness")
    add(group, "--normalise-brightness", action=argparse.BooleanOptionalAction, help=text)
    add(group, "--max-time", type=duration, metavar="TIME", help="as many epochs as fit into 90s, 15m or 1.5h")
    add(group, "--seed", type=int, default=0, help="of weights, order and augmentation (%(default)s)")
    add(group, "--device", default="auto", help="auto, cpu, cuda, or mps, which is not tested (%(default)s)")
    precisions = ("auto", "fp32", "bf16")
    add(group, "--precision", choices=precisions, default="auto", help="of training; auto: the fast one (%(default)s)")

    group = parser.add_argument_group("run")
    add(group, "--out", default=".", metavar="DIR", help="gets checkpoints/ and plots/ (the current folder)")
    add(group, "--tensorboard", action="store_true", help="also write plots/tensorboard")
    add(group, "--keep-checkpoints", type=int, metavar="N", help="newest epochs' snapshots that stay (all; --folds: 1)")
    resume = "go on from a checkpoint with its options (checkpoints/last.ckp)"
    add(group, "--resume", nargs="?", const="", metavar="CKP", help=resume)
    add(group, "--evaluate", metavar="CKP", help="only measure a checkpoint on its test part")
    points = "thresholds of the report: f1, or recall (misses 5 %% of each defect) (%(default)s)"
    add(group, "--operating-point", default="f1", metavar="NAME", help=points)
    add(group, "--tta", action="store_true", help="predict the test part by the mean over a cell's eight symmetries")
    return parser


def parse(argv):
    """Options as a namespace, completed by the recipe; with --resume, those of the interrupted run where the command
    line gives no others."""
    parser = options()
    args = parser.parse_args(argv)
    check(args)
    if args.resume is not None:
        return resumed(parser, args, argv)
    if not args.evaluate:
        of_file = {} if args.weights in (None, "imagenet", "none") else read_network(args.weights)[1]
        args.model = args.model or of_file.get("network") or ("resnet34" if args.recipe == "classic" else DEFAULT)
        args.weights = args.weights or ("none" if args.model == "resnet" else "imagenet")
        args.width = args.width or of_file.get("width", WIDTH)
        args.image_size = args.image_size or of_file.get("image_size", IMAGE_SIZE)
        args.recipe = args.recipe or ("fast" if args.weights == "none" else "finetune")
        if args.recipe == "adapt" and args.weights in ("imagenet", "none"):
            raise InputError("--recipe adapt: needs a network of this project, such as --weights cells.onnx")
        if args.recipe == "adapt" and args.split != "cell":
            raise InputError(f"--split {args.split}: the recipe adapt divides by cell, as its first table was before")
        if args.folds and args.keep_checkpoints is None:
            args.keep_checkpoints = 1
        for name, value in RECIPES[args.recipe].items():
            if getattr(args, name, None) is None:
                setattr(args, name, value)
                if name == "synthetic" and not set(CLASSES) <= set(args.classes):  # other labels can't be drawn
                    args.synthetic = 0.0
    return args


def check(args):
    """Raise InputError, naming the option, for a value out of its range."""
    for name, least in LEAST.items():
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at least {least}")
    if args.lr is not None and args.lr <= 0:
        raise InputError(f"--lr {args.lr:g}: must be above 0")
    if args.synthetic is not None and not 0 <= args.synthetic < 1:
        raise InputError(f"--synthetic {args.synthetic:g}: must be from 0 to below 1")
    if args.noise_std is not None and not 0 <= args.noise_std < np.inf:
        raise InputError(f"--noise-std {args.noise_std:g}: must be 0 or more")
    if args.freeze_stages is not None and not 0 <= args.freeze_stages <= 3:
        raise InputError(f"--freeze-stages {args.freeze_stages}: must be from 0 to 3")


def resumed(parser, args, argv):
    """Options of the run that args.resume names, with what the command line gives beside."""
    cross_validation = Path(args.out) / "checkpoints" / "folds.json"
    if not args.resume and cross_validation.exists():
        path, settings = str(cross_validation), json.loads(cross_validation.read_text())
        settings = with_todays_names({"settings": settings})["settings"]
    else:
        path = args.resume or str(Path(args.out) / "checkpoints" / "last.ckp")
        settings = read_checkpoint(path).get("settings")
    if not isinstance(settings, dict) or not settings.keys() >= set(FIXED):
        raise InputError(f"{path}: not a checkpoint to go on from; give a last.ckp of `python train.py`")
    for name, default in REMOVED.items():
        if settings.pop(name, default) != default:
            raise InputError(f"{path}: was trained with {name}, which this version no longer has; train anew")
    settings = {**ADDED, **settings}
    settings["data"] = [settings["data"]] if isinstance(settings["data"], str) else settings["data"]
    parser.set_defaults(**settings)
    args = parser.parse_args(argv)
    args.resume = path
    for name in FIXED:
        if name == "epochs" and args.schedule == "steps":
            continue  # more of them change nothing of those that are done
        if getattr(args, name) != settings[name]:
            raise InputError(f"--{name.replace('_', '-')} can't change on --resume (it was {settings[name]})")
    return args


# ---------------------------------------------------------------- predictions and reports


def measure(args, model, checkpoint, rows, images, by, prefix=""):
    """Evaluate a model on test rows; write report, predictions and plots, print the table."""
    dataset = CellDataset(rows, images, model.classes)
    predicted = predict(model, rows, dataset, args.operating_point, args.tta)
    if rank() > 0:
        return
    out = Path(args.out)
    write_predictions(predicted, model.classes, out / "checkpoints" / f"{prefix}test_predictions.csv")
    epoch = f"epoch {checkpoint['epoch']}" if "epoch" in checkpoint else "no epoch recorded"
    epoch += ", mean over eight symmetries" * args.tta
    name = f"{epoch}, {describe_weights(model.config['initial_weights'])} at the start"
    write_results(predicted, dataset, model.classes, by, out, prefix, name, about(model, checkpoint))


def load_table(args):
    """The table of args, its missing images filled in, with a `image` column; and the images' array."""
    table = data.read_tables(args.data, args.classes, args.images)
    for name in args.classes:
        if table[name].nunique() < 2 and not args.evaluate:
            raise InputError(
                f"{' '.join(args.data)}: {name} is {table[name].iloc[0]} in every row, so there is nothing to tell "
                "apart; add cells with the other label or leave it out of --classes"
            )
    if args.limit:
        table = data.limit_cells(table, args.limit, args.classes)
    filled = data.fill_images(table)
    if filled:
        print(f"{filled} images copied from elpv-dataset into {table['path'][0].parent}")
    images, table["image"] = load_sources(table, args.image_size, print)
    table["weight"] = data.source_weights(table, dict(args.weight), balanced=args.recipe == "adapt")
    return table, images


def parts_of(table, args, fold=0):
    """Training, validation and test part (tables) as args ask for; fold: its number, of --folds."""
    if args.recipe == "adapt":
        return data.adapt_parts(table, args.val_size, classes=args.classes, folds=args.folds or 0, fold=fold)
    if args.folds:
        return data.fold_parts(table, args.folds, fold, args.split, args.val_size, classes=args.classes)
    return data.split_parts(table, args.split, args.test_size, args.val_size, classes=args.classes)


# ---------------------------------------------------------------- commands


def run_evaluate(args):
    """`--evaluate`: a checkpoint's figures on its own test part."""
    keep_freed_memory()
    model, checkpoint = load_model(args.evaluate, pick_device(args.device))
    args.classes, args.image_size = list(model.classes), model.config["image_size"]
    table, images = load_table(args)
    split = checkpoint.get("split")
    if not split:
        print(f"{args.evaluate} does not say which cells it was trained on: some of these may be among them.\n")
        _, val, test = data.split_parts(table, args.split, args.test_size, args.val_size, classes=args.classes)
        split = data.record_split(val, test, args.split)
    rows = data.recorded_part(table, split, "test")
    measure(args, model, checkpoint, rows, images, split["by"], f"{Path(args.evaluate).stem}_")
    return 0


def settings_of(args):
    """The options that a run is made again from, as a dict that JSON can hold."""
    return {k: v for k, v in vars(args).items() if k not in ("resume", "evaluate", "out", "device")}


def run_training(args):
    """Train in one process or torchrun's, then measure the best epoch on the test part. Returns the exit code."""
    keep_freed_memory()
    device = pick_device(args.device)
    precision, out = pick_precision(args.precision, device), Path(args.out)
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(processes(device))
        if rank() == 0:
            stack.enter_context(sole_writer(out))
        if world() * 2 > args.batch_size:
            raise InputError(f"--batch-size {args.batch_size}: too small for {world()} processes, 2 images each")
        if not args.resume:  # before anything is written
            load_initial_weights(build_model(args.model, args.classes, args.width), args.weights)
        with contextlib.redirect_stdout(sys.stdout if rank() == 0 else io.StringIO()):
            if rank() == 0:
                table, images = load_table(args)  # the first process fills images/ and the cache for the others
            barrier()
            if rank() > 0:
                table, images = load_table(args)
            if not args.resume and rank() == 0:
                move_aside(out)
            if args.folds:
                return cross_validate(args, table, images, device, precision)
            parts = parts_of(table, args)
            trained = train(args, parts, images, out / "checkpoints", out / "plots", device, precision, args.resume)
            if trained is None:
                return 130
            print()
            measure(args, *trained, parts[2], images, args.split)
            return 0


def cross_validate(args, table, images, device, precision):
    """`--folds`: train once for every fold, and report on all cells as they were predicted out of fold.

    A fold that has its predictions is done; with --resume the others go on where they were.
    """
    out = Path(args.out)
    checkpoints = out / "checkpoints"
    if rank() == 0:
        with atomic_path(checkpoints / "folds.json") as temporary:
            temporary.write_text(json.dumps(settings_of(args), indent=1))
    predictions = []
    for fold in range(args.folds):
        folder = checkpoints / f"fold_{fold}"
        parts = parts_of(table, args, fold)
        done = folder / "predictions.csv"
        if not done.exists():
            print(f"\nfold {fold + 1} of {args.folds}")
            last = folder / "last.ckp"
            resume = str(last) if last.exists() else None
            trained = train(args, parts, images, folder, out / "plots" / folder.name, device, precision, resume)
            if trained is None:
                return 130
            dataset = CellDataset(parts[2], images, args.classes)
            predicted = predict(trained[0], parts[2], dataset, args.operating_point, args.tta)
            if rank() == 0:
                write_predictions(predicted, args.classes, done)
            barrier()
        found = pd.read_csv(done, sep=";")
        if found["filename"].tolist() != parts[2]["filename"].tolist():
            raise InputError(f"{done}: is of another table or split; remove the folder {folder} to train it anew")
        columns = [f"{k}_{c}" for k in ("p", "threshold") for c in args.classes]
        predictions.append(pd.concat([parts[2], found[columns]], axis=1).assign(fold=fold))
    if rank() > 0:
        return 0
    predicted = pd.concat(predictions, ignore_index=True)
    write_predictions(predicted, args.classes, checkpoints / "oof.csv", ["fold"])
    model, checkpoint = load_model(checkpoints / "fold_0" / "best.ckp")
    name = f"{args.folds} folds, {describe_weights(model.config['initial_weights'])} at the start"
    print()
    dataset = CellDataset(predicted, images, args.classes)
    write_results(predicted, dataset, args.classes, args.split, out, "", name, about(model, checkpoint))
    return 0


def train(args, parts, images, folder, plots, device, precision, resume):
    """One training run; returns (best model, its checkpoint), or None when it was asked to stop.

    parts: tables of the training, validation and test part. folder, plots: for checkpoints and images. resume: path
    of a checkpoint to go on from, or None.
    """
    first, (train, val, test) = rank() == 0, parts
    if args.recipe != "classic" and args.split != "row":
        train = data.originals(train)  # orientations come from the augmentation

    torch.manual_seed(args.seed)
    model = build_model(args.model, args.classes, args.width, args.image_size)
    if not resume:
        load_initial_weights(model, args.weights)
        if args.weights.endswith(".onnx"):
            model.config["normalise_brightness"] = args.normalise_brightness
            rows = np.linspace(0, len(train) - 1, min(len(train), NORM_CELLS)).astype(int)
            restore_norms(model, CellDataset(train, images, args.classes).batch(rows)[0])

    recipe = {name: getattr(args, name) for name in RECIPES[args.recipe]}
    own = int((train["source"] != train["source"].iloc[0]).sum()) or len(train)
    trainer = Trainer(
        model,
        CellDataset(train, images, args.classes),
        CellDataset(val, images, args.classes),
        folder,
        **recipe | {"keep_initial": kept_share(args.keep_initial, own)},
        defects=SyntheticDefects(args.classes, args.image_size, args.seed, device) if args.synthetic else None,
        device=device,
        precision=precision,
        seed=args.seed,
        keep_checkpoints=args.keep_checkpoints,
        notes={"settings": settings_of(args), "split": data.record_split(val, test, args.split)},
    )
    if resume:
        trainer.resume(resume)
        if args.max_time:  # the number that was found then
            trainer.epochs = trainer.notes["settings"]["epochs"] = read_checkpoint(resume)["settings"]["epochs"]
    elif args.max_time:
        trainer.epochs = trainer.notes["settings"]["epochs"] = trainer.epochs_within(args.max_time / (args.folds or 1))
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"cells     {train['cell'].nunique()} to train ({len(train)} images), {val['cell'].nunique()} to validate, "
        f"{test['cell'].nunique()} to test, split by {args.split}\n"
        f"network   {args.model}, {parameters:,} parameters, {args.image_size}x{args.image_size} pixels, "
        f"{describe_weights(model.config['initial_weights'])}\n"
        f"training  {args.recipe} recipe, {trainer.epochs} epochs, batch {args.batch_size}, {args.optimizer} "
        f"{args.lr:g}, on {f'{world()} x ' if world() > 1 else ''}{device.type} in "
        f"{'bfloat16' if precision == torch.bfloat16 else 'float32'}, {torch.get_num_threads()} threads"
    )
    if args.split == "row":
        print("LEAK      variants of the test cells are trained on; the scores will claim too much")
    print("\n" + progress_header(model.classes))
    for _ in trainer.history[-1:]:
        print(progress_line(trainer))

    writer = open_tensorboard(plots / "tensorboard", trainer.epoch) if args.tensorboard and first else None

    def after_epoch(trainer):
        if writer:
            write_tensorboard(writer, trainer)
        print(progress_line(trainer), flush=True)
        with atomic_path(trainer.folder / "metrics.csv") as temporary:
            pd.DataFrame(trainer.history).to_csv(temporary, sep=";", index=False, float_format="%.6g")
        plot_losses(trainer.history, model.classes, plots / "losses.png")

    def ask_to_stop(signum, frame):
        if first:
            print("\nstopping after this step ...", file=sys.stderr)
        trainer.stop = True
        signal.signal(signum, previous[signum])  # a second Ctrl-C ends at once

    previous = {}
    if threading.current_thread() is threading.main_thread():
        previous = {s: signal.signal(s, ask_to_stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        finished = trainer.fit(after_epoch)
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    if not finished:
        where = "" if args.out == "." else f" --out {args.out}"
        print(
            f"Stopped in epoch {min(trainer.epoch + 1, trainer.epochs)} after step {trainer.step} of {trainer.steps}; "
            f"go on with: python train.py --resume{where}"
        )
        return None
    barrier()
    trainer.calibrate()
    return load_model(folder / "best.ckp", device)


def main(argv=None):
    """Command line of this file; returns the exit code."""
    print_any_name()
    try:
        args = parse(argv)
        return run_evaluate(args) if args.evaluate else run_training(args)
    except (InputError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
