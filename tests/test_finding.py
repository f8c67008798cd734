"""Where images are found, what is left out, and that what is left out is said."""

import codecs
import io
import ntpath
import os
import socket
import sys

import numpy as np
import pytest
from conftest import ROOT, linux, posix
from PIL import Image

import cut_module
import data
import predict
from elcells.data.cache import load_images
from elcells.data.finding import find_images
from elcells.files import InputError, atomic_path, file_error, folder_of_all, relative
from elcells.modules.saving import module_names
from elcells.pages.review import ReviewCell, write_page


@pytest.fixture
def cell(elpv):
    """The bytes of an image."""
    return sorted((elpv.parent / "images").glob("*.png"))[0].read_bytes()


@pytest.fixture
def folder(tmp_path, cell, monkeypatch):
    """A folder, the current one, with images a.png and sub/b.png."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.png").write_bytes(cell)
    (tmp_path / "sub" / "b.png").write_bytes(cell)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*inputs):
    return [path.replace(os.sep, "/") for path in find_images(inputs).paths]


def listed(monkeypatch, raw):
    """What a list on stdin, given as bytes, leads to."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    return names("-")


def locked(monkeypatch, *folders):
    """Let these folders be unreadable, for root too."""
    for name in ("scandir", "listdir"):
        read = getattr(os, name)

        def refuse(path=".", read=read):
            if os.path.basename(os.fspath(path)) in folders:
                raise PermissionError(13, "Permission denied", os.fspath(path))
            return read(path)

        monkeypatch.setattr(os, name, refuse)


# ---------------------------------------------------------------- folders


def test_files_of_types_that_are_not_read_are_counted(folder):
    for name in ("b.npy", "c.DCM", "sub/d.jp2", "e.heic", "f.raw", "notes.txt", "data.csv", "r.sqlite", "n.onnx"):
        (folder / name).write_bytes(b"\0" * 64)
    found = find_images([".", "sub"])
    assert len(found.paths) == 2
    assert found.lines() == ["5 files of types that are not read: 1 .dcm, 1 .heic, 1 .jp2, 1 .npy, 1 .raw."]


def test_one_file_of_another_type_is_singular(folder):
    (folder / "IM0001").write_bytes(b"\0" * 64)
    assert find_images(["."]).lines() == ["1 file of a type that is not read: 1 without a suffix."]


def test_folders_that_cant_be_read_are_said_and_make_the_exit_code_3(folder, exported, monkeypatch, capsys):
    for name in ("x", "y"):
        (folder / "sub" / name).mkdir()
    locked(monkeypatch, "x", "y")
    found = find_images([".", "sub", "sub/x/*.png"])
    assert len(found.paths) == 2
    [line] = found.lines()
    assert line.startswith("2 folders can't be read, such as ") and line.endswith("x (Permission denied).")
    assert predict.main([".", "--model", str(exported), "--out", "out", "--device", "cpu"]) == 3
    assert "2 folders can't be read" in capsys.readouterr().err


def test_a_folder_that_cant_be_read_is_no_empty_one(folder, exported, monkeypatch, capsys):
    locked(monkeypatch, "sub")
    assert predict.main(["sub", "--model", str(exported), "--device", "cpu"]) == 2
    err = capsys.readouterr().err
    assert "1 folder can't be read: sub (Permission denied)" in err and "sub: no images there" in err


@pytest.mark.parametrize(
    "name", ["@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", "@Recycle", "lost+found", "System Volume Information"]
)
def test_folders_of_file_servers_and_systems_hold_no_images(folder, cell, name):
    for place in (folder / name, folder / "sub" / name / "b.png", folder / ".Trash-0"):
        place.mkdir(parents=True)
        (place / "SYNOFILE_THUMB_M.jpg").write_bytes(cell)
    (folder / "._a.png").write_bytes(b"of a Mac")
    (folder / "Thumbs.db").write_bytes(b"of Windows")
    for given in (".", "**/*", "**/*.*"):
        found = find_images([given])
        assert sorted(map(os.path.basename, found.paths)) == ["a.png", "b.png"] and not found.lines()


def test_a_folder_called_like_an_image_is_a_folder(folder, cell):
    (folder / "x.png").mkdir()
    (folder / "x.png" / "in.png").write_bytes(cell)
    for given in (["."], ["*.png", "sub"], ["x.png", "a.png", "sub/"]):
        assert sorted(map(os.path.basename, find_images(given).paths)) == ["a.png", "b.png", "in.png"]


@posix
def test_pipes_and_sockets_do_not_hang(folder):
    os.mkfifo("x.png")
    os.mkfifo("y.tif")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("z.png")
        os.symlink("x.png", "link.png")
        found = find_images([".", "*.png"])
        assert [os.path.basename(path) for path in found.paths] == ["a.png", "b.png"]
        assert found.lines() == ["4 files of types that are not read: 4 pipe, socket or device."]
        for name in ("x.png", "z.png", "link.png", "y.tif", "y.tif#page=2", "/dev/null"):
            with pytest.raises(InputError, match=f"{name}: is a pipe, socket or device"):
                find_images([name])


@posix
def test_a_link_that_leads_nowhere_is_no_silence(folder):
    os.symlink("gone.png", "link.png")
    assert names(".") == ["./a.png", "./link.png", "./sub/b.png"]
    with pytest.raises(InputError, match=r"link.png: no such file"):
        find_images(["link.png"])


def test_a_file_of_another_type_given_by_name_gets_its_error(folder, exported, capsys):
    (folder / "x.npy").write_bytes(b"\0" * 64)
    assert predict.main(["a.png", "x.npy", "--model", str(exported), "--device", "cpu"]) == 3
    assert "x.npy: can't be read" in capsys.readouterr().out


# ---------------------------------------------------------------- globs


def test_a_folder_whose_name_is_a_pattern_is_that_folder(folder, cell):
    for name in ("line[1]", "line1", "deep/line[1]"):
        (folder / name).mkdir(parents=True)
        (folder / name / "c.png").write_bytes(cell)
    assert names("line[1]/*.png") == ["line[1]/c.png"]
    assert names(str(folder / "line[1]" / "*.png")) == [(folder / "line[1]" / "c.png").as_posix()]
    assert names("line[1]") == ["line[1]/c.png"]
    assert names("line[1-9]/c.png", "line?/*") == ["line1/c.png"]
    assert names("*/line[1]/?.png") == ["deep/line[1]/c.png"]
    assert names("**/line[1]/*.png") == ["line[1]/c.png", "deep/line[1]/c.png"]


def test_two_stars_are_all_folders_below(folder, cell):
    (folder / "sub" / "deep").mkdir()
    (folder / "sub" / "deep" / "c.png").write_bytes(cell)
    assert names("**/*.png") == ["a.png", "sub/b.png", "sub/deep/c.png"]
    assert names("sub/**/c.png") == ["sub/deep/c.png"]
    assert sorted(names("sub/**")) == sorted(names("sub")) == ["sub/b.png", "sub/deep/c.png"]


def test_a_glob_without_images_is_no_silence(folder):
    for given in ("sub/*.tif", "nowhere/*.png", "a.png/*"):
        with pytest.raises(InputError, match="no such file or folder, and no image matches it"):
            find_images([given])


# ---------------------------------------------------------------- outputs


@pytest.fixture
def outputs(folder, cell):
    """Beside a.png and sub/b.png: the files of a record and of cut_module.py, and one that is being written."""
    names = [
        "out/cut/m1_0123abcd/r01_c01.png",
        "out/overlays/m1_0123abcd.jpg",
        "cells/x/m1/r01_c01.png",
        "cells_modules/x/m1.jpg",
        ".tmp71_a.png",
    ]
    for name in (*names, "out/results.sqlite"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(cell)
    return [name for name in names if not name.startswith("cells/")]


def test_outputs_are_no_inputs(outputs, monkeypatch):
    ours = ["a.png", "cells/x/m1/r01_c01.png", "sub/b.png"]
    for given in (".", "**/*.[jp][pn]g", "*"):
        found = find_images([given])
        assert sorted(os.path.normpath(path).replace(os.sep, "/") for path in found.paths) == ours
        assert "3 outputs of earlier runs are left out, such as " in found.lines()[0]
    assert listed(monkeypatch, "\n".join([*ours, *outputs]).encode()) == ours
    for name in (*outputs, "out/cut/m1_0123abcd", "./out/cut/../cut/m1_0123abcd"):
        with pytest.raises(InputError, match="was written by an earlier run and is no input"):
            find_images([name])
    assert names("out", "out/cut", "out/overlays", "cells_modules", "out/*/*") == []


@posix
def test_links_to_outputs_are_no_inputs(outputs):
    os.symlink("out/overlays", "sub/link")
    os.symlink("../out/overlays/m1_0123abcd.jpg", "sub/link.jpg")
    assert names("sub", "sub/*") == ["sub/b.png"]


def test_folders_of_the_user_are_inputs_whatever_they_are_called(folder, cell):
    mine = ["cut/line_1/c.png", "overlays/d.png", "x/cut/m1_0123abcd/r01_c01.png", "field_modules/e.png"]
    for name in (*mine, "results.sqlite", "field/e.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(cell)
    assert sorted(names(".")) == sorted(f"./{name}" for name in (*mine, "a.png", "sub/b.png"))


# ---------------------------------------------------------------- lists


TWO = ["a.png", "sub/b.png"]


@pytest.mark.parametrize(
    "raw",
    [
        b"a.png\nsub/b.png",
        codecs.BOM_UTF8 + b"a.png\r\nsub/b.png\r\n",
        "a.png\r\nsub/b.png\r\n".encode("utf-16"),
        codecs.BOM_UTF16_BE + "a.png\nsub/b.png\n".encode("utf-16-be"),
        "a.png\nsub/b.png\n".encode("utf-16-le"),
        b"\n \"a.png\"\n\n'sub/b.png' \n\n",
        b"a.png\0sub/b.png\0",
        b".\0./a.png\0./sub\0./sub/b.png\0",
        b"*.png\nsub\n",
        b"a.png\n./a.png\nsu?/*\n",
    ],
)
def test_a_list_is_read_as_it_comes(folder, monkeypatch, raw):
    assert [name.removeprefix("./") for name in listed(monkeypatch, raw)] == TWO


@linux
def test_names_of_a_list_are_taken_as_they_are(folder, cell, monkeypatch):
    odd = [b"zelle_\xfc.png", b'"quoted".png', b" spaces .png", "line\u2028end.png".encode()]
    for name in odd:
        with open(os.fsencode(folder) + b"/" + name, "wb") as file:
            file.write(cell)
    assert [os.fsencode(name) for name in listed(monkeypatch, b"\n".join(odd))] == odd


@posix
def test_names_that_end_with_null_bytes_can_contain_newlines(folder, cell, monkeypatch):
    (folder / "new\nline.png").write_bytes(cell)
    assert listed(monkeypatch, b"./new\nline.png\0a.png\0") == ["./new\nline.png", "a.png"]


def test_an_empty_name_is_not_the_current_folder(folder):
    with pytest.raises(InputError, match="empty name"):
        find_images([""])


def test_a_line_that_leads_nowhere_is_told_before_anything_starts(folder, exported, monkeypatch, capsys):
    for raw in (b"a.png\n\nnowhere.png\nsub\nno/*.png\n", b"a.png\n\n-\nalso\n"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        assert predict.main(["-", "--model", str(exported), "--out", "out", "--device", "cpu"]) == 2
        err = capsys.readouterr().err
        assert "list on stdin, line 3: " in err and "1 more line" in err and not (folder / "out").exists()


# ---------------------------------------------------------------- one image by two paths


@posix
def test_an_image_by_two_paths_counts_once_under_its_first_name(folder, tmp_path):
    os.symlink("a.png", "link.png")
    os.symlink("sub", "other")
    os.link("a.png", "twin.png")
    given = ["./a.png", "a.png", str(tmp_path / "a.png"), "sub/../a.png", "link.png", "twin.png", ".", "**/*.png"]
    found = find_images(given)
    assert found.paths == ["./a.png", "./sub/b.png"] or found.paths == ["./a.png", "./other/b.png"]
    assert "paths are other names (links) of images that are there already" in found.lines()[0]
    assert find_images(["a.png", ".", "*.png", "./a.png"]).lines() == find_images(["."]).lines()


def test_pages_given_by_name_and_file_count_once(folder, cell):
    pages = [Image.open(io.BytesIO(cell)), Image.open(io.BytesIO(cell))]
    pages[0].save("two.tif", save_all=True, append_images=pages[1:])
    assert names("two.tif#page=2", "two.tif", "./two.tif") == ["two.tif#page=2", "two.tif#page=1"]
    pages[0].save("one.tif")
    assert names("one.tif#page=1", "one.tif") == ["one.tif"]


def test_another_case_of_a_name_is_the_same_file_where_the_file_system_takes_it(folder, monkeypatch):
    """As on Macs and Windows: every case of a name opens the file, and its real path keeps the case that was given."""
    stat, exists = os.stat, os.path.exists

    def lower(path):
        return os.path.join(os.path.dirname(path), os.path.basename(path).lower()) if isinstance(path, str) else path

    monkeypatch.setattr(os, "stat", lambda path, **options: stat(lower(os.fspath(path)), **options))
    monkeypatch.setattr(os.path, "exists", lambda path: exists(lower(os.fspath(path))))
    assert names("A.png", "a.png", "a.PNG") == ["A.png"]


# ---------------------------------------------------------------- two drives


@pytest.fixture
def drives(monkeypatch):
    """As on Windows: nothing is common to, or relative to, the folders drive_c and drive_d."""
    commonpath, relpath = os.path.commonpath, os.path.relpath

    def drive(path):
        return next((part for part in os.path.abspath(path).split(os.sep) if part.startswith("drive_")), "")

    def common(paths):
        if len(set(map(drive, paths))) > 1:
            raise ValueError("Paths don't have the same drive")
        return commonpath(paths)

    def to(path, start=os.curdir):
        if drive(path) != drive(start):
            raise ValueError("path is on mount 'C:', start on mount 'D:'")
        return relpath(path, start)

    monkeypatch.setattr(os.path, "commonpath", common)
    monkeypatch.setattr(os.path, "relpath", to)


def on_drives(folder, cell):
    paths = []
    for drive in ("drive_c", "drive_d"):
        (folder / drive / "m").mkdir(parents=True)
        paths.append(folder / drive / "m" / "a.png")
        paths[-1].write_bytes(cell)
    return paths


def test_images_on_two_drives_are_named_read_and_shown(folder, cell, drives):
    paths = on_drives(folder, cell)
    assert len(set(module_names(paths))) == 2 and all(not os.path.isabs(name) for name in module_names(paths))
    (folder / "data.csv").write_text(
        "filename;crack;inactive\n" + "".join(f"{p};0;1\n" for p in paths), encoding="utf-8"
    )
    images, index = load_images(data.read_table(folder / "data.csv"), 64)
    assert np.array_equal(images[index[:1]], images[index[1:]]) and len(set(index)) == 2
    assert (paths[0].parent / ".cache_64.json").exists() and (paths[1].parent / ".cache_64.json").exists()
    cells = [ReviewCell(str(path), "") for path in paths]
    assert write_page(folder / "drive_c" / "page.html", cells, ["crack"], [0.5], folder / "drive_c", "key", {}) == 2


def test_paths_of_windows(monkeypatch):
    monkeypatch.setattr("elcells.files.os.path", ntpath)
    assert folder_of_all(["C:\\a\\x.png", "D:\\a\\x.png"]) is None and folder_of_all([]) is None
    assert folder_of_all(["C:\\a\\x.png", "c:\\a\\b\\x.png"]) == "C:\\a"
    assert relative("D:\\a\\x.png", "C:\\a").startswith("D:")
    assert module_names(["C:\\a\\x.png", "D:\\a\\x.png", "\\\\nas\\a\\x.png"]) == ["C/a/x", "D/a/x", "nas/a/x"]


# ---------------------------------------------------------------- what can't be written


@pytest.mark.parametrize("target", ["file", "file/x", "file/sub/x", "taken"])
def test_a_target_that_cant_be_written_is_named(folder, exported, capsys, target):
    (folder / "file").write_text("", encoding="utf-8")
    (folder / "taken" / "report.html").mkdir(parents=True)
    assert predict.main(["a.png", "--model", str(exported), "--device", "cpu", "--out", target]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "can't be written" in line and target.split("/")[0] in line and "None" not in line


@linux
def test_a_file_that_proc_does_not_take_is_named(folder, exported, capsys):
    assert predict.main(["a.png", "--model", str(exported), "--device", "cpu", "--out", "/proc/x"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("predict.py: /proc/x") and "can't be written (No such file or directory)" in line


@posix
def test_what_is_no_file_is_not_replaced_by_one(folder):
    os.mkfifo("pipe")  # /dev/null would be lost to the whole machine
    with pytest.raises(InputError, match="pipe: can't be written, it is no file"), atomic_path("pipe"):
        pass
    assert not os.path.isfile("pipe") and os.path.exists("pipe")


def test_an_error_of_the_system_is_a_sentence():
    full = OSError(28, "No space left on device")
    assert file_error(full) == "nothing can be written (No space left on device)"
    assert file_error(OSError(30, "Read-only file system", "x/y")) == "x/y: can't be written (Read-only file system)"
    assert file_error(OSError(30, "Read-only file system", "x", None, None)).endswith("written (Read-only file system)")
    assert file_error(OSError("truncated")) == "truncated"


# ---------------------------------------------------------------- modules


def test_cutting_says_what_it_leaves_out(folder, monkeypatch, capsys):
    for name in names("."):
        Image.new("L", (32, 32)).save(name)
    (folder / "b.npy").write_bytes(b"\0" * 64)
    (folder / "sub" / "x").mkdir()
    locked(monkeypatch, "x")
    assert cut_module.main([".", "--grid", "10x6", "--out", "cells"]) == 3
    err = capsys.readouterr().err
    assert "1 file of a type that is not read: 1 .npy" in err and "1 folder can't be read: " in err
    assert cut_module.main([".", "--grid", "ten", "--out", "cells"]) == 2
    assert "grid 'ten': expected" in capsys.readouterr().err


def test_a_module_of_too_many_pixels_need_not_be_cut_into_cells(folder, monkeypatch, capsys):
    monkeypatch.setattr("elcells.data.images.MAX_PIXELS", 80_000)
    assert cut_module.main(["a.png", "--grid", "10x6", "--out", "cells"]) == 3
    err = capsys.readouterr().err
    assert "a.png: 300x300 pixels, more than" in err and "into cells" not in err


def test_one_of_anything_is_singular(folder, exported, capsys):
    assert predict.main(["a.png", "--model", str(exported), "--out", "out", "--device", "cpu"]) == 0
    assert "\n1 image: " in capsys.readouterr().err
    Image.new("L", (32, 32)).save("a.png")
    assert cut_module.main(["a.png", "--grid", "10x6", "--out", "cells"]) == 3
    assert "0 of 1 module cut" in capsys.readouterr().out


def test_the_projects_own_folder_has_nothing_to_tell_of_but_its_license():
    assert find_images([str(ROOT / "doc"), str(ROOT / "elcells")]).lines() == []
