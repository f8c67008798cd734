"""The output crack_lines of ONNX files: what is in them, and how it is computed for cells with a crack alone."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from scipy.special import expit, logit
from test_line_training import random_decoder

import export_onnx
from elcells.inference.cells import cell_of_image, judge
from elcells.inference.engine import Engine, Look
from elcells.inference.line_decoder import LINES, apart
from elcells.inference.networks import SHIPPED, Network, open_network
from elcells.training.decoder import folded
from elcells.training.weights import load_initial_weights
from model import NETWORKS, build_model, load_model, save_checkpoint

SIDE = 64


def make_checkpoint(network, folder):
    """A checkpoint of a network with random weights and a decoder of crack lines; its path."""
    torch.manual_seed(0)
    model = build_model(network, width=16, image_size=SIDE, normalise_brightness=True).eval()
    model.lines = folded(random_decoder(model))
    model.calibration_tta = model.calibration
    save_checkpoint(folder / "best.ckp", model)
    return folder / "best.ckp"


@pytest.fixture(scope="module", params=NETWORKS)
def checkpoint(request, tmp_path_factory):
    """That of each network."""
    return make_checkpoint(request.param, tmp_path_factory.mktemp("lines"))


@pytest.fixture(scope="module")
def exported(checkpoint):
    """Its ONNX file, which tests only read."""
    return export(checkpoint, checkpoint.parent)


def export(checkpoint, folder, *options):
    assert export_onnx.main([str(checkpoint), "--out", str(folder), "--device", "cpu", *options]) == 0
    return folder / "best.onnx"


def images(count):
    return np.random.default_rng(0).integers(40, 200, (count, 1, SIDE, SIDE), np.uint8)


def expected_lines(checkpoint, pixels):
    model, _ = load_model(checkpoint)
    with torch.inference_mode():
        return model.crack_lines(torch.from_numpy(pixels))[:, 0].numpy()


def test_the_file_has_a_second_output_and_the_first_is_made_last(checkpoint, exported):
    proto = onnx.load(exported)
    assert [output.name for output in proto.graph.output] == ["output", LINES]
    assert "output" in proto.graph.node[-1].output  # OpenCV takes the last node's output for the network's
    pixels = images(3)
    probabilities, lines = onnxruntime.InferenceSession(exported).run(None, {"input": pixels})
    assert lines.shape == (3, 1, SIDE // 2, SIDE // 2)
    np.testing.assert_allclose(lines[:, 0], expected_lines(checkpoint, pixels), atol=1e-4)
    np.testing.assert_allclose(probabilities, open_network(Network(str(checkpoint), device="cpu"))(pixels), atol=1e-4)


def test_images_get_the_lines_of_pytorch(checkpoint, exported):
    pixels = images(6)
    for network in (exported, checkpoint):
        engine = open_network(Network(str(network), device="cpu"))
        engine = replace(engine, metadata={"tta": True})  # one look at each
        assert engine.has_lines
        for one, expected in zip(engine.look_at(pixels, (1, 1)), expected_lines(checkpoint, pixels)):
            assert np.abs(one.follow_lines() - expected).max() < 1e-4


def test_the_decoder_runs_for_cells_with_a_crack_alone():
    decoded = []

    def lines(number):
        decoded.append(number)
        return np.ones((SIDE // 2, SIDE // 2))

    def look(images):
        return Look(np.stack([images.mean((1, 2, 3)) / 255, np.zeros(len(images))], 1), None, lines)

    engine = Engine(look, ("crack", "inactive"), SIDE, "test", {}, has_lines=True)
    cells = [
        cell_of_image(f"{n}", np.full((SIDE, SIDE), level, np.uint8)) for n, level in enumerate((250, 10, 254, 20))
    ]
    results = judge(engine, np.array([0.5, 0.5]), cells)
    assert decoded == [0, 2] and [result.crack_length for result in results][1::2] == [0, 0]


def test_images_near_a_threshold_get_the_lines_of_the_turn_in_which_a_crack_is_surest(
    checkpoint, exported, monkeypatch
):
    monkeypatch.setattr("elcells.inference.engine.NEAR", (100, 100))
    pixels = images(6)
    turns = [np.rot90(pixels, quarters, (-2, -1)).copy() for quarters in range(4)]
    lines = np.stack([np.rot90(expected_lines(checkpoint, p), -k, (-2, -1)) for k, p in enumerate(turns)])
    for network in (exported, checkpoint):
        engine = open_network(Network(str(network), device="cpu", maps=True))
        probabilities = np.stack([engine(p) for p in turns])
        maps = [np.rot90(engine.look(p).maps, -k, (-2, -1)) for k, p in enumerate(turns)]
        for number, one in enumerate(engine.look_at(pixels, (0.5, 0.5))):
            mean = expit(logit(probabilities[:, number]).mean(0))
            expected = engine.lowering(pixels[number], pixels.shape[-2:])(mean)
            assert one.probabilities == pytest.approx(expected, abs=1e-4)
            assert np.abs(one.map - np.mean(maps, 0)[number]).max() < 1e-3 * max(1, np.abs(maps).max())
            near = probabilities[:, number, 0] > probabilities[:, number, 0].max() - 1e-6
            assert min(np.abs(one.follow_lines() - lines[k, number]).max() for k in np.flatnonzero(near)) < 1e-4


@pytest.mark.parametrize("shipped", [True, False])
def test_network_and_decoder_apart_share_no_node(exported, shipped):
    network, decoder, inputs = apart(onnx.load(SHIPPED if shipped else exported))
    made = [{name for node in part.graph.node for name in node.output} for part in (network, decoder)]
    assert not made[0] & made[1] and set(inputs) <= made[0]
    assert not any(tensor.name.startswith("lines.") for tensor in network.graph.initializer)
    onnx.checker.check_model(decoder, full_check=True)


@pytest.mark.parametrize("option", ["--tta", "--raw-input"])
def test_other_forms_of_the_file_have_the_same_lines(tmp_path, option):
    checkpoint = make_checkpoint("resnet", tmp_path)
    export(checkpoint, tmp_path, option)
    [path] = tmp_path.glob("*.onnx")
    pixels = images(2)
    look = open_network(Network(str(path), device="cpu")).look(pixels)
    lines = np.stack([look.follow_lines(n) for n in range(2)])
    np.testing.assert_allclose(lines, expected_lines(checkpoint, pixels), atol=1e-3)


def test_initial_weights_of_an_onnx_file_bring_its_decoder(tmp_path):
    torch.manual_seed(0)
    model = build_model(image_size=SIDE).eval()
    for module in model.network.modules():  # the exporter leaves out a bias of 0
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias, std=0.1)
    model.lines = folded(random_decoder(model))
    save_checkpoint(tmp_path / "best.ckp", model)
    another = build_model(image_size=SIDE)
    load_initial_weights(another, export(tmp_path / "best.ckp", tmp_path))
    state = model.lines.state_dict()
    for name, tensor in another.lines.state_dict().items():
        torch.testing.assert_close(tensor, state[name])
