import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

import data
from benchmarks import adapt, foreign
from elcells.data.images import read_image
from elcells.evaluation.metrics import metrics_table
from elcells.inference.engine import Engine, Look
from elcells.inference.networks import SHIPPED, Network, open_network


@pytest.fixture(scope="module")
def table(elpv, tmp_path_factory):
    """A table of another site: real cells with series, modules, and outlines as counts of pixels."""
    cells = data.read_table(elpv)
    cells["filename"] = cells["path"].map(str)
    cells["series"] = np.where(cells["type"] == "mono", "M", "P")
    cells["crack_pixels"] = cells["crack"] * 100
    cells["cross_pixels"] = 0
    first = cells.index[cells["crack"] == 1][0]
    cells.loc[first, ["crack_pixels", "cross_pixels"]] = 0, 40
    path = tmp_path_factory.mktemp("site") / "site.csv"
    columns = ["filename", "crack", "inactive", "series", "module", "crack_pixels", "cross_pixels"]
    cells[columns].to_csv(path, sep=";", index=False)
    return path


def test_figures_are_those_of_each_series_and_kind(table, tmp_path, capsys):
    out = tmp_path / "figures.json"
    assert foreign.main([str(table), "--json", str(out), "--errors", str(tmp_path / "errors.png")]) == 0
    shown = capsys.readouterr().out
    [report] = json.loads(out.read_text(encoding="utf-8"))
    parts, cells = report["parts"], data.read_table(table)
    assert list(parts) == ["all", "M", "P", "crack lines", "crosses only"]
    assert parts["M"]["cells"] + parts["P"]["cells"] == parts["all"]["cells"] == len(cells)
    assert parts["crosses only"]["cells"] == 1 and parts["crack lines"]["cells"] == cells["crack"].sum() - 1
    assert (
        parts["all"]["mean_f1_interval_95"][0] <= parts["all"]["mean"]["f1"] <= parts["all"]["mean_f1_interval_95"][1]
    )
    assert f"{parts['all']['mean']['f1']:.3f}" in shown and "crosses only" in shown
    assert (tmp_path / "errors.png").stat().st_size > 5000


def test_networks_are_judged_in_all_eight_orientations(table, tmp_path, capsys):
    cells = data.pd.read_csv(table, sep=";").groupby(["crack", "inactive"]).head(4)
    cells.to_csv(tmp_path / "few.csv", sep=";", index=False)
    out = tmp_path / "figures.json"
    assert foreign.main([str(tmp_path / "few.csv"), "--orientations", "--json", str(out)]) == 0
    [report] = json.loads(out.read_text(encoding="utf-8"))
    turned = report["orientations"]["average_precision"]
    assert turned[0] == pytest.approx(report["parts"]["all"]["mean"]["average_precision"])
    assert len(turned) == 8 and max(turned) > min(turned)
    assert len(report["orientations"]["crosses"]) == 8
    assert f"AP {np.mean(turned):.3f} ({min(turned):.3f} to" in capsys.readouterr().out


def test_cells_near_a_threshold_are_judged_as_predict_judges_them(table, tmp_path, monkeypatch):
    monkeypatch.setattr("elcells.inference.engine.NEAR", (100, 100))  # all of them
    few, out = tmp_path / "few.csv", tmp_path / "figures.json"
    data.pd.read_csv(table, sep=";").groupby(["crack", "inactive"]).head(4).to_csv(few, sep=";", index=False)
    assert foreign.main([str(few), "--json", str(out)]) == 0
    [report] = json.loads(out.read_text(encoding="utf-8"))
    cells, engine = data.read_table(few), open_network(Network(str(SHIPPED)))
    images = np.stack([read_image(path) for path in cells["path"]])[:, None]
    labels, thresholds = cells[["crack", "inactive"]].to_numpy(), engine.thresholds()
    seen = engine.judged(images, thresholds)
    for found, probabilities in ((report["parts"]["all"]["mean"], seen), (report["one_look"], engine(images))):
        expected = metrics_table(labels, probabilities, thresholds, engine.classes)["mean"]["calibration_error"]
        assert found["calibration_error"] == pytest.approx(expected, abs=1e-4)
    assert abs(report["one_look"]["calibration_error"] - report["parts"]["all"]["mean"]["calibration_error"]) > 1e-3


def test_a_table_of_sound_cells_has_no_average_precision(table, tmp_path, capsys):
    cells = data.pd.read_csv(table, sep=";")
    cells[(cells["crack"] == 0) & (cells["inactive"] == 0)].head(3).to_csv(tmp_path / "few.csv", sep=";", index=False)
    out = tmp_path / "figures.json"
    assert foreign.main([str(tmp_path / "few.csv"), "--orientations", "--json", str(out)]) == 0
    assert "AP -" in capsys.readouterr().out
    assert json.loads(out.read_text(encoding="utf-8"))[0]["one_look"]["average_precision"] is None


def test_images_are_judged_at_the_side_of_their_cells_in_their_order():
    def look(images):
        sides = np.full(len(images), images.shape[-1])
        return Look(np.stack([images[:, 0, 0, 0], sides], 1), None, None)

    engine = Engine(look, ("level", "side"), 72, "test", {"f1": [0.5, 0.5]}, small_size=40, metadata={"tta": True})
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1).repeat(72, 2).repeat(72, 3)
    sizes = np.array([[300, 300], [40, 41], [30, 60], [60, 61], [25, 50]])
    once, judged = foreign.first_and_final(engine, images, sizes)
    assert once.tolist() == judged.tolist() == [[0, 72], [1, 40], [2, 72], [3, 72], [4, 40]]


def test_a_half_cell_is_looked_at_as_one_in_every_orientation(monkeypatch):
    """The gap between the halves lies across its mirrored image and is no dark region."""
    sideways = []

    def has_dark_region(image, size):
        height, width = size
        sideways.append(image[150, 10] > image[10, 150])  # the half cell is bright, what lies beside it dark
        assert (width > height) == sideways[-1]

    monkeypatch.setattr("elcells.inference.engine.has_dark_region", has_dark_region)

    def look(images):
        return Look(np.full((len(images), 2), 0.99), None, None)

    engine = Engine(look, ("crack", "inactive"), 300, "test", {"f1": [0.1, 0.1]}, metadata={"tta": True})
    images, table = np.full((2, 1, 300, 300), 90, np.uint8), data.pd.DataFrame({"crack": [0, 1], "inactive": [1, 0]})
    images[..., :75] = images[..., 225:] = 9
    foreign.in_orientations(engine, images, np.array([[300, 150]] * 2), table, np.full((2, 2, 2), 0.99))
    assert sum(sideways) == 8 and len(sideways) == 14


def test_the_figures_are_scikit_learns():
    rng = np.random.default_rng(0)
    labels, p = rng.integers(0, 2, (80, 2)), rng.random((80, 2))
    cells = data.pd.DataFrame({"cell": [str(i) for i in range(80)]})
    found = foreign.figures_by_part(cells, labels, p, np.array([0.5, 0.3]), ("crack", "inactive"))["all"]
    assert found["inactive"]["f1"] == pytest.approx(f1_score(labels[:, 1], p[:, 1] >= 0.3))
    assert found["crack"]["average_precision"] == pytest.approx(average_precision_score(labels[:, 0], p[:, 0]))


def test_cells_near_a_threshold_are_doubtful():
    labels, p = np.array([[1, 0], [1, 0], [0, 0], [0, 1]]), np.array([[0.45, 0.1], [0.1, 0.1], [0.1, 0.4], [0.1, 0.9]])
    # Half a logit below, on the wrong side; far on the wrong side; near on the right side; far on the right side.
    assert foreign.doubtful(labels, p, np.array([0.5, 0.5])) == {"unsure": 2, "wrong": 2, "both": 1}


def test_what_can_not_be_judged_is_one_sentence(table, tmp_path, capsys):
    assert foreign.main([str(tmp_path / "none.csv")]) == 2
    assert "none.csv" in capsys.readouterr().err
    (tmp_path / "gone.csv").write_text("filename;crack;inactive\ngone.png;0;1\n", encoding="utf-8")
    assert foreign.main([str(tmp_path / "gone.csv")]) == 2
    error = capsys.readouterr().err
    assert "gone.png: can't be read" in error and "correct the table's row" in error


def test_adapting_is_judged_on_cells_that_were_not_drawn(table, elpv, tmp_path, capsys, monkeypatch):
    def train_nothing(options):
        labelled = data.read_table(options[options.index("--data") + 2])
        seen.append(set(labelled["filename"]))
        (Path(options[options.index("--out") + 1]) / "checkpoints").mkdir(parents=True)
        return 0

    def judge(path, part):
        judged.append(set(part["filename"]))
        return {"f1": 0.5, "ap": 1}

    seen, judged = [], []
    monkeypatch.setattr(adapt.train, "main", train_nothing)
    monkeypatch.setattr(adapt, "judge_network", judge)
    given = [str(table), "--own", "M", "--cells", "0", "5", "--draws", "2", "--data", str(elpv)]
    assert adapt.main([*given, "--out", str(tmp_path / "a.csv")]) == 0
    assert len(judged) == 9 and [len(s) for s in seen] == [5, 5] and seen[0] != seen[1]
    own = set(data.read_table(table).query("series == 'M'")["filename"])
    for drawn, (rest, others, _) in zip(seen, (judged[3:6], judged[6:9])):
        assert len(drawn) == 5 and rest == own - {d for d in own if str(Path(d).resolve()) in drawn}
        assert not others & own
    assert adapt.main([*given, "--out", str(tmp_path / "a.csv")]) == 0 and len(judged) == 9  # none is run again
    assert adapt.main([str(table), "--own", "X", "--out", str(tmp_path / "b.csv")]) == 2
    assert "series X" in capsys.readouterr().err
