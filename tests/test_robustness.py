"""benchmarks/robustness.py changes images as it says, and judges unchanged ones as predict.py does."""

import json

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as tv

import data
from benchmarks import robustness
from elcells.data.cache import load_images
from elcells.data.images import read_image
from elcells.data.tables import CLASSES
from elcells.evaluation.metrics import f1_scores
from elcells.files import InputError
from elcells.inference.networks import Network, open_network
from elcells.training.checkpoints import read_checkpoint
from model import load_model, save_checkpoint


@pytest.fixture(scope="module")
def cells(elpv):
    """uint8 (4, 1, 300, 300), real cells."""
    table = data.read_table(elpv)[:4]
    return torch.from_numpy(np.stack([read_image(p) for p in table["path"]]))[:, None]


@pytest.mark.parametrize("name", robustness.CHANGES)
def test_a_change_gives_other_images_of_the_same_kind_twice_the_same(cells, name):
    before = cells.clone()
    changed = robustness.CHANGES[name](cells)
    assert changed.shape == cells.shape and changed.dtype == torch.uint8 and torch.equal(cells, before)
    assert torch.equal(changed, robustness.CHANGES[name](cells))
    difference = (changed.float() - cells.float()).abs().mean()
    assert difference == 0 if name == "as they are" else 0.3 < difference < 130


def test_cuts_and_exposures_are_what_their_names_say(cells):
    change = {name.split(",")[0]: function(cells).float() for name, function in robustness.CHANGES.items()}
    wider, closer = change["cut wider"], change["cut closer"]
    assert (wider[..., :9, :] == 0).all() and (wider[..., 12:-12, 12:-12] > 0).float().mean() > 0.99
    inner = torch.nn.functional.interpolate(cells[..., 10:-10, 10:-10].float(), 300, mode="bilinear")
    assert (closer - inner).abs().mean() < 3
    assert torch.equal(change["shifted by 6 pixels"][..., 6:], cells[..., :-6].float())
    assert change["a quarter as bright"].mean() == pytest.approx(cells.float().mean().item() / 4, abs=1)
    assert change["noise"].sub(cells).std() == pytest.approx(15, abs=1.5)


def test_unchanged_images_are_judged_as_by_predict(elpv, best, tmp_path, capsys):
    out = tmp_path / "robustness.json"
    only = ["--only", "as they are", "blur, sigma 2 pixels"]
    assert robustness.main([str(best), str(best), "--part", "test", *only, "--data", str(elpv), "--out", str(out)]) == 0
    engine = open_network(Network(str(best)))
    test = data.part_of_checkpoint(data.read_table(elpv), read_checkpoint(best)["split"], "test")
    images, test["image"] = load_images(test)
    small = tv.resize(torch.from_numpy(np.array(images)), [64], antialias=True).numpy()
    cells, labels = data.CellDataset(test, small).batch(np.arange(len(test)))
    p = engine.judged(cells.numpy(), engine.thresholds())
    assert not np.array_equal(p[:, 0], engine(cells.numpy())[:, 0])  # some are looked at in several turns
    found = json.loads(out.read_text(encoding="utf-8"))
    for c, f1 in zip(CLASSES, f1_scores(labels.numpy(), p, engine.thresholds())):
        assert found["as they are"][c]["f1"] == pytest.approx(f1)
    printed = capsys.readouterr().out
    assert f"{2 * len(test)} cells of the test part of 2 networks" in printed and "blur, sigma 2 pixels" in printed
    assert found["blur, sigma 2 pixels"] != found["as they are"]


def test_a_checkpoint_without_a_record_of_its_parts_is_refused(elpv, best, tmp_path, capsys):
    model, _ = load_model(best)
    save_checkpoint(tmp_path / "bare.ckp", model)
    assert robustness.main([str(tmp_path / "bare.ckp"), "--data", str(elpv)]) == 2
    assert "bare.ckp: has no record of its parts" in capsys.readouterr().err
    with pytest.raises(InputError):
        robustness.predict_changed(tmp_path / "missing.ckp", data.read_table(elpv), None, "val", {})
