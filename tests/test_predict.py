import csv
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from conftest import CPU, ROOT, posix
from PIL import Image

import data
import predict
from elcells import Cells
from elcells.data.images import read_image
from elcells.data.leaks import image_hashes
from elcells.files import InputError, atomic_path, reason
from elcells.inference.cells import TOO_DARK, CellResult
from elcells.inference.onnx_files import open_model
from elcells.inference.origin import warning_about
from elcells.records.requests import ImageResult, Request
from elcells.records.work import Here

PROBABILITIES = {  # of cells.onnx, taken with the version that exported it
    "cell0004": (0.85224, 0.78528),
    "cell0440": (0.99998, 0.02177),
    "cell0410": (0.34034, 0.99967),
    "cell0431": (0.99889, 0.99946),
    "cell0998": (0.05893, 0.00088),
    "cell2000": (0.02942, 0.00327),
}

MEASURED = {
    "cell0440": (0.628, 0.0000, "A"),
    "cell0410": (0.000, 0.0221, ""),
    "cell0431": (1.914, 0.0144, "A"),
    "cell0208": (1.431, 0.0000, "B"),
    "cell0882": (1.806, 0.1634, "C"),
}


@pytest.fixture
def folder(elpv, tmp_path):
    """A folder tree with 20 real cells: plain, in a subfolder, as 16 bit, RGB, JPEG and larger."""
    sources = sorted((elpv.parent / "images").glob("*.png"))[:20]
    root = tmp_path / "line"
    (root / "b" / "c").mkdir(parents=True)
    for i, source in enumerate(sources):
        image = Image.open(source)
        if i == 16:
            Image.fromarray(np.asarray(image).astype(np.uint16) * 257).save(root / "b" / "deep.tif")
        elif i == 17:
            image.convert("RGB").save(root / "b" / "colour.PNG")
        elif i == 18:
            image.resize((451, 450)).save(root / "b" / "c" / "large.jpg", quality=95)
        else:
            image.save(root / ("b" if i > 11 else "") / source.name)
    (root / "notes.txt").write_text("no image", encoding="utf-8")
    return root


def run(model, *more):
    return predict.main([*CPU, *map(str, more), "--model", str(model)])


def rows(path):
    """Rows of a table, or of the cells.csv of a results folder."""
    path = path / "cells.csv" if path.is_dir() else path
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, delimiter=";"))


def printed(capsys):
    """(Rows that a run printed, what it said on stderr)."""
    out, err = capsys.readouterr()
    return list(csv.DictReader(out.splitlines(), delimiter=";")), err


def test_a_negative_number_of_threads_is_refused(capsys):
    assert predict.main(["images", "--threads", "-1"]) == 2
    assert "--threads -1" in capsys.readouterr().err


def test_every_image_gets_its_row(exported, folder, tmp_path, capsys):
    assert run(exported, folder, "--out", tmp_path / "out") == 0
    table, engine = rows(tmp_path / "out"), open_model(exported)
    assert len(table) == 20 == len({r["filename"] for r in table})
    for row in table:
        p = engine.judged(read_image(row["filename"], 64)[None, None], engine.thresholds())[0]
        assert [float(row["p_crack"]), float(row["p_inactive"])] == pytest.approx(p.tolist(), abs=2e-4)
        for name, above in zip(("crack", "inactive"), p - engine.thresholds()):
            assert int(row[name]) == (above >= 0) or abs(above) < 2e-4
    assert "20 images: " in capsys.readouterr().err


def test_the_checkpoint_predicts_what_its_onnx_file_does(exported, best, folder, capsys):
    tables = []
    for model in (exported, best):
        assert run(model, folder) == 0
        tables.append(printed(capsys)[0])
    names, probabilities = ([[row[name] for row in table] for table in tables] for name in ("filename", "p_crack"))
    assert names[0] == names[1]
    assert [float(p) for p in probabilities[0]] == pytest.approx([float(p) for p in probabilities[1]], abs=2e-4)


def test_the_output_is_a_table_that_training_reads(exported, folder, tmp_path):
    assert run(exported, folder, "--out", tmp_path / "out") == 0
    assert len(data.read_table(tmp_path / "out" / "cells.csv", images="/")) == 20


def test_an_operating_point_changes_the_labels_but_no_probability(exported, best, folder, capsys):
    for model in (exported, best):
        points = []
        for point in ("f1", "recall"):
            assert run(model, folder, "--operating-point", point) == 0
            table = printed(capsys)[0]
            threshold = open_model(exported).thresholds(point)[0]
            for row in table:
                above = float(row["p_crack"]) - threshold
                assert int(row["crack"]) == (above >= 0) or abs(above) <= 3e-4  # the table rounds to four digits
            points.append([row["p_crack"] for row in table])
        assert points[0] == points[1]
    assert run(exported, folder, "--operating-point", "best") == 2
    assert "no operating point 'best', the network has f1, recall" in capsys.readouterr().err


def test_an_unreadable_image_gets_a_row_and_the_run_goes_on(exported, folder, tmp_path, capsys):
    names = sorted(p.name for p in folder.glob("*.png"))
    (folder / names[0]).write_bytes(b"")
    (folder / names[5]).write_bytes((folder / names[5]).read_bytes()[:5000])
    assert run(exported, folder, "--out", tmp_path / "out", "--batch-size", 4) == 3
    table = rows(tmp_path / "out")
    bad = [r for r in table if r["error"]]
    assert len(table) == 20 and [os.path.basename(r["filename"]) for r in bad] == [names[0], names[5]]
    assert all(r["crack"] == r["p_crack"] == "" and "can't be read" in r["error"] for r in bad)
    assert "2 failed" in capsys.readouterr().err


def held(path):
    """The data inside a page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(encoding="utf-8"))
    return json.loads(found[1])


def test_a_nearly_black_image_is_told_of(exported, folder, tmp_path, capsys):
    cell = sorted(folder.glob("*.png"))[2]
    for share, name in ((0.02, "<i>dead.png"), (0.12, "dim.png")):
        Image.fromarray((np.asarray(Image.open(cell)) * share).astype(np.uint8)).save(folder / name)
    assert run(exported, folder, "--out", tmp_path / "out") == 0
    said = capsys.readouterr().err
    assert "1 cell is nearly black" in said and "1 image is dim" in said
    dark = [r["filename"] for r in rows(tmp_path / "out") if "nearly black" in r["error"] and r["crack"] == ""]
    page = held(tmp_path / "out" / "report.html")
    assert [os.path.basename(name) for name in dark] == ["<i>dead.png"]
    assert page["kinds"]["-2"] == 1


def tally_lines(has_lines, *cells):
    """What a run says of CellResults."""
    tally = predict.Tally(SimpleNamespace(classes=("crack", "inactive"), has_lines=has_lines, name="x"), "image")
    tally.add(ImageResult(Request("a.png", "a.png", 0, 1, 1), cells=cells))
    return tally.lines()


def cell_result(length, area, calls=(1, 0)):
    return CellResult("a.png", calls, (0.5, 0.5), 0.5, crack_length=length, inactive_area=area)


def test_a_run_says_how_bad_the_defects_are():
    dead = CellResult("a.png", error=TOO_DARK)
    sound = cell_result(0.0, 0.0, (0, 0))
    _, line, *_ = tally_lines(True, cell_result(1.25, 0.0), cell_result(0.5, 0.1, (1, 1)), sound, sound, dead)
    assert line == "Cracks are 1.8 cell widths long in all; 2.5 % of the cells' area is inactive."
    said = "\n".join(tally_lines(False, cell_result(None, 0.0), cell_result(None, 0.5, (1, 1))))
    assert "25.0 % of the cells' area is inactive." in said and "no lengths" in said and "too few" not in said
    said = "\n".join(tally_lines(True, sound))
    assert "cell widths" not in said and "area" not in said


def test_a_run_says_how_many_cells_have_too_few_pixels():
    small = cell_result(None, 0.0)
    one = "\n".join(tally_lines(True, small, cell_result(0.0, 0.0, (0, 0)), cell_result(1.0, 0.0)))
    assert "1 cell with a crack has under 100 pixels on the shorter side: too few for a length." in one
    assert "2 cells with a crack have under 100 pixels" in "\n".join(tally_lines(True, small, small))


def test_globs_lists_and_files(exported, folder, monkeypatch, capsys):
    assert run(exported, folder / "**" / "*.png") == 0
    by_glob = capsys.readouterr().out.splitlines()
    header = "filename;crack;inactive;p_crack;p_inactive;brightness;dark_part;dark_ratio"
    assert by_glob[0] == f"{header};crack_length;inactive_area;crack_mode;below;error"
    assert len(by_glob) == 1 + 17
    one = by_glob[1].split(";")[0]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{one}\n\n{one}\n".encode())))
    assert run(exported, "-", one) == 0
    assert capsys.readouterr().out.splitlines() == by_glob[:2]


def test_an_onnx_model_needs_no_torch(exported, folder):
    code = (
        "import sys, predict; assert predict.main(sys.argv[1:]) == 0; "
        "loaded = {'torch', 'torchvision'} & set(sys.modules); assert not loaded, loaded"
    )
    command = [sys.executable, "-c", code, str(folder), "--model", str(exported), *CPU]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 0, result.stderr


def test_cells_that_the_network_was_trained_on_are_counted(exported, elpv, tmp_path, capsys):
    record = open_model(exported).metadata["trained_on"]
    images = sorted((elpv.parent / "images").glob("*.png"))
    known = sum(cell in record["train"] + record["val"] for cell in image_hashes(images))
    assert 0 < known < len(images)
    assert run(exported, images[0].parent, "--out", tmp_path / "out") == 0
    said = f"{known} images were in the training of this network"
    assert said in capsys.readouterr().err and said in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    Image.open(images[0]).point(lambda level: level // 2).save(tmp_path / "new.png")
    assert run(exported, tmp_path / "new.png") == 0 and "in the training" not in capsys.readouterr().err


def test_no_more_images_are_held_than_a_few_tasks():
    held = []
    most = 0

    class Counting:
        def prepare(self, task):
            held.append(task)
            return task

        def finish(self, task):
            nonlocal most
            most = max(most, len(held))
            held.remove(task)
            return task

    assert list(Here().results(Counting(), ([number] for number in range(60)))) == list(range(60))
    assert most <= Here.AHEAD + 1


def test_pages_load_nothing_from_anywhere(exported, folder, tmp_path):
    assert run(exported, folder, "--out", tmp_path / "out") == 0
    for name in ("report.html", "review.html"):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http" not in text and "//" not in re.sub(r"(?m)//.*$|data:image[^\"]*", "", text)


# ---------------------------------------------------------------- models and options


def test_files_that_are_no_model_are_named(exported, tmp_path):
    proto = onnx.load(exported)
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4
    onnx.save(proto, tmp_path / "four.onnx")
    (tmp_path / "broken.onnx").write_bytes(exported.read_bytes()[:10000])
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "foreign.onnx")
    (tmp_path / "text.onnx").write_text("hello", encoding="utf-8")
    outside = {"save_as_external_data": True, "size_threshold": 0, "location": "w"}
    onnx.save(onnx.load(exported), tmp_path / "outside.onnx", **outside)
    for name, complaint in {
        "broken.onnx": "damaged or no ONNX file",
        "text.onnx": "damaged or no ONNX file",
        "four.onnx": "not a file of `python export_onnx.py` \\(its inputs or metadata are different",
        "foreign.onnx": "not a file of `python export_onnx.py`",
        "outside.onnx": "refers to data outside the file",
        "none.onnx": "no such model",
    }.items():
        with pytest.raises(InputError, match=f"{name}: {complaint}"):
            open_model(tmp_path / name)


@pytest.mark.parametrize(
    "options, complaint",
    [
        (["nowhere/"], "nowhere/: no such file or folder"),
        (["tests"], "tests: no images there"),
        (["data.csv", "--corners", "c.csv"], "--corners: needs --grid"),
        (["data.csv", "--grid", "10x6"], "--grid: needs --out"),
        (["data.csv", "--workers", "0"], "--workers 0: must be at least 1"),
        (["doc", "--workers", "9999"], "--workers 9999: give at most"),
        (["doc", "--operating-point", "recal"], "no operating point 'recal'"),
        (["data.csv", "--grid", ""], "--grid: needs --out"),
        (["data.csv", "--batch-size", "0"], "--batch-size 0: must be at least 1"),
    ],
)
def test_bad_options_get_one_sentence_and_exit_code_2(exported, capsys, monkeypatch, options, complaint):
    monkeypatch.chdir(ROOT)
    assert run(exported, *options) == 2
    err = capsys.readouterr().err
    assert complaint in err.splitlines()[-1] and err.count("predict.py: ") == 1


def test_the_network_that_comes_along_predicts_where_there_is_no_other(elpv, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert predict.main([str(elpv.parent / "images"), *CPU]) == 0
    table, err = printed(capsys)
    assert "cells.onnx: efficientnet_lite0, " in err and "no onnx/best.onnx nor checkpoints/best.ckp here" in err
    assert "WARNING" not in err
    labels = {r["filename"].split("/")[-1]: r for r in rows(elpv)}
    predicted = [(r, labels[r["filename"].split("/")[-1]]) for r in table]
    assert len(predicted) == 48 and predict.SHIPPED.stat().st_size < 5_000_000
    for name in ("crack", "inactive"):  # most of them it was trained on; this is no measure of how good it is
        assert sum(a[name] == b[name] for a, b in predicted) >= 40


def line_about(capsys):
    """The lines about the network, on stderr."""
    return [line for line in capsys.readouterr().err.splitlines() if "validation F1" in line]


def test_one_line_says_which_network_is_used(exported, best, folder, tmp_path, capsys):
    cell = next(folder.glob("*.png"))
    for model in (exported, exported.with_name("best_int8.onnx"), best):
        assert run(model, cell, "--out", tmp_path / model.name) == 0
        line, warning = line_about(capsys)
        assert line.startswith(f"{model}: resnet, trained on 35 cells, ") and " epoch" in line
        assert re.search(r"validation F1 0\.\d\d$", line)
        assert warning.startswith("WARNING: this network was trained on fewer than 500 cells")
        assert "validation F1 below 0.7" in warning and "--model" in warning and "cells.onnx" in warning
        assert held(tmp_path / model.name / "report.html")["trained"].startswith(model.name)


def test_a_trial_training_is_not_taken_without_a_word(best, folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(best, tmp_path / "checkpoints" / "best.ckp")
    monkeypatch.chdir(tmp_path)
    assert predict.main([str(next(folder.glob("*.png"))), "--device", "cpu"]) == 0
    line, warning = line_about(capsys)
    assert line.startswith("checkpoints/best.ckp: resnet, trained on 35 cells") and "WARNING" in warning


def test_a_network_that_says_nothing_of_its_training_is_used(exported, folder, tmp_path, capsys):
    proto = onnx.load(exported)
    for odd in (None, 1, "garbled", [], {"train": 3, "f1_mean": "0.9"}, {"f1_mean": math.nan}):
        for name in ("metrics", "epoch", "trained_on"):
            entries = {p.key: p.value for p in proto.metadata_props if p.key != name}
            onnx.helper.set_model_props(proto, entries if odd is None else {**entries, name: json.dumps(odd)})
        onnx.save(proto, tmp_path / "odd.onnx")
        assert run(tmp_path / "odd.onnx", next(folder.glob("*.png"))) == 0
        [line] = line_about(capsys)
        assert "cells not recorded, " in line and "validation F1 not recorded" in line


@pytest.mark.parametrize(
    "cells, f1, warned", [(500, 0.7, ""), (499, 0.9, "fewer than 500 cells"), (2000, 0.699, "F1 below 0.7")]
)
def test_a_network_of_few_cells_or_a_low_f1_is_warned_of(cells, f1, warned):
    metadata = {"trained_on": {"train": ["a"] * cells, "val": []}, "metrics": {"f1_mean": f1}}
    warning = warning_about(metadata, "cells.onnx")
    assert warned in warning and bool(warned) == warning.endswith("--model cells.onnx")


def test_the_network_that_comes_along_predicts_as_ever(tmp_path):
    """Probabilities of crack and inactive that it gave when it was exported."""
    cells = data.read_table(ROOT / "data.csv", images=tmp_path)
    data.fill_images(cells[cells["filename"].isin([f"images/{c}.png" for c in PROBABILITIES])])
    engine = open_model(predict.SHIPPED, device="cpu")
    images = np.stack([read_image(tmp_path / "images" / f"{c}.png") for c in PROBABILITIES])[:, None]
    assert engine(images) == pytest.approx(np.array(list(PROBABILITIES.values())), abs=5e-4)


def test_the_network_that_comes_along_measures_as_ever(tmp_path):
    """Lengths (in cell widths), areas and modes that it gave when it was exported."""
    cells = data.read_table(ROOT / "data.csv", images=tmp_path)
    cells = cells[cells["filename"].isin([f"images/{c}.png" for c in MEASURED])]
    data.fill_images(cells)
    judged = Cells(predict.SHIPPED)([str(tmp_path / "images" / f"{c}.png") for c in MEASURED])
    measured = judged[["crack_length", "inactive_area"]].to_numpy()
    assert measured == pytest.approx(np.array([values[:2] for values in MEASURED.values()]), rel=0.03, abs=0.001)
    assert judged["crack_mode"].tolist() == [mode for _, _, mode in MEASURED.values()]


def test_a_latin_1_terminal_prints_every_name(exported, folder):
    image = folder / "zelle_\u4e2d.png"
    image.write_bytes(next(folder.glob("*.png")).read_bytes())
    command = [sys.executable, str(ROOT / "predict.py"), str(image), "--model", str(exported), *CPU]
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, capture_output=True, env=environment)
    assert done.returncode == 0 and rb"zelle_\u4e2d" in done.stdout, done.stderr


@posix
def test_linked_folders_are_entered_once(exported, folder, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "linked").symlink_to(folder, target_is_directory=True)
    (tmp_path / "links" / "loop").symlink_to(tmp_path / "links", target_is_directory=True)
    found = predict.find_images([str(tmp_path / "links")]).paths
    assert len(found) == len(predict.find_images([str(folder)]).paths) > 0


def test_a_name_in_the_other_unicode_form_is_found(folder):
    stored = folder / unicodedata.normalize("NFD", "zelle_ü.png")
    stored.write_bytes(next(folder.glob("*.png")).read_bytes())
    assert predict.find_images([unicodedata.normalize("NFC", str(stored))]).paths == [str(stored)]


def test_the_newer_of_file_and_checkpoint_predicts(exported, best, folder, tmp_path, monkeypatch, capsys):
    for name, source, age in (("onnx/best.onnx", exported, 100), ("checkpoints/best.ckp", best, 0)):
        (tmp_path / name).parent.mkdir()
        shutil.copy(source, tmp_path / name)
        os.utime(tmp_path / name, ns=(10**18 - age, 10**18 - age))
    monkeypatch.chdir(tmp_path)
    assert predict.main([str(next(folder.glob("*.png"))), *CPU]) == 0
    err = capsys.readouterr().err
    assert err.startswith("checkpoints/best.ckp: ") and "(newer than onnx/best.onnx)" in err


def test_threads_are_refused_for_a_checkpoint(best, folder, capsys):
    assert predict.main([str(folder), "--model", str(best), "--threads", "2", *CPU]) == 2
    assert "PyTorch runs a checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named(exported, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=f"the package {package} is not installed; `pip install {package}`"):
        open_model(exported)


def test_the_reason_in_a_foreign_message_is_kept():
    error = ValueError("\x1b[31mFailed to load\x1b[0m\nmodel: np.str_('a')\n  Unsupported model IR version: 99")
    assert reason(error) == "Failed to load model: 'a' Unsupported model IR version: 99"


def test_a_file_that_cant_be_written_is_named_as_the_user_knows_it(tmp_path):
    with pytest.raises(IsADirectoryError) as raised, atomic_path(tmp_path / "report.html") as temporary:
        temporary.mkdir()
        try:
            open(temporary, "w", encoding="utf-8")
        finally:
            temporary.rmdir()
    assert raised.value.filename == str(tmp_path / "report.html") and "None" not in str(raised.value)
