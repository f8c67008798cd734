"""A network's loss and probabilities on a data set, and its calibration there."""

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from elcells.devices import autocast, channels_last, send
from elcells.distributed import quiet, rank, sum_over_processes, world
from elcells.evaluation.calibration import Calibration

BATCH = 32  # images at once


def evaluate(model, dataset, precision=torch.float32, tta=False):
    """Loss and predictions of a model on a CellDataset, without augmentation, on the model's device.

    tta: predict by the mean over each cell's eight symmetries. Several processes share the work.
    Returns (mean binary cross entropy, labels (N, C) float32, probabilities (N, C) float32), the same in each process.
    """
    logits, loss = logits_and_loss(model, dataset, precision, tta)
    return loss, dataset.labels, model.probabilities(logits, tta).numpy()


def uncalibrated(model, dataset, precision=torch.float32, tta=False):
    """`evaluate`, with the probabilities of a network that is not calibrated."""
    logits, loss = logits_and_loss(model, dataset, precision, tta)
    none = Calibration.none(len(model.classes))
    return loss, dataset.labels, model.probabilities(logits, calibration=none).numpy()


@torch.inference_mode()
def logits_and_loss(model, dataset, precision, tta):
    """Logits (N, C) of a data set, on the CPU, and their mean binary cross entropy (float)."""
    model.eval()
    device = next(model.parameters()).device
    logits = torch.zeros(len(dataset), len(model.classes), device=device)
    rows_here = np.arange(rank(), len(dataset), world())
    for start in tqdm(range(0, len(rows_here), BATCH), "evaluating", unit="batch", leave=False, **quiet()):
        rows = rows_here[start : start + BATCH]
        images, _ = dataset.batch(rows)
        with autocast(device, precision):
            logits[send(torch.from_numpy(rows), device)] = model(channels_last(images.to(device)), tta)
    logits = sum_over_processes(logits).cpu()
    return logits, float(F.binary_cross_entropy_with_logits(logits, torch.from_numpy(dataset.labels)))


def calibrate(model, dataset, lower=0.0):
    """Settle a finished model's calibration, alone and over the symmetries, on a CellDataset, its validation part.

    lower: as in `Calibration.fit`.

    It is measured in float32, as the network will be used: bfloat16 moves probabilities by about 0.005.
    """
    _, labels, probabilities = uncalibrated(model, dataset, tta=True)
    model.calibration_tta = Calibration.fit(labels, probabilities, lower)
    _, labels, probabilities = uncalibrated(model, dataset)
    model.calibration = Calibration.fit(labels, probabilities, lower)


def add_predictions(model, dataset, point="f1", tta=False):
    """The table of a CellDataset with the model's probability (p_...) and threshold (threshold_...) of each class.

    point: the operating point whose thresholds are taken. tta: predict by the mean over each cell's eight symmetries.
    """
    thresholds = model.calibration_for(tta).thresholds(point)
    _, _, probabilities = evaluate(model, dataset.to(next(model.parameters()).device), tta=tta)
    predicted = dataset.table.copy()
    for name, values in zip(model.classes, probabilities.T):
        predicted[f"p_{name}"] = values.round(6)
    for name, threshold in zip(model.classes, thresholds):
        predicted[f"threshold_{name}"] = round(threshold, 6)
    return predicted
