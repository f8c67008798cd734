"""What a network was trained on, in the line that says which network is used."""

import math

from elcells.files import counted

LEAST_CELLS = 500  # with fewer, or a lower validation F1, a network is not to be trusted
LEAST_F1 = 0.7
MEASURED = (  # by README.md and doc/model_card.md
    "On 263 ELPV cells that it never saw this network has an F1 of 0.897 for cracks and 0.962 for inactive regions, on "
    "laboratory cells of other cameras 0.891 and 0.889. On field modules of 33 to 38 pixels a cell it found 41 of 46 "
    "cracks, and people had marked nothing on 1 of the 3 cells that it called inactive."
)
TRAINING = ("trained_on", "epoch", "metrics")  # what checkpoints and ONNX files say about it


def training_of(metadata):
    """(cells, epochs, validation F1) of a network's metadata, None for what it does not say."""
    record = metadata.get("trained_on")
    metrics = metadata.get("metrics")
    epochs = metadata.get("epoch")
    cells = len(record["train"]) if isinstance(record, dict) and isinstance(record.get("train"), list) else None
    f1 = metrics.get("f1_mean") if isinstance(metrics, dict) else None
    if not isinstance(f1, float) or math.isnan(f1):  # a validation part without defects has none
        f1 = None
    return cells, epochs if isinstance(epochs, int) else None, f1


def describe_network(name, metadata):
    """Such as "cells.onnx: efficientnet_lite0, trained on 2,124 cells, 16 epochs, validation F1 0.92".

    name: of the network's file. metadata: of the ONNX file, or a checkpoint's config with the entries of TRAINING.
    """
    cells, epochs, f1 = training_of(metadata)
    parts = [
        str(metadata.get("network", "network not recorded")),
        "cells not recorded" if cells is None else f"trained on {cells:,} cells",
        "epochs not recorded" if epochs is None else counted(epochs, "epoch"),
        f"validation F1 {'not recorded' if f1 is None else format(f1, '.2f')}",
    ]
    if metadata.get("tta"):
        parts.append("the mean over eight symmetries")
    return f"{name}: {', '.join(parts)}"


def quality_of(info, shipped_sha256):
    """How good a network is, sentences for a report. info: of a Record. shipped_sha256: of the shipped network."""
    if info["sha256"] != shipped_sha256:
        return ["How good this network is on cells of other modules and cameras was not measured by this program."]
    sentences = [MEASURED, "Its labels were made by a vision-language model, not by PV experts."]
    if info["operating_point"] != "f1":
        sentences.insert(1, "These figures are for the operating point f1, and this report has another one.")
    return sentences


def warning_about(metadata, shipped):
    """A line about a network of few cells or a low F1, with the way to the shipped one (a path); "" for a good one."""
    cells, _, f1 = training_of(metadata)
    faults = []
    if cells is not None and cells < LEAST_CELLS:
        faults.append(f"was trained on fewer than {LEAST_CELLS} cells")
    if f1 is not None and f1 < LEAST_F1:
        faults.append(f"has a validation F1 below {LEAST_F1}")
    if not faults:
        return ""
    return f"WARNING: this network {' and '.join(faults)}; the network that comes along is --model {shipped}"
