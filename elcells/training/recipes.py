"""The recipes of training, and the course of the learning rate."""

import dataclasses
import math
from dataclasses import dataclass, replace

from elcells.settings import check, option_name, setting, shown

MOMENTUM = 0.9  # of SGD
WARM_UP = 0.15  # share of a run in which a cosine schedule's rate rises
TENTHS = (10, 20, 30, 40)  # epochs at which the rate of the schedule "steps" falls to a tenth
HALVES = (60, 80, 100, 130)  # epochs at which it falls to a half
FEW_CELLS = 75  # with fewer cells of one's own, more than `keep_initial` of the initial weights is kept


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; the defaults are the published recipe.

    doc/recipes.md has what each part is worth. Raises InputError for a value out of its range.
    """

    epochs: int = setting(3, "passes over the training part", least=1)
    batch_size: int = setting(16, "cells per step", least=2)
    optimizer: str = setting(
        "sgd", f"sgd (momentum {MOMENTUM}) or adamw (Loshchilov and Hutter 2019)", choices=("sgd", "adamw")
    )
    lr: float = setting(0.01, "highest learning rate", above=0, metavar="RATE")
    weight_decay: float = setting(1e-4, "weight decay", least=0, metavar="D")
    schedule: str = setting(
        "steps",
        f"course of the learning rate: steps (x0.1 at epochs {shown(TENTHS)}, x0.5 at {shown(HALVES)}) or cosine "
        f"(linear warm-up over {WARM_UP:.0%} of the run, then half a cosine down to 0)",
        choices=("steps", "cosine"),
    )
    dihedral: bool = setting(False, "rotate by 90 degrees too, beside flips, 3 degrees, shifts and crops of 2 %")
    scale: float = setting(0.0, "show cells larger or smaller by up to this share", least=0, below=1, metavar="SHARE")
    light: float = setting(
        0.0, "uneven light for half of the cells: slopes of up to this share", least=0, below=1, metavar="SHARE"
    )
    oversample: int = setting(1, "draw cells with a label N times as often as others", least=1)
    synthetic: float = setting(
        0.0, "share of the epochs with many drawn defects; 0: none are drawn", least=0, below=1, metavar="SHARE"
    )
    aux_loss: float = setting(
        0.0, "weight of the auxiliary heads' losses, which need drawn defects", least=0, metavar="WEIGHT"
    )
    line_steps: int = setting(
        0,
        "steps in which the decoder of crack lines is trained on; 0: none is, and adapt keeps that of --weights",
        least=0,
    )
    freeze_stages: int = setting(0, "freeze the first N of the network's four stages", least=0, most=3)
    normalise_brightness: bool = setting(False, "scale cells to the same brightness first, after training too")
    noise_std: float = setting(0.0, "highest noise added to half of the cells, of 255", least=0, metavar="LEVELS")
    low_resolution: float = setting(
        0.0,
        "share of the cells that are shown with 88 to 144 pixels and with the gap around",
        least=0,
        below=1,
        metavar="SHARE",
    )
    handling: bool = setting(False, "turn by up to 6 degrees instead of 3, half of the cells with black around")
    lower_thresholds: float = setting(
        0.0,
        "logits by which thresholds lie below the best ones for the validation part, for cells of other cameras",
        least=0,
        most=5,
        metavar="LOGITS",
    )
    epoch_cells: int = setting(0, "cells per epoch; 0: as many as there are", least=0)
    keep_initial: float = setting(
        0.0, "share of the initial weights in the finished network", least=0, below=1, metavar="SHARE"
    )

    def __post_init__(self):
        check(self)


CLASSIC = Recipe()
FAST = Recipe(
    epochs=16,
    batch_size=32,
    optimizer="adamw",
    lr=0.0014,
    weight_decay=0.05,
    schedule="cosine",
    dihedral=True,
    scale=0.1,
    light=0.2,
    oversample=2,
    synthetic=0.75,
    aux_loss=1.0,
    line_steps=1500,
    normalise_brightness=True,
    noise_std=15.0,
    low_resolution=0.25,
    handling=True,
    lower_thresholds=0.5,
)
FINETUNE = replace(FAST, lr=0.0006, freeze_stages=2)
ADAPT = replace(
    FINETUNE,
    epochs=6,
    lr=0.0005,
    synthetic=0.0,
    line_steps=0,
    low_resolution=0.0,
    lower_thresholds=0.0,
    epoch_cells=512,
    keep_initial=0.5,
)
RECIPES = {"fast": FAST, "finetune": FINETUNE, "adapt": ADAPT, "classic": CLASSIC}


def values_of_recipes(field):
    """A field's value in each recipe, the commonest first: "16; adapt 6; classic 3"."""
    values = {name: getattr(recipe, field.name) for name, recipe in RECIPES.items()}
    usual = max(values.values(), key=list(values.values()).count)
    others = [f"{name} {shown(value)}" for name, value in values.items() if value != usual]
    return "; ".join([shown(usual), *others])


def recipe_table():
    """All settings of all recipes as a table in Markdown (doc/recipes.md)."""
    lines = [f"| option | | {' | '.join(f'`{name}`' for name in RECIPES)} |"]
    lines.append("| --- | --- |" + " ---: |" * len(RECIPES))
    for field in dataclasses.fields(Recipe):
        values = " | ".join(shown(getattr(recipe, field.name)) for recipe in RECIPES.values())
        lines.append(f"| `{option_name(field)}` | {field.metadata['text']} | {values} |")
    return "\n".join(lines)


def step_decay(epoch):
    """Factor of the learning rate: x0.1 at each of TENTHS and x0.5 at each of HALVES."""
    return 0.1 ** sum(epoch >= e for e in TENTHS) * 0.5 ** sum(epoch >= e for e in HALVES)


def warmup_cosine(progress):
    """Factor of the learning rate at `progress` (0..1) of a run: linear warm-up, then half a cosine down to 0.

    Goyal et al. 2017 for the warm-up, Loshchilov and Hutter 2017 for the cosine.
    """
    if progress < WARM_UP:
        return progress / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def learning_rate(recipe, epoch, step, steps):
    """The recipe's learning rate in a step (from 0) of an epoch (from 0) of so many steps."""
    if recipe.schedule == "steps":
        return recipe.lr * step_decay(epoch)
    return recipe.lr * warmup_cosine((epoch * steps + step + 0.5) / (recipe.epochs * steps))


def kept_share(share, cells):
    """Share of the initial weights to keep after training with so many cells of one's own: the fewer, the more.

    share: what is kept with FEW_CELLS or more; 0 stays 0. With 25 cells half of the weights made a network worse.
    """
    if share == 0:
        return 0.0
    return 1 - (1 - share) * min(1, cells / FEW_CELLS)
