"""The same record from the workers of a Dask cluster, and one sentence for whatever fails there."""

import functools
import os
import shutil
import signal
import socket
import sys
import types

import numpy as np
import pytest
from conftest import CPU, posix
from PIL import Image

import cut_module
import predict
from elcells.files import InputError
from elcells.inference.networks import Network
from elcells.records import cluster as on_cluster
from elcells.records.cluster import AHEAD, Cluster, judge_there, usable
from elcells.records.opening import reading
from elcells.records.record import Record
from elcells.records.requests import request_of
from elcells.records.work import Work

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def local():
    """A cluster of two workers; one that dies twice at a task ends the run."""
    import dask

    options = {"dashboard_address": "127.0.0.1:0", "memory_limit": 0, "silence_logs": 60}
    with dask.config.set({"distributed.scheduler.allowed-failures": 1}):
        with distributed.LocalCluster(n_workers=2, threads_per_worker=1, **options) as workers:
            yield workers


@pytest.fixture
def some(local):
    """The Cluster of its workers."""
    with distributed.Client(local.scheduler_address) as client:
        yield Cluster(client)


@pytest.fixture
def folder(elpv, tmp_path, monkeypatch):
    """A folder, the current one, of 30 cells in cells/, one of them damaged, and of three modules in modules/."""
    sources = sorted((elpv.parent / "images").glob("*.png"))
    (tmp_path / "cells").mkdir()
    (tmp_path / "modules").mkdir()
    for source in sources[:30]:
        shutil.copy(source, tmp_path / "cells")
    os.truncate(tmp_path / "cells" / sources[4].name, 999)
    for number in range(3):
        module = np.full((4 * 66 + 40, 4 * 66 + 40), 6, np.uint8)
        for place in range(16):
            row, column = divmod(place, 4)
            cell = Image.open(sources[3 * number + place]).resize((64, 64))
            module[20 + 66 * row :, 20 + 66 * column :][:64, :64] = np.maximum(np.asarray(cell), 40)
        Image.fromarray(module).save(tmp_path / "modules" / f"m{number}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("elcells.pages.derived.write_report", lambda record: None)
    monkeypatch.setattr("elcells.pages.derived.write_review", lambda record: 0)
    return tmp_path


@pytest.fixture
def run(exported):
    """run(*arguments) of predict.py; returns its exit code."""
    options = ["--model", str(exported), "--batch-size", "4", *CPU]
    return lambda *arguments: predict.main([*arguments, *options])


def files(out):
    """What a results folder holds, but for the record, the workbook and the lock: {path: bytes}."""
    paths = [path for path in sorted(out.rglob("*")) if path.is_file() and not path.name.startswith((".", "results."))]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}


def images(out):
    with reading(out) as record:
        return [(row["path"], row["status"], row["error"], row["notes"]) for row in record.images()]


# ---------------------------------------------------------------- the same record


def test_workers_give_the_record_that_one_process_gives(folder, run, local, capfd):
    for inputs in (["cells"], ["modules", "--grid", "4x4"]):
        expected = run(*inputs, "--out", f"{inputs[0]}_1")
        assert run(*inputs, "--out", f"{inputs[0]}_2", "--dask", local.scheduler_address) == expected
        assert files(folder / f"{inputs[0]}_2") == files(folder / f"{inputs[0]}_1")
        assert images(f"{inputs[0]}_2") == images(f"{inputs[0]}_1")
    capfd.readouterr()
    run("cells")
    alone = capfd.readouterr().out
    run("cells", "--dask", local.scheduler_address)
    assert capfd.readouterr().out == alone


@pytest.mark.slow  # CI runs `predict.py --workers 2` by .ci/predict_only.py
def test_processes_of_this_machine_give_the_same_in_silence(folder, run, capfd):
    assert cut_module.main(["modules", "--grid", "4x4", "--out", "cut_1"]) == 0
    run("cells", "--out", "one")
    before = capfd.readouterr().err
    assert cut_module.main(["modules", "--grid", "4x4", "--out", "cut_2", "--workers", "2"]) == 0
    run("cells", "--out", "two", "--workers", "2")
    assert len(capfd.readouterr().err.splitlines()) == len(before.splitlines())
    assert files(folder / "two") == files(folder / "one")
    assert files(folder / "cut_2") == files(folder / "cut_1") and files(folder / "cut_1")
    assert files(folder / "cut_2_modules") == files(folder / "cut_1_modules")


def test_a_killed_worker_costs_nothing(folder, run, local, monkeypatch):
    run("cells", "--out", "one")
    with distributed.Client(local.scheduler_address) as client:
        victim = min(client.run(os.getpid).values())
    add = Record.add

    def kill(record, result):
        add(record, result)
        if record.count("status != 'waiting'") == 5:
            os.kill(victim, getattr(signal, "SIGKILL", signal.SIGTERM))

    monkeypatch.setattr(Record, "add", kill)
    run("cells", "--out", "two", "--dask", local.scheduler_address)
    assert files(folder / "two") == files(folder / "one")
    with distributed.Client(local.scheduler_address) as client:
        assert victim not in client.run(os.getpid).values()


def test_ctrl_c_keeps_what_is_done(folder, run, local, monkeypatch, capsys):
    run("cells", "--out", "one")
    with monkeypatch.context() as patch:
        add = Record.add

        def stop(record, result):
            add(record, result)
            if record.count("status != 'waiting'") == 9:
                raise KeyboardInterrupt

        patch.setattr(Record, "add", stop)
        assert run("cells", "--out", "two", "--dask", local.scheduler_address) == 130
    capsys.readouterr()
    run("cells", "--out", "two", "--dask", local.scheduler_address)
    assert "8 images of 30 judged before" in capsys.readouterr().err  # and one that is damaged
    assert files(folder / "two") == files(folder / "one")


def test_items_are_taken_as_they_are_needed(some):
    taken = []
    items = (taken.append(number) or number for number in range(100))
    results = some.map(str, items, lambda item: [])
    assert next(results) == "0" and len(taken) <= 2 * AHEAD + 1
    assert [next(results) for _ in range(9)] == list("123456789")


# ---------------------------------------------------------------- what fails


def test_an_address_without_a_scheduler_is_one_sentence(folder, run, local, monkeypatch, capsys):
    monkeypatch.setattr(on_cluster, "CONNECT_SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        for address in ("tcp://127.0.0.1:1", "nonsense", "http://127.0.0.1:1", mute, local.workers[0].worker_address):
            assert run("cells", "--out", "out", "--dask", address) == 2
            assert f"--dask {address}: is no Dask scheduler (" in capsys.readouterr().err.splitlines()[-1]
    assert not (folder / "out").exists()


def test_a_worker_that_cant_see_a_file_is_one_sentence(folder, exported, some, monkeypatch):
    monkeypatch.setattr(on_cluster, "sees", lambda path, size: True)  # in this process alone
    with pytest.raises(InputError, match=r"gone.png: a worker of the cluster can't read it.* same file system"):
        list(some.results(Work(Network(str(exported))), [[request_of("gone.png")]]))
    with pytest.raises(InputError, match=r"gone.png: a worker"):
        list(some.map(len, ["gone.png"]))


def test_a_file_that_is_gone_everywhere_fails_alone(folder, exported, some):
    [[result]] = some.map(
        functools.partial(judge_there, Work(Network(str(exported))), Network(str(exported)).sha256()),
        [[request_of(str(folder / "gone.png"))]],
        lambda item: [(request.path, request.bytes) for request in item],
    )
    assert result.error.endswith("gone.png: no such file")


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"path": "nowhere.onnx"}, "nowhere.onnx: a worker of the cluster can't read it"),
        ({"sha256": "other"}, "best.onnx: is another file on a worker of the cluster"),
        ({"folder": "nowhere"}, "nowhere: a worker of the cluster can't see this folder"),
    ],
)
def test_a_worker_that_sees_other_files_is_one_sentence(exported, some, change, sentence):
    network = Network(change.get("path", str(exported)))
    judge = functools.partial(judge_there, Work(network, change.get("folder", "")), change.get("sha256", ""))
    with pytest.raises(InputError, match=sentence):
        list(some.map(judge, [[]], lambda item: []))


def test_what_a_worker_raises_is_one_sentence(some, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"a worker of the cluster failed: ValueError \(invalid literal"):
        list(some.map(int, ["x"], lambda item: []))
    with pytest.raises(OSError, match="nowhere") as full:  # as of a disk that is full; `command` makes it a sentence
        list(some.map(os.listdir, [str(tmp_path / "nowhere")], lambda item: []))
    assert full.value.filename == str(tmp_path / "nowhere")
    (tmp_path / "only_here.py").write_text("def f(item):\n    return item\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here

    with pytest.raises(InputError, match="no package only_here; start the workers with the project's folder in"):
        list(some.map(only_here.f, [1], lambda item: []))
    sys.modules.pop("only_here")


@posix
def test_an_image_that_kills_workers_is_named(some):
    with pytest.raises(InputError, match=r"odd.png: a worker of the cluster died each time"):
        list(some.map(os._exit, [1], lambda item: [("odd.png", None)]))


def test_a_checkpoint_takes_the_threads_of_its_worker(best, exported, monkeypatch):
    taken = []
    worker = types.SimpleNamespace(state=types.SimpleNamespace(nthreads=3))
    monkeypatch.setattr(distributed, "get_worker", lambda: worker)
    monkeypatch.setattr("torch.set_num_threads", taken.append)
    usable.cache_clear()
    for path, threads in ((best, None), (exported, 3)):
        network = Network(str(path))
        assert usable(network, network.sha256()).threads == threads
    assert taken == [3] and usable(Network(str(exported), threads=1), Network(str(exported)).sha256()).threads == 1
    usable.cache_clear()
