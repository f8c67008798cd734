"""Nothing lost: runs that are killed, run out of disk, lose their folder, or meet another run."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import pandas as pd
import pytest
import torch
from conftest import ROOT, SMALL, posix

import train
from elcells.files import sole_writer
from elcells.training.batches import Batches
from elcells.training.checkpoints import read_checkpoint
from model import load_model


def run(elpv, out, *more):
    return train.main(["--data", str(elpv), "--out", str(out), *SMALL, *map(str, more)])


def start(elpv, out, *more):
    command = [sys.executable, str(ROOT / "train.py"), "--data", str(elpv), "--out", str(out), *SMALL, *map(str, more)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def state(path):
    """Weights and course of a checkpoint, without its times."""
    checkpoint = read_checkpoint(path)
    course = [{k: v for k, v in h.items() if k not in ("seconds", "cells_per_second")} for h in checkpoint["history"]]
    return checkpoint["model"], checkpoint["epoch"], course


def same(a, b):
    return a[1:] == b[1:] and a[0].keys() == b[0].keys() and all(torch.equal(a[0][k], b[0][k]) for k in a[0])


def kill_and_resume(elpv, folder, kills, epochs, seed=0):
    """Kill a run of `epochs` -9 so many times at random moments, going on each time; returns how often in a write."""
    rng, last, writing = random.Random(seed), folder / "checkpoints" / "last.ckp", 0
    for _ in range(kills):
        options = ["--resume"] if last.exists() else ["--epochs", epochs, "--keep-checkpoints", 1]
        process = start(elpv, folder, *options)
        before = last.stat().st_mtime_ns if last.exists() else 0
        # Most of a process's life is starting up: wait until it trains, then a random while longer.
        while process.poll() is None and not (last.exists() and last.stat().st_mtime_ns != before):
            time.sleep(0.002)
        time.sleep(rng.random() * 0.4)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        load_model(last)
        for name in ("best.ckp", "metrics.csv"):
            if (path := last.with_name(name)).exists():
                assert load_model(path) if path.suffix == ".ckp" else len(pd.read_csv(path, sep=";"))
        writing += any(folder.rglob(".tmp*"))
        if process.returncode == 0 or read_checkpoint(last)["epoch"] >= epochs:
            break
    assert run(elpv, folder, "--resume") == 0
    return writing


@posix
def test_killed_at_random_moments_a_run_ends_as_one_that_was_not(elpv, tmp_path):
    assert run(elpv, tmp_path / "whole", "--epochs", 5) == 0
    kill_and_resume(elpv, tmp_path / "killed", kills=1, epochs=5)
    names = [f"{n}/checkpoints/last.ckp" for n in ("whole", "killed")]
    assert same(*(state(tmp_path / n) for n in names))
    assert not list((tmp_path / "killed").rglob(".tmp*"))


@posix
@pytest.mark.slow
def test_killed_fifty_times_a_run_ends_as_one_that_was_not(elpv, tmp_path):
    assert run(elpv, tmp_path / "whole", "--epochs", 150, "--keep-checkpoints", 1) == 0
    writing = kill_and_resume(elpv, tmp_path / "killed", kills=50, epochs=150)
    print(f"{writing} of 50 kills while a file was written")
    assert writing > 0
    names = [f"{n}/checkpoints/last.ckp" for n in ("whole", "killed")]
    assert same(*(state(tmp_path / n) for n in names))


@posix
def test_a_disk_that_is_full_loses_no_checkpoint(elpv, tmp_path, capsys):
    import resource

    assert run(elpv, tmp_path, "--recipe", "classic", "--epochs", 1, "--limit", 16) == 0
    last = tmp_path / "checkpoints" / "last.ckp"
    good = hashlib.sha256(last.read_bytes()).hexdigest()

    limits, reaction = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # no large files
    try:
        assert run(elpv, tmp_path, "--resume", "--epochs", 2) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, reaction)
    err = capsys.readouterr().err
    assert "Traceback" not in err and err.strip().startswith("train.py: ")
    assert hashlib.sha256(last.read_bytes()).hexdigest() == good and not list(tmp_path.rglob(".tmp*"))
    assert run(elpv, tmp_path, "--resume", "--epochs", 2) == 0


def test_a_folder_that_cant_be_written_is_named(elpv, tmp_path, capsys):
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert run(elpv, tmp_path / "file") == 2
    err = capsys.readouterr().err
    assert str(tmp_path / "file") in err and "Traceback" not in err
    if os.name == "posix" and os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        assert run(elpv, tmp_path / "locked") == 2
        assert str(tmp_path / "locked") in capsys.readouterr().err


def test_checkpoints_removed_while_running_come_again(elpv, tmp_path, monkeypatch):
    removed = []

    def remove_once(history, *_):
        if len(history) == 2 and not removed:
            removed.append(shutil.rmtree(tmp_path / "checkpoints"))

    monkeypatch.setattr("elcells.training.progress.plot_losses", remove_once)
    assert run(elpv, tmp_path, "--epochs", 3) == 0 and removed
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckp")["epoch"] == 3
    load_model(tmp_path / "checkpoints" / "best.ckp")


def test_two_runs_in_one_folder_are_not_let_in(elpv, tmp_path, capsys):
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with sole_writer(tmp_path):
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(60)
    try:
        assert run(elpv, tmp_path) == 2
        assert "another `python train.py` is at work in this folder" in capsys.readouterr().err
        assert not (tmp_path / "checkpoints").exists()
    finally:
        leave.set()
        thread.join()
    assert run(elpv, tmp_path, "--epochs", 1) == 0


def test_threads_do_not_change_the_order_of_the_cells(elpv, tmp_path, monkeypatch):
    threads, orders, of_step = torch.get_num_threads(), {1: [], 2: []}, Batches.of_step

    def recorded(batches, rows, epoch, step):
        orders[torch.get_num_threads()].append(rows.tolist())
        return of_step(batches, rows, epoch, step)

    monkeypatch.setattr(Batches, "of_step", recorded)
    try:
        for number in orders:
            torch.set_num_threads(number)
            assert run(elpv, tmp_path / str(number), "--epochs", 1, "--limit", 24, "--image-size", 32) == 0
    finally:
        torch.set_num_threads(threads)
    assert orders[1] == orders[2] and len(orders[1]) > 1
