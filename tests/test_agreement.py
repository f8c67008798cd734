"""How far two people agree, and the page of the cells in dispute."""

import json
import re
import shutil

import pytest
from conftest import posix

import data
from elcells.pages.agreement import compare


@pytest.fixture
def two(elpv, tmp_path):
    """Two people's tables of the same cells; the second says otherwise of every fifth, and has one cell more."""
    table = data.read_table(elpv)[["filename", "crack", "inactive"]]
    table.iloc[:-1].to_csv(tmp_path / "a.csv", sep=";", index=False)
    table.loc[table.index % 5 == 0, "crack"] = 1 - table["crack"]
    table.to_csv(tmp_path / "b.csv", sep=";", index=False)
    return tmp_path / "a.csv", tmp_path / "b.csv"


def test_agreement_is_kappa_and_f1_of_the_common_cells(two):
    pairs, figures = compare(*map(data.read_table, two), ["crack", "inactive"])
    crack, n = figures["crack"], len(pairs)
    assert n == 47 and figures["inactive"]["kappa"] == figures["inactive"]["f1"] == 1
    assert crack["f1"] == pytest.approx(2 * crack["both"] / (2 * crack["both"] + crack["only_a"] + crack["only_b"]))
    a, b = pairs["crack_a"].mean(), pairs["crack_b"].mean()
    same, chance = (pairs["crack_a"] == pairs["crack_b"]).mean(), a * b + (1 - a) * (1 - b)
    assert crack["kappa"] == pytest.approx((same - chance) / (1 - chance))


def test_cells_of_which_people_were_unsure_are_left_out_and_counted(two, tmp_path, capsys):
    table = data.pd.read_csv(two[0], sep=";", dtype=str).assign(unsure="0")
    table.loc[[0, 7], ["crack", "inactive", "unsure"]] = "", "", "1"
    table.to_csv(two[0], sep=";", index=False)
    assert data.main(["--agree", *map(str, two), "--disputes", str(tmp_path / "disputes.html")]) == 0
    out = capsys.readouterr().out
    assert "a.csv: 2 cells are left out, of which people were unsure." in out and "45 cells are in both" in out


def held(path):
    """The data inside a page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(encoding="utf-8"))
    return json.loads(found[1])


def test_cells_in_dispute_become_a_review_page(two, elpv, tmp_path, capsys):
    target = tmp_path / "disputes.html"
    given = ["--agree", *map(str, two), "--images", str(elpv.parent), "--disputes", str(target)]
    assert data.main(given) == 0
    assert "47 cells are in both" in capsys.readouterr().out
    page = held(target)
    assert len(page["cells"]) == 10 and all("a.csv" in c["why"] and "b.csv" in c["why"] for c in page["cells"])
    assert page["opinion"] == "What the two tables say" and not page["modules"]
    assert data.main(given) == 0 and held(target)["key"] == page["key"]


@pytest.fixture
def three_cells(elpv, tmp_path):
    """A folder all/t with three images."""
    (tmp_path / "all" / "t").mkdir(parents=True)
    for name, path in zip("abc", data.read_table(elpv)["path"]):
        shutil.copy(path, tmp_path / "all" / "t" / f"{name}.png")
    return tmp_path / "all"


def agreement(first, second, capsys):
    """What data.py --agree prints of two tables, {path: [file names]}."""
    for path, names in (first, second):
        rows = [f"{name};{int(k == 0)};{int(k == 1)}\n" for k, name in enumerate(names)]
        path.write_text("filename;crack;inactive\n" + "".join(rows), encoding="utf-8")
    assert data.main(["--agree", str(first[0]), str(second[0]), "--disputes", str(first[0].parent / "d.html")]) == 0
    return capsys.readouterr().out


@posix
@pytest.mark.parametrize(
    "place, names",
    [
        ("", ["t/a.png", "./t/b.png", "t/c.png"]),
        ("", ["t\\a.png", ".\\t\\b.png", "t/../t/c.png"]),
        ("t", ["a.png", "./b.png", "../t/c.png"]),
        ("", ["link/a.png", "t/b.png", "{root}/t/c.png"]),
        ("../elsewhere", ["../all/t/a.png", "../all/t/b.png", "../all/t/c.png"]),
    ],
)
def test_names_are_compared_by_what_they_point_to(three_cells, capsys, place, names):
    (three_cells / "link").symlink_to(three_cells / "t", target_is_directory=True)
    (three_cells / "../elsewhere").mkdir()
    second = (three_cells / place / "second.csv", [name.format(root=three_cells) for name in names])
    said = agreement((three_cells / "first.csv", ["t/a.png", "t/b.png", "t/c.png"]), second, capsys)
    assert "3 cells are in both tables" in said and "No cell is in dispute" in said


@posix
def test_the_same_name_in_two_folders_is_another_image(three_cells, capsys):
    (three_cells / "s").mkdir()
    shutil.copy(three_cells / "t" / "a.png", three_cells / "s")
    shutil.copy(three_cells / "t" / "b.png", three_cells / "s")
    (three_cells / "s" / "common.png").symlink_to("../t/c.png")
    first = (three_cells / "t" / "first.csv", ["a.png", "b.png", "c.png"])
    said = agreement(first, (three_cells / "s" / "second.csv", ["a.png", "b.png", "common.png"]), capsys)
    assert "1 cell is in both tables" in said


def test_copies_of_the_images_are_compared_by_name(three_cells, tmp_path, capsys):
    shutil.copytree(three_cells, tmp_path / "copy")
    first = (three_cells / "first.csv", ["t/a.png", "t/b.png", "t/c.png"])
    said = agreement(first, (tmp_path / "copy" / "second.csv", [r"t\c.png", "./t/a.png", "t/b.png"]), capsys)
    assert "3 cells are in both tables" in said and "3 cells are in dispute" in said


def test_tables_of_other_cells_can_not_agree(two, tmp_path, capsys):
    two[1].write_text("filename;crack;inactive\nother.png;0;1\n", encoding="utf-8")
    assert data.main(["--agree", *map(str, two), "--disputes", str(tmp_path / "d.html")]) == 2
    assert "no file name in common" in capsys.readouterr().err
