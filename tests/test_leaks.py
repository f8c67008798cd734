"""Memory and open files stay flat over long work."""

import ctypes
import gc
import os

import numpy as np
import pytest
import torch
from conftest import linux
from PIL import Image

from data import CellDataset
from elcells.inference.networks import Network
from elcells.records.requests import request_of
from elcells.records.work import Here, Work, tasks_of
from elcells.training.recipes import Recipe
from model import build_model
from trainer import Run, Trainer

pytestmark = [pytest.mark.slow, linux]


def held():
    """(resident memory in MB, open files) of this process."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm", encoding="utf-8") as file:
        pages = int(file.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir("/proc/self/fd"))


def test_ten_thousand_predictions_hold_memory_and_files_flat(exported, small, tmp_path):
    for i in range(100):
        Image.fromarray(np.array(small[1][i % 48, 0])).save(tmp_path / f"{i:03}.png")
    paths = [str(tmp_path / f"{i % 100:03}.png") for i in range(10_000)]
    work = Work(Network(str(exported), threads=1))
    marks = {}
    for number, result in enumerate(Here().results(work, tasks_of(map(request_of, paths), 16)), 1):
        assert result.cells[0].judged
        if number in (1000, 10_000):
            marks[number] = held()
    (early, early_files), (late, late_files) = marks[1000], marks[10_000]
    assert late < early * 1.02 + 2 and late_files <= early_files + 2, marks


def test_two_hundred_epochs_hold_memory_and_files_flat(small, tmp_path):
    cells, images = small
    rows = CellDataset(cells.head(16), images)
    model = build_model("resnet", width=16, image_size=64)
    recipe = Recipe(epochs=200, batch_size=8)
    trainer = Trainer(model, rows, rows, recipe, Run(tmp_path, keep_checkpoints=1))
    marks = {}

    def mark(trainer):
        if trainer.epoch in (50, 200):
            marks[trainer.epoch] = held()

    assert trainer.fit(mark)
    (early, early_files), (late, late_files) = marks[50], marks[200]
    assert late < early * 1.02 + 2 and late_files <= early_files, marks
    assert torch.isfinite(torch.tensor(trainer.history[-1]["train_loss"]))
