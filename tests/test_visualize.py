import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import CPU, linux
from PIL import Image

import data
import export_onnx
import train
import visualize_activations as vis
from elcells.data.images import read_image
from model import LineDecoder, build_model, load_model


def run(elpv, *more):
    return vis.main([*map(str, more), "--data", str(elpv), *CPU])


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_the_default_is_a_cell_of_each_kind_from_the_test_part(elpv, best, tmp_path):
    assert run(elpv, best, "--layers", "stem", "--out", tmp_path) == 0
    cells = [n.removeprefix("cam_").removesuffix(".png") for n in names(tmp_path) if n.startswith("cam_")]
    table = data.read_table(elpv).set_index("cell")
    test = set(load_model(best)[1]["split"]["test"])
    assert {f"images/{c}" for c in cells} <= test
    assert len({tuple(table.loc[f"images/{c}", ["crack", "inactive"]]) for c in cells}) == 4
    assert [n for n in names(tmp_path) if n.startswith("feature")] == [f"feature_maps_{c}.png" for c in sorted(cells)]


def test_named_cells_files_layers_and_channels(elpv, best, tmp_path, capsys):
    path = tmp_path / "mine.png"
    Image.fromarray(read_image(data.read_table(elpv)["path"][3], 200)).save(path)
    cell = data.read_table(elpv)["path"][5].stem
    out = tmp_path / "out"
    more = ["--layers", "stem", "blocks.7", "--channels", "blocks.2"]
    assert run(elpv, best, "--cells", path, cell, *more, "--out", out) == 0
    for name in ("mine", cell):
        assert {f"cam_{name}.png", f"feature_maps_{name}.png", f"channels_{name}_blocks.2.png"} <= set(names(out))
    assert f"{cell}: crack 0." in capsys.readouterr().out
    Image.open(out / "cam_mine.png").verify()


def test_an_original_recipes_checkpoint_is_shown_too(elpv, tmp_path, capsys):
    torch.manual_seed(0)
    network = torchvision.models.resnet34()
    network.fc = torch.nn.Sequential(torch.nn.Linear(512, 2), torch.nn.Sigmoid())
    torch.save({"state_dict": network.state_dict()}, tmp_path / "old.ckp")
    cell = data.read_table(elpv)["path"][5].stem
    assert run(elpv, tmp_path / "old.ckp", "--cells", cell, "--out", tmp_path / "out") == 0
    assert names(tmp_path / "out") == [f"cam_{cell}.png", f"feature_maps_{cell}.png"]


@pytest.mark.parametrize("name, count", [("efficientnet_lite0", 49), ("resnet34", 36), ("resnet", 20)])
def test_every_convolution_is_shown_in_order_of_depth(name, count, small):
    network = build_model(name, width=8).eval()
    layers = vis.convolutions(network.network)
    assert len(layers) == count == sum(isinstance(m, torch.nn.Conv2d) for m in network.network.modules())
    maps = vis.activations(network, np.array(small[1][0, 0]), layers)
    assert list(maps) == layers
    sizes = [a.shape[-1] for a in maps.values()]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 32 and sizes[-1] == 2


def test_feature_maps_are_the_networks_own(small, best):
    model, _ = load_model(best)
    image = np.array(small[1][0, 0])
    with torch.no_grad():
        stem = model.network.stem(model.normalise(vis.as_batch(model, image[None])))[0]
    torch.testing.assert_close(vis.activations(model, image, ["stem"])["stem"], stem)


def test_a_layer_is_shown_before_the_next_one_overwrites_it(small, best):
    model, _ = load_model(best)
    maps = vis.activations(model, np.array(small[1][0, 0]), ["stem.1"])["stem.1"]
    assert (maps < 0).any()  # of the batch norm, not of the ReLU behind it


def test_grad_cam_of_resnet34s_last_stage_is_the_exact_class_activation_map(small):
    torch.manual_seed(0)
    model = build_model("resnet34", image_size=64).eval()
    with torch.no_grad():
        model.network.fc.weight.abs_()
    images = np.array(small[1][:3, 0])
    with torch.no_grad():
        _, outputs = vis.watch_layers(model, images, ["layer4"])
        exact = torch.relu(torch.einsum("k,nkhw->nhw", model.network.fc.weight[1], outputs["layer4"]))[:, None]
    exact = torch.nn.functional.interpolate(exact, (64, 64), mode="bilinear")[:, 0]
    exact = exact / exact.amax((1, 2), keepdim=True)
    assert exact.isfinite().all() and np.allclose(vis.grad_cam(model, images, 1), exact, atol=1e-4)


@pytest.mark.parametrize("name, signed", [("efficientnet_lite0", 0), ("resnet34", 0), ("resnet", 3)])
def test_maps_are_made_of_layers_of_falling_size_that_are_not_negative(small, name, signed):
    model = build_model(name, width=16, image_size=64).eval()
    _, outputs = vis.watch_layers(model, np.array(small[1][:2, 0]), model.kind.map_layers)
    assert [maps.shape[-1] for maps in outputs.values()] == [16, 8, 4, 2]
    assert sum(bool((maps < 0).any()) for maps in outputs.values()) <= signed  # our own network's blocks end in sums


@pytest.mark.parametrize("maps_of", vis.METHODS.values(), ids=vis.METHODS)
def test_maps_are_scaled(small, best, maps_of):
    model, _ = load_model(best)
    maps = maps_of(model, np.array(small[1][:4, 0]), 0)
    assert maps.shape == (4, 64, 64) and maps.dtype == np.float32 and maps.min() >= 0
    assert all(m.max() == pytest.approx(1) or not m.any() for m in maps)
    alone = maps_of(model, np.array(small[1][1:2, 0]), 0)[0]
    assert np.allclose(alone, maps[1], atol=1e-3)


def test_crack_lines_are_one_more_map_where_the_model_has_them(small, best, tmp_path, monkeypatch):
    model, _ = load_model(best)
    image = np.array(small[1][0, 0])
    figures = []
    monkeypatch.setattr(vis, "save", lambda figure, *_, **__: figures.append(figure))
    vis.plot_class_maps(model, image, "cell", (0.9, 0.1), tmp_path / "a.png")
    model.lines = LineDecoder(model.feature_maps(), norms=False).eval()
    vis.plot_class_maps(model, image, "cell", (0.9, 0.1), tmp_path / "b.png")
    [without, shown] = [[axes for axes in figure.axes if "lines" in axes.get_title()] for figure in figures]
    assert not without and len(shown) == 1
    heat = shown[0].images[-1].get_array()
    with torch.no_grad():
        lines = model.crack_lines(vis.as_batch(model, image[None]))[0, 0].numpy()
    assert heat.shape == image.shape and heat.max() <= lines.max() + 1e-6
    assert np.allclose(heat[1::2, 1::2][:-1, :-1].mean(), lines.mean(), atol=0.02)


def test_a_map_leaves_the_model_as_it_was(small, best):
    model, _ = load_model(best)
    before = {k: v.clone() for k, v in model.network.state_dict().items()}
    vis.layer_cam(model, np.array(small[1][:4, 0]), 0)
    assert all(torch.equal(v, before[k]) for k, v in model.network.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    "options, complaint",
    [
        (["--layers", "layer9"], "no layer 'layer9'; there are: stem"),
        (["--channels", "fc", "--cells", "cell0001"], "--channels fc: its output is no map"),
        (["--cells", "cell9999"], "cell9999: neither an image file nor a cell of the table"),
    ],
)
def test_bad_options_get_one_sentence(elpv, best, tmp_path, capsys, options, complaint):
    cell = data.read_table(elpv)["path"][0].stem
    assert run(elpv, best, *(cell if o == "cell0001" else o for o in options), "--out", tmp_path) == 2
    err = capsys.readouterr().err
    assert complaint in err and err.count("\n") == 1
    assert run(elpv, tmp_path / "none.ckp") == 2 and "no such checkpoint" in capsys.readouterr().err


def other_files(folder, exported, elpv):
    """Files that are no checkpoint, and what is said of each: ONNX, images, text, code, foreign networks."""
    image = data.read_table(elpv)["path"][0].read_bytes()
    contents = {
        "a.onnx": (exported.read_bytes(), "an ONNX file, but a checkpoint is wanted; give checkpoints/best.ckp"),
        "renamed.ckp": (exported.read_bytes(), "an ONNX file, but a checkpoint is wanted; give checkpoints/best.ckp"),
        "b.png": (image, "an image, but a checkpoint is wanted"),
        "c.txt": (b"hello\n", "no checkpoint (it holds text)"),
        "d.ckp": (b"", "no checkpoint (it is empty)"),
        "e.pkl": (pickle.dumps(Path("x")), "could run code, so it is not loaded"),
        "f.npy": (np.random.default_rng(0).bytes(5000), "could run code, so it is not loaded"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    torch.save(torch.nn.Linear(2, 2), folder / "g.pth")
    with tarfile.open(folder / "h.tar", "w") as archive:
        archive.add(folder / "c.txt", "c.txt")
    said = {name: complaint for name, (_, complaint) in contents.items()}
    return said | dict.fromkeys(("g.pth", "h.tar"), "could run code, so it is not loaded")


def test_no_script_passes_on_advice_to_load_a_file_unsafely(elpv, exported, tmp_path, capsys):
    scripts = [
        lambda path: run(elpv, path),
        lambda path: export_onnx.main([path, "--data", str(elpv), *CPU]),
        lambda path: train.main(["--evaluate", path, "--data", str(elpv), "--out", str(tmp_path), *CPU]),
        lambda path: train.main(["--resume", path, "--data", str(elpv), "--out", str(tmp_path), *CPU]),
    ]
    for name, complaint in other_files(tmp_path, exported, elpv).items():
        for script in scripts:
            assert script(str(tmp_path / name)) == 2
            err = capsys.readouterr().err
            assert f"{name}: " in err and complaint in err, err
            assert "weights_only" not in err and "trust" not in err and err.count("\n") == 1


@linux
def test_a_name_that_is_no_formula_and_not_utf8_is_shown(elpv, best, tmp_path):
    odd = os.fsencode(tmp_path) + b"/$x_\xfc$.png"
    with open(odd, "wb") as file:
        file.write(data.read_table(elpv)["path"][0].read_bytes())
    assert run(elpv, best, "--cells", os.fsdecode(odd), "--layers", "stem", "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / "cam_$x_?$.png").exists()
