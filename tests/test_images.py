"""Camera files are read correctly, and assumptions about them are reported; on a real ELPV cell."""

import numpy as np
import pytest
import tifffile
from PIL import Image

import data
import predict
from elcells.data.cache import load_images
from elcells.data.finding import find_images
from elcells.data.images import as_lines, examine, open_image, read_image
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
    pixels, notes = examine(tmp_path / f"a.{suffix}", 300)
    assert close(pixels, gray) and notes == [f"use {bits} of 16 bits"]


def test_full_16_bits_need_no_assumption(gray, tmp_path):
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "a.png")
    pixels, notes = examine(tmp_path / "a.png", 300)
    assert close(pixels, gray) and not notes


def test_the_depth_that_a_tiff_gives_is_used(gray, tmp_path):
    dim = gray.astype(np.uint16) << 2  # 10 bits would hold it
    tifffile.imwrite(tmp_path / "a.tif", dim, extratags=[(281, "H", 1, 4095, True)])
    assert examine(tmp_path / "a.tif", 300)[1][0] == "use 12 of 16 bits"


def test_a_white_is_zero_tiff_becomes_a_positive(gray, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", 65535 - gray.astype(np.uint16) * 257, photometric="miniswhite")
    pixels, notes = examine(tmp_path / "a.tif", 300)
    assert close(pixels, gray) and notes == ["are negatives according to their files (white is zero)"]


@pytest.mark.parametrize("kind", [np.uint32, np.int32])
def test_32_bit_pixels_are_scaled_by_what_they_use(gray, tmp_path, kind):
    tifffile.imwrite(tmp_path / "a.tif", gray.astype(kind) << 8)
    assert close(examine(tmp_path / "a.tif", 300)[0], gray)


def test_negative_pixels_are_black_and_reported(gray, tmp_path):
    signed = gray.astype(np.int16) * 16
    signed[:10] = -50
    tifffile.imwrite(tmp_path / "a.tif", signed)
    pixels, notes = examine(tmp_path / "a.tif", 300)
    assert (pixels[:10] == 0).all() and close(pixels[10:], gray[10:])
    assert "have negative pixels, which are taken as black" in notes


def test_an_underexposed_image_of_many_bits_keeps_its_levels(gray, tmp_path):
    sixteen = gray.astype(np.uint16) * 80
    sixteen[0, 0] = 65535  # a hot pixel
    Image.fromarray(sixteen).save(tmp_path / "a.png")
    pixels, notes = examine(tmp_path / "a.png", 300)
    assert len(np.unique(pixels)) > 0.8 * len(np.unique(gray)) and notes == ["are underexposed and were brightened"]


def test_an_image_without_light_is_black(tmp_path):
    Image.fromarray(np.zeros((300, 300), np.uint16)).save(tmp_path / "a.png")
    assert not read_image(tmp_path / "a.png").any()


def test_a_dead_cell_of_many_bits_stays_black(tmp_path):
    noise = np.random.default_rng(0).integers(0, 120, (300, 300)).astype(np.uint16)
    Image.fromarray(noise).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").mean() / 255 < 0.13


@pytest.mark.parametrize("cut", [np.s_[:150], np.s_[:, 150:], np.s_[:60]])
def test_a_half_cut_cell_is_mirrored_and_not_stretched(gray, tmp_path, cut):
    half = gray[cut]
    Image.fromarray(half).save(tmp_path / "a.png")
    pixels, notes = examine(tmp_path / "a.png", 300)
    rows, columns = half.shape
    top, left = (300 - rows) // 2, (300 - columns) // 2
    assert np.array_equal(pixels[top : top + rows, left : left + columns], half)
    assert notes == ["are not square and were mirrored to a square"]


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
    (tmp_path / "labels.csv").write_text("filename;crack;inactive\nstack.tif#page=2;1;0\nstack.tif#page=1;0;0\n")
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
    with pytest.raises(InputError, match=r"a\.tif#page=7: can't be read"):
        open_image(f"{tmp_path / 'a.tif'}#page=7")


def test_predict_reports_what_it_assumed(gray, exported, tmp_path, capsys):
    for name in "ab":
        Image.fromarray(gray.astype(np.uint16) << 4).save(tmp_path / f"{name}.png")
    assert predict.main([str(tmp_path), "--model", str(exported), "--engine", "onnxruntime"]) == 0
    assert "2 images use 12 of 16 bits." in capsys.readouterr().err


def test_assumptions_are_reported_from_the_cache_too(gray, tmp_path):
    Image.fromarray(gray.astype(np.uint16) << 4).save(tmp_path / "a.png")
    (tmp_path / "data.csv").write_text("filename;crack;inactive\na.png;1;0\n")
    for _ in range(2):  # the second time from the cache
        lines = []
        load_images(data.read_table(tmp_path / "data.csv"), 64, lines.append)
        assert lines == as_lines({"use 12 of 16 bits": 1})
