"""Training cells that are shown as cameras of few pixels show them, or turned as people cut them."""

import pytest
import torch
from PIL import Image

from elcells.data.images import to_square
from elcells.training.augmentation import augment, draw_changes
from elcells.training.resolution import NUMBERS, SIDES, LowResolution, enlarging, matrix

SIZE = 300


@pytest.fixture(scope="module")
def low_resolution():
    return LowResolution(SIZE)


def numbers_of(count, **values):
    """Numbers for cells that are all shown, with 88 pixels, and without gaps."""
    numbers = torch.zeros(NUMBERS, count)
    numbers[3] = 0.9  # no wide gap
    numbers[1] = values.get("side", 0.0)
    numbers[5] = values.get("darkness", 0.0)
    numbers[7:] = values.get("width", 0.0)
    return numbers


def stripes(period, count=1):
    """Images whose columns change with this period."""
    wave = 128 + 100 * torch.sin(torch.arange(SIZE) * 2 * torch.pi / period)
    return wave.expand(count, 1, SIZE, SIZE).to(torch.uint8).contiguous()


def inner(images):
    """The middle of images, away from gaps, as float."""
    return images[..., 50:-50, 50:-50].float()


@pytest.mark.parametrize("side", SIDES)
def test_an_even_cell_stays_even(side):
    torch.testing.assert_close(matrix(SIZE, side, 0.5).sum(1), torch.ones(SIZE), atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", SIDES[:3])
def test_cells_are_enlarged_as_images_are_that_users_give(side):
    image = (80 + 90 * torch.rand(side, side, generator=torch.Generator().manual_seed(0))).to(torch.uint8)
    expected = torch.from_numpy(to_square(Image.fromarray(image.numpy()), SIZE)).float()
    lines = enlarging(side, SIZE)
    torch.testing.assert_close(lines @ image.float() @ lines.T, expected, atol=1.1, rtol=0)  # Pillow rounds twice


def test_few_pixels_keep_what_is_coarse_and_lose_what_is_fine(low_resolution):
    for period, least, most in ((3, 0, 4), (150, 50, 71)):
        images = stripes(period)
        shown = low_resolution.show(images, torch.zeros(1, 1, SIZE, SIZE), numbers_of(1), 1.0)
        assert shown.dtype == torch.uint8
        assert least <= inner(shown).std() <= most


def test_a_cell_stays_sharp_where_its_drawn_crack_would_vanish(low_resolution):
    images = torch.full((2, 1, SIZE, SIZE), 200, dtype=torch.uint8)
    drawn = images.clone()
    drawn[0, 0, :, 60] = 185  # a hairline
    drawn[1, 0, :, 130:180] = 100
    contrast = 1 - drawn / images
    shown = low_resolution.show(drawn, contrast, numbers_of(2), 1.0)
    assert torch.equal(shown[0], drawn[0])
    assert not torch.equal(shown[1], drawn[1])


def test_gaps_darken_the_rim_alone(low_resolution):
    images = torch.full((1, 1, SIZE, SIZE), 200, dtype=torch.uint8)
    numbers = numbers_of(1, side=0.99, darkness=1.0, width=1.0)
    shown = low_resolution.show(images, torch.zeros(1, 1, SIZE, SIZE), numbers, 1.0)
    assert shown[0, 0, 150, 0] < 100
    assert (inner(shown) - 200).abs().max() <= 1


def test_only_a_share_of_the_cells_is_changed_and_the_batch_is_left_alone(low_resolution):
    images = stripes(4, count=40)
    before = images.clone()
    numbers = torch.rand(NUMBERS, 40, generator=torch.Generator().manual_seed(0))
    shown = low_resolution.show(images, torch.zeros(40, 1, SIZE, SIZE), numbers, 0.3)
    changed = (shown != images).flatten(1).any(1)
    assert torch.equal(images, before)
    assert torch.equal(changed, numbers[0] < 0.3)


def test_beyond_the_edge_chosen_images_are_black_and_others_repeat_it():
    images = torch.full((2, 1, SIZE, SIZE), 200, dtype=torch.uint8)
    changes = torch.tensor([[[0.995, 0.087, 0], [-0.087, 0.995, 0]]]).expand(2, 2, 3)  # by 5 degrees
    black, repeated = augment(images, changes, torch.tensor([True, False]))
    assert black[0, 0, 0] == 0
    assert black[0, 150, 150] == pytest.approx(200 / 255)
    assert repeated.min() == pytest.approx(200 / 255)


def test_handling_turns_cells_by_up_to_six_degrees():
    plain, handled = [draw_changes(4000, torch.Generator().manual_seed(0), handling=h) for h in (False, True)]
    for changes, low, high in ((plain, 2.9, 3.0), (handled, 5.5, 6.0)):
        turns = torch.rad2deg(torch.atan(changes[:, 1, 0] / changes[:, 0, 0])).abs()
        assert low < turns.max() <= high + 1e-3
