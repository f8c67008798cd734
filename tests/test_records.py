"""A results folder: nothing twice, nothing lost, whatever happens to the run and to the images."""

import contextlib
import csv
import multiprocessing
import os
import random
import re
import shutil
import signal
import sqlite3
import time
from dataclasses import replace

import numpy as np
import pytest
from conftest import CPU, linux, posix
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from killed_run import Steps, run_and_die, stop
from PIL import Image
from PIL.ExifTags import IFD, Base

import predict
from elcells.files import RECORD, InputError
from elcells.inference.networks import Network
from elcells.records import work
from elcells.records.labels import take_labels
from elcells.records.opening import changing, reading, writing
from elcells.records.record import FAILED, JUDGED, WAITING

SIDE = 64  # pixels of a cell
GRID = ["--grid", "4x4"]


@pytest.fixture(scope="module")
def pixels(elpv):
    """A dozen and more real cells, small: list of uint8 (SIDE, SIDE)."""
    paths = sorted((elpv.parent / "images").glob("*.png"))[:24]
    return [np.asarray(Image.open(path).resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for path in paths]


@pytest.fixture(autouse=True)
def no_pages(request, monkeypatch):
    """Pages take most of a run's time; tests that look at them are marked `pages`."""
    if "pages" not in request.fixturenames:
        monkeypatch.setattr("elcells.pages.derived.write_report", lambda record: None)
        monkeypatch.setattr("elcells.pages.derived.write_review", lambda record: 0)


@pytest.fixture
def pages():
    """Lets a test have the pages."""


@pytest.fixture
def lines(pixels, tmp_path):
    """Two folders of cells, with names in common."""
    for number, cell in enumerate(pixels[:10]):
        save(cell, tmp_path / ("a" if number < 6 else "b") / f"cell{number % 6}.png")
    return tmp_path / "a", tmp_path / "b"


@pytest.fixture
def modules(pixels, tmp_path):
    """A folder of three modules."""
    for number in range(3):
        save(module_of(pixels, number), tmp_path / "modules" / f"m{number}.png")
    return tmp_path / "modules"


@pytest.fixture
def run(exported, tmp_path):
    """run(*inputs and options) judges into a results folder (out=); returns the exit code."""

    def run(*arguments, out=tmp_path / "out", model=exported):
        return predict.main(arguments_of(model, out, *arguments))

    return run


def arguments_of(model, out, *arguments):
    threads = ["--threads", "1"] if str(model).endswith(".onnx") else []
    return [*map(str, arguments), "--out", str(out), "--model", str(model), *threads, *CPU, "--batch-size", "4"]


def module_of(pixels, first, columns=4, rows=4, side=32):
    """The image of a module of real cells, uint8 (H, W)."""
    step = side + 2
    image = np.full((rows * step + 48, columns * step + 48), 6, np.uint8)
    for place in range(columns * rows):
        y, x = divmod(place, columns)
        cell = Image.fromarray(pixels[(first + place) % len(pixels)]).resize((side, side), Image.Resampling.BILINEAR)
        cell = np.asarray(cell, float)
        cell = np.clip(cell * 120 / max(cell.mean(), 30), 0, 255)
        image[24 + y * step :, 24 + x * step :][:side, :side] = cell
    return image


saved_at = iter(range(10**18, 2 * 10**18, 10**9))  # no two images are of one time


def save(array, path, share=1.0):
    """Save an image with a time of its own; share: of the file that is there already, as of a half-copied one."""
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(array).save(path)
    if share < 1:
        os.truncate(path, int(path.stat().st_size * share))
    set_time(path)


def set_time(path):
    time_now = next(saved_at)
    os.utime(path, ns=(time_now, time_now))


def rows(out, table="cells.csv"):
    with open(out / table, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, delimiter=";"))


def names(out):
    """File names of the images in cells.csv."""
    return [os.path.basename(row["image"]) for row in rows(out)]


def results(out):
    """What a results folder holds but for the record, the workbook and the pages: {path: bytes}."""
    files = {path.relative_to(out).as_posix(): path for path in sorted(out.rglob("*")) if path.is_file()}
    apart = (RECORD, ".results.lock", "results.xlsx", "report.html", "review.html")
    contents = {name: path.read_bytes() for name, path in files.items() if name not in apart}
    # the stamp of a page's data comes from the times of the record
    return {name: re.sub(rb',"[0-9a-f]{16}"\);\n$', b"", content) for name, content in contents.items()}


def status(out):
    """{name of an image's file: its status}."""
    with reading(out) as record:
        return {os.path.basename(row["path"]): row["status"] for row in record.images()}


@pytest.fixture
def judged(monkeypatch):
    """Names of the images that are judged from now on."""
    taken = []
    prepared = work.Work.prepared
    monkeypatch.setattr(
        work.Work,
        "prepared",
        lambda self, request, size: taken.append(os.path.basename(request.name)) or prepared(self, request, size),
    )
    return taken


# ---------------------------------------------------------------- runs one after the other


def test_two_folders_become_one_record(lines, run, tmp_path):
    for folder in lines:
        assert run(folder) == 0
    assert run(*lines, out=tmp_path / "both") == 0
    assert len(rows(tmp_path / "out")) == 10 and results(tmp_path / "out") == results(tmp_path / "both")


def test_cells_and_modules_become_one_record(lines, modules, run, tmp_path):
    assert run(lines[0]) == 0 and run(modules, *GRID) == 0
    assert len(rows(tmp_path / "out")) == 6 + 3 * 16 and len(rows(tmp_path / "out", "modules.csv")) == 3


def test_a_table_says_which_images_are_modules(lines, modules, run, tmp_path, capsys):
    for path in modules.glob("*.png"):
        path.rename(lines[0] / path.name)
    site = tmp_path / "site.csv"
    site.write_text("filename;serial;grid\nm0.png;S0;4x4\na/m1.png;S1;4x4\n", encoding="utf-8")
    assert run(lines[0], "--metadata", site) == 0
    assert len(rows(tmp_path / "out")) == 6 + 2 * 16 + 1
    assert [(row["columns"], row["serial"]) for row in rows(tmp_path / "out", "modules.csv")] == [
        ("4", "S0"),
        ("4", "S1"),
    ]
    lines[0].rename(tmp_path / "moved")
    run(tmp_path / "moved")
    assert "9 images of" in capsys.readouterr().err


def test_labels_are_not_lost_by_a_forgotten_grid(modules, run, tmp_path, capsys):
    assert run(modules, *GRID) == 0
    with reading(tmp_path / "out") as record:
        name = next(record.modules())["name"]
    table = tmp_path / "out" / "labels.csv"
    table.write_text(f"filename;crack;inactive;who\ncut/{name}/r01_c01.png;1;0;A\n", encoding="utf-8")
    with changing(tmp_path / "out") as record:
        take_labels(record, str(table))
    assert run(modules, "--grid", "2x4") == 2 and "people labelled it as 4x4; give --grid" in capsys.readouterr().err
    assert run(modules) == 0 and "cut by a grid before, and so again" in capsys.readouterr().err
    with reading(tmp_path / "out") as record:
        assert len(record.people()) == 1
    assert len(rows(tmp_path / "out")) == 3 * 16


def test_a_mistyped_grid_does_not_replace_modules_that_are_sure(modules, run, tmp_path, capsys):
    assert run(modules, *GRID) == 0
    assert run(modules, "--grid", "4x5") == 2
    assert "was surely cut as 4x4, like 2 other images; give --grid" in capsys.readouterr().err
    assert len(rows(tmp_path / "out")) == 3 * 16


def test_a_grid_does_not_replace_what_was_judged_as_cells(lines, modules, run, tmp_path, monkeypatch, capsys):
    assert run(lines[0]) == 0
    before = rows(tmp_path / "out")
    assert run(lines[0], *GRID) == 2
    assert "cell0.png: was judged as a cell, like 5 other images; give --grid" in capsys.readouterr().err
    assert rows(tmp_path / "out") == before
    monkeypatch.setattr("elcells.data.images.looks_like_module", lambda *_: True)
    monkeypatch.setattr("elcells.data.images.CELL_SIDE", 0)
    assert run(modules, out=tmp_path / "out2") == 0
    assert run(modules, *GRID, out=tmp_path / "out2") == 0 and len(rows(tmp_path / "out2")) == 3 * 16


def test_a_grid_that_failed_does_not_stay(lines, run, tmp_path):
    assert run(lines[0], *GRID) == 3
    assert run(lines[0]) == 0 and len(rows(tmp_path / "out")) == 6


def test_the_same_command_again_judges_nothing(lines, modules, run, tmp_path, judged):
    for command in ([lines[0]], [modules, *GRID]):
        assert run(*command) == 0
        before = results(tmp_path / "out")
        judged.clear()
        assert run(*command) == 0
        assert judged == [] and results(tmp_path / "out") == before


def test_a_half_copied_image_is_tried_again_until_it_is_whole(lines, pixels, run, tmp_path, judged):
    save(pixels[0], lines[0] / "cell3.png", 0.6)
    for _ in range(2):
        assert run(lines[0]) == 3
        assert [row["filename"] for row in rows(tmp_path / "out") if row["error"]] == [str(lines[0] / "cell3.png")]
    assert judged.count("cell3.png") == 2 and judged.count("cell0.png") == 1
    save(pixels[0], lines[0] / "cell3.png")
    assert run(lines[0]) == 0
    assert run(lines[0], out=tmp_path / "clean") == 0
    assert results(tmp_path / "out") == results(tmp_path / "clean")


def test_an_image_that_changed_is_judged_again(pixels, run, tmp_path, judged):
    for number in range(3):
        save(pixels[number], tmp_path / "a" / f"{number}.bmp")
    assert run(tmp_path / "a") == 0
    judged.clear()
    save(pixels[8], tmp_path / "a" / "1.bmp")  # of the same size
    assert run(tmp_path / "a") == 0 and judged == ["1.bmp"]
    assert run(tmp_path / "a", out=tmp_path / "clean") == 0
    assert results(tmp_path / "out") == results(tmp_path / "clean")


def no_module(pixels):
    return pixels[0]


def a_smaller_module(pixels):
    return module_of(pixels, 3, 4, 3)


@pytest.mark.parametrize("other, grid", [(no_module, GRID), (a_smaller_module, ["--grid", "4x3"]), (no_module, [])])
def test_files_of_a_module_vanish_with_it(modules, pixels, run, tmp_path, other, grid):
    assert run(modules, *GRID) == 0
    save(other(pixels), modules / "m1.png")
    run(modules / "m1.png", *grid)
    run(modules / "m0.png", modules / "m2.png", *GRID, out=tmp_path / "clean")
    run(modules / "m1.png", *grid, out=tmp_path / "clean")
    assert results(tmp_path / "out") == results(tmp_path / "clean")


@posix
def test_an_image_is_one_row_whatever_it_is_called(lines, run, tmp_path, monkeypatch, judged):
    monkeypatch.chdir(tmp_path)
    os.symlink("a", "link")
    os.symlink("a/cell0.png", "other.png")
    for name in ("a", "./a/../a/cell0.png", lines[0] / "cell0.png", "link", "link/cell0.png", "other.png"):
        assert run(name) == 0
    assert len(judged) == 6 and names(tmp_path / "out") == sorted(judged)


def test_pages_of_a_file_are_rows_and_go_with_it(pixels, run, tmp_path):
    stack = tmp_path / "stack.tif"

    def write(count):
        first, *others = [Image.fromarray(cell) for cell in pixels[:count]]
        first.save(stack, save_all=True, append_images=others)
        set_time(stack)

    def pages():
        return [row["filename"].rpartition("stack.tif")[2] for row in rows(tmp_path / "out")]

    write(3)
    assert run(stack) == 0 and pages() == ["#page=1", "#page=2", "#page=3"]
    assert run(f"{stack}#page=2") == 0 and len(pages()) == 3
    write(2)
    assert run(stack) == 0 and pages() == ["#page=1", "#page=2"]
    write(1)
    assert run(stack) == 0 and pages() == [""]
    assert run(f"{stack}#page=1", stack) == 0 and pages() == [""]
    os.truncate(stack, 100)
    assert run(stack) == 3 and pages() == [""]
    write(2)
    assert run(stack) == 0 and pages() == ["#page=1", "#page=2"]


@linux
def test_names_that_are_not_utf8_are_kept(lines, run, tmp_path, judged, pages):
    odd = os.fsencode(lines[0]) + b"/zelle_\xfc.png"
    shutil.copy(os.fsencode(lines[0] / "cell0.png"), odd)
    for _ in range(2):
        assert run(lines[0]) == 0
    table = (tmp_path / "out" / "cells.csv").read_text(encoding="utf-8")
    assert len(judged) == 7 and table.count(r"zelle_\udcfc.png") == 2
    assert run(os.fsdecode(odd), *GRID, out=tmp_path / "as_modules") == 3


@posix
def test_names_that_a_workbook_cant_hold_are_written(lines, run, tmp_path):
    shutil.copy(lines[0] / "cell0.png", lines[0] / "a\x01\x0b\nb.png")
    (lines[0] / "\x02.png").write_bytes(b"")
    assert run(lines[0]) == 3 and (tmp_path / "out" / "results.xlsx").exists()


def test_results_among_the_images_are_no_images(modules, run, judged):
    for _ in range(2):
        assert run(modules, *GRID, out=modules / "results") == 0
    assert run(modules, *GRID, out=modules / "more") == 0
    assert sorted(judged) == 2 * ["m0.png"] + 2 * ["m1.png"] + 2 * ["m2.png"]


# ---------------------------------------------------------------- the state of the whole record


def test_the_exit_code_is_that_of_the_whole_record(lines, run):
    (lines[0] / "cell2.png").write_bytes(b"")
    assert run(lines[0]) == 3 and run(lines[1]) == 3
    (lines[0] / "cell2.png").unlink()
    assert run(lines[1]) == 0  # what can't be judged any more is not waited for


def test_a_module_that_is_not_sure_stays_one(pixels, lines, run, tmp_path):
    save(module_of(pixels, 0, 3, 4), tmp_path / "m" / "small.png")
    assert run(tmp_path / "m", "--grid", "3x4") == 3 and run(lines[0]) == 3


def test_images_of_a_run_that_was_stopped_are_missed(lines, run, monkeypatch, capsys):
    with monkeypatch.context() as patched, Steps(12, stop).counted():
        patched.setattr("elcells.records.work.Here.AHEAD", 1)
        assert run(lines[0]) == 130
    assert run(lines[1]) == 3
    assert "of a run that was stopped not judged yet" in capsys.readouterr().err
    assert run(lines[0]) == 0


# ---------------------------------------------------------------- what must stay the same


@pytest.fixture
def info(exported):
    """A RunInfo."""
    return predict.info_of(Network(str(exported), device="cpu", threads=1))


@pytest.mark.parametrize(
    "change, what",
    [
        ({"sha256": "0"}, "network"),
        ({"operating_point": "recall"}, "operating point"),
        ({"thresholds": (0.5, 0.4)}, "threshold"),
    ],
)
def test_a_record_is_not_gone_on_with_otherwise(info, tmp_path, change, what):
    with writing(tmp_path, info):
        pass
    with pytest.raises(InputError, match=rf"was begun with another {what} \(.*another --out"):
        with writing(tmp_path, replace(info, **change)):
            pass
    with reading(tmp_path) as record:
        assert len(list(record.runs(["id"]))) == 1


@pytest.mark.parametrize("change", [{"engine": "onnxruntime on CUDA"}, {"network": "copy.onnx"}])
def test_what_changes_no_result_may_change(info, tmp_path, change):
    for each in (info, replace(info, **change)):
        with writing(tmp_path, each):
            pass


def test_another_network_is_refused_in_one_sentence(lines, run, exported, tmp_path, capsys):
    assert run(lines[0]) == 0
    before = results(tmp_path / "out") | {RECORD: (tmp_path / "out" / RECORD).read_bytes()}
    assert run(lines[1], model=exported.with_name("best_int8.onnx")) == 2
    assert "was begun with another network (best.onnx); go on with that" in capsys.readouterr().err
    assert results(tmp_path / "out") | {RECORD: (tmp_path / "out" / RECORD).read_bytes()} == before


def test_a_second_run_is_kept_out(lines, run, info, tmp_path, capsys):
    with writing(tmp_path / "out", info):
        assert run(lines[0]) == 2
    assert "another run is writing there" in capsys.readouterr().err
    assert run(lines[0]) == 0


def garbage(path):
    path.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 20)


def text(path):
    path.write_text("filename;crack\n", encoding="utf-8")


def database(path, statements):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(statements)


FOREIGN = [
    garbage,
    text,
    lambda path: database(path, "CREATE TABLE images (a)"),
    lambda path: database(path, "CREATE TABLE runs (a); PRAGMA user_version = 1"),
    lambda path: database(path, "PRAGMA application_id = 252006673; PRAGMA user_version = 1"),
]


@pytest.mark.parametrize("make", FOREIGN)
def test_a_foreign_file_is_not_touched(lines, run, tmp_path, capsys, make):
    (tmp_path / "out").mkdir()
    make(tmp_path / "out" / RECORD)
    before = (tmp_path / "out" / RECORD).read_bytes()
    assert run(lines[0]) == 2
    assert f"{RECORD}: " in capsys.readouterr().err.splitlines()[-1]
    assert results(tmp_path / "out") == {} and (tmp_path / "out" / RECORD).read_bytes() == before


# ---------------------------------------------------------------- corners and lenses


def corners_csv(path, *names):
    """A table of corners, of modules whose image says where they are to a pixel."""
    corners = [22.5, 22.5, 158.5, 22.5, 158.5, 158.5, 22.5, 158.5]
    lines = [";".join(map(str, [name, *corners])) for name in names]
    path.write_text("\n".join(["filename;x1;y1;x2;y2;x3;y3;x4;y4", *lines]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def namesakes(pixels, tmp_path):
    """Two folders with modules of one name."""
    for number, folder in enumerate(("one", "two")):
        save(module_of(pixels, 5 * number), tmp_path / "sites" / folder / "DJI_0001.png")
    return tmp_path / "sites"


def test_corners_are_those_of_one_image(namesakes, run, tmp_path):
    table = corners_csv(tmp_path / "corners.csv", "sites/two/DJI_0001.png")
    assert run(namesakes, *GRID, "--corners", table) == 0
    with reading(tmp_path / "out") as record:
        assert [row["corners"] != "[]" for row in record.images()] == [False, True]


def test_corners_of_two_images_are_refused(namesakes, run, tmp_path, capsys):
    table = corners_csv(tmp_path / "corners.csv", "DJI_0001.png")
    assert run(namesakes, *GRID, "--corners", table) == 2
    assert "line 2: DJI_0001.png may be " in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_corners_once_given_stay(modules, pixels, run, tmp_path, judged):
    table = corners_csv(tmp_path / "corners.csv", modules / "m1.png")
    assert run(modules, *GRID) == 0
    judged.clear()
    assert run(modules, *GRID, "--corners", table) == 0 and judged == ["m1.png"]
    assert run(modules, *GRID) == 0 and run(modules, *GRID, "--corners", table) == 0 and judged == ["m1.png"]
    save(module_of(pixels, 7), modules / "m1.png")
    assert run(modules, *GRID) == 0
    assert run(modules, *GRID, "--corners", table, out=tmp_path / "clean") == 0
    assert results(tmp_path / "out") == results(tmp_path / "clean")


def test_corners_of_a_run_that_was_stopped_stay(modules, run, tmp_path):
    table = corners_csv(tmp_path / "corners.csv", modules / "m1.png")
    with Steps(8, stop).counted():
        assert run(modules, *GRID, "--corners", table) == 130
    assert run(modules, *GRID) == 0
    assert run(modules, *GRID, "--corners", table, out=tmp_path / "clean") == 0
    assert results(tmp_path / "out") == results(tmp_path / "clean")


def test_the_lens_of_a_folder_is_found_once(modules, pixels, run, tmp_path, monkeypatch):
    """It is that of images which are judged later, too, alone or with kept corners."""
    found = []
    bends = {}
    cut_and_save = work.cut_and_save
    monkeypatch.setattr(work, "FEWEST", 3)
    monkeypatch.setattr(work, "lens_of", lambda *arguments: found.append(1) or -0.01)
    monkeypatch.setattr(
        work,
        "cut_and_save",
        lambda *given: bends.update({os.path.basename(given[2]): given[-1]}) or cut_and_save(*given),
    )
    table = corners_csv(tmp_path / "corners.csv", modules / "m1.png")
    run(modules, *GRID, "--corners", table)
    assert bends == dict.fromkeys(["m0.png", "m1.png", "m2.png"], -0.01)
    save(module_of(pixels, 7), modules / "m0.png")
    save(module_of(pixels, 8), modules / "m1.png")
    bends.clear()
    run(modules / "m0.png", *GRID)
    run(modules, *GRID)
    assert bends == dict.fromkeys(["m0.png", "m1.png"], -0.01) and len(found) == 1


def test_the_lens_of_a_named_camera_is_found_once_for_all_folders(pixels, run, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(work, "FEWEST", 2)
    monkeypatch.setattr(work, "lens_of", lambda names, *arguments: found.append(len(names)))
    for number in range(4):
        exif = Image.Exif()
        exif[Base.Make], exif[Base.Model] = "Maker", "Model"
        exif.get_ifd(IFD.Exif)[Base.FocalLength] = 35 if number < 2 else 50
        path = tmp_path / "modules" / str(number % 2) / f"m{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(module_of(pixels, number)).save(path, exif=exif)
    run(tmp_path / "modules", *GRID)
    with reading(tmp_path / "out") as record:
        cameras = [row["camera"] for row in record.connection.execute("SELECT camera FROM lenses ORDER BY camera")]
    assert found == [2, 2] and cameras == ["Maker Model 35", "Maker Model 50"]


# ---------------------------------------------------------------- errors and stops


def failing_engine(monkeypatch, error):
    """Let the network raise an error at the second task."""
    finish = work.Work.finish
    tasks = []

    def failing(self, prepared):
        tasks.append(1)
        if len(tasks) == 2:
            raise error
        return finish(self, prepared)

    monkeypatch.setattr(work.Work, "finish", failing)


def test_ctrl_c_keeps_what_was_judged(lines, run, tmp_path, monkeypatch, judged):
    with monkeypatch.context() as patched:
        failing_engine(patched, KeyboardInterrupt())
        assert run(lines[0]) == 130
    counts = list(status(tmp_path / "out").values())
    assert counts.count(JUDGED) == 4 and counts.count(WAITING) == 2 and results(tmp_path / "out") == {}
    judged.clear()
    assert run(lines[0]) == 0 and len(judged) == 2


def test_an_error_of_the_engine_leaves_the_tables_as_they_were(lines, run, tmp_path, monkeypatch):
    assert run(lines[1]) == 0
    before = results(tmp_path / "out")
    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        failing_engine(patched, RuntimeError("out of memory"))
        run(lines[0])
    assert results(tmp_path / "out") == before
    assert run(lines[0]) == 0 and len(rows(tmp_path / "out")) == 10


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), sqlite3.OperationalError("disk I/O error")])
def test_an_error_of_the_record_leaves_the_tables_as_they_were(lines, run, tmp_path, monkeypatch, capsys, error):
    assert run(lines[1]) == 0
    before = results(tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr("elcells.records.record.Record.insert", lambda *arguments: (_ for _ in ()).throw(error))
        assert run(lines[0]) == 2
    assert str(error.args[-1]) in capsys.readouterr().err.splitlines()[-1]
    assert results(tmp_path / "out") == before


def test_a_table_that_cant_be_finished_stays_as_it_was(lines, run, tmp_path, monkeypatch):
    assert run(lines[1]) == 0
    before = results(tmp_path / "out")

    def fail(record, *_):
        yield [""]
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("elcells.records.exports.cell_rows", fail)
        assert run(lines[0]) == 2
    assert results(tmp_path / "out") == before


def test_half_written_files_of_a_killed_run_vanish(lines, run, tmp_path):
    half = [tmp_path / "out" / ".tmp1_cells.csv", tmp_path / "out" / "overlays" / ".tmp1_m0.png"]
    for path in half:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    assert run(lines[0]) == 0 and not any(path.exists() for path in half)


# ---------------------------------------------------------------- kills


@pytest.fixture(scope="session")
def forks():
    """Starts processes that have predict.py loaded already."""
    if os.name != "posix":
        pytest.skip("signals are POSIX's")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killed_run"])
    return context


def killed(forks, arguments, kind, step=None, seconds=None):
    """Whether a run in a process of its own was killed, by a signal of this kind."""
    process = forks.Process(target=run_and_die, args=(arguments, kind, step, seconds))
    process.start()
    process.join(60)
    return process.exitcode == -kind


def go_on_as_if_nothing_had_happened(forks, commands, folder, kills):
    """Kill one of several commands and give it again; compare with runs that were not killed.

    commands: arguments of predict.main but for the folder. kills: list of the random share of the steps, or of the time
    where negative, at which a run is killed.
    """
    steps = []
    started = time.monotonic()
    for command in commands:
        with Steps().counted() as counted:
            assert predict.main(command(folder / "whole")) == 0
        steps.append(counted.count)
    seconds = (time.monotonic() - started) / len(commands)
    whole = results(folder / "whole")
    hits = 0
    for number, share in enumerate(kills):
        out = folder / str(number)
        victim = number % len(commands)
        moment = {"step": 1 + int(share * steps[victim])} if share >= 0 else {"seconds": -share * seconds}
        for command in commands[:victim]:
            assert predict.main(command(out)) == 0
        kind = (signal.SIGKILL, signal.SIGTERM)[number // 2 % 2]
        hits += killed(forks, commands[victim](out), kind, **moment)
        with contextlib.suppress(InputError), reading(out) as record:  # nothing was written yet
            assert list(record.images()) is not None
        for command in commands[victim:]:
            assert predict.main(command(out)) == 0
        assert results(out) == whole, (number, moment)
        shutil.rmtree(out)
    return hits


@pytest.fixture
def commands(exported, lines, modules):
    """A run of cells and a run of modules."""
    return [
        lambda out: arguments_of(exported, out, *lines),
        lambda out: arguments_of(exported, out, modules, *GRID),
    ]


def test_a_killed_run_is_gone_on_with(forks, commands, tmp_path):
    assert go_on_as_if_nothing_had_happened(forks, commands, tmp_path, [0.5, 0.4, 0.3]) == 3


@pytest.mark.slow
def test_fifty_kills_cost_nothing(forks, commands, tmp_path, pages):
    draw = random.Random(40)
    kills = [draw.random() * (1 if number % 8 < 4 else -1) for number in range(50)]
    assert go_on_as_if_nothing_had_happened(forks, commands, tmp_path, kills) > 30


# ---------------------------------------------------------------- any sequence

PLACES = st.integers(0, 2)
IMAGES = st.integers(0, 9)
ACTION = st.one_of(
    st.tuples(st.just("cell"), PLACES, IMAGES),
    st.tuples(st.just("half"), PLACES, IMAGES),
    st.tuples(st.just("module"), st.integers(0, 1), IMAGES),
    st.tuples(st.just("corners"), st.integers(0, 1)),
    st.tuples(st.just("run"), st.sampled_from(["a", "b", "modules"]), st.none() | st.integers(1, 40)),
    st.tuples(st.just("run"), st.sampled_from(["a", "b", "modules"]), st.none() | st.integers(1, 40)),
)


class Line:
    """Folders a and b with cells, and modules; the runs over them."""

    def __init__(self, folder, pixels, run):
        self.folder = folder
        self.pixels = pixels
        self.run_into = run
        self.corners = set()  # modules that once got them

    def cell(self, place, number, share=1.0):
        """Put a cell into each of both folders."""
        for folder in ("a", "b"):
            save(self.pixels[number], self.folder / folder / f"{place}.png", share)

    def half(self, place, number):
        self.cell(place, number, 0.5)

    def module(self, place, number):
        save(module_of(self.pixels, number), self.folder / "modules" / f"{place}.png")

    def corners_of(self, place):
        """Give corners of a module in a run of its own."""
        if (self.folder / "modules" / f"{place}.png").exists():
            self.corners.add(place)
            self.run("modules", None, [place])

    def run(self, name, step, corners=(), out="out"):
        """Judge a folder, stopped at a step where one is given; returns the exit code."""
        if not (self.folder / name).exists():
            return 0
        options = GRID if name == "modules" else []
        if corners:
            named = [self.folder / "modules" / f"{place}.png" for place in corners]
            options = [*options, "--corners", corners_csv(self.folder / "corners.csv", *named)]
        with Steps(step, stop).counted():
            return self.run_into(self.folder / name, *options, out=self.folder / out)

    def run_all(self, out, corners=()):
        """Judge all folders; returns the last exit code."""
        codes = [self.run(name, None, corners if name == "modules" else (), out) for name in ("a", "b", "modules")]
        return codes[-1]


def test_any_sequence_of_runs_ends_as_one_clean_run(pixels, run, tmp_path, request):
    folders = iter(range(10**6))

    def check(actions):
        line = Line(tmp_path / str(next(folders)), pixels, run)
        line.cell(0, 0)
        line.module(0, 0)
        methods = {"cell": line.cell, "half": line.half, "module": line.module}
        methods |= {"corners": line.corners_of, "run": line.run}
        for name, *arguments in actions:
            methods[name](*arguments)
        code = line.run_all("out")
        assert code == line.run_all("clean", sorted(line.corners))
        assert results(line.folder / "out") == results(line.folder / "clean")
        with reading(line.folder / "out") as record:
            assert (code == 0) == (record.count(f"status = '{FAILED}'") == 0)
        shutil.rmtree(line.folder)

    options = settings(
        max_examples=request.config.getoption("--fuzz") // 60,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    options(given(st.lists(ACTION, min_size=2, max_size=8))(check))()
