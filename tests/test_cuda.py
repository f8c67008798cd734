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

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def run(elpv, out, *more):
    return train.main(["--data", str(elpv), "--out", str(out), *SMALL, "--device", "cuda", *map(str, more)])


@pytest.fixture(scope="module")
def trained(elpv, tmp_path_factory):
    """The folder of a run of two epochs on the GPU."""
    out = tmp_path_factory.mktemp("cuda")
    assert run(elpv, out, "--epochs", 2) == 0
    return out


def test_a_resumed_run_ends_as_an_uninterrupted_one(trained, elpv, tmp_path, monkeypatch):
    from trainer import Trainer

    step = Trainer.run_step

    def stopping(self, *batch):
        self.stop = (self.epoch, self.step) == (1, 1)
        return step(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_step", stopping)
        assert run(elpv, tmp_path, "--epochs", 2) == 130
    assert train.main(["--resume", "--out", str(tmp_path), "--device", "cuda"]) == 0
    a, b = (read_checkpoint(p / "checkpoints" / "last.ckp")["model"] for p in (trained, tmp_path))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_the_gpu_predicts_as_the_cpu_does(trained, small):
    images = torch.from_numpy(small[1][:16].copy())
    p = []
    for device in ("cpu", "cuda"):
        model, _ = load_model(trained / "checkpoints" / "best.ckp", device)
        with torch.inference_mode():
            p.append(model.probabilities(model(images.to(device))).cpu())
    assert torch.allclose(*p, atol=1e-5)


def test_evaluate_gives_the_same_figures_again(trained, elpv, tmp_path):
    assert run(elpv, tmp_path, "--evaluate", trained / "checkpoints" / "best.ckp") == 0
    reports = trained / "checkpoints" / "report.json", tmp_path / "checkpoints" / "best_report.json"
    first, second = (json.loads(p.read_text())["at_threshold"] for p in reports)
    assert first == second


def test_predict_runs_there(trained, elpv, tmp_path):
    best = str(trained / "checkpoints" / "best.ckp")
    options = ["--model", best, "--csv", str(tmp_path / "out.csv"), "--device", "cuda"]
    assert predict.main([str(elpv.parent / "images"), *options]) == 0


def test_visualize_runs_there(trained, elpv, tmp_path):
    best = str(trained / "checkpoints" / "best.ckp")
    assert visualize_activations.main([best, "--data", str(elpv), "--out", str(tmp_path), "--device", "cuda"]) == 0
