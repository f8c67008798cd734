"""The figures in doc/results.md are those of the committed out-of-fold probabilities."""

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from doc import accuracy
from elcells.pictures import CLASSES

FOLDERS = [
    "doc",
    "doc/tta",
    "doc/no_noise",
    "doc/no_noise/tta",
    "doc/no_noise/seed1",
    "doc/no_noise/seed1/tta",
    "doc/random_weights",
    "doc/random_weights/before",
]
JOINED = ["doc/tta doc/no_noise/tta", "doc/no_noise/tta doc/no_noise/seed1/tta"]


@pytest.mark.parametrize("by, folder", [(by, f) for f in FOLDERS for by in accuracy.splits(ROOT / f)])
def test_every_cell_was_judged_once_by_a_network_that_saw_nothing_of_its_group(table, by, folder):
    judged = accuracy.read(by, ROOT / folder)
    assert len(judged) == 2624 and set(judged["filename"]) == set(table["filename"])
    merged = judged.merge(table, on="filename", suffixes=("", "_table"))
    assert all((merged[c] == merged[f"{c}_table"]).all() for c in CLASSES)
    assert judged.groupby("module" if by == "module" else "filename")["fold"].nunique().max() == 1
    assert sorted(judged["fold"].unique()) == [0, 1, 2, 3, 4]
    assert judged[[f"p_{c}" for c in CLASSES]].apply(lambda p: p.between(0, 1)).all(axis=None)
    thresholds = judged.groupby("fold")[[f"threshold_{c}" for c in CLASSES]].nunique()
    assert (thresholds == 1).all(axis=None)


@pytest.mark.parametrize("folders", FOLDERS + JOINED)
def test_the_tables_rows_follow_from_the_probabilities(folders):
    text = (ROOT / "doc" / "results.md").read_text()
    assert accuracy.HEADER in text
    lines = accuracy.lines(*(ROOT / folder for folder in folders.split()))
    assert len(lines) == (3 if "seed1" in folders else 6)  # seed 1 was tried by module only
    for line in lines:
        assert line in text, f"doc/results.md lacks, or has otherwise: {line}"


def test_a_row_is_reckoned_as_anyone_would(tmp_path):
    judged = pd.DataFrame(
        {
            "filename": list("abcd"),
            "module": [1, 1, 2, 2],
            "crack": [1, 0, 1, 0],
            "inactive": [0, 0, 1, 1],
            "p_crack": [0.9, 0.4, 0.3, 0.1],
            "p_inactive": [0.1, 0.2, 0.9, 0.6],
            "threshold_crack": [0.35, 0.35, 0.2, 0.2],
            "threshold_inactive": [0.7] * 4,
        }
    )
    cells = accuracy.line("x", judged, "module").split(" | ")
    crack, inactive = 2 * 2 / (2 * 2 + 1), 2 * 1 / (2 * 1 + 1)
    expected = [crack, inactive, (crack + inactive) / 2]
    assert [float(c) for c in cells[1:4]] == pytest.approx(np.round(expected, 3))
    assert float(cells[5]) == pytest.approx((2 / 3 + 1) / 2, abs=1e-3)


def test_several_folders_are_judged_by_the_mean_of_their_logits(tmp_path):
    order = {"a": ["cell0001", "cell0002"], "b": ["cell0002", "cell0001"]}
    p = {"cell0001": (0.5, 0.9), "cell0002": (0.2, 0.8)}
    for i, (folder, cells) in enumerate(order.items()):
        judged = pd.DataFrame({"filename": [f"images/{c}.png" for c in cells], "fold": 0, "crack": 1, "inactive": 0})
        for c in CLASSES:
            judged[f"p_{c}"], judged[f"threshold_{c}"] = [p[cell][i] for cell in cells], 0.3
        (tmp_path / folder).mkdir()
        judged.to_csv(tmp_path / folder / "oof_by_cell.csv", sep=";", index=False)
    judged = accuracy.read("cell", tmp_path / "a", tmp_path / "b")
    assert judged["filename"].tolist() == ["images/cell0001.png", "images/cell0002.png"]
    odds = [(1 * 9) ** 0.5, (0.25 * 4) ** 0.5]
    assert judged["p_crack"].tolist() == pytest.approx([o / (1 + o) for o in odds])
    assert (judged["threshold_inactive"] == 0.5).all()
