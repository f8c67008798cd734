"""benchmarks/class_maps.py measures what it says."""

import json

import numpy as np
import pytest
import torch

from benchmarks import class_maps
from model import build_model
from visualize_activations import METHODS, probabilities


def test_the_top_pixels_are_the_top_five_percent():
    maps = np.random.default_rng(0).random((3, 40, 40))
    mask = class_maps.top_pixels(maps)
    assert mask.sum((1, 2)).tolist() == [80] * 3
    assert all(m[k].min() >= m[~k].max() for m, k in zip(maps, mask))


@pytest.mark.parametrize("name", ["crack", "inactive"])
def test_drawn_defects_lie_where_the_mask_says(small, name):
    image = np.array(small[1][0, 0])
    image[:] = 200
    rng = np.random.default_rng(0)
    for _ in range(20):
        drawn, mask = class_maps.draw_defect(image, name, rng)
        darker = image.astype(int) - drawn
        assert 0 < mask.mean() < 0.25 and darker[mask].mean() > 25 and darker.min() >= 0
        far = ~class_maps.dilation(mask, class_maps.disk(5))
        assert darker[far].max() <= 1


def test_the_command_measures_every_method_for_every_class(elpv, best, tmp_path, capsys):
    assert class_maps.main([str(best), "--data", str(elpv), "--part", "val", "--out", str(tmp_path)]) == 0
    lines = json.loads((tmp_path / "class_maps_val.json").read_text())
    assert {(line["class"], line["method"]) for line in lines} == {
        (c, m) for c in ("crack", "inactive") for m in METHODS
    }
    assert all(-1 <= line["fall"] <= 1 and line["cells"] >= 1 for line in lines)
    assert "Grad-CAM++ stage 3" in capsys.readouterr().out


def test_a_map_that_marks_what_decides_makes_the_probability_fall():
    """A network that calls an image cracked by the darkness of one corner: its map must mark that corner."""
    torch.manual_seed(0)
    model = build_model("resnet", width=16, image_size=64).eval()
    images = np.full((40, 64, 64), 180, np.uint8)
    images[::2, :16, :16] = 20
    labels = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).repeat(20, 1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    noisy = torch.from_numpy(images)[:, None].float() + 10 * torch.randn(40, 1, 64, 64)
    batch = noisy.clamp(0, 255).to(torch.uint8)
    model.train()
    for _ in range(25):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(model(batch), labels).backward()
        optimizer.step()
    model.eval()
    dark = batch[::2, 0].numpy()
    assert probabilities(model, dark)[:, 0].min() > 0.8
    fall, elsewhere = class_maps.deletion(model, dark, 0, "LayerCAM 1-3", np.full_like(dark, 180))
    assert fall > elsewhere + 0.1
