"""What people add to a record: labels, metadata; and several records as one."""

import csv
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import report
from elcells import open_results
from elcells.files import InputError
from elcells.inference.cells import TOO_DARK, CellResult, Place
from elcells.inference.severity import shape_image
from elcells.modules.cutting import CutModule
from elcells.records.exports import write_tables
from elcells.records.labels import agreement, lines_about_people, take_labels
from elcells.records.opening import APPLICATION, VERSION, changing, reading, writing
from elcells.records.requests import ImageResult, module_name, request_of
from elcells.records.rows import final_calls
from elcells.records.runs import RunInfo
from elcells.records.summary import lines_about

INFO = RunInfo("n.onnx", "00", "n.onnx", ("crack", "inactive"), "f1", (0.5, 0.4), "onnxruntime")
HEADER = "filename;crack;inactive;unsure;who;when\n"
SHAPE = shape_image(*np.eye(300, dtype=bool)[None].repeat(2, 0))


def cell_result(path):
    """An image of a cell that was called cracked."""
    return ImageResult(request_of(str(path)), cells=(CellResult(str(path), (1, 0), (0.75, 0.125), 0.5),))


def module_result(path, folder):
    """A module of 2x2 cells, inactive but for the last, which is black; its files are in a results folder."""
    request = request_of(str(path), (2, 2))
    name = module_name(request.path, 0)
    cells = []
    for number in range(4):
        place = Place(name, number // 2 + 1, number % 2 + 1)
        file = f"cut/{name}/r{place.row:02}_c{place.column:02}.png"
        save(folder / file)
        bad = {"crack_length": 0.0, "inactive_area": 0.25, "below": "inactive_area", "shape": SHAPE}
        judged = CellResult(file, (0, 1), (0.25, 0.9), 0.4, place=place, map=bytes(200), **bad)
        cells.append(judged if number < 3 else CellResult(file, brightness=0.01, error=TOO_DARK, place=place))
    save(folder / "modules" / f"{name}.jpg")
    nodes = tuple(float(v) for y in range(3) for x in range(3) for v in (20 * x, 20 * y))
    corners = (0, 0, 40, 0, 40, 40, 0, 40)
    module = CutModule(str(path), 2, 2, 0.9, 0.1, True, cell_pixels=20, bend=0.0, corners=corners, nodes=nodes)
    return ImageResult(request, cells=tuple(cells), module=module)


def save(path, value=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 40), value, np.uint8)).save(path)
    return path


def fill(folder, *paths):
    """A results folder of images; those called m….png are modules."""
    with writing(folder, INFO) as record:
        for path in paths:
            record.add(module_result(path, folder) if path.name.startswith("m") else cell_result(path))
        record.end()
        write_tables(record)
    return folder


@pytest.fixture
def images(tmp_path):
    """Two cells of one name, and a module."""
    return [save(tmp_path / name) for name in ("in/a/x.png", "in/b/x.png", "in/m.png")]


@pytest.fixture
def out(images, tmp_path):
    return fill(tmp_path / "out", *images)


def table(path, *rows, header=HEADER):
    path.write_text(header + "".join(f"{row}\n" for row in rows), encoding="utf-8")
    return str(path)


def rows(path):
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, delimiter=";"))


def calls(folder):
    """{end of a cell's name: its final calls}."""
    with reading(folder) as record:
        people = record.people()
        return {
            "/".join((row["file"] or row["path"]).split("/")[-2:]): final_calls(
                row, people.get((row["image"], row["row"], row["column"])), record.classes
            )
            for row in record.cells()
        }


def named(folder):
    """The name of the module's files."""
    with reading(folder) as record:
        return next(row["name"] for row in record.modules())


def test_labels_correct_calls_and_are_counted(out, capsys):
    name = named(out)
    given = table(
        out / "labels.csv",
        "../in/a/x.png;0;0;;Jörg;2026-11-28T10:00:00Z",
        f"cut/{name}/r01_c01.png;0;1;;Jörg;2026-11-28T10:00:00Z",
        f"cut/{name}/r01_c02.png;;;1;Jörg;2026-11-28T10:00:00Z",
        f"cut/{name}/r02_c02.png;1;1;;Ann;2026-11-28T10:00:00Z",
        "../in/b/x.png;;;;Ann;2026-11-28T10:00:00Z",
    )
    assert report.main([str(out), "--labels", given]) == 0
    said = capsys.readouterr().err
    assert "labels of 4 cells taken" in said and "4 cells labelled by Ann, Jörg" in said
    assert "crack 1 of 2, inactive 2 of 2; 1 call corrected" in said and "2 crack, 4 inactive" in said
    assert calls(out) == {
        "a/x.png": (0, 0),
        "b/x.png": (1, 0),
        f"{name}/r01_c01.png": (0, 1),
        f"{name}/r01_c02.png": (0, 1),
        f"{name}/r02_c01.png": (0, 1),
        f"{name}/r02_c02.png": (1, 1),
    }
    [module] = rows(out / "modules.csv")
    assert (module["crack"], module["inactive"], module["nearly_black"]) == ("1", "4", "0")
    # The length of the only crack, which a person saw in the black cell, is not known, nor is its area
    assert (module["crack_length"], module["inactive_area"], module["mode_A"]) == ("", "0.25", "")
    by_name = {row["filename"]: row for row in rows(out / "cells.csv")}
    black = by_name[f"cut/{name}/r02_c02.png"]
    assert (black["crack"], black["person_crack"], black["person"]) == ("", "1", "Ann")
    assert by_name[f"cut/{name}/r01_c02.png"]["person_crack"] == ""
    assert open_results(out).cells["person_inactive"].sum() == 2


def test_the_newest_label_counts_and_the_same_table_again_changes_nothing(out):
    first = table(
        out / "1.csv", "../in/a/x.png;0;0;;A;2026-11-28T10:00:00Z", "../in/b/x.png;0;1;;B;2026-11-28T12:00:00Z"
    )
    later = table(
        out / "2.csv", "../in/a/x.png;0;1;;B;2026-11-28T12:30:00+02:00", "../in/b/x.png;1;1;;B;2026-11-28T11:00:00Z"
    )
    for path in (first, later, first):
        with writing(out, INFO) as record:
            take_labels(record, path)
    assert calls(out)["a/x.png"] == (0, 1) and calls(out)["b/x.png"] == (0, 1)
    with reading(out) as record:
        assert agreement(record) == {"crack": (0, 2), "inactive": (0, 2)}
        assert record.connection.execute("SELECT count(*) FROM labels").fetchone()[0] == 6


@pytest.mark.parametrize(
    "row, words",
    [
        ("../in/a/x.png;2;0;;A;", "line 2: crack is '2'"),
        ("../in/a/x.png;1;0;yes;A;", "line 2: unsure is 'yes'"),
        ("../in/a/x.png;1;0;;A;yesterday", "line 2: when is 'yesterday'"),
        ("x.png;1;0;;A;", "may be"),
        ("else/y.png;1;0;;A;", "no row means a cell"),
        ("../in/m.png;1;0;;A;", "no row means a cell"),
        ("../in/a/x.png;;;;A;", "no row has a label"),
        ("../in/a/x.png;1;0;;A;9999-12-31T23:59:59-10:00", "line 2: when is"),
        ("../in/a/\0.png;1;0;;A;", "no row means a cell"),
    ],
)
def test_bad_labels_are_one_sentence_and_change_nothing(out, capsys, row, words):
    before = (out / "cells.csv").read_bytes()
    assert report.main([str(out), "--labels", table(out / "labels.csv", row)]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert (out / "cells.csv").read_bytes() == before
    with reading(out) as record:
        assert not record.people()


def test_labels_can_be_taken_back(out, capsys):
    header = "../in/a/x.png;0;0;;A;2026-11-28T10:00:00Z", "../in/b/x.png;0;1;;B;2026-11-28T12:00:00Z"
    assert report.main([str(out), "--labels", table(out / "1.csv", *header)]) == 0
    back = "../in/a/x.png;;;0;C;2026-11-28T11:00:00Z", "../in/b/x.png;;;0;C;2026-11-28T11:00:00Z"
    assert report.main([str(out), "--labels", table(out / "2.csv", *back)]) == 0
    assert "labels of 1 cell taken back" in capsys.readouterr().err
    assert report.main([str(out), "--labels", str(out / "1.csv")]) == 0  # what was taken back stays so
    assert calls(out)["a/x.png"] == (1, 0) and calls(out)["b/x.png"] == (0, 1)
    assert "1 cell labelled by B" in capsys.readouterr().err


def test_a_label_of_a_dark_cell_takes_it_from_the_dark_ones(out):
    name = named(out)
    assert report.main([str(out), "--labels", table(out / "1.csv", f"cut/{name}/r02_c02.png;0;1;;A;")]) == 0
    [module] = rows(out / "modules.csv")
    assert (module["inactive"], module["nearly_black"]) == ("4", "0")


def test_pages_that_stay_as_they_were_are_named(out, capsys):
    assert report.main([str(out), "--single-file"]) == 0
    assert "earlier call" not in capsys.readouterr().err
    (out / "comparison.html").touch()
    assert report.main([str(out)]) == 0
    said = capsys.readouterr().err
    assert "report_out.html is of an earlier call" in said and "comparison.html is of an earlier call" in said


def test_two_labels_of_one_person_and_time_are_refused(out, capsys):
    given = table(out / "labels.csv", "../in/a/x.png;0;1;;A;", "../in/b/x.png;0;1;;A;", "../in/a/x.png;0;0;;A;")
    before = calls(out)
    assert report.main([str(out), "--labels", given]) == 2
    assert "line 4: another label of inactive than in line 2, for the same cell; remove one" in capsys.readouterr().err
    assert calls(out) == before
    given = table(out / "labels.csv", "../in/a/x.png;0;;;A;", "../in/a/x.png;;1;;A;", "../in/a/x.png;0;1;;B;")
    assert report.main([str(out), "--labels", given]) == 0 and calls(out)["a/x.png"] == (0, 1)


def test_calls_of_the_network_are_no_labels(out, capsys):
    assert report.main([str(out), "--labels", str(out / "cells.csv")]) == 2
    assert "has the network's calls" in capsys.readouterr().err


def test_a_table_without_times_is_as_old_as_its_file(out):
    new = table(out / "new.csv", "../in/a/x.png;0;1;;B;2026-11-28T12:00:00Z")
    old = table(out / "old.csv", "../in/a/x.png;0;0;A", header="filename;crack;inactive;who\n")
    os.utime(old, (10**9, 10**9))
    for path in (new, old):
        assert report.main([str(out), "--labels", path]) == 0
    assert calls(out)["a/x.png"] == (0, 1)


def test_the_newest_label_of_each_class_counts(out):
    first = table(out / "1.csv", "../in/a/x.png;0;1;;A;2026-11-27T12:00:00Z")
    later = table(out / "2.csv", "../in/a/x.png;;0;;B;2026-11-28T12:00:00Z")
    with changing(out) as record:
        for path in (later, first):
            take_labels(record, path)
    assert calls(out)["a/x.png"] == (0, 0)


@pytest.mark.parametrize("way", ["moved", "link", "images moved"])
def test_the_pages_own_table_is_understood_wherever_the_folder_is(out, tmp_path, way):
    given = table(out / "labels.csv", "../in/a/x.png;0;0;;A;")
    if way == "moved":
        (tmp_path / "deep" / "er").mkdir(parents=True)
        out = out.rename(tmp_path / "deep" / "er" / "out")
    elif way == "link":
        (tmp_path / "p" / "q").mkdir(parents=True)
        (tmp_path / "p" / "q" / "out").symlink_to(out, target_is_directory=True)
        out = tmp_path / "p" / "q" / "out"
    else:
        (tmp_path / "in").rename(tmp_path / "archive")
        (tmp_path / "in").symlink_to(tmp_path / "archive", target_is_directory=True)
    with changing(out) as record:
        take_labels(record, str(out / Path(given).name))
    assert calls(out)["a/x.png"] == (0, 0)


def test_labels_go_with_a_module_that_is_cut_otherwise_and_that_is_said(out, images, capsys):
    name = named(out)
    given = table(out / "labels.csv", f"cut/{name}/r01_c01.png;1;0;;A;", f"cut/{name}/r01_c02.png;1;0;;A;")
    with writing(out, INFO) as record:
        take_labels(record, given)
        corners = np.array([[1, 1], [9, 1], [9, 9], [1, 9]])
        failed = ImageResult(request_of(str(images[2]), (2, 2), corners), "no module")
        record.expect([failed.request])
        record.add(failed)
        assert record.dropped == 2 and not record.people()
        record.add(module_result(images[2], out))
        with pytest.raises(InputError, match="all labels are older"):
            take_labels(record, table(out / "old.csv", f"cut/{name}/r01_c01.png;1;0;;A;2020-01-01T00:00:00Z"))
        assert "Labels of 2 cells were dropped" in "\n".join(lines_about(record))


def test_labels_of_an_image_that_failed_since_stop_nothing(out, images):
    name = named(out)
    with writing(out, INFO) as record:
        take_labels(record, table(out / "labels.csv", f"cut/{name}/r01_c01.png;1;0;;A;"))
        record.add(ImageResult(request_of(str(images[2]), (2, 2)), "no module"))
        record.end()
    assert report.main([str(out)]) == 0 and not lines_of_people(out)


def lines_of_people(folder):
    with reading(folder) as record:
        return lines_about_people(record)


def test_what_was_not_derived_is_derived_by_the_next_run(out, tmp_path):
    good = table(out / "labels.csv", "../in/a/x.png;0;0;;A;")
    assert report.main([str(out), "--labels", good, "--metadata", table(tmp_path / "bad.csv", "x.png;1")]) == 2
    with writing(out, INFO) as record:
        assert not record.is_derived()
        record.end()
    assert report.main([str(out)]) == 0
    with writing(out, INFO) as record:
        assert record.is_derived()


def test_a_record_outlives_its_images(out, images):
    for path in images:
        path.unlink()
    given = table(out / "labels.csv", "../in/a/x.png;0;0;;A;")
    assert report.main([str(out), "--labels", given]) == 0 and calls(out)["a/x.png"] == (0, 0)


def test_rows_of_no_cell_are_named_and_the_others_taken(out, capsys):
    given = table(out / "labels.csv", "../in/a/x.png;0;0;;A;", "gone.png;1;0;;A;")
    assert report.main([str(out), "--labels", given]) == 3
    assert "1 row belongs to no cell" in capsys.readouterr().err and calls(out)["a/x.png"] == (0, 0)


def test_labels_go_with_another_image_of_the_name(out, images):
    given = table(out / "labels.csv", "../in/a/x.png;0;0;;A;", "../in/b/x.png;0;0;;A;")
    with writing(out, INFO) as record:
        take_labels(record, given)
        record.add(cell_result(images[0]))  # judged again
        os.utime(images[1], ns=(10**18, 10**18))
        record.add(cell_result(images[1]))  # another file
    assert calls(out)["a/x.png"] == (0, 0) and calls(out)["b/x.png"] == (1, 0)


# ---------------------------------------------------------------- metadata


def test_metadata_stand_in_the_tables_and_stay(out, tmp_path):
    site = table(tmp_path / "site.csv", "in/m.png;=S1;3;;A7", header="filename;serial;string;grid;id\n")
    assert report.main([str(out), "--metadata", site]) == 0
    assert report.main([str(out)]) == 0
    [module] = rows(out / "modules.csv")
    assert (module["serial"], module["string"]) == ("'=S1", "3") and "grid" not in module
    assert open_results(out).modules[["serial", "id"]].values.tolist() == [["=S1", "A7"]]


def test_a_second_table_adds_to_the_first(out, tmp_path):
    first = table(tmp_path / "1.csv", "in/m.png;S1;3", header="filename;serial;string\n")
    second = table(tmp_path / "2.csv", "in/m.png;4;7", header="filename;string;roof\n")
    for path in (first, second):
        assert report.main([str(out), "--metadata", path]) == 0
    [module] = rows(out / "modules.csv")
    assert (module["serial"], module["string"], module["roof"]) == ("S1", "4", "7")


def test_names_in_a_table_are_first_those_of_its_own_folder(tmp_path):
    one, two = (save(tmp_path / site / "in" / "x.png") for site in ("site1", "site2"))
    merged = fill(tmp_path / "site2" / "all", one, two)
    (tmp_path / "site1" / "out").mkdir()
    given = table(tmp_path / "site1" / "out" / "labels.csv", "../in/x.png;0;0;;A;")
    with changing(merged) as record:
        take_labels(record, given)
        [(image, *_)] = record.people()
        assert [row["path"] for row in record.images() if row["id"] == image] == [str(one)]


@pytest.mark.parametrize(
    "header, rows_given, words",
    [
        ("filename;serial\n", ["nothing.png;1"], "no row belongs to any of the images"),
        ("filename;serial\n", ["in/m.png;1", "in/m.png;2"], "line 3: in/m.png stands there twice"),
        ("filename;score\n", ["in/m.png;1"], "line 1: modules.csv has a column 'score'"),
        ("filename;crack\n", ["in/m.png;1"], "line 1: modules.csv has a column 'crack'"),
        ("name;serial\n", ["in/m.png;1"], "no column 'filename'"),
    ],
)
def test_bad_metadata_are_one_sentence(out, tmp_path, capsys, header, rows_given, words):
    assert report.main([str(out), "--metadata", table(tmp_path / "site.csv", *rows_given, header=header)]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


# ---------------------------------------------------------------- several folders


def test_folders_become_one_with_the_newest_results(out, images, tmp_path, capsys):
    other = fill(tmp_path / "other", save(tmp_path / "in/c.png"), images[2])
    with writing(other, INFO) as record:
        with record.connection:
            record.connection.execute("UPDATE images SET judged = '2999-01-01T00:00:00+00:00'")
            record.connection.execute("UPDATE cells SET crack = 1 WHERE row = 1")
        take_labels(record, table(other / "labels.csv", "../in/c.png;0;1;;A;"))
    merged = tmp_path / "all"
    for _ in range(2):
        assert report.main([str(out), str(other), "--out", str(merged)]) == 0
        assert len(rows(merged / "cells.csv")) == 7 and calls(merged)["in/c.png"] == (0, 1)
        [module] = rows(merged / "modules.csv")
        assert (module["crack"], module["inactive"]) == ("2", "3")
        for row in rows(merged / "cells.csv"):
            assert (merged / row["filename"]).exists()
    with reading(merged) as record, reading(out) as first:
        assert record.key != first.key and lines_about_people(record)
        assert [row["map"] for row in record.cells()].count(bytes(200)) == 3
        bad = [(row["inactive_area"], row["below"], row["shape"]) for row in record.cells() if row["inactive_area"]]
        assert bad == [(0.25, "inactive_area", SHAPE)] * 3
        assert record.connection.execute("SELECT count(*) FROM runs").fetchone()[0] == 5
    assert (merged / "modules" / f"{named(merged)}.jpg").exists()


def test_results_of_two_networks_are_not_one(out, tmp_path, capsys):
    with writing(tmp_path / "other", RunInfo(**vars(INFO) | {"sha256": "11"})) as record:
        record.end()
    assert report.main([str(out), str(tmp_path / "other"), "--out", str(tmp_path / "all")]) == 2
    assert "was judged with another network" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given, words",
    [
        (["out", "out"], "give --out"),
        (["out", "--out", "out"], "is one of the folders"),
        (["out", "--before", "out"], "is the folder itself"),
        (["nothing"], "no results.sqlite there"),
        (["foreign"], "is no record; judge the images again"),
        (["old"], f"is a record of version 1, and this program writes version {VERSION} (report.py --labels takes"),
        (["old"], "takes labels.csv into a new one); judge the images again"),
        (
            ["new"],
            f"is a record of version {VERSION + 1}, and this program writes version {VERSION} (update the program)",
        ),
        (["out", "--before", "nothing"], "no results.sqlite there"),
    ],
)
def test_folders_that_make_no_sense_are_one_sentence(out, tmp_path, monkeypatch, capsys, given, words):
    monkeypatch.chdir(tmp_path)
    version = f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version ="
    for folder, marks in (("foreign", ""), ("old", f"{version} 1;"), ("new", f"{version} {VERSION + 1};")):
        (tmp_path / folder).mkdir()
        sqlite3.connect(f"{folder}/results.sqlite").executescript(f"CREATE TABLE runs (id); {marks}").close()
    assert report.main(given) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not (tmp_path / "nothing").exists()


def test_a_row_without_labels_is_no_row_of_training(out, tmp_path):
    import data

    given = table(out / "labels.csv", "../in/a/x.png;1;0;;A;", "../in/b/x.png;;;1;A;", "../in/c.png;;;0;A;")
    assert len(data.read_table(given)) == 1
    table(out / "labels.csv", "../in/a/x.png;;0;;A;")
    with pytest.raises(InputError, match="line 2: crack is ''"):
        data.read_table(given)
