"""What a results folder gives to other programs: tables, a workbook, DataFrames, and the documents about them."""

import csv
import os
import re
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import openpyxl
import pandas as pd
import pytest
from conftest import CPU, ROOT
from PIL import Image

import data
import predict
from elcells import Cells, open_results
from elcells.data.tables import read_rows
from elcells.files import InputError
from elcells.inference.cells import MEASURED, SEVERITY, TOO_DARK, CellResult, Place
from elcells.modules.cutting import CutModule, read_corners
from elcells.records import exports
from elcells.records.exports import write_tables
from elcells.records.labels import keep_label
from elcells.records.opening import reading, writing
from elcells.records.requests import ImageResult, Request
from elcells.records.runs import RunInfo

INFO = RunInfo("n.onnx", "00", "n.onnx", ("crack", "inactive"), "f1", (0.5, 0.4), "onnxruntime")
ODD = ["/a/=1+1;x.png", '/a/two\nlines "and\rmore.png', "/a/\udcff\udcfe.png", "/a/ü.png"]


def image_result(path, error=""):
    """A judged or failed image of a cell."""
    cell = CellResult(path, (1, 0), (0.75, 0.125), 0.5) if not error else CellResult(path, error=error)
    return ImageResult(Request(path, path, 0, 1, 1), error, (), (cell,))


def module_result(number, count=4):
    """A module of `count` cells in a column, the first of which is dark in part, and the last black."""
    name = f"/m/{number:04}.png"
    cells = []
    for row in range(1, count + 1):
        place = Place(f"m{number:04}", row, 1)
        file = f"cut/m{number:04}/r{row:02}_c01.png"
        dark = {"dark_part": 0.42, "dark_ratio": 0.1} if row == 1 else {"dark_part": 0.0}
        judged = CellResult(file, (0, 1), (0.25, 0.9), 0.4, place=place, **dark)
        cells.append(judged if row < count else CellResult(file, brightness=0.01, error=TOO_DARK, place=place))
    corners = (-3.25, 2, 10, -1.5, 10, 40, 0, 40)
    module = CutModule(name, 1, count, 0.9, 0.1, True, cell_pixels=40, bend=-0.01, corners=corners)
    return ImageResult(Request(name, name, 0, 1, 1, (1, count)), "", (), tuple(cells), module)


CRACK = {"crack_length": 0.7512, "inactive_area": 0.0, "crack_mode": "A"}
SOUND = {"crack_length": 0.0, "inactive_area": 0.0}
SMALL = {"crack_length": None, "inactive_area": 0.0}  # of few pixels, with a crack
BOTH = {"crack_length": 0.5, "inactive_area": 0.12345, "crack_mode": "C"}
TINY = {"crack_length": 0.046667, "inactive_area": 0.000667, "below": "crack_length inactive_area"}
CALLS = {"crack": (1, 0), "sound": (0, 0), "small": (1, 0), "both": (1, 1), "tiny": (1, 1)}
SEVERITIES = {"crack": CRACK, "sound": SOUND, "small": SMALL, "both": BOTH, "tiny": TINY}


def severe_module(number, kinds):
    """A module of cells in a column, names of CALLS, or "black"."""
    result = module_result(number, len(kinds))
    cells = []
    for cell, kind in zip(result.cells, kinds):
        if kind == "black":
            cells.append(CellResult(cell.filename, brightness=0.01, error=TOO_DARK, place=cell.place))
            continue
        p = tuple(0.9 if call else 0.1 for call in CALLS[kind])
        cells.append(CellResult(cell.filename, CALLS[kind], p, 0.4, place=cell.place, **SEVERITIES[kind]))
    return replace(result, cells=tuple(cells))


def severity_of_module(folder, kinds, labels=()):
    """The columns of modules.csv from crack_length to mode_C of a module (`severe_module`), list of str.

    labels: (row of the cell, class, label) of a person.
    """
    with writing(folder, INFO) as record:
        record.add(severe_module(1, kinds))
        for row, name, label in labels:
            values = (1, row, 1, name, label, "Ann", "2026-11-28T10:00:00+00:00")
            with record.connection:
                keep_label(record, values)
        record.end()
        write_tables(record)
    [module] = rows(folder / "modules.csv")
    return [module[name] for name in ("crack_length", "inactive_area", "mode_A", "mode_B", "mode_C")]


def fill(folder, results):
    """Write a record of ImageResults and its tables."""
    with writing(folder, INFO) as record:
        for result in results:
            record.add(result)
        record.end()
        write_tables(record)
    return folder


def rows(path):
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, delimiter=";"))


@pytest.fixture
def out(tmp_path):
    """A results folder with odd names, an error that looks like a formula, and a module."""
    failed = image_result("/a/bad.png", "=HYPERLINK(1)\n\r of; it")
    return fill(tmp_path / "out", [*map(image_result, ODD), failed, module_result(1)])


# ---------------------------------------------------------------- tables


def test_tables_are_utf8_with_a_mark_and_hold_no_formula(out):
    for name in ("cells.csv", "modules.csv"):
        assert (out / name).read_bytes().startswith(b"\xef\xbb\xbf")
        assert len(pd.read_csv(out / name, sep=";")) == len(rows(out / name))
    by_image = {row["image"]: row for row in rows(out / "cells.csv") if not row["module"]}
    assert by_image.keys() == {ODD[0], ODD[1].replace("\r", "\n"), r"/a/\udcff\udcfe.png", ODD[3], "/a/bad.png"}
    assert by_image["/a/bad.png"]["error"] == "'=HYPERLINK(1) of; it" and by_image["/a/bad.png"]["crack"] == ""
    assert by_image[ODD[0]]["p_inactive"] == "0.1250"


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@a", "\t=1", "\r=1", "\n=1", "\uff1d1"])
def test_text_that_looks_like_a_formula_gets_a_quote(text, tmp_path):
    exports.write_csv(tmp_path / "t.csv", [text, "b"], [[text, -1.5]])
    with open(tmp_path / "t.csv", encoding="utf-8-sig", newline="") as file:
        header, row = csv.reader(file, delimiter=";")
    assert header[0].startswith("'") and row == [header[0], "-1.5"]


def test_numbers_stay_numbers(out):
    [module] = rows(out / "modules.csv")
    names = ("x1", "y2", "bend", "inactive", "nearly_black", "dark")
    assert [module[name] for name in names] == ["-3.2", "-1.5", "-0.01", "3", "1", "1"]
    [(_, name, corners)] = read_corners(out / "modules.csv")
    assert name == "/m/0001.png" and corners.shape == (4, 2)


def test_a_table_of_cells_is_one_of_labels(out):
    with pytest.raises(InputError, match=r"line \d+: crack is '', expected 0 or 1; label the cell or remove the row"):
        data.read_table(out / "cells.csv")
    table = read_rows(out / "cells.csv", ["filename"])
    table[table["crack"] != ""].to_csv(out / "mine.csv", sep=";", index=False)
    table = data.read_table(out / "mine.csv")
    assert str(table["path"].iloc[-1]) == str(out / "cut" / "m0001" / "r03_c01.png")
    assert (table["module"] != "").sum() == 3 and table["crack"].sum() == 4


# ---------------------------------------------------------------- how bad the defects are


def test_cells_tell_how_bad_their_defects_are(tmp_path):
    kinds = ["crack", "sound", "small", "both", "tiny", "black"]
    out = fill(tmp_path, [severe_module(1, kinds)])
    table = rows(out / "cells.csv")
    names = list(table[0])
    assert names[names.index("dark_ratio") + 1 : names.index("error")] == list(SEVERITY)
    assert [[row[name] for name in SEVERITY] for row in table] == [
        ["0.751", "0.0000", "A", ""],
        ["0.000", "0.0000", "", ""],
        ["", "0.0000", "", ""],
        ["0.500", "0.1235", "C", ""],
        ["0.047", "0.0007", "", "crack_length inactive_area"],
        ["", "", "", ""],
    ]
    header, *sheet = ([c.value for c in row] for row in openpyxl.load_workbook(out / "results.xlsx")["cells"])
    place = header.index("crack_length")
    assert [row[place : place + 4] for row in sheet][2:5] == [
        [None, 0, None, None],
        [0.5, 0.12345, "C", None],
        [0.046667, 0.000667, None, "crack_length inactive_area"],
    ]
    cells = open_results(out).cells
    assert cells["crack_length"].dtype == cells["inactive_area"].dtype == float
    assert cells["crack_length"].isna().tolist() == [kind in ("small", "black") for kind in kinds]
    assert cells["crack_mode"].tolist() == ["A", "", "", "C", "", ""] and cells["below"][4].split() == list(
        SEVERITY[:2]
    )


@pytest.mark.parametrize(
    "kinds, expected",
    [
        # A black cell has no area but counts as one of the module's cells
        (["crack", "both", "sound", "black"], ["1.251", "0.04115", "0.25", "0.0", "0.25"]),
        (["crack", "small"], ["0.751", "0.0", "0.5", "0.0", "0.0"]),  # the sum covers what was measured
        (["small", "sound"], ["", "0.0", "", "", ""]),  # no length of a cell with a crack is known
        (["sound", "sound"], ["0.0", "0.0", "0.0", "0.0", "0.0"]),
        (["black"], ["", "", "", "", ""]),
        (["tiny"], ["0.047", "0.000667", "0.0", "0.0", "0.0"]),
    ],
)
def test_modules_sum_up_their_cells(tmp_path, kinds, expected):
    assert severity_of_module(tmp_path, kinds) == expected


@pytest.mark.parametrize(
    "labels, expected",
    [
        ([], ["1.251", "0.04115", "0.3333", "0.0", "0.3333"]),
        ([(1, "crack", 0)], ["0.5", "0.04115", "0.0", "0.0", "0.3333"]),
        ([(1, "crack", 1), (3, "crack", 0)], ["1.251", "0.04115", "0.3333", "0.0", "0.3333"]),  # they agree
        ([(1, "crack", None)], ["1.251", "0.04115", "0.3333", "0.0", "0.3333"]),  # the person is unsure
        # A part that is dark but not inactive is gray
        ([(2, "inactive", 0)], ["1.251", "0.0", "0.3333", "0.3333", "0.0"]),
        ([(2, "crack", 0), (2, "inactive", 0)], ["0.751", "0.0", "0.3333", "0.0", "0.0"]),
        ([(3, "crack", 1)], ["1.251", "0.04115", "0.3333", "0.0", "0.3333"]),  # only a person saw it: not measured
        ([(3, "inactive", 1)], ["1.251", "0.061725", "0.3333", "0.0", "0.3333"]),  # likewise: mean over two cells
        ([(1, "crack", 0), (2, "crack", 0)], ["0.0", "0.04115", "0.0", "0.0", "0.0"]),
        ([(1, "crack", 0), (2, "crack", 0), (3, "crack", 1)], ["", "0.04115", "", "", ""]),
    ],
)
def test_people_correct_how_bad_a_module_is(tmp_path, labels, expected):
    assert severity_of_module(tmp_path, ["crack", "both", "sound"], labels) == expected
    assert [row["crack_length"] for row in rows(tmp_path / "cells.csv")] == ["0.751", "0.500", "0.000"]


def test_modules_have_real_numbers_in_the_workbook_and_in_pandas(tmp_path):
    severity_of_module(tmp_path, ["crack", "both", "sound", "black"])
    header, values = ([c.value for c in row] for row in openpyxl.load_workbook(tmp_path / "results.xlsx")["modules"])
    place = header.index("dark") + 1
    names = ["crack_length", "inactive_area", "mode_A", "mode_B", "mode_C"]
    assert header[place : place + 6] == [*names, "error"]
    assert values[place : place + 5] == [1.251, 0.04115, 0.25, 0, 0.25]
    modules = open_results(tmp_path).modules
    assert all(modules[name].dtype == float for name in names) and modules.loc[0, "mode_C"] == 0.25


def test_a_network_without_crack_lines_leaves_lengths_empty(out):
    assert {row["crack_length"] for row in rows(out / "cells.csv")} == {""}
    [module] = rows(out / "modules.csv")
    assert [module[name] for name in ("crack_length", "mode_A", "mode_B", "mode_C")] == [""] * 4
    assert open_results(out).modules["mode_A"].isna().all()


# ---------------------------------------------------------------- workbook


def test_the_workbook_holds_numbers_below_a_header_that_stays(out):
    book = openpyxl.load_workbook(out / "results.xlsx")
    assert book.sheetnames == ["modules", "cells", "runs"] and book.active.title == "modules"
    for sheet in book:
        assert sheet.freeze_panes == "A2" and all(cell.font.bold for cell in sheet[1])
    header, *cells = ([cell.value for cell in row] for row in book["cells"].iter_rows())
    assert header == exports.cell_fields(INFO.classes) and len(cells) == 9
    judged = next(dict(zip(header, row)) for row in cells if row[0] == "cut/m0001/r01_c01.png")
    assert (judged["inactive"], judged["p_inactive"], judged["brightness"], judged["error"]) == (1, 0.9, 0.4, None)
    assert (judged["dark_part"], judged["dark_ratio"]) == (0.42, 0.1)
    assert not any(cell.data_type == "f" for sheet in book for row in sheet.iter_rows() for cell in row)
    assert book["modules"]["K2"].value == -3.2 and book["runs"]["C2"].value == "n.onnx"


def test_the_same_record_gives_the_same_bytes(out):
    names = ("cells.csv", "modules.csv", "results.xlsx")
    before = [(out / name).read_bytes() for name in names]
    with reading(out) as record:
        write_tables(record)
    assert [(out / name).read_bytes() for name in names] == before


def test_the_workbook_is_as_old_as_its_record(out):
    with writing(out, INFO) as record:
        record.connection.execute("UPDATE runs SET started = '2020-01-02T03:04:05+01:00' WHERE id = 1")
        write_tables(record)
    assert openpyxl.load_workbook(out / "results.xlsx").properties.created.isoformat() == "2020-01-02T02:04:05"


def test_a_sheet_that_is_full_goes_on_in_another(out, monkeypatch):
    monkeypatch.setattr(exports, "SHEET_ROWS", 4)
    with reading(out) as record:
        write_tables(record)
    book = openpyxl.load_workbook(out / "results.xlsx")
    assert book.sheetnames == ["modules", "cells", "cells 2", "cells 3", "runs"]
    assert [book[name].max_row - 1 for name in book.sheetnames] == [1, 4, 4, 1, 1]
    assert book["cells 3"]["A1"].value == "filename"


def test_tables_of_many_cells_take_no_more_memory(tmp_path):
    peaks = []
    for count in (2, 40):
        fill(tmp_path / f"{count}", [module_result(number, 60) for number in range(count)])
        with reading(tmp_path / f"{count}") as record:
            tracemalloc.start()
            write_tables(record)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] - peaks[0] < 200_000  # bytes; 2,280 more rows


# ---------------------------------------------------------------- from Python


def test_results_are_data_frames_with_types(out):
    results = open_results(out)
    cells = results.cells
    assert len(cells) == 9 and cells["crack"].dtype == "Int64" and cells["crack"].sum() == 4
    assert cells["p_crack"].dtype == cells["brightness"].dtype == float and cells["row"].isna().sum() == 5
    assert list(cells.columns) == list(rows(out / "cells.csv")[0]) and ODD[2] in set(cells["filename"])
    assert cells["dark_part"].sum() == 0.42 and cells["dark_ratio"].count() == 1
    module = results.modules.loc[0]
    assert (
        module["dark"] == 1
        and module["x1"] == -3.2
        and module["inactive"] == 3
        and results.modules["sure"].dtype == "Int64"
    )
    assert set(results.images["status"]) == {"judged", "failed"} and str(results.images["judged"].dtype.tz) == "UTC"
    assert results.runs.loc[0, "thresholds"] == [0.5, 0.4]


def test_results_say_what_is_missing(out, tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no results.sqlite there; make one"):
        open_results(tmp_path / "nowhere")
    with writing(out, INFO), pytest.raises(InputError, match=r"is a run writing it\?"):
        open_results(out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert len(open_results(out).runs) == 2
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.fixture
def cells(exported):
    return Cells(exported, device="cpu", threads=1)


def test_arrays_and_files_get_the_calls_of_predict(cells, exported, elpv, tmp_path):
    paths = sorted((elpv.parent / "images").glob("*.png"))[:5]
    options = ["--model", str(exported), "--threads", "1", *CPU]
    assert predict.main([*map(str, paths), "--out", str(tmp_path / "out"), *options]) == 0
    by_predict = open_results(tmp_path / "out").cells
    images = [np.asarray(Image.open(path)) for path in paths]
    by_path = cells(paths)
    calls = ["crack", "inactive", "p_crack", "p_inactive"]
    assert list(by_path.columns) == ["filename", *calls, *MEASURED, *SEVERITY, "error"]
    for calls in (by_path, cells(np.stack(images)), cells(images)):
        for name in ("crack", "inactive"):
            assert calls[name].tolist() == by_predict[name].tolist() and calls[name].dtype == "Int64"
            assert calls[f"p_{name}"].tolist() == pytest.approx(by_predict[f"p_{name}"].tolist(), abs=1e-5)
    assert "filename" not in cells(images) and len(cells(images[0])) == 1
    half = np.full((300, 300), 150, np.uint8)
    half[:, :150] = 15
    assert cells(half)["dark_part"][0] == pytest.approx(0.5, abs=0.02) and cells(half)["dark_ratio"][0] == 0.1
    assert by_predict["dark_part"].tolist() == pytest.approx(by_path["dark_part"].tolist(), abs=1e-5)
    assert by_path["crack_length"].isna().all()  # the network does not tell where cracks run
    assert by_path["inactive_area"].tolist() == pytest.approx(by_predict["inactive_area"].tolist(), abs=1e-5)
    assert by_path["inactive_area"].dtype == float and set(by_path["crack_mode"]) == {""}
    assert by_path["below"].tolist() == by_predict["below"].tolist()
    assert len(cells(elpv.parent / "images")) == 48 and cells([]).columns.equals(by_path.columns)


def test_a_file_that_cant_be_judged_has_an_error_and_no_calls(cells, elpv, tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    good = next((elpv.parent / "images").glob("*.png"))
    calls = cells([tmp_path / "empty.png", str(good), "no\nsuch.png", tmp_path, np.zeros((0, 5), np.uint8)])
    assert calls["crack"].isna().tolist() == [True, False, True, True, True]
    assert (calls["error"] != "").equals(calls["p_crack"].isna()) and calls["error"][2] == "no such.png: no such file"
    assert cells("nowhere.png")["error"][0] == "nowhere.png: no such file"


@pytest.mark.parametrize("images", [np.zeros((2, 9, 9)), np.zeros((1, 9, 9, 3), np.uint8), [3]])
def test_arrays_of_another_kind_are_refused(cells, images):
    with pytest.raises(InputError, match=r"image 0 is .*; give gray images as uint8 arrays \(H, W\), or paths"):
        cells(images)


def test_neither_needs_torch(exported, elpv, out):
    code = """
import sys
import elcells
assert not {"numpy", "pandas"} & set(sys.modules)
from elcells import Cells, open_results
assert len(Cells(sys.argv[1], device="cpu")(sys.argv[2])) == 48
assert len(open_results(sys.argv[3]).cells) == 9
loaded = {"torch", "torchvision", "sklearn", "matplotlib", "distributed"} & set(sys.modules)
assert not loaded, loaded
"""
    command = [sys.executable, "-c", code, str(exported), str(elpv.parent / "images"), str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- documents


def test_the_readme_shows_how_to_use_it_from_python(exported, elpv, tmp_path, monkeypatch, capsys):
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## From Python\n")[1].split("\n## ")[0]
    code = "\n".join(re.findall(r"^    (.*)$", section, re.MULTILINE))
    os.symlink(elpv.parent / "images", tmp_path / "images")
    os.symlink(exported, tmp_path / "cells.onnx")
    monkeypatch.chdir(tmp_path)
    assert predict.main(["images/", "--model", "cells.onnx", "--out", "results", *CPU]) == 0
    exec(code, scope := {})
    assert len(scope["calls"]) == len(scope["results"].cells) == 48 and "p_crack" in capsys.readouterr().out


def columns_in_document(heading):
    """Names in the first column of the table below a bold heading of doc/record.md, in order."""
    text = (ROOT / "doc" / "record.md").read_text(encoding="utf-8")
    part = text.split(f"\n**{heading}**")[1].split("\n\n")[1]
    names = re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in part.splitlines()[2:]))
    of_class = [name.replace("CLASS", c) for name in names if "CLASS" in name for c in INFO.classes]
    return {name for name in names if "CLASS" not in name} | set(of_class)


def test_the_document_names_every_column_of_the_record(out):
    with reading(out) as record:
        tables = [row[0] for row in record.connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            columns = {row["name"] for row in record.connection.execute(f"PRAGMA table_info({table})")}
            assert columns_in_document(table) == columns, table
    text = (ROOT / "doc" / "record.md").read_text(encoding="utf-8").split("## The CSV files")[1]
    wanted = [*exports.cell_fields(["CLASS"]), "name", "y4", *exports.module_fields(["CLASS"])[-9:]]
    assert not [name for name in wanted if f"`{name}`" not in text]
