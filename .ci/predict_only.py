"""Predict, cut and label with what requirements-predict.txt installs: .ci/run runs it in an environment of its own."""

import importlib.util
import re
import tempfile
from pathlib import Path

from PIL import Image

import cut_module
import data
import predict
import report

ROOT = Path(__file__).resolve().parent.parent


def main():
    for package in ("torch", "sklearn"):
        assert importlib.util.find_spec(package) is None, f"{package} is installed"
    cells = sorted((ROOT / "images").glob("cell*.png"))[:16]
    assert len(cells) == 16, "images/ is empty; run data.py"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        module = Image.new("L", (4 * 310 + 60, 4 * 310 + 60))
        for place, cell in enumerate(cells):
            row, column = divmod(place, 4)
            module.paste(Image.open(cell).convert("L"), (35 + 310 * column, 35 + 310 * row))
        module.save(out / "module.png")
        network = ["--model", str(ROOT / "cells.onnx"), "--out", str(out / "results")]
        assert predict.main([*map(str, cells), *network]) == 0
        assert predict.main([str(out / "module.png"), "--grid", "4x4", *network]) in (0, 3)  # sure or not
        assert predict.main([*map(str, cells[:4]), "--workers", "2", *network[:2]]) == 0
        assert report.main([network[3], "--out", str(out / "copy")]) == 0
        assert report.main([network[3], "--before", str(out / "copy"), "--single-file"]) == 0
        assert cut_module.main([str(out / "module.png"), "--grid", "4x4", "--out", str(out / "cut")]) in (0, 3)
        judged = data.read_table(out / "results" / "cells.csv")
        assert len(judged) == 32 and judged["crack_length"].max() > 0.5
        table = str(out / "results" / "cells.csv")
        assert data.main(["--agree", table, table]) == 0
        section = (ROOT / "README.md").read_text(encoding="utf-8").split("## From Python\n")[1].split("\n## ")[0]
        lines = re.findall(r"^    (.*)$", section, re.MULTILINE)
        code = "\n".join(lines).replace('"images/"', repr(str(out / "module.png")))
        exec(code.replace('"results"', repr(str(out / "results"))))


if __name__ == "__main__":  # the processes of --workers import this file
    main()
