"""Two records of the same modules compared: which images belong together, and what is new, gone or unchanged."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import linux
from PIL import Image

from elcells.files import InputError
from elcells.inference.cells import TOO_DARK, CellResult, Place
from elcells.modules.cutting import CutModule
from elcells.modules.turning import turn_of
from elcells.pages.comparison import write_comparison
from elcells.pages.comparison_data import measured
from elcells.records.comparison import Seen
from elcells.records.labels import keep_label
from elcells.records.matching import items, match
from elcells.records.metadata import keep_metadata
from elcells.records.opening import reading, writing
from elcells.records.requests import ImageResult, Request, module_name
from elcells.records.runs import RunInfo

INFO = RunInfo("a.onnx", "00", "a.onnx: a network", ("crack", "inactive"), "F1", (0.5, 0.5), "torch")
SOUND, CRACKED, INACTIVE, DARK = (0.01, 0.01), (0.99, 0.01), (0.01, 0.99), None
SIDE = 20  # pixels of a cell


def cell_result(name, path, row, column, p, bright):
    """A CellResult of a module's cell with probabilities p, or DARK."""
    place = Place(name, row, column)
    file = f"cut/{name}/r{row:02}_c{column:02}.png"
    if p is DARK:
        return CellResult(file, brightness=0.02, error=TOO_DARK, place=place)
    return CellResult(file, tuple(int(v >= 0.5) for v in p), p, bright, place=place)


def module_result(path, cells, size=(3, 2), brightness=None):
    """The ImageResult of a module of (columns, rows) cells; cells: {(row, column): probabilities}, others are sound."""
    columns, rows = size
    name = module_name(path, 0)
    bright = np.full((rows, columns), 0.5) if brightness is None else brightness
    results = [
        cell_result(name, path, r, c, cells.get((r, c), SOUND), float(bright[r - 1, c - 1]))
        for r in range(1, rows + 1)
        for c in range(1, columns + 1)
    ]
    nodes = np.stack(np.meshgrid(np.arange(columns + 1.0), np.arange(rows + 1.0)), -1) * SIDE
    module = CutModule(
        path, columns, rows, 0.9, 0.1, True, cell_pixels=SIDE, corners=(0.0,) * 8, nodes=tuple(nodes.ravel())
    )
    return ImageResult(Request(path, path, 0, 1, 1, size), cells=tuple(results), module=module)


def single_result(path, p, bright=0.5):
    """The ImageResult of an image of a cell."""
    cell = CellResult(path, tuple(int(v >= 0.5) for v in p), p, bright)
    return ImageResult(Request(path, path, 0, 1, 1), cells=(cell,))


def make(folder, results, serials=None, info=INFO):
    """A results folder with ImageResults, and serials of some paths."""
    with writing(folder, info) as record:
        for result in results:
            record.add(result)
        keep_metadata(record, {(path, 0): {"serial": serial} for path, serial in (serials or {}).items()})
    return folder


def compare(before, now):
    """Compare two results folders: (rows of comparison.csv, data of comparison.html, lines)."""
    with reading(now) as record, reading(before) as earlier:
        lines = write_comparison(record, earlier)
    with open(now / "comparison.csv", newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    text = (now / "comparison.html").read_text(encoding="utf-8")
    return rows, json.loads(text.split('id="data">')[1].split("</script>")[0]), lines


def states(tmp_path, before, now):
    """The rows of one cell, (1, 1), with the probabilities `before` and `now`."""
    make(tmp_path / "a", [module_result("/a/m.png", {(1, 1): before})])
    make(tmp_path / "b", [module_result("/b/m.png", {(1, 1): now})])
    return compare(tmp_path / "a", tmp_path / "b")[0][0]


# ---------------------------------------------------------------- which images belong together


def matched(tmp_path, before, now):
    """[(path before, path now)] and the Matches of modules {path: serial}."""
    for folder, serials in (("a", before), ("b", now)):
        make(tmp_path / folder, [module_result(path, {}) for path in serials], {p: s for p, s in serials.items() if s})
    with reading(tmp_path / "a") as a, reading(tmp_path / "b") as b:
        found = match([*items(a)], [*items(b)])
    return sorted((a.path, b.path) for a, b, _ in found.pairs), found


def test_a_serial_counts_more_than_a_file_name(tmp_path):
    pairs, found = matched(tmp_path, {"/a/1.png": "X", "/a/2.png": "Y"}, {"/b/1.png": "Y", "/b/2.png": "X"})
    assert pairs == [("/a/1.png", "/b/2.png"), ("/a/2.png", "/b/1.png")]
    assert {how for *_, how in found.pairs} == {"serial"}


def test_a_file_name_counts_where_a_serial_is_missing_but_never_against_serials(tmp_path):
    pairs, found = matched(tmp_path, {"/a/1.png": "X", "/a/2.png": "Y"}, {"/b/1.tif": "", "/b/2.png": "Z"})
    assert pairs == [("/a/1.png", "/b/1.tif")]
    assert found.only_before == ["/a/2.png (serial Y)"] and found.only_now == ["/b/2.png (serial Z)"]


def test_folders_tell_files_of_one_name_apart(tmp_path):
    before = dict.fromkeys(["/2024/s1/el/m.png", "/2024/s2/el/m.png", "/2024/s3/el/m.png"], "")
    now = dict.fromkeys(["/2026/s2/el/m.png", "/2026/s1/el/m.png"], "")
    pairs, found = matched(tmp_path, before, now)
    assert pairs == [("/2024/s1/el/m.png", "/2026/s1/el/m.png"), ("/2024/s2/el/m.png", "/2026/s2/el/m.png")]
    assert found.only_before == ["/2024/s3/el/m.png"] and not found.doubtful


def test_suffixes_tell_files_apart_where_folders_do_not(tmp_path):
    pairs, _ = matched(
        tmp_path, dict.fromkeys(["/a/m.png", "/a/m.jpg"], ""), dict.fromkeys(["/b/m.jpg", "/b/m.png"], "")
    )
    assert pairs == [("/a/m.jpg", "/b/m.jpg"), ("/a/m.png", "/b/m.png")]


def test_what_nothing_tells_apart_is_named_and_not_guessed(tmp_path):
    pairs, found = matched(tmp_path, dict.fromkeys(["/a/s1/m.png", "/a/s2/m.png"], ""), {"/b/s3/m.png": ""})
    assert not pairs and len(found.doubtful) == 3
    assert all("file name m, and nothing tells them apart" in line for line in found.doubtful)


def test_a_serial_that_stands_twice_is_named_and_not_guessed(tmp_path):
    pairs, found = matched(tmp_path, {"/a/1.png": "X"}, {"/b/8.png": "X", "/b/9.png": "X"})
    assert not pairs and len(found.doubtful) == 3 and "serial X" in found.doubtful[0]


@pytest.mark.parametrize(
    "now, serial, part",
    [
        ("/b/m.png", "Y", "1 image has the same file name but other serials, for example /a/m.png (serial X) before"),
        ("/b/n.png", "", "no serial and no file name stands in both"),
    ],
)
def test_a_sentence_says_why_nothing_matches(tmp_path, now, serial, part):
    make(tmp_path / "a", [module_result("/a/m.png", {})], {"/a/m.png": "X"})
    make(tmp_path / "b", [module_result(now, {})], {now: serial})
    _, data, lines = compare(tmp_path / "a", tmp_path / "b")
    assert part in data["warnings"][0] and lines[1] == data["warnings"][0]


def test_every_image_is_compared_or_named(tmp_path):
    before = [
        module_result("/a/m.png", {}),
        module_result("/a/turned.png", {}, (3, 2)),
        module_result("/a/gone.png", {}),
    ]
    failed = ImageResult(Request("/b/m.png", "/b/m.png", 0, 1, 1, (3, 2)), error="/b/m.png: no module found")
    now = [failed, module_result("/b/turned.png", {}, (2, 3)), single_result("/b/gone.png", SOUND)]
    rows, data, lines = compare(make(tmp_path / "a", before), make(tmp_path / "b", now))
    text = json.dumps(data["lists"])
    assert not rows and "no module found" in text and "3x2 cells before, 2x3 now" in text
    assert "1 image only in the record before" in text and "1 image only in the record of now" in text
    assert any("3x2 cells before" in line for line in lines)


# ---------------------------------------------------------------- what changed


@pytest.mark.parametrize(
    "before, now, crack, inactive, black",
    [
        (SOUND, CRACKED, "new", "none", "none"),
        (CRACKED, INACTIVE, "gone", "new", "none"),
        (CRACKED, CRACKED, "unchanged", "none", "none"),
        (CRACKED, DARK, "not comparable", "not comparable", "new"),
        (DARK, SOUND, "not comparable", "not comparable", "gone"),
        (DARK, DARK, "not comparable", "not comparable", "unchanged"),
    ],
)
def test_a_cell_is_compared_class_by_class(tmp_path, before, now, crack, inactive, black):
    row = states(tmp_path, before, now)
    assert (row["crack"], row["inactive"], row["nearly_black"]) == (crack, inactive, black)


@pytest.mark.parametrize(
    "before, now, uncertain", [(0.01, 0.99, "0"), (0.4, 0.99, "1"), (0.2, 0.6, "1"), (0.2, 0.8, "0")]
)
def test_a_change_near_a_threshold_is_uncertain(tmp_path, before, now, uncertain):
    row = states(tmp_path, (before, 0.01), (now, 0.01))
    assert row["crack"] == "new" and row["crack_uncertain"] == uncertain and row["inactive_uncertain"] == "0"
    assert (row["p_crack_before"], row["p_crack_now"]) == (f"{before:.4f}", f"{now:.4f}")


def severe(path, length, area):
    """The ImageResult of an image of a cell that is cracked and inactive."""
    cell = CellResult(path, (1, 1), (0.99, 0.99), 0.5, crack_length=length, inactive_area=area)
    return ImageResult(Request(path, path, 0, 1, 1), cells=(cell,))


def test_lengths_and_areas_of_both_records_stand_beside_each_other(tmp_path):
    make(tmp_path / "a", [severe("/a/c.png", None, 0.12345), severe("/a/d.png", 0.1, 0.2)])
    make(tmp_path / "b", [severe("/b/c.png", 1.25, 0.25), severe("/b/d.png", 0.3, 0.4)])
    with writing(tmp_path / "b", INFO) as record, record.connection:
        image = next(row["id"] for row in record.images() if row["path"] == "/b/d.png")
        for name in INFO.classes:
            keep_label(record, (image, 0, 0, name, 0, "Ann", "2026-11-28T10:00:00+00:00"))
    rows, _, _ = compare(tmp_path / "a", tmp_path / "b")
    names = ["crack_length_before", "crack_length_now", "inactive_area_before", "inactive_area_now"]
    header = list(rows[0])
    assert header[header.index("p_inactive_now") + 1 : header.index("nearly_black")] == names
    # In the second cell a person took the calls of the later record back
    expected = [["", "1.250", "0.1235", "0.2500"], ["0.100", "0.000", "0.2000", "0.0000"]]
    assert [[row[name] for name in names] for row in sorted(rows, key=lambda row: row["image_now"])] == expected


def test_a_change_of_the_threshold_alone_is_uncertain(tmp_path):
    make(tmp_path / "a", [single_result("/a/c.png", (0.48, 0.01))], info=replace(INFO, thresholds=(0.9, 0.5)))
    now = replace(INFO, thresholds=(0.05, 0.5))
    ((row,), _, _) = compare(tmp_path / "a", make(tmp_path / "b", [single_result("/b/c.png", (0.52, 0.01))], info=now))
    assert row["crack_uncertain"] == "1"


def test_labels_of_people_win_and_are_certain(tmp_path):
    make(tmp_path / "a", [single_result("/a/c.png", (0.4, 0.01))])
    make(tmp_path / "b", [single_result("/b/c.png", (0.4, 0.01))])
    with writing(tmp_path / "a", INFO) as record, record.connection:
        record.connection.execute("INSERT INTO labels VALUES (1, 0, 0, 'crack', 1, 'Ann', '2026-01-01')")
    with writing(tmp_path / "b", INFO) as record, record.connection:
        record.connection.execute("INSERT INTO labels VALUES (1, 0, 0, 'crack', 0, 'Bob', '2026-01-01')")
    ((row,), _, _) = compare(tmp_path / "a", tmp_path / "b")
    assert (row["crack"], row["crack_uncertain"], row["inactive"]) == ("gone", "0", "none")
    assert (row["person_before"], row["person_now"], row["row"]) == ("Ann", "Bob", "")


def labelled(folder, *labels):
    """Give labels (row, column, class, label or None, who) to cells of the first image of a results folder."""
    with writing(folder, INFO) as record, record.connection:
        for row, column, name, label, who in labels:
            record.connection.execute(
                "INSERT INTO labels VALUES (1, ?, ?, ?, ?, ?, '2026-01-01')", (row, column, name, label, who)
            )


def test_a_change_from_a_label_in_one_record_only_is_uncertain(tmp_path):
    probabilities = {(1, 1): SOUND, (1, 2): CRACKED, (1, 3): SOUND}
    make(tmp_path / "a", [module_result("/a/m.png", {**probabilities, (2, 1): SOUND})])
    make(tmp_path / "b", [module_result("/b/m.png", {**probabilities, (2, 1): CRACKED})])
    labelled(tmp_path / "a", (1, 3, "crack", 0, "Ann"))
    labelled(tmp_path / "b", *((r, c, "crack", v, "Bob") for r, c, v in ((1, 1, 1), (1, 2, 0), (1, 3, 1), (2, 1, 1))))
    rows, data, _ = compare(tmp_path / "a", tmp_path / "b")
    assert [(row["crack"], row["crack_uncertain"]) for row in rows[:4]] == [
        ("new", "1"),
        ("gone", "1"),
        ("new", "0"),  # people say so in both records
        ("new", "0"),  # so does the network
    ]
    assert data["counts"][0][:4] == [3, 1, 1, 1] and [mask[1] for *_, mask in data["changes"]] == list("pp..")


def test_counts_add_up_and_worst_modules_come_first(tmp_path):
    before = [module_result("/a/few.png", {(1, 1): CRACKED}), module_result("/a/many.png", {(1, 2): INACTIVE})]
    now = [module_result("/b/few.png", {(1, 1): CRACKED, (2, 1): (0.6, 0.01)})]
    now.append(module_result("/b/many.png", {(1, 1): CRACKED, (1, 3): DARK}))
    rows, data, lines = compare(make(tmp_path / "a", before), make(tmp_path / "b", now))
    assert len(rows) == 12 and {sum(counts[k] for k in (0, 2, 4, 5, 6)) for counts in data["counts"]} == {12}
    assert [(row[1], row[3], row[-2]) for row in data["modules"]] == [("many.png", 1, 0), ("few.png", 1, 1)]
    assert (
        "crack: 2 new (1 uncertain), 0 gone, 1 unchanged" in lines
        and "nearly black: 1 newly black, 0 lit again, 0 still black" in lines
    )


def test_other_networks_and_thresholds_are_warned_about(tmp_path):
    other = replace(INFO, sha256="11", thresholds=(0.5, 0.25))
    make(tmp_path / "a", [single_result("/a/c.png", SOUND)])
    _, data, lines = compare(tmp_path / "a", make(tmp_path / "b", [single_result("/b/c.png", SOUND)], info=other))
    assert len(data["warnings"]) == 1 and data["warnings"][0] in lines
    assert (
        "another network (both are called a.onnx)" in data["warnings"][0]
        and "inactive 0.250 now" in data["warnings"][0]
    )


def test_only_classes_of_both_are_compared(tmp_path):
    single = replace(INFO, classes=("crack",), thresholds=(0.5,))
    strange = replace(INFO, classes=("dirt",), thresholds=(0.5,))
    make(tmp_path / "a", [single_result("/a/c.png", CRACKED)])
    make(tmp_path / "b", [single_result("/b/c.png", CRACKED[:1])], info=single)
    make(tmp_path / "c", [single_result("/c/c.png", CRACKED[:1])], info=strange)
    ((row,), data, _) = compare(tmp_path / "a", tmp_path / "b")
    assert row["crack"] == "unchanged" and "inactive" not in row and "class inactive" in data["warnings"][-1]
    with pytest.raises(InputError, match="other classes"):
        compare(tmp_path / "a", tmp_path / "c")
    with pytest.raises(InputError, match="itself"):
        compare(tmp_path / "a", tmp_path / "a")


# ---------------------------------------------------------------- turned modules


@pytest.mark.parametrize(
    "quarters, shape", [(0, (6, 10)), (2, (6, 10)), (1, (8, 8)), (3, (8, 8)), (1, (6, 10)), (3, (8, 16))]
)
def test_a_turned_module_is_noticed(quarters, shape):
    rng = np.random.default_rng(0)
    before = rng.normal(0.5, 0.05, shape) + np.linspace(0, 0.1, shape[1])
    seen = 0.8 * before + rng.normal(0, 0.01, shape)
    now = np.rot90(seen, -quarters)
    now = now + np.linspace(0.3, 0, now.shape[1])  # the camera stood elsewhere
    now[0, :2] = 0.02  # and two cells have failed
    now[1, 1] = np.nan
    assert turn_of(before, now) == 90 * quarters
    assert turn_of(before, rng.normal(0.5, 0.05, now.shape)) == 0  # another module says nothing


def test_a_turned_module_is_named_and_compared_as_it_stands(tmp_path):
    bright = np.random.default_rng(1).uniform(0.3, 0.7, (6, 10))
    make(tmp_path / "a", [module_result("/a/m.png", {(1, 1): CRACKED}, (10, 6), bright)])
    make(tmp_path / "b", [module_result("/b/m.png", {(6, 10): CRACKED}, (10, 6), bright[::-1, ::-1])])
    rows, data, lines = compare(tmp_path / "a", tmp_path / "b")
    assert (rows[0]["crack"], rows[-1]["crack"]) == ("gone", "new")
    assert "turned by 180 degrees; compared as it stands" in rows[0]["notes"]
    assert "1 module seems to be turned" in data["warnings"][0] and any("180 degrees" in line for line in lines)
    assert "the changes of 2 cells there" in data["warnings"][0] and lines[1] == data["warnings"][0]
    assert not any(map(any, data["counts"])) and not data["changes"] and "crack: 0 new, 0 gone, 0 unchanged" in lines


def test_another_lens_is_noted(tmp_path):
    results = {"/a/m.png": 0.03, "/a/n.png": 0.03, "/b/m.png": 0.05, "/b/n.png": 0.035}
    for folder in ("a", "b"):
        some = [module_result(path, {(1, 1): CRACKED}) for path in results if path.startswith(f"/{folder}")]
        bent = [replace(r, module=replace(r.module, bend=results[r.request.path])) for r in some]
        make(tmp_path / folder, bent)
    rows, data, lines = compare(tmp_path / "a", tmp_path / "b")
    assert {row["module"]: "another lens" in row["notes"] for row in rows} == {
        module_name("/b/m.png", 0): True,
        module_name("/b/n.png", 0): False,
    }
    assert "1 module was cut with another lens" in data["warnings"][0] and data["warnings"][0] in lines


# ---------------------------------------------------------------- the page


def with_images(folder, results):
    """A results folder whose files of modules and cells are there."""
    make(folder, results)
    for result in results:
        name = module_name(result.request.path, 0)
        (folder / "modules").mkdir(exist_ok=True)
        (folder / "cut" / name).mkdir(parents=True)
        Image.new("L", (3 * SIDE, 2 * SIDE), 128).save(folder / "modules" / f"{name}.jpg")
        for cell in result.cells:
            Image.new("L", (SIDE, SIDE), 90).save(folder / cell.filename)
    return folder


def test_the_page_shows_every_change(browser, tmp_path):
    worst = "/b/<b>'worst\".png"
    with_images(
        tmp_path / "2024; a",
        [module_result(worst.replace("/b/", "/a/"), {(2, 2): INACTIVE}), module_result("/a/x.png", {})],
    )
    changed = module_result(worst, {(1, 1): CRACKED, (2, 3): (0.99, 0.99)})
    now = with_images(tmp_path / "2026 é", [module_result("/b/x.png", {}), changed])
    compare(tmp_path / "2024; a", now)
    page = browser.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfailed", lambda request: errors.append(request.url))
    page.goto((now / "comparison.html").as_uri())
    page.wait_for_selector("#cells button")
    assert page.locator("#table tbody tr").count() == 2 and page.locator("#cells li").count() == 3
    first = page.locator("figure.module").first
    assert [first.locator(f"polygon.{kind}").count() for kind in ("new", "gone", "unchanged")] == [6, 2, 0]
    assert "<b>'worst\".png" in first.inner_text()
    first.locator("polygon.area").first.press("Enter")
    page.wait_for_function("document.querySelector('dialog img').naturalWidth")
    assert "row 1, column 1" in page.inner_text("#about") and "0.010 before, 0.990 now" in page.inner_text("#about")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.getElementById('about').innerText.includes('row 2, column 2')")
    page.keyboard.press("Escape")
    page.click("button[data-kind='gone inactive']")
    page.wait_for_function("document.querySelectorAll('#cells li').length === 1")
    page.fill("#search", "x.png")
    page.click("#table tbody a")
    assert page.locator("#table tbody tr").count() == 1 and "#module=x_" in page.url
    assert not errors
    page.close()
    alone = tmp_path / "sent" / "by mail" / "comparison.html"
    alone.parent.mkdir(parents=True)
    alone.write_bytes((now / "comparison.html").read_bytes())
    page = browser.new_page()
    page.goto(alone.as_uri())
    page.wait_for_function(
        "[...document.querySelectorAll('#cells img')].filter(image => image.naturalWidth).length === 6"
    )
    page.wait_for_function("document.querySelectorAll('figure.module image[href^=\"data:\"]').length === 4")
    page.close()


@pytest.mark.parametrize(
    "severity, below, words",
    [
        ((1.234, 0.0421), (), ["1.23 cell widths", "4.2 %"]),
        ((0.04, 0.001), ("crack_length", "inactive_area"), ["no line found", "no region found"]),
        ((None, 0.0004), (), ["", "under 0.1 %"]),
    ],
)
def test_what_was_not_found_is_no_size(severity, below, words):
    seen = Seen((1, 1, 0), (1, 1), (0.9, 0.9), (None, None), "", "", severity, below)
    assert [measured(seen, k, name) for k, name in enumerate(INFO.classes)] == words
    other = replace(seen, calls=(0, 0, 0))
    assert [measured(other, k, name) for k, name in enumerate(INFO.classes)] == ["", ""]


def test_the_page_shows_lengths_and_areas(browser, tmp_path):
    make(tmp_path / "a", [severe("/a/c.png", 1.2, 0.042)])
    now = make(tmp_path / "b", [severe("/b/c.png", None, 0.1)])
    labelled(now, (0, 0, "inactive", 0, "Ann"))
    compare(tmp_path / "a", now)
    page = browser.new_page()
    page.goto((now / "comparison.html").as_uri())
    page.wait_for_selector("#cells .line")
    text = page.locator("#cells li").inner_text()
    page.close()
    assert "unchanged crack: 0.990 before (1.20 cell widths), 0.990 now" in text
    assert "gone inactive: 0.990 before (4.2 %), 0.990 now (labelled by Ann)" in text


def test_what_people_said_and_missing_images_are_named(browser, tmp_path):
    before = with_images(tmp_path / "a", [module_result("/a/m.png", {(1, 1): CRACKED})])
    now = with_images(tmp_path / "b", [module_result("/b/m.png", {(1, 1): CRACKED, (1, 2): CRACKED})])
    labelled(before, *((1, 1, name, None, "Ann") for name in INFO.classes))
    labelled(now, (1, 1, "crack", 0, "Bob"))
    for path in (before / "cut").rglob("*.png"):
        path.unlink()
    compare(before, now)
    page = browser.new_page(color_scheme="dark")
    page.goto((now / "comparison.html").as_uri())
    page.wait_for_selector("#cells .frame span")
    text = page.locator("#cells li").first.inner_text()
    assert "Image not there" in text
    assert "before (Ann was not sure)" in text and "now (labelled by Bob); uncertain: labelled in one record" in text
    assert page.locator("#lost").is_visible() and "Labels that were given after that" in page.inner_text("#made")
    page.click("[data-kind='labelled in one record only']")
    page.wait_for_function("document.querySelectorAll('#cells li').length === 1")
    page.locator("figure.module polygon.area").first.press("Enter")
    page.wait_for_selector("dialog .frame span")
    assert page.locator("dialog img[alt=now]").count() == 1
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).getPropertyValue('--bad')") == "#a40000"
    page.close()


def test_data_of_an_earlier_page_is_removed(tmp_path):
    paths = [f"/{k}.png" for k in range(60)]
    make(tmp_path / "a", [module_result(f"/a{path}", {}) for path in paths])
    now = make(tmp_path / "b", [module_result(f"/b{path}", {}) for path in paths])
    (now / "comparison").mkdir()
    (now / "comparison" / "modules-7.js").write_text("old")
    compare(tmp_path / "a", now)
    names = sorted(path.name for path in (now / "comparison").iterdir())
    assert names == ["modules-1.js", "modules-2.js"]  # the first one stands in the page


@linux
def test_names_that_are_not_unicode_are_compared(tmp_path):
    name = b"/a/\xff<!--.png".decode("utf-8", "surrogateescape")
    make(tmp_path / "a", [module_result(name, {(1, 1): CRACKED})])
    make(tmp_path / "b", [module_result(name.replace("/a/", "/b/"), {})])
    rows, data, _ = compare(tmp_path / "a", tmp_path / "b")
    assert rows[0]["crack"] == "gone" and data["modules"][0][1] == "?<!--.png"
