"""Training on several tables, and adapting a network to new cells."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CPU, ROOT, SMALL

import data
import train
from elcells.data.cache import load_images, load_sources
from elcells.data.images import read_image
from elcells.files import InputError
from elcells.inference.onnx_files import open_model
from elcells.training.batches import Batches
from elcells.training.checkpoints import read_checkpoint
from elcells.training.decoder import LineDecoder
from elcells.training.recipes import ADAPT, kept_share
from elcells.training.weights import load_initial_weights, norm_inputs, restore_norms
from model import build_model, load_model, save_checkpoint


@pytest.fixture
def mine(elpv, tmp_path):
    """A user's table in a folder "mine": 24 real cells under the names of other ELPV cells."""
    table = data.read_table(elpv)
    (tmp_path / "mine").mkdir()
    chosen = data.limit_cells(table, 24)
    rows = chosen[["crack", "inactive"]].assign(filename=[f"images/cell{i:04}.png" for i in range(1, 25)])
    for path, name in zip(chosen["path"], rows["filename"]):
        target = tmp_path / "mine" / name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    rows.to_csv(tmp_path / "mine" / "labels.csv", sep=";", index=False)
    return tmp_path / "mine" / "labels.csv"


@pytest.fixture
def both(elpv, mine):
    return data.read_tables([elpv, mine])


def test_cells_of_different_sources_are_never_merged(elpv, mine, both):
    assert both["cell"].is_unique and len(both) == len(data.read_table(elpv)) + 24
    assert set(both["source"]) == {elpv.parent.name, "mine"}
    assert (both["cell"].str.rpartition(":")[0] == both["source"]).all()


def test_modules_of_different_sources_are_never_merged(elpv, mine):
    table = pd.read_csv(mine, sep=";").assign(module="1")
    table.to_csv(mine, sep=";", index=False)
    both = data.read_tables([elpv, mine])
    assert "mine:1" in set(both["module"]) and "1" not in set(both["module"])


def test_a_table_is_split_the_same_alone_and_beside_another(elpv, both):
    parts, alone = data.split_parts(both), data.split_parts(data.read_table(elpv))
    for part, other in zip(parts, alone):
        assert set(part["filename"][part["source"] == elpv.parent.name]) == set(other["filename"])
        assert (part["source"] == "mine").any()


def test_adapting_keeps_the_first_tables_split_and_tests_no_new_cell(elpv, both):
    training, val, test = data.adapt_parts(both)
    assert set(val["source"]) == {elpv.parent.name, "mine"} and set(test["source"]) == {elpv.parent.name}
    assert set(test["filename"]) == set(data.split_parts(data.read_table(elpv))[2]["filename"])
    new_train, new_val = (set(part["cell"][part["source"] == "mine"]) for part in (training, val))
    assert len(new_train | new_val) == 24 and len(new_train) >= 3 and len(new_val) >= 3
    assert not set(training["cell"]) & set(val["cell"])


def test_folds_of_adapting_test_each_new_cell_once(elpv, both):
    tested = [data.adapt_parts(both, folds=3, fold=fold) for fold in range(3)]
    names = [name for *_, test in tested for name in test["cell"]]
    assert sorted(names) == sorted(both["cell"][both["source"] == "mine"])
    alone = data.split_parts(data.read_table(elpv))[2]["filename"]
    for training, _, test in tested:
        assert not set(training["cell"]) & set(test["cell"])
        assert not set(training["filename"][training["source"] != "mine"]) & set(alone)


def test_adapting_on_one_table_divides_it_by_its_own_labels(elpv):
    table = data.read_table(elpv, ["crack"]).drop(columns="inactive")
    for part, expected in zip(data.adapt_parts(table, classes=["crack"]), data.split_parts(table, classes=["crack"])):
        assert part["cell"].tolist() == expected["cell"].tolist()


def test_images_of_several_sources_are_indexed_as_one_array(both):
    images, index = load_sources(both, 64)
    for row in (0, len(both) - 1, len(both) // 2):
        assert (images[index[[row]]][0, 0] == read_image(both["path"][row], 64)).all()
    assert not (both["path"][0].parents[2] / ".cache_64.json").exists()
    alone = data.read_table(both["path"][len(both) - 1].parents[1] / "labels.csv")
    array, places = load_images(alone, 64)
    assert (images[index[len(both) - 24 :]] == array[places]).all()


def test_tables_in_folders_with_the_same_name_need_a_source_column(mine, tmp_path):
    other = tmp_path / "deeper" / "mine"
    shutil.copytree(mine.parent, other)
    with pytest.raises(InputError, match="source"):
        data.read_tables([mine, other / "labels.csv"])
    table = pd.read_csv(other / "labels.csv", sep=";").assign(source="line 2")
    table.to_csv(other / "labels.csv", sep=";", index=False)
    assert set(data.read_tables([mine, other / "labels.csv"])["source"]) == {"mine", "line 2"}


def test_a_source_that_cannot_be_split_is_named(elpv, mine):
    pd.read_csv(mine, sep=";").iloc[:2].to_csv(mine, sep=";", index=False)
    with pytest.raises(InputError, match="source mine"):
        data.split_parts(data.read_tables([elpv, mine]))


def test_training_on_two_tables_reports_each_source(elpv, mine, tmp_path, capsys):
    given = ["--data", str(elpv), str(mine), "--out", str(tmp_path / "run"), *SMALL, "--epochs", "1"]
    assert train.main([*given, "--weight", "mine=3"]) == 0
    report = json.loads((tmp_path / "run" / "checkpoints" / "report.json").read_text(encoding="utf-8"))
    assert set(report["by_source"]) == {elpv.parent.name, "mine"}
    assert "mine mean" in capsys.readouterr().out
    best = str(tmp_path / "run" / "checkpoints" / "best.ckp")
    assert train.main(["--data", str(elpv), "--evaluate", best, "--out", str(tmp_path / "run"), *CPU]) == 0
    alone = pd.read_csv(tmp_path / "run" / "checkpoints" / "best_test_predictions.csv", sep=";")
    assert set(alone["filename"]) == set(data.split_parts(data.read_table(elpv))[2]["filename"])


@pytest.mark.parametrize("options, complaint", [(["--weight", "his=3"], "his"), (["--recipe", "adapt"], "--weights")])
def test_what_can_not_be_weighted_or_adapted_is_told(elpv, mine, tmp_path, capsys, options, complaint):
    assert train.main(["--data", str(elpv), str(mine), "--out", str(tmp_path), *SMALL, *options]) == 2
    assert complaint in capsys.readouterr().err


def test_heavier_cells_are_drawn_more_often(both):
    images, both["image"] = load_sources(both, 64)
    both["weight"] = np.where(both["source"] == "mine", 5, 1)
    dataset = data.CellDataset(both, images)
    batches = Batches(dataset, replace(ADAPT, oversample=1, epoch_cells=40))
    share = []
    for epoch in range(20):
        order = batches.order(epoch)
        assert len(order) == 40
        share.append((both["source"][order] == "mine").mean())
    assert np.mean(share) == pytest.approx(24 * 5 / (24 * 5 + len(both) - 24), abs=0.05)


def test_an_adapted_network_is_of_its_files_kind_and_lies_between_it_and_the_trained_one(best, elpv, mine, tmp_path):
    given = ["--data", str(elpv), str(mine), "--weights", str(best), "--recipe", "adapt", "--epochs", "1"]
    assert train.main([*given, "--out", str(tmp_path), *CPU]) == 0
    folder = tmp_path / "checkpoints"
    checkpoint = read_checkpoint(folder / "best.ckp")
    assert checkpoint["config"]["network"] == "resnet" and checkpoint["config"]["image_size"] == 64
    assert any(name.startswith("mine:") for name in checkpoint["split"]["val"])
    own = len(data.read_table(mine)) - sum(name.startswith("mine:") for name in checkpoint["split"]["val"])
    share = kept_share(0.5, own)
    assert 0.5 < share < 1
    for _ in range(2):
        before, after, adapted = (
            read_checkpoint(p)["model"] for p in (best, folder / "checkpoint_001.ckp", folder / "best.ckp")
        )
        for name, value in adapted.items():
            if value.is_floating_point():
                assert torch.allclose(value, torch.lerp(after[name], before[name], share), atol=1e-6)
        assert not torch.equal(before["fc.weight"], after["fc.weight"])
        assert train.main(["--resume", "--out", str(tmp_path), *CPU]) == 0  # a finished run is not mixed twice


def test_an_adapted_network_keeps_the_decoder_of_crack_lines_and_others_lose_it(best, elpv, mine, tmp_path):
    model, _ = load_model(best)
    model.lines = LineDecoder(model.feature_maps(), norms=False)
    path = tmp_path / "lines.ckp"
    save_checkpoint(path, model)
    given = ["--data", str(elpv), str(mine), "--weights", str(path), "--schedule", "steps", "--epochs", "1", *CPU]
    place = ["--out", str(tmp_path / "adapted")]
    assert train.main([*given, *place, "--recipe", "adapt"]) == 0
    assert train.main(["--resume", *place, *CPU, "--epochs", "2"]) == 0
    kept = read_checkpoint(tmp_path / "adapted" / "checkpoints" / "best.ckp")["lines"]
    assert all(torch.equal(kept[name], value) for name, value in model.lines.state_dict().items())
    place = ["--out", str(tmp_path / "anew")]
    assert train.main([*given, *place, "--recipe", "fast", "--synthetic", "0"]) == 0
    assert not read_checkpoint(tmp_path / "anew" / "checkpoints" / "best.ckp")["lines"]
    other = build_model("resnet", ["hotspot"], 16)
    load_initial_weights(other, path)
    assert other.lines is None


def test_the_network_that_comes_along_is_a_starting_point(lite0, elpv):
    model = build_model(normalise_brightness=True)
    load_initial_weights(model, ROOT / "cells.onnx")
    cells = data.read_table(elpv).head(12).assign(image=range(12))
    images = np.stack([read_image(path, 300) for path in cells["path"]])[:, None]
    probabilities = open_model(ROOT / "cells.onnx")(images)
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(images)).numpy()
        restore_norms(model, data.CellDataset(cells, images))
        again = model(torch.from_numpy(images)).numpy()
    expected = np.log(probabilities / (1 - probabilities))
    for column in range(2):  # apart by a factor: the file's temperature
        is_clear = (np.abs(logits[:, column]) > 0.5) & (np.abs(expected[:, column]) < 8)
        ratio = expected[is_clear, column] / logits[is_clear, column]
        assert is_clear.sum() >= 3 and ratio.max() < 1.05 * ratio.min()
    assert np.abs(again - logits).max() < 0.01 and model.network.stem[1].running_mean.abs().max() > 0


def test_the_statistics_of_batch_norms_are_right_where_the_mean_is_large():
    images = np.random.default_rng(0).integers(0, 256, (50, 1, 32, 32), dtype=np.uint8)
    convolution = torch.nn.Conv2d(1, 16, 1)
    torch.nn.init.constant_(convolution.weight, 0.0775)
    torch.nn.init.constant_(convolution.bias, 50)
    model = build_model("resnet", width=16, image_size=32)
    model.metadata = replace(model.metadata, mean=0.5, std=1.0)
    model.network.stem[0] = convolution  # what reaches the batch norm has a mean of 50
    cells = pd.DataFrame({"image": range(50), "transform": "", "crack": 0, "inactive": 0})
    mean, variance = norm_inputs(model, ["stem"], data.CellDataset(cells, images))["stem"]
    exact = 0.0775 * (images / 255 - 0.5) + 50
    assert exact.var() == pytest.approx(5e-4, rel=0.05)
    assert mean.tolist() == pytest.approx([exact.mean()] * 16, rel=1e-6)
    assert variance.tolist() == pytest.approx([exact.var()] * 16, rel=1e-3)


def test_a_quantised_file_is_no_starting_point(exported, capsys, elpv, tmp_path):
    given = ["--data", str(elpv), "--weights", str(exported.with_name("best_int8.onnx")), "--out", str(tmp_path)]
    assert train.main([*given, "--epochs", "1", *CPU]) == 2
    assert "can't be trained on" in capsys.readouterr().err
