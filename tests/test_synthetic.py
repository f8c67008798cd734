import numpy as np
import pytest
import torch
from scipy.ndimage import maximum_filter

import data
from benchmarks import drawn_defects
from elcells.data.cache import load_images
from elcells.files import InputError
from elcells.training import drawings
from elcells.training.drawings import DRAWINGS
from elcells.training.shapes import thin_lines
from elcells.training.synthetic import (
    COUNTS,
    CRACK_ONLY,
    INACTIVE_ONLY,
    MASK_NUMBERS,
    NUMBERS,
    SMOOTH,
    STRIP_ONLY,
    SyntheticDefects,
    texture,
)


@pytest.fixture(scope="module")
def defects():
    return SyntheticDefects(size=64, counts=dict.fromkeys(COUNTS, 20))


@pytest.fixture(scope="module")
def clean(elpv):
    """Real defect-free cells many times over: images uint8 (240, 1, 64, 64), labels all zero."""
    cells = data.read_table(elpv)
    cells = cells[(cells["crack"] == 0) & (cells["inactive"] == 0)].head(24).reset_index(drop=True)
    pixels, cells["image"] = load_images(cells, 64)
    images, labels = data.CellDataset(cells, pixels).batch(np.arange(240) % len(cells))
    return images, labels


def numbers(count, seed=0):
    return torch.rand(NUMBERS, count, generator=torch.Generator().manual_seed(seed))


def test_drawn_cells_are_labelled_with_what_was_drawn(defects, clean):
    images, labels = clean
    before = images.clone()
    drawn, new, *_ = defects.draw(images, labels, numbers(240))
    assert torch.equal(images, before) and labels.sum() == 0 and drawn.dtype == torch.uint8
    darkened = (before.int() - drawn.int()).amax((1, 2, 3))
    assert (darkened[new.amax(1) == 1] > 5).all() and (drawn.int() <= before.int()).all()
    shares = new.mean(0)
    assert 0.3 < shares[0] < 0.6 and 0.1 < shares[1] < 0.35  # 0.44 and 0.2 are meant
    untouched = (drawn == before).flatten(1).all(1)
    assert 0.15 < untouched.float().mean() < 0.45 and (new[untouched] == 0).all()
    marked = ~untouched & (new.amax(1) == 0)  # distractors alone
    assert marked.any()


def test_masks_are_where_the_cells_became_darker(defects, clean):
    images, labels = clean
    drawn, new, places, lines, contrast = defects.draw(images, labels, numbers(240))
    assert lines.shape == (240, 1, 32, 32) and (new[lines.amax((1, 2, 3)) > 0, 0] == 1).all()
    assert places.shape == (240, 2, 64, 64) and torch.equal(places.amax((2, 3)) > 0, new > 0)
    strong = places.amax(1) > 128
    strong[(new[:, 0] == 1) & (contrast.amax((1, 2, 3)) == 0)] = False  # broken corners: the crack is their edge
    darker = images[:, 0].int() - drawn[:, 0].int()
    assert (darker[strong & (images[:, 0] > 60)] > 0).float().mean() > 0.99
    assert ((contrast > 0)[:, 0] <= (places[:, 0] > 0)).all()
    assert (new[contrast.amax((1, 2, 3)) > 0, 0] == 1).all()
    few = defects.draw(images, labels, numbers(240), share=0.1)[1]
    assert 0 < few.amax(1).sum() < 0.3 * new.amax(1).sum()


def test_cells_with_a_label_are_left_alone(defects, clean):
    images, labels = clean
    labels = labels.clone()
    labels[::2, 1] = 1
    drawn, new, *_ = defects.draw(images, labels, numbers(240))
    assert torch.equal(drawn[::2], images[::2]) and torch.equal(new[::2], labels[::2])


def test_a_dead_region_is_much_darker_than_a_crack(defects):
    white = torch.full((400, 1, 64, 64), 255, dtype=torch.uint8)
    drawn, labels, *_ = defects.draw(white, torch.zeros(400, 2), numbers(400))
    darkest = drawn.amin((1, 2, 3)) / 255
    assert darkest[labels[:, 1] == 1].max() < 0.4 and darkest[labels[:, 1] == 0].median() > 0.5


def test_drawings_follow_from_seed_and_numbers(defects, clean):
    images, labels = clean
    again = SyntheticDefects(size=64, counts=dict.fromkeys(COUNTS, 20))
    u = numbers(240)
    for first, second in zip(defects.draw(images, labels, u), again.draw(images, labels, u)):
        assert torch.equal(first, second)


def test_a_share_of_the_batch_gets_the_drawings_that_it_had_in_the_batch(defects, clean):
    images, labels = clean
    u = numbers(240)
    a, la, *_ = defects.draw(images, labels, u)
    part, labels_of_part, *_ = defects.draw(images[1::3], labels[1::3], u[:, 1::3])
    assert torch.equal(part, a[1::3]) and torch.equal(labels_of_part, la[1::3])


def test_labels_are_written_into_the_columns_of_their_classes(clean):
    images, _ = clean
    some = SyntheticDefects(("finger", "inactive", "crack"), 64, counts=dict.fromkeys(COUNTS, 9))
    _, labels, *_ = some.draw(images, torch.zeros(240, 3), numbers(240))
    assert labels[:, 0].sum() == 0 and labels[:, 2].sum() > labels[:, 1].sum() > 0
    with pytest.raises(InputError, match="only crack and inactive can be drawn"):
        SyntheticDefects(("finger",))


def test_the_sheet_of_drawings_is_written(elpv, tmp_path, capsys):
    assert drawn_defects.main(["--data", str(elpv), "--out", str(tmp_path / "sheet.png")]) == 0
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
    assert drawn_defects.main(["--data", str(tmp_path / "none.csv")]) == 2
    assert "none.csv: can't be read" in capsys.readouterr().err


def test_contacts_are_dark_at_both_edges_alone_and_no_defects():
    for i in range(20):
        mask, _ = drawings.contacts(np.random.default_rng(i), 300)
        assert mask[:, :3].max() > 0.5 < mask[:, -3:].max() and mask[:, 45:-45].max() == 0
    darkest = {d.draw: d.high for d in DRAWINGS["distractor"]}
    marks = [
        d(np.random.default_rng(i), 100)[0].max() * darkest[d]
        for d in (drawings.fingers, drawings.blobs)
        for i in range(30)
    ]
    assert max(marks) < 0.55 < darkest[drawings.contacts]  # contacts are darker than these


@pytest.mark.parametrize("drawing", [d.draw for kind in DRAWINGS.values() for d in kind], ids=lambda d: d.__name__)
def test_every_drawing_is_a_mask_that_follows_from_its_generator(drawing):
    masks = [drawing(np.random.default_rng(i), 100)[0] for i in (*range(12), 0)]
    assert all(m.shape == (100, 100) and m.min() >= 0 and m.max() <= 1 for m in masks)
    assert np.array_equal(masks[0], masks[-1]) and not np.array_equal(masks[0], masks[1])
    assert sum(m.max() > 0.3 for m in masks) >= 10


WITH_LINES = [drawings.crack, drawings.along_busbar, drawings.gray_part, drawings.arc, drawings.broken_corner]


@pytest.mark.parametrize("draw", WITH_LINES)
def test_the_lines_of_a_crack_run_where_its_mask_is_or_ends(draw):
    """A gray part without a dark edge ends at its line."""
    is_near = []
    for i in range(12):
        mask, lines = draw(np.random.default_rng(i), 300)
        on_line = thin_lines(lines, 300) > 0
        assert on_line.any()
        is_near.append(maximum_filter(mask, 7)[on_line] > 0.05)
    assert np.concatenate(is_near).mean() > 0.98


def test_crosses_are_small_and_clouds_cover_more(defects):
    crosses, clouds = (
        np.mean([draw(np.random.default_rng(i), 300)[0].mean() for i in range(20)])
        for draw in (drawings.cross, drawings.clouds)
    )
    assert 0 < crosses < 0.004 < clouds


def test_mono_cells_are_smooth_and_poly_cells_are_not(elpv):
    cells = data.read_table(elpv)
    images, index = load_images(cells, 300)
    smooth = texture(torch.from_numpy(images[index])).numpy() < SMOOTH
    assert (smooth == (cells["type"] == "mono")).mean() > 0.85


def test_crosses_are_drawn_into_smooth_cells_and_clouds_into_textured_ones(monkeypatch):
    """Each drawing leaves a mask of its own even gray, by which it is known."""
    levels = {d.draw: 0.1 + 0.15 * i for kind in DRAWINGS.values() for i, d in enumerate(kind)}
    marked = {
        kind: tuple(d._replace(draw=lambda _, size, d=d: (np.full((size, size), levels[d.draw]), [])) for d in drawn)
        for kind, drawn in DRAWINGS.items()
    }
    monkeypatch.setattr(
        "elcells.training.synthetic.DRAWINGS",
        {k: tuple(d._replace(low=1, high=1) for d in v) for k, v in marked.items()},
    )
    defects = SyntheticDefects(size=64, counts=dict.fromkeys(COUNTS, 20))
    smooth = torch.full((300, 1, 64, 64), 250, dtype=torch.uint8)
    textured = torch.randint(1, 250, (300, 1, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    u = numbers(300)
    u[2] = 1  # no distractors
    cross, clouds = (int(255 * levels[d]) for d in (drawings.cross, drawings.clouds))
    seen = [
        {int(m.max()) for m in defects.draw(images, torch.zeros(300, 2), u)[2][:, 0]} for images in (smooth, textured)
    ]
    assert cross in seen[0] and cross not in seen[1] and len(seen[0]) == 6 and len(seen[1]) == 5
    u[0], u[2] = 1, 0  # distractors alone
    for images, share in ((smooth, 0), (textured, 0.5)):
        left = defects.draw(images, torch.zeros(300, 2), u)[0].float().mean((1, 2, 3)) / images.float().mean((1, 2, 3))
        assert abs((left < 1 - clouds / 255 + 0.05).float().mean() - share) < 0.1


def test_lines_are_mirrored_and_turned_as_their_masks_are(defects):
    masks, lines, _ = defects.masks["crack"].choose(torch.zeros(200, dtype=torch.int64), numbers(200)[:MASK_NUMBERS])
    coarse = torch.nn.functional.max_pool2d(masks[:, None].float(), 6, 2, 2)[:, 0] > 0
    there = lines > 0
    assert there.any((1, 2)).float().mean() > 0.5  # crosses have none
    assert coarse[there].float().mean() > 0.95
    assert coarse.flip(0)[there].float().mean() < 0.6


def test_straight_dark_parts_are_rectangles_and_some_have_streaks():
    for i in range(20):
        mask = drawings.strip(np.random.default_rng(i), 300)[0] > 0.5
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        assert mask.sum() > 0.5 * rows * columns > 0


def test_a_straight_dark_part_is_labelled_inactive_and_never_drawn_with_a_crack(defects):
    white = torch.full((600, 1, 64, 64), 255, dtype=torch.uint8)
    u = numbers(600)
    u[0] = 0  # all get a defect
    only_strip = (CRACK_ONLY + INACTIVE_ONLY < u[1]) & (u[1] < CRACK_ONLY + INACTIVE_ONLY + STRIP_ONLY)
    _, labels, *_ = defects.draw(white, torch.zeros(600, 2), u)
    assert only_strip.sum() > 20
    assert (labels[only_strip] == torch.tensor([0.0, 1.0])).all()
