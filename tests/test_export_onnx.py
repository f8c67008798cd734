import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from conftest import CPU, ROOT, posix

import data
import export_onnx
from elcells.data.cache import load_images
from elcells.inference.onnx_files import open_model
from elcells.inference.quantize import quantise
from model import BRIGHTNESS, build_model, load_model, normalise_brightness, save_checkpoint


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch):
    """Speeds are measured in three batches, not for seconds."""
    monkeypatch.setattr(export_onnx, "MEASURED_SECONDS", 0)


@pytest.fixture
def same_graph(exported, monkeypatch):
    """Exports take the graph of `exported`, for time: those of the network of `best`."""
    monkeypatch.setattr(export_onnx, "write_onnx", lambda module, example, path, *more: shutil.copy(exported, path))


def export(elpv, out, *more):
    return export_onnx.main([*map(str, more), "--data", str(elpv), "--out", str(out), *CPU])


def metadata(path):
    return {p.key: json.loads(p.value) for p in onnx.load(path).metadata_props}


def test_the_file_takes_uint8_gray_and_gives_pytorchs_probabilities(exported, best, small):
    session = onnxruntime.InferenceSession(exported)
    [image_input] = session.get_inputs()
    [output] = session.get_outputs()
    assert (image_input.name, image_input.type, image_input.shape[1:]) == ("input", "tensor(uint8)", [1, 64, 64])
    assert (output.name, output.type, output.shape[1:]) == ("output", "tensor(float)", [2])
    model, _ = load_model(best)
    for n in (1, 7, 48):
        images = np.array(small[1][:n])
        with torch.no_grad():
            expected = model.probabilities(model(torch.from_numpy(images))).numpy()
        got = session.run(None, {"input": images})[0]
        assert got.shape == (n, 2) and np.abs(got - expected).max() < 1e-4


@pytest.fixture
def mean_of_batch(exported, tmp_path):
    """An ONNX file that gives each image the mean of its batch."""
    proto = onnx.load(exported)
    for node in proto.graph.node:
        node.output[:] = ["alone" if name == "output" else name for name in node.output]
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0], np.int64), "first_axis"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0, np.float32), "nothing"))
    proto.graph.node.extend(
        [
            onnx.helper.make_node("ReduceMean", ["alone", "first_axis"], ["mean_of_batch"]),
            onnx.helper.make_node("Mul", ["alone", "nothing"], ["zeros"]),
            onnx.helper.make_node("Add", ["zeros", "mean_of_batch"], ["output"]),
        ]
    )
    onnx.save(proto, tmp_path / "mean.onnx")
    return tmp_path / "mean.onnx"


def test_a_file_whose_result_depends_on_its_batch_is_noticed(exported, mean_of_batch, small):
    images = np.array(small[1][:8])
    check = export_onnx.Check([(images, open_model(exported)(images))], "cells")
    assert check.largest_difference(exported) < 1e-4 < check.largest_difference(mean_of_batch)


def test_no_result_depends_on_the_threads_or_the_batch(mean_of_batch, small):
    images = np.array(small[1][:13])
    engines = [open_model(mean_of_batch, threads=threads) for threads in (1, 2, 5)]
    first, *others = [replace(engine, batch_size=size)(images) for engine in engines for size in (16, 5, 1)]
    assert all(np.array_equal(first, other) for other in others)
    assert len(np.unique(first, axis=0)) > 1


@posix
def test_a_fork_of_a_process_can_go_on_with_its_network(exported):
    code = """
import os, sys
import numpy as np
from elcells.inference.onnx_files import open_model
engine = open_model(sys.argv[1], threads=2)
images = np.zeros((4, 1, 64, 64), np.uint8)
before = engine(images)
child = os.fork()
if not child:
    os._exit(0 if np.array_equal(engine(images), before) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", code, str(exported)], cwd=ROOT, timeout=300).returncode == 0


def test_tta_exports_the_mean_over_symmetries(best, elpv, small, tmp_path):
    assert export(elpv, tmp_path, best, "--tta") == 0
    engine = open_model(tmp_path / "best_tta.onnx", whole_batches=True)
    model, _ = load_model(best)
    images = np.array(small[1][:7])
    batch = torch.from_numpy(images)
    assert np.allclose(engine.thresholds(), model.calibration_tta.thresholds())
    with torch.no_grad():
        plain = model.probabilities(model(batch))
        expected = model.probabilities(model(batch, tta=True), tta=True)
    assert np.abs(engine(images) - expected.numpy()).max() < 1e-4 < (plain - expected).abs().max()


def test_normalised_brightness_is_in_both_forms_of_the_file(best, exported, small):
    model, _ = load_model(best)
    assert model.metadata.normalise_brightness
    images = np.array(small[1][:7])
    with torch.no_grad():
        expected = model.probabilities(model(torch.from_numpy(images))).numpy()
        raw = export_onnx.RawInput(model).eval()(torch.from_numpy(export_onnx.as_raw_input(images, model.metadata)))
    assert np.abs(open_model(exported)(images) - expected).max() < 1e-4
    assert np.abs(raw.numpy() - expected).max() < 1e-4


@pytest.mark.parametrize("file", ["exported", "shipped"])
def test_pooling_is_written_as_old_versions_of_opencv_know_it(exported, file):
    graph = onnx.load(exported if file == "exported" else ROOT / "cells.onnx").graph
    kinds = {node.op_type for node in graph.node}
    assert {"GlobalAveragePool", "GlobalMaxPool"} <= kinds and not {"ReduceMean", "ReduceMax"} & kinds
    assert {i.name for i in graph.initializer} <= {name for node in graph.node for name in node.input}


def test_the_file_measures_the_brightness_of_a_large_image_to_float32s_precision(tmp_path):
    class Brightness(torch.nn.Module):
        def forward(self, images):
            return normalise_brightness(images)

    images = np.random.default_rng(0).uniform(0.4, 0.8, (4, 1, 300, 300)).astype(np.float32)
    export_onnx.write_onnx(Brightness(), torch.from_numpy(images), tmp_path / "b.onnx", 18)
    got = onnxruntime.InferenceSession(tmp_path / "b.onnx").run(None, {"input": images})[0]
    exact = images.astype(np.float64)
    brightness = (exact**3).mean((1, 2, 3), keepdims=True) / (exact**2).mean((1, 2, 3), keepdims=True)
    assert np.abs(got / (exact * BRIGHTNESS / brightness) - 1).max() < 4e-6


def test_the_file_holds_all_metadata_needed_to_use_it(exported, best):
    model, checkpoint = load_model(best)
    stored = metadata(exported)
    for key in ("mean", "std", "image_size", "normalise_brightness", "network", "width", "initial_weights"):
        assert stored[key] == getattr(model.metadata, key)
    assert tuple(stored["classes"]) == model.classes
    assert tuple(stored["thresholds"]) == model.calibration.thresholds()
    assert {name: tuple(v) for name, v in stored["operating_points"].items()} == model.calibration.operating_points
    assert stored["checkpoint_sha256"] == hashlib.sha256(best.read_bytes()).hexdigest()
    assert stored["metrics"] == checkpoint["metrics"] and stored["largest_difference"] < 1e-4
    for path in (exported, exported.with_name("best_int8.onnx")):
        assert str(export_onnx.__file__).encode() not in path.read_bytes()  # nor where this machine keeps its files
        assert b"stack_trace" not in path.read_bytes()
    names = {p.name for p in exported.parent.iterdir()}
    assert names == {"best.onnx", "best_int8.onnx", "best.json"}


def test_the_int8_file_is_quantised(exported):
    int8 = exported.with_name("best_int8.onnx")
    kinds = {n.op_type for n in onnx.load(int8).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    assert int8.stat().st_size < 0.5 * exported.stat().st_size


@pytest.mark.parametrize("features, largest", [({"avx512_vnni": True}, 127), ({"avx2": True}, 64), ({}, 64)])
def test_int8_weights_get_7_bits_where_a_processor_may_lack_vnni(
    exported, small, tmp_path, monkeypatch, features, largest
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    notes = quantise(exported, tmp_path / "int8.onnx", np.array(small[1][:16]))
    tensors = onnx.load(tmp_path / "int8.onnx").graph.initializer
    weights = [onnx.numpy_helper.to_array(t) for t in tensors if t.data_type == onnx.TensorProto.INT8 and t.dims]
    assert max(abs(w.astype(int)).max() for w in weights) == largest
    assert notes["int8_checked_on"].startswith("VNNI" if largest == 127 else "no VNNI")


def test_the_int8_file_says_on_which_kind_of_processor_it_was_checked(exported):
    assert metadata(exported.with_name("best_int8.onnx"))["int8_checked_on"] in ("VNNI", "no VNNI; weights of 7 bits")
    assert "int8_checked_on" not in metadata(exported)


def test_the_int8_file_predicts_nearly_the_same(exported, small):
    int8, images = exported.with_name("best_int8.onnx"), np.array(small[1])
    a, b = (open_model(p)(images) for p in (exported, int8))
    assert np.abs(a - b).mean() < 0.05


def test_the_figures_of_all_files_are_written(exported):
    figures = json.loads(exported.with_suffix(".json").read_text(encoding="utf-8"))
    assert len(figures) == 2 and all(f["cells_per_second"] > 0 for f in figures.values())
    assert all(0 <= f["f1_unseen"] <= 1 for f in figures.values())


@pytest.mark.parametrize("network", ["resnet", pytest.param("efficientnet_lite0", marks=pytest.mark.slow)])
def test_weights_alone_can_be_int8_and_biases_make_up_for_the_rounding(elpv, small, tmp_path, network):
    torch.manual_seed(0)
    model = build_model(network, width=32, image_size=64)
    images = torch.from_numpy(np.array(small[1]))
    model.train()
    for _ in range(20):  # batch norms get the statistics of real cells
        model(images)
    save_checkpoint(tmp_path / "my.ckp", model)
    assert export(elpv, tmp_path, tmp_path / "my.ckp", "--int8-weights", "--max-drop", "1") == 0
    plain, file = tmp_path / "my.onnx", tmp_path / "my_int8_weights.onnx"
    graph = onnx.load(file).graph
    large = [i for i in graph.initializer if len(i.dims) == 4 and np.prod(i.dims) >= 16384]
    assert len(large) > 8 and all(i.data_type == onnx.TensorProto.INT8 for i in large)
    assert {i.name for i in graph.initializer} <= {name for node in graph.node for name in node.input}
    assert file.stat().st_size < 0.45 * plain.stat().st_size
    assert metadata(file)["arithmetic"] == "int8_weights"

    def maps(path):  # of the last layer before pooling
        proto = onnx.load(path)
        pooled = next(n.input[0] for n in proto.graph.node if n.op_type == "GlobalAveragePool")
        proto.graph.output.append(onnx.helper.make_tensor_value_info(pooled, onnx.TensorProto.FLOAT, None))
        return onnxruntime.InferenceSession(proto.SerializeToString()).run([pooled], {"input": images.numpy()})[0]

    before, after = maps(plain), maps(file)
    uncorrected = onnx.load(file)
    biases = {i.name: i for i in onnx.load(plain).graph.initializer}
    corrected = [i for i in uncorrected.graph.initializer if i.name.endswith("_corrected_bias")]
    for bias in corrected:
        old = biases.get(bias.name.replace("_corrected_bias", "_bias"))
        array = onnx.numpy_helper.to_array(old) if old else np.zeros(bias.dims, np.float32)
        bias.CopyFrom(onnx.numpy_helper.from_array(array, bias.name))
    onnx.save(uncorrected, tmp_path / "uncorrected.onnx")
    without = maps(tmp_path / "uncorrected.onnx")
    assert np.abs(after - before).mean() < 0.2 * before.std()
    assert np.abs((after - before).mean((0, 2, 3))).mean() < np.abs((without - before).mean((0, 2, 3))).mean()


def test_an_int8_file_that_loses_too_much_is_refused(elpv, best, same_graph, tmp_path, capsys):
    assert export(elpv, tmp_path, best, "--int8", "--max-drop", "-1") == 2
    assert "best_int8.onnx: mean F1 on validation and test cells falls by" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["best.onnx"]


def test_a_file_that_differs_from_pytorch_is_not_left(elpv, best, same_graph, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export_onnx, "TOLERANCE", -1)
    assert export(elpv, tmp_path, best) == 2
    assert "its outputs differ from PyTorch's by" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_raw_input_takes_three_normalised_float_channels(elpv, best, tmp_path, small, exported):
    assert export(elpv, tmp_path, best, "--raw-input") == 0
    session = onnxruntime.InferenceSession(tmp_path / "best_raw.onnx")
    assert session.get_inputs()[0].type == "tensor(float)" and session.get_inputs()[0].shape[1:] == [3, 64, 64]
    images = np.array(small[1][:5])
    normalised = np.repeat((images.astype(np.float32) / 255 - 0.597) / 0.161, 3, axis=1)
    got = session.run(None, {"input": normalised})[0]
    assert np.abs(got - open_model(exported)(images)).max() < 1e-4
    assert np.abs(got - open_model(tmp_path / "best_raw.onnx", whole_batches=True)(images)).max() < 1e-5


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A checkpoint in the original recipe's format."""
    torch.manual_seed(0)
    network = torchvision.models.resnet34(num_classes=2)
    network.fc = torch.nn.Sequential(network.fc, torch.nn.Sigmoid())
    path = tmp_path_factory.mktemp("original") / "checkpoint_003.ckp"
    torch.save({"state_dict": network.state_dict()}, path)
    return path


@pytest.mark.slow  # exporting a ResNet-34 takes 20 seconds
def test_the_three_channels_of_an_original_recipes_resnet34_become_one(elpv, original, tmp_path, monkeypatch):
    monkeypatch.setattr(export_onnx, "CHECK_CELLS", 8)
    assert export(elpv, tmp_path, original) == 0
    weights = {i.name: i for i in onnx.load(tmp_path / "checkpoint_003.onnx").graph.initializer}
    first = next(i for i in weights.values() if list(i.dims) == [64, 1, 7, 7])
    assert not any(list(i.dims) == [64, 3, 7, 7] for i in weights.values())
    assert np.isfinite(onnx.numpy_helper.to_array(first)).all()


def test_an_epochs_number_names_its_snapshot(elpv, finished, same_graph, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export_onnx, "TOLERANCE", 1)  # it is another snapshot's graph
    monkeypatch.chdir(finished)
    assert export(elpv, tmp_path, 1) == 0
    assert (tmp_path / "checkpoint_001.onnx").exists()
    assert export(elpv, tmp_path, 9) == 2
    err = capsys.readouterr().err
    assert "checkpoint_009.ckp: no such checkpoint (checkpoints has: best.ckp, checkpoint_001.ckp" in err


def test_calibration_sees_training_cells_only(elpv, best):
    model, checkpoint = load_model(best)
    asked = export_onnx.Export(checkpoint=str(best), data=str(elpv))
    cells = export_onnx.read_cells(asked, model.metadata, checkpoint)
    table = data.read_table(elpv)
    images, index = load_images(table, 64)
    held_back = table["cell"].isin({*checkpoint["split"]["test"], *checkpoint["split"]["val"]})
    held_back = {images[i].tobytes() for i in index[held_back]}
    assert len(cells.calibration) > 20 and not any(c.tobytes() in held_back for c in cells.calibration)
    assert {c.tobytes() for c in cells.unseen} == held_back and len(cells.labels) == len(cells.unseen)
    test = images[index[table["cell"].isin(checkpoint["split"]["test"])]]
    assert {c.tobytes() for c in cells.unseen[-cells.test_count :]} == {c.tobytes() for c in test}


@pytest.mark.parametrize(
    "asked, complaint", [(["nowhere.ckp"], "no such checkpoint"), (["--opset", "7"], "--opset 7: must be at least 18")]
)
def test_bad_input_gets_one_sentence(elpv, tmp_path, capsys, asked, complaint):
    assert export(elpv, tmp_path, *asked) == 2
    err = capsys.readouterr().err
    assert complaint in err and err.count("\n") == 1


def test_a_checkpoint_without_record_of_a_split_can_be_exported(elpv, best, same_graph, tmp_path):
    save_checkpoint(tmp_path / "a.ckp", load_model(best)[0])
    assert export(elpv, tmp_path, tmp_path / "a.ckp") == 0


def test_the_file_has_the_lowest_ir_version_that_its_opset_allows(exported):
    assert onnx.load(exported).ir_version == 8


def test_a_checkpoint_can_be_exported_without_a_data_set(best, same_graph, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert export_onnx.main([str(best), *CPU]) == 0
    assert "PyTorch's on 64 drawn images" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["onnx"]
    assert metadata(tmp_path / "onnx" / "best.onnx")["largest_difference"] < 1e-4


def test_the_check_uses_the_images_that_exist(best, elpv, same_graph, tmp_path, capsys):
    for path in sorted(elpv.parent.glob("images/*.png"))[:5]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "broken.png").write_bytes(b"no image")
    names = [p.name for p in tmp_path.iterdir()] + ["missing.png"]
    (tmp_path / "mine.csv").write_text("filename\n" + "\n".join(names) + "\n", encoding="utf-8")
    assert export(tmp_path / "mine.csv", tmp_path / "out", best) == 0
    assert "5 cells and 59 drawn images" in capsys.readouterr().out


@pytest.mark.parametrize("more", [[], ["--int8"]])
def test_a_table_that_is_asked_for_must_exist(best, tmp_path, capsys, more):
    assert export(tmp_path / "nowhere.csv", tmp_path / "out", best, *more) == 2
    assert "nowhere.csv: can't be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
