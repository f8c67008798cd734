"""Imports run down only: scripts, trainer, model and data, the library; and within the library folder by folder."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

BELOW = {  # what may be imported of the project, from the lowest on
    "data": {"elcells"},
    "model": {"elcells"},
    "trainer": {"elcells", "model"},
    "train": {"elcells", "data", "model", "trainer"},
    "predict": {"elcells", "model"},
    "report": {"elcells"},
    "cut_module": {"elcells"},
    "export_onnx": {"elcells", "data", "model"},
    "visualize_activations": {"elcells", "data", "model"},
}
# of the library, from the lowest on
FOLDERS = ("data", "evaluation", "inference", "training", "modules", "records", "pages")


def imported(path):
    """Modules that a file imports, also inside its functions."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module)
    return modules


def files_of_the_library():
    """{dotted name: path} of every file of the library."""
    paths = (ROOT / "elcells").rglob("*.py")
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}


@pytest.mark.parametrize("name", sorted(BELOW))
def test_a_file_on_top_imports_only_what_is_below(name):
    ours = {m.split(".")[0] for m in imported(ROOT / f"{name}.py")} & (BELOW.keys() | {"elcells"})
    assert ours <= BELOW[name]


def test_the_library_imports_no_script_and_nothing_in_a_circle():
    files = files_of_the_library()
    needs = {name: imported(path) for name, path in files.items()}
    assert not set().union(*needs.values()) & BELOW.keys()
    left = {name: modules & files.keys() for name, modules in needs.items()}
    while left:
        free = {name for name, modules in left.items() if not modules & left.keys()}
        assert free, f"a circle among {sorted(left)}"
        left = {name: modules for name, modules in left.items() if name not in free}


def test_a_folder_of_the_library_imports_only_folders_below_it():
    for name, path in files_of_the_library().items():
        _, *parts = name.split(".")
        own = FOLDERS.index(parts[0]) if parts and parts[0] in FOLDERS else -1
        for module in imported(path):
            top, *inner = (module or "").split(".")
            if top == "elcells" and inner and inner[0] in FOLDERS:
                assert FOLDERS.index(inner[0]) <= own, f"{name} imports {module}"


def test_programs_that_need_neither_torch_nor_scikit_learn_load_neither(elpv, tmp_path):
    image, out = sorted((elpv.parent / "images").glob("*.png"))[0], tmp_path / "out"
    code = f"""
import sys
import data, cut_module, predict, report
cut_module.main([{str(image)!r}, "--grid", "2x2", "--out", {str(out / "cut")!r}])
predict.main([{str(image)!r}, "--model", "cells.onnx", "--device", "cpu", "--out", {str(out / "p")!r}])
report.main([{str(out / "p")!r}])
loaded = {{"torch", "torchvision", "sklearn", "dask", "distributed"}} & set(sys.modules)
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert (out / "p" / "cells.csv").exists() and (out / "cut_modules" / "modules.csv").exists()
