"""An ONNX file as a function from images to probabilities, for programs that may run without PyTorch.

>>> engine = open_model("onnx/best.onnx")
>>> probabilities = engine(images)  # uint8 (N, 1, S, S) -> float32 (N, C)
"""

import importlib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from elcells.evaluation.calibration import choose_thresholds
from elcells.files import InputError, reason
from elcells.inference.class_maps import last_features, weighted

# onnxruntime, openvino and onnx are imported by the functions that use them.

ENGINES = ("auto", "onnxruntime", "openvino")
PRECISIONS = ("float32", "auto")
NEEDED_METADATA = {"classes", "operating_points", "image_size", "mean", "std", "input"}


@dataclass(frozen=True)
class Engine:
    """A network as a function: takes uint8 gray images (N, 1, S, S), returns float32 probabilities (N, C).

    run: the same for a batch. classes: names, in the order of the probabilities. image_size: S in pixels. name: what
    runs the network. operating_points: {name: one threshold a class}. run_with_maps: the same as run, but returns
    probabilities and class maps (B, C, h, w); None where there are none. batch_size: images that the network gets at a
    time. metadata: what the file says about the network and its training.
    """

    run: Callable
    classes: tuple
    image_size: int
    name: str
    operating_points: dict
    run_with_maps: Callable | None = None
    batch_size: int = 16
    metadata: dict = field(default_factory=dict)

    def __call__(self, images):
        return np.concatenate([self.run(np.ascontiguousarray(batch)) for batch in in_batches(images, self.batch_size)])

    def with_maps(self, images):
        """Yield the probabilities (C,) and the class map (C, h, w), or None, of each image."""
        for batch in in_batches(images, self.batch_size):
            if self.run_with_maps:
                yield from zip(*self.run_with_maps(np.ascontiguousarray(batch)))
            else:
                yield from ((probabilities, None) for probabilities in self.run(np.ascontiguousarray(batch)))

    def thresholds(self, point="f1"):
        """Probabilities, float32 (C,), from which a cell counts as positive; InputError for an unknown point."""
        return np.asarray(choose_thresholds(self.operating_points, point), np.float32)


def is_onnx(path):
    """Whether a file is called like an ONNX file; any other network is a checkpoint."""
    return Path(path).suffix.lower() == ".onnx"


def in_batches(images, size):
    """Images (N, ...) as a list of arrays of `size` images, the last of which may have fewer."""
    return [images[start : start + size] for start in range(0, len(images), size)]


def needed(package):
    """Import and return a package; InputError where it is not installed."""
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
    except Exception as error:  # protobuf's own exceptions
        raise InputError(f"{path}: damaged or no ONNX file ({reason(error)})") from None
    if any(uses_external_data(t) for t in proto.graph.initializer):
        raise InputError(f"{path}: refers to data outside the file, which is refused; export it in one file")
    foreign = InputError(f"{path}: not a file of `python export_onnx.py` (its inputs or metadata are different)")
    try:
        metadata = {p.key: json.loads(p.value) for p in proto.metadata_props}
        [images] = proto.graph.input
        channels = images.type.tensor_type.shape.dim[1].dim_value
    except (ValueError, IndexError):
        raise foreign from None
    if images.name != "input" or not NEEDED_METADATA <= metadata.keys():
        raise foreign
    if channels != (1 if metadata["input"] == "uint8" else 3):
        raise foreign
    return proto, metadata


def _run_onnxruntime(model, outputs, threads, device, precision):
    """(run, name) of a model (path or bytes) in ONNX Runtime, on its CUDA provider where that is installed and `device`
    allows it; run(images) gives a list of the outputs of these names."""
    onnxruntime = needed("onnxruntime")
    if precision != "float32":
        raise InputError(f"--engine-precision {precision}: is for --engine openvino")
    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if device == "cuda" and not has_cuda:
        raise InputError("--device cuda: needs ONNX Runtime's CUDA provider; `pip install onnxruntime-gpu`")
    providers = ["CPUExecutionProvider"]
    if has_cuda and device != "cpu":
        providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": 0}))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:  # onnxruntime's own exceptions
        raise InputError(f"ONNX Runtime can't load it ({reason(error)})") from None
    on_cuda = session.get_providers()[0].startswith("CUDA")
    name = "onnxruntime on CUDA" if on_cuda else "onnxruntime"
    return lambda images: session.run(outputs, {"input": images}), name


def _run_openvino(model, outputs, threads, device, precision):
    """(run, name) of a model (path or bytes) in OpenVINO; run(images) gives a list of the outputs of these names."""
    openvino = needed("openvino")
    if device == "cuda":
        raise InputError("--device cuda: OpenVINO has none; give --engine onnxruntime for that")
    # with two streams OpenVINO 2026.4 computed nonsense in 13 of 32 starts
    config = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    if precision == "float32":  # else it takes bfloat16 where the processor has it
        config["INFERENCE_PRECISION_HINT"] = "f32"
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    try:
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(model), "CPU", config)
    except Exception as error:  # openvino's own exceptions
        raise InputError(f"OpenVINO can't load it ({reason(error)})") from None
    request = compiled.create_infer_request()

    def run(images):
        results = request.infer({"input": images})
        return [results[name].copy() for name in outputs]

    return run, "openvino"


def open_model(path, engine="auto", threads=0, device="auto", precision="float32", maps=False):
    """Open an ONNX file as an Engine.

    engine: "onnxruntime", "openvino", or "auto" (OpenVINO where it is installed, except for CUDA).
    threads: of the arithmetic, 0 for all cores.
    device: "cpu", "cuda", or "auto" (CUDA where ONNX Runtime has it).
    precision: of OpenVINO's arithmetic, "float32", or "auto": bfloat16 where the processor is fast in it.
    maps: whether it makes class maps too, where the file's last layer allows it.
    """
    proto, metadata = read_onnx(path)
    if engine == "auto":
        has_openvino = importlib.util.find_spec("openvino") is not None
        engine = "openvino" if has_openvino and device != "cuda" else "onnxruntime"
    opener = _run_openvino if engine == "openvino" else _run_onnxruntime
    features, weight = (last_features(proto, metadata) if maps else None) or (None, None)
    model, outputs = str(path), ["output"]
    if features:
        proto.graph.output.add().name = features
        model, outputs = proto.SerializeToString(), ["output", features]
    try:
        run_all, name = opener(model, outputs, threads, device, precision)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None

    def run(images):
        return run_all(images)[0]

    def run_with_maps(images):
        probabilities, values = run_all(images)
        return probabilities, weighted(values[: len(images)], weight)  # of eight symmetries the first is the image

    if metadata["input"] != "uint8":  # three normalised channels
        mean, std = np.float32(metadata["mean"]), np.float32(metadata["std"])

        def run(images):
            return run_all(np.repeat((images.astype(np.float32) / 255 - mean) / std, 3, axis=1))[0]

    return Engine(
        run,
        tuple(metadata["classes"]),
        metadata["image_size"],
        name,
        metadata["operating_points"],
        run_with_maps if features else None,
        metadata=metadata,
    )
