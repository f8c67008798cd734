"""The pages of predict.py, and the labels that people give on them: in Python, and in a real browser where one is."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from conftest import CPU, ROOT, posix
from PIL import Image

import data
import predict
from elcells.data.images import read_image, symmetries
from elcells.inference.class_maps import onnx_class_maps
from elcells.inference.networks import Network, open_network
from elcells.pages import page as pages
from elcells.pages.agreement import compare
from elcells.pages.page import UNSURE, PageImage, doubt
from elcells.pages.report import common_folder
from elcells.pages.review import DIFFER, NEAR, RANDOM, ReviewCell, write_page

STRANGE = "<b>Zelle \"1\"; größe & 'x'.png"


@pytest.fixture
def folder(elpv, tmp_path):
    """A folder with twelve cells, one of which has a name of quotes, <, ; and umlauts, and one of 16 bits."""
    (tmp_path / "in").mkdir()
    for number, path in enumerate(sorted((elpv.parent / "images").glob("*.png"))[:12]):
        shutil.copy(path, tmp_path / "in" / (STRANGE if number == 0 else path.name))
    deep = np.asarray(Image.open(tmp_path / "in" / STRANGE)).astype(np.uint16) * 16
    Image.fromarray(deep).save(tmp_path / "in" / "deep.png")
    return tmp_path / "in"


def judge(model, folder, out):
    """Judge a folder into a results folder; the exit code."""
    return predict.main([str(folder), "--model", str(model), *CPU, "--out", str(out)])


@pytest.fixture
def page(exported, folder, tmp_path):
    """The review page of that folder, and its data."""
    assert judge(exported, folder, tmp_path / "out") == 0
    return tmp_path / "out" / "review.html", held(tmp_path / "out" / "review.html")


def held(path):
    """The data inside a page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(encoding="utf-8"))
    return json.loads(found[1])


def test_a_review_shows_each_cell_once_the_doubtful_ones_first(page, tmp_path):
    cells, thresholds = page[1]["cells"], page[1]["thresholds"]
    assert len({c["file"] for c in cells}) == len(cells) == 13
    reasons = [c["why"] for c in cells]
    assert reasons == sorted(reasons, key=[NEAR, DIFFER, RANDOM].index)
    near = [doubt([c["p"]], thresholds)[0] for c in cells if c["why"] == NEAR]
    assert near == sorted(near) and all(d < UNSURE + 0.01 for d in near)


def test_names_in_a_review_are_those_of_a_table_beside_the_images(page, folder):
    assert {c["file"] for c in page[1]["cells"]} == {p.name for p in folder.iterdir() if p.suffix == ".png"}


def test_what_a_browser_does_not_show_right_is_put_into_the_page(page):
    inside = {c["file"]: c["src"].startswith("data:image/jpeg") for c in page[1]["cells"]}
    assert inside.pop("deep.png") and not any(inside.values())


@pytest.mark.parametrize("page, other", [("report", "review"), ("review", "report")])
def test_a_page_decodes_each_image_once(exported, folder, tmp_path, monkeypatch, page, other):
    """Class maps, thumbnail and what is put into the page come from one reading."""
    read = []
    as_gray = pages.as_gray
    monkeypatch.setattr(pages, "as_gray", lambda path: read.append(path) or as_gray(path))
    monkeypatch.setattr(predict, f"write_{other}", lambda record, engine: 0)
    assert judge(exported, folder, tmp_path / "out") == 0
    shown = held(tmp_path / "out" / f"{page}.html")["cells"]
    assert all(c["maps"] for c in shown) and len(read) == len(set(read)) == len(shown)


def test_where_nothing_was_judged_there_is_no_review_page(exported, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"x")
    assert judge(exported, tmp_path / "broken.png", tmp_path / "out") == 3
    assert (tmp_path / "out" / "report.html").exists() and not (tmp_path / "out" / "review.html").exists()


def test_the_eight_symmetries_are_eight_images():
    image = np.arange(9, dtype=np.uint8).reshape(3, 3)
    eight = [a.tobytes() for a in symmetries(image)]
    assert len(set(eight)) == 8 and eight[0] == image.tobytes()


def test_class_maps_are_high_where_the_network_sees_a_defect(elpv):
    table = data.read_table(elpv)
    paths = [table["path"][(table["crack"] == label).to_numpy()].iloc[0] for label in (0, 1)]
    images = np.stack([read_image(path, 300) for path in paths])[:, None]
    maps = onnx_class_maps(ROOT / "cells.onnx")(images)
    assert maps.shape == (2, 2, 10, 10) and (maps >= 0).all() and maps[1, 0].max() > 2 * maps[0, 0].max()


def test_class_maps_of_a_checkpoint_are_those_of_its_onnx_file(best, exported, elpv):
    path = data.read_table(elpv)["path"][0]
    engine = open_network(Network(str(best), device="cpu"))
    images = read_image(path, engine.image_size)[None, None]
    assert np.allclose(onnx_class_maps(exported)(images), engine.class_maps(images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "folders, root", [(["a/b", "a/c"], "a/"), (["a", "b"], ""), (["."], ""), (["/a", "b"], ""), (["x"], "x/")]
)
def test_the_common_folder_is_left_out_of_names(folders, root):
    assert common_folder([f"{folder}/cell.png" for folder in folders]).replace("\\", "/") == root


# ---------------------------------------------------------------- two people


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


def test_cells_in_dispute_become_a_review_page(two, elpv, tmp_path, capsys):
    target = tmp_path / "disputes.html"
    given = ["--agree", *map(str, two), "--images", str(elpv.parent), "--disputes", str(target)]
    assert data.main(given) == 0
    assert "47 cells are in both" in capsys.readouterr().out
    cells = held(target)["cells"]
    assert len(cells) == 10 and all("a.csv" in c["why"] and "b.csv" in c["why"] for c in cells)


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


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium; skips where it or Playwright is not installed."""
    api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no browser here")
    with api.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def labels(path):
    with open(path, newline="", encoding="utf-8-sig") as file:
        return {row["filename"]: (row["crack"], row["inactive"]) for row in csv.DictReader(file, delimiter=";")}


def save(tab, path):
    with tab.expect_download() as download:
        tab.click("#save")
    download.value.save_as(path)
    return path


def test_keys_label_cells_and_the_table_trains(page, folder, browser):
    context = browser.new_context()
    tab = context.new_page()
    errors = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(page[0].as_uri())
    names = [c["file"] for c in page[1]["cells"]]
    tab.fill("#who", "Jörg")
    tab.press("#who", "Tab")
    tab.locator("body").click(position={"x": 2, "y": 2})
    for key in ("c", "i", "ArrowRight", "n", "u", "c", "z", "i", "i", "ArrowRight", "n", "ArrowLeft", "ArrowLeft", "n"):
        tab.keyboard.press(key)
    saved = labels(save(tab, folder / "labels.csv"))
    assert saved == {names[0]: ("1", "1"), names[1]: ("0", "0"), names[3]: ("0", "0"), names[4]: ("0", "0")}
    assert (folder / "labels.csv").read_text(encoding="utf-8-sig").count("Jörg") == 4
    assert len(data.read_table(folder / "labels.csv")) == 4

    tab.reload()
    assert tab.inner_text("#counts") == "5 done, 1 unsure"
    assert labels(save(tab, folder / "again.csv")) == saved

    fresh = browser.new_context().new_page()
    fresh.goto(page[0].as_uri())
    assert fresh.inner_text("#counts") == "0 done"
    fresh.set_input_files("#load", folder / "labels.csv")
    fresh.wait_for_function("document.getElementById('counts').textContent === '4 done'")
    assert labels(save(fresh, folder / "third.csv")) == saved
    fresh.set_input_files("#load", {"name": "x.csv", "mimeType": "text/csv", "buffer": b"a;b\n1;2\n"})
    fresh.wait_for_function("document.getElementById('message').textContent.includes('no column filename')")
    assert not errors


def test_light_and_map_follow_keys_and_wheel(page, browser):
    tab = browser.new_page()
    tab.goto(page[0].as_uri())
    style = "document.getElementById('cell').style.filter"
    tab.keyboard.press("+")
    assert tab.evaluate(style) == "brightness(1.15) contrast(1)"
    tab.keyboard.press("0")
    tab.mouse.move(300, 300)
    tab.mouse.wheel(0, -100)
    tab.wait_for_function(f"{style}.startsWith('brightness(1.1')")
    assert tab.is_hidden("#map")
    tab.wait_for_function("document.getElementById('cell').naturalWidth > 0")
    tab.keyboard.press("m")
    assert tab.is_visible("#map")


def test_five_thousand_cells_are_labelled_without_lag(tmp_path, browser):
    path = tmp_path / "one.png"
    Image.new("L", (300, 300), 90).save(path)
    cells = [ReviewCell(PageImage(path), NEAR, (0.5, 0.1)) for _ in range(5000)]
    target = tmp_path / "many.html"
    write_page(target, cells, ["crack", "inactive"], [0.5, 0.5], tmp_path)
    text = target.read_text(encoding="utf-8")
    for number in range(5000):
        text = text.replace('"file": "one.png"', f'"file": "cell {number}.png"', 1)
    target.write_text(text, encoding="utf-8")
    tab = browser.new_page()
    tab.goto(target.as_uri())
    spent = tab.evaluate(
        """() => { const start = performance.now();
        for (let i = 0; i < 200; i++) document.dispatchEvent(new KeyboardEvent("keydown", { key: "n" }));
        return (performance.now() - start) / 200; }"""
    )
    assert tab.inner_text("#counts") == "200 done" and spent < 50  # ms a key


def test_the_report_filters_sorts_and_enlarges(exported, folder, tmp_path, browser):
    (folder / "<b>broken.png").write_bytes(b"x")
    target = tmp_path / "out" / "report.html"
    assert judge(exported, folder, tmp_path / "out") == 3
    shown = held(target)
    tab = browser.new_page()
    errors = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(target.as_uri())
    assert tab.locator("#grid li").count() == len(shown["cells"]) + 1
    tab.click("button[data-kind=unreadable]")
    assert "broken.png" in tab.inner_text("#grid")
    tab.click("button[data-kind=crack]")
    cracked = [c for c in shown["cells"] if c["calls"][0]]
    assert tab.locator("#grid li").count() == len(cracked)
    tab.select_option("#tools select", "by file")
    names = tab.locator("#grid .file").all_inner_texts()
    assert sorted(names, key=str.lower) == sorted((c["file"] for c in cracked), key=str.lower)
    if cracked:
        tab.locator("#grid button").first.click()
        assert tab.is_visible("dialog") and names[0] in tab.inner_text("dialog p >> nth=0")
    assert not errors
