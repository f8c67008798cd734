"""Splits belong to cells, and cells that a network was trained on never judge it."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CPU, ROOT, SMALL

import data
import export_onnx
import train
from benchmarks import foreign
from elcells.data.leaks import image_hashes, with_hashes
from elcells.data.recorded_split import difference_of_splits, record_split
from elcells.data.splits import expand_variants, split_cells
from elcells.inference.onnx_files import read_onnx
from elcells.training.checkpoints import read_checkpoint
from elcells.training.weights import cells_in_training, describe_network_file
from model import load_model


def order_of(parts):
    """What lies in each part, in order."""
    return [list(part["filename"] + "|" + part["transform"]) for part in parts]


@pytest.mark.parametrize("by", ["cell", "module", "row"])
def test_a_split_does_not_depend_on_the_order_of_the_rows(table, by):
    shuffled = table.sample(frac=1, random_state=5, ignore_index=True).assign(further=range(len(table)))
    assert order_of(data.split_parts(shuffled, by)) == order_of(data.split_parts(table, by))
    assert order_of(data.fold_parts(shuffled, 5, 3, by)) == order_of(data.fold_parts(table, 5, 3, by))
    assert order_of(split_cells(shuffled, 0.2, by)) == order_of(split_cells(table, 0.2, by))
    assert set(data.limit_cells(shuffled, 100)["cell"]) == set(data.limit_cells(table, 100)["cell"])


def test_nor_does_that_of_variants_as_files_and_of_several_sources(table):
    rows = expand_variants(table.head(300))
    rows["filename"] = [f"images/{v}{p.name}" for v, p in zip(rows["variant"], rows["path"])]
    rows = rows.assign(transform="", source=["north", "south"] * (len(rows) // 2))
    shuffled = rows.sample(frac=1, random_state=5, ignore_index=True)
    assert order_of(data.split_parts(shuffled)) == order_of(data.split_parts(rows))
    assert order_of(data.fold_parts(shuffled, 3, 0)) == order_of(data.fold_parts(rows, 3, 0))
    new = shuffled[shuffled["source"] == "south"]
    shuffled = pd.concat([shuffled.drop(new.index).iloc[::-1], new], ignore_index=True)
    in_order = rows.sort_values("source", kind="stable", ignore_index=True)
    assert order_of(data.adapt_parts(shuffled)) == order_of(data.adapt_parts(in_order))


@pytest.mark.parametrize("by", ["cell", "module"])
def test_the_splits_are_those_that_the_documents_figures_were_measured_on(table, by):
    predicted = pd.read_csv(ROOT / "doc" / f"oof_by_{by}.csv", sep=";")
    for fold, rows in predicted.groupby("fold"):
        assert data.fold_parts(table, 5, fold, by)[2]["filename"].tolist() == rows["filename"].tolist()


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda rows: rows.iloc[1:], "images/cell0001 was in the train part and is missing now"),
        (lambda rows: rows.replace({"cell": {"images/cell0001": "x"}}), "images/cell0001 was in the train part"),
        (lambda rows: rows.assign(crack=1), "was labelled crack=0 inactive=0 and is crack=1 inactive=0 now"),
        (lambda rows: rows.sample(frac=1, random_state=1), ""),
    ],
)
def test_what_is_other_in_a_split_is_named_by_a_cell(table, change, says):
    train, val, test = data.split_parts(table)
    before, now = (record_split((rows, val, test), "cell") for rows in (train, change(data.originals(train))))
    assert (says in difference_of_splits(before, now)) if says else difference_of_splits(before, now) == ""


@pytest.mark.parametrize("by", ["cell", "module"])
def test_cells_of_an_earlier_training_stay_in_the_training_part(table, by):
    earlier = set(table[by].drop_duplicates().sample(frac=0.6, random_state=1))
    seen = table[by].isin(earlier).map({True: "train", False: ""})
    train, val, test = data.split_parts(table.assign(seen=seen), by)
    assert (test["seen"] == "").all() and (val["seen"] == "").all() and (train["seen"] == "train").any()
    expected = data.split_parts(table, by)
    for part, usual in ((val, expected[1]), (test, expected[2])):
        assert len(part) == pytest.approx(len(usual), rel=0.3)
        assert all(0 < part[name].mean() < 0.4 for name in ("crack", "inactive"))


def test_cells_that_an_earlier_training_validated_are_not_tested_but_may_be_validated(table):
    parts = data.split_parts(table)
    seen = table["cell"].map({cell: k for k, part in zip(("train", "val"), parts) for cell in part["cell"]}).fillna("")
    assert order_of(data.split_parts(table.assign(seen=seen))) == order_of(parts)
    _, val, test = data.split_parts(table.assign(seen=seen), test_size=0.3)
    assert set(test["cell"]) == set(parts[2]["cell"]) and "train" not in set(val["seen"])


def test_where_an_earlier_training_left_too_few_cells_they_are_tested_as_usual(table):
    """It left two cells, none of them with a crack."""
    seen = np.where(table.index.isin(table.index[table["crack"] == 0][:2]), "", "train")
    assert order_of(data.split_parts(table.assign(seen=seen))) == order_of(data.split_parts(table))


# ---------------------------------------------------------------- resuming

ONE_EPOCH = [*SMALL, "--device", "cpu", "--schedule", "steps", "--epochs", "1"]


def write(table, folder):
    """Write a table with the absolute paths of its images; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = [c for c in ("filename", "crack", "inactive", "type", "module") if c in table]
    table.assign(filename=table["path"].map(str))[columns].to_csv(folder / "data.csv", sep=";", index=False)
    return folder / "data.csv"


def run(csv, out, *more):
    return train.main(["--data", str(csv), "--out", str(out), *ONE_EPOCH, *map(str, more)])


@pytest.fixture(scope="module")
def begun(elpv, tmp_path_factory):
    """(table of 40 cells, its path, folder of a run of one epoch on them)."""
    folder = tmp_path_factory.mktemp("begun")
    table = data.limit_cells(data.read_table(elpv), 40)
    path = write(table, folder)
    assert run(path, folder / "run") == 0
    return data.read_table(path), path, folder / "run"


def test_a_run_resumed_with_its_rows_in_another_order_ends_bit_for_bit_the_same(begun, tmp_path):
    table, path, before = begun
    assert run(path, tmp_path / "whole", "--epochs", 2) == 0
    shutil.copytree(before, tmp_path / "parts")
    shuffled = write(table.sample(frac=1, random_state=3), tmp_path / "shuffled")
    assert (
        train.main(["--resume", "--data", str(shuffled), "--out", str(tmp_path / "parts"), "--epochs", "2", *CPU]) == 0
    )
    whole, parts = (read_checkpoint(tmp_path / k / "checkpoints" / "last.ckp") for k in ("whole", "parts"))
    assert whole["epoch"] == parts["epoch"] == 2
    assert all(torch.equal(whole["model"][k], parts["model"][k]) for k in whole["model"])
    paths = [tmp_path / name / "checkpoints" / "report.json" for name in ("whole", "parts")]
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    assert reports[0]["at_threshold"] == reports[1]["at_threshold"]


@pytest.mark.parametrize("part", ["train", "val", "test"])
@pytest.mark.parametrize("change", ["exchanged", "labelled"])
def test_resume_refuses_other_cells_and_labels_and_names_one(begun, elpv, tmp_path, capsys, part, change):
    table, _, before = begun
    table = table.copy()
    split = read_checkpoint(before / "checkpoints" / "last.ckp")["split"]
    name = next(iter(split[part]))
    place = table.index[table["cell"] == name][0]
    if change == "exchanged":
        others = data.read_table(elpv)
        others = others[~others["path"].map(lambda p: str(p.resolve())).isin(table["path"].map(str))]
        alike = others[(others["crack"] == table["crack"][place]) & (others["inactive"] == table["inactive"][place])]
        table = pd.concat([table.drop(index=place), alike.head(1)], ignore_index=True)
    else:
        table.loc[place, "crack"] = 1 - table["crack"][place]
    other = write(table, tmp_path)
    assert train.main(["--resume", "--data", str(other), "--out", str(before), "--epochs", "2", *CPU]) == 2
    err = capsys.readouterr().err
    assert f"{name} was" in err and "in any order" in err and err.count("\n") == 1


@pytest.fixture(scope="module")
def folds(best, elpv, tmp_path_factory):
    """(table, folder, output) of a cross-validation of two folds, from weights that saw most of its cells."""
    out = tmp_path_factory.mktemp("folds")
    path = write(data.read_table(elpv), out)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert run(path, out, "--weights", best, "--folds", 2) == 0
    return data.read_table(path), out, output.getvalue()


def test_a_resumed_cross_validation_takes_the_same_cells_in_any_order_and_no_others(folds, tmp_path, capsys):
    table, out, _ = folds
    before = (out / "checkpoints" / "oof.csv").read_bytes()
    shuffled = write(table.sample(frac=1, random_state=3), tmp_path / "shuffled")
    assert train.main(["--resume", "--data", str(shuffled), "--out", str(out), *CPU]) == 0
    assert (out / "checkpoints" / "oof.csv").read_bytes() == before
    first = table.index[table["crack"] + table["inactive"] == 0][0]
    fewer = write(table.drop(index=first), tmp_path / "fewer")
    assert train.main(["--resume", "--data", str(fewer), "--out", str(out), *CPU]) == 2
    assert f"{table['cell'][first]} was in the" in capsys.readouterr().err


# ---------------------------------------------------------------- weights of an earlier training


def hashes_of(table):
    return set(image_hashes(table["path"]))


def test_an_onnx_file_may_have_a_suffix_in_capitals(exported, tmp_path):
    shutil.copy(exported, tmp_path / "CELLS.ONNX")
    assert describe_network_file(tmp_path / "CELLS.ONNX") == describe_network_file(exported)
    assert cells_in_training(tmp_path / "CELLS.ONNX") == cells_in_training(exported) is not None


@pytest.mark.parametrize("record", [None, [], {}, {"train": []}, {"train": None, "val": None}])
def test_a_garbled_record_of_cells_is_none(elpv, record):
    assert not with_hashes(data.read_table(elpv).head(2), record)["seen"].any()


def test_a_file_of_many_pages_is_read_once_for_its_hashes(tmp_path, monkeypatch):
    file = tmp_path / "a.tif"
    file.write_bytes(b"pages")
    reads = []
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.append(path) or b"pages")
    assert len(set(image_hashes([f"{file}#page={number}" for number in range(1, 101)]))) == 100
    assert reads == [file]


def test_a_cell_is_known_under_another_name_in_another_folder(elpv, tmp_path):
    table = data.read_table(elpv).head(3)
    record = {"train": image_hashes(table["path"])[:1], "val": image_hashes(table["path"])[1:2]}
    for number, path in enumerate(table["path"]):
        shutil.copy(path, tmp_path / f"site_{number}.png")
    rows = table.assign(path=[tmp_path / f"site_{k}.png" for k in (2, 1, 0)])
    assert with_hashes(rows, record)["seen"].tolist() == ["", "val", "train"]


def test_the_variants_that_are_written_keep_the_original_as_it_is(elpv, tmp_path):
    cells = data.read_table(elpv).head(4)
    data.write_variants(cells, tmp_path / "six")
    rows = data.read_table(tmp_path / "six" / "data.csv")
    assert hashes_of(data.originals(rows)) == hashes_of(cells)


@pytest.fixture(scope="module")
def chain(elpv, begun, tmp_path_factory):
    """The record of cells of a network A of 40 cells, and the checkpoints of B, which began as A, and C, as B."""
    _, _, first = begun
    folder = tmp_path_factory.mktemp("chain")
    assert run(elpv, folder / "b", "--weights", first / "checkpoints" / "best.ckp") == 0
    assert run(elpv, folder / "c", "--weights", folder / "b" / "checkpoints" / "best.ckp", "--limit", 24) == 0
    a = read_checkpoint(first / "checkpoints" / "best.ckp")["trained_on"]
    return a, *(read_checkpoint(folder / name / "checkpoints" / "best.ckp") for name in "bc")


def test_cells_of_the_initial_weights_are_not_tested(elpv, chain):
    a, b, _ = chain
    table = with_hashes(data.read_table(elpv), a)
    seen = dict(zip(table["cell"], table["seen"]))
    assert {seen[cell] for cell in b["split"]["test"]} == {""} and len(b["split"]["test"]) >= 4
    assert "train" not in {seen[cell] for cell in b["split"]["val"]}
    assert set(table["hash"]) >= {*a["train"], *a["val"]} and len(a["train"]) + len(a["val"]) > 30


def test_a_chain_of_weights_remembers_the_cells_of_all(chain):
    a, b, c = chain
    assert set(b["trained_on"]["train"]) >= set(a["train"]) and b["inherited"] == a
    assert set(c["trained_on"]["train"]) >= set(b["trained_on"]["train"]) and c["inherited"] == b["trained_on"]
    assert not set(c["trained_on"]["train"]) & set(c["trained_on"]["val"])
    assert set(c["trained_on"]["train"] + c["trained_on"]["val"]) >= set(b["trained_on"]["val"] + a["val"])


def test_an_exported_file_has_the_record_of_its_checkpoint(exported, best):
    record = read_checkpoint(best)["trained_on"]
    for path in (exported, exported.with_name("best_int8.onnx")):
        assert read_onnx(path)[1]["trained_on"] == record
    assert len(record["train"]) + len(record["val"]) + len(read_checkpoint(best)["split"]["test"]) == 48


def test_a_cross_validation_from_weights_that_saw_its_cells_says_so_in_capitals(folds, best, capsys):
    _, out, text = folds
    assert text.count("CONTAMINATED  ") >= 2 and "were in the training of best.ckp" in text
    report = json.loads((out / "checkpoints" / "report.json").read_text(encoding="utf-8"))
    split = read_checkpoint(best)["split"]
    for place, name in (("training", "train"), ("validation part", "val")):
        count = len(split[name])
        assert f"{100 * count / 48:.0f} % of the test cells ({count} of 48) were in the {place} of" in report["leak"]
    assert f"LEAK: {report['leak']}" in text
    assert train.main(["--resume", "--out", str(out), *CPU]) == 0  # it knows the cells without reading the weights
    assert f"LEAK: {report['leak']}" in capsys.readouterr().out


def test_weights_without_a_record_are_said_to_have_none(begun, elpv, tmp_path, capsys):
    _, path, first = begun
    checkpoint = read_checkpoint(first / "checkpoints" / "best.ckp")
    torch.save({"model": checkpoint["model"], "config": checkpoint["config"]}, tmp_path / "old.ckp")
    assert run(path, tmp_path / "run", "--weights", tmp_path / "old.ckp") == 0
    text = capsys.readouterr().out
    assert "old.ckp does not say which cells it was trained on" in text and "CONTAMINATED" not in text


def test_an_evaluation_on_cells_that_were_trained_on_says_so(finished, elpv, tmp_path, capsys):
    """A table in which test cells have the images of training cells."""
    best = finished / "checkpoints" / "best.ckp"
    table = data.read_table(elpv)
    split = read_checkpoint(best)["split"]
    paths = dict(zip(table["cell"], table["path"]))
    for name, other in zip(split["test"], split["train"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(paths[other], tmp_path / f"{name}.png")
    rows = pd.read_csv(elpv, sep=";")
    rows[rows["filename"].isin([f"{name}.png" for name in split["test"]])].to_csv(tmp_path / "t.csv", sep=";")
    options = ["--data", str(tmp_path / "t.csv"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert train.main([*options, "--evaluate", str(best)]) == 0
    assert "LEAK: 100 % of the test cells" in capsys.readouterr().out


def test_a_benchmark_on_cells_that_were_trained_on_says_so(exported, best, elpv, tmp_path, capsys):
    assert foreign.main([str(elpv), str(exported), str(best), "--json", str(tmp_path / "f.json")]) == 0
    text = capsys.readouterr().out
    assert text.count("CONTAMINATED  ") == 2 and "of 48) were in the training of best.ckp" in text
    reports = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))
    assert all("were in the training of" in report["leak"] for report in reports)


def test_an_export_that_measures_on_cells_that_were_trained_on_says_so(best, elpv, capsys):
    model, checkpoint = load_model(best)
    checkpoint["trained_on"]["train"] = image_hashes(data.read_table(elpv)["path"])
    export_onnx.read_cells(export_onnx.Export(checkpoint=str(best), data=str(elpv)), model.metadata, checkpoint)
    assert "CONTAMINATED  100 % of the test cells" in capsys.readouterr().out


def test_the_test_part_of_adapting_has_the_size_that_is_asked_for(table):
    both = pd.concat([table, table.head(200).assign(source="mine")], ignore_index=True)
    both["cell"] = both["source"] + ":" + both["cell"]
    assert len(data.adapt_parts(both, test_size=0.3)[2]) == pytest.approx(0.3 * len(table), abs=3)
    job, _ = train.new_job(train.options().parse_args(["--recipe", "adapt", "--weights", str(ROOT / "cells.onnx")]))
    job = train.replace(job, test_size=0.2)
    assert len(train.parts_of(both, job)[2]) == pytest.approx(0.2 * len(table), abs=3)
    assert len(train.parts_of(table, job)[2]) == pytest.approx(0.2 * len(table), abs=3)


def test_the_record_of_the_network_that_comes_along_is_that_of_the_default_split(table, elpv):
    record = read_onnx(ROOT / "cells.onnx")[1]["trained_on"]
    train_part, val, test = data.split_parts(table)
    assert len(record["train"]) == train_part["cell"].nunique() == 2125 and len(record["val"]) == len(val) == 236
    seen = with_hashes(data.read_table(elpv), record).set_index("filename")["seen"]
    for kind, part in (("train", train_part), ("val", val), ("", test)):
        names = set(part["filename"]) & set(seen.index)
        assert names and set(seen[list(names)]) == {kind}
