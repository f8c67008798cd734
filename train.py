"""Train a classifier of defects (crack, inactive) on EL images of solar cells.

$ python train.py                             # train on all ELPV cells
$ python train.py --limit 100 --epochs 1      # a first try in 20 seconds
$ python train.py --resume                    # go on after an interruption
$ python train.py --evaluate checkpoints/best.ckp
$ python train.py --data data.csv mine/labels.csv --weights cells.onnx --recipe adapt    # adapt it to your own cells
$ torchrun --nproc-per-node 4 train.py        # several GPUs
"""

import argparse
import contextlib
import io
import json
import signal
import sys
import threading
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
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
from elcells.evaluation.evaluate import add_predictions
from elcells.evaluation.results import describe_run, prediction_columns, write_predictions, write_results
from elcells.files import InputError, atomic_path, command, move_aside, sole_writer
from elcells.settings import add_option, given_options, option_name
from elcells.training.checkpoints import read_checkpoint
from elcells.training.jobs import Job
from elcells.training.progress import progress_header, progress_line, report_epoch
from elcells.training.recipes import RECIPES, Recipe, kept_share, values_of_recipes
from elcells.training.time_limit import epochs_within
from elcells.training.weights import describe_network_file, describe_weights, load_initial_weights, restore_norms
from model import DEFAULT, WIDTH, build_model, load_model
from trainer import Run, Trainer

NORM_CELLS = 256  # training cells from which the batch norms of a network from an ONNX file get their statistics


# ---------------------------------------------------------------- options


def options():
    """The parser of this script's command line; options that are not given are None."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    titles = {
        "data": "data",
        "network": "network",
        "recipe": "training; each recipe has its own defaults (doc/recipes.md)",
        "run": "run",
        "report": "report",
    }
    groups = {name: parser.add_argument_group(title) for name, title in titles.items()}
    data.add_table_options(groups["data"], several=True)
    parser.set_defaults(data=None, classes=None)
    for field in fields(Job):
        if field.metadata.get("group"):
            add_option(groups[field.metadata["group"]], field, field.metadata["text"])
    for field in fields(Recipe):
        add_option(groups["recipe"], field, f"{field.metadata['text']} ({values_of_recipes(field)})")

    group = groups["run"]
    group.add_argument("--out", default=".", metavar="DIR", help="gets checkpoints/ and plots/ (the current folder)")
    text = "auto, cpu, cuda, or mps, which is not tested (%(default)s)"
    group.add_argument("--device", default="auto", help=text)
    text = "go on from a checkpoint with its options (checkpoints/last.ckp)"
    group.add_argument("--resume", nargs="?", const="", metavar="CKP", help=text)
    text = "only measure a checkpoint on its test part"
    groups["report"].add_argument("--evaluate", metavar="CKP", help=text)
    return parser


def new_job(args):
    """Job and Recipe of a new run: the options, completed by the file of initial weights and by the recipe."""
    job = job_of_options(args)
    is_file = job.weights not in (None, "imagenet", "none")
    network = describe_network_file(job.weights) if is_file else {}
    model = job.model or network.get("network") or ("resnet34" if job.recipe == "classic" else DEFAULT)
    weights = job.weights or ("none" if model == "resnet" else "imagenet")
    recipe = job.recipe or ("fast" if weights == "none" else "finetune")
    job = replace(
        job,
        model=model,
        weights=weights,
        recipe=recipe,
        width=job.width or network.get("width", WIDTH),
        image_size=job.image_size or network.get("image_size", IMAGE_SIZE),
        keep_checkpoints=1 if job.folds and job.keep_checkpoints is None else job.keep_checkpoints,
    )
    if recipe == "adapt" and not is_file:
        raise InputError("--recipe adapt: needs a network of this project, such as --weights cells.onnx")
    if recipe == "adapt" and job.split != "cell":
        raise InputError(f"--split {job.split}: the recipe adapt divides by cell, as its first table was before")
    changed = given_options(args, Recipe)
    if not set(CLASSES) <= set(job.classes):  # other labels can't be drawn
        changed.setdefault("synthetic", 0.0)
    return job, replace(RECIPES[recipe], **changed)


def job_of_options(args):
    """The options as a Job, not yet completed."""
    return Job(**given_options(args, Job))


def resumed_job(args, path, stored):
    """Job and Recipe of an interrupted run, with what the command line changes of them.

    path: what holds them, for messages. stored: dict with "job" and "recipe".
    Raises InputError for an option that can't change.
    """
    merged = []
    for kind, name in ((Job, "job"), (Recipe, "recipe")):
        values = stored.get(name)
        if not isinstance(values, dict) or values.keys() != {field.name for field in fields(kind)}:
            raise InputError(f"{path}: not a checkpoint to go on from; give a last.ckp of `python train.py`")
        given = given_options(args, kind)
        may_change = {field.name for field in fields(kind) if not field.metadata.get("fixed")}
        if values.get("schedule") == "steps":
            may_change.add("epochs")  # more of them change nothing of those that are done
        for field in fields(kind):
            before = values[field.name]
            if field.name not in may_change and given.get(field.name, before) != before:
                raise InputError(f"{option_name(field)} can't change on --resume (it was {before})")
        merged.append(kind(**values | given))
    return tuple(merged)


def resume_point(out, given):
    """(path, its dict) of what a run goes on from: a checkpoint, or the settings of a cross-validation.

    given: the path of a checkpoint, or "" for that of the folder `out`.
    """
    cross_validation = out / "checkpoints" / "folds.json"
    if not given and cross_validation.exists():
        return str(cross_validation), json.loads(cross_validation.read_text(encoding="utf-8"))
    path = given or str(out / "checkpoints" / "last.ckp")
    return path, read_checkpoint(path)


# ---------------------------------------------------------------- cells


def load_table(job, image_size):
    """A job's table, its missing images filled in, with an `image` column; and the images, decoded."""
    table = data.read_tables(job.data, job.classes, job.images)
    if job.limit:
        table = data.limit_cells(table, job.limit, job.classes)
    copied = data.fill_images(table)
    if copied:
        print(f"{copied} images copied from elpv-dataset into {table['path'][0].parent}")
    images, table["image"] = load_sources(table, image_size, print)
    return table, images


def load_training_table(job):
    """`load_table` for training: with a `weight` column; InputError for a label that is the same in all cells."""
    table, images = load_table(job, job.image_size)
    for name in job.classes:
        if table[name].nunique() < 2:
            raise InputError(
                f"{' '.join(job.data)}: {name} is {table[name].iloc[0]} in every row, so there is nothing to tell "
                "apart; add cells with the other label or leave it out of --classes"
            )
    table["weight"] = data.source_weights(table, dict(job.weight), balanced=job.recipe == "adapt")
    return table, images


def parts_of(table, job, fold=0):
    """Training, validation and test part (tables) of a job; fold: its number in a cross-validation."""
    if job.recipe == "adapt":
        return data.adapt_parts(table, job.val_size, classes=job.classes, folds=job.folds or 0, fold=fold)
    if job.folds:
        return data.fold_parts(table, job.folds, fold, job.split, job.val_size, classes=job.classes)
    return data.split_parts(table, job.split, job.test_size, job.val_size, classes=job.classes)


# ---------------------------------------------------------------- reports


def evaluate_checkpoint(path, job, out, device):
    """`--evaluate`: report a checkpoint's figures on its own test part. Returns the exit code."""
    keep_freed_memory()
    model, checkpoint = load_model(path, pick_device(device))
    job = replace(job, classes=list(model.classes))
    table, images = load_table(job, model.metadata.image_size)
    split = checkpoint.get("split")
    if not split:
        print(f"{path} does not say which cells it was trained on: some of these may be among them.\n")
    test = data.part_of_checkpoint(table, split, "test", job.classes)
    job = replace(job, split=split["by"] if split else "cell")
    report_test_part(model, checkpoint, CellDataset(test, images, job.classes), job, out, f"{Path(path).stem}_")
    return 0


def report_test_part(model, checkpoint, test_set, job, out, prefix=""):
    """Predict the test part as the job says, write report, predictions and plots, and print the table."""
    predicted = add_predictions(model, test_set, job.operating_point, job.tta)
    if rank() > 0:
        return
    write_predictions(predicted, model.classes, out / "checkpoints" / f"{prefix}test_predictions.csv")
    title = f"epoch {checkpoint['epoch']}" if "epoch" in checkpoint else "no epoch recorded"
    if job.tta:
        title += ", mean over eight symmetries"
    title += f", {describe_weights(model.metadata)} at the start"
    write_results(predicted, test_set, model.classes, job.split, out, title, describe_run(model, checkpoint), prefix)


# ---------------------------------------------------------------- training


@dataclass(frozen=True)
class Session:
    """A job with its recipe and its cells, and where it is computed.

    table: all cells. images: as CellDataset takes them. out: folder of checkpoints/ and plots/.
    """

    job: Job
    recipe: Recipe
    table: pd.DataFrame
    images: object
    out: Path
    device: torch.device
    precision: torch.dtype

    def dataset(self, table):
        """A CellDataset of rows of the table."""
        return CellDataset(table, self.images, self.job.classes)


def run_training(job, recipe, out, device, resume):
    """Train in one process or torchrun's, then measure the best epoch on the test part. Returns the exit code.

    resume: path of a checkpoint to go on from, or None.
    """
    keep_freed_memory()
    device = pick_device(device)
    precision = pick_precision(job.precision, device)
    with processes(device) as device, sole_process(out), output_of_first_process():
        if world() * 2 > recipe.batch_size:
            raise InputError(f"--batch-size {recipe.batch_size}: too small for {world()} processes, 2 images each")
        if not resume:  # before anything is written
            load_initial_weights(build_model(job.model, job.classes, job.width), job.weights)
        if rank() == 0:
            table, images = load_training_table(job)  # fills images/ and the cache for the others
        barrier()
        if rank() > 0:
            table, images = load_training_table(job)
        if rank() == 0 and not resume:
            move_aside(out)
        session = Session(job, recipe, table, images, out, device, precision)
        if job.folds:
            return cross_validate(session)
        parts = parts_of(table, job)
        trained = train(session, parts, out / "checkpoints", out / "plots", resume)
        if trained is None:
            return 130
        print()
        report_test_part(*trained, session.dataset(parts[2]), job, out)
        return 0


def sole_process(out):
    """The context in which no other run may work in the folder; only the first process holds it."""
    return sole_writer(out) if rank() == 0 else contextlib.nullcontext()


def output_of_first_process():
    """The context in which only the first process prints."""
    return contextlib.nullcontext() if rank() == 0 else contextlib.redirect_stdout(io.StringIO())


def cross_validate(session):
    """`--folds`: train once for every fold, and report on all cells as they were predicted out of fold.

    A fold that has its predictions is done; with --resume the others go on where they were.
    """
    job = session.job
    checkpoints = session.out / "checkpoints"
    if rank() == 0:
        with atomic_path(checkpoints / "folds.json") as temporary:
            temporary.write_text(json.dumps({"job": asdict(job), "recipe": asdict(session.recipe)}, indent=1))
    predictions = []
    for fold in range(job.folds):
        predicted = predict_fold(session, fold)
        if predicted is None:
            return 130
        predictions.append(predicted)
    if rank() > 0:
        return 0
    predicted = pd.concat(predictions, ignore_index=True)
    write_predictions(predicted, job.classes, checkpoints / "oof.csv", ["fold"])
    model, checkpoint = load_model(checkpoints / "fold_0" / "best.ckp")
    title = f"{job.folds} folds, {describe_weights(model.metadata)} at the start"
    print()
    dataset = session.dataset(predicted)
    write_results(predicted, dataset, job.classes, job.split, session.out, title, describe_run(model, checkpoint))
    return 0


def predict_fold(session, fold):
    """The test part of a fold with its predictions, for which it is trained if it has none yet; None on a stop."""
    job = session.job
    folder = session.out / "checkpoints" / f"fold_{fold}"
    path = folder / "predictions.csv"
    parts = parts_of(session.table, job, fold)
    test = parts[2]
    if not path.exists():
        print(f"\nfold {fold + 1} of {job.folds}")
        last = folder / "last.ckp"
        resume = str(last) if last.exists() else None
        trained = train(session, parts, folder, session.out / "plots" / folder.name, resume)
        if trained is None:
            return None
        predicted = add_predictions(trained[0], session.dataset(test), job.operating_point, job.tta)
        if rank() == 0:
            write_predictions(predicted, job.classes, path)
        barrier()
    predicted = pd.read_csv(path, sep=";")
    if predicted["filename"].tolist() != test["filename"].tolist():
        raise InputError(f"{path}: is of another table or split; remove the folder {folder} to train it anew")
    return pd.concat([test, predicted[prediction_columns(job.classes)]], axis=1).assign(fold=fold)


def train(session, parts, folder, plots, resume):
    """One training run; returns (best model, its checkpoint), or None when it was asked to stop.

    parts: tables of the training, validation and test part. folder, plots: for checkpoints and plots. resume: path of a
    checkpoint to go on from, or None.
    """
    job = session.job
    train_part, val_part, test_part = parts
    if job.recipe != "classic" and job.split != "row":
        train_part = data.originals(train_part)  # orientations come from the augmentation
    train_set = session.dataset(train_part)
    torch.manual_seed(job.seed)
    model = build_model(job.model, job.classes, job.width, job.image_size, session.recipe.normalise_brightness)
    if not resume:
        initialise(model, job.weights, train_set)
    notes = {"job": asdict(job), "split": data.record_split(val_part, test_part, job.split)}
    run = Run(folder, session.device, session.precision, job.seed, job.keep_checkpoints, notes)
    trainer = Trainer(model, train_set, session.dataset(val_part), session.recipe, run)
    if resume:
        trainer.resume(resume)
    if job.max_time:
        trainer.set_epochs(epochs_of_max_time(session, trainer, resume))
    print_plan(session, trainer, train_part, val_part, test_part)
    with stopped_by_signals(trainer):
        finished = trainer.fit(partial(report_epoch, plots=plots))
    if not finished:
        where = "" if session.out == Path(".") else f" --out {session.out}"
        print(
            f"Stopped in epoch {min(trainer.epoch + 1, trainer.recipe.epochs)} after step {trainer.step} of "
            f"{trainer.batches.steps}; go on with: python train.py --resume{where}"
        )
        return None
    barrier()
    is_own = train_part["source"] != train_part["source"].iloc[0]
    trainer.finish(kept_share(trainer.recipe.keep_initial, int(is_own.sum()) or len(train_part)))
    return load_model(folder / "best.ckp", session.device)


def epochs_of_max_time(session, trainer, resume):
    """As many epochs as fit into --max-time; those that were found when the run, or its first fold, began."""
    first_fold = session.out / "checkpoints" / "fold_0" / "last.ckp"
    begun = resume or (first_fold if session.job.folds and first_fold.exists() else None)
    if begun:
        return read_checkpoint(begun)["recipe"]["epochs"]
    return epochs_within(trainer, session.job.max_time / (session.job.folds or 1))


def initialise(model, weights, train_set):
    """Load initial weights; a network from an ONNX file gets the statistics of its batch norms from training cells."""
    load_initial_weights(model, weights)
    if weights.endswith(".onnx"):
        rows = np.linspace(0, len(train_set) - 1, min(len(train_set), NORM_CELLS)).astype(int)
        images, _ = train_set.batch(rows)
        restore_norms(model, images)


def print_plan(session, trainer, train_part, val_part, test_part):
    """Say what is about to be trained, on what, and where."""
    job = session.job
    model = trainer.model
    parameters = sum(p.numel() for p in model.parameters())
    processes = f"{world()} x " if world() > 1 else ""
    arithmetic = "bfloat16" if session.precision == torch.bfloat16 else "float32"
    print(
        f"cells     {train_part['cell'].nunique()} to train ({len(train_part)} images), "
        f"{val_part['cell'].nunique()} to validate, {test_part['cell'].nunique()} to test, split by {job.split}\n"
        f"network   {job.model}, {parameters:,} parameters, {job.image_size}x{job.image_size} pixels, "
        f"{describe_weights(model.metadata)}\n"
        f"training  {job.recipe} recipe, {trainer.recipe.epochs} epochs, batch {trainer.recipe.batch_size}, "
        f"{trainer.recipe.optimizer} {trainer.recipe.lr:g}, on {processes}{session.device.type} in {arithmetic}, "
        f"{torch.get_num_threads()} threads"
    )
    if job.split == "row":
        print("LEAK      variants of the test cells are trained on; the scores will claim too much")
    print("\n" + progress_header(model.classes))
    if trainer.history:
        print(progress_line(trainer))


@contextlib.contextmanager
def stopped_by_signals(trainer):
    """The context in which Ctrl-C and SIGTERM stop a Trainer after the step under way; a second one ends at once."""
    previous = {}

    def ask_to_stop(signum, frame):
        if rank() == 0:
            print("\nstopping after this step ...", file=sys.stderr)
        trainer.stop = True
        signal.signal(signum, previous[signum])

    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGINT, signal.SIGTERM):
            previous[signum] = signal.signal(signum, ask_to_stop)
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


# ---------------------------------------------------------------- command


@command
def main(argv=None):
    """Command line of this file; returns the exit code: 0, 2 for bad input, 130 when it was stopped."""
    args = options().parse_args(argv)
    out = Path(args.out)
    if args.evaluate:
        return evaluate_checkpoint(args.evaluate, job_of_options(args), out, args.device)
    if args.resume is None:
        job, recipe = new_job(args)
        return run_training(job, recipe, out, args.device, resume=None)
    path, stored = resume_point(out, args.resume)
    job, recipe = resumed_job(args, path, stored)
    return run_training(job, recipe, out, args.device, resume=path)


if __name__ == "__main__":
    raise SystemExit(main())
