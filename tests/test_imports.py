"""Imports run down only: scripts, trainer, model and data, the library."""

import ast

import pytest
from conftest import ROOT

BELOW = {  # what may be imported of the project, from the lowest on
    "data": {"elcells"},
    "model": {"elcells"},
    "trainer": {"elcells", "model"},
    "train": {"elcells", "data", "model", "trainer"},
    "predict": {"elcells", "model"},
    "cut_module": {"elcells"},
    "export_onnx": {"elcells", "data", "model"},
    "visualize_activations": {"elcells", "data", "model"},
}


def imported(path):
    """Modules that a file imports, also inside its functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found


@pytest.mark.parametrize("name", sorted(BELOW))
def test_a_file_on_top_imports_only_what_is_below(name):
    ours = {m.split(".")[0] for m in imported(ROOT / f"{name}.py")} & (BELOW.keys() | {"elcells"})
    assert ours <= BELOW[name]


def test_the_library_imports_no_script_and_nothing_in_a_circle():
    files = {f"elcells.{p.stem}": p for p in (ROOT / "elcells").glob("*.py")}
    needs = {name: imported(path) for name, path in files.items()}
    assert not set().union(*needs.values()) & BELOW.keys()
    left = {name: modules & files.keys() for name, modules in needs.items()}
    while left:
        free = {name for name, modules in left.items() if not modules & left.keys()}
        assert free, f"a circle among {sorted(left)}"
        left = {name: modules for name, modules in left.items() if name not in free}
