"""Cells near a threshold are judged in up to four turns, and an inactive region must be dark."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, logit

import data
from elcells.data.images import read_image
from elcells.inference.doubt import NEAR, NEAR_SMALL, doubt, mean_of_turns, turned
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


@pytest.mark.parametrize("batch_matters", [True, False])
def test_a_cell_near_a_threshold_has_the_mean_of_the_logits_over_its_turns(batch_matters):
    corners = np.array([[120, 130, 40, 240], [120, 240, 1, 1], [250, 1, 1, 1], [2, 255, 255, 255], [130, 140, 30, 9]])
    images = np.zeros((5, 1, 4, 4), np.uint8)
    images[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]] = corners  # the turn by one quarter shows the second at the top left
    engine = replace(engine_of(by_top_left), batch_matters=batch_matters, batch_size=5)
    shares = corners / 255
    turns_of_images = [shares[0], shares[1, :2], shares[2, :1], shares[3, :1], shares[4]]
    expected = [expit(logit(turns).mean()) for turns in turns_of_images]
    assert engine.judged(images, THRESHOLDS)[:, 0] == pytest.approx(expected, rel=1e-5)
    first_looks = [seen.first_look for seen in engine.look_at(images, THRESHOLDS)]
    assert np.array_equal(first_looks, engine(images))
    assert engine(images)[:, 0] == pytest.approx(shares[:, 0])


def test_a_small_cell_is_looked_at_again_farther_from_a_threshold():
    sides = []

    def run(images):
        sides.extend([images.shape[-1]] * len(images))
        return np.full((len(images), 2), expit(-3.5), np.float32)

    engine = engine_of(run, small_size=2)
    assert NEAR[0] < 3.5 < NEAR_SMALL[0]
    for side in (4, 2):
        engine.judged(np.zeros((1, 1, side, side), np.uint8), np.array([0.5, 0.5]))
    assert sides == [4, 4, 2, 2, 2]


def test_a_file_with_the_symmetries_in_it_is_asked_once():
    image = np.full((1, 1, 4, 4), 128, np.uint8)
    asked = []

    def run(images):
        asked.append(len(images))
        return by_top_left(images)

    engine_of(run, metadata={"tta": True}).judged(image, THRESHOLDS)
    assert asked == [2]  # a full batch
    engine_of(run).judged(image, THRESHOLDS)
    assert asked == [2, 2, 1, 2]


def test_images_are_turned_to_the_left():
    image = np.arange(9, dtype=np.uint8).reshape(1, 3, 3)
    tops = [one[0, 0].tolist() for one in turned(image, (1, 2, 3))]
    assert tops == [[2, 5, 8], [8, 7, 6], [6, 3, 0]]


def test_cells_that_are_near_in_all_means_of_turns_are_judged_the_same_however_they_lie(elpv):
    engine = open_network(Network(str(SHIPPED)))
    images = np.stack([read_image(path) for path in data.originals(data.read_table(elpv))["path"][::3]])[:, None]
    alone = np.stack([engine(np.rot90(images, k, (-2, -1))) for k in range(4)])
    thresholds = np.median(alone, (0, 1))  # near which there are cells
    judged = np.stack([engine.judged(np.rot90(images, k, (-2, -1)), thresholds) for k in range(4)])
    pairs = [np.stack([mean_of_turns(pair) for pair in zip(alone[k], alone[(k + 1) % 4])]) for k in range(4)]
    is_near = [doubt(p, thresholds) < NEAR[0] for p in alone], [doubt(p, thresholds) < NEAR[1] for p in pairs]
    always = np.all(is_near, (0, 1))
    assert always.any() and not always.all()
    means = np.stack([mean_of_turns(p) for p in alone.swapaxes(0, 1)])
    means, *alone = (
        np.stack([engine.lowering(image, (300, 300))(p) for image, p in zip(images, one)]) for one in (means, *alone)
    )
    assert np.abs(judged[:, always] - means[always]).max() < 1e-4
    never = ~np.any([*is_near[0], *(doubt(p, thresholds) < NEAR[0] for p in alone)], 0)
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
        assert engine.lowering(image, (300, 300))(probabilities) == pytest.approx([0.9, expected])
    for p, expected in ((UNLIKELY, UNLIKELY), (0.05, UNLIKELY)):
        assert engine.lowering(bright, (300, 300))(np.array([0.9, p]))[1] == pytest.approx(expected)
    for other in (replace(engine, classes=("crack", "finger")), replace(engine, image_size=400)):
        assert other.lowering(bright, (300, 300))(probabilities).tolist() == [0.9, 0.7]
    assert engine.lowering(bright, (35, 35))(probabilities).tolist() == [0.9, 0.7]
    half = bright.copy()
    half[:, 70:81] = half[:, 220:231] = 20  # the gap between half cells, mirrored
    assert engine.lowering(half, (150, 300))(probabilities)[1] == pytest.approx(lower)


def test_a_cell_that_is_near_its_threshold_once_it_is_lowered_is_looked_at_in_turns():
    image = np.full((1, 1, 300, 300), 120, np.uint8)
    asked = []

    def run(images):
        asked.append(len(images))
        inactive = np.full(len(images), 0.9)
        return np.stack([np.full(len(images), 0.999), inactive], 1).astype(np.float32)

    engine = replace(engine_of(run), image_size=300)
    thresholds = np.array([0.5, 0.4])
    assert doubt(run(image), thresholds)[0] > NEAR[0]
    asked.clear()
    [probabilities] = engine.judged(image, thresholds)
    assert asked == [2, 1, 2] and probabilities[1] == pytest.approx(expit(logit(0.9) - LOWER_IF_NOT_DARK), rel=1e-4)
