import numpy as np
import pytest
import sklearn.metrics
import torch

import data
from data import CellDataset
from elcells.devices import channels_last, pick_device, pick_precision
from elcells.evaluation.evaluate import evaluate
from elcells.evaluation.metrics import (
    bootstrap_mean_f1,
    calibrated,
    calibration_error,
    f1_scores,
    f1_thresholds,
    fit_temperatures,
    metrics_table,
    recall_thresholds,
    reliability,
)
from elcells.files import InputError
from elcells.training.augmentation import draw_changes
from elcells.training.checkpoints import read_checkpoint
from elcells.training.recipes import RECIPES, step_decay, warmup_cosine
from elcells.training.synthetic import NUMBERS, SHARE, SyntheticDefects
from model import NETWORKS, WithAuxiliaryHead, build_model, load_model
from trainer import LAST_SHARE, Trainer


def make_trainer(small, folder, rows=40, network="resnet", **options):
    """A trainer of a tiny network on real cells at 64x64 pixels."""
    cells, images = small
    torch.manual_seed(options.get("seed", 0))
    model = build_model(network, width=16, image_size=64)
    train, val = CellDataset(cells.head(rows), images), CellDataset(cells.tail(8), images)
    return Trainer(model, train, val, folder, **{"batch_size": 8, "epochs": 2, **options})


@pytest.fixture(params=["classic, own network, float32", "fast, own network, bfloat16", "what ships"])
def make(request, small):
    """`make_trainer` with a recipe's settings; "what ships" is EfficientNet-Lite0 with frozen stages, dropout, drawn
    defects, its auxiliary head, noise and bfloat16."""
    settings = {k: v for k, v in RECIPES["classic"].items() if k not in ("epochs", "batch_size")}
    if request.param != "classic, own network, float32":
        network, recipe = ("resnet", "fast") if "fast" in request.param else ("efficientnet_lite0", "finetune")
        defects = SyntheticDefects(size=64, counts={"crack": 9, "inactive": 9, "distractor": 9})
        settings = {k: v for k, v in RECIPES[recipe].items() if k not in ("epochs", "batch_size")}
        settings |= {"network": network, "precision": torch.bfloat16, "defects": defects}
    return lambda folder, **options: make_trainer(small, folder, **settings | options)


def weights(trainer):
    return {k: v.clone() for k, v in trainer.model.network.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def stop_after(trainer, steps):
    """Ask the trainer to stop when it has done so many steps."""
    step, done = trainer.train_step, []

    def counted(**batch):
        done.append(1)
        trainer.stop = len(done) == steps
        return step(**batch)

    trainer.train_step = counted


@pytest.mark.parametrize("steps", [2, 5])
def test_a_resumed_run_ends_bit_for_bit_as_an_uninterrupted_one(make, tmp_path, steps):
    whole = make(tmp_path / "whole")
    assert whole.fit()
    first = make(tmp_path / "parts")
    stop_after(first, steps)
    assert not first.fit()
    torch.rand(7)  # whatever else drew from the global generator
    second = make(tmp_path / "parts")
    with torch.no_grad():
        for p in second.model.parameters():
            p.add_(1)
    second.resume(tmp_path / "parts" / "last.ckp")
    assert (second.epoch, second.step) == divmod(steps, 5) and second.fit()
    assert equal(weights(second), weights(whole))
    timed = ("seconds", "cells_per_second")
    assert [{k: v for k, v in e.items() if k not in timed} for e in second.history] == [
        {k: v for k, v in e.items() if k not in timed} for e in whole.history
    ]


def test_undone_steps_leave_no_trace(make, tmp_path):
    plain, timed = make(tmp_path / "a", epochs=1), make(tmp_path / "b", epochs=1)
    plain.fit()
    timed.epochs_within(1.0)
    timed.fit()
    assert equal(weights(plain), weights(timed))


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_good_checkpoint(make, tmp_path):
    trainer = make(tmp_path, epochs=1)
    trainer.fit()
    trainer.epochs = 2
    with torch.no_grad():
        trainer.model.network.fc.bias.fill_(torch.nan)
    with pytest.raises(InputError, match="in epoch 2; train with a lower learning rate"):
        trainer.fit()
    assert load_model(tmp_path / "last.ckp")[1]["epoch"] == 1


def test_a_weight_that_is_no_number_is_never_saved(make, tmp_path):
    """In bfloat16 on a CPU our ReLU makes 0 or 6 of NaN, so that the loss can't tell."""
    trainer = make(tmp_path, epochs=1)
    trainer.fit()
    name, weight = [p for p in trainer.model.network.named_parameters() if p[1].ndim == 4][-1]
    with torch.no_grad():
        weight[0, 0] = torch.nan
    with pytest.raises(InputError, match=f"{name} holds numbers that are not finite|the loss became nan"):
        trainer.save(tmp_path / "last.ckp")
    assert load_model(tmp_path / "last.ckp")[1]["epoch"] == 1


@pytest.mark.parametrize("network", NETWORKS)
def test_the_auxiliary_head_leaves_the_network_as_it_was(small, network):
    torch.manual_seed(0)
    model, images = (
        build_model(network, width=16, image_size=64),
        channels_last(torch.from_numpy(np.array(small[1][:2]))),
    )
    before = {k: v.clone() for k, v in model.network.state_dict().items()}
    both = WithAuxiliaryHead(model).eval()
    with torch.no_grad():
        logits, aux_logits = both(images)
        assert equal(model.network.state_dict(), before) and torch.equal(logits, model(images))
    assert aux_logits.shape == (2, 2, 4, 4)


def test_the_same_seed_gives_the_same_weights(make, tmp_path):
    runs = []
    for name in "ab":
        trainer = make(tmp_path / name, epochs=1)
        trainer.fit()
        runs.append(weights(trainer))
    assert equal(*runs)


def test_another_seed_gives_other_weights(make, tmp_path):
    runs = []
    for seed in (0, 1):
        trainer = make(tmp_path / str(seed), epochs=1, seed=seed)
        trainer.run_step(trainer.batch(np.arange(8)))
        runs.append(weights(trainer))
    assert not equal(*runs)


def test_sixteen_cells_can_be_learnt_by_heart(small, tmp_path):
    cells, images = small
    sixteen = data.limit_cells(cells, 16)
    chosen, variants = (CellDataset(t, images) for t in (sixteen, data.expand_variants(sixteen)))
    torch.manual_seed(0)
    model = build_model("resnet", width=16, image_size=64)
    trainer = Trainer(model, variants, chosen, tmp_path, epochs=9, batch_size=8, keep_checkpoints=0)
    trainer.fit()
    _, labels, probabilities = trainer.evaluate(chosen)
    table = metrics_table(labels, probabilities, 0.5, trainer.model.classes)  # a threshold parts them without a mistake
    assert [table[c]["average_precision"] for c in ("crack", "inactive")] == [1.0, 1.0]


def test_every_epoch_leaves_a_snapshot(small, tmp_path):
    make_trainer(small, tmp_path, epochs=3).fit()
    epochs = [load_model(p)[1]["epoch"] for p in sorted(tmp_path.glob("checkpoint_*.ckp"))]
    assert epochs == [1, 2, 3] and load_model(tmp_path / "last.ckp")[1]["epoch"] == 3


def test_the_best_checkpoint_is_the_snapshot_of_the_best_epoch(small, tmp_path):
    trainer = make_trainer(small, tmp_path, epochs=4)
    trainer.fit()
    best = max(trainer.history, key=lambda e: (e["f1_mean"], -e["val_loss"]))
    model, checkpoint = load_model(tmp_path / "best.ckp")
    assert checkpoint["metrics"] == best
    same, _ = load_model(tmp_path / f"checkpoint_{best['epoch'] - 1:03}.ckp")
    assert equal(model.network.state_dict(), same.network.state_dict())


def test_a_snapshot_holds_only_what_it_takes_to_use_it(small, tmp_path):
    make_trainer(small, tmp_path, epochs=1).fit()
    snapshot, last = (read_checkpoint(tmp_path / n) for n in ("checkpoint_000.ckp", "last.ckp"))
    assert last.keys() - snapshot.keys() >= {"optimizer", "aux_head", "step", "rows"}
    assert {"model", "config", "versions", "epoch", "history"} <= snapshot.keys() < last.keys()
    with pytest.raises(InputError, match="can't go on from it"):
        make_trainer(small, tmp_path).resume(tmp_path / "checkpoint_000.ckp")


def test_the_best_of_a_cosine_run_is_its_last_epoch(small, tmp_path):
    trainer = make_trainer(small, tmp_path, epochs=3, schedule="cosine")
    history = [{"f1_mean": f1, "val_loss": 1.0} for f1 in (0.1, 0.9, 0.2)]
    trainer.history = history
    assert trainer.best_epoch() == 2
    trainer.schedule = "steps"
    assert trainer.best_epoch() == 1


def test_keep_limits_the_snapshots(small, tmp_path):
    make_trainer(small, tmp_path, epochs=3, rows=16, keep_checkpoints=2).fit()
    assert sorted(p.name for p in tmp_path.glob("checkpoint_*.ckp")) == ["checkpoint_001.ckp", "checkpoint_002.ckp"]
    assert (tmp_path / "best.ckp").exists() and (tmp_path / "last.ckp").exists()


def test_resume_refuses_another_run(small, tmp_path):
    make_trainer(small, tmp_path, epochs=1).fit()
    with pytest.raises(InputError, match="was training on 40 images with seed 0, now there are 30"):
        make_trainer(small, tmp_path, rows=30).resume(tmp_path / "last.ckp")


def test_evaluation_takes_every_cell_once(small, tmp_path):
    trainer = make_trainer(small, tmp_path)
    loss, labels, probabilities = trainer.evaluate(trainer.train_set)
    assert np.array_equal(labels, trainer.train_set.labels)
    bce = torch.nn.functional.binary_cross_entropy(torch.from_numpy(probabilities), torch.from_numpy(labels))
    assert loss == pytest.approx(float(bce), rel=1e-4)


def test_evaluation_changes_nothing(small, tmp_path):
    trainer = make_trainer(small, tmp_path)
    before = weights(trainer)
    trainer.evaluate(trainer.train_set)
    assert equal(before, weights(trainer))


def test_the_learning_rate_warms_up_and_ends_at_nothing(small, tmp_path):
    factors = [warmup_cosine(p) for p in np.linspace(0, 1, 101)]
    assert factors[0] == 0 and max(factors) == pytest.approx(1) and factors[-1] == pytest.approx(0)
    assert np.all(np.diff(factors[:15]) > 0) and np.all(np.diff(factors[16:]) < 0)
    trainer = make_trainer(small, tmp_path, schedule="cosine", lr=0.1)
    trainer.fit()
    assert trainer.history[-1]["lr"] == pytest.approx(0.1 * warmup_cosine(9.5 / 10))


def test_oversampled_cells_are_drawn_more_often(small, tmp_path):
    trainer = make_trainer(small, tmp_path, oversample=3)
    labelled = trainer.train_set.labels.any(1)
    orders = []
    for trainer.epoch in range(200):
        orders.append(trainer._order())
    count = np.bincount(np.concatenate(orders), minlength=40)
    assert count[labelled].mean() / count[~labelled].mean() == pytest.approx(3, rel=0.1)
    assert not np.array_equal(orders[0], orders[1])


@pytest.mark.parametrize("oversample", [1, 3])
def test_an_epoch_stays_as_long(small, tmp_path, oversample):
    order = make_trainer(small, tmp_path, oversample=oversample)._order()
    assert len(order) == 40 and (oversample > 1 or sorted(order) == list(range(40)))


@pytest.mark.parametrize("aux_loss", [0.0, 1.0])
def test_many_defects_are_drawn_first_and_few_later_in_a_resumed_run_too(small, tmp_path, aux_loss):
    defects = SyntheticDefects(size=64, counts={"crack": 9, "inactive": 9, "distractor": 9})
    shares = []

    class Recorded:
        def draw(self, images, labels, u, share):
            shares.append(share)
            return defects.draw(images, labels, u, share)

    options = {"epochs": 3, "synthetic": 0.6, "defects": Recorded(), "aux_loss": aux_loss}
    trainer = whole = make_trainer(small, tmp_path / "whole", **options)
    trainer.fit()
    assert shares == [SHARE] * 10 + [LAST_SHARE] * 5
    trainer = make_trainer(small, tmp_path / "parts", **options)
    stop_after(trainer, 8)
    trainer.fit()
    trainer = make_trainer(small, tmp_path / "parts", **options)
    trainer.resume(tmp_path / "parts" / "last.ckp")
    trainer.fit()
    assert equal(weights(trainer), weights(whole))
    shares.clear()
    make_trainer(small, tmp_path / "none", **options | {"synthetic": 0.0}).fit()
    assert not shares


def test_the_auxiliary_head_learns_where_the_drawn_defects_are(small, tmp_path):
    """On defect-free cells alone: it marks drawn places above the others, on new drawings too."""
    defects = SyntheticDefects(size=64, counts={"crack": 60, "inactive": 60, "distractor": 20})
    clean = small[0][small[0][["crack", "inactive"]].sum(axis=1) == 0].reset_index(drop=True)
    rows = CellDataset(clean, small[1])
    torch.manual_seed(0)
    model = build_model("resnet", width=16, image_size=64)
    options = {"optimizer": "adamw", "lr": 0.002, "epochs": 40, "batch_size": 16, "keep_checkpoints": 0}
    trainer = Trainer(model, rows, rows, tmp_path, synthetic=0.99, aux_loss=1.0, defects=defects, **options)
    trainer.fit()
    images, labels = rows.batch(range(len(rows)))
    u = torch.rand(NUMBERS, len(rows), generator=torch.Generator().manual_seed(99))
    images, labels, masks = defects.draw(images, labels, u, share=1.0)
    with torch.no_grad():
        aux_logits = trainer.trained.eval()(images)[1]
    there = torch.nn.functional.adaptive_max_pool2d(masks.float() / 255, aux_logits.shape[2:]) > 0.4
    # Dead regions; of cracks little is left at this size.
    assert sklearn.metrics.roc_auc_score(there[:, 1].flatten(), aux_logits[:, 1].flatten()) > 0.75


def test_cells_with_real_defects_have_no_weight_in_the_auxiliary_loss(small, tmp_path):
    defects = SyntheticDefects(size=64, counts={"crack": 3, "inactive": 3, "distractor": 3})
    trainer = make_trainer(small, tmp_path, synthetic=0.5, aux_loss=1.0, defects=defects)
    logits, masks = torch.randn(4, 2, 4, 4), torch.zeros(4, 2, 64, 64, dtype=torch.uint8)
    changes, weight = draw_changes(4), torch.tensor([2.0, 0.0, 2.0, 0.0])
    loss = trainer._aux_loss(logits, masks, changes, weight)
    expected = torch.nn.functional.softplus(logits[[0, 2]]).mean()  # nothing was drawn
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    batch = trainer.batch(np.arange(8))
    clean = (trainer.train_set.labels[:8] == 0).all(1)
    assert 0 < clean.sum() < 8 and batch["aux_weight"].tolist() == pytest.approx(clean * 8 / clean.sum())


def test_noise_is_in_half_of_the_images_up_to_its_level(small, tmp_path):
    noise = make_trainer(small, tmp_path, noise_std=20.0).batch(np.arange(40))["noise"]
    sigma = 255 * noise.std((1, 2, 3))
    assert noise.shape == (40, 1, 64, 64) and 10 < (sigma == 0).sum() < 30
    assert 10 < sigma.max() < 21 and sigma[sigma > 0].median() < 10


def test_noise_follows_from_the_step(small, tmp_path):
    trainer, rows = make_trainer(small, tmp_path, noise_std=20.0), np.arange(40)
    noise = trainer.batch(rows)["noise"]
    assert torch.equal(noise, trainer.batch(rows)["noise"])
    trainer.step = 1
    assert not torch.equal(noise, trainer.batch(rows)["noise"])


def test_each_process_has_its_share_of_the_noise(small, tmp_path, monkeypatch):
    trainer, rows = make_trainer(small, tmp_path, noise_std=20.0), np.arange(40)
    noise = trainer.batch(rows)["noise"]
    monkeypatch.setattr("trainer.rank", lambda: 1)
    monkeypatch.setattr("trainer.world", lambda: 4)
    assert torch.equal(trainer.batch(rows)["noise"], noise[1::4])


def test_without_noise_there_is_none(small, tmp_path):
    assert make_trainer(small, tmp_path).batch(np.arange(40))["noise"] is None


def test_the_network_sees_the_noise(small, tmp_path):
    losses = []
    for level in (0, 100):
        trainer = make_trainer(small, tmp_path)
        images, labels = trainer.train_set.batch(range(8))
        noise = torch.randn(8, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * level / 255
        changes = draw_changes(8, torch.Generator().manual_seed(0))
        losses.append([float(trainer.train_step(images, labels, changes, noise=n)) for n in (None, noise)])
        assert all(np.isfinite(losses[-1]))
    assert losses[0][0] == losses[1][0] and losses[0][1] != losses[1][1]


def test_the_gray_stem_is_computed_in_channels_last():
    images = channels_last(torch.rand(2, 1, 64, 64))
    for name in NETWORKS:
        network = build_model(name, width=16).to(memory_format=torch.channels_last).network
        first = network.conv1 if name == "resnet34" else network.stem[0]
        assert first(images).stride()[1] == 1
        plain = first(images.contiguous().clone(memory_format=torch.contiguous_format))
        torch.testing.assert_close(first(images), plain)


@pytest.mark.parametrize("aux_loss", [0.0, 1.0])
def test_frozen_stages_stay_as_they_are_and_the_others_learn(small, tmp_path, aux_loss):
    defects = SyntheticDefects(size=64, counts={"crack": 8, "inactive": 8, "distractor": 8})
    trainer = make_trainer(
        small, tmp_path, freeze_stages=2, epochs=1, optimizer="adamw", synthetic=0.5, aux_loss=aux_loss, defects=defects
    )
    before = weights(trainer)
    assert trainer.fit()
    after, still = weights(trainer), ("stem.", "blocks.0.", "blocks.1.", "blocks.2.", "blocks.3.")
    for name in before:
        if not name.endswith("num_batches_tracked") or name.startswith(still):
            assert torch.equal(before[name], after[name]) == name.startswith(still), name


def test_the_learning_rate_falls_in_steps():
    expected = {0: 1, 9: 1, 10: 0.1, 39: 1e-3, 40: 1e-4, 60: 5e-5, 130: 1e-4 / 16}
    assert {e: step_decay(e) for e in expected} == pytest.approx(expected)


# ---------------------------------------------------------------- metrics


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
        assert m["average_precision"] == sklearn.metrics.average_precision_score(y, p[:, i])
        assert [[m["tn"], m["fp"]], [m["fn"], m["tp"]]] == sklearn.metrics.confusion_matrix(y, called).tolist()
    assert table["mean"]["f1"] == pytest.approx((table["crack"]["f1"] + table["inactive"]["f1"]) / 2)


def test_the_threshold_of_calibrated_probabilities_gives_the_best_f1_on_other_cells():
    rng = np.random.default_rng(0)
    p = rng.beta(0.4, 1.6, (20_000, 2))
    labels = (rng.random(p.shape) < p).astype(np.float32)
    thresholds = f1_thresholds(labels[:300], p[:300])
    others = f1_scores(labels[300:], p[300:], thresholds)
    best = np.max([f1_scores(labels[300:], p[300:], t) for t in np.linspace(0, 1, 201)], axis=0)
    assert (others > best - 0.005).all()
    assert thresholds == pytest.approx(best / 2, abs=0.03)  # Lipton et al.: half of the best F1
    assert f1_thresholds(np.zeros((4, 1)), np.ones((4, 1))) == [0.5]
    assert f1_thresholds(np.array([[1], [0]]), np.array([[0.9], [0.1]])) == [0.5]


def test_the_recall_threshold_misses_no_more_than_one_in_twenty(predictions):
    labels, p = predictions
    thresholds = np.array(recall_thresholds(labels, p))
    for t, slack in ((thresholds, 0), (thresholds + 0.02, 1)):
        missed = ((p < t) & (labels == 1)).sum(0) / labels.sum(0)
        assert (missed <= 0.05).all() if not slack else (missed > 0.03).all()
    assert recall_thresholds(np.zeros((4, 1)), np.ones((4, 1))) == [0.5]


def test_temperatures_calibrate_and_change_no_decision_at_one_half():
    rng = np.random.default_rng(0)
    true = rng.random((20000, 1))
    labels = (rng.random(true.shape) < true).astype(np.float32)
    sure = calibrated(true, [1 / 2.5])  # logits 2.5 times too large
    (temperature,) = fit_temperatures(labels, sure)
    assert temperature == pytest.approx(2.5, rel=0.05)
    better = calibrated(sure, [temperature])
    assert calibration_error(labels[:, 0], better[:, 0]) < 0.015 < 0.1 < calibration_error(labels[:, 0], sure[:, 0])
    assert ((better >= 0.5) == (sure >= 0.5)).all()
    assert fit_temperatures(np.zeros((4, 1)), np.full((4, 1), 0.3)) == [1.0]


def test_reliability_counts_every_cell_once():
    table = reliability([0, 1, 1, 0], [0.0, 1.0, 0.95, 0.31])
    assert table[:, 0].tolist() == [1, 0, 0, 1, 0, 0, 0, 0, 0, 2]
    assert table[9, 1:].tolist() == pytest.approx([0.975, 1]) and np.isnan(table[1, 1:]).all()
    assert calibration_error([0, 1, 1, 0], [0.0, 1.0, 0.95, 0.31]) == pytest.approx((0.31 + 0.05) / 4)


def test_the_checkpoint_carries_temperatures_and_operating_points_of_its_validation_part(small, tmp_path):
    trainer = make_trainer(small, tmp_path)
    trainer.val_set = trainer.train_set
    trainer.fit()
    model, _ = load_model(tmp_path / "last.ckp")
    _, labels, probabilities = trainer.evaluate(trainer.val_set)
    points = model.config["operating_points"]
    assert 1.0 not in model.config["temperatures"] and model.config["thresholds"] == points["f1"]
    assert points["f1"] == pytest.approx(f1_thresholds(labels, probabilities), abs=1e-5)
    assert points["recall"] == pytest.approx(recall_thresholds(labels, probabilities), abs=1e-5)
    model.set_operating_point("recall")
    assert model.config["thresholds"] == model.config["operating_points"]["recall"]
    with pytest.raises(InputError, match="no operating point 'best', the checkpoint has f1, recall"):
        model.set_operating_point("best")


def test_a_part_without_positives_has_no_ranking_figures():
    m = metrics_table(np.zeros((3, 1)), np.full((3, 1), 0.1), [0.5], ["crack"])
    assert m["crack"]["f1"] == 0 and m["crack"]["average_precision"] is None and m["mean"]["roc_auc"] is None


def test_the_interval_holds_the_score_and_draws_groups(predictions):
    labels, p = predictions
    low, high = bootstrap_mean_f1(labels, p, [0.5, 0.5], np.arange(200))
    assert low < f1_scores(labels, p).mean() < high
    wide = bootstrap_mean_f1(labels, p, [0.5, 0.5], np.arange(200) // 20)
    doubled = bootstrap_mean_f1(np.tile(labels, (2, 1)), np.tile(p, (2, 1)), [0.5, 0.5], np.tile(np.arange(200), 2))
    assert doubled == (low, high)  # a cell's variants add nothing
    assert wide != (low, high)


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="device tpu: there is none"):
        pick_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device cuda"):
            pick_device("cuda")
    assert pick_precision("fp32", pick_device("cpu")) == torch.float32
    assert pick_precision("bf16", pick_device("cpu")) == torch.bfloat16


def test_eight_symmetries_take_no_more_memory_than_one(small):
    torch.manual_seed(0)
    model, cells = build_model("resnet", width=16, image_size=64), CellDataset(*small)
    seen = []
    model.network.register_forward_pre_hook(lambda network, images: seen.append(len(images[0])))
    evaluate(model, cells)
    most = max(seen)
    model.config["tta"] = True
    _, _, probabilities = evaluate(model, cells)
    assert max(seen) == most == 32 and sum(seen) == 9 * len(cells)
    assert np.abs(probabilities - evaluate(model, cells, batch_size=8)[2]).max() < 1e-6
