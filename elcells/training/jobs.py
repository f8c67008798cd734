"""What a training run is asked for, besides its recipe."""

import argparse
import re
from dataclasses import dataclass, field

from elcells.data.tables import CLASSES
from elcells.settings import setting
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
    """Which network is trained on which cells; with the Recipe, all that a resumed run takes over.

    data: paths of tables. images: folder of their file names, or None. classes: label columns.
    """

    data: list = field(default_factory=lambda: ["data.csv"])
    images: str | None = None
    classes: list = field(default_factory=lambda: list(CLASSES), metadata={"fixed": True})
    weight: tuple = setting(
        (),
        "draw that source's cells N times as often as others (1; adapt: together as often as the first table's)",
        kind=source_weight,
        group="data",
        fixed=False,
        metavar="SOURCE=N",
        nargs="+",
    )
    limit: int = setting(None, "take only N cells, a stratified handful", kind=int, group="data")
    split: str = setting(
        "cell", "what stays on one side of a split; row leaks (cell)", group="data", choices=("cell", "module", "row")
    )
    folds: int = setting(
        None, "cross-validation: every cell is tested once, in oof.csv", kind=int, group="data", metavar="K", least=2
    )
    test_size: float = setting(0.1, "share of the test part (0.1)", group="data", metavar="SHARE")
    val_size: float = setting(0.1, "share of the rest for the validation part (0.1)", group="data", metavar="SHARE")

    model: str = setting(
        None,
        "network (that of --weights; else efficientnet_lite0, resnet34 with --recipe classic)",
        kind=str,
        group="network",
        metavar="NAME",
    )
    width: int = setting(None, "width of our own network (32)", kind=int, group="network", metavar="MAPS", least=16)
    weights: str = setting(
        None,
        "initial weights: imagenet, none or a file (imagenet; none for resnet)",
        kind=str,
        group="network",
        fixed=False,
        metavar="W",
    )
    image_size: int = setting(
        None,
        "pixels of the square input (those of --weights; else 300)",
        kind=int,
        group="network",
        metavar="PIXELS",
        least=32,
    )

    recipe: str = setting(
        None,
        "finetune: pretrained networks, adapt: to your own cells, fast: random weights, classic: the published one "
        "(finetune; fast for random weights)",
        group="recipe",
        choices=tuple(RECIPES),
    )
    max_time: float = setting(
        None, "as many epochs as fit into 90s, 15m or 1.5h", kind=duration, group="run", fixed=False, metavar="TIME"
    )
    seed: int = setting(0, "of weights, order and augmentation (0)", group="run")
    precision: str = setting(
        "auto", "of training; auto: the fast one (auto)", group="run", fixed=False, choices=("auto", "fp32", "bf16")
    )
    keep_checkpoints: int = setting(
        None, "newest epochs' snapshots that stay (all; --folds: 1)", kind=int, group="run", fixed=False, least=0
    )
    operating_point: str = setting(
        "f1",
        "thresholds of the report: f1, or recall (misses 5 %% of each defect) (f1)",
        group="report",
        fixed=False,
        metavar="NAME",
    )
    tta: bool = setting(
        False, "predict the test part by the mean over a cell's eight symmetries", group="report", fixed=False
    )
