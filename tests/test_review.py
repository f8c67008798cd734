"""The review page, and the labels that people give on it: in Python, and in a real browser where one is."""

import csv
import itertools
import json
import re
import shutil
from urllib.parse import unquote

import numpy as np
import pytest
from conftest import CPU, ROOT, posix
from PIL import Image

import data
import predict
from elcells.data.images import read_image, symmetries
from elcells.inference.cells import CellResult, Place
from elcells.inference.doubt import UNSURE, doubt
from elcells.inference.networks import Network, open_network
from elcells.inference.severity import SIDE, shape_image
from elcells.modules.cutting import CutModule
from elcells.pages.review import LABELLED, NEAR, RANDOM, ReviewCell, next_steps, write_page, write_review
from elcells.records.labels import take_labels
from elcells.records.opening import reading, writing
from elcells.records.requests import ImageResult, module_name, request_of
from elcells.records.runs import RunInfo

STRANGE = "<b>Zelle \"1\"; größe & 'x'.png"
INFO = RunInfo("n.onnx", "00", "n.onnx", ("crack", "inactive"), "f1", (0.5, 0.4), "onnxruntime")
SHAPE = shape_image(np.eye(SIDE, dtype=bool), np.zeros((SIDE, SIDE), bool))
NEXT = "filename;crack;inactive;unsure;who;when\n"


@pytest.fixture(scope="module")
def folder(elpv, tmp_path_factory):
    """A folder with twelve cells, one of which has a name of quotes, <, ; and umlauts, and one of 16 bits."""
    tmp_path = tmp_path_factory.mktemp("cells")
    (tmp_path / "in").mkdir()
    for number, path in enumerate(sorted((elpv.parent / "images").glob("*.png"))[:12]):
        shutil.copy(path, tmp_path / "in" / (STRANGE if number == 0 else path.name))
    deep = np.asarray(Image.open(tmp_path / "in" / STRANGE)).astype(np.uint16) * 16
    Image.fromarray(deep).save(tmp_path / "in" / "deep.png")
    return tmp_path / "in"


def judge(model, folder, out):
    """Judge a folder into a results folder; the exit code."""
    return predict.main([str(folder), "--model", str(model), *CPU, "--out", str(out)])


@pytest.fixture(scope="module")
def page(exported, folder):
    """The review page of that folder, and its data."""
    out = folder.parent / "out"
    assert judge(exported, folder, out) == 0
    return out / "review.html", held(out / "review.html")


def held(path):
    """The data inside a page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(encoding="utf-8"))
    return json.loads(found[1])


def save_image(path, value=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 40), value, np.uint8)).save(path)


def module_result(path, folder):
    """The ImageResult of a module of 2x2 cells, the first called cracked, the last dark; its files in a folder."""
    request = request_of(str(path), (2, 2))
    name = module_name(request.path, 0)
    cells = []
    for number in range(4):
        place = Place(name, number // 2 + 1, number % 2 + 1)
        file = f"cut/{name}/r{place.row:02}_c{place.column:02}.png"
        save_image(folder / file, 60 + 40 * number)
        p = (0.9, 0.1) if number == 0 else (0.01, 0.01)
        calls = (int(number == 0), 0)
        more = (
            {"map": bytes(200), "shape": SHAPE}
            if number == 0
            else {"dark_part": 1.0, "dark_ratio": 0.31}
            if number == 3
            else {}
        )
        cells.append(CellResult(file, calls, p, 0.4, place=place, **more))
    save_image(folder / "modules" / f"{name}.jpg")
    nodes = tuple(float(v) for y in range(3) for x in range(3) for v in (20 * x, 20 * y))
    corners = (0, 0, 40, 0, 40, 40, 0, 40)
    module = CutModule(str(path), 2, 2, 0.9, 0.1, True, cell_pixels=20, bend=0.0, corners=corners, nodes=nodes)
    return ImageResult(request, cells=tuple(cells), module=module)


def module_record(folder, count):
    """A results folder with `count` modules, and its review page; the modules' names."""
    with writing(folder, INFO) as record:
        for number in range(count):
            path = folder.parent / f"m{number:02}.png"
            save_image(path)
            record.add(module_result(path, folder))
        record.end()
        write_review(record)
        return [row["name"] for row in record.modules()]


def review_again(folder, table=None, metadata=None):
    """Take a table of labels, as text, into a record, and write its review page again; the page's data.

    metadata: of all its images, a dict.
    """
    with writing(folder, INFO) as record:
        if metadata:
            record.connection.execute("UPDATE images SET metadata = ?", [json.dumps(metadata)])
        if table:
            (folder / "labels.csv").write_text(table, encoding="utf-8")
            take_labels(record, folder / "labels.csv")
        record.end()
        write_review(record)
    return held(folder / "review.html")


# ---------------------------------------------------------------- what a page shows


def test_a_review_shows_each_cell_once_the_doubtful_ones_first(page):
    cells, thresholds = page[1]["cells"], page[1]["thresholds"]
    assert len({c["file"] for c in cells}) == len(cells) == 13
    reasons = [c["why"] for c in cells]
    assert reasons == sorted(reasons, key=[NEAR, RANDOM].index)
    near = [doubt([c["p"]], thresholds)[0] for c in cells if c["why"] == NEAR]
    assert near == sorted(near) and all(d < UNSURE + 0.01 for d in near)


def test_names_in_a_review_are_those_of_a_table_in_the_results_folder(page, folder):
    named = {(page[0].parent / c["file"]).resolve() for c in page[1]["cells"]}
    assert named == set(folder.resolve().glob("*.png"))


def test_what_a_browser_does_not_show_right_is_converted(page):
    sources = {c["file"]: c["src"] for c in page[1]["cells"]}
    converted = sources.pop("../in/deep.png")
    assert converted.endswith(".jpg") and Image.open(page[0].parent / converted).mode == "L"
    assert {(page[0].parent / unquote(source)).resolve() for source in sources.values()} == {
        (page[0].parent / name).resolve() for name in sources
    }


def test_where_nothing_was_judged_there_is_no_review_page(exported, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"x")
    assert judge(exported, tmp_path / "broken.png", tmp_path / "out") == 3
    assert (tmp_path / "out" / "report.html").exists() and not (tmp_path / "out" / "review.html").exists()


def test_a_review_has_the_labels_of_the_record_and_shows_their_cells(tmp_path, monkeypatch):
    monkeypatch.setattr("elcells.pages.review.SAMPLE", 0)
    [name] = module_record(tmp_path / "out", 1)
    rows = (
        f"cut/{name}/r01_c02.png;1;0;;Anna;2026-01-02T03:04:05Z\ncut/{name}/r02_c01.png;;;1;Bo;2026-01-02T03:04:06Z\n"
    )
    shown = review_again(tmp_path / "out", NEXT + rows)
    assert [(c["file"][-11:], c["why"]) for c in shown["cells"]] == [
        ("r01_c02.png", LABELLED),
        ("r02_c01.png", LABELLED),
    ]
    assert [given[1:3] for given in shown["given"]] == [[[1, 0], "Anna"], [[None, None], "Bo"]]


def test_modules_of_a_review_lie_in_files_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr("elcells.pages.review.CHUNK", 2)
    names = module_record(tmp_path / "out", 5)
    shown = {cell["file"]: cell.get("dark") for cell in held(tmp_path / "out" / "review.html")["cells"]}
    assert shown[f"cut/{names[0]}/r02_c02.png"] == [1.0, 0.31] and shown[f"cut/{names[0]}/r01_c02.png"] is None
    files = {f"modules-{k}": tmp_path / "out" / "review" / f"modules-{k}.js" for k in range(3)}
    listed = held(tmp_path / "out" / "review.html")["modules"]
    assert [row[0] for row in listed] == names and [row[1] for row in listed] == [f"m0{k}.png" for k in range(5)]
    for name, _, _, columns, rows, chunk in listed:
        [found] = [m for m in chunk_of(files[chunk]) if m["name"] == name]
        assert (columns, rows) == (2, 2) and len(found["nodes"]) == 18 and len(found["cells"]) == 4
    written = files["modules-0"].stat().st_mtime_ns
    monkeypatch.setattr("elcells.pages.review.CHUNK", 3)
    review_again(tmp_path / "out")
    assert files["modules-0"].stat().st_mtime_ns != written and not files["modules-2"].exists()


def chunk_of(path):
    """The value of a chunk that the page loads."""
    return json.loads(re.fullmatch(r'chunk\("[^"]*",(.*),"[0-9a-f]{16}"\);\n', path.read_text(encoding="utf-8"))[1])


@posix
def test_what_to_type_next_is_quoted_for_a_shell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = next_steps(tmp_path / "site 'A'", ("crack", "inactive"))
    commands = [" ".join(word if isinstance(word, str) else word[0] for word in words) for _, words in steps]
    folder = "'site '\"'\"'A'\"'\"''"
    table = "'site '\"'\"'A'\"'\"'/labels.csv'"
    assert f"python report.py {folder} --labels {table}" in commands
    assert f"python train.py --data data.csv {table} --weights cells.onnx --recipe adapt" in commands


# ---------------------------------------------------------------- what it is made of


def test_the_eight_symmetries_are_eight_images():
    image = np.arange(9, dtype=np.uint8).reshape(3, 3)
    eight = [a.tobytes() for a in symmetries(image)]
    assert len(set(eight)) == 8 and eight[0] == image.tobytes()


def maps_of(path, images):
    """Class maps (N, C, h, w) of a network's file."""
    engine = open_network(Network(str(path), device="cpu", maps=True))
    return np.stack([seen.map for seen in engine.look_at(images, (1, 1))])


def test_class_maps_are_high_where_the_network_sees_a_defect(elpv):
    table = data.read_table(elpv)
    paths = [table["path"][(table["crack"] == label).to_numpy()].iloc[0] for label in (0, 1)]
    maps = maps_of(ROOT / "cells.onnx", np.stack([read_image(path, 300) for path in paths])[:, None])
    assert maps.shape == (2, 2, 10, 10) and (maps >= 0).all() and maps[1, 0].max() > 2 * maps[0, 0].max()


def test_class_maps_of_a_checkpoint_are_those_of_its_onnx_file(best, exported, elpv):
    images = read_image(data.read_table(elpv)["path"][0], 64)[None, None]
    assert np.allclose(maps_of(exported, images), maps_of(best, images), rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------- in a browser


class Tab:
    """A page in a browser, with what a person does there."""

    def __init__(self, opened, path, who="Jörg"):
        self.tab = opened.new_page()
        self.errors = []
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.goto(path.as_uri())
        if who:
            self.tab.fill("#own", who)
            self.tab.press("#own", "Enter")

    def press(self, *keys):
        for key in keys:
            self.tab.keyboard.press(key)

    def counts(self):
        return self.tab.inner_text("#counts")

    def load(self, path):
        self.tab.evaluate("document.getElementById('message').textContent = ''")
        self.tab.set_input_files("#load", path)
        self.tab.wait_for_function("document.getElementById('message').textContent !== ''")
        return self.tab.inner_text("#message")

    def save(self, path):
        """Save the table; its rows but the times: {file name: (labels…, unsure, who)}."""
        with self.tab.expect_download() as download:
            self.tab.click("#save")
        download.value.save_as(path)
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [[*row.values()] for row in csv.DictReader(file, delimiter=";")]
        return {name: tuple(values[:-1]) for name, *values in rows}


def table_file(text):
    """A table as Tab.load takes it."""
    return {"name": "x.csv", "mimeType": "text/csv", "buffer": text.encode("utf-8")}


@pytest.fixture
def fresh(browser):
    """A browser that has stored nothing."""
    context = browser.new_context()
    yield context
    context.close()


def test_keys_label_cells_and_the_table_comes_back_as_it_was(page, tmp_path, fresh, browser):
    names = [c["file"] for c in page[1]["cells"]]
    tab = Tab(fresh, page[0])
    tab.press("c", "i", "ArrowRight", "n", "u", "c", "z", "i", "i", "ArrowRight", "n", "ArrowLeft", "ArrowLeft", "n")
    expected = {
        names[0]: ("1", "1", "", "Jörg"),
        names[1]: ("0", "0", "", "Jörg"),
        names[2]: ("", "", "1", "Jörg"),
        names[3]: ("0", "0", "", "Jörg"),
        names[4]: ("0", "0", "", "Jörg"),
    }
    target = tmp_path / "labels.csv"
    assert tab.save(target) == expected and tab.counts() == "4 done, 1 unsure, 8 left"
    assert len(data.read_table(target, images=page[0].parent)) == 4  # those that can be trained on

    other = Tab(browser.new_context(), page[0], "Zoë")
    assert "5 labels loaded" in other.load(target) and other.counts() == "4 done, 1 unsure, 8 left"
    other.save(tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == target.read_bytes()
    other.tab.reload()
    other.press("z")
    assert other.counts() == "0 done, 0 unsure, 13 left"
    assert not tab.errors and not other.errors
    other.tab.context.close()


def test_unsure_and_undo_survive_saving_and_reloading(page, fresh, tmp_path):
    tab = Tab(fresh, page[0])
    tab.press("u", "n", "c")
    before = tab.save(tmp_path / "labels.csv")
    tab.tab.reload()
    assert tab.counts() == "2 done, 1 unsure, 10 left" and tab.save(tmp_path / "labels.csv") == before
    tab.press("z", "z")
    assert tab.counts() == "0 done, 1 unsure, 12 left"
    tab.tab.reload()
    tab.press("z", "z")
    assert tab.counts() == "0 done, 0 unsure, 13 left" and "Nothing to undo" in tab.tab.inner_text("#message")


def test_older_and_foreign_tables_load(page, fresh):
    """Without the columns that people need not give, with blank labels, with names relative to the images' folder."""
    tab = Tab(fresh, page[0])
    names = [c["file"].removeprefix("../in/") for c in page[1]["cells"] if ";" not in c["file"]]
    text = f"crack;filename;inactive\n1;{names[0]};0\n;{names[1]};\n0;elsewhere/{names[3]};0\n"
    assert "1 label loaded, 1 row has no label, 1 row belongs to no cell" in tab.load(table_file(text))
    assert tab.counts() == "1 done, 0 unsure, 12 left"
    assert "no column filename" in tab.load(table_file("a;b\n1;2\n"))


def test_what_is_wrong_in_a_table_is_said_with_its_line(page, fresh):
    tab = Tab(fresh, page[0])
    names = [c["file"] for c in page[1]["cells"] if ";" not in c["file"]]
    rows = ["ja;nein;;", "2;0;;", "1;0;;28.11.2026 13:50", "1;0;;2026-02-30", "1;0;;2026-11-28 13:50"]
    text = NEXT.replace("who;", "") + "\n" + "".join(f"{name};{row}\n" for name, row in zip(names, rows))
    said = tab.load(table_file(text))
    assert (
        "1 label loaded, 2 rows have values other than 1, 0 or nothing (line 3: crack is ja; line 4: crack is 2)"
        in said
    )
    assert "2 rows have times" in said and "(line 5: 28.11.2026 13:50; line 6: 2026-02-30)" in said
    assert tab.counts() == "1 done, 0 unsure, 12 left"


def test_no_label_without_a_name_and_no_opinion_without_a_label(page, fresh):
    tab = Tab(fresh, page[0], who=None)
    tab.press("Escape", "c")
    assert tab.counts().startswith("0 done") and tab.tab.is_visible("#opening")
    tab.tab.fill("#own", "Jörg")
    tab.press("Enter")
    assert tab.tab.inner_text("#bars") == tab.tab.inner_text("#why") == ""
    tab.press("m")
    assert tab.tab.is_hidden("#map") and "after your own label" in tab.tab.inner_text("#message")
    tab.press("c")
    assert "crack" in tab.tab.inner_text("#bars") and tab.tab.is_hidden("#map")
    tab.tab.wait_for_function("document.getElementById('cell').naturalWidth > 0")
    tab.press("m")
    assert tab.tab.is_visible("#map") == bool(page[1]["cells"][0].get("maps"))
    tab.press("ArrowRight")
    assert tab.tab.inner_text("#bars") == ""
    tab.press("o")
    assert "crack" in tab.tab.inner_text("#bars")


def test_crack_lines_come_after_the_own_label_on_a_key(tmp_path, fresh):
    module_record(tmp_path / "out", 1)
    [module] = chunk_of(tmp_path / "out" / "review" / "modules-0.js")
    assert [bool(cell[6]) for cell in module["cells"]] == [True, False, False, False]
    tab = Tab(fresh, tmp_path / "out" / "review.html")
    tab.tab.click("#to-modules")
    tab.tab.wait_for_function("document.getElementById('cell').naturalWidth > 0")
    tab.press("s")
    assert tab.tab.is_hidden("#shape") and "after your own label" in tab.tab.inner_text("#message")
    tab.press("c")
    assert tab.tab.is_hidden("#shape") and tab.tab.is_visible("#show-shape")
    tab.press("s")
    box, image = tab.tab.locator("#shape").bounding_box(), tab.tab.locator("#stage").bounding_box()
    assert all(abs(box[side] - image[side]) < 1 for side in box)  # a square in a square
    tab.tab.screenshot(path=tmp_path / "shown.png")
    shown = Image.open(tmp_path / "shown.png").convert("RGB")
    places = [(image["x"] + part * image["width"], image["y"] + part * image["height"]) for part in (0.3, 0.6)]
    assert all(shown.getpixel((round(x), round(y)))[0] > 150 for x, y in places)  # red on gray of 60
    tab.press("ArrowRight", "c", "s")  # a cell without lines
    assert tab.tab.is_hidden("#shape") and "no lines of this cell" in tab.tab.inner_text("#message")
    tab.press("ArrowLeft")
    assert tab.tab.is_hidden("#shape") and not tab.errors


def test_a_page_made_anew_keeps_labels_and_the_newer_ones_win(tmp_path, fresh):
    names = module_record(tmp_path / "out", 1)
    first, second, *_ = [c["file"] for c in held(tmp_path / "out" / "review.html")["cells"]]
    tab = Tab(fresh, tmp_path / "out" / "review.html")
    tab.press("n", "n")
    assert first.startswith(f"cut/{names[0]}/")
    review_again(
        tmp_path / "out", NEXT + f"{first};1;0;;Anna;2999-01-01T00:00:00Z\n{second};1;1;;Anna;2001-01-01T00:00:00Z\n"
    )
    tab.tab.reload()
    saved = tab.save(tmp_path / "labels.csv")
    assert saved == {first: ("1", "0", "", "Anna"), second: ("0", "0", "", "Jörg")}


def test_the_end_screen_comes_by_itself_and_counts(tmp_path, fresh):
    module_record(tmp_path / "out", 1)
    tab = Tab(fresh, tmp_path / "out" / "review.html")
    tab.press("n", "u", "c", "ArrowRight", "c", "i")  # a cell may have several labels
    assert tab.tab.is_hidden("#end")
    tab.press("ArrowRight", "c")
    shown = tab.tab.inner_text("#end")
    assert "All cells are labelled" in shown and "1 neither, 1 unsure, 1 crack, 1 crack and inactive" in shown
    assert "Jörg (4)" in shown and "report.py" in shown and "key c does nothing here" in shown
    with tab.tab.expect_download():
        tab.press("Enter")
    tab.press("Escape", "u")
    assert tab.tab.is_hidden("#end") and tab.counts() == "2 done, 2 unsure, 0 left"


def test_the_end_screen_comes_where_the_last_open_cell_is_settled(tmp_path, fresh):
    module_record(tmp_path / "out", 1)
    tab = Tab(fresh, tmp_path / "out" / "review.html")
    tab.press("n", "ArrowRight", "n", "n", "Escape")
    assert tab.counts() == "3 done, 0 unsure, 1 left"
    tab.press("Home", "u")
    assert "All cells are labelled" in tab.tab.inner_text("#end")


def test_labels_of_the_record_are_taken_back(tmp_path, fresh):
    module_record(tmp_path / "out", 1)
    first, second, third, _ = [c["file"] for c in held(tmp_path / "out" / "review.html")["cells"]]
    given = f"{first};1;0;;Anna;2020-01-01T00:00:00Z\n{second};;;1;Anna;2020-01-01T00:00:00Z\n"
    shown = review_again(tmp_path / "out", NEXT + given)
    tab = Tab(fresh, tmp_path / "out" / "review.html")
    tab.press("c", "e")
    assert tab.counts() == "0 done, 1 unsure, 3 left" and "1 label taken back" in tab.tab.inner_text("#end")
    tab.press("Escape", "ArrowRight", "ArrowRight", "c", "c")  # its own, which nobody else has seen
    expected = {first: ("", "", "0", "Jörg"), second: ("", "", "1", "Anna")}
    assert len(shown["given"]) == 2 and tab.save(tmp_path / "out" / "labels.csv") == expected
    assert "1 cell and 1 label taken back" in tab.tab.inner_text("#message")
    tab.press("c")
    assert tab.save(tmp_path / "other.csv") == expected | {third: ("1", "0", "", "Jörg")}
    tab.press("z")  # the record may have it from that table
    assert tab.save(tmp_path / "other.csv") == expected | {third: ("", "", "0", "Jörg")}
    assert "1 label loaded, 2 labels taken back" in tab.load(tmp_path / "other.csv")
    tab.tab.reload()
    assert tab.save(tmp_path / "again.csv") == expected | {third: ("", "", "0", "Jörg")}
    with writing(tmp_path / "out", INFO) as record:
        take_labels(record, tmp_path / "again.csv")
        record.end()
        assert [labels.values for labels in record.people().values()] == [(None, None)]


def test_a_moved_results_folder_is_named_where_it_is(tmp_path, fresh):
    module_record(tmp_path / "out", 1)
    moved = tmp_path / "it's moved ü"
    (tmp_path / "out").rename(moved)
    tab = Tab(fresh, moved / "review.html")
    tab.press("e")
    steps = tab.tab.inner_text("#steps").replace("\n", " ")
    table = f"{moved}/labels.csv".replace("'", "'\"'\"'")
    assert f"into the folder {moved}" in steps and f"--labels '{table}'" in steps
    where = "['/C:/a%20b/review.html', '', '/C:/review.html', '', '/share/x/review.html', 'server', '/review.html', '']"
    folders = f"""{where}.map((path, k, all) => k % 2 ? null :
        folderOf({{ protocol: "file:", host: all[k + 1], pathname: path }})).filter(Boolean)"""
    assert tab.tab.evaluate(folders) == ["C:\\a b", "C:\\", "\\\\server\\share\\x", "/"]


def test_modules_are_named_by_their_serial_number(tmp_path, fresh):
    [name] = module_record(tmp_path / "out", 1)
    listed = review_again(tmp_path / "out", metadata={"serial": "SN-1", "string": 3, "row": ""})["modules"]
    assert listed[0][1:3] == ["SN-1 (m00.png)", "serial SN-1 · string 3 · m00.png"]
    tab = Tab(fresh, tmp_path / "out" / "review.html")
    shown = tab.tab.inner_text("#name")
    assert re.fullmatch(rf"SN-1 \(m00.png\), row \d, column \d\s+cut/{name}/r\d\d_c\d\d.png(\s+dark, 31 %.*)?", shown)
    tab.tab.click("#to-modules")
    tab.press("l")
    assert "serial SN-1 · string 3 · m00.png" in tab.tab.inner_text("#found")


def test_cells_are_labelled_on_their_modules_image(tmp_path, fresh):
    first, second = module_record(tmp_path / "out", 2)
    tab = Tab(fresh, tmp_path / "out" / "review.html")
    tab.tab.click("#to-modules")
    tab.tab.wait_for_selector("#sheet polygon.here")
    tab.press("ArrowDown", "c", "ArrowRight", "u")
    tab.tab.click("#sheet polygon >> nth=1")
    tab.press("i")
    outlines = tab.tab.eval_on_selector_all("#sheet polygon", "all => all.map(one => one.getAttribute('class'))")
    assert outlines == ["", "labelled", "labelled", "unsure", "here"]
    tab.press("o")
    assert tab.tab.get_attribute("#sheet polygon >> nth=0", "class") == "opinion"
    assert "dark" not in tab.tab.inner_text("#name")
    tab.tab.click("#sheet polygon >> nth=3")
    assert "dark, 31 % of the module's brightness" in tab.tab.inner_text("#name")
    tab.press("l")
    tab.tab.fill("#search", "M01")
    tab.tab.click("#found button")
    tab.tab.wait_for_function("document.getElementById('title').textContent.includes('2 / 2')")
    tab.press("n")
    assert tab.save(tmp_path / "labels.csv") == {
        f"cut/{first}/r01_c02.png": ("0", "1", "", "Jörg"),
        f"cut/{first}/r02_c01.png": ("1", "0", "", "Jörg"),
        f"cut/{first}/r02_c02.png": ("", "", "1", "Jörg"),
        f"cut/{second}/r01_c01.png": ("0", "0", "", "Jörg"),
    }
    with reading(tmp_path / "out") as record:
        assert {f"cut/{row['name']}" for row in record.modules()} == {f"cut/{first}", f"cut/{second}"}
    tab.press("z", "z")
    assert "1 / 2" in tab.tab.inner_text("#title") and not tab.errors


def test_light_follows_keys_and_wheel(page, fresh):
    tab = Tab(fresh, page[0])
    style = "document.getElementById('cell').style.filter"
    tab.press("+")
    assert tab.tab.evaluate(style) == "brightness(1.15) contrast(1)"
    tab.press("0")
    tab.tab.mouse.move(300, 300)
    tab.tab.mouse.wheel(0, -100)
    tab.tab.wait_for_function(f"{style}.startsWith('brightness(1.1')")


def test_five_thousand_cells_are_labelled_without_lag(tmp_path, fresh):
    save_image(tmp_path / "one.png")
    cells = [ReviewCell(str(tmp_path / "one.png"), NEAR, (0.5, 0.1)) for _ in range(5000)]
    target = tmp_path / "many.html"
    more = {"opinion": "The network's opinion", "steps": []}
    write_page(target, cells, ["crack", "inactive"], [0.5, 0.5], tmp_path, "key", more)
    text = target.read_text(encoding="utf-8")
    number = itertools.count()
    target.write_text(re.sub('"file":"one.png"', lambda _: f'"file":"{next(number)}.png"', text), encoding="utf-8")
    tab = Tab(fresh, target)
    spent = tab.tab.evaluate(
        """() => { const start = performance.now();
        for (let i = 0; i < 200; i++) document.dispatchEvent(new KeyboardEvent("keydown", { key: "n" }));
        return (performance.now() - start) / 200; }"""
    )
    assert tab.counts() == "200 done, 0 unsure, 4800 left" and spent < 50  # ms a key
