"""Train a classifier of defects (crack, inactive) on EL pictures of solar cells.

$ python train.py                             # train on all ELPV cells
$ python train.py --limit 100 --epochs 1      # a first try in 20 seconds
$ python train.py --resume                    # go on after an interruption
$ torchrun --nproc-per-node 4 train.py        # several GPUs
$ python train.py --evaluate checkpoints/best.ckp
$ python train.py --join a/checkpoints/best.ckp b/checkpoints/best.ckp   # one network of two
"""

import argparse
import contextlib
import hashlib
import io
import json
import platform
import re
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import data
from data import CellDataset
from elcells.checkpoint import read_checkpoint
from elcells.cpu import keep_freed_memory
from elcells.distributed import barrier, pick_device, pick_precision, processes, rank, world
from elcells.files import InputError, atomic_path, move_aside, sole_writer
from elcells.pictures import CLASSES, IMAGE_SIZE, load_pictures
from elcells.plots import plot_errors, plot_losses, plot_precision_recall, plot_reliability
from elcells.recipes import RECIPES
from elcells.report import (
    make_report,
    open_tensorboard,
    progress_header,
    progress_line,
    report_text,
    write_predictions,
    write_tensorboard,
)
from elcells.synthetic import SyntheticDefects
from elcells.weights import (
    describe_weights,
    load_initial_weights,
    weights_warning,
)
from model import NETWORKS, build_model, join_models, load_model, save_checkpoint
from trainer import Trainer, calibrate, evaluate

FIXED = (
    "model",
    "width",
    "classes",
    "image_size",
    "split",
    "folds",
    "test_size",
    "val_size",
    "limit",
    "seed",
    *RECIPES["fast"],
)


# ---------------------------------------------------------------- options


def duration(text):
    """Seconds of a time such as 90s, 15m or 1.5h."""
    if not re.fullmatch(r"\d+(\.\d+)?[smh]", text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a time such as 90s, 15m or 1.5h")
    return float(text[:-1]) * {"s": 1, "m": 60, "h": 3600}[text[-1]]


def options():
    """The parser of this script's command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, argument_default=None
    )
    group = parser.add_argument_group("data")
    data.add_table_options(group)
    group.add_argument("--limit", type=int, metavar="N", help="take only N cells, a stratified handful")
    group.add_argument(
        "--split",
        choices=("cell", "module", "row"),
        default="cell",
        help="what never stands on both sides of a split: a cell with its variants, a whole module, or just a picture, "
        "which leaks variants of test cells into training and claims too much (%(default)s)",
    )
    group.add_argument(
        "--folds",
        type=int,
        metavar="K",
        help="cross-validation: train K times, so that every cell is in the test part once; checkpoints/oof.csv holds "
        "its probabilities (just one split)",
    )
    group.add_argument("--test-size", type=float, default=0.1, metavar="SHARE", help="test part (%(default)s)")
    group.add_argument(
        "--val-size", type=float, default=0.1, metavar="SHARE", help="validation part of the rest (%(default)s)"
    )

    group = parser.add_argument_group("network")
    group.add_argument(
        "--model",
        choices=("auto", *NETWORKS),
        default="auto",
        help="efficientnet_lite0, torchvision's resnet34 or our own resnet; auto is the first of the two others whose "
        "ImageNet weights are at hand (resnet34 with --recipe classic), else our own, which is the better one from "
        "random weights (%(default)s)",
    )
    group.add_argument("--width", type=int, default=32, metavar="MAPS", help="width of our own network (%(default)s)")
    group.add_argument(
        "--weights", metavar="W", help="initial weights: imagenet, none or a file (imagenet, but none for resnet)"
    )
    group.add_argument(
        "--image-size", type=int, default=IMAGE_SIZE, metavar="PIXELS", help="side of the input (%(default)s)"
    )

    def of_recipes(name):
        return f"({', '.join(f'{r}: {RECIPES[r][name]}' for r in RECIPES)})"

    group = parser.add_argument_group("training")
    group.add_argument(
        "--recipe",
        choices=RECIPES,
        help="what the options named with all three below are by default: fast takes the cells in all eight "
        "orientations, with drawn defects, AdamW and a one-cycle learning rate; finetune is the same for weights that "
        "come from another training; classic is the published recipe, on the six variants (finetune, but fast from "
        "random weights)",
    )
    group.add_argument("--epochs", type=int, metavar="N", help=f"passes over the training part {of_recipes('epochs')}")
    group.add_argument(
        "--budget",
        type=duration,
        metavar="TIME",
        help="as many epochs as fit into 90s, 15m or 1.5h, from a few steps timed first (--epochs)",
    )
    group.add_argument("--batch-size", type=int, metavar="N", help=f"pictures a step {of_recipes('batch_size')}")
    group.add_argument("--optimizer", choices=("adamw", "sgd"), help=f"{of_recipes('optimizer')}")
    group.add_argument("--lr", type=float, metavar="RATE", help=f"highest learning rate {of_recipes('lr')}")
    group.add_argument("--weight-decay", type=float, metavar="D", help=f"of all weights {of_recipes('weight_decay')}")
    group.add_argument(
        "--frozen",
        type=int,
        metavar="N",
        help=f"stages, of four, that stay as they are, from the first one on {of_recipes('frozen')}",
    )
    group.add_argument(
        "--even-exposure",
        action=argparse.BooleanOptionalAction,
        help="scale pictures to the same brightness first, also in the finished network: how bright a cell is tells "
        f"which module it is of {of_recipes('even_exposure')}",
    )
    group.add_argument(
        "--schedule", choices=("one-cycle", "steps"), help=f"of the learning rate {of_recipes('schedule')}"
    )
    group.add_argument(
        "--progressive",
        action=argparse.BooleanOptionalAction,
        help=f"small pictures first {of_recipes('progressive')}",
    )
    group.add_argument(
        "--turns", action=argparse.BooleanOptionalAction, help=f"random right-angle turns {of_recipes('turns')}"
    )
    group.add_argument(
        "--defective",
        type=int,
        metavar="N",
        help=f"draw cells with a label N times as often as others {of_recipes('defective')}",
    )
    group.add_argument(
        "--label-smoothing", type=float, metavar="S", help=f"targets S and 1 - S {of_recipes('label_smoothing')}"
    )
    group.add_argument(
        "--synthetic",
        type=float,
        metavar="SHARE",
        help="draw defects into half of the sound cells in this share of the epochs, the first ones; 0: never "
        f"{of_recipes('synthetic')}",
    )
    group.add_argument(
        "--places",
        type=float,
        metavar="WEIGHT",
        help=f"of the loss that teaches where the drawn defects are {of_recipes('places')}",
    )
    group.add_argument(
        "--noise",
        type=float,
        metavar="LEVELS",
        help="of a camera, for half of the pictures: normal, standard deviation up to LEVELS of 255, mostly less "
        f"{of_recipes('noise')}",
    )
    group.add_argument("--momentum", type=float, default=0.9, metavar="M", help="SGD's momentum (%(default)s)")
    group.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation (%(default)s)")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (%(default)s)")
    group.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="arithmetic of the training, the finished network is judged in fp32; auto takes bf16 where the device is "
        "fast in it (%(default)s)",
    )

    group = parser.add_argument_group("run")
    group.add_argument("--out", default=".", metavar="DIR", help="gets checkpoints/ and plots/ (the current folder)")
    group.add_argument(
        "--tensorboard",
        action="store_true",
        help="also write losses, F1, learning rate and example pictures for TensorBoard, to plots/tensorboard",
    )
    group.add_argument("--keep", type=int, metavar="N", help="keep only the newest N snapshots of epochs (all)")
    group.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="CKP",
        help="go on from a checkpoint with its options (checkpoints/last.ckp)",
    )
    group.add_argument("--evaluate", metavar="CKP", help="only measure a checkpoint on its test part")
    group.add_argument(
        "--join",
        nargs="+",
        metavar="CKP",
        help="make one checkpoint, checkpoints/best.ckp, of several networks of one split: it judges by the mean of "
        "their logits, on average a little better than one of them",
    )
    group.add_argument(
        "--operating-point",
        default="f1",
        metavar="NAME",
        help="thresholds of the report: f1 (highest F1), or recall (no more than 5 %% of each defect missed), both as "
        "found on the validation part (%(default)s)",
    )
    group.add_argument(
        "--tta",
        action="store_true",
        help="judge the test part by the mean over the eight symmetries of a cell: better, eight times the work",
    )
    return parser


def choose_network(args):
    """Settle --model, --weights and --recipe by the ImageNet weights at hand; args.no_imagenet says why not."""
    args.no_imagenet = {}
    if args.model == "auto" and args.recipe == "classic":
        args.model = "resnet34"
    if args.weights in (None, "imagenet") and args.model != "resnet":
        for name in ("efficientnet_lite0", "resnet34") if args.model == "auto" else (args.model,):
            record = load_initial_weights(build_model(name), "imagenet")
            if record["used"] == "imagenet":
                args.model, args.weights = name, "imagenet"
                break
        else:
            args.weights, args.no_imagenet = "none", record
    args.weights = args.weights or "none"
    if args.model == "auto":
        args.model = "resnet" if args.weights == "none" else "resnet34"
    args.recipe = args.recipe or ("fast" if args.weights == "none" else "finetune")


def parse(argv):
    """Options as a namespace; with --resume, those of the interrupted run where the command line gives no others."""
    parser = options()
    args = parser.parse_args(argv)
    # oneDNN 3.12 writes out of bounds when it trains 1x1 convolutions of fewer than 16 maps in float32.
    for name, least in (
        ("epochs", 1),
        ("batch_size", 2),
        ("image_size", 32),
        ("width", 16),
        ("keep", 0),
        ("folds", 2),
        ("defective", 1),
    ):
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at least {least}")
    if args.lr is not None and args.lr <= 0:
        raise InputError(f"--lr {args.lr:g}: must be above 0")
    for name, below in (("label_smoothing", 0.5), ("synthetic", 1)):
        if getattr(args, name) is not None and not 0 <= getattr(args, name) < below:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name):g}: must be from 0 to below {below:g}")
    for name in ("places", "noise"):
        if getattr(args, name) is not None and not 0 <= getattr(args, name) < np.inf:
            raise InputError(f"--{name} {getattr(args, name):g}: must be 0 or more")
    if args.frozen is not None and not 0 <= args.frozen <= 3:
        raise InputError(f"--frozen {args.frozen}: must be from 0 to 3")
    if args.join and (args.evaluate or args.resume is not None):
        raise InputError("--join: makes a checkpoint of finished ones; leave out --evaluate and --resume")
    if args.resume is None and not args.evaluate and not args.join:
        choose_network(args)
        for name, value in RECIPES[args.recipe].items():
            if getattr(args, name) is None:
                drawable = set(CLASSES) <= set(args.classes)  # other labels than ours can't be drawn
                setattr(args, name, value if name != "synthetic" or drawable else 0.0)
    if args.resume is not None:
        cross_validation = Path(args.out) / "checkpoints" / "folds.json"
        if not args.resume and cross_validation.exists():
            args.resume = str(cross_validation)
            settings = json.loads(cross_validation.read_text())
        else:
            args.resume = args.resume or str(Path(args.out) / "checkpoints" / "last.ckp")
            settings = read_checkpoint(args.resume).get("settings")
        settings = {"noise": 0.0} | settings if isinstance(settings, dict) else {}  # of older ones, which had none
        if not settings.keys() >= set(FIXED):
            raise InputError(f"{args.resume}: not a checkpoint to go on from; give a last.ckp of `python train.py`")
        parser.set_defaults(**settings)
        resume, args = args.resume, parser.parse_args(argv)
        args.resume = resume
        for name in FIXED:
            if name == "epochs" and args.schedule == "steps":
                continue  # more of them change nothing of those that are done
            if getattr(args, name) != settings[name]:
                raise InputError(f"--{name.replace('_', '-')} can't change on --resume (it was {settings[name]})")
    return args


# ---------------------------------------------------------------- parts of a run


# ---------------------------------------------------------------- pictures


# ---------------------------------------------------------------- commands


def judge(model, rows, pictures, operating_point, tta):
    """Rows of a table with the model's probability (p_...) and threshold (threshold_...) of each class added."""
    if tta:
        model.average_symmetries()
    model.set_operating_point(operating_point)
    dataset = CellDataset(rows, pictures, model.classes)
    _, _, probabilities = evaluate(model, dataset.to(next(model.parameters()).device))
    judged = rows.copy()
    for i, name in enumerate(model.classes):
        judged[f"p_{name}"] = probabilities[:, i].round(6)
    for name, threshold in zip(model.classes, model.config["thresholds"]):
        judged[f"threshold_{name}"] = round(threshold, 6)
    return judged


def write_results(judged, classes, pictures, by, out, prefix, name, more):
    """Report, plots, and the table on the screen, of a judged test part (or of all cells, out of fold).

    by: what the split kept together. prefix: of the files' names. name: what was judged, for the table. more: dict to
    add to the report.
    """
    labels, probabilities, thresholds = (
        judged[[f"{k}{c}" for c in classes]].to_numpy(np.float64) for k in ("", "p_", "threshold_")
    )
    report = {**make_report(labels, probabilities, thresholds, judged, classes, by), **more}
    with atomic_path(out / "checkpoints" / f"{prefix}report.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1))
    plots = out / "plots"
    plot_precision_recall(labels, probabilities, thresholds, classes, plots / f"{prefix}precision_recall.png")
    plot_reliability(labels, probabilities, classes, plots / f"{prefix}reliability.png")
    dataset = CellDataset(judged, pictures, classes)
    plot_errors(labels, probabilities, thresholds, dataset, classes, plots / f"{prefix}errors.png")
    print(report_text(report, name))
    print(f"\n{out / 'checkpoints' / f'{prefix}report.json'} has all figures, {plots} the pictures.")


def about(model, checkpoint):
    """What a report says of the network and its training, as a dict."""
    return {
        "initial_weights": model.config["initial_weights"],
        "best_epoch": checkpoint.get("epoch"),
        "joined": checkpoint.get("joined"),
        "config": {
            k: model.config[k]
            for k in ("network", "width", "classes", "mean", "std", "image_size", "even_exposure", "tta")
        },
        "settings": checkpoint.get("settings", {}),
        "history": checkpoint.get("history", []),
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "versions": checkpoint.get("versions", {}),
    }


def measure(model, checkpoint, rows, pictures, by, out, prefix, operating_point, tta):
    """Evaluate a model on test rows; write report, predictions and plots, print the table."""
    judged = judge(model, rows, pictures, operating_point, tta)
    if rank() > 0:
        return
    write_predictions(judged, model.classes, out / "checkpoints" / f"{prefix}test_predictions.csv")
    epoch = f"epoch {checkpoint['epoch']}" if "epoch" in checkpoint else "no epoch recorded"
    if "joined" in checkpoint:
        epoch = f"mean of {model.config['network']}"
    epoch += ", mean over eight symmetries" * tta
    name = f"{epoch}, {describe_weights(model.config['initial_weights'])} at the start"
    write_results(judged, model.classes, pictures, by, out, prefix, name, about(model, checkpoint))


def load_table(args):
    """The table of args, its missing pictures filled in, with a `picture` column; and the pictures' array."""
    table = data.read_table(args.data, args.classes, args.images)
    for name in args.classes:
        if table[name].nunique() < 2 and not (args.evaluate or args.join):
            raise InputError(
                f"{args.data}: {name} is {table[name].iloc[0]} in every row, so there is nothing to tell apart; add "
                "cells with the other label or leave it out of --classes"
            )
    if args.limit:
        table = data.limit_cells(table, args.limit, args.classes)
    filled = data.fill_images(table)
    if filled:
        print(f"{filled} pictures copied from elpv-dataset into {table['path'][0].parent}")
    pictures, table["picture"] = load_pictures(table, args.image_size)
    return table, pictures


def run_evaluate(args):
    """`--evaluate`: a checkpoint's figures on its own test part."""
    keep_freed_memory()
    device = pick_device(args.device)
    model, checkpoint = load_model(args.evaluate, device)
    args.classes, args.image_size = list(model.classes), model.config["image_size"]
    table, pictures = load_table(args)
    split = checkpoint.get("split")
    if not split:
        print(f"{args.evaluate} does not say which cells it was trained on: some of these may be among them.\n")
        _, val, test = data.split_parts(table, args.split, args.test_size, args.val_size, classes=args.classes)
        split = data.record_split(val, test, args.split)
    rows = data.recorded_part(table, split, "test")
    prefix = f"{Path(args.evaluate).stem}_"
    out = Path(args.out)
    measure(model, checkpoint, rows, pictures, split["by"], out, prefix, args.operating_point, args.tta)
    return 0


def run_join(args):
    """`--join`: one checkpoint of several, calibrated on the validation part and judged on the test part of all."""
    keep_freed_memory()
    device = pick_device(args.device)
    loaded = [load_model(path, device) for path in args.join]
    split = loaded[0][1].get("split")
    for path, (_, checkpoint) in zip(args.join, loaded):
        if not split or checkpoint.get("split") != split:
            raise InputError(
                f"--join: {path} was trained on other cells than {args.join[0]}, or does not say on which; train them "
                "with the same --data, --split, --limit, --test-size and --val-size"
            )
    joined = [
        {
            "checkpoint": str(path),  # where it was; an earlier run in this folder is moved aside
            "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
            "network": m.config["network"],
            "epoch": c.get("epoch"),
            "settings": c.get("settings", {}),
        }
        for path, (m, c) in zip(args.join, loaded)
    ]
    model = join_models([model for model, _ in loaded]).to(device)
    args.classes, args.image_size = list(model.classes), model.config["image_size"]
    table, pictures = load_table(args)
    val, test = (data.recorded_part(table, split, part) for part in ("val", "test"))
    calibrate(model, CellDataset(val, pictures, model.classes).to(device))
    out = Path(args.out)
    with sole_writer(out):
        move_aside(out)
        more = {"joined": joined, "split": split}
        save_checkpoint(out / "checkpoints" / "best.ckp", model, **more)
        measure(model, more, test, pictures, split["by"], out, "", args.operating_point, args.tta)
    return 0


def settings_of(args):
    """The options that a run is made again from, as a dict that JSON can hold."""
    return {k: v for k, v in vars(args).items() if k not in ("resume", "evaluate", "out", "device")}


def run_training(args):
    """Train in one process or torchrun's, then measure the best epoch on the test part. Returns the exit code."""
    keep_freed_memory()
    device = pick_device(args.device)
    precision = pick_precision(args.precision, device)
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(processes(device))
        if rank() == 0:
            stack.enter_context(sole_writer(Path(args.out)))
        if world() * 2 > args.batch_size:
            raise InputError(f"--batch-size {args.batch_size}: too small for {world()} processes, 2 pictures each")
        with contextlib.redirect_stdout(sys.stdout if rank() == 0 else io.StringIO()):
            if rank() == 0:
                table, pictures = load_table(args)  # the first process fills images/ and the cache for the others
            barrier()
            if rank() > 0:
                table, pictures = load_table(args)
            if not args.resume and rank() == 0:
                move_aside(Path(args.out))
            if args.folds:
                return cross_validate(args, table, pictures, device, precision)
            parts = data.split_parts(table, args.split, args.test_size, args.val_size, classes=args.classes)
            out = Path(args.out)
            trained = train(args, parts, pictures, out / "checkpoints", out / "plots", device, precision, args.resume)
            if trained is None:
                return 130
            print()
            measure(*trained, parts[2], pictures, args.split, out, "", args.operating_point, args.tta)
            return 0


def cross_validate(args, table, pictures, device, precision):
    """`--folds`: train once for every fold, and report on all cells as they were judged out of fold.

    A fold that has its predictions is done; with --resume the others go on where they were.
    """
    out = Path(args.out)
    checkpoints = out / "checkpoints"
    if rank() == 0:
        with atomic_path(checkpoints / "folds.json") as temporary:
            temporary.write_text(json.dumps(settings_of(args), indent=1))
    judged = []
    for fold in range(args.folds):
        folder = checkpoints / f"fold_{fold}"
        parts = data.fold_parts(table, args.folds, fold, args.split, args.val_size, classes=args.classes)
        done = folder / "predictions.csv"
        if not done.exists():
            print(f"\nfold {fold + 1} of {args.folds}")
            last = folder / "last.ckp"
            resume = str(last) if last.exists() else None
            trained = train(args, parts, pictures, folder, out / "plots" / folder.name, device, precision, resume)
            if trained is None:
                return 130
            found = judge(trained[0], parts[2], pictures, args.operating_point, args.tta)
            if rank() == 0:
                write_predictions(found, args.classes, done)
            barrier()
        found = pd.read_csv(done, sep=";")
        if found["filename"].tolist() != parts[2]["filename"].tolist():
            raise InputError(f"{done}: is of another table or split; remove the folder {folder} to train it anew")
        columns = [f"{k}_{c}" for k in ("p", "threshold") for c in args.classes]
        judged.append(pd.concat([parts[2], found[columns]], axis=1).assign(fold=fold))
    if rank() > 0:
        return 0
    judged = pd.concat(judged, ignore_index=True)
    write_predictions(judged, args.classes, checkpoints / "oof.csv", ["fold"])
    model, checkpoint = load_model(checkpoints / "fold_0" / "best.ckp")
    name = f"{args.folds} folds, {describe_weights(model.config['initial_weights'])} at the start"
    print()
    write_results(judged, args.classes, pictures, args.split, out, "", name, about(model, checkpoint))
    return 0


def epochs_within(trainer, seconds, share=0.9):
    """How many epochs (1 or more) of a Trainer that has not begun fit into so many seconds.

    A few steps on full pictures are timed, and undone. share: of the time that is for training; the rest
    is for evaluation and checkpoints.
    """
    full = trainer.train_set.pictures.shape[-1]
    trainer.epoch, times = trainer.epochs - 1, []
    rows = np.arange(min(trainer.batch_size, len(trainer.train_set)))
    trainer.training_mode()
    with trainer.undone():
        for _ in range(6):
            started = time.monotonic()
            float(trainer.run_step(trainer.batch(rows)))  # waits for a GPU
            times.append(time.monotonic() - started)
    trainer.epoch = 0
    step = trainer.summed(torch.tensor(float(np.median(times[1:])), device=trainer.device)).item() / world()
    epoch = trainer.steps * step
    epochs = 1
    while trainer.pixels(0, epochs + 1) / full**2 * epoch <= share * seconds:
        epochs += 1
    return epochs


def train(args, parts, pictures, folder, plots, device, precision, resume):
    """One training run; returns (best model, its checkpoint), or None when it was asked to stop.

    parts: tables of the training, validation and test part. folder, plots: for checkpoints and pictures. resume: path
    of a checkpoint to go on from, or None.
    """
    first, (train, val, test) = rank() == 0, parts
    if args.recipe != "classic" and args.split != "row":
        train = data.originals(train)  # orientations come from the augmentation

    torch.manual_seed(args.seed)
    model = build_model(args.model, args.classes, args.width, args.image_size)
    if not resume:
        record = {**load_initial_weights(model, args.weights), **args.no_imagenet}
        model.config["initial_weights"] = record
        if record["used"] == "random" and record["asked"] == "imagenet" and first:
            print(weights_warning(record, args.model), file=sys.stderr)

    trainer = Trainer(
        model,
        CellDataset(train, pictures, args.classes),
        CellDataset(val, pictures, args.classes),
        folder,
        **{name: getattr(args, name) for name in RECIPES[args.recipe]},
        defects=SyntheticDefects(args.classes, args.image_size, args.seed, device) if args.synthetic else None,
        momentum=args.momentum,
        device=device,
        precision=precision,
        seed=args.seed,
        keep=args.keep,
        notes={"settings": settings_of(args), "split": data.record_split(val, test, args.split)},
    )
    if resume:
        trainer.resume(resume)
        if args.budget:  # the number that was found then
            trainer.epochs = trainer.notes["settings"]["epochs"] = read_checkpoint(resume)["settings"]["epochs"]
    elif args.budget:
        trainer.epochs = trainer.notes["settings"]["epochs"] = epochs_within(trainer, args.budget / (args.folds or 1))
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"cells     {train['cell'].nunique()} to train ({len(train)} pictures), {val['cell'].nunique()} to validate, "
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
    try:
        args = parse(argv)
        if args.join:
            return run_join(args)
        return run_evaluate(args) if args.evaluate else run_training(args)
    except (InputError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
