"""The figures in doc/results.md are those of the committed files."""

import re

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from benchmarks import accuracy
from elcells.data.tables import CLASSES

RESULTS = (ROOT / "doc" / "results.md").read_text()
FOLDERS = ["doc", "doc/tta", "doc/random_weights"]


@pytest.mark.parametrize("folder, by", [(folder, by) for folder in FOLDERS for by in accuracy.splits(ROOT / folder)])
def test_every_cell_was_predicted_once_by_a_network_that_saw_nothing_of_its_group(table, folder, by):
    predicted = accuracy.read(by, ROOT / folder)
    assert predicted["filename"].is_unique and set(predicted["filename"]) == set(table["filename"])
    merged = predicted.merge(table, on="filename", suffixes=("", "_table"))
    assert all((merged[c] == merged[f"{c}_table"]).all() for c in CLASSES)
    assert predicted.groupby("filename" if by == "cell" else "module")["fold"].nunique().max() == 1
    assert sorted(predicted["fold"].unique()) == [0, 1, 2, 3, 4]
    assert predicted[[f"p_{c}" for c in CLASSES]].apply(lambda p: p.between(0, 1)).all(axis=None)
    thresholds = predicted.groupby("fold")[[f"threshold_{c}" for c in CLASSES]].nunique()
    assert (thresholds == 1).all(axis=None)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_tables_rows_follow_from_the_probabilities(folder):
    assert accuracy.HEADER in RESULTS
    for line in accuracy.lines(ROOT / folder):
        assert line in RESULTS, f"doc/results.md lacks, or has otherwise: {line}"


def test_the_table_of_single_changes_is_that_of_the_experiments():
    experiments = pd.read_csv(ROOT / "doc" / "experiments.csv", sep=";", dtype=str)
    figures = set(zip(experiments["f1_mean"], experiments["average_precision"]))
    part = RESULTS.split("## What each part is worth")[1].split("\n## ")[0].replace("*", "")
    rows = re.findall(r"\| (0\.\d{3}) \| (0\.\d{3}) \|", part)
    assert len(rows) >= 10 and set(rows) <= figures


def test_readmes_accuracy_is_that_of_the_probabilities():
    readme = (ROOT / "README.md").read_text()
    for folder in ("doc", "doc/tta"):
        for by in ("cell", "module"):
            f1 = accuracy.line("", accuracy.read(by, ROOT / folder), by).split(" | ")[1:5]
            assert f"| {f1[0]} | {f1[1]} | **{f1[2]}** ({f1[3]}) |" in readme


def test_a_row_is_reckoned_as_anyone_would(tmp_path):
    predicted = pd.DataFrame(
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
    cells = accuracy.line("x", predicted, "module").split(" | ")
    crack, inactive = 2 * 2 / (2 * 2 + 1), 2 * 1 / (2 * 1 + 1)
    expected = [crack, inactive, (crack + inactive) / 2]
    assert [float(c) for c in cells[1:4]] == pytest.approx(np.round(expected, 3))
    assert float(cells[5]) == pytest.approx((2 / 3 + 1) / 2, abs=1e-3)


def test_the_table_of_modules_is_that_of_its_file():
    cut = pd.read_csv(ROOT / "doc" / "modules.csv", sep=";")
    text = (ROOT / "doc" / "modules.md").read_text()
    named = {"easy": "easy", "medium": "medium", "hard": "hard", "a dead third": "string"}
    named |= {"a dim border line": "dim", "other layouts": "layouts", "up to the image's edge": "filled"}
    for name, level in named.items():
        rows, said = cut[cut["level"] == level], text.split(f"\n| {name} | ")[1].split("\n")[0].split(" | ")
        wrong, off, sure = rows["error"] > 0.5, rows["error"].between(0.03, 0.5, inclusive="right"), rows["sure"] == 1
        shares = [~wrong, rows["error"] <= 0.03, wrong & sure, off & sure, (rows["error"] <= 0.03) & ~sure]
        assert [said[k] for k in (0, 1, 4, 5, 6)] == [f"{100 * share.mean():.0f} %" for share in shares]
        assert float(said[2][:-2]) == pytest.approx(100 * rows["mean_error"].median(), abs=0.011)
        assert float(said[7].rstrip(" |")) == pytest.approx(rows["seconds"].mean(), abs=0.011)
    assert not ((cut["error"] > 0.5) & (cut["sure"] == 1)).any() and f"in {len(cut)} modules" in text
