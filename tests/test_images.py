"""Camera files are read correctly, and assumptions about them are reported; on a real ELPV cell."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import imagecodecs
import numpy as np
import pytest
import tifffile
from matplotlib import colormaps
from PIL import Image

import data
import predict
from elcells.data.cache import load_images
from elcells.data.finding import find_images
from elcells.data.images import FEW_PIXELS, as_lines, examine, open_image, read_image
from elcells.data.suspicions import is_saturated
from elcells.data.tiff import pages_of
from elcells.files import InputError


@pytest.fixture(scope="module")
def gray(elpv):
    """An ELPV cell as uint8 (300, 300)."""
    return np.asarray(Image.open(data.read_table(elpv)["path"][0]))


def close(pixels, gray, levels=1):
    return np.abs(pixels.astype(int) - gray).max() <= levels


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("bits", [10, 12, 14])
def test_the_bits_that_a_camera_uses_are_detected(gray, tmp_path, bits, suffix):
    Image.fromarray(gray.astype(np.uint16) << bits - 8).save(tmp_path / f"a.{suffix}")
    pixels, notes, _ = examine(tmp_path / f"a.{suffix}", 300)
    assert close(pixels, gray) and notes == [f"use {bits} of 16 bits"]


def test_full_16_bits_need_no_assumption(gray, tmp_path):
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "a.png")
    pixels, notes, _ = examine(tmp_path / "a.png", 300)
    assert close(pixels, gray) and not notes


def test_the_depth_that_a_tiff_gives_is_used(gray, tmp_path):
    dim = gray.astype(np.uint16) << 2  # 10 bits would hold it
    tifffile.imwrite(tmp_path / "a.tif", dim, extratags=[(281, "H", 1, 4095, True)])
    assert examine(tmp_path / "a.tif", 300)[1][0] == "use 12 of 16 bits"


@pytest.mark.parametrize("largest", [65535, 255 * 16])
def test_the_full_scale_or_an_images_maximum_is_no_depth(gray, tmp_path, largest):
    tifffile.imwrite(tmp_path / "a.tif", gray.astype(np.uint16) << 4, extratags=[(281, "H", 1, largest, True)])
    pixels, notes, _ = examine(tmp_path / "a.tif", 300)
    assert close(pixels, gray) and notes == ["use 12 of 16 bits"]


def test_a_dark_8_bit_tiff_that_gives_its_maximum_stays_dark(gray, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", gray // 4, extratags=[(281, "H", 1, 63 - 1, True)])
    assert np.array_equal(examine(tmp_path / "a.tif", 300)[0], gray // 4)


def test_a_white_is_zero_tiff_of_4_bits_becomes_a_positive(gray, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", 15 - (gray >> 4), photometric="miniswhite", bitspersample=4)
    assert abs(examine(tmp_path / "a.tif", 300)[0] - (gray >> 4) * 17.0).max() <= 1


def test_threads_that_read_leave_the_filters_of_warnings_alone(gray, tmp_path):
    Image.fromarray(gray).save(tmp_path / "a.png")
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(open_image, [tmp_path / "a.png"] * 400))
    assert warnings.filters == before


def test_a_white_is_zero_tiff_becomes_a_positive(gray, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", 65535 - gray.astype(np.uint16) * 257, photometric="miniswhite")
    pixels, notes, _ = examine(tmp_path / "a.tif", 300)
    assert close(pixels, gray) and notes == ["are negatives according to their files (white is zero)"]


@pytest.mark.parametrize("kind", [np.uint32, np.int32])
def test_32_bit_pixels_are_scaled_by_what_they_use(gray, tmp_path, kind):
    tifffile.imwrite(tmp_path / "a.tif", gray.astype(kind) << 8)
    assert close(examine(tmp_path / "a.tif", 300)[0], gray)


def test_negative_pixels_are_black_and_reported(gray, tmp_path):
    signed = gray.astype(np.int16) * 16
    signed[:10] = -50
    tifffile.imwrite(tmp_path / "a.tif", signed)
    pixels, notes, _ = examine(tmp_path / "a.tif", 300)
    assert (pixels[:10] == 0).all() and close(pixels[10:], gray[10:])
    assert "have negative pixels, which are taken as black" in notes


def test_an_underexposed_image_of_many_bits_keeps_its_levels(gray, tmp_path):
    sixteen = gray.astype(np.uint16) * 80
    sixteen[0, 0] = 65535  # a hot pixel
    Image.fromarray(sixteen).save(tmp_path / "a.png")
    pixels, notes, _ = examine(tmp_path / "a.png", 300)
    assert len(np.unique(pixels)) > 0.8 * len(np.unique(gray)) and notes == ["are underexposed and were brightened"]


def test_an_image_without_light_is_black(tmp_path):
    Image.fromarray(np.zeros((300, 300), np.uint16)).save(tmp_path / "a.png")
    assert not read_image(tmp_path / "a.png").any()


def test_a_dead_cell_of_many_bits_stays_black(tmp_path):
    noise = np.random.default_rng(0).integers(0, 120, (300, 300)).astype(np.uint16)
    Image.fromarray(noise).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").mean() / 255 < 0.13


def test_small_images_are_enlarged_without_blurring_thin_lines(tmp_path):
    small = np.full((40, 40), 200, np.uint8)
    small[:, 20] = 100
    Image.fromarray(small).save(tmp_path / "a.png")
    profile = read_image(tmp_path / "a.png", 300)[150].astype(float)
    assert profile.max() > 205 and profile.min() < 105  # bilinear enlarging never exceeds what is there


@pytest.mark.parametrize("cut", [np.s_[:150], np.s_[:, 150:], np.s_[:60]])
def test_a_half_cut_cell_is_mirrored_and_not_stretched(gray, tmp_path, cut):
    half = gray[cut]
    Image.fromarray(half).save(tmp_path / "a.png")
    pixels, notes, _ = examine(tmp_path / "a.png", 300)
    rows, columns = half.shape
    top, left = (300 - rows) // 2, (300 - columns) // 2
    assert np.array_equal(pixels[top : top + rows, left : left + columns], half)
    assert notes == ["are not square and were mirrored to a square"]


@pytest.mark.parametrize("few", [(149, 145), (155, 149), (140, 70)])
@pytest.mark.parametrize("enough", [(160, 152), (160, 80)])
def test_images_of_few_pixels_are_named(tmp_path, few, enough):
    for size in (few, enough):
        Image.new("L", size, 90).save(tmp_path / "a.png")
        _, notes, _ = examine(tmp_path / "a.png")
        assert (FEW_PIXELS in notes) == (size == few)


def test_each_page_of_a_tiff_is_an_image(gray, tmp_path):
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, np.stack([gray, 255 - gray, gray // 2]), photometric="minisblack")
    names = pages_of(str(path))
    assert names == [f"{path}#page={n}" for n in (1, 2, 3)]
    for name, page in zip(names, (gray, 255 - gray, gray // 2)):
        assert np.array_equal(read_image(name), page)
    assert find_images([names[1]]).paths == [names[1]]


def test_each_page_of_a_tiff_has_its_own_labels(gray, tmp_path):
    tifffile.imwrite(tmp_path / "stack.tif", np.stack([gray, 255 - gray]), photometric="minisblack")
    rows = "filename;crack;inactive\nstack.tif#page=2;1;0\nstack.tif#page=1;0;0\n"
    (tmp_path / "labels.csv").write_text(rows, encoding="utf-8")
    table = data.read_table(tmp_path / "labels.csv")
    data.fill_images(table)
    assert table["cell"].nunique() == 2
    for _ in range(2):  # the second time from the cache
        images, index = load_images(table)
        assert np.array_equal(images[index[0], 0], 255 - gray) and np.array_equal(images[index[1], 0], gray)


def test_a_preview_is_not_a_page(gray, tmp_path):
    first = Image.fromarray(gray)
    first.save(tmp_path / "a.tif", save_all=True, append_images=[first.resize((60, 60))])
    assert pages_of(str(tmp_path / "a.tif")) == [str(tmp_path / "a.tif")]


def test_a_missing_page_is_named(gray, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.stack([gray, gray]), photometric="minisblack")
    with pytest.raises(InputError, match=r"has 2 pages, no page 7"):
        open_image(f"{tmp_path / 'a.tif'}#page=7")
    Image.fromarray(gray).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="only TIFF files have pages"):
        open_image(f"{tmp_path / 'a.png'}#page=2")


def test_predict_reports_what_it_assumed(gray, exported, tmp_path, capsys):
    for name in "ab":
        Image.fromarray(gray.astype(np.uint16) << 4).save(tmp_path / f"{name}.png")
    assert predict.main([str(tmp_path), "--model", str(exported), "--device", "cpu"]) == 0
    assert "2 images use 12 of 16 bits." in capsys.readouterr().err


def test_assumptions_are_reported_from_the_cache_too(gray, tmp_path):
    Image.fromarray(gray.astype(np.uint16) << 4).save(tmp_path / "a.png")
    (tmp_path / "data.csv").write_text("filename;crack;inactive\na.png;1;0\n", encoding="utf-8")
    for _ in range(2):  # the second time from the cache
        lines = []
        load_images(data.read_table(tmp_path / "data.csv"), 64, lines.append)
        assert lines == as_lines({"use 12 of 16 bits": 1})


# ---------------------------------------------------------------- depth and black level, by folder


def folder_of(cells, folder, convert):
    """Write cells (uint8) as deep images of a folder, as convert(uint16) makes them; returns their paths."""
    folder.mkdir()
    paths = [folder / f"{number:02}.png" for number in range(len(cells))]
    for path, cell in zip(paths, cells):
        Image.fromarray(convert(cell.astype(np.uint16))).save(path)
    return paths


@pytest.fixture(scope="module")
def cells(elpv):
    """Twenty ELPV cells as uint8 (20, 300, 300)."""
    return np.stack([np.asarray(Image.open(path)) for path in data.read_table(elpv)["path"][:20]])


def with_hot_pixels(cell):
    deep = cell << 4
    deep[5, 5] = deep[200, 100] = 65535
    return deep


def test_hot_pixels_do_not_change_the_depth(cells, tmp_path):
    for path, cell in zip(folder_of(cells, tmp_path / "hot", with_hot_pixels), cells):
        pixels, notes, _ = examine(path, 300)
        pixels[5, 5], pixels[200, 100] = cell[5, 5], cell[200, 100]
        assert close(pixels, cell) and notes == ["use 12 of 16 bits"]


def test_8_bits_in_16_are_taken_as_they_are(cells, tmp_path):
    for path, cell in zip(folder_of(cells, tmp_path / "eight", lambda cell: cell), cells):
        pixels, notes, _ = examine(path, 300)
        assert close(pixels, cell) and notes == ["use 8 of 16 bits"]


def test_a_dark_cell_is_scaled_as_the_others_of_its_folder(cells, tmp_path):
    dark = np.random.default_rng(0).integers(0, 60, cells[0].shape)
    *_, path = folder_of([*cells, dark], tmp_path / "dark", lambda cell: cell << 4)
    pixels, notes, _ = examine(path, 300)
    assert close(pixels, dark) and notes == ["use 12 of 16 bits"]


def test_images_added_to_a_folder_change_the_depth_of_those_in_the_cache(cells, tmp_path):
    [dim] = folder_of(cells[:1], tmp_path / "a", lambda cell: cell << 1)
    (tmp_path / "a" / "data.csv").write_text(f"filename;crack;inactive\n{dim.name};1;0\n", encoding="utf-8")
    table = data.read_table(tmp_path / "a" / "data.csv")
    images, index = load_images(table)
    assert np.array_equal(images[index[0], 0], read_image(dim))
    for number, cell in enumerate(cells[1:]):
        Image.fromarray(cell.astype(np.uint16) << 4).save(tmp_path / "a" / f"later{number}.png")
    images, index = load_images(table)
    assert np.array_equal(images[index[0], 0], read_image(dim)) and images[index[0]].mean() < cells[0].mean() / 4


@pytest.mark.parametrize("black, gain", [(1000, 16), (200, 3), (12000, 200)])
def test_a_black_level_is_subtracted_and_said(cells, tmp_path, black, gain):
    paths = folder_of(cells, tmp_path / "black", lambda cell: cell * gain + black)
    darkest = min(np.percentile(cell, 0.1) for cell in cells)
    for path, cell in zip(paths, cells):
        pixels, notes, _ = examine(path, 300)
        assert any(note.startswith("have a black level of") for note in notes)
        expected = (cell - darkest).clip(0)
        scale = pixels.mean() / expected.mean()
        assert np.abs(pixels - scale * expected).mean() < 2


def test_the_background_of_a_module_shows_its_black_level(gray, tmp_path):
    module = np.full((700, 1000), 900, np.uint16)
    module[50:350, 50:350] += gray.astype(np.uint16) << 3
    Image.fromarray(module).save(tmp_path / "a.png")
    assert "have a black level of 900, which was subtracted" in examine(tmp_path / "a.png", 300)[1]


def test_cells_without_dark_parts_show_no_black_level(cells, tmp_path):
    bright = [(100 + 0.6 * cell).astype(np.uint8) for cell in cells[:3]]
    for path, cell in zip(folder_of(bright, tmp_path / "bright", lambda cell: cell << 4), bright):
        pixels, notes, _ = examine(path, 300)
        assert close(pixels, cell) and notes == ["use 12 of 16 bits"]


# ---------------------------------------------------------------- kinds of files


def png_of_16_bits(path, pixels):
    path.with_suffix(".png").write_bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels)))
    return path.with_suffix(".png")


def tiff(path, pixels, **options):
    tifffile.imwrite(path.with_suffix(".tif"), pixels, **options)
    return path.with_suffix(".tif")


def pillow(path, image, suffix, **options):
    image.save(path.with_suffix(suffix), **options)
    return path.with_suffix(suffix)


def deep(gray):
    """The same gray in 16 bits."""
    return gray * np.uint16(257)


GRAYS = np.tile(np.arange(256, dtype=np.uint16), (3, 1))
PLANAR = {"photometric": "rgb", "planarconfig": "separate"}
SAME = {  # files of a gray cell that are read as it is
    "RGB of 12 in 16 bits": lambda p, g: tiff(p, np.stack([g.astype(np.uint16) << 4] * 3, -1), photometric="rgb"),
    "PNG, RGB of 12 in 16 bits": lambda p, g: png_of_16_bits(p, np.stack([g.astype(np.uint16) << 4] * 3, -1)),
    "PNG, gray and alpha of 16 bits": lambda p, g: png_of_16_bits(p, np.dstack([deep(g), deep(g | 255)])),
    "planar RGB": lambda p, g: tiff(p, np.stack([g] * 3), **PLANAR),
    "planar RGB of 16 bits": lambda p, g: tiff(p, np.stack([deep(g)] * 3), **PLANAR),
    "32 bits, full scale": lambda p, g: tiff(p, g * np.uint32(2**24 + 2**16 + 2**8 + 1)),
    "8 in 32 bits": lambda p, g: tiff(p, g.astype(np.uint32)),
    "big endian": lambda p, g: tiff(p, deep(g), byteorder=">"),
    "white is zero": lambda p, g: tiff(p, 255 - g, photometric="miniswhite"),
    "LZW": lambda p, g: pillow(p, Image.fromarray(g), ".tif", compression="tiff_lzw"),
    "palette": lambda p, g: pillow(p, Image.fromarray(g).convert("P"), ".png"),
    "palette of a TIFF": lambda p, g: tiff(p, g, photometric="palette", colormap=GRAYS * np.uint16(257)),
    "palette of a TIFF, in 8 bits": lambda p, g: tiff(p, g, photometric="palette", colormap=GRAYS),
    "RGBA, opaque": lambda p, g: pillow(p, Image.fromarray(g).convert("RGBA"), ".png"),
    "RGBA, alpha zero everywhere": lambda p, g: pillow(p, Image.fromarray(np.dstack([g, g, g, 0 * g])), ".png"),
    "turned": lambda p, g: tiff(p, np.rot90(g), extratags=[(274, "H", 1, 6, True)]),
}


@pytest.mark.parametrize("kind", SAME)
def test_a_cell_is_the_same_whatever_its_file(gray, tmp_path, kind):
    path = SAME[kind](tmp_path / "a", gray)
    assert close(examine(path, 300)[0], gray)


def test_transparent_parts_are_black(gray, tmp_path):
    alpha = np.full_like(gray, 255)
    alpha[:50] = 0
    Image.fromarray(np.dstack([gray, alpha])).save(tmp_path / "a.png")
    pixels, notes, _ = examine(tmp_path / "a.png", 300)
    assert not pixels[:50].any() and np.array_equal(pixels[50:], gray[50:])
    assert notes == ["have transparent parts, which are taken as black"]


def empty_tiff(path, _):
    path.with_suffix(".tif").write_bytes(b"II*\0" + bytes(60))
    return path.with_suffix(".tif")


REFUSED = {  # files of which no gray is known, and a word of the sentence
    "Lab": (lambda p, g: pillow(p, Image.merge("LAB", [Image.fromarray(g)] * 3), ".tif"), "CIELAB"),
    "floating point": (lambda p, g: tiff(p, g.astype(np.float32)), "float32"),
    "64 bits": (lambda p, g: tiff(p, g.astype(np.uint64)), "uint64"),
    "YCbCr": (lambda p, g: tiff(p, np.dstack([g] * 3), photometric="ycbcr"), "YCBCR"),
    "five channels": (
        lambda p, g: tiff(p, np.dstack([g] * 5), photometric="minisblack", planarconfig="contig"),
        "5 channels",
    ),
    "few pixels": (lambda p, g: pillow(p, Image.new("L", (9, 9), 90), ".png"), "9x9 pixels are too few"),
    "a strip": (lambda p, g: pillow(p, Image.new("L", (1, 120_000), 90), ".png"), "too narrow"),
    "no image": (empty_tiff, "can't be read"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_image_that_cant_be_read_never_ends_a_run(gray, exported, tmp_path, capsys, kind):
    write, words = REFUSED[kind]
    bad = write(tmp_path / "bad", gray)
    with pytest.raises(InputError, match=words):
        examine(bad, 300)
    Image.fromarray(gray).save(tmp_path / "good.png")
    assert predict.main([str(tmp_path), "--model", str(exported), "--device", "cpu"]) == 3
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 3 and words in rows[1] and rows[2].startswith(str(tmp_path / "good.png"))


# ---------------------------------------------------------------- pages


def test_pages_of_unequal_size_are_images_and_a_thumbnail_in_front_is_none(gray, tmp_path):
    pages = [gray[::6, ::6], gray, gray[:290, :280], np.pad(gray, 10)]
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for page in pages:
            file.write(page, photometric="minisblack")
    names = pages_of(tmp_path / "a.tif")
    assert [name.rpartition("=")[2] for name in names] == ["2", "3", "4"]
    assert np.array_equal(open_image(names[1]).pixels, pages[2])
    assert np.array_equal(open_image(tmp_path / "a.tif").pixels, gray)


def test_a_stack_of_imagej_with_one_page_entry_has_all_its_images(gray, tmp_path):
    images = [np.roll(gray.astype(np.uint16), shift, 0) for shift in range(20)]
    description = "ImageJ=1.54f\nimages=20\nslices=20\nloop=false\n"
    tifffile.imwrite(tmp_path / "a.tif", images[0], description=description, metadata=None)
    with open(tmp_path / "a.tif", "ab") as file:
        file.write(np.stack(images[1:]).tobytes())
    names = pages_of(tmp_path / "a.tif")
    assert len(names) == 20
    for name, image in zip(names, images):
        assert np.array_equal(open_image(name).pixels, image)


def test_the_entries_of_a_stack_are_read_once(tmp_path, monkeypatch):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for number in range(60):
            file.write(np.full((16, 16), number, np.uint8), photometric="minisblack", contiguous=False)
    names = pages_of(tmp_path / "a.tif")
    entries = []
    read = tifffile.TiffPage.__init__

    def counted(self, *arguments, **options):
        entries.append(arguments)
        read(self, *arguments, **options)

    monkeypatch.setattr(tifffile.TiffPage, "__init__", counted)
    assert [open_image(name).pixels[0, 0] for name in names] == list(range(60))
    assert len(entries) <= 2 * len(names)  # the file's first entry, and the page's


# ---------------------------------------------------------------- suspicions


def test_suspicious_images_are_counted(cells, exported, tmp_path, capsys):
    bright = cells[[cell.mean() > 90 for cell in cells]][:6]
    colours = colormaps["jet"](np.arange(256), bytes=True)[:, :3]
    for number, cell in enumerate(bright):
        saturated = (cell.astype(int) * 3).clip(0, 255).astype(np.uint8)
        forms = {"inverted": 255 - cell, "jet": colours[cell], "saturated": saturated, "plain": cell}
        for kind, pixels in forms.items():
            Image.fromarray(pixels).save(tmp_path / f"{kind}{number}.png")
    words = {"inverted": "look inverted", "jet": "have colours", "saturated": "are saturated"}
    for kind in (*words, "plain"):
        assert predict.main([str(tmp_path / f"{kind}*.png"), "--model", str(exported), "--device", "cpu"]) == 0
        lines = capsys.readouterr().err.splitlines()
        if kind == "plain":
            assert not any(word in line for word in words.values() for line in lines)
        else:
            assert any(line.startswith(f"{len(bright)} images {words[kind]}") for line in lines)


def test_one_brightest_pixel_of_a_tiny_image_is_no_saturation():
    tiny = np.random.default_rng(0).integers(60, 200, (5, 5), np.uint8)
    assert not is_saturated(tiny, tiny)
    assert is_saturated(np.full((5, 5), 255, np.uint8), np.full((5, 5), 255, np.uint8))


@pytest.mark.parametrize("size", [(300, 300), (50, 51), (40, 90), (700, 640)])
def test_the_size_of_an_image_is_told_as_it_was(tmp_path, size):
    Image.fromarray(np.random.default_rng(0).integers(90, 200, size, np.uint8)).save(tmp_path / "a.png")
    pixels, _, told = examine(tmp_path / "a.png", 100)
    assert told == size and pixels.shape == (100, 100)
