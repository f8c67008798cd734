import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
from scipy.special import logit

from elcells.evaluation.calibration import (
    Calibration,
    calibrated,
    expected_f1_threshold,
    fit_temperature,
    recall_threshold,
)
from elcells.evaluation.metrics import (
    bootstrap_mean_f1,
    calibration_error,
    f1_scores,
    interval_groups,
    metrics_table,
    reliability,
)


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 2)) < 0.3).astype(np.float32)
    return labels, np.clip(0.4 * labels + 0.6 * rng.random((200, 2)), 0, 1)


def test_metrics_are_scikit_learns(predictions):
    labels, p = predictions
    table = metrics_table(labels, p, [0.5, 0.6], ("crack", "inactive"))
    for i, (name, t) in enumerate((("crack", 0.5), ("inactive", 0.6))):
        y, called, m = labels[:, i], p[:, i] >= t, table[name]
        precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(y, called, average="binary")
        assert (m["precision"], m["recall"], m["f1"]) == pytest.approx((precision, recall, f1))
        assert m["average_precision"] == pytest.approx(sklearn.metrics.average_precision_score(y, p[:, i]))
        assert [[m["tn"], m["fp"]], [m["fn"], m["tp"]]] == sklearn.metrics.confusion_matrix(y, called).tolist()
    assert table["mean"]["f1"] == pytest.approx((table["crack"]["f1"] + table["inactive"]["f1"]) / 2)


def test_the_threshold_of_calibrated_probabilities_gives_the_best_f1_on_other_cells():
    rng = np.random.default_rng(0)
    p = rng.beta(0.4, 1.6, 20_000)
    labels = (rng.random(p.shape) < p).astype(np.float32)
    threshold = expected_f1_threshold(p[:300])
    others = f1_scores(labels[300:, None], p[300:, None], threshold)
    best = np.max([f1_scores(labels[300:, None], p[300:, None], t) for t in np.linspace(0, 1, 201)])
    assert others > best - 0.005
    assert threshold == pytest.approx(best / 2, abs=0.03)  # Lipton et al.: half of the best F1
    assert expected_f1_threshold(np.array([0.9, 0.1])) == 0.5


def test_the_recall_threshold_misses_no_more_than_one_in_twenty(predictions):
    for y, p in zip(*(values.T for values in predictions)):
        threshold = recall_threshold(y, p)
        missed = [((p < t) & (y == 1)).sum() / y.sum() for t in (threshold, threshold + 0.02)]
        assert missed[0] <= 0.05 and missed[1] > 0.03


def test_temperatures_calibrate_and_change_no_decision_at_one_half():
    rng = np.random.default_rng(0)
    true = rng.random(20_000)
    labels = (rng.random(true.shape) < true).astype(np.float32)
    sure = calibrated(true, 1 / 2.5)  # logits 2.5 times too large
    temperature = fit_temperature(labels, sure)
    assert temperature == pytest.approx(2.5, rel=0.05)
    better = calibrated(sure, temperature)
    assert calibration_error(labels, better) < 0.015 < 0.1 < calibration_error(labels, sure)
    assert ((better >= 0.5) == (sure >= 0.5)).all()
    assert fit_temperature(np.zeros(4), np.full(4, 0.3)) == 1.0


def test_a_class_without_positives_keeps_the_threshold_of_one_half():
    calibration = Calibration.fit(np.array([[0, 1], [0, 0]]), np.array([[0.2, 0.8], [0.1, 0.3]]))
    assert calibration.thresholds()[0] == calibration.thresholds("recall")[0] == 0.5 != calibration.thresholds()[1]


def test_thresholds_may_lie_lower_and_that_of_recall_is_never_above_that_of_f1(predictions):
    labels, p = predictions
    best, lower = Calibration.fit(labels, p), Calibration.fit(labels, p, 0.5)
    for point in ("f1", "recall"):
        assert logit(best.thresholds(point)) - logit(lower.thresholds(point)) == pytest.approx([0.5, 0.5])
    assert lower.temperatures == best.temperatures
    y, p = np.array([0, 0, 1, 1]), np.array([0.1, 0.5, 0.6, 0.9])
    few = Calibration.fit(y[:, None], p[:, None])
    assert few.thresholds("recall") == few.thresholds()
    assert recall_threshold(y, calibrated(p, few.temperatures[0])) > 2 * few.thresholds()[0]


def test_reliability_counts_every_cell_once():
    table = reliability([0, 1, 1, 0], [0.0, 1.0, 0.95, 0.31])
    assert table[:, 0].tolist() == [1, 0, 0, 1, 0, 0, 0, 0, 0, 2]
    assert table[9, 1:].tolist() == pytest.approx([0.975, 1]) and np.isnan(table[1, 1:]).all()
    assert calibration_error([0, 1, 1, 0], [0.0, 1.0, 0.95, 0.31]) == pytest.approx((0.31 + 0.05) / 4)


def test_a_part_without_positives_has_no_ranking_figures():
    m = metrics_table(np.zeros((3, 1)), np.full((3, 1), 0.1), [0.5], ["crack"])
    assert m["crack"]["f1"] == 0 and m["crack"]["average_precision"] is None and m["mean"]["roc_auc"] is None


def test_a_class_that_is_neither_there_nor_called_does_not_lower_the_mean():
    labels, right, wrong = np.array([[1, 0], [0, 0], [1, 0]]), [[0.9, 0.1], [0.1, 0.1], [0.9, 0.1]], [[0.9, 0.9]] * 3
    assert metrics_table(labels, right, 0.5, ["crack", "inactive"])["mean"]["f1"] == 1
    assert bootstrap_mean_f1(labels[[0, 2]], np.array(right)[[0, 2]], [0.5, 0.5], np.arange(2)) == (1, 1)
    assert metrics_table(labels, wrong, 0.5, ["crack", "inactive"])["mean"]["f1"] == pytest.approx(0.4)  # of 0.8 and 0
    assert metrics_table(0 * labels, 0 * labels, 0.5, ["crack", "inactive"])["mean"]["f1"] == 0


def test_the_interval_holds_the_score_and_draws_groups(predictions):
    labels, p = predictions
    low, high = bootstrap_mean_f1(labels, p, [0.5, 0.5], np.arange(200))
    assert low < f1_scores(labels, p).mean() < high
    wide = bootstrap_mean_f1(labels, p, [0.5, 0.5], np.arange(200) // 20)
    doubled = bootstrap_mean_f1(np.tile(labels, (2, 1)), np.tile(p, (2, 1)), [0.5, 0.5], np.tile(np.arange(200), 2))
    assert doubled == pytest.approx((low, high))  # a cell's variants add nothing
    assert wide != pytest.approx((low, high))


@pytest.mark.parametrize(
    "columns, groups, unit",
    [
        ({}, ["a", "b", "c", "d"], "cells"),
        ({"module": ["7", "7", "7", "7"]}, ["a", "b", "c", "d"], "cells"),
        ({"module": ["", "", "", ""]}, ["a", "b", "c", "d"], "cells"),
        ({"module": ["7", "7", "", "8"]}, ["7", "7", "c", "8"], "modules"),
        ({"module": ["7", "7", "7", "8"], "source": ["x", "x", "y", "y"]}, ["x|7", "x|7", "y|7", "y|8"], "modules"),
    ],
)
def test_intervals_draw_modules_where_they_are_known(columns, groups, unit):
    drawn, name = interval_groups(pd.DataFrame({"cell": list("abcd"), **columns}))
    assert drawn.tolist() == groups and name == unit
