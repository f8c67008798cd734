"""An ONNX file as a function from images to probabilities, for programs that may run without PyTorch.

>>> engine = open_model("onnx/best.onnx")
>>> probabilities = engine(images)  # uint8 (B, 1, S, S) -> float32 (B, C)
"""

import importlib
import importlib.util
import json
from pathlib import Path

import numpy as np

from elcells.files import InputError, reason

# onnxruntime, openvino and onnx are imported by the engine that uses them.

ENGINES = ("auto", "onnxruntime", "openvino")
PRECISIONS = ("float32", "auto")


class Engine:
    """Called with uint8 gray images (B, 1, S, S), returns float32 probabilities (B, C).

    classes: tuple of str. thresholds: float32 (C,), probabilities from which a cell counts as positive.
    operating_points: dict of other such thresholds. image_size: S in pixels. name: what runs it. class_maps: function
    from such images to class maps (B, C, h, w), or None.
    """

    def __init__(self, run, classes, thresholds, image_size, name, operating_points, class_maps=None):
        self._run, self.classes, self.image_size, self.name = run, tuple(classes), int(image_size), name
        self.thresholds, self.operating_points = np.asarray(thresholds, np.float32), operating_points
        self.class_maps = class_maps

    def set_operating_point(self, name):
        """Take the thresholds of an operating point; raises InputError, listing them, where there is none such."""
        if name not in self.operating_points:
            raise InputError(f"no operating point {name!r}, the model has {', '.join(self.operating_points)}")
        self.thresholds = np.asarray(self.operating_points[name], np.float32)

    def __call__(self, images):
        return self._run(images)


def needed(package):
    """A package that is only needed here, imported; InputError where it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise InputError(f"the package {package} is not installed; `pip install {package}`") from None


def read_onnx(path):
    """Read and check an ONNX file of `export_onnx.py`; returns (onnx.ModelProto, its metadata as a dict).

    Raises InputError for a file that is missing, damaged, not of this project, or keeps data outside itself.
    """
    onnx = needed("onnx")
    from onnx.external_data_helper import uses_external_data

    if not Path(path).is_file():
        raise InputError(f"{path}: no such model; make one with `python export_onnx.py`")
    try:
        proto = onnx.load(path, load_external_data=False)
        metadata = {p.key: p.value for p in proto.metadata_props}
    except Exception as error:  # protobuf's own exceptions
        raise InputError(f"{path}: damaged or no ONNX file ({reason(error)})") from None
    if any(uses_external_data(t) for t in proto.graph.initializer):
        raise InputError(f"{path}: refers to data outside the file, which is refused; export it in one file")
    try:
        metadata = {k: json.loads(metadata[k]) for k in metadata}
        inputs = [i for i in proto.graph.input if i.name == "input"]
        channels = inputs[0].type.tensor_type.shape.dim[1].dim_value
        complete = {"classes", "thresholds", "image_size", "mean", "std", "input"} <= metadata.keys()
    except (ValueError, IndexError):
        complete = False
    if not complete or len(proto.graph.input) != 1 or channels != (1 if metadata["input"] == "uint8" else 3):
        raise InputError(f"{path}: not a file of `python export_onnx.py` (inputs or metadata are others)")
    return proto, metadata


def _run_onnxruntime(path, threads, device, precision):
    """A file in ONNX Runtime, on its CUDA provider where that is installed and `device` allows it; (function, name)."""
    onnxruntime = needed("onnxruntime")
    if precision != "float32":
        raise InputError(f"{path}: ONNX Runtime computes in the file's own precision; {precision} is for openvino")
    cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if device == "cuda" and not cuda:
        raise InputError(f"{path}: device cuda needs ONNX Runtime's CUDA provider; `pip install onnxruntime-gpu`")
    fast = [("CUDAExecutionProvider", {"use_tf32": 0})] * (cuda and device != "cpu")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[*fast, "CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions
        raise InputError(f"{path}: ONNX Runtime can't load it ({reason(error)})") from None
    name = "onnxruntime on CUDA" if session.get_providers()[0].startswith("CUDA") else "onnxruntime"
    return lambda images: session.run(["output"], {"input": images})[0], name


def _run_openvino(path, threads, device, precision):
    import openvino

    if device == "cuda":
        raise InputError(f"{path}: OpenVINO has no device cuda; take onnxruntime for that")

    # with two streams OpenVINO 2026.4 computed nonsense in 13 of 32 starts
    config = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    if precision == "float32":  # else it takes bfloat16 where the processor has it
        config["INFERENCE_PRECISION_HINT"] = "f32"
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    try:
        compiled = openvino.Core().compile_model(str(path), "CPU", config)
    except Exception as error:  # openvino's own exceptions
        raise InputError(f"{path}: OpenVINO can't load it ({reason(error)})") from None
    request = compiled.create_infer_request()
    return lambda images: request.infer({"input": images})["output"].copy(), "openvino"


def open_model(path, engine="auto", threads=0, device="auto", precision="float32"):
    """Open an ONNX file as an Engine.

    engine: "onnxruntime", "openvino", or "auto" (OpenVINO where it is installed, for a CPU).
    threads: of the arithmetic, 0 for all cores.
    device: "cpu", "cuda", or "auto" (CUDA where ONNX Runtime has it).
    precision: of OpenVINO's arithmetic, "float32", or "auto": bfloat16 where the processor is fast in it.
    """
    _, about = read_onnx(path)
    there = importlib.util.find_spec("openvino") is not None
    if engine == "openvino" and not there:
        raise InputError("engine openvino is not installed; `pip install openvino`")
    engine = ("openvino" if there and device != "cuda" else "onnxruntime") if engine == "auto" else engine
    run, name = {"onnxruntime": _run_onnxruntime, "openvino": _run_openvino}[engine](path, threads, device, precision)
    if about["input"] == "uint8":
        call = run
    else:
        mean, std = np.float32(about["mean"]), np.float32(about["std"])

        def call(images):
            return run(np.repeat((images.astype(np.float32) / 255 - mean) / std, 3, axis=1))

    points = about.get("operating_points", {"f1": about["thresholds"]})
    return Engine(call, about["classes"], about["thresholds"], about["image_size"], name, points)
