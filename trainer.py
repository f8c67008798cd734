"""One training run: epochs, steps, evaluation, checkpoints, and going on after an interruption.

>>> trainer = Trainer(model, train_set, val_set, RECIPES["fast"], Run("checkpoints"))
>>> trainer.fit()
>>> loss, labels, probabilities = evaluate(model, test_set)
"""

import os
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from elcells.data.recorded_split import difference_of_splits
from elcells.devices import autocast, channels_last, send
from elcells.distributed import barrier, quiet, rank, share_buffers, sum_over_processes, synchronise_norms, world
from elcells.evaluation.calibration import Calibration
from elcells.evaluation.evaluate import calibrate, evaluate, uncalibrated
from elcells.evaluation.metrics import f1_scores, metrics_table
from elcells.files import InputError, atomic_path, reason
from elcells.training.auxiliary import LINE_RATE, WithAuxiliaryHeads, line_loss, region_loss
from elcells.training.batches import Batches
from elcells.training.bfloat16 import fast_layers, is_slow
from elcells.training.checkpoints import network_state, read_checkpoint
from elcells.training.graphs import GraphedSteps, set_learning_rate
from elcells.training.line_training import LineTraining
from elcells.training.recipes import MOMENTUM, learning_rate
from elcells.training.streams import Stream, stream_seed
from elcells.training.synthetic import SyntheticDefects
from elcells.training.weights import mixed
from model import first_layers, load_model, read_config, save_checkpoint

SAVE_SECONDS = 300  # a long epoch leaves last.ckp this often
STOP_STEPS = 16  # several processes agree this often on whether one was asked to stop


@dataclass(frozen=True)
class Run:
    """Where and how a run is computed; the recipe says what.

    folder: gets the checkpoints. device: torch.device or its name. precision: torch.float32 or torch.bfloat16
    (autocast). seed: of order, augmentation, drawn defects and dropout. keep_checkpoints: how many of the newest
    epochs' snapshots stay (None: all). notes: dict that every checkpoint gets.
    """

    folder: Path
    device: torch.device | str = "cpu"
    precision: torch.dtype = torch.float32
    seed: int = 0
    keep_checkpoints: int | None = None
    notes: dict = field(default_factory=dict)


class Trainer:
    """Trains a CellClassifier with binary cross entropy, and can stop and go on at any step.

    model: CellClassifier, which normalises the brightness if the recipe does. train, val: CellDataset. recipe: Recipe.
    run: Run. defects: SyntheticDefects, if they are drawn already.

    Every step follows from (seed, epoch, step) alone, so a resumed run repeats nothing and ends where an uninterrupted
    one does. Under torchrun each process works on its share of every batch; process 0 writes the files (last.ckp only
    at the end of epochs and on a stop).
    """

    def __init__(self, model, train, val, recipe, run, defects=None):
        self.model = model
        self.run = run
        self.device = torch.device(run.device)
        self.folder = Path(run.folder)
        self.train_set = train.to(self.device)
        self.val_set = val.to(self.device)
        if recipe.synthetic and defects is None:
            defects = SyntheticDefects(model.classes, model.metadata.image_size, run.seed, self.device)
        self.batches = Batches(self.train_set, recipe, defects, run.seed, self.device)
        self.initial = {}
        if recipe.keep_initial:
            self.initial = {k: v.detach().cpu().clone() for k, v in model.network.state_dict().items()}

        has_heads = recipe.aux_loss > 0 and recipe.synthetic > 0
        self.trains_lines = has_heads and recipe.line_steps > 0
        if self.trains_lines or not recipe.keep_initial:
            model.lines = None  # that of the initial weights would not fit what the network becomes
        if model.lines:
            model.lines.requires_grad_(False)
        self.trained = WithAuxiliaryHeads(model, has_heads).to(self.device, memory_format=torch.channels_last)
        self.trained = synchronise_norms(self.trained)
        self.frozen = nn.ModuleList(first_layers(model, recipe.freeze_stages)).requires_grad_(False)
        self.parallel = DistributedDataParallel(self.trained) if world() > 1 else self.trained

        self.learning = [p for p in self.trained.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.trained, recipe)
        self.run_step = self.seeded_step
        if self.device.type == "cuda" and world() == 1:
            self.run_step = GraphedSteps(self.train_step, self.trained, self.optimizer, self.device)

        self.epoch = 0  # epochs completed
        self.step = 0  # steps done in the epoch under way
        self.seconds = 0.0  # spent in the epoch under way
        self.loss_sum = torch.zeros((), device=self.device)  # of the cells in the epoch under way
        self.history = []  # one dict per epoch
        self.stop = False  # set it (from a signal handler) to end after the step under way

    @property
    def recipe(self):
        """The Recipe of the run."""
        return self.batches.recipe

    # ---------------------------------------------------------------- epochs and steps

    def fit(self, on_epoch=None):
        """Train until all epochs are done or `stop` is set; on_epoch(self) is called after each epoch (in process 0).

        Writes checkpoint_NNN.ckp, best.ckp (`best_epoch`) and last.ckp. Returns True when all epochs are done.
        Raises InputError when the loss is no longer a number.
        """
        while self.epoch < self.recipe.epochs:
            with self.fast_layers():
                self.train_epoch()
                self.loss_sum = sum_over_processes(self.loss_sum)
                if self.step < self.batches.steps:
                    if rank() == 0:
                        self.save(self.folder / "last.ckp")
                    return False
                share_buffers(self.trained)
                self.history.append(self.measure_epoch())
            self.epoch += 1
            self.step = 0
            self.seconds = 0.0
            self.loss_sum.zero_()
            if rank() == 0:
                self.save_epoch()
                if on_epoch:
                    on_epoch(self)
            if self.epoch < self.recipe.epochs and self.asked_to_stop():
                return False
        return True

    def train_epoch(self):
        """The steps of the epoch under way that are still to be done."""
        self.training_mode()
        all_rows = self.batches.of_epoch(self.epoch)
        started = time.monotonic()
        saved = started
        seconds_before = self.seconds
        with tqdm(
            total=self.batches.epoch_cells,
            initial=sum(len(rows) for rows in all_rows[: self.step]),
            desc=f"epoch {self.epoch + 1}/{self.recipe.epochs}",
            unit="cell",
            leave=False,
            mininterval=1,
            **quiet(),
        ) as bar:
            while self.step < self.batches.steps and not self.asked_to_stop():
                rows = all_rows[self.step]
                batch = self.batches.of_step(rows, self.epoch, self.step)
                loss = self.next_step(batch)
                self.seconds = seconds_before + time.monotonic() - started
                if bar.update(len(rows)):
                    bar.set_postfix(loss=f"{loss / len(batch):.3f}", refresh=False)
                if time.monotonic() - saved > SAVE_SECONDS and world() == 1:
                    self.save(self.folder / "last.ckp")
                    saved = time.monotonic()
        self.check_finite()

    def next_step(self, batch):
        """Take the step that is next with a Batch; returns the sum of its cells' losses (0-d tensor)."""
        set_learning_rate(self.optimizer, learning_rate(self.recipe, self.epoch, self.step, self.batches.steps))
        dropout_seed = stream_seed(self.run.seed, Stream.DROPOUT, self.epoch, self.step, rank())
        loss = self.run_step(batch, dropout_seed)
        self.loss_sum += loss
        self.step += 1
        return loss

    def seeded_step(self, batch, seed):
        """`train_step` with a seed for dropout."""
        torch.manual_seed(seed)
        return self.train_step(batch)

    def train_step(self, batch):
        """One optimiser step with a Batch; returns the sum of its cells' losses (0-d tensor)."""
        images = batch.augmented_images(self.device)
        labels = send(batch.labels, self.device)
        with autocast(self.device, self.run.precision):
            logits, regions, lines = self.parallel(channels_last(images))
        loss = F.binary_cross_entropy_with_logits(logits, labels)
        total = loss
        if regions is not None:
            masks = batch.augmented_masks(self.device)
            aux_loss = region_loss(regions, masks, send(batch.aux_weight, self.device))
            lines_known = send(batch.lines_known, self.device)[:, None, None, None]
            aux_loss = aux_loss + line_loss(lines, batch.augmented_lines(self.device), lines_known)
            total = loss + self.recipe.aux_loss * aux_loss
        self.optimizer.zero_grad(set_to_none=True)
        (total * batch.share).backward()
        self.optimizer.step()
        return loss.detach() * len(images)

    def fast_layers(self):
        """The context in which steps are taken: in bfloat16 on a CPU with faster layers."""
        return fast_layers(self.trained, active=is_slow(self.device, self.run.precision))

    def training_mode(self):
        """Set the network to training, except for its frozen stages."""
        self.parallel.train()
        self.frozen.eval()

    def asked_to_stop(self):
        """Whether to stop now; several processes agree on it every STOP_STEPS steps."""
        if world() == 1:
            return self.stop
        if self.step % STOP_STEPS:
            return False
        return bool(sum_over_processes(torch.tensor(float(self.stop), device=self.device)))

    def check_finite(self):
        """Raise InputError where the loss or a weight is no longer a number (a ReLU can hide it from the loss)."""
        state = self.model.network.state_dict()
        is_finite = torch.stack([v.isfinite().all() for v in state.values()]).cpu().numpy()
        if not self.loss_sum.isfinite():
            culprit = f"the loss became {self.loss_sum.item()}"
        elif not is_finite.all():
            culprit = f"{list(state)[is_finite.argmin()]} holds numbers that are not finite"
        else:
            return
        raise InputError(
            f"{culprit} in epoch {self.epoch + 1}; train with a lower learning rate (the checkpoints in {self.folder} "
            "are from before)"
        )

    # ---------------------------------------------------------------- evaluation

    def evaluate(self, dataset):
        """`evaluate` of this run's model in this run's precision."""
        return evaluate(self.model, dataset, self.run.precision)

    def measure_epoch(self):
        """Evaluate and calibrate on the validation part; returns the epoch's figures, a dict."""
        classes = self.model.classes
        val_loss, labels, probabilities = uncalibrated(self.model, self.val_set, self.run.precision)
        self.model.calibration = Calibration.fit(labels, probabilities, self.recipe.lower_thresholds)
        f1 = f1_scores(labels, probabilities)
        return {
            "epoch": self.epoch + 1,
            "train_loss": float(self.loss_sum) / self.batches.epoch_cells,
            "val_loss": val_loss,
            **{f"f1_{name}": float(value) for name, value in zip(classes, f1)},
            "f1_mean": float(f1.mean()),
            "average_precision": metrics_table(labels, probabilities, 0.5, classes)["mean"]["average_precision"],
            "lr": float(self.optimizer.param_groups[0]["lr"]),
            "cells_per_second": self.batches.epoch_cells / max(self.seconds, 1e-9),
            "seconds": self.seconds,
        }

    def best_epoch(self):
        """Index into history of the best epoch so far.

        Of a cosine schedule it is the newest, which had the lowest rate: a few hundred validation cells can't rank its
        last epochs. Else it is the one of the highest mean F1 at 0.5 on the validation part, then of the lowest loss.
        """
        if self.recipe.schedule == "cosine":
            return len(self.history) - 1
        return max(range(len(self.history)), key=lambda i: (self.history[i]["f1_mean"], -self.history[i]["val_loss"]))

    def seconds_left(self):
        """Estimate, from the newest epoch's time, of what the epochs to come will take."""
        return self.history[-1]["seconds"] * (self.recipe.epochs - self.epoch)

    def finish(self, keep_initial=0.0):
        """Finish best.ckp: mix in this share of the initial weights, calibrate it on the validation part, and train the
        decoder of crack lines on. Returns whether that is done: not if `stop` was set.

        A network that is mixed with the one it began as forgets less of what that one could do (Wortsman et al. 2022,
        "Robust fine-tuning of zero-shot models").
        """
        path = self.folder / "best.ckp"
        model, checkpoint = load_model(path, self.device)
        if keep_initial and not checkpoint.get("mixed"):
            model.network.load_state_dict(mixed(model.network.state_dict(), self.initial, keep_initial))
        calibrate(model, self.val_set, self.recipe.lower_thresholds)
        if self.trains_lines and not model.lines:
            decoder = self.trained.heads["lines"]
            training = LineTraining(model, decoder, self.train_set, self.recipe, self.batches.defects, self.run)
            model.lines = training.fit(self.asked_to_stop)
            if model.lines is None:
                return False
        barrier()
        if rank() == 0:
            notes = {k: v for k, v in checkpoint.items() if k not in ("model", "lines", "config", "versions")}
            save_checkpoint(path, model, **notes | {"mixed": keep_initial > 0})
        barrier()
        return True

    # ---------------------------------------------------------------- checkpoints

    def save(self, path):
        """Write a checkpoint with all that it takes to `resume` exactly here (only process 0 should)."""
        optimizer = self.optimizer.state_dict()
        for group in optimizer["param_groups"]:
            group["lr"] = float(group["lr"])
        self.save_snapshot(
            path,
            aux_heads=self.trained.heads.state_dict() if self.trained.heads else {},
            optimizer=optimizer,
            step=self.step,
            seed=self.run.seed,
            loss_sum=self.loss_sum.cpu(),
            seconds=self.seconds,
            rows=len(self.train_set),
            initial=self.initial,
        )

    def save_snapshot(self, path, **place):
        """Write a checkpoint with what it takes to use the network (only process 0 should)."""
        self.check_finite()
        metrics = self.history[-1] if self.history else {}
        progress = {"epoch": self.epoch, "history": self.history, "metrics": metrics}
        save_checkpoint(path, self.model, **self.run.notes, recipe=asdict(self.recipe), **progress, **place)

    def save_epoch(self):
        """Write last.ckp and the snapshot of the epoch just completed, and best.ckp if it is the best one."""
        self.save(self.folder / "last.ckp")
        snapshot = self.folder / f"checkpoint_{self.epoch:03}.ckp"
        best = self.folder / "best.ckp"
        self.save_snapshot(snapshot)
        # There is none where the run went on in another folder, or somebody removed it.
        if self.best_epoch() == self.epoch - 1 or not best.exists():
            with atomic_path(best) as temporary:
                try:
                    os.link(snapshot, temporary)
                except OSError:  # file systems without hard links
                    shutil.copyfile(snapshot, temporary)
        if self.run.keep_checkpoints is not None:
            snapshots = sorted(self.folder.glob("checkpoint_*.ckp"))
            outdated = max(0, len(snapshots) - self.run.keep_checkpoints)
            for path in snapshots[:outdated]:
                path.unlink(missing_ok=True)

    def resume(self, path):
        """Take over weights, optimiser and place in the run from a checkpoint of `save`."""
        checkpoint = read_checkpoint(path)
        if "optimizer" not in checkpoint:
            raise InputError(f"{path}: can't be resumed, it is the snapshot of an epoch; give the last.ckp beside it")
        try:
            other = difference_of_splits(checkpoint.get("split"), self.run.notes.get("split"))
            if other:
                raise InputError(f"{path}: {other}; give the cells and labels that it was training on, in any order")
            if checkpoint["rows"] != len(self.train_set) or checkpoint["seed"] != self.run.seed:
                raise InputError(
                    f"{path}: was training on {checkpoint['rows']} images with seed {checkpoint['seed']}, now there "
                    f"are {len(self.train_set)} with seed {self.run.seed}; give the same table and options"
                )
            self.model.network.load_state_dict(network_state(checkpoint))
            if checkpoint["lines"]:
                self.model.add_lines(checkpoint["lines"])
                self.model.lines.requires_grad_(False).to(self.device)
            if self.trained.heads:
                self.trained.heads.load_state_dict(checkpoint["aux_heads"])
            self.load_optimizer(checkpoint["optimizer"])
            self.model.metadata, self.model.calibration, _ = read_config(checkpoint["config"])
            self.initial = checkpoint["initial"]
            self.epoch = checkpoint["epoch"]
            self.step = checkpoint["step"]
            self.seconds = checkpoint["seconds"]
            self.history = checkpoint["history"]
            loss_sum = checkpoint["loss_sum"].to(self.device)
            self.loss_sum = loss_sum if rank() == 0 else torch.zeros_like(loss_sum)
        except InputError:
            raise
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: can't be resumed ({reason(error)}); give a last.ckp of the same network"
            ) from None

    def load_optimizer(self, state):
        """Take over an optimiser's state dict; RuntimeError where it is of a network of other shapes."""
        self.optimizer.load_state_dict(state)
        for parameter in self.learning:
            for value in self.optimizer.state[parameter].values():
                if value.ndim and value.shape != parameter.shape:
                    raise RuntimeError("its optimiser is of a network of other shapes")
        if isinstance(self.run_step, GraphedSteps):
            self.run_step.move_learning_rate()


def make_optimizer(trained, recipe):
    """The recipe's optimiser of WithAuxiliaryHeads; the decoder of lines learns LINE_RATE times as fast."""
    settings = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "fused": True}
    learning = [(name, p) for name, p in trained.named_parameters() if p.requires_grad]
    parameters = [{"params": [p for name, p in learning if not name.startswith("heads.lines.")], "rate": 1}]
    if trained.heads:
        parameters.append({"params": list(trained.heads["lines"].parameters()), "rate": LINE_RATE})
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=MOMENTUM, **settings)
    return torch.optim.AdamW(parameters, **settings)
