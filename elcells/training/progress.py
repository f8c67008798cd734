"""What a run prints and writes while it trains: its plan, a line per epoch, metrics.csv, a plot, and TensorBoard."""

import pandas as pd
import torch

from elcells.data.leaks import leak_lines
from elcells.distributed import world
from elcells.evaluation.plots import plot_losses
from elcells.files import InputError, atomic_path
from elcells.training.weights import describe_weights

EXAMPLES = 16  # images for TensorBoard


def print_plan(job, trainer, parts):
    """Say what is about to be trained, on what, and where."""
    train_table = trainer.train_set.table
    recipe = trainer.recipe
    parameters = sum(p.numel() for p in trainer.model.network.parameters())
    device = f"{world()} x {trainer.device.type}" if world() > 1 else trainer.device.type
    precision = str(trainer.run.precision).removeprefix("torch.")
    lines = f", then {recipe.line_steps} steps of the decoder of crack lines" if recipe.line_steps else ""
    lower = f", thresholds {recipe.lower_thresholds:g} logits lower" if recipe.lower_thresholds else ""
    print(
        f"cells     {train_table['cell'].nunique()} to train ({len(train_table)} images), "
        f"{parts[1]['cell'].nunique()} to validate, {parts[2]['cell'].nunique()} to test, split by {job.split}\n"
        f"network   {job.model}, {parameters:,} parameters, {job.image_size}x{job.image_size} pixels, "
        f"{describe_weights(trainer.model.metadata)}\n"
        f"training  {job.recipe} recipe, {recipe.epochs} epochs, batch {recipe.batch_size}, {recipe.optimizer} "
        f"{recipe.lr:g}{lines}{lower}, on {device} in {precision}, {torch.get_num_threads()} threads"
    )
    for line in leak_lines(parts, job.weights, job.split):
        print(line)
    print("\n" + progress_header(trainer.model.classes))
    if trainer.history:
        print(progress_line(trainer))


def progress_header(classes):
    """Header of the lines of progress_line."""
    names = "  ".join(f"{'F1 ' + c:>{max(len(c) + 3, 5)}}" for c in (*classes, "mean"))
    return f"epoch  train loss  val loss  {names}  cells/s      left"


def progress_line(trainer):
    """A Trainer's newest epoch as one line aligned under progress_header."""
    row = trainer.history[-1]
    names = (*trainer.model.classes, "mean")
    scores = "  ".join(f"{row[f'f1_{c}']:{max(len(c) + 3, 5)}.3f}" for c in names)
    left = round(trainer.seconds_left())
    time_left = f"{left // 3600:2}:{left // 60 % 60:02}:{left % 60:02}"
    return (
        f"{row['epoch']:5}  {row['train_loss']:10.4f}  {row['val_loss']:8.4f}  {scores}  "
        f"{row['cells_per_second']:7.1f}  {time_left}"
    )


def report_epoch(trainer, plots, writer=None):
    """Print the line of a Trainer's newest epoch, and write metrics.csv and losses.png.

    plots: folder of the latter. writer: of TensorBoard (`open_tensorboard`), or None.
    """
    print(progress_line(trainer), flush=True)
    with atomic_path(trainer.folder / "metrics.csv") as temporary:
        pd.DataFrame(trainer.history).to_csv(temporary, sep=";", index=False, float_format="%.6g")
    plot_losses(trainer.history, trainer.model.classes, plots / "losses.png")
    if writer:
        write_tensorboard(trainer, writer)


def open_tensorboard(folder, epoch):
    """TensorBoard's writer of a run's course from `epoch` on; InputError where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("TensorBoard is not installed; `pip install tensorboard`") from None
    return SummaryWriter(str(folder), purge_step=epoch + 1)


def write_tensorboard(trainer, writer):
    """The newest epoch's figures, and images that the next epoch will train on."""
    figures = trainer.history[-1]
    for name, value in figures.items():
        if value is not None:
            writer.add_scalar(name, value, figures["epoch"])
    if trainer.epoch < trainer.recipe.epochs:
        rows = trainer.batches.order(trainer.epoch)[:EXAMPLES]
        batch = trainer.batches.of_step(rows, trainer.epoch, step=0)
        writer.add_images("examples", batch.augmented_images(trainer.device), figures["epoch"])
    writer.flush()
