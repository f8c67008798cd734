"""What a training run is asked for, besides its recipe."""

import argparse
import re
from dataclasses import dataclass

from elcells.data.tables import CLASSES
from elcells.settings import check, setting
from elcells.training.recipes import RECIPES


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
    return name, int(number)


@dataclass(frozen=True)
class Job:
    """Which network is trained on which cells; with the Recipe, all that a resumed run takes over."""

    data: tuple = setting(
        ("data.csv",),
        "tables of images and labels, each a source of its own",
        group="data",
        fixed=False,
        parse=str,
        metavar="CSV",
        nargs="+",
    )
    images: str | None = setting(
        None, "folder that file names are relative to (the table's folder)", group="data", fixed=False, metavar="DIR"
    )
    classes: tuple = setting(CLASSES, "label columns to learn", group="data", parse=str, metavar="NAME", nargs="+")
    weight: tuple = setting(
        (),
        "sampling weight of a source (1; adapt: all later sources together weigh as much as the first)",
        group="data",
        parse=source_weight,
        metavar="SOURCE=N",
        nargs="+",
    )
    limit: int | None = setting(None, "take only N cells, a stratified sample", group="data", least=1)
    split: str = setting(
        "cell", "what stays on one side of a split; row leaks", group="data", choices=("cell", "module", "row")
    )
    folds: int | None = setting(
        None, "cross-validation: every cell is tested once, in oof.csv", group="data", metavar="K", least=2
    )
    test_size: float = setting(0.1, "share of the test part", group="data", metavar="SHARE", above=0, below=1)
    val_size: float = setting(
        0.1, "share of the rest for the validation part", group="data", metavar="SHARE", above=0, below=1
    )

    model: str | None = setting(
        None, "network (that of --weights; else efficientnet_lite0, or resnet34 with --recipe classic)", group="network"
    )
    width: int | None = setting(None, "width of our own network (32)", group="network", metavar="MAPS", least=16)
    weights: str | None = setting(
        None, "initial weights: imagenet, none or a file (imagenet; none for resnet)", group="network", metavar="W"
    )
    image_size: int | None = setting(
        None, "pixels of the square input (those of --weights; else 300)", group="network", metavar="PIXELS", least=32
    )

    recipe: str | None = setting(
        None,
        "finetune: pretrained networks, adapt: to your own cells, fast: random weights, classic: the published one "
        "(finetune; fast for random weights)",
        group="recipe",
        choices=tuple(RECIPES),
    )
    max_time: float | None = setting(
        None, "as many epochs as fit into 90s, 15m or 1.5h", group="run", parse=duration, metavar="TIME"
    )
    seed: int = setting(0, "of weights, order and augmentation", group="run", least=0)
    precision: str = setting(
        "auto",
        "precision of training; auto: bf16 where it is faster",
        group="run",
        fixed=False,
        choices=("auto", "fp32", "bf16"),
    )
    tensorboard: bool = setting(False, "also write plots/tensorboard", group="run", fixed=False)
    keep_checkpoints: int | None = setting(
        None, "keep the N newest snapshots (all; 1 with --folds)", group="run", fixed=False, least=0
    )

    operating_point: str = setting(
        "f1",
        "thresholds of the report: f1, or recall (never higher, misses at most 5 % of the validation part's defects)",
        group="report",
        fixed=False,
        choices=("f1", "recall"),
    )
    tta: bool = setting(
        False, "predict the test part by the mean over a cell's eight symmetries", group="report", fixed=False
    )

    def __post_init__(self):
        check(self)
