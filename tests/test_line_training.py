from dataclasses import replace

import numpy as np
import pytest
import torch
from test_trainer import few_defects, make_trainer
from torch.nn import functional as F

from elcells.data.tables import CLASSES
from elcells.training import line_training
from elcells.training.decoder import LineDecoder, folded
from elcells.training.line_training import LineTraining, near_corners
from elcells.training.recipes import FAST
from elcells.training.weights import load_initial_weights
from model import NETWORKS, build_model, load_model, save_checkpoint

STEPS = 6


def make_training(small, folder, steps=STEPS):
    """A LineTraining of a tiny network on real cells."""
    trainer = make_trainer(small, folder, recipe=replace(FAST, line_steps=steps), defects=few_defects())
    decoder = trainer.trained.heads["lines"]
    return LineTraining(trainer.model, decoder, trainer.train_set, trainer.recipe, trainer.batches.defects, trainer.run)


@pytest.fixture
def training(small, tmp_path):
    """A short one."""
    return make_training(small, tmp_path)


def random_decoder(model):
    """A LineDecoder whose batch norms have seen something."""
    decoder = LineDecoder(model.feature_maps())
    for module in decoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.normal_(module.bias)
    return decoder.eval()


@pytest.mark.parametrize("network", NETWORKS)
def test_a_folded_decoder_is_the_same_function(network):
    torch.manual_seed(0)
    model = build_model(network, width=16, image_size=64).eval()
    decoder = random_decoder(model)
    with torch.no_grad():
        _, normalised, features = model.features(torch.rand(2, 1, 64, 64))
        expected = decoder(normalised, features)
        plain = folded(decoder)
        torch.testing.assert_close(plain(normalised, features), expected, atol=1e-4, rtol=1e-4)
    several = torch.nn.SyncBatchNorm.convert_sync_batchnorm(decoder)  # as several GPUs have it
    for ours, theirs in zip(folded(several).parameters(), plain.parameters()):
        assert torch.equal(ours, theirs)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in plain.modules())


def test_a_checkpoint_keeps_the_decoder_which_initial_weights_take_over(tmp_path):
    model = build_model("resnet", width=16, image_size=64).eval()
    model.lines = folded(random_decoder(model))
    save_checkpoint(tmp_path / "a.ckp", model)
    images = torch.rand(2, 1, 64, 64)
    loaded, _ = load_model(tmp_path / "a.ckp")
    another = build_model("resnet", width=16, image_size=64).eval()
    load_initial_weights(another, tmp_path / "a.ckp")
    with torch.no_grad():
        expected = model.crack_lines(images)
        assert torch.equal(loaded.crack_lines(images), expected)
        assert torch.equal(another.crack_lines(images), expected)
    assert expected.shape == (2, 1, 32, 32)


def test_the_decoder_learns_and_the_network_stays_as_it_was(small, tmp_path, monkeypatch):
    monkeypatch.setattr(line_training, "AVERAGED", 0.5)
    training = make_training(small, tmp_path, steps=40)
    rows = np.arange(16)
    with torch.no_grad():
        loss = training.loss(training.decoder.eval(), rows, 0)
    before = {k: v.clone() for k, v in training.model.network.state_dict().items()}
    decoder = training.fit(lambda: False)
    training.pseudo_labels, labels = {}, training.pseudo_labels
    with torch.no_grad():
        assert training.loss(decoder, rows, 0) < 0.95 * loss
    after = training.model.network.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in decoder.modules())
    cracks = np.flatnonzero(training.dataset.labels[:, CLASSES.index("crack")])
    assert sorted(labels) == cracks.tolist()


def test_the_same_seed_gives_the_same_decoder(training):
    state = {k: v.clone() for k, v in training.decoder.state_dict().items()}
    first = training.fit(lambda: False)
    training.decoder.load_state_dict(state)
    training.pseudo_labels.clear()
    again = training.fit(lambda: False)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters()))


def test_it_stops_when_asked(training):
    assert training.fit(lambda: True) is None


def test_nothing_is_known_of_real_cracks_nor_at_the_edges_of_drawn_dark_regions(training):
    rows = np.arange(40)
    batch = training.batches.of_step(rows, training.first_epoch, 0)
    known = training.where_known(batch)
    has_crack = training.dataset.labels[rows, training.crack] > 0
    assert has_crack.any() and not known[has_crack].any()
    dark = batch.aux_masks[:, training.inactive].amax((1, 2)) > 200
    free = torch.from_numpy(~has_crack)
    assert (known[free & dark].float().mean((1, 2, 3)) < 1).all()
    assert known[free & ~dark].any((1, 2, 3)).all()
    assert (free & dark).any()


def test_more_cracks_are_drawn_into_defect_free_cells_alone(training):
    rows = np.arange(40)
    drawn = 0
    for step in range(4):
        batch = training.batches.of_step(rows, training.first_epoch, step)
        images = batch.images.clone()
        training.draw_more(batch, rows, step)
        changed = (batch.images != images).flatten(1).any(1).numpy()
        assert not changed[training.dataset.labels[rows].any(1)].any()
        drawn += changed.sum()
    assert drawn


def test_pseudo_labels_are_the_sure_pixels_away_from_corners(training, monkeypatch):
    seen = torch.full((1, 1, 32, 32), 0.01)
    seen[..., 16, 4:28] = 0.9  # a line
    seen[..., 20, 20] = 0.3  # perhaps one
    seen[..., 0, 0] = 0.9  # a corner
    monkeypatch.setattr(training, "seen_lines", lambda decoder, images: seen.expand(len(images), -1, -1, -1))
    training.make_pseudo_labels(training.decoder)
    lines, known = next(iter(training.pseudo_labels.values()))
    assert (lines > 0).sum() == 24 and (lines[16, 4:28] == 255).all()
    assert known[16, 10] and known[25, 25] and not known[20, 20] and not known[15, 10] and not known[0, 0]


def test_pseudo_labels_are_learnt_from_where_they_are_in_the_changed_image(training, monkeypatch):
    given = {}
    monkeypatch.setattr(line_training, "line_loss", lambda *values: given.update(values=values))
    rows = np.flatnonzero(training.dataset.labels[:, training.crack])[:8]
    pattern = torch.zeros(32, 32, dtype=torch.uint8)
    pattern[4:12, 6:28] = 1
    training.pseudo_labels = {row: (255 * pattern, pattern) for row in rows}
    training.loss(training.decoder, rows, 0)
    _, lines, known = given["values"]
    assert torch.equal(known > 0, lines > 0.99) and known.any((1, 2, 3)).all()
    assert any(not torch.equal(lines[0], others) for others in lines[1:])  # each cell is changed in its own way


def test_lines_are_seen_in_mirrored_images_where_they_are(training):
    images = torch.randint(256, (2, 1, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        seen = training.seen_lines(lambda normalised, features: F.avg_pool2d(normalised, 2), images)
        expected = torch.sigmoid(F.avg_pool2d(training.model.features(images)[1].float(), 2))
    torch.testing.assert_close(seen, expected, atol=0.02, rtol=0)  # bfloat16 perhaps


def test_half_of_the_images_are_blurred(training):
    images = torch.rand(8, 1, 64, 64)
    blurred = training.blurred(images, 0)
    assert torch.equal(blurred[:4], images[:4])
    assert (blurred[4:].std((2, 3)) < 0.95 * images[4:].std((2, 3))).all()


def test_corners_are_both_near_along_the_edges():
    corner = near_corners(torch.zeros(1, 1, 20, 20))
    assert corner[0, 1] and corner[19, 19] and not corner[0, 2] and not corner[1, 1]


def test_a_finished_run_has_a_decoder_and_a_stopped_one_can_go_on(small, tmp_path):
    recipe = replace(FAST, line_steps=STEPS)
    trainer = make_trainer(small, tmp_path, recipe=recipe, epochs=1, defects=few_defects())
    trainer.fit()
    trainer.stop = True
    assert not trainer.finish()
    assert load_model(tmp_path / "best.ckp")[0].lines is None
    trainer = make_trainer(small, tmp_path, recipe=recipe, epochs=1, defects=few_defects())
    trainer.resume(tmp_path / "last.ckp")
    assert trainer.fit() and trainer.finish()
    assert load_model(tmp_path / "best.ckp")[0].lines is not None
