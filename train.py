"""Train a classifier of defects (crack, inactive) on EL images of solar cells.

$ python train.py                             # train on all ELPV cells
$ python train.py --limit 100 --epochs 1 --line-steps 0    # a first try in 20 seconds
$ python train.py --resume                    # go on after an interruption
$ python train.py --evaluate checkpoints/best.ckp
$ python train.py --data data.csv mine/labels.csv --weights cells.onnx --recipe adapt    # adapt it to your own cells
$ torchrun --nproc-per-node 4 train.py        # several GPUs
"""

import argparse
import contextlib
import io
import json
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch

import data
from data import CellDataset
from elcells.data.cache import load_sources
from elcells.data.images import IMAGE_SIZE
from elcells.data.leaks import contamination, make_record, with_hashes
from elcells.data.recorded_split import difference_of_splits, record_split
from elcells.data.tables import CLASSES
from elcells.devices import keep_freed_memory, pick_device, pick_precision
from elcells.distributed import barrier, processes, rank, world
from elcells.evaluation.evaluate import add_predictions
from elcells.evaluation.results import describe_run, prediction_columns, write_predictions, write_results
from elcells.files import InputError, atomic_path, command, move_aside, reason, sole_writer
from elcells.inference.onnx_files import is_onnx
from elcells.settings import add_option, given_options, option_name, resumed_settings
from elcells.training.checkpoints import read_checkpoint
from elcells.training.jobs import Job
from elcells.training.progress import open_tensorboard, print_plan, report_epoch
from elcells.training.recipes import RECIPES, Recipe, kept_share, values_of_recipes
from elcells.training.stopping import stopped_by_signals
from elcells.training.synthetic import SyntheticDefects
from elcells.training.time_limit import recipe_within
from elcells.training.weights import (
    cells_in_training,
    describe_network_file,
    describe_weights,
    load_initial_weights,
    restore_norms,
)
from model import DEFAULT, NETWORKS, WIDTH, build_model, load_model
from trainer import Run, Trainer

OPTIONS_OF_EVALUATE = {"data", "images", "limit", "operating_point", "tta"}
OPTIONS_OF_PARTS = {"split", "test_size", "val_size"}  # also its options, if the checkpoint does not name its parts

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
    for field in fields(Job):
        add_option(groups[field.metadata["group"]], field, choices=NETWORKS if field.name == "model" else None)
    for field in fields(Recipe):
        add_option(groups["recipe"], field, defaults=values_of_recipes(field))
    group = groups["run"]
    group.add_argument("--out", default=".", metavar="DIR", help="gets checkpoints/ and plots/ (the current folder)")
    text = "auto, cpu, cuda, or mps, which is not tested (%(default)s)"
    group.add_argument("--device", default="auto", help=text)
    text = "continue from a checkpoint with its options (checkpoints/last.ckp)"
    group.add_argument("--resume", nargs="?", const="", metavar="CKP", help=text)
    text = "only measure a checkpoint on its test part"
    groups["report"].add_argument("--evaluate", metavar="CKP", help=text)
    return parser


def new_job(args):
    """Job and Recipe of a new run: the options, completed by the file of initial weights and by the recipe."""
    job = Job(**given_options(args, Job))
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
        raise InputError(f"--split {job.split}: the recipe adapt splits by cell, as the training of cells.onnx did")
    settings = given_options(args, Recipe)
    if not set(CLASSES) <= set(job.classes):  # other labels can't be drawn
        settings.setdefault("synthetic", 0.0)
    return job, with_lines_or_not(replace(RECIPES[recipe], **settings), settings)


def with_lines_or_not(recipe, given):
    """A Recipe without a decoder of crack lines where it draws no cracks, from which that learns.

    given: the settings on the command line; InputError where they ask for the decoder.
    """
    if recipe.line_steps == 0 or (recipe.synthetic and recipe.aux_loss):
        return recipe
    if given.get("line_steps"):
        raise InputError(
            f"--line-steps {recipe.line_steps}: crack lines are learnt from drawn cracks; give --synthetic and "
            "--aux-loss above 0, and the classes crack and inactive, or leave it out"
        )
    return replace(recipe, line_steps=0)


def resumed_job(args, path, stored):
    """Job and Recipe of an interrupted run, with what the command line changes of them.

    path: what holds them, for messages. stored: dict with "job" and "recipe".
    Raises InputError for an option that can't change.
    """
    job = resumed_settings(args, Job, path, stored, "job")
    recipe = resumed_settings(args, Recipe, path, stored, "recipe")
    return job, recipe


def resume_point(out, path):
    """(path, its dict) of what a run continues from: a checkpoint, or the settings of a cross-validation.

    path: of a checkpoint, or "" for that of the folder `out`.
    """
    folds = out / "checkpoints" / "folds.json"
    if path or not folds.exists():
        path = path or str(out / "checkpoints" / "last.ckp")
        return path, read_checkpoint(path)
    try:
        return str(folds), json.loads(folds.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{folds}: damaged ({reason(error)}); train anew") from None


# ---------------------------------------------------------------- cells


def load_table(job, image_size, record):
    """A job's table, its missing images filled in, and the images, decoded.

    It has the columns `image`, `weight`, `hash` and `seen`, the latter by the record of which cells a network was
    trained on (`elcells.data.leaks`).
    """
    table = data.read_tables(job.data, job.classes, job.images)
    if job.limit:
        table = data.limit_cells(table, job.limit, job.classes)
    data.fill_images(table, print)
    images, table["image"] = load_sources(table, image_size, print)
    table["weight"] = data.source_weights(table, dict(job.weight), balanced=job.recipe == "adapt")
    return with_hashes(table, record), images


def check_labels(table, job):
    """Raise InputError for a label that is the same in all cells."""
    for name in job.classes:
        if table[name].nunique() < 2:
            raise InputError(
                f"{' '.join(job.data)}: {name} is {table[name].iloc[0]} in every row, so there is nothing to tell "
                "apart; add cells with the other label or leave it out of --classes"
            )


def parts_of(table, job, fold=0):
    """Training, validation and test part (tables) of a job; fold: its number in a cross-validation."""
    if job.recipe == "adapt":
        return data.adapt_parts(table, job.test_size, job.val_size, job.classes, job.folds or 0, fold)
    if job.folds:
        return data.fold_parts(table, job.folds, fold, job.split, job.val_size, classes=job.classes)
    return data.split_parts(table, job.split, job.test_size, job.val_size, classes=job.classes)


# ---------------------------------------------------------------- reports


def options_besides(args, taken):
    """Names of the options of a training that were given, joined, except for `taken`, a set of names of fields."""
    others = [field for field in (*fields(Job), *fields(Recipe)) if field.name not in taken]
    return " ".join(option_name(field) for field in others if getattr(args, field.name) is not None)


def evaluate_checkpoint(args, out):
    """`--evaluate`: report a checkpoint's figures on its own test part."""
    path = args.evaluate
    job = Job(**given_options(args, Job))
    ignored = options_besides(args, OPTIONS_OF_EVALUATE | OPTIONS_OF_PARTS)
    if args.resume is not None:
        ignored += " --resume"
    if ignored:
        raise InputError(f"{ignored.strip()}: --evaluate trains nothing and does not take this")
    keep_freed_memory()
    model, checkpoint = load_model(path, pick_device(args.device))
    split = checkpoint.get("split")
    if split and (ignored := options_besides(args, OPTIONS_OF_EVALUATE)):
        raise InputError(f"{ignored}: {path} names its own test part; leave this out")
    job = replace(job, classes=model.classes)
    table, images = load_table(job, model.metadata.image_size, checkpoint.get("trained_on"))
    if split:
        job = replace(job, split=split["by"])
    else:
        print(f"{path} does not say which cells it was trained on: some of these may be among them.\n")
        split = record_split(parts_of(table, job), job.split, job.classes)
    test = data.part_of_checkpoint(table, split, "test", job.classes)
    leak = contamination(test, path)
    folder = Path(path).resolve().parent.name
    prefix = f"{folder}_" if folder.startswith("fold_") else ""
    prefix += f"{Path(path).stem}_"
    report_test_part((model, checkpoint), path, CellDataset(test, images, job.classes), job, out, leak, prefix)


def report_test_part(trained, path, test_set, job, out, leak="", prefix=""):
    """Predict the test part as the job says, write report, predictions and plots, and print the table.

    trained: (model, checkpoint) of the file at `path`. leak: `contamination` of the test part.
    """
    model, checkpoint = trained
    predicted = add_predictions(model, test_set, job.operating_point, job.tta)
    if rank() > 0:
        return
    write_predictions(predicted, model.classes, out / "checkpoints" / f"{prefix}test_predictions.csv")
    epoch = f"epoch {checkpoint['epoch']}" if "epoch" in checkpoint else "no epoch recorded"
    title = f"{path}, {epoch}{how_predicted(job)}, {describe_weights(model.metadata)} at the start"
    description = {"checkpoint": str(path)} | describe_run(model, checkpoint, job, leak)
    write_results(predicted, test_set, model.classes, job.split, out, title, description, prefix)


def how_predicted(job):
    """A part of a report's title: what differs from one look at each cell and the thresholds of F1."""
    symmetries = ", mean over eight symmetries" if job.tta else ""
    return symmetries + (f", thresholds of {job.operating_point}" if job.operating_point != "f1" else "")


# ---------------------------------------------------------------- training


@dataclass(frozen=True)
class Session:
    """A job with its recipe and its cells, and where it is computed.

    table: all cells. images: as CellDataset takes them. inherited: which cells the initial weights were trained on (a
    record of `elcells.data.leaks`, or None). defects: SyntheticDefects, where the recipe draws defects. out: folder of
    checkpoints/ and plots/.
    """

    job: Job
    recipe: Recipe
    table: pd.DataFrame
    images: object
    inherited: dict | None
    defects: SyntheticDefects | None
    out: Path
    device: torch.device
    precision: torch.dtype

    def dataset(self, table):
        """A CellDataset of rows of the table."""
        return CellDataset(table, self.images, self.job.classes)


def run_training(job, recipe, out, device, resume=None, inherited=None):
    """Train in one process or torchrun's, then measure the best epoch on the test part. Returns the exit code.

    resume: path of what a run continues from, or None. inherited: as in Session, of such a run.
    """
    keep_freed_memory()
    device = pick_device(device)
    precision = pick_precision(job.precision, device)
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(processes(device))
        if rank() == 0:
            stack.enter_context(sole_writer(out))
        else:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        if world() * 2 > recipe.batch_size:
            raise InputError(f"--batch-size {recipe.batch_size}: too small for {world()} processes, 2 images each")
        if not resume:  # before anything is written
            load_initial_weights(build_model(job.model, job.classes, job.width), job.weights)
            inherited = cells_in_training(job.weights, print)
        if rank() == 0:
            table, images = load_table(job, job.image_size, inherited)  # fills images/ and the cache for the others
        barrier()
        if rank() > 0:
            table, images = load_table(job, job.image_size, inherited)
        check_labels(table, job)
        defects = SyntheticDefects(job.classes, job.image_size, job.seed, device) if recipe.synthetic else None
        session = Session(job, recipe, table, images, inherited, defects, out, device, precision)
        if not resume and rank() == 0:
            move_aside(out)
        if job.max_time and not resume:
            session = replace(session, recipe=shortened_recipe(session))
        return cross_validate(session) if job.folds else train_once(session, resume)


def shortened_recipe(session):
    """The session's recipe, as long as fits into --max-time, all folds together."""
    trainer = new_trainer(session, parts_of(session.table, session.job), session.out, initial_weights=True)
    return recipe_within(trainer, session.job.max_time / (session.job.folds or 1))


def train_once(session, resume):
    """Train, and measure the best epoch on the test part. Returns the exit code."""
    parts = parts_of(session.table, session.job)
    trained = train(session, parts, session.out / "checkpoints", session.out / "plots", resume)
    if trained is None:
        return 130
    print()
    leak = contamination(parts[2], session.job.weights)
    path = session.out / "checkpoints" / "best.ckp"
    report_test_part(trained, path, session.dataset(parts[2]), session.job, session.out, leak)
    return 0


def cross_validate(session):
    """`--folds`: train once for every fold, and report on all cells as they were predicted out of fold.

    A fold that has its predictions is done; with --resume the others go on where they were.
    """
    job = session.job
    checkpoints = session.out / "checkpoints"
    settings = checkpoints / "folds.json"
    for fold in range(job.folds):
        check_fold(session, fold)
    barrier()
    if rank() == 0:
        forget_other_predictions(job, settings)
        with atomic_path(settings) as temporary:
            stored = {"job": asdict(job), "recipe": asdict(session.recipe), "inherited": session.inherited}
            temporary.write_text(json.dumps(stored, indent=1), encoding="utf-8")
    barrier()
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
    title = f"{job.folds} folds{how_predicted(job)}, {describe_weights(model.metadata)} at the start"
    print()
    description = describe_run(model, checkpoint, job, contamination(predicted, job.weights))
    write_results(predicted, session.dataset(predicted), job.classes, job.split, session.out, title, description)
    return 0


def forget_other_predictions(job, settings):
    """Remove the predictions of finished folds if they were made with other options of the report.

    settings: path of folds.json, beside the folders of the folds.
    """
    if not settings.exists():
        return
    before = json.loads(settings.read_text(encoding="utf-8"))["job"]
    if (before["operating_point"], before["tta"]) != (job.operating_point, job.tta):
        for path in settings.parent.glob("fold_*/predictions.csv"):
            path.unlink()


def check_fold(session, fold):
    """Raise InputError where a fold was begun with other cells or labels."""
    job = session.job
    best = session.out / "checkpoints" / f"fold_{fold}" / "best.ckp"
    if best.exists():
        now = record_split(parts_of(session.table, job, fold), job.split, job.classes)
        other = difference_of_splits(read_checkpoint(best)["split"], now)
        if other:
            raise InputError(f"{best}: {other}; give the same cells and labels, or remove the folder {best.parent}")


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
    return pd.concat([test, predicted[prediction_columns(job.classes)]], axis=1).assign(fold=fold)


def train(session, parts, folder, plots, resume):
    """One training run; returns (best model, its checkpoint), or None when it was asked to stop.

    parts: tables of the training, validation and test part. folder, plots: for checkpoints and plots. resume: path of a
    checkpoint to continue from, or None.
    """
    job = session.job
    trainer = new_trainer(session, parts, folder, initial_weights=not resume)
    if resume:
        trainer.resume(resume)
    print_plan(job, trainer, parts)
    writer = open_tensorboard(plots / "tensorboard", trainer.epoch) if job.tensorboard and rank() == 0 else None
    sources = trainer.train_set.table["source"]
    new_cells = int((sources != session.table["source"].iloc[0]).sum()) or len(sources)
    with stopped_by_signals(trainer):
        finished = trainer.fit(partial(report_epoch, plots=plots, writer=writer))
        if finished:
            barrier()
            finished = trainer.finish(kept_share(session.recipe.keep_initial, new_cells))
    if not finished:
        where = "" if session.out == Path(".") else f" --out {session.out}"
        if trainer.epoch < trainer.recipe.epochs:
            place = f"in epoch {trainer.epoch + 1} after step {trainer.step} of {trainer.batches.steps}"
        else:
            place = "after the last epoch, before the decoder of crack lines was trained"
        print(f"Stopped {place}; go on with: python train.py --resume{where}")
        return None
    return load_model(folder / "best.ckp", session.device)


def new_trainer(session, parts, folder, initial_weights):
    """A Trainer of a session on the parts of its table, its network with initial weights or random ones."""
    job = session.job
    train_part, val_part, _ = parts
    if job.recipe != "classic" and job.split != "row":
        train_part = data.originals(train_part)  # orientations come from the augmentation
    train_set = session.dataset(train_part)
    torch.manual_seed(job.seed)
    model = build_model(job.model, job.classes, job.width, job.image_size, session.recipe.normalise_brightness)
    if initial_weights:
        load_initial_weights(model, job.weights)
        if is_onnx(job.weights):
            restore_norms(model, train_set)
    notes = {
        "job": asdict(job),
        "split": record_split(parts, job.split, job.classes),
        "trained_on": make_record(train_part, val_part, session.inherited),
        "inherited": session.inherited,
    }
    run = Run(folder, session.device, session.precision, job.seed, job.keep_checkpoints, notes)
    return Trainer(model, train_set, session.dataset(val_part), session.recipe, run, session.defects)


# ---------------------------------------------------------------- command


@command
def main(argv=None):
    """Command line of this file; returns the exit code: 0, 2 for bad input, 130 when it was stopped."""
    args = options().parse_args(argv)
    out = Path(args.out)
    if args.evaluate:
        return evaluate_checkpoint(args, out)
    if args.resume is None:
        job, recipe = new_job(args)
        return run_training(job, recipe, out, args.device)
    path, stored = resume_point(out, args.resume)
    job, recipe = resumed_job(args, path, stored)
    return run_training(job, recipe, out, args.device, path, stored.get("inherited"))


if __name__ == "__main__":
    raise SystemExit(main())
