"""Cells near a threshold are judged in all four turns, and an inactive region must be dark."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, logit

import data
from elcells.data.images import read_image
from elcells.inference.doubt import NEAR, doubt, mean_of_turns, other_turns
from elcells.inference.engine import LOWER_IF_NOT_DARK, UNLIKELY, Engine, Look
from elcells.inference.networks import SHIPPED, Network, open_network

THRESHOLDS = np.array([0.5, 0.4])


def engine_of(run, **metadata):
    """An Engine of a function from images to probabilities."""
    return Engine(lambda images: Look(run(images), None, None), ("crack", "inactive"), 4, "test", {}, 2, **metadata)


def by_top_left(images):
    """Probability of a crack that depends on how a cell lies: that of its pixel at the top left."""
    return np.stack([images[:, 0, 0, 0] / 255, np.full(len(images), 0.01)], 1).astype(np.float32)


def test_doubt_is_the_distance_to_the_nearest_threshold_in_logits():
    far = doubt(np.array([[0.5, 0.4], [expit(1.5), 0.01], [0.999, 1.0]]), THRESHOLDS)
    assert far == pytest.approx([0, 1.5, logit(0.999)])


def test_a_cell_near_a_threshold_has_the_mean_of_the_logits_over_its_turns():
    image = np.zeros((1, 4, 4), np.uint8)
    image[0, [0, 0, -1, -1], [0, -1, 0, -1]] = corners = np.array([120, 30, 40, 240])
    images = np.stack([image, np.full_like(image, 250), np.full_like(image, 2)])
    engine = engine_of(by_top_left)
    expected = [expit(logit(corners / 255).mean()), 250 / 255, 2 / 255]
    assert engine.judged(images, THRESHOLDS)[:, 0] == pytest.approx(expected, rel=1e-5)
    first_looks = [seen.first_look for seen in engine.look_at(images, THRESHOLDS)]
    assert np.array_equal(first_looks, engine(images))
    assert engine(images)[:, 0] == pytest.approx([120 / 255, 250 / 255, 2 / 255])


def test_a_file_with_the_symmetries_in_it_is_asked_once():
    image = np.full((1, 1, 4, 4), 128, np.uint8)
    asked = []

    def run(images):
        asked.append(len(images))
        return by_top_left(images)

    engine_of(run, metadata={"tta": True}).judged(image, THRESHOLDS)
    assert asked == [1]
    engine_of(run).judged(image, THRESHOLDS)
    assert asked == [1, 1, 3]


def test_the_other_turns_are_the_three_that_the_image_is_not():
    image = np.arange(9, dtype=np.uint8).reshape(1, 3, 3)
    tops = [one[0, 0].tolist() for one in other_turns(image)]
    assert tops == [[2, 5, 8], [8, 7, 6], [6, 3, 0]]


def test_cells_that_are_near_in_every_turn_are_judged_the_same_however_they_lie(elpv):
    engine = open_network(Network(str(SHIPPED)))
    images = np.stack([read_image(path) for path in data.originals(data.read_table(elpv))["path"][::3]])[:, None]
    alone = np.stack([engine(np.rot90(images, k, (-2, -1))) for k in range(4)])
    thresholds = np.median(alone, (0, 1))  # near which there are cells
    judged = np.stack([engine.judged(np.rot90(images, k, (-2, -1)), thresholds) for k in range(4)])
    always = np.stack([doubt(p, thresholds) < NEAR for p in alone]).all(0)
    assert always.any() and not always.all()
    means = np.stack([mean_of_turns(p) for p in alone.swapaxes(0, 1)])
    means, *alone = (
        np.stack([engine.lowered_if_not_dark(image, p, (300, 300)) for image, p in zip(images, one)])
        for one in (means, *alone)
    )
    assert np.abs(judged[:, always] - means[always]).max() < 1e-4
    never = ~np.stack([doubt(p, thresholds) < NEAR for p in alone]).any(0)
    assert np.abs(judged[:, never] - np.stack(alone)[:, never]).max() < 1e-4


def test_an_inactive_region_is_less_probable_where_nothing_is_dark():
    bright = np.full((1, 300, 300), 120, np.uint8)
    dark = bright.copy()
    dark[:, 60:160, 80:180] = 20
    thin = bright.copy()
    thin[:, 150:155] = 20  # a busbar
    probabilities = np.array([0.9, 0.7])
    engine = replace(engine_of(by_top_left), image_size=300)
    lower = expit(logit(0.7) - LOWER_IF_NOT_DARK)
    for image, expected in ((bright, lower), (dark, 0.7), (thin, lower)):
        assert engine.lowered_if_not_dark(image, probabilities, (300, 300)) == pytest.approx([0.9, expected])
    for p, expected in ((UNLIKELY, UNLIKELY), (0.05, UNLIKELY)):
        assert engine.lowered_if_not_dark(bright, np.array([0.9, p]), (300, 300))[1] == pytest.approx(expected)
    for other in (replace(engine, classes=("crack", "finger")), replace(engine, image_size=400)):
        assert other.lowered_if_not_dark(bright, probabilities, (300, 300)).tolist() == [0.9, 0.7]
    assert engine.lowered_if_not_dark(bright, probabilities, (35, 35)).tolist() == [0.9, 0.7]
    half = bright.copy()
    half[:, 70:81] = half[:, 220:231] = 20  # the gap between half cells, mirrored
    assert engine.lowered_if_not_dark(half, probabilities, (150, 300))[1] == pytest.approx(lower)


def test_a_cell_that_is_near_its_threshold_once_it_is_lowered_is_looked_at_in_turns():
    image = np.full((1, 1, 300, 300), 120, np.uint8)
    asked = []

    def run(images):
        asked.append(len(images))
        inactive = np.full(len(images), 0.9)
        return np.stack([np.full(len(images), 0.999), inactive], 1).astype(np.float32)

    engine = replace(engine_of(run), image_size=300)
    thresholds = np.array([0.5, 0.2])
    assert doubt(run(image), thresholds)[0] > NEAR
    asked.clear()
    [probabilities] = engine.judged(image, thresholds)
    assert asked == [1, 3] and probabilities[1] == pytest.approx(expit(logit(0.9) - LOWER_IF_NOT_DARK), rel=1e-4)
