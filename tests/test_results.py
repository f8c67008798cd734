"""The figures in doc/results.md are those of the committed files."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from benchmarks import accuracy, foreign
from elcells.data.tables import CLASSES

RESULTS = (ROOT / "doc" / "results.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("by", accuracy.SPLITS)
def test_every_cell_was_predicted_once_by_a_network_that_saw_nothing_of_its_group(table, by):
    predicted = accuracy.read(by)
    assert predicted["filename"].is_unique and set(predicted["filename"]) == set(table["filename"])
    merged = predicted.merge(table, on="filename", suffixes=("", "_table"))
    assert all((merged[c] == merged[f"{c}_table"]).all() for c in CLASSES)
    folds_of_group = predicted.groupby("filename" if by == "cell" else "module")["fold"].nunique()
    assert folds_of_group.max() == 1
    assert sorted(predicted["fold"].unique()) == [0, 1, 2, 3, 4]
    assert predicted[[f"p_{c}" for c in CLASSES]].apply(lambda p: p.between(0, 1)).all(axis=None)
    thresholds = predicted.groupby("fold")[[f"threshold_{c}" for c in CLASSES]].nunique()
    assert (thresholds == 1).all(axis=None)


def test_the_rows_of_the_table_follow_from_the_probabilities():
    assert accuracy.HEADER in RESULTS
    for line in accuracy.lines():
        assert line in RESULTS, f"doc/results.md lacks this row: {line}"


def test_the_table_of_single_changes_has_the_figures_of_the_experiments():
    experiments = pd.read_csv(ROOT / "doc" / "experiments.csv", sep=";", dtype=str)
    figures = set(zip(experiments["f1_mean"], experiments["average_precision"]))
    recipes = (ROOT / "doc" / "recipes.md").read_text(encoding="utf-8")
    part = recipes.split("## What each part is worth")[1].split("\n## ")[0].replace("*", "")
    rows = re.findall(r"\| (0\.\d{3}) \| (0\.\d{3}) \|", part)
    assert len(rows) >= 10 and set(rows) <= figures


def figures_of(name):
    """The figures of a benchmark that are committed as doc/NAME.json."""
    return json.loads((ROOT / "doc" / f"{name}.json").read_text(encoding="utf-8"))


def test_the_figures_of_other_cameras_are_those_of_the_file():
    [report] = figures_of("foreign")
    for name in report["parts"].keys() - {foreign.LINES, foreign.CROSSES}:
        part = report["parts"][name]
        f1, ap, ece = (part["mean"][key] for key in ("f1", "average_precision", "calibration_error"))
        row = f"| {name}: {part['cells']} |"
        for scores in (part["crack"], part["inactive"]):
            row += f" {scores['tp'] + scores['fn']} | {scores['f1']:.3f} | {scores['average_precision']:.3f} |"
        interval = "{:.3f} to {:.3f}".format(*part["mean_f1_interval_95"])
        assert f"{row} {f1:.3f} | {interval} | {ap:.3f} | {ece:.3f} |" in RESULTS
    text = " ".join(RESULTS.split())
    f1, ap, once_f1, once_ap, crosses = (
        np.array(report["orientations"][key])
        for key in ("f1", "average_precision", "one_look_f1", "one_look_average_precision", "crosses")
    )
    assert (
        f"F1 is {f1.min():.3f} to {f1.max():.3f}, **{f1.mean():.3f}** on average, and AP is {ap.min():.3f} to "
        f"{ap.max():.3f}, {ap.mean():.3f} on average. With one look at each cell F1 is {once_f1.mean():.3f} on "
        f"average, AP {once_ap.mean():.3f}."
    ) in text
    lines, only_crosses = report["parts"][foreign.LINES]["crack"], report["parts"][foreign.CROSSES]["crack"]
    assert (
        f"Of the {lines['tp'] + lines['fn']} cells with crack lines {lines['tp']} are found, of the "
        f"{only_crosses['tp'] + only_crosses['fn']} with nothing but crosses {crosses[0]}."
    ) in text
    counts = report["doubtful"]
    assert f"They hold {counts['both']} of the {counts['wrong']} cells with a wrong call" in text
    crack, inactive, mean = (report["parts"]["all"][name] for name in ("crack", "inactive", "mean"))
    low, high = report["parts"]["all"]["mean_f1_interval_95"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"| {crack['f1']:.3f} | {inactive['f1']:.3f} | **{mean['f1']:.3f}** ({low:.3f} to {high:.3f}) |" in readme
    card = (ROOT / "doc/model_card.md").read_text(encoding="utf-8")
    row = f"| {crack['f1']:.3f} | {inactive['f1']:.3f} | {mean['f1']:.3f} | {low:.3f} to {high:.3f} |"
    assert f"{row} {mean['average_precision']:.3f} |" in card
    missed = [f"{c['fn']} of {c['tp'] + c['fn']}" for c in (crack, inactive)]
    wrong = [f"{c['fp']} of {c['fp'] + c['tn']} cells are called" for c in (crack, inactive)]
    for sentence in (*missed, *wrong, f"orientations of these cells is {f1.mean():.3f} (AP {ap.mean():.3f})"):
        assert sentence in " ".join(card.split())


def test_the_table_of_robustness_has_the_figures_of_the_file():
    figures = figures_of("robustness")
    rows = RESULTS.split("## Robustness")[1].split("\n## ")[0].split("---: |\n")[1].split("\n\n")[0].split("\n")
    assert len(rows) >= 10
    for row in rows:
        name, *shown = row.strip("| ").split(" | ")
        scores = figures[name]
        expected = (scores["mean"]["f1"], *(scores[c]["average_precision"] for c in CLASSES))
        assert shown == [f"{value:.3f}" for value in expected], name


def test_the_accuracy_in_readme_and_model_card_follows_from_the_probabilities():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    card = (ROOT / "doc/model_card.md").read_text(encoding="utf-8")
    for by in accuracy.SPLITS:
        _, crack, inactive, mean, interval, *_ = accuracy.line("", accuracy.read(by)).split(" | ")
        assert f"| {crack} | {inactive} | {mean} | {interval} |" in card
        assert by == "cell" or f"| {crack} | {inactive} | **{mean}** ({interval}) |" in readme


def test_a_row_has_the_figures_worked_out_by_hand(tmp_path):
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
    cells = accuracy.line("x", predicted).split(" | ")
    crack = 2 * 2 / (2 * 2 + 1)  # 2 hits, 1 false alarm
    inactive = 2 * 1 / (2 * 1 + 1)  # 1 hit, 1 miss
    expected = [crack, inactive, (crack + inactive) / 2]
    assert [float(c) for c in cells[1:4]] == pytest.approx(np.round(expected, 3))
    assert float(cells[5]) == pytest.approx((2 / 3 + 1) / 2, abs=1e-3)


def test_the_table_of_modules_follows_from_its_file():
    cut = pd.read_csv(ROOT / "doc" / "modules.csv", sep=";")
    text = (ROOT / "doc" / "modules.md").read_text(encoding="utf-8")
    levels = {  # name in the document -> level in the file
        "easy": "easy",
        "medium": "medium",
        "hard": "hard",
        "a dead third": "string",
        "a dim border line": "dim",
        "other layouts": "layouts",
        "up to the image's edge": "filled",
    }
    for name, level in levels.items():
        modules = cut[cut["level"] == level]
        cells = text.split(f"\n| {name} | ")[1].split("\n")[0].split(" | ")
        is_wrong = modules["error"] > 0.5
        is_off = modules["error"].between(0.03, 0.5, inclusive="right")
        is_good = modules["error"] <= 0.03
        is_sure = modules["sure"] == 1
        shares = {0: ~is_wrong, 1: is_good, 4: is_wrong & is_sure, 5: is_off & is_sure, 6: is_good & ~is_sure}
        for column, share in shares.items():
            assert cells[column] == f"{100 * share.mean():.0f} %"
        assert float(cells[2][:-2]) == pytest.approx(100 * modules["mean_error"].median(), abs=0.011)
        assert float(cells[7].rstrip(" |")) == pytest.approx(modules["seconds"].mean(), abs=0.011)
    is_wrong_and_sure = (cut["error"] > 0.5) & (cut["sure"] == 1)
    assert not is_wrong_and_sure.any()
    assert f"in {len(cut)} modules" in text
