"""The whole way on a GPU; skipped where there is none."""

import json

import pytest
import torch
from conftest import SMALL

import predict
import train
import visualize_activations
from elcells.training.checkpoints import read_checkpoint
from model import load_model
from trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def run_train(elpv, out, *options):
    return train.main(["--data", str(elpv), "--out", str(out), *SMALL, "--device", "cuda", *map(str, options)])


@pytest.fixture(scope="module")
def trained(elpv, tmp_path_factory):
    """The folder of a run of two epochs on the GPU."""
    out = tmp_path_factory.mktemp("cuda")
    assert run_train(elpv, out, "--epochs", 2) == 0
    return out


def test_a_resumed_run_ends_as_an_uninterrupted_one(trained, elpv, tmp_path, monkeypatch):
    next_step = Trainer.next_step

    def stopping_step(self, batch):
        self.stop = (self.epoch, self.step) == (1, 1)
        return next_step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "next_step", stopping_step)
        assert run_train(elpv, tmp_path, "--epochs", 2) == 130
    assert train.main(["--resume", "--out", str(tmp_path), "--device", "cuda"]) == 0
    uninterrupted = read_checkpoint(trained / "checkpoints" / "last.ckp")["model"]
    resumed = read_checkpoint(tmp_path / "checkpoints" / "last.ckp")["model"]
    assert all(torch.equal(uninterrupted[name], resumed[name]) for name in uninterrupted)


def test_images_on_the_host_train_the_same_network(trained, elpv, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    assert run_train(elpv, tmp_path, "--epochs", 2) == 0
    assert "stay on the host" in capsys.readouterr().out
    on_gpu = read_checkpoint(trained / "checkpoints" / "last.ckp")["model"]
    on_host = read_checkpoint(tmp_path / "checkpoints" / "last.ckp")["model"]
    assert all(torch.equal(on_gpu[name], on_host[name]) for name in on_gpu)


def test_the_gpu_predicts_as_the_cpu_does(trained, small):
    images = torch.from_numpy(small[1][:16].copy())
    probabilities = []
    for device in ("cpu", "cuda"):
        model, _ = load_model(trained / "checkpoints" / "best.ckp", device)
        with torch.inference_mode():
            probabilities.append(model.probabilities(model(images.to(device))).cpu())
    assert torch.allclose(*probabilities, atol=1e-5)


def test_evaluate_gives_the_same_figures_again(trained, elpv, tmp_path):
    best = str(trained / "checkpoints" / "best.ckp")
    options = ["--data", str(elpv), "--out", str(tmp_path), "--device", "cuda", "--evaluate", best]
    assert train.main(options) == 0
    first = json.loads((trained / "checkpoints" / "report.json").read_text(encoding="utf-8"))
    second = json.loads((tmp_path / "checkpoints" / "best_report.json").read_text(encoding="utf-8"))
    assert first["at_threshold"] == second["at_threshold"]


def test_predict_runs_on_the_gpu(trained, elpv, tmp_path):
    best = str(trained / "checkpoints" / "best.ckp")
    options = ["--model", best, "--out", str(tmp_path / "out"), "--device", "cuda"]
    assert predict.main([str(elpv.parent / "images"), *options]) == 0


def test_visualize_runs_on_the_gpu(trained, elpv, tmp_path):
    best = str(trained / "checkpoints" / "best.ckp")
    assert visualize_activations.main([best, "--data", str(elpv), "--out", str(tmp_path), "--device", "cuda"]) == 0
