"""The library under the scripts: modules of one subject each, which import none of the scripts.

>>> from elcells import Cells, open_results
>>> calls = Cells("cells.onnx")(images)  # uint8 (N, H, W), paths, or a folder -> DataFrame
>>> results = open_results("results")    # .cells, .modules, .images, .runs are DataFrames
"""

import importlib

__version__ = "1.0"

PUBLIC = {"Cells": "elcells.inference.calls", "open_results": "elcells.records.results"}


def __getattr__(name):
    """A public name, whose module is imported when it is first asked for, so that other imports stay light."""
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(PUBLIC[name]), name)


def __dir__():
    return [*globals(), *PUBLIC]
