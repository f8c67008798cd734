"""Whole modules, composed of real cells: cut, judged and shown, and what is reported where that fails."""

import csv
import json
import shutil

import cv2
import numpy as np
import pytest
from conftest import CPU
from PIL import Image, ImageDraw

import cut_module
import predict
import report
from benchmarks.composed_modules import ElpvCells, compose
from elcells.colours import DARK_VERDICT, NO_DEFECT, VERDICT_COLOURS
from elcells.data.finding import find_images
from elcells.data.images import examine
from elcells.data.suspicions import LIKE_MODULE
from elcells.files import InputError, locked
from elcells.inference.cells import CellResult
from elcells.inference.severity import SIDE, shape_image
from elcells.modules.cutting import CutModule, cut_image, doubts, grid_size, read_corners
from elcells.modules.grid import Grid
from elcells.modules.judging import draw_results, text_of, verdict_of
from elcells.modules.lens import lens_of
from elcells.modules.overlay import legend
from elcells.modules.saving import module_names
from elcells.records.summary import MOST_LINES, lines_of

MODULES = ("26", "42")


@pytest.fixture(scope="module")
def cells(table, tmp_path_factory):
    """All cells of two of ELPV's modules, a mono and a poly one."""
    folder = tmp_path_factory.mktemp("modules")
    columns = ["filename", "crack", "inactive", "type", "module", "probability"]
    chosen = table[table["module"].isin(MODULES)]
    chosen[columns].to_csv(folder / "data.csv", sep=";", index=False)
    return ElpvCells(folder / "data.csv")


@pytest.fixture(scope="module")
def composed(cells):
    """compose, with small cells; a function of seed and level."""
    return lambda seed, level="medium", side=80: compose(cells, seed, level, side)


@pytest.fixture
def folder(composed, tmp_path):
    """A folder with one composed module, m1.png, and its Truth."""
    image, true = composed(4)
    (tmp_path / "in").mkdir()
    Image.fromarray(image).save(tmp_path / "in" / "m1.png")
    return tmp_path / "in", true


def rows_of(path):
    with open(path, newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file, delimiter=";"))


def judge(images, grid, model, out, *more):
    """Judge modules into a results folder; the exit code."""
    return predict.main([str(images), "--grid", grid, "--model", str(model), *CPU, "--out", str(out), *more])


def data_of_page(path):
    return json.loads(path.read_text(encoding="utf-8").split('id="data">')[1].split("</script>")[0])


def size_text(true):
    return "x".join(map(str, true.grid))


def worst(module, true):
    """The largest error of a cut module's corners, in units of a cell's side."""
    off = np.linalg.norm(module.grid.nodes() - true.nodes, axis=-1)
    return off.max() / module.grid.cell_side()


@pytest.mark.parametrize("level, seed", [("easy", 1), ("medium", 3), ("hard", 5), ("layouts", 0), ("layouts", 2)])
def test_a_composed_module_is_cut_at_its_true_corners(composed, tmp_path, level, seed):
    image, true = composed(seed, level)
    Image.fromarray(image).save(tmp_path / "m.png")
    module = cut_image(tmp_path / "m.png", *true.grid)
    assert module.error == "" and worst(module, true) < 0.05
    assert len(module.cells) == np.prod(true.grid)


@pytest.mark.parametrize("turn", [np.rot90, lambda a: a[::-1, ::-1], lambda a: np.repeat(a[..., None] * 1, 3, -1)])
def test_turned_and_coloured_images_give_the_same_cells(composed, tmp_path, turn):
    image, true = composed(1, "easy")
    plain, other = tmp_path / "plain.png", tmp_path / "other.png"
    Image.fromarray(image).save(plain)
    Image.fromarray(np.ascontiguousarray(turn(image))).save(other)
    grid = true.grid[::-1] if turn is np.rot90 else true.grid
    expected = cut_image(plain, *true.grid)
    turned = cut_image(other, *grid)
    back = turn(np.arange(np.prod(true.grid)).reshape(true.grid[::-1]))
    order = back[..., 0].ravel() if back.ndim == 3 else back.ravel()
    for k, source in enumerate(order):
        assert abs(turned.cells[k].mean() - expected.cells[source].mean()) < 3


def test_deep_images_are_cut_alike(composed, tmp_path):
    image, true = composed(1, "easy")
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(image.astype(np.uint16) * 257).save(tmp_path / "b.png")
    first, deep = (cut_image(tmp_path / name, *true.grid) for name in ("a.png", "b.png"))
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(first.cells, deep.cells)) <= 2


def test_half_cells_keep_their_shape(composed, tmp_path):
    image, true = composed(2, "layouts")
    Image.fromarray(image).save(tmp_path / "m.png")
    shape = cut_image(tmp_path / "m.png", *true.grid).cells[0].shape
    assert max(shape) // min(shape) == 2


def test_modules_in_verdicts_out(folder, exported, tmp_path):
    images, true = folder
    out = tmp_path / "out"
    assert judge(images, size_text(true), exported, out) == 0
    rows, (module,) = rows_of(out / "cells.csv"), rows_of(out / "modules.csv")
    assert len(rows) == 60 and {(r["row"], r["column"]) for r in rows} == {
        (str(r + 1), str(c + 1)) for r in range(true.grid[1]) for c in range(true.grid[0])
    }
    assert {r["module"] for r in rows} == {module["name"]} and module["sure"] == "1"
    assert {r["image"] for r in rows} == {module["filename"]} == {str(images / "m1.png")}
    for row in rows:
        with Image.open(out / row["filename"]) as cell:
            assert cell.mode == "L" and cell.width == cell.height <= 100
    assert sum(r["crack"] == "1" for r in rows) == int(module["crack"])
    with Image.open(out / "overlays" / f"{module['name']}.jpg") as shown:
        assert shown.mode == "RGB" and len(shown.getcolors(10**6)) > 256
    shown = data_of_page(out / "report.html")["modules"]
    assert shown["name"] == [module["name"]] and shown["counts"][0][0] == 60


def lines_over(size, shape, path):
    """Where an overlay is red, bool (H, W): a module of 2x2 cells, turned, only the first with a shape.

    size: (height, width) of the cut cells. Returns (red, the module's Grid).
    """
    corners = np.array([[130, 10], [390, 130], [280, 390], [10, 260]], float)
    grid = Grid(corners, 2, 2, (400, 400))
    cut = tuple(np.full(size, 90, np.uint8) for _ in range(4))
    module = CutModule("m.png", 2, 2, sure=True, grid=grid, image=Image.new("L", (400, 400), 90), cells=cut)
    results = [CellResult("", (1, 0), (0.98, 0.01), shape=shape)] + [CellResult("", (0, 0), (0.0, 0.0))] * 3
    draw_results(module, path, results, ("crack", "inactive"))
    with Image.open(path) as image:
        pixels = np.asarray(image).astype(int)[:400]
    return (pixels[..., 0] > 180) & (pixels[..., 1:].max(2) < 80), grid


@pytest.mark.parametrize("size", [(100, 100), (50, 100), (100, 50)])
def test_the_overlay_has_each_crack_line_in_its_place(tmp_path, size):
    skeleton = np.zeros((SIDE, SIDE), bool)
    skeleton[120, 100:140] = True
    skeleton[60, 20:280] = True  # of a cell that is not square this may be what the network saw mirrored
    skeleton[20:280, 240] = True
    red, grid = lines_over(size, shape_image(skeleton, np.zeros_like(skeleton)), tmp_path / "m.png")
    quad = grid.cells().reshape(-1, 4, 2)[0].astype(np.float32)
    unit_square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    across = np.array(size[::-1]) / max(size)  # of what the network saw
    middle_of_line = (np.array([120, 120]) / SIDE - 0.5) / across + 0.5
    matrix = cv2.getPerspectiveTransform(unit_square, quad)
    expected = cv2.perspectiveTransform(middle_of_line[None, None].astype(np.float32), matrix)[0, 0]
    places = np.argwhere(red)[:, ::-1]
    assert np.linalg.norm(places - expected, axis=1).min() < 2
    assert all(cv2.pointPolygonTest(quad, tuple(map(float, place)), True) > -2 for place in places)


def test_an_overlay_without_shapes_has_no_red(tmp_path):
    red, _ = lines_over((100, 100), None, tmp_path / "m.png")
    assert not red.any()


def test_black_cells_are_named_and_not_judged(cells, exported, tmp_path):
    seed = next(s for s in range(50) if 0 < compose(cells, s, "medium", 40)[1].dark.sum() < 6)
    image, true = compose(cells, seed, "medium", 80)
    Image.fromarray(image).save(tmp_path / "m.png")
    judge(tmp_path / "m.png", size_text(true), exported, tmp_path / "out")
    black = [r for r in rows_of(tmp_path / "out" / "cells.csv") if r["error"]]
    assert 0 < len(black) <= true.dark.sum()
    assert all(r["crack"] == r["p_crack"] == "" and "nearly black" in r["error"] for r in black)


def dimmed(image, corners, factor):
    """An image, uint8 (H, W), that is darker within corners (4, 2)."""
    mask = Image.new("L", image.shape[::-1])
    ImageDraw.Draw(mask).polygon([tuple(corner) for corner in corners], fill=1)
    return np.where(np.asarray(mask), np.rint(image * factor), image).astype(np.uint8)


def corners_of(true, row, column):
    """Corners of a cell of a Truth, (4, 2), clockwise from the upper left."""
    nodes = true.nodes
    return np.array([nodes[row, column], nodes[row, column + 1], nodes[row + 1, column + 1], nodes[row + 1, column]])


def test_dark_cells_are_named_everywhere_and_stay_when_folders_are_merged(composed, exported, tmp_path, capsys):
    image, true = composed(4, "easy")
    lit = [divmod(place, true.grid[0]) for place in np.flatnonzero(~true.dark).tolist()]
    whole, half = lit[20], lit[40]
    image = dimmed(image, corners_of(true, *whole), 0.35)
    a, b, c, d = corners_of(true, *half)
    image = dimmed(image, [a, (a + b) / 2, (c + d) / 2, d], 0.1)
    Image.fromarray(image).save(tmp_path / "m.png")
    assert judge(tmp_path / "m.png", size_text(true), exported, tmp_path / "out") == 0
    assert "2 cells are dark or partly dark" in capsys.readouterr().err
    report.main([str(tmp_path / "out"), "--out", str(tmp_path / "all")])
    for out in (tmp_path / "out", tmp_path / "all"):
        dark = {(int(r["row"]) - 1, int(r["column"]) - 1): r for r in rows_of(out / "cells.csv") if r["dark_ratio"]}
        assert dark.keys() == {whole, half} and rows_of(out / "modules.csv")[0]["dark"] == "2"
        parts = [(float(dark[place]["dark_part"]), float(dark[place]["dark_ratio"])) for place in (whole, half)]
        assert parts[0][0] == 1 and 0.25 < parts[0][1] < 0.5
        assert 0.45 < parts[1][0] < 0.55 and parts[1][1] < 0.2
        page = data_of_page(out / "report.html")
        assert page["dark"] == 2 and page["modules"]["counts"][0][3] == 2


def test_a_dark_cell_without_a_call_has_its_own_verdict_and_colour():
    cells = [CellResult("", (0, 0), (0.1, 0.1)), CellResult("", (0, 0), (0.1, 0.1), dark_part=1.0, dark_ratio=0.31)]
    cells.append(CellResult("", (1, 0), (0.9, 0.1), dark_part=0.5, dark_ratio=0.1))
    verdicts = [verdict_of(cell, ("crack", "inactive")) for cell in cells]
    assert [text_of(cell) for cell in cells] == ["", "dark 0.31", "0.90\ndark 0.10"]
    assert verdicts == [NO_DEFECT, DARK_VERDICT, "crack"]
    assert (VERDICT_COLOURS[DARK_VERDICT], "dark: 1") in legend(verdicts, True, True)


def test_few_pixels_a_cell_are_warned_about(folder, exported, tmp_path, capsys):
    images, true = folder
    judge(images, size_text(true), exported, tmp_path / "out")
    assert "fine cracks will be missed" in capsys.readouterr().err


@pytest.fixture
def three(composed, tmp_path):
    """A folder of three modules of 6x10 cells, two of one name; returns it."""
    for seed, name in ((1, "m1.png"), (2, "a/m1.png"), (4, "m2.png")):
        image, true = composed(seed, "easy", 50)
        if true.grid != (6, 10):
            image = np.rot90(image)
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(image)).save(tmp_path / "in" / name)
    return tmp_path / "in"


def test_cut_module_cuts_into_a_folder_for_each_module(three, tmp_path, capsys):
    options = [str(three), "--grid", "6x10", "--out", str(tmp_path / "out")]
    assert cut_module.main(options) == 0
    assert len(list((tmp_path / "out" / "a" / "m1").glob("r??_c??.png"))) == 60
    modules = rows_of(tmp_path / "out_modules" / "modules.csv")
    assert [r["name"] for r in modules] == ["m1", "m2", "a/m1"] and {r["nearly_black"] for r in modules} == {"0"}
    assert [r["filename"] for r in modules] == [str((three / f"{r['name']}.png").resolve()) for r in modules]
    assert (tmp_path / "out_modules" / "a" / "m1.jpg").exists()
    assert cut_module.main(options) == 2 and "already exists" in capsys.readouterr().err
    with pytest.raises(InputError, match="no input"):
        find_images([str(tmp_path / "out_modules" / "a" / "m1.jpg")])


def test_the_image_of_a_module_never_replaces_an_input(three, tmp_path, capsys):
    (tmp_path / "in").rename(tmp_path / "plant_modules")
    photo = tmp_path / "plant_modules" / "m1.jpg"
    Image.open(tmp_path / "plant_modules" / "m1.png").save(photo)
    before = photo.read_bytes()
    assert cut_module.main([str(photo), "--grid", "6x10", "--out", str(tmp_path / "plant")]) == 2
    assert "m1.jpg: is an input, and the image of a module would replace it" in capsys.readouterr().err
    assert photo.read_bytes() == before and not (tmp_path / "plant").exists()


def test_cutting_leaves_files_alone_that_are_no_cells(three, tmp_path, capsys):
    out = tmp_path / "in"
    (out / "m1").mkdir()
    (out / "m1" / "notes.txt").touch()
    options = ["--grid", "3x17", "--out", str(out)]
    assert cut_module.main([str(three / "m1.png"), *options]) == 3 and "no module of 3x17" in capsys.readouterr().err
    assert [path.name for path in (out / "m1").iterdir()] == ["notes.txt"]
    shutil.copy(three / "m1.png", out / "m1" / "r01_c01.png")
    given = [str(three / "m1.png"), str(out / "m1" / "r01_c01.png")]
    assert cut_module.main([*given, "--grid", "6x10", "--out", str(out)]) == 2
    assert "m1: holds inputs, and gets cells of a module" in capsys.readouterr().err


def test_cutting_that_was_stopped_begins_anew_and_mixes_nothing(three, tmp_path, monkeypatch, capsys):
    out = ["--out", str(tmp_path / "out")]
    (tmp_path / "out" / "m1").mkdir(parents=True)
    for name in ("r11_c07.png", ".tmp7_r01_c01.png"):
        (tmp_path / "out" / "m1" / name).touch()
    taken = cut_module.row_of

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cut_module, "row_of", stop)
    assert cut_module.main([str(three / "m1.png"), "--grid", "6x9", *out]) == 130
    monkeypatch.setattr(cut_module, "row_of", taken)
    assert cut_module.main([str(three / "m1.png"), "--grid", "6x10", *out]) == 0
    assert len(rows_of(tmp_path / "out_modules" / "modules.csv")) == 1
    assert len(list((tmp_path / "out" / "m1").iterdir())) == 60
    with locked(tmp_path / "out_modules" / ".modules.lock", ""):
        assert cut_module.main([str(three), "--grid", "6x10", *out]) == 2
    assert "another run is writing there" in capsys.readouterr().err


NO_MODULES = {
    "noise": np.random.default_rng(0).integers(0, 256, (300, 450)),
    "black": np.zeros((300, 450)),
    "ramp": np.tile(np.linspace(0, 255, 450), (300, 1)),
    "checks": 255 * (np.indices((300, 450)).sum(0) // 23 % 2),
}


@pytest.mark.parametrize("what", [*NO_MODULES, "cell", "broken"])
def test_an_image_of_no_module_gives_no_verdicts(what, elpv, exported, tmp_path, capsys):
    path = tmp_path / "in.png"
    if what == "broken":
        path.write_bytes(b"no image")
    else:
        first = sorted((elpv.parent / "images").glob("*.png"))[0]
        pixels = np.asarray(Image.open(first)) if what == "cell" else NO_MODULES[what].astype(np.uint8)
        Image.fromarray(pixels).save(path)
    out = tmp_path / "out"
    assert judge(path, "10x6", exported, out) == 3
    assert rows_of(out / "cells.csv") == [] and str(path) in capsys.readouterr().err
    [module] = rows_of(out / "modules.csv")
    assert module["error"] and module["score"] == "" and data_of_page(out / "report.html")["failed"]


@pytest.mark.parametrize("change", [(-1, 0), (0, 1), (2, 0)])
def test_a_wrong_grid_is_not_sure(folder, change, exported, tmp_path, capsys):
    images, true = folder
    wrong = f"{true.grid[0] + change[0]}x{true.grid[1] + change[1]}"
    assert judge(images, wrong, exported, tmp_path / "out") == 3
    assert {r["sure"] for r in rows_of(tmp_path / "out" / "modules.csv")} <= {"0", ""}


def test_a_dead_border_string_is_flagged(composed, tmp_path):
    for seed in range(2):
        image, true = composed(seed, "string", 40)
        Image.fromarray(image).save(tmp_path / "m.png")
        assert not cut_image(tmp_path / "m.png", *true.grid).sure


@pytest.mark.parametrize("line", [np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]])
def test_a_dim_border_line_is_flagged(line):
    light = np.full((10, 6), 120)
    light[line] = 60
    grid = Grid([[9, 9], [609, 9], [609, 1009], [9, 1009]], 6, 10, (1020, 620))
    for brightness, why in ((light, ["a border line of cells is dark"]), (np.full((10, 6), 60), [])):
        cells = [np.full((100, 100), value, np.uint8) for value in brightness.ravel()]
        assert doubts(grid, (1020, 620), 0.9, 0.2, cells) == why


def test_rough_corners_find_a_module_that_the_image_alone_does_not_show(composed, tmp_path):
    image, true = composed(5, "string")
    Image.fromarray(image).save(tmp_path / "m.png")
    nodes = true.nodes
    rough = nodes[[0, 0, -1, -1], [0, -1, -1, 0]] + np.random.default_rng(0).uniform(-6, 6, (4, 2))
    header = "filename;x1;y1;x2;y2;x3;y3;x4;y4\n"
    row = "m.png;" + ";".join(f"{v:.1f}" for v in rough.ravel()) + "\n"
    (tmp_path / "k.csv").write_text(header + row, encoding="utf-8")
    [(_, name, corners)] = read_corners(tmp_path / "k.csv")
    module = cut_image(tmp_path / name, *true.grid, corners)
    assert worst(module, true) < 0.25
    options = [str(tmp_path / "m.png"), "--grid", size_text(true), "--out", str(tmp_path / "o")]
    assert cut_module.main([*options, "--corners", str(tmp_path / "k.csv")]) in (0, 3)


@pytest.mark.parametrize("text", ["m;1;2", "m;1;2;3;4;5;6;7;x"])
def test_bad_corners_get_one_sentence(tmp_path, text):
    (tmp_path / "k.csv").write_text("filename;x1;y1;x2;y2;x3;y3;x4;y4\n" + text + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 2: x1 … y4 must be eight numbers"):
        read_corners(tmp_path / "k.csv")


@pytest.mark.parametrize("text", ["", "10", "10x", "0x6", "1x1", "axb", "10x6x2", "99x99", "-3x4"])
def test_a_grid_is_columns_x_rows(text, tmp_path, capsys):
    with pytest.raises(ValueError, match="COLUMNSxROWS"):
        grid_size(text)
    assert cut_module.main(["x", f"--grid={text}", "--out", str(tmp_path)]) == 2
    assert "COLUMNSxROWS" in capsys.readouterr().err


def test_grid_needs_an_output_file(exported, capsys):
    assert predict.main(["x", "--grid", "10x6", "--model", str(exported), *CPU]) == 2
    assert "--grid: needs --out" in capsys.readouterr().err


def test_a_module_without_grid_is_reported_and_its_grid_guessed(folder, exported, tmp_path, capsys):
    images, true = folder
    assert predict.main([str(images), "--model", str(exported), *CPU]) == 0
    err = capsys.readouterr().err
    assert "1 image looks like whole modules" in err and f"--grid {size_text(true)}" in err


def test_cells_do_not_look_like_modules(elpv, tmp_path):
    for path in sorted((elpv.parent / "images").glob("*.png"))[:24]:
        cell = Image.open(path)
        for other in (cell.resize((900, 900)), cell.crop((0, 0, 300, 150))):
            other.save(tmp_path / "x.png")
            assert LIKE_MODULE not in examine(tmp_path / "x.png")[1]


def test_module_names_are_unique():
    names = module_names(
        ["a/m1.png", "a/m1.tif", "b/m1.png", "b/M1.2.png", "b/M1.3.png", "b/p.tif#page=1", "b/p.tif#page=2"]
    )
    assert len(set(names)) == 7
    assert names[2:] == ["b/m1", "b/M1.2", "b/M1.3", "b/p_page1", "b/p_page2"]


def test_many_doubtful_modules_are_summarised_in_a_few_lines():
    modules = [{"path": "m.png", "sure": 0, "why": "dark", "cell_pixels": 200}] * 50
    lines = lines_of([], modules, "modules.csv")
    assert len(lines) == MOST_LINES + 1 and f"{50 - MOST_LINES} more; modules.csv has them all" in lines[-1]
    assert len(lines_of([], modules[:MOST_LINES], "modules.csv")) == MOST_LINES


def test_the_lens_of_one_camera_is_a_median(cells, tmp_path):
    paths = []
    for seed in range(5):
        image, true = compose(cells, 2 * seed, "medium", 40, -0.03)
        image = image if true.grid == (6, 10) else np.rot90(image)
        paths.append(tmp_path / f"{seed}.png")
        Image.fromarray(np.ascontiguousarray(image)).save(paths[-1])
    lens = lens_of(paths, 6, 10, map)
    assert lens is None or abs(lens + 0.03) < 0.01
    assert lens_of(paths[:4], 6, 10, map) is None


@pytest.mark.parametrize("values", ["1;2;3;4;5;6;7;8", "82;211;82;211;618;407;59;442", "82;211;555;113;nan;407;59;442"])
def test_corners_that_make_no_quadrilateral_are_refused(tmp_path, values):
    (tmp_path / "c.csv").write_text(f"filename;x1;y1;x2;y2;x3;y3;x4;y4\nm.png;{values}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"c.csv, line 2: .* no quadrilateral"):
        read_corners(tmp_path / "c.csv")
