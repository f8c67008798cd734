"""What a network says of a data set: loss, probabilities, and the calibration that follows from them."""

import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional as F
from tqdm import tqdm

from elcells.devices import autocast, channels_last, send
from elcells.distributed import quiet, rank, world
from elcells.evaluation.metrics import calibration


@torch.inference_mode()
def evaluate(model, dataset, precision=torch.float32, batch_size=32):
    """Loss and predictions of a model on a CellDataset, without augmentation, on the device that the model is on.

    batch_size: images at once. Several processes share the work.
    Returns (mean binary cross entropy, labels (N, C) float32, probabilities (N, C) float32), the same in each.
    """
    model.eval()
    device = next(model.parameters()).device
    logits = torch.zeros(len(dataset), len(model.classes), device=device)
    mine = np.arange(rank(), len(dataset), world())
    for start in tqdm(range(0, len(mine), batch_size), "evaluating", unit="batch", leave=False, **quiet()):
        rows = mine[start : start + batch_size]
        images = channels_last(dataset.batch(rows)[0].to(device))
        with autocast(device, precision):
            logits[send(torch.from_numpy(rows), device)] = model(images)
    if world() > 1:
        dist.all_reduce(logits)
    logits, labels = logits.cpu(), torch.from_numpy(dataset.labels)
    loss = F.binary_cross_entropy_with_logits(logits, labels)
    return float(loss), dataset.labels, model.probabilities(logits).numpy()


def calibrate(model, dataset):
    """Settle a finished model's temperatures, thresholds and operating points on a CellDataset, its validation part.

    Changes model.config: `calibration` of the model as it is, and of the mean over the symmetries as "with_tta". It is
    measured in float32, as the network will be used: bfloat16 moves probabilities by about 0.005.
    """
    for tta in (True, False):
        model.config.update(tta=tta, temperatures=[1.0] * len(model.classes))
        _, labels, probabilities = evaluate(model, dataset)
        found = calibration(labels, probabilities)
        model.config.update({"with_tta": found} if tta else found)


def predict(model, rows, dataset, operating_point="f1", tta=False):
    """Rows of a table with the model's probability (p_...) and threshold (threshold_...) of each class added.

    dataset: CellDataset of these rows. operating_point: whose thresholds. tta: mean over a cell's eight symmetries.
    """
    if tta:
        model.average_symmetries()
    model.set_operating_point(operating_point)
    _, _, probabilities = evaluate(model, dataset.to(next(model.parameters()).device))
    predicted = rows.copy()
    for i, name in enumerate(model.classes):
        predicted[f"p_{name}"] = probabilities[:, i].round(6)
    for name, threshold in zip(model.classes, model.config["thresholds"]):
        predicted[f"threshold_{name}"] = round(threshold, 6)
    return predicted
