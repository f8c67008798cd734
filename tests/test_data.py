import errno
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import data
from elcells.data import cache as cache_module
from elcells.data import images as images_module
from elcells.data import splits as splits_module
from elcells.data.cache import load_images
from elcells.data.images import read_image
from elcells.data.recorded_split import record_split
from elcells.data.splits import VARIANTS, expand_variants, group_keys, split_cells
from elcells.files import InputError
from elcells.training.augmentation import augment, draw_changes, draw_light, uneven_light


def write(folder, text, encoding="utf-8"):
    """Write a table of this text; returns its path."""
    path = folder / "table.csv"
    path.write_bytes(text.encode(encoding))
    return path


# ---------------------------------------------------------------- table


def test_the_table_holds_all_of_elpv(table):
    assert len(table) == table["cell"].nunique() == 2624
    assert table["module"].nunique() == 44
    counts = data.combination(table).value_counts()
    assert counts.to_dict() == {
        "crack=0 inactive=0": 2032,
        "crack=1 inactive=0": 340,
        "crack=1 inactive=1": 215,
        "crack=0 inactive=1": 37,
    }
    text = data.summary(table)
    assert "2624 cells" in text and "crack=1 inactive=1: 215" in text and "poly   1550" in text


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("", "line 1: no column 'filename'"),
        ("filename,crack,inactive\na.png,0,1\n", "line 1: columns are separated by ','"),
        ("filename\tcrack\tinactive\n", r"separated by '\\t'"),
        ("filename;crack\na.png;0\n", "line 1: no column 'inactive'"),
        ("filename;crack;crack;inactive\na.png;0;0;0\n", "line 1: column 'crack' appears twice"),
        ("filename;crack;inactive\n", "no rows"),
        ("filename;crack;inactive\na.png;0;1\nb.png;2;1\n", "line 3: crack is '2', expected 0 or 1"),
        ("filename;crack;inactive\na.png;0;yes\n", "line 2: inactive is 'yes', expected 0 or 1"),
        ("filename;crack;inactive\na.png;0;\n", "line 2: inactive is '', expected 0 or 1"),
        ("filename;crack;inactive\na.png;0;1\n\nb.png;0;nan\n", "line 4: inactive is 'nan'"),
        ("filename;crack;inactive\n;0;1\n", "line 2: filename is empty"),
        ("filename;crack;inactive\na.png;0;1;7\n", "line 2: 4 fields, but the header has 3"),
        ('filename;crack;inactive\n"a\nb.png";0;1\nc.png;2;1\n', "line 4: crack is '2'"),
        ("filename;crack;inactive\na.png;0;1\na.png;0;1\n", "line 3: a.png appears twice"),
        ("filename;crack;inactive\na.png;0;1\nrot_a.png;1;1\n", "line 3: rot_a.png has other labels than"),
    ],
)
def test_a_bad_table_gets_one_sentence_with_its_line(tmp_path, text, complaint):
    with pytest.raises(InputError, match=complaint) as caught:
        data.read_table(write(tmp_path, text))
    assert str(caught.value).startswith(str(tmp_path / "table.csv")) and "\n" not in str(caught.value)


def test_a_hundred_thousand_rows_are_read_and_the_bad_one_is_named(tmp_path):
    lines = [f"cell{i:06}.png;{int(i % 5 == 0)};{int(i % 7 == 0)}" for i in range(100_000)]
    path = write(tmp_path, "\n".join(["filename;crack;inactive", *lines]))
    table = data.read_table(path)
    assert len(table) == 100_000 and table["crack"].sum() == 20_000
    lines[77_776] = "cell.png;0;x"
    path = write(tmp_path, "\n".join(["filename;crack;inactive", *lines]))
    with pytest.raises(InputError, match="line 77778: inactive is 'x'"):
        data.read_table(path)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.csv: can't be read"):
        data.read_table(tmp_path / "nowhere.csv")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_bom_crlf_latin1_and_float_labels_are_fine(tmp_path, encoding):
    rows = data.read_table(write(tmp_path, "filename;crack;inactive\r\nhäuser/a.png;1.0;0\r\n\r\n", encoding))
    assert rows[["crack", "inactive"]].values.tolist() == [[1, 0]]
    assert rows["filename"][0] == "häuser/a.png" and rows["path"][0] == tmp_path / "häuser" / "a.png"


def test_other_classes_are_read_from_their_columns(tmp_path):
    rows = data.read_table(write(tmp_path, "filename;finger;crack\na.png;1;0\n"), classes=["finger"])
    assert rows["finger"].tolist() == [1]
    assert data.combination(rows, ["finger"]).tolist() == ["finger=1"]


def test_the_images_folder_may_be_the_tables_or_the_images_own(tmp_path):
    table = write(tmp_path, "filename;crack;inactive\nimages/a.png;0;0\n")
    image = tmp_path / "tree" / "images" / "a.png"
    image.parent.mkdir(parents=True)
    image.touch()
    for folder in (tmp_path / "tree", tmp_path / "tree" / "images"):
        assert data.read_table(table, images=folder)["path"][0] == image


def test_variants_are_recognised_by_name_and_kept_together(tmp_path):
    names = [f"images/{p}cell0001.png" for p in VARIANTS] + ["images/rot_front.png"]
    rows = data.read_table(write(tmp_path, "filename;crack;inactive\n" + "".join(f"{n};1;0\n" for n in names)))
    assert rows["cell"][:6].nunique() == 1
    assert rows["variant"].tolist() == [*VARIANTS, ""]  # there is no front.png
    assert data.originals(rows)["filename"].tolist() == ["images/cell0001.png", "images/rot_front.png"]


def test_a_missing_image_that_is_no_elpv_cell_is_named(tmp_path):
    rows = data.read_table(write(tmp_path, "filename;crack;inactive\nimages/holiday.png;0;0\n"))
    with pytest.raises(InputError, match=r"holiday.png: no such file, and no cell of the project's own table"):
        data.fill_images(rows)


# ---------------------------------------------------------------- split


@pytest.mark.parametrize("by", ["cell", "module"])
def test_no_group_crosses_the_split(table, by):
    rows = expand_variants(table)
    train, test = split_cells(rows, 0.1, by)
    assert not set(train[by]) & set(test[by])
    assert not set(train["cell"]) & set(test["cell"])
    assert len(train) + len(test) == len(rows) == 6 * 2624


def test_variants_as_files_never_cross_the_split(table):
    rows = expand_variants(table.head(300))
    rows["filename"] = [f"images/{v}{p.name}" for v, p in zip(rows["variant"], rows["path"])]
    train, test = split_cells(rows.assign(transform=""), 0.2)
    assert not set(train["cell"]) & set(test["cell"])


def test_the_naive_split_by_row_does_leak(table):
    train, test = split_cells(expand_variants(table), by="row")
    assert set(test["cell"]) & set(train["cell"])
    assert not set(test["filename"] + test["transform"]) & set(train["filename"] + train["transform"])


@pytest.mark.parametrize("by, tolerance", [("cell", 0.005), ("module", 0.03)])
def test_the_split_is_stratified(table, by, tolerance):
    _, test = split_cells(table, 0.1, by)
    whole, part = (data.combination(t).value_counts(normalize=True) for t in (table, test))
    assert (whole - part).abs().max() < tolerance
    assert len(test) == pytest.approx(262, abs=40)


@pytest.mark.parametrize("by", ["cell", "module", "row"])
def test_every_image_is_tested_in_one_fold_and_no_group_crosses(table, by):
    tested = []
    for fold in range(5):
        train, val, test = data.fold_parts(table, 5, fold, by)
        keys = [set(group_keys(part, by)) for part in (train, val, test)]
        assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
        tested += list(test["filename"] + test["transform"])
        assert abs(test["crack"].mean() - table["crack"].mean()) < (0.05 if by == "module" else 0.002)
    assert len(tested) == len(set(tested)) == (6 if by == "row" else 1) * len(table)


def test_the_split_follows_from_its_seed(table, monkeypatch):
    first = split_cells(table)[1]["cell"].tolist()
    assert first == split_cells(table)[1]["cell"].tolist()
    monkeypatch.setattr(splits_module, "SPLIT_SEED", 3)
    assert first != split_cells(table)[1]["cell"].tolist()


def test_too_few_cells_of_a_label_are_named(table):
    rows = pd.concat([table[table["crack"] == 0].head(40), table[table["crack"] == 1].head(1)], ignore_index=True)
    with pytest.raises(InputError, match="crack=1: 1 cell with this label"):
        split_cells(rows)


@pytest.mark.parametrize("size", [0, 1, -0.1, 1.5])
def test_impossible_test_sizes_are_refused(table, size):
    with pytest.raises(InputError, match="expected a share between 0 and 1"):
        split_cells(table, size)


def test_splitting_by_module_needs_the_column(table):
    with pytest.raises(InputError, match="no column 'module'"):
        split_cells(table.drop(columns="module"), by="module")


def test_limit_takes_a_stratified_handful(table):
    few = data.limit_cells(table, 24)
    assert len(few) == 24 and data.combination(few).value_counts().min() >= 3
    many = data.limit_cells(table, 500)
    assert data.combination(many).value_counts()["crack=0 inactive=0"] == pytest.approx(389, abs=2)
    with pytest.raises(InputError, match="5 cells are too few"):
        data.limit_cells(table, 5)


# ---------------------------------------------------------------- images


EXPECTED = {
    "": lambda a: a,
    "rot_": lambda a: np.rot90(a, 1),
    "rot2_": lambda a: np.rot90(a, 3),
    "rot3_": lambda a: np.rot90(a, 2),
    "mirrh_": np.flipud,
    "mirrv_": np.fliplr,
}


def test_variants_are_bit_exact_as_files(elpv, tmp_path):
    cells = data.read_table(elpv).head(5)
    assert data.write_variants(cells, tmp_path / "six") == 30
    six = data.read_table(tmp_path / "six" / "data.csv")
    assert len(six) == 30 and six["cell"].nunique() == 5
    as_is = {p.name: np.asarray(Image.open(p)) for p in cells["path"]}
    for path, variant in zip(six["path"], six["variant"]):
        want = EXPECTED[variant](as_is[path.name.removeprefix(variant)])
        assert np.array_equal(np.asarray(Image.open(path)), want), path.name


def test_variants_are_bit_exact_in_memory(elpv):
    cells = data.read_table(elpv).head(5)
    as_is = {p.name: np.asarray(Image.open(p)) for p in cells["path"]}
    rows = expand_variants(cells)
    pixels, index = load_images(cells)
    rows["image"] = np.tile(index, 6)
    images, labels = data.CellDataset(rows, pixels).batch(range(30))
    for image, transform, path in zip(images, rows["transform"], rows["path"]):
        assert np.array_equal(image[0].numpy(), EXPECTED[transform](as_is[path.name]))
    assert np.array_equal(labels.numpy(), rows[["crack", "inactive"]].to_numpy(np.float32))


def test_an_interrupted_variant_tree_goes_on(elpv, tmp_path):
    cells = data.read_table(elpv).head(3)
    data.write_variants(cells, tmp_path)
    files = sorted((tmp_path / "images").iterdir())
    files[0].unlink()
    (tmp_path / "data.csv").unlink()
    before = {f: f.stat().st_mtime_ns for f in files[1:]}
    data.write_variants(cells, tmp_path)
    assert sorted((tmp_path / "images").iterdir()) == files and (tmp_path / "data.csv").exists()
    assert {f: f.stat().st_mtime_ns for f in files[1:]} == before


def test_a_table_that_has_variants_is_not_expanded_again(table):
    rows = expand_variants(table.head(4))
    assert expand_variants(rows) is rows


@pytest.fixture
def gray(elpv):
    """An ELPV cell as uint8 (300, 300)."""
    return np.asarray(Image.open(data.read_table(elpv)["path"][0]))


@pytest.mark.parametrize("kind", ["L", "RGB", "RGBA", "P", "CMYK", "16", "16 tif", "jpg"])
def test_any_kind_of_image_gives_the_same_gray(gray, tmp_path, kind):
    path = tmp_path / {"CMYK": "a.tif", "16 tif": "a.tif", "jpg": "a.jpg"}.get(kind, "a.png")
    if kind.startswith("16"):
        Image.fromarray(gray.astype(np.uint16) * 257).save(path)
    elif kind == "jpg":
        Image.fromarray(gray).save(path, quality=100)
    else:
        Image.fromarray(gray).convert(kind).save(path)
    read = read_image(path)
    assert read.shape == (300, 300) and read.dtype == np.uint8
    assert np.abs(read.astype(int) - gray).max() <= (2 if kind == "jpg" else 1 if kind == "CMYK" else 0)


def test_an_image_turned_by_exif_is_upright(gray, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # show it turned by 90 degrees clockwise
    Image.fromarray(np.rot90(gray)).save(tmp_path / "turned.png", exif=exif)
    assert (read_image(tmp_path / "turned.png") == gray).all()


def test_an_animated_image_is_its_first_frame(gray, tmp_path):
    frames = [Image.fromarray(gray), Image.fromarray(255 - gray)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    assert np.abs(read_image(tmp_path / "film.gif").astype(int) - gray).max() <= 1


def test_an_image_of_few_pixels_fills_the_cell(tmp_path):
    Image.new("L", (10, 10), 77).save(tmp_path / "dot.png")
    assert (read_image(tmp_path / "dot.png") == 77).all()


def test_an_image_of_400_million_pixels_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "large.png"
    Image.new("1", (20_000, 20_000)).save(path)
    with pytest.raises(InputError, match=r"20000x20000 pixels, more than the 100 million allowed"):
        read_image(path)


def test_other_sizes_are_resized_with_antialiasing(gray, tmp_path):
    path = tmp_path / "big.png"
    Image.fromarray(gray.repeat(3, 0).repeat(3, 1)).save(path)
    assert np.abs(read_image(path).astype(int) - gray).mean() < 2
    checker = np.indices((600, 600)).sum(0) % 2 * 255
    Image.fromarray(checker.astype(np.uint8)).save(path)
    assert read_image(path)[5:-5, 5:-5].std() < 3  # without antialiasing: stripes of 0 and 255


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "missing", "huge"])
def test_a_bad_image_is_named(gray, tmp_path, damage, monkeypatch):
    path = tmp_path / "bad.png"
    Image.fromarray(gray).save(path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:20000])
    elif damage == "missing":
        path.unlink()
    elif damage == "huge":
        monkeypatch.setattr(images_module, "MAX_PIXELS", 1000)
    else:
        path.write_text("" if damage == "empty" else "not an image", encoding="utf-8")
    with pytest.raises(InputError, match=r"bad.png: (no such file|can't be read as an image|300x300 pixels, more)"):
        read_image(path)


@pytest.fixture
def four(elpv, tmp_path):
    """Four rows of the table, their images copied to tmp_path."""
    cells = data.read_table(elpv).head(4)
    cells["path"] = [Path(shutil.copy(p, tmp_path)) for p in cells["path"]]
    return cells


def test_the_cache_is_mapped_read_only(four):
    first, _ = load_images(four, 64)
    assert first.shape == (4, 1, 64, 64) and isinstance(first, np.memmap) and not first.flags.writeable


def test_images_are_in_memory_where_the_disk_is_full(four, tmp_path, monkeypatch):
    """Writing to a mapped file on a full disk would kill the process."""
    expected, index = load_images(four, 64)
    expected = expected[index]
    for path in tmp_path.glob(".cache_*"):
        path.unlink()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    images, index = load_images(four, 64)
    assert np.array_equal(images[index], expected) and not list(tmp_path.glob(".*cache_*"))


def test_the_cache_is_written_once(four, tmp_path):
    first, _ = load_images(four, 64)
    caches = list(tmp_path.glob(".cache_*"))
    again, _ = load_images(four, 64)
    assert list(tmp_path.glob(".cache_*")) == caches and np.array_equal(first, again)


def test_the_cache_follows_a_changed_image(four, tmp_path):
    again, index = load_images(four, 64)
    changed = four["path"][2]
    Image.fromarray(255 - np.asarray(Image.open(changed))).save(changed)
    os.utime(changed, ns=(1, 1))
    new, moved = load_images(four, 64)
    different = [not np.array_equal(new[moved[i]], again[index[i]]) for i in range(4)]
    assert different == [False, False, True, False]
    assert len(list(tmp_path.glob(".cache_*.npy"))) == 1


def test_all_tables_of_a_folder_share_one_cache(four, tmp_path, monkeypatch):
    load_images(four.head(2), 64)
    decoded, examine = [], cache_module.examine
    monkeypatch.setattr(cache_module, "examine", lambda p, size: decoded.append(p) or examine(p, size))
    images, index = load_images(four, 64)
    assert sorted(map(str, decoded)) == [str(p) for p in four["path"][2:]]
    part, of_part = load_images(four.iloc[[3, 1]], 64)
    assert len(decoded) == 2  # no more were decoded
    for path, place in zip(four["path"], index):
        assert np.array_equal(images[place, 0], read_image(path, 64))
    assert np.array_equal(part[of_part[0], 0], read_image(four["path"][3], 64))
    assert sorted(p.suffix for p in tmp_path.glob(".cache_*")) == [".json", ".npy"]


def test_images_that_were_decoded_by_another_version_are_decoded_anew(four, tmp_path, monkeypatch):
    load_images(four, 64)
    monkeypatch.setattr(cache_module, "DECODING", cache_module.DECODING + 1)
    monkeypatch.setattr(cache_module, "examine", lambda path, size: (np.full((size, size), 7, np.uint8), [], size))
    images, _ = load_images(four, 64)
    assert (images == 7).all()


def test_a_deleted_image_is_dropped_from_the_cache(four, tmp_path):
    load_images(four, 64)
    four["path"][0].unlink()
    os.utime(four["path"][1], ns=(1, 1))
    images, index = load_images(four.iloc[1:], 64)
    assert len(images) == 3 and np.array_equal(images[index[0], 0], read_image(four["path"][1], 64))


def test_caches_of_two_sizes_lie_side_by_side(four, tmp_path):
    (tmp_path / "below").mkdir()
    four.at[0, "path"] = four["path"][0].rename(tmp_path / "below" / "cell.png")
    for size in (64, 32, 64):
        images, index = load_images(four, size)
        assert np.array_equal(images[index[0], 0], read_image(four["path"][0], size))
    assert sorted(p.name for p in tmp_path.glob(".cache_*.json")) == [".cache_32.json", ".cache_64.json"]


@pytest.mark.parametrize("damage", ["", "{}", '{"decoding": 2, "array": "no.npy", "images": {}}', "[1]"])
def test_a_damaged_cache_is_written_anew(four, tmp_path, damage):
    first, index = load_images(four, 64)
    expected = np.array(first[index])
    (tmp_path / ".cache_64.json").write_text(damage, encoding="utf-8")
    again, index = load_images(four, 64)
    assert np.array_equal(again[index], expected) and len(list(tmp_path.glob(".cache_*.npy"))) == 1


# ---------------------------------------------------------------- augmentation


def test_augmentation_follows_from_its_generator():
    one, two, other = (draw_changes(16, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_augmentation_is_small(small):
    cells, pixels = small
    images, _ = data.CellDataset(cells, pixels).batch(range(16))
    one = augment(images, draw_changes(16, torch.Generator().manual_seed(1)))
    assert one.shape == images.shape and one.dtype == torch.float32 and 0 <= one.min() and one.max() <= 1
    flips = [images / 255, images.flip(-1) / 255, images.flip(-2) / 255, images.flip(-1, -2) / 255]
    nearest = torch.stack([(f - one).abs().mean((1, 2, 3)) for f in flips]).min(0).values
    assert nearest.max() < 0.06


def test_all_eight_symmetries_are_exact_and_equally_frequent(small):
    _, images = small
    image = torch.from_numpy(images[:1].copy())
    changes = draw_changes(800, torch.Generator().manual_seed(0), dihedral=True)
    exact = changes.clone()
    exact[:, :, :2] = exact[:, :, :2].round()
    exact[:, :, 2] = 0
    turned, count = [image.rot90(k, (-2, -1)) for k in range(4)], torch.zeros(8)
    symmetries = torch.cat([*turned, *(t.flip(-1) for t in turned)])
    for one in augment(image.expand(800, -1, -1, -1), exact):
        same = (one - symmetries / 255).abs().amax((1, 2, 3)) < 1e-4
        assert same.sum() == 1
        count += same
    assert count.min() > 70 and count.max() < 130
    plain = draw_changes(800, torch.Generator().manual_seed(0))[:, :, :2].round()
    assert (plain[:, 0, 1] == 0).all()


def test_cells_are_zoomed_by_up_to_scale():
    plain, zoomed = (draw_changes(400, torch.Generator().manual_seed(0), scale=s)[:, :, :2] for s in (0.0, 0.1))
    factor = (torch.linalg.det(zoomed) / torch.linalg.det(plain)).sqrt()
    assert 0.9 < factor.min() < 0.92 and 1.08 < factor.max() < 1.11


def test_half_of_the_images_get_uneven_light():
    light = draw_light(400, 0.2, torch.Generator().manual_seed(0))
    assert torch.equal(light, draw_light(400, 0.2, torch.Generator().manual_seed(0))) and light.abs().max() <= 0.2
    even = (light == 0).all(1)
    assert 150 < even.sum() < 250
    lit = uneven_light(torch.full((400, 1, 21, 21), 0.5), light)
    assert torch.equal(lit[even], torch.full((int(even.sum()), 1, 21, 21), 0.5))
    right_to_left = lit[:, 0, 10, 20] - lit[:, 0, 10, 0]
    assert torch.allclose(right_to_left, light[:, 0], atol=1e-6) and torch.allclose(
        lit[:, 0, 10, 10], torch.tensor(0.5)
    )


def test_images_on_a_device_are_served_like_mapped_ones(small):
    cells, images = small
    turned = expand_variants(cells.head(4))
    there = data.CellDataset(turned, torch.from_numpy(images.copy()))
    rows = np.arange(24)[::-1].copy()
    for a, b in zip(data.CellDataset(turned, images).batch(rows), there.batch(rows)):
        assert torch.equal(a, b)
    rotated = np.rot90(images[turned["image"][4], 0], 1)
    assert np.array_equal(there.batch([4])[0][0, 0].numpy(), rotated) and turned["transform"][4] == "rot_"


@pytest.mark.parametrize("free, stays", [(2 * 48 * 64 * 64, False), (2 * 48 * 64 * 64 - 1, True)])
def test_images_that_take_more_than_half_of_a_gpus_memory_stay_on_the_host(small, monkeypatch, capsys, free, stays):
    sent = []
    monkeypatch.setattr("elcells.devices.send", lambda tensor, device: sent.append(torch.device(device)) or tensor)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10 * free))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: tensor)  # there may be no GPU
    dataset = data.CellDataset(*small)
    moved = dataset.to("cuda")
    assert isinstance(moved.images, torch.Tensor) != stays
    assert ("stay on the host" in capsys.readouterr().out) == stays
    for a, b in zip(moved.batch([3, 40]), dataset.batch([3, 40])):
        assert torch.equal(a, b)
    assert sent[0].type == ("cuda" if stays else "cpu") and moved.to("cuda:0") is moved


def test_moving_a_dataset_to_a_device_leaves_the_original_where_it_was(elpv):
    cells = data.read_table(elpv).head(6).assign(transform="")
    images, cells["image"] = load_images(cells, 64)
    dataset = data.CellDataset(cells, images)
    moved = dataset.to("meta")
    assert moved.images.device.type == "meta" and len(moved.images) == 6
    assert dataset.images is images and dataset.to("cpu") is dataset


def test_augmentation_moves_no_more_than_promised():
    images = torch.zeros(400, 1, 101, 101, dtype=torch.uint8)
    images[:, :, 50, 50] = 255  # the centre stays within shift (2 %) and crop (0.5 %)
    images[:, :, 50, 95] = 255
    out = augment(images, draw_changes(400, torch.Generator().manual_seed(0)))[:, 0]
    y, x = np.meshgrid(np.arange(101) - 50, np.arange(101) - 50, indexing="ij")
    centre = out * torch.from_numpy(np.hypot(x, y) < 20)
    mass = centre.sum((1, 2))
    moved = [(centre * torch.from_numpy(a)).sum((1, 2)) / mass for a in (x, y)]
    assert 2.0 < torch.stack(moved).abs().max() <= 101 * 0.0255
    outer = out - centre
    cx, cy = ((outer * torch.from_numpy(a)).sum((1, 2)) / outer.sum((1, 2)) for a in (x, y))
    angles = torch.rad2deg(torch.atan((cy - moved[1]) / (cx - moved[0])))
    assert 2.7 < angles.abs().max() < 3.2
    assert 0.4 < (cx > 0).float().mean() < 0.6  # flips


def test_the_command_prints_the_summary(elpv, capsys, tmp_path):
    assert data.main(["--data", str(elpv), "--variants", str(tmp_path / "six")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("48 cells, 48 images") and "288 images and data.csv" in out


def test_the_command_names_a_table_that_is_not_there(capsys, tmp_path):
    assert data.main(["--data", str(tmp_path / "none.csv")]) == 2
    assert capsys.readouterr().err.startswith("data.py: ")


# ---------------------------------------------------------------- identities


HEAD = "filename;crack;inactive\n"


def written(folder, text, *images):
    """A table in a folder with images of these names, each of its own gray; returns its path."""
    for gray, name in enumerate(images):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), gray).save(folder / name)
    (folder / "table.csv").write_text(text, encoding="utf-8")
    return folder / "table.csv"


def test_a_users_missing_image_is_never_replaced_by_an_elpv_cell(tmp_path):
    rows = data.read_table(written(tmp_path, HEAD + "site1/cell0003.png;0;1\nimages/cell0003.png;0;1\n"))
    for row in (rows.head(1), rows.tail(1)):
        with pytest.raises(InputError, match="no such file, and no cell of the project's own table"):
            data.fill_images(row)


def test_two_rows_never_share_a_file(tmp_path):
    """The images folder is one level too deep."""
    path = written(tmp_path, HEAD + "site1/1.png;0;1\nsite2/1.png;1;0\n", "images/1.png")
    paths = data.read_table(path, images=tmp_path / "images")["path"]
    assert paths.nunique() == 2


def test_the_images_folder_may_hold_the_files_without_their_folders(tmp_path):
    names = [f"images/{i}.png" for i in (1, 2)]
    path = written(tmp_path, HEAD + "a/1.png;0;1\nb/2.png;1;0\n", *names)
    paths = data.read_table(path, images=tmp_path / "images")["path"]
    assert paths.tolist() == [tmp_path / "images" / "1.png", tmp_path / "images" / "2.png"]


def test_folders_of_images_are_ignored_for_all_rows_or_for_none(tmp_path):
    path = written(tmp_path, HEAD + "a/1.png;0;1\nb/2.png;1;0\n", "images/a/1.png", "images/2.png")
    paths = data.read_table(path, images=tmp_path / "images")["path"]
    assert [p.exists() for p in paths] == [True, False]


def test_two_spellings_of_one_file_are_refused(tmp_path):
    path = written(tmp_path, HEAD + "a/1.png;0;1\na/../a/1.png;1;0\n", "a/1.png")
    with pytest.raises(InputError, match=r"line 3: a/\.\./a/1\.png appears twice"):
        data.read_table(path)


@pytest.mark.parametrize("names", [("a.png", "a.tif"), ("M1.2", "M1.3"), ("x.1.png", "x.2.png")])
def test_files_that_differ_only_in_their_suffix_are_two_cells(tmp_path, names):
    path = written(tmp_path, HEAD + f"{names[0]};0;1\n{names[1]};1;0\n")
    assert data.read_table(path)["cell"].nunique() == 2


def test_a_cell_is_named_after_its_file_without_the_suffix(table):
    """Checkpoints record their splits by these names."""
    assert table["cell"][0] == "images/cell0001"


@pytest.mark.parametrize("modules", [("01", "1"), ("7E10", "70E9")])
def test_modules_are_text(tmp_path, modules):
    path = written(tmp_path, f"filename;crack;inactive;module\na.png;0;1;{modules[0]}\nb.png;1;0;{modules[1]}\n")
    assert group_keys(data.read_table(path), "module").nunique() == 2


def test_a_blank_module_is_named_when_splitting_by_module(tmp_path):
    rows = data.read_table(written(tmp_path, "filename;crack;inactive;module\na.png;0;1;7\nb.png;1;0;\n"))
    with pytest.raises(InputError, match=r"b\.png and 0 more have no module"):
        group_keys(rows, "module")


@pytest.mark.parametrize("name", ["cell", "path", "variant", "transform"])
def test_a_label_column_with_a_reserved_name_is_refused(tmp_path, name):
    path = written(tmp_path, f"filename;{name}\na.png;0\n")
    with pytest.raises(InputError, match=f"label column '{name}' has a name that the program uses itself"):
        data.read_table(path, [name])


@pytest.mark.parametrize("by", ["module", "row"])
def test_a_recorded_split_is_found_again_in_a_table_with_backslashes(tmp_path, by):
    rows = "".join(f"a\\{i}.png;{i % 2};{i // 2 % 2};m\\{i // 4}\n" for i in range(80))
    table = data.read_table(written(tmp_path, f"filename;crack;inactive;module\n{rows}"))
    parts = data.split_parts(table, by)
    split = record_split(parts, by)
    for name, part in zip(("train", "val", "test"), parts):
        rows = data.part_of_checkpoint(table, split, name)
        expected = part if by == "row" else data.originals(part)
        assert set(rows["filename"] + rows["transform"]) == set(expected["filename"] + expected["transform"])


def test_the_parts_of_a_checkpoint_without_a_split_are_those_of_the_default_split(table):
    for name, part in zip(("train", "val", "test"), data.split_parts(table)):
        rows = data.part_of_checkpoint(table, None, name)
        assert set(rows["cell"]) == set(part["cell"]) and (rows["transform"] == "").all() and rows["cell"].is_unique


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_table_of_excel_is_read(tmp_path, encoding):
    text = HEAD + "zelle_ü.png;0;1\n"
    mark = {"utf-16-le": "\ufeff", "utf-16-be": "\ufeff"}.get(encoding, "")
    (tmp_path / "table.csv").write_bytes((mark + text).encode(encoding))
    assert data.read_table(tmp_path / "table.csv")["filename"].tolist() == ["zelle_ü.png"]


@pytest.mark.parametrize("stored, asked", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_in_the_other_unicode_form_is_found(tmp_path, stored, asked):
    name = unicodedata.normalize(stored, "zelle_ü.png")
    text = HEAD + f"{unicodedata.normalize(asked, name)};0;1\n"
    assert data.read_table(written(tmp_path, text, name))["path"][0].exists()


def test_a_combination_of_labels_that_only_one_cell_has_does_not_stop_the_split(tmp_path):
    """With eight labels, some combination is always unique."""
    rng = np.random.default_rng(0)
    names = [f"label{k}" for k in range(8)]
    labels = (rng.random((200, 8)) < 0.3).astype(int)
    rows = "".join(f"{i}.png;{';'.join(map(str, row))}\n" for i, row in enumerate(labels))
    table = data.read_table(written(tmp_path, f"filename;{';'.join(names)}\n{rows}"), names)
    assert (data.combination(table, names).value_counts() == 1).any()
    parts = data.split_parts(table, classes=names)
    assert all((part[names].sum() > 0).all() for part in parts)
    shares = [part.drop_duplicates("cell")[names].mean() for part in parts]
    assert abs(shares[0] - shares[2]).max() < 0.25
