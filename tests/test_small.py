"""Cells of few pixels are shown to the network as smaller images."""

import numpy as np
import pytest
import torch
from scipy.special import expit, logit

from elcells.data.images import square_side
from elcells.files import InputError
from elcells.inference.cells import cell_of_image, judge
from elcells.inference.engine import Engine, Look
from elcells.inference.networks import open_checkpoint
from elcells.inference.onnx_files import open_model
from elcells.inference.small import FEW, OVERRATED, small_side, with_side
from export_onnx import main as export
from model import build_model, save_checkpoint

THRESHOLDS = np.array([0.5, 0.5])
SIDE, SMALL_SIDE = 150, 118


def counting_engine(asked, **options):
    """An Engine that is sure of a crack, and notes how many images of which side it is asked about."""

    def look(images):
        asked.append((images.shape[-1], len(images)))
        probabilities = np.stack([images.mean((1, 2, 3)) / 255, np.zeros(len(images))], 1)
        lines = (lambda number: np.ones((SIDE // 2,) * 2)) if images.shape[-1] == SIDE else None
        return Look(probabilities, None, lines)

    options = {"batch_size": 2, "has_lines": True} | options
    return Engine(look, ("crack", "inactive"), SIDE, "test", {}, **options)


def cell(level, pixels):
    """An even cell of so many pixels a side, as `judge` takes it."""
    return cell_of_image(f"{level}", np.full((SIDE, SIDE), level, np.uint8), size=(pixels, pixels + 1))


def test_cells_of_few_pixels_are_judged_as_smaller_images_and_all_keep_their_places():
    levels = [255, 252, 254, 251, 253]
    sides = [FEW, FEW - 1, 300, 9, 100]
    asked = []
    results = judge(counting_engine(asked, small_size=SMALL_SIDE), THRESHOLDS, list(map(cell, levels, sides)))
    assert sorted(asked) == [(SMALL_SIDE, 2), (SIDE, 2), (SIDE, 2)]
    assert [result.filename for result in results] == [str(level) for level in levels]
    assert [result.probabilities[0] for result in results] == pytest.approx([level / 255 for level in levels])
    assert [result.crack_length is None for result in results] == [True, True, False, True, False]  # under 100 pixels


def test_a_small_cell_near_a_threshold_is_judged_by_its_turns():
    asked = []
    [result] = judge(counting_engine(asked, small_size=SMALL_SIDE), THRESHOLDS, [cell(140, 9)])
    assert asked == [(SMALL_SIDE, 2), (SMALL_SIDE, 1), (SMALL_SIDE, 2)]
    assert result.calls == (1, 0)


def test_a_small_cell_with_a_crack_has_no_length():
    [result] = judge(counting_engine([], small_size=SMALL_SIDE), THRESHOLDS, [cell(255, 9)])
    assert result.calls == (1, 0) and result.crack_length is None


@pytest.mark.parametrize(
    "size, shorter_side, expected", [((40, 41), None, 40), ((40, 80), None, 80), ((80, 40), 40, 80), ((60, 60), 48, 48)]
)
def test_a_half_cell_has_the_pixels_of_its_longer_side_and_a_stretched_one_those_of_its_shorter(
    size, shorter_side, expected
):
    assert square_side(size, shorter_side) == expected


def test_images_of_small_cells_are_smaller_by_whole_strides():
    assert [small_side(size) for size in (300, SIDE, 81, 64)] == [236, SMALL_SIDE, None, None]


def test_an_engine_without_a_smaller_size_sees_all_cells_alike():
    asked = []
    judge(counting_engine(asked), THRESHOLDS, [cell(255, 9), cell(255, 300)])
    assert asked == [(SIDE, 2)]


def test_the_file_judges_small_images_as_pytorch_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = build_model(image_size=SIDE, normalise_brightness=True).eval()
    save_checkpoint(tmp_path / "small.ckp", model)
    assert not export(["small.ckp", "--out", "."])
    from_file = open_model("small.onnx", maps=True)
    from_checkpoint = open_checkpoint("small.ckp", "cpu", maps=True)
    assert from_file.small_size == from_checkpoint.small_size == SMALL_SIDE
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (3, 1, SMALL_SIDE, SMALL_SIDE), np.uint8)
    of_file, of_checkpoint = from_file.look(images), from_checkpoint.look(images)
    assert np.abs(of_file.probabilities - of_checkpoint.probabilities).max() < 1e-4
    assert np.abs(of_file.maps - of_checkpoint.maps).max() < 1e-3
    assert of_file.follow_lines is None and of_checkpoint.follow_lines is None
    with pytest.raises(InputError, match="takes images of 150 or 118 pixels a side, not 100"):
        from_file(images[:, :, :100, :100])
    with torch.inference_mode():
        alone = model.probabilities(model(torch.from_numpy(images))).numpy()
    assert logit(alone) - logit(of_file.probabilities) == pytest.approx(np.full((3, 2), OVERRATED), abs=1e-3)


def test_smaller_images_are_the_same_cells():
    image = (255 * expit(np.linspace(-4, 4, 300))).astype(np.uint8)[None].repeat(300, 0)
    small = with_side(image, 236)
    assert small.shape == (236, 236) and np.abs(with_side(small, 300).astype(int) - image).max() <= 2
    assert with_side(image, 300) is image
