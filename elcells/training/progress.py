"""The course of a run while it trains: a line per epoch, metrics.csv, a plot, and TensorBoard."""

import pandas as pd

from elcells.evaluation.plots import plot_losses
from elcells.files import InputError, atomic_path


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


class Progress:
    """Reports each epoch of a Trainer: call it with the trainer after an epoch.

    plots: folder of losses.png. tensorboard: whether to write plots/tensorboard too; InputError where TensorBoard is
    not installed.
    """

    def __init__(self, plots, epoch=0, tensorboard=False):
        self.plots = plots
        self.writer = open_tensorboard(plots / "tensorboard", epoch) if tensorboard else None

    def __call__(self, trainer):
        if self.writer:
            write_tensorboard(self.writer, trainer)
        print(progress_line(trainer), flush=True)
        with atomic_path(trainer.folder / "metrics.csv") as temporary:
            pd.DataFrame(trainer.history).to_csv(temporary, sep=";", index=False, float_format="%.6g")
        plot_losses(trainer.history, trainer.model.classes, self.plots / "losses.png")


def open_tensorboard(folder, epoch):
    """TensorBoard's writer of a run's course from `epoch` on; InputError where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("TensorBoard is not installed; `pip install tensorboard`") from None
    return SummaryWriter(str(folder), purge_step=epoch + 1)


def write_tensorboard(writer, trainer, examples=16):
    """The newest epoch's figures, and images that the next epoch will train on."""
    figures = dict(trainer.history[-1])
    epoch = figures.pop("epoch")
    for name, value in figures.items():
        if value is not None:
            writer.add_scalar(name, value, epoch)
    if trainer.epoch < trainer.recipe.epochs:
        rows = trainer.batches.order(trainer.epoch)[:examples]
        batch = trainer.batches.batch(rows, trainer.epoch, step=0)
        writer.add_images("examples", batch.augmented_images(trainer.device), epoch)
        writer.add_text("labels of the examples", labels_as_text(batch.labels, trainer.model.classes), epoch)
    writer.flush()


def labels_as_text(labels, classes):
    """Labels (B, C) in words, separated by commas."""
    names = [" and ".join(c for c, label in zip(classes, row) if label) for row in labels]
    return ", ".join(name or "neither" for name in names)
