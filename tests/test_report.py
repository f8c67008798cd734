"""The report of a record: what it counts and shows, its files, and the page in a real browser where one is."""

import base64
import io
import itertools
import json
import os
import re
import shutil
import sqlite3

import numpy as np
import pytest
from conftest import CPU, ROOT
from PIL import Image

import predict
from elcells.data.outputs import is_output
from elcells.files import RECORD
from elcells.inference.cells import TOO_DARK, CellResult, Place
from elcells.inference.networks import shipped_sha256
from elcells.inference.origin import quality_of
from elcells.inference.severity import LEAST_LENGTH, SIDE, shape_image, shape_numbers
from elcells.modules.cutting import CutModule
from elcells.pages import beside, report
from elcells.pages.report import write_report
from elcells.pages.report_data import CORRECTED, MAPPED
from elcells.records.metadata import keep_metadata
from elcells.records.opening import reading, writing
from elcells.records.requests import ImageResult, Request, module_name
from elcells.records.runs import RunInfo

INFO = RunInfo("a.onnx", "00", "a.onnx: a network", ("crack", "inactive"), "f1", (0.5, 0.4), "torch")
SOUND, CRACKED, INACTIVE, BOTH, NEAR = (0.01, 0.01), (0.99, 0.01), (0.01, 0.9), (0.8, 0.95), (0.45, 0.01)
STRANGE = "<b>Zelle \"1\"; größe & 'x'#1%2.png"
DARK_CELL = {"dark_part": 1.0, "dark_ratio": 0.31}
DARK_STRIP = {"dark_part": 0.42, "dark_ratio": 0.1}
MAP = bytes(range(200))  # a class map of 2 x 10 x 10
CELL = 30  # pixels of a cell
MODULES = 8
CRACKS = 210  # images of cells with a crack
JOERG, ANA = "Jörg <b>", "Ana"


def cell(name, p, place=None, **more):
    """A CellResult with probabilities, or one that is too dark to judge."""
    if p is None:
        return CellResult(name, brightness=0.02, error=TOO_DARK, place=place)
    calls = tuple(int(value >= threshold) for value, threshold in zip(p, INFO.thresholds))
    return CellResult(name, calls, p, 0.5, place=place, map=MAP if any(calls) or p is NEAR else None, **more)


def add_module(record, folder, number, more=None):
    """Add a module of 3 x 2 cells, of which the first `number % 6` have a crack. more: of each cell, dicts.

    One of module 1 is too dark to judge; in module 2 the first is dark in part, and the fifth as a whole.
    """
    path = f"{folder}/in/string{number % 2}/module{number}.png"
    name = module_name(path, 0)
    places = list(itertools.product((1, 2), (1, 2, 3)))
    given = [CRACKED if k < number % 6 else SOUND for k in range(6)]
    if number == 1:
        given[5] = None
    files = [f"cut/{name}/r{row:02}_c{column:02}.png" for row, column in places]
    more = more or ([{}] * 6 if number != 2 else [DARK_STRIP, {}, {}, {}, DARK_CELL, {}])
    cells = [cell(file, p, Place(name, *place), **dark) for file, p, place, dark in zip(files, given, places, more)]
    nodes = np.stack(np.meshgrid(np.arange(4.0), np.arange(3.0)), -1) * CELL + 10
    why = "" if number else "the grid hardly fits"
    module = CutModule(
        path, 3, 2, 0.9, 0.1, not why, why, cell_pixels=CELL, corners=(0.0,) * 8, nodes=(*nodes.ravel(),)
    )
    record.add(ImageResult(Request(path, path, 0, 1, 1, (3, 2)), cells=tuple(cells), module=module))
    pixels = np.random.default_rng(number).integers(60, 200, (80, 110), np.uint8)
    (record.folder / "modules").mkdir(exist_ok=True)
    Image.fromarray(pixels).save(record.folder / "modules" / f"{name}.jpg")
    (record.folder / "cut" / name).mkdir(parents=True)
    for file in files:
        Image.fromarray(pixels[:CELL, :CELL]).save(record.folder / file)


def add_cells(record, folder, elpv):
    """Add images of cells: a strange name, 16 bits, near a threshold, inactive, broken, half dark, many cracks."""
    image = next((elpv.parent / "images").glob("*.png"))
    pixels = np.asarray(Image.open(image).convert("L"))
    given = {STRANGE: BOTH, "deep.png": INACTIVE, "near.png": NEAR, "sound.png": SOUND, "black.png": None}
    given |= {"half.png": SOUND}
    given |= {f"crack/c{number:03}.png": (0.8 + number / 2000, 0.01) for number in range(CRACKS)}
    Image.fromarray(pixels[::3, ::3]).save(folder / "small.png")
    (folder / "in" / "crack").mkdir(parents=True)
    for name, p in given.items():
        path = folder / "in" / name
        if name == "deep.png":
            Image.fromarray(pixels.astype(np.uint16) * 16).save(path)
        else:
            os.link(folder / "small.png", path)
        more = DARK_STRIP if name == "half.png" else {}
        record.add(ImageResult(Request(str(path), str(path), 0, 1, 1), cells=(cell(str(path), p, **more),)))
    path = str(folder / "in" / "broken.png")
    error = f"{path}: can't be read </script><b>"
    result = ImageResult(Request(path, path, 0, 1, 1), error, cells=(CellResult(path, error=error),))
    record.add(result)
    path = str(folder / "in" / "nothing.png")
    record.add(ImageResult(Request(path, path, 0, 1, 1, (3, 2)), f"{path}: no module there"))


def label(folder, cells):
    """Put people's labels into a record: {(end of the path, row, column): (crack, inactive, who)}."""
    connection = sqlite3.connect(folder / RECORD)
    for (end, row, column), (crack, inactive, who) in cells.items():
        [image] = connection.execute("SELECT id FROM images WHERE path LIKE ?", (f"%{end}",)).fetchone()
        for name, value in (("crack", crack), ("inactive", inactive)):
            values = (image, row, column, name, value, who, "2026-11-28T13:00:00+00:00")
            connection.execute("INSERT INTO labels VALUES (?, ?, ?, ?, ?, ?, ?)", values)
    connection.commit()
    connection.close()


LABELS = {
    ("module7.png", 1, 1): (0, 0, JOERG),  # the network called a crack
    ("module1.png", 2, 3): (0, 1, JOERG),  # too dark for the network
    ("sound.png", 0, 0): (0, 0, ANA),
    ("near.png", 0, 0): (None, None, ANA),
}


@pytest.fixture(scope="module")
def site(elpv, tmp_path_factory):
    """A results folder with a report: 8 modules with serials, images of cells, labels of two people."""
    folder = tmp_path_factory.mktemp("site")
    with writing(folder / "out", INFO) as record:
        add_cells(record, folder, elpv)
        for number in range(MODULES):
            add_module(record, folder, number)
        rows = [row for row in record.images() if "module" in row["path"]]
        keep_metadata(record, {(row["path"], 0): {"serial": f"S{row['path'][-5]}", "string": "1"} for row in rows})
    label(folder / "out", LABELS)
    with reading(folder / "out") as record:
        write_report(record)
    return folder / "out"


@pytest.fixture
def copy(site, tmp_path):
    """A copy of that results folder."""
    return shutil.copytree(site, tmp_path / "copy")


def held(path):
    """The data inside a page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(encoding="utf-8"))
    return json.loads(found[1])


def chunk(path):
    """The value of a file of data, or of the data that a page holds."""
    call = r'^(?:<script>)?chunk\("[\w-]+",(.*?)(?:,"[0-9a-f]{16}")?\);$'
    return json.loads(re.search(call, path.read_text(encoding="utf-8"), re.M)[1])


# ---------------------------------------------------------------- what it counts


def test_what_is_said_of_the_shipped_network_stands_in_the_documents():
    documents = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "doc/model_card.md"))
    info = {"sha256": shipped_sha256(), "operating_point": "f1"}
    said, *others = quality_of(info, shipped_sha256())
    elpv, foreign = re.findall(r"(0\.\d{3}) (?:for cracks )?and (0\.\d{3})", said)
    assert f"| `cells.onnx`, as `predict.py` judges | {elpv[0]} | {elpv[1]} |" in documents
    assert f"| `cells.onnx` | {foreign[0]} | {foreign[1]} |" in documents
    figures = re.findall(r"\d+ of \d+ cracks|\d+ to \d+ pixels", said)
    assert len(figures) == 2 and all(figure in documents for figure in figures)
    assert "this report has another one" in quality_of(info | {"operating_point": "recall"}, shipped_sha256())[1]
    assert len(others) == 1 and "was not measured" in quality_of(info | {"sha256": "00"}, shipped_sha256())[0]


def test_counts_add_up_to_all_cells_and_follow_people(site):
    page = held(site / "report.html")
    cracks = sum(number % 6 for number in range(MODULES)) - 1 + CRACKS
    assert page["kinds"] == {"0": page["kinds"]["0"], "1": cracks, "2": 2, "3": 1, "-1": 2, "-2": 1, "-3": 1}
    assert sum(page["kinds"].values()) == 6 * MODULES + CRACKS + 7 and page["images"] == MODULES + CRACKS + 8
    assert page["unsure"] == 1 and page["corrected"] == 1 and page["shown"] == cracks + 2 + 1 + 2 + 1 + 1 + 3
    assert page["dark"] == 3  # one of them has a crack too


def test_people_are_named_with_how_often_they_agree(site):
    people = held(site / "report.html")["people"]
    assert dict(people["who"]) == {JOERG: 2, ANA: 2} and people["unsure"] == 1
    assert people["agreement"] == [[1, 2], [2, 2]]  # of the dark cell the network said nothing
    assert people["corrected"] == 1 and people["alone"] == 1


def test_every_module_is_in_the_table_the_worst_first(site):
    page = held(site / "report.html")
    modules = page["modules"]
    assert len(modules["name"]) == MODULES and modules["file"][4] == "string1/module1.png"
    assert dict(modules["metadata"])["serial"] == [f"S{n}" for n in (0, 2, 4, 6, 1, 3, 5, 7)]
    counts = dict(zip(dict(modules["metadata"])["serial"], modules["counts"]))
    assert counts["S5"] == [6, 5, 0, 0, 0, 5, 0] and counts["S1"] == [6, 1, 1, 0, 0, 2, 0] and counts["S7"][-1] == 1
    assert counts["S2"] == [6, 2, 0, 2, 0, 3, 0]
    assert modules["doubt"][0] == "the grid hardly fits" and page["failed"][0].endswith("no module there")
    first = chunk(site / "report.html")
    assert len(first["modules"]) == len(first["images"]) == report.FIRST_MODULES and "6" in first["modules"]


def test_every_defect_is_in_the_files_with_its_class_map(site):
    page, cells = held(site / "report.html"), chunk(site / "report" / "cells.js")
    assert len(cells["state"]) == page["shown"] and page["shown"] > report.FIRST_CELLS
    names = [name for name in cells["names"] if name.startswith("crack/")]
    assert len(names) == CRACKS and STRANGE in cells["names"]
    called = [n for n, (calls, p) in enumerate(zip(cells["calls"], cells["p"][0])) if calls and p >= 0]
    assert set(map(str, called)) <= set(chunk(site / "report" / "maps-0.js"))
    mapped = [n for n, state in enumerate(cells["state"]) if state & MAPPED]
    assert set(map(str, mapped)) == set(chunk(site / "report" / "maps-0.js"))
    modules = chunk(site / "report" / "modules-0.js")
    assert len(modules) == MODULES and all(len(module["state"]) == 6 for module in modules.values())
    assert next(k for k, m in enumerate(cells["module"]) if m == 6) == modules["6"]["first"]


def test_names_and_errors_can_not_leave_their_place(site):
    text = (site / "report.html").read_text(encoding="utf-8") + (site / "report" / "cells.js").read_text()
    assert "</script><b>" not in text and "<b>Zelle" not in text and "broken.png" in text


def test_a_report_of_a_run_shows_all_defective_cells(exported, elpv, tmp_path):
    folder = elpv.parent / "images"
    paths = [str(path) for path in sorted(folder.glob("*.png"))[:24]]
    assert predict.main([*paths, "--model", str(exported), *CPU, "--out", str(tmp_path)]) == 0
    with reading(tmp_path) as record:
        positive = {os.path.basename(row["path"]) for row in record.cells() if row["crack"] or row["inactive"]}
    page, cells = held(tmp_path / "report.html"), chunk(tmp_path / "report" / "cells.js")
    shown = {name for name, calls in zip(cells["names"], cells["calls"]) if calls}
    assert shown == positive and sum(page["kinds"].values()) == 24
    assert [sum(bins) for bins in page["histograms"]] == [24, 24]
    thumbs = chunk(tmp_path / "report.html")["thumbs"]
    assert len(thumbs) == page["shown"] and all(thumb.startswith("data:image/jpeg") for thumb in thumbs.values())


# ---------------------------------------------------------------- its files


def test_files_that_did_not_change_are_left_alone_and_old_ones_removed(copy):
    before = {path: path.stat().st_mtime_ns for path in (copy / "report").iterdir()}
    for name in ("modules-99.js", "old_00000000.jpg"):
        (copy / "report" / name).write_text("of an earlier report")
    (copy / "report" / "mine.txt").write_text("a user's")
    with reading(copy) as record:
        write_report(record)
    after = {path: path.stat().st_mtime_ns for path in (copy / "report").iterdir()}
    assert after.pop(copy / "report" / "mine.txt") and after == before


def test_what_no_browser_shows_is_converted_once(copy, monkeypatch):
    [converted] = (copy / "report").glob("deep_*.jpg")
    number = chunk(copy / "report" / "cells.js")["sources"]
    assert list(number.values()) == [f"report/{converted.name}"]
    with Image.open(converted) as image:
        assert image.mode == "L" and image.size == (300, 300)
    read = []
    original = beside.as_gray
    monkeypatch.setattr(beside, "as_gray", lambda path: read.append(str(path)) or original(path))
    monkeypatch.setattr(report, "FIRST_CELLS", 0)
    with reading(copy) as record:
        write_report(record)
    assert not read and is_output(converted)


def test_a_single_file_says_what_it_has_no_room_for(copy, monkeypatch):
    monkeypatch.setattr(report, "MAILED_BYTES", report.PAGE_BYTES + 80_000)
    with reading(copy) as record:
        write_report(record, copy / "mail.html")
    first, page = chunk(copy / "mail.html"), held(copy / "mail.html")
    few = len(first["cells"]["state"])
    assert page["alone"] and 0 < len(first["modules"]) < MODULES and 0 < few == len(first["thumbs"]) < page["shown"]
    assert (copy / "mail.html").stat().st_size < report.MAILED_BYTES
    surest = [max(p) for p, calls in zip(zip(*first["cells"]["p"]), first["cells"]["calls"]) if calls]
    assert min(surest) > 6000 and len(surest) == few - 4  # those, the corrected, the nearly black and two dark cells
    assert any(state & CORRECTED for state in first["cells"]["state"]) and "black.png" in first["cells"]["names"]


# ---------------------------------------------------------------- in a browser


@pytest.fixture
def tab(browser):
    """A page of a browser that takes note of script errors."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert not errors


def open_report(tab, path, address=""):
    tab.goto(path.as_uri() + address)
    tab.wait_for_function("document.querySelector('#grid img')?.complete && document.querySelector('polygon')")


def test_cells_are_filtered_sorted_and_paged(site, tab):
    open_report(tab, site / "report.html")
    page = held(site / "report.html")
    tab.wait_for_function("columns.state.length === data.shown")
    assert tab.locator("#grid li").count() == 200
    tab.locator("#cells .pager button[aria-label^=next]").first.click()
    assert tab.locator("#grid li").count() == page["shown"] - 200
    for kind, count in {
        "inactive only": 2,
        "unsure": 1,
        "dark": 3,
        "nearly black": 1,
        "unreadable": 1,
        "corrected": 1,
    }.items():
        tab.click(f"button[data-kind='{kind}']")
        assert tab.locator("#grid li").count() == count, kind
    assert f"corrected by {JOERG}: no defect" in tab.inner_text("#grid li")
    tab.click("button[data-kind='labelled']")
    assert any(f"labelled by {JOERG}: inactive" in text for text in tab.locator("#grid li").all_inner_texts())
    tab.click("button[data-kind=both]")
    assert tab.inner_text("#grid .file") == STRANGE
    tab.click("button[data-kind='crack only']")
    tab.select_option("#sorting", "by crack")
    assert tab.inner_text("#grid .p >> nth=0").split() == ["crack", "0.990"]
    tab.select_option("#sorting", "by file")
    assert tab.inner_text("#grid .file >> nth=1") == "crack/c001.png"


def test_dark_cells_are_shown_with_their_brightness_after_all_defects(site, tab):
    open_report(tab, site / "report.html")
    tab.wait_for_function("columns.state.length === data.shown")
    assert "3 cells are dark or partly dark" in tab.inner_text("#sums")
    tab.click("button[data-kind='dark']")
    called, *others = tab.locator("#grid li").all_inner_texts()
    assert "42 % of the cell dark, at 10 % of the usual brightness" in called and "0.990" in called
    assert any("dark, 31 % of the module's brightness" in text for text in others)
    assert any("half.png" in text and "42 % of the cell dark, at 10 % of the rest" in text for text in others)
    tab.click("#grid button >> nth=1")
    assert "42 % of the cell dark, at 10 % of the rest" in tab.inner_text("#facts")
    tab.click("#close")
    tab.click("button[data-kind='all']")
    ranks = tab.evaluate("visible.map(i => (columns.calls[i] ? 2 : columns.state[i] & DARK ? 1 : 0))")
    assert ranks == sorted(ranks, reverse=True) and set(ranks) == {0, 1, 2}


def test_data_of_another_state_of_the_record_are_not_taken(copy, tab):
    page = copy / "report.html"
    page.write_text(page.read_text(encoding="utf-8").replace(held(page)["stamp"], "0" * 16), encoding="utf-8")
    open_report(tab, page)
    tab.wait_for_selector("#missing:not([hidden])")
    assert "of a newer report" in tab.inner_text("#missing")


def test_a_cell_is_enlarged_and_its_map_shown_on_request(site, tab):
    open_report(tab, site / "report.html")
    tab.click("button[data-kind='inactive only']")
    tab.select_option("#sorting", "by file")
    tab.locator("#grid button").first.click()
    tab.wait_for_function("document.getElementById('enlarged').naturalWidth === 300")  # of deep.png, converted
    assert "deep.png" in tab.inner_text("#heading") and tab.is_hidden("#map")
    tab.keyboard.press("m")
    tab.wait_for_selector("#map:not([hidden])")
    tab.keyboard.press("ArrowRight")
    assert "S1" in tab.inner_text("#heading") and "row 2, column 3" in tab.inner_text("#heading")
    assert JOERG in tab.inner_text("#facts") and "The network had no call" in tab.inner_text("#facts")
    tab.keyboard.press("Escape")
    assert not tab.evaluate("document.querySelector('dialog').open")


def test_a_module_is_found_by_table_link_and_keys(site, tab):
    open_report(tab, site / "report.html")
    serials = "#table tbody tr td:first-child"
    assert tab.locator(serials).all_inner_texts()[:2] == ["S5", "S4"]
    assert tab.locator("figure.module").count() == 6
    tab.click("#table th button:has-text('serial')")
    assert tab.locator(serials).all_inner_texts() == [f"S{n}" for n in range(MODULES)]
    tab.click(f"{serials} >> text=S7")  # on the second page
    tab.wait_for_function("document.querySelectorAll('figure.module').length === 2")
    figure = tab.locator("figure.module", has_text="module7.png")
    assert figure.locator("polygon").count() == 6 and "serial S7" in figure.inner_text()
    assert figure.locator("polygon.corrected").get_attribute("aria-label").startswith("row 1, column 1: no defect")
    assert not figure.locator("polygon.corrected.defect").count()
    tab.fill("#table input", "module3")
    tab.wait_for_function("document.querySelectorAll('figure.module').length === 1")
    tab.locator("polygon[aria-label^='row 1, column 2']").focus()
    for key in ("Enter", "ArrowDown", "ArrowRight"):
        tab.keyboard.press(key)
    assert tab.inner_text("#heading") == "S3 (string1/module3.png), row 2, column 3"


def test_focus_goes_to_the_cell_that_was_seen_last(site, tab):
    open_report(tab, site / "report.html")
    named = "document.activeElement.getAttribute('aria-label')"
    tab.wait_for_function("columns.state.length === data.shown")
    tab.locator("#grid button").first.click()
    for key in ("ArrowDown", "ArrowRight", "End", "Escape"):  # the last one is on another page
        tab.keyboard.press(key)
    tab.wait_for_function(f"{named}?.startsWith(document.getElementById('heading').textContent)")
    assert tab.locator("#grid li").count() == held(site / "report.html")["shown"] - 200
    tab.locator("polygon[aria-label^='row 1, column 2']").first.focus()
    for key in ("Enter", "ArrowDown", "ArrowRight", "Escape"):
        tab.keyboard.press(key)
    tab.wait_for_function(f"{named}?.startsWith('row 2, column 3')")


def test_the_unsure_class_is_named(site, tab):
    open_report(tab, site / "report.html")
    tab.wait_for_function("columns.state.length === data.shown")
    tab.evaluate("columns.people = {}")  # of near.png, where a person is unsure too
    tab.click("button[data-kind='unsure']")
    assert tab.inner_text("#grid .mark") == "crack: unsure" and tab.inner_text("#grid .near") == "0.450"
    tab.locator("#grid button").click()
    assert "crack: unsure (within 1 logit of its threshold)" in tab.inner_text("#facts")
    assert tab.inner_text("#facts .near") == "0.450"


def test_two_modules_with_one_serial_are_named_in_the_notes(copy, tab):
    with sqlite3.connect(copy / RECORD) as connection:
        connection.execute("""UPDATE images SET metadata = replace(metadata, '"S3"', '"S5"')""")
    connection.close()
    with reading(copy) as record:
        write_report(record)
    open_report(tab, copy / "report.html")
    assert "serial S5 stands at 2 images: string1/module3.png, string1/module5.png" in tab.inner_text("#notes")


def test_where_nothing_was_judged_nothing_is_said_of_sound_cells(tmp_path, tab):
    with writing(tmp_path / "out", INFO) as record:
        error = "broken.png: can't be read"
        request = Request("/broken.png", "/broken.png", 0, 1, 1)
        record.add(ImageResult(request, error, cells=(CellResult("/broken.png", error=error),)))
        write_report(record)
    tab.goto((tmp_path / "out" / "report.html").as_uri())
    assert tab.inner_text("#which") == "1 cell to look at: unreadable." and not tab.inner_text("#sums")


def test_a_link_opens_its_module_and_probabilities_are_shown_on_all(site, tab):
    name = held(site / "report.html")["modules"]["name"][0]  # the last one in the table
    open_report(tab, site / "report.html", f"#module={name}")
    tab.wait_for_selector("figure.module >> text=module0.png")
    assert "the grid hardly fits" in tab.inner_text("#figures")
    tab.evaluate("location.hash = linkOf(modules.file.indexOf('string1/module5.png'))")
    tab.wait_for_function("document.querySelectorAll('figure.module').length === 6")
    assert tab.locator(".view span:visible").count() == 0
    tab.click("button:has-text('Probabilities')")
    assert tab.locator(".view span:visible").count() == 5 + 4 + 3 + 2 + 1


def test_a_report_that_was_mailed_alone_still_shows_its_cells(site, tab, tmp_path):
    shutil.copy(site / "report.html", tmp_path / "mail.html")
    open_report(tab, tmp_path / "mail.html")
    tab.wait_for_selector("#missing:not([hidden])")
    assert "Only 100 of these cells are in this file" in tab.inner_text("#missing")
    assert tab.locator("#grid li").count() == 100 and tab.locator("#table tbody tr").count() == MODULES
    tab.locator("polygon[aria-label^='row 1, column 2']").first.click()
    tab.wait_for_selector("#crop:not([hidden])")
    assert "Cut out of the module's image" in tab.inner_text("#state")
    tab.keyboard.press("m")
    tab.wait_for_function("document.getElementById('unmapped').textContent")
    assert "folder report beside this page, which is not there" in tab.inner_text("#unmapped")
    tab.keyboard.press("End")  # sound
    tab.wait_for_function("document.getElementById('unmapped').textContent.includes('no class map')")


def test_a_single_file_shows_what_it_has_and_says_what_not(copy, tab, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MAILED_BYTES", report.PAGE_BYTES + 80_000)
    with reading(copy) as record:
        write_report(record, tmp_path / "mail.html")
    requests = []
    tab.on("request", lambda request: requests.append(request.url))
    open_report(tab, tmp_path / "mail.html")
    few = len(chunk(tmp_path / "mail.html")["modules"])
    assert f"the {few} worst modules are in this file; those of the other {MODULES - few}" in tab.inner_text("#modules")
    assert re.search(r"Only \d+ of these cells are in this file", tab.inner_text("#missing"))
    assert [url for url in requests if not url.startswith("data:")] == [(tmp_path / "mail.html").as_uri()]


def test_a_report_fits_a_phone(site, tab):
    tab.set_viewport_size({"width": 390, "height": 800})
    open_report(tab, site / "report.html")
    assert tab.evaluate("document.documentElement.scrollWidth") == 390


# ---------------------------------------------------------------- crack lines, inactive areas and severity


LINE, REGION = (150, slice(30, 270)), (slice(200, 260), slice(40, 100))  # of SIDE x SIDE pixels
TOO_SHORT = LEAST_LENGTH / SIDE


def crack(length, mode="", below="", shape=None):
    """Fields of a CellResult with a crack."""
    return {"crack_length": length, "inactive_area": 0.0, "crack_mode": mode, "below": below, "shape": shape}


def shape_of(line=True, region=False):
    """The image of a horizontal line through the middle of a cell, and of a region below it."""
    skeleton, dark = np.zeros((2, SIDE, SIDE), bool)
    skeleton[LINE] = line
    dark[REGION] = region
    return shape_image(skeleton, dark)


SOUND_ONE = crack(0.0)
OF_MODULES = {
    2: [crack(2.5, "B", shape=shape_of()), crack(0.4, "A", shape=shape_of())] + [SOUND_ONE] * 4,
    3: [crack(1.234, "C", shape=shape_of()), crack(TOO_SHORT, below="crack_length"), crack(0.5, "A")] + [SOUND_ONE] * 3,
    5: [crack(None)] * 4 + [crack(0.3, "B", shape=shape_of()), SOUND_ONE],
}
OF_CELLS = {
    "both.png": (BOTH, crack(0.8, "C", shape=shape_of(region=True)) | {"inactive_area": 0.2}),
    "back.png": (BOTH, crack(0.6, "C", shape=shape_of(region=True)) | {"inactive_area": 0.3}),
    "small.png": (INACTIVE, SOUND_ONE | {"inactive_area": 60 / SIDE**2, "below": "inactive_area"}),
    "sound.png": (SOUND, SOUND_ONE),
}
SEVERITY_LABELS = {
    ("module2.png", 1, 1): (0, 0, ANA),  # takes the longest crack back
    ("back.png", 0, 0): (1, 0, ANA),  # takes an inactive region back: mode C becomes B
    ("sound.png", 0, 0): (1, 0, ANA),  # adds a crack, which nothing measured
}


def make_severe(folder):
    """A results folder with a report of cells whose severity is known, and of some whose is not; its path."""
    with writing(folder / "out", INFO) as record:
        (folder / "in").mkdir()
        for name, (p, more) in OF_CELLS.items():
            path = str(folder / "in" / name)
            size = (150, 300) if name == "both.png" else (300, 300)  # height and width
            Image.fromarray(np.full(size, 120, np.uint8)).save(path)
            record.add(ImageResult(Request(path, path, 0, 1, 1), cells=(cell(path, p, **more),)))
        for number, more in OF_MODULES.items():
            add_module(record, folder, number, more)
    label(folder / "out", SEVERITY_LABELS)
    with reading(folder / "out") as record:
        write_report(record)
    return folder / "out"


@pytest.fixture(scope="module")
def severe(tmp_path_factory):
    """That folder, which tests only read."""
    return make_severe(tmp_path_factory.mktemp("severe"))


def shown_cells(folder):
    """The cells of a report as (name of the image or number of the module, place), in order, and all their columns."""
    cells = chunk(folder / "report" / "cells.js")
    names = [(cells["names"][k] if n < 0 else n, k) for n, k in zip(cells["module"], cells["place"])]
    return [(name, 0) if isinstance(name, str) else (name, k) for name, k in names], cells


def test_lengths_areas_and_modes_are_added_up_without_what_people_took_back(severe):
    page = held(severe / "report.html")
    modules = dict(zip(page["modules"]["file"], page["modules"]["severity"]))
    assert modules["string0/module2.png"] == [0.4, 1, 0, 0.0, 1, 0, 0]
    assert modules["string1/module3.png"] == [round(1.734 + TOO_SHORT, 3), 3, 0, 0.0, 1, 0, 1]
    assert modules["string1/module5.png"] == [0.3, 1, 4, 0.0, 0, 1, 0]
    length, measured, unmeasured, area, *modes = page["severity"]
    assert length == pytest.approx(0.4 + 1.734 + TOO_SHORT + 0.3 + 1.4, abs=1e-3)
    assert (measured, unmeasured, modes) == (1 + 3 + 1 + 2, 4 + 1, [2, 2, 2])
    assert area == pytest.approx((0.2 + 60 / SIDE**2) / (18 + 4), abs=1e-4)  # back.png counts as 0


def test_only_lines_and_areas_that_nobody_took_back_are_in_the_files(severe):
    names, cells = shown_cells(severe)
    shapes = chunk(severe / "report" / "shapes-0.js")
    by_name = {names[int(number)]: shape_numbers(base64.b64decode(text)) for number, text in shapes.items()}
    assert by_name.keys() == {("both.png", 0), ("back.png", 0), (0, 1), (1, 0), (2, 4)}
    assert set(np.unique(by_name["both.png", 0])) == {0, 1, 2} and set(np.unique(by_name["back.png", 0])) == {0, 1}
    severity = {names[int(number)]: values for number, values in cells["severity"].items()}
    assert (0, 0) not in severity and severity["back.png", 0][:3] == [0.6, None, "B"]
    assert severity["sound.png", 0][:3] == [None, None, ""] and severity[2, 0][:3] == [None, None, ""]


def test_a_record_without_severity_says_nothing_of_it(site, tab):
    assert held(site / "report.html")["measured"] == [False, False]
    assert not list((site / "report").glob("shapes*"))
    open_report(tab, site / "report.html")
    assert not tab.locator("#severity, .severity, .shape:not(#shape)").count()
    assert not tab.locator("button:has-text('Lines and areas')").count()
    titles = tab.locator("#table th").all_inner_texts()
    assert "crack length" not in titles and "inactive area" not in titles
    assert "longest cracks first" not in tab.locator("#sorting option").all_inner_texts()


def test_a_network_without_lines_still_has_areas(tmp_path, tab):
    folder = make_severe(tmp_path)
    with sqlite3.connect(folder / RECORD) as connection:
        connection.execute("UPDATE cells SET crack_length = NULL, crack_mode = '', below = ''")
    connection.close()
    with reading(folder) as record:
        write_report(record)
    open_report(tab, folder / "report.html")
    assert "cell widths" not in tab.inner_text("body") and "length not" not in tab.inner_text("body")
    no_lengths = "This network does not tell where cracks run: no lengths"
    assert tab.inner_text("#severity") == f"{no_lengths}; 0.9 % of all judged cells' area is inactive."
    assert "inactive area" in tab.locator("#table th").all_inner_texts()


def texts_of_cells(tab):
    """{end of a shown cell's title: its texts of severity}."""
    return {
        item.locator(".file").inner_text(): item.locator(".severity").all_inner_texts()
        for item in tab.locator("#grid li").all()
    }


def test_each_cell_says_how_bad_it_is(severe, tab):
    open_report(tab, severe / "report.html")
    texts = texts_of_cells(tab)
    assert texts["both.png"] == ["0.80 cell widths · mode\u00a0C", "20.0 %"]
    assert texts["back.png"] == ["0.60 cell widths · mode\u00a0B"] and texts["small.png"] == ["no region found"]
    assert texts["sound.png"] == ["length not measured"]
    assert texts["string1/module3.png, row 1, column 2"] == ["no line found"]
    assert texts["string1/module5.png, row 1, column 1"] == ["length not measured"]
    assert texts["string0/module2.png, row 1, column 1"] == []
    sentence = tab.inner_text("#severity")
    assert "3.88 cell widths in all, in 7 cells (2 of mode A, 2 of mode B, 2 of mode C, 1 where no line" in sentence
    assert (
        "and 5 cells whose length is not measured (the shorter side under 100 pixels, or called by a person alone); "
        in sentence
    )
    assert "; 0.9 % of all judged" in sentence
    tab.locator("#grid button[aria-label^='both.png']").click()
    assert "crack 0.800 · 0.80 cell widths · mode\u00a0C" in tab.inner_text("#facts")
    assert "inactive 0.950 · 20.0 %" in tab.inner_text("#facts")
    assert "row 1, column 1: crack (crack 0.990 · 1.23 cell widths · mode\u00a0C, inactive 0.010)" in {
        shape.get_attribute("aria-label") for shape in tab.locator("polygon").all()
    }


def test_cells_and_modules_are_sorted_by_severity(severe, tab):
    open_report(tab, severe / "report.html")
    tab.select_option("#sorting", "longest cracks first")
    ends = [title.split("/")[-1] for title in tab.locator("#grid .file").all_inner_texts()]
    assert ends[:4] == ["module3.png, row 1, column 1", "both.png", "back.png", "module3.png, row 1, column 3"]
    assert ends[-2:] == ["small.png", "module2.png, row 1, column 1"]
    tab.select_option("#sorting", "largest inactive areas first")
    assert tab.locator("#grid .file").all_inner_texts()[:2] == ["both.png", "small.png"]
    tab.click("#table th button:has-text('crack length')")
    assert [text.split("/")[-1] for text in tab.locator("#table td:first-child").all_inner_texts()] == [
        f"module{number}.png" for number in (3, 2, 5)
    ]
    tab.wait_for_function("document.querySelector('figure.module b').textContent.endsWith('module3.png')")
    row = tab.locator("#table tbody tr", has_text="module5.png").inner_text()
    assert "0.30 (4 not measured)" in row
    tab.click("#table th button:has-text('mode B')")
    assert "module5.png" in tab.locator("#table td:first-child").first.inner_text()


def red_rows(image):
    """Rows, in 0..1 of the height, of the red pixels of a screenshot."""
    pixels = np.asarray(Image.open(io.BytesIO(image)).convert("RGB")).astype(int)
    red = (pixels[..., 0] > 150) & (pixels[..., 1:].max(2) < 110)
    return np.flatnonzero(red.any(1)) / len(pixels)


def test_lines_lie_where_the_crack_is_and_are_switched_off_together(severe, tab):
    open_report(tab, severe / "report.html")
    tab.wait_for_function("document.querySelectorAll('#grid .shape').length === 5")
    tab.wait_for_function("document.querySelectorAll('image.shape').length === 3")
    small = tab.locator("#grid button[aria-label^='back.png'] .pic")
    assert red_rows(small.screenshot()).mean() == pytest.approx(0.5, abs=0.02)
    cell_of_module = tab.locator("polygon[aria-label^='row 1, column 1: crack (crack 0.990 · 1.23']")
    outline, lines = cell_of_module.bounding_box(), tab.locator("image.shape").all()
    boxes = [line.bounding_box() for line in lines]
    assert (
        min(max(abs(box[side] - outline[side]) for side in ("x", "y", "width", "height")) for box in boxes)
        < 0.06 * outline["width"]
    )  # the outline is a little inside the cell
    tab.locator("#grid button[aria-label^='both.png']").click()
    tab.wait_for_selector("#shape:not([hidden])")
    stage = tab.locator("#stage")
    wide, seen = stage.bounding_box(), tab.locator("#shape").bounding_box()
    assert seen["width"] == pytest.approx(wide["width"], abs=2) and seen["height"] == pytest.approx(
        wide["width"], abs=2
    )
    assert red_rows(stage.screenshot()).mean() == pytest.approx(0.5, abs=0.02)
    tab.keyboard.press("s")
    assert not len(red_rows(stage.screenshot())) and tab.locator(".shape:visible").count() == 0
    tab.keyboard.press("Escape")
    tab.locator("button:has-text('Lines and areas')").first.click()
    assert tab.locator("#grid .shape:visible").count() == 5
    assert tab.locator("button[aria-pressed=true]:has-text('Lines and areas')").count() == 3


def test_a_report_in_a_single_file_has_its_lines(severe, tab, tmp_path):
    with reading(severe) as record:
        write_report(record, tmp_path / "mail.html")
    assert len(chunk(tmp_path / "mail.html")["shapes"]) == 5
    open_report(tab, tmp_path / "mail.html")
    tab.wait_for_function("document.querySelectorAll('#grid .shape').length === 5")
    tab.wait_for_function("document.querySelectorAll('image.shape').length === 3")
