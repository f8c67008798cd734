"""An ONNX file as a function from images to probabilities, for programs that may run without PyTorch.

>>> engine = open_model("onnx/best.onnx")
>>> probabilities = engine(images)  # uint8 (N, 1, S, S) -> float32 (N, C), one look at each image
>>> probabilities = engine.judged(images, engine.thresholds())  # as predict.py judges cells that are not small
"""

import importlib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from elcells.evaluation.calibration import choose_thresholds
from elcells.files import InputError, reason
from elcells.inference.class_maps import last_features, weighted
from elcells.inference.doubt import NEAR, doubt, logits_of, mean_of_turns, other_turns, turned_back
from elcells.inference.severity import has_dark_region
from elcells.inference.small import FEW, for_side, lowered, small_side, square_side

# onnxruntime, openvino and onnx are imported by the functions that use them.

ENGINES = ("auto", "onnxruntime", "openvino")
PRECISIONS = ("float32", "auto")
LOWER_IF_NOT_DARK = 2.0  # logits by which an inactive region is less probable where nothing is dark
UNLIKELY = 0.02  # probability up to which it is not lowered
NEEDED_METADATA = {"classes", "operating_points", "image_size", "mean", "std", "input"}


class Look(NamedTuple):
    """What a network sees in a batch: probabilities (B, C), class maps (B, C, h, w) or None, and a function from an
    image's number to the probabilities (h, w) that a crack's line runs there, or None."""

    probabilities: np.ndarray
    maps: np.ndarray | None
    lines: Callable | None


class Seen(NamedTuple):
    """The same of one image: probabilities (C,), a class map (C, h, w) or None, crack lines (h, w) or None."""

    probabilities: np.ndarray
    map: np.ndarray | None
    lines: np.ndarray | None


@dataclass(frozen=True)
class Engine:
    """A network as a function: takes uint8 gray images (N, 1, S, S), returns float32 probabilities (N, C).

    Called, it looks at each image once, as any program does that runs the file. `look_at` and `judged` look at images
    near a threshold in all four turns and lower the probability of an inactive region where nothing is dark, as
    predict.py does. Give small cells (`side_for`) as images of `small_size` pixels (`small.with_side`); they get no
    crack lines.

    run: the same for a batch. classes: names, in the order of the probabilities. image_size: S in pixels. name: what
    runs the network. operating_points: {name: one threshold a class}. look: function of a batch that gives a Look.
    batch_size: images that the network gets at a time. has_lines: whether the network tells where cracks run.
    small_size: S for small cells, or None where they are shown as all others.
    metadata: what the file says about the network and its training.
    """

    run: Callable
    classes: tuple
    image_size: int
    name: str
    operating_points: dict
    look: Callable
    batch_size: int = 16
    has_lines: bool = False
    small_size: int | None = None
    metadata: dict = field(default_factory=dict)

    def __call__(self, images):
        return np.concatenate([self.run(np.ascontiguousarray(batch)) for batch in in_batches(images, self.batch_size)])

    def look_at(self, images, thresholds, sizes=None):
        """Yield what is Seen in each image; crack lines only where the probability of a crack reaches its threshold.

        An image with a probability near a threshold is looked at in all four turns (`seen_in_turns`), and the
        probability of an inactive region is `lowered_if_not_dark`. sizes: (height, width) of each cell in its image,
        before it was made square and of S pixels; None where all were as they are.
        """
        sizes = repeat(images.shape[-2:]) if sizes is None else iter(sizes)
        for batch in in_batches(images, self.batch_size):
            look = self.look(np.ascontiguousarray(batch))
            for number, (probabilities, size) in enumerate(zip(look.probabilities, sizes)):
                image = batch[number]
                final = self.lowered_if_not_dark(image, probabilities, size)
                if self.is_near([probabilities, final], thresholds):
                    seen = self.seen_in_turns(image, look, number, thresholds)
                    final = self.lowered_if_not_dark(image, seen.probabilities, size)
                    yield seen._replace(probabilities=final)
                else:
                    class_map = None if look.maps is None else look.maps[number]
                    lines = look.lines(number) if look.lines and self.has_crack(probabilities, thresholds) else None
                    yield Seen(final, class_map, lines)

    def judged(self, images, thresholds):
        """Probabilities (N, C) of images as `look_at` gives them, without maps and lines."""
        return self.judged_again(images, self(images), thresholds)

    def judged_again(self, images, upright, thresholds):
        """The same where the probabilities `upright` (N, C) of one look at each are known already."""
        judged = []
        for image, probabilities in zip(images, upright):
            size = image.shape[-2:]
            final = self.lowered_if_not_dark(image, probabilities, size)
            if self.is_near([probabilities, final], thresholds):
                mean = mean_of_turns([probabilities, *self.run(other_turns(image))])
                final = self.lowered_if_not_dark(image, mean, size)
            judged.append(final)
        return np.stack(judged)

    def lowered_if_not_dark(self, image, probabilities, size):
        """An image's probabilities (C,), that of an inactive region LOWER_IF_NOT_DARK logits lower where no part of the
        image (1, S, S) is much darker than the rest. Small cells stay as they are: they are too blurred to tell.

        size: of the cell in its image, as in `look_at`.
        """
        is_small = image.shape[-1] != self.image_size or square_side(size) < min(FEW, self.image_size)
        probabilities = probabilities.copy()
        if "inactive" in self.classes and not is_small:
            inactive = self.classes.index("inactive")
            probability = probabilities[inactive]
            if probability > UNLIKELY and not has_dark_region(image[0], size):
                probabilities[inactive] = max(expit(logits_of(probability) - LOWER_IF_NOT_DARK), UNLIKELY)
        return probabilities

    def side_for(self, pixels):
        """S for a cell whose square has so many pixels a side in its image (`small.square_side`)."""
        return self.small_size if self.small_size and pixels < FEW else self.image_size

    def is_near(self, probabilities, thresholds):
        """Whether one of an image's probabilities, rows of (n, C), is near its threshold; a file that looks at all
        eight symmetries by itself has none to look at."""
        return not self.metadata.get("tta") and doubt(probabilities, thresholds).min() < NEAR

    def has_crack(self, probabilities, thresholds):
        """Whether an image with these probabilities (C,) is to get crack lines."""
        if not self.has_lines:
            return False
        crack = self.classes.index("crack")
        return probabilities[crack] >= thresholds[crack]

    def seen_in_turns(self, image, upright, number, thresholds):
        """What is Seen in an image (1, S, S) by the mean of its four turns; upright: the Look of its batch.

        Logits and class maps are means. Crack lines are those of the turn in which a crack is most probable.
        """
        others = self.look(other_turns(image))
        probabilities = np.stack([upright.probabilities[number], *others.probabilities])
        mean = mean_of_turns(probabilities)
        class_map = lines = None
        if upright.maps is not None:
            back = [turned_back(class_map, quarters) for quarters, class_map in enumerate(others.maps, 1)]
            class_map = np.mean([upright.maps[number], *back], axis=0)
        if upright.lines and self.has_crack(mean, thresholds):
            quarters = int(probabilities[:, self.classes.index("crack")].argmax())
            lines = turned_back(others.lines(quarters - 1), quarters) if quarters else upright.lines(number)
        return Seen(mean, class_map, lines)

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


def _run_onnxruntime(model, threads, device, precision):
    """(run, name) of a model (bytes) in ONNX Runtime, on its CUDA provider where that is installed and `device` allows
    it; run(names, {input: array}) gives a list of the outputs of these names."""
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
    return session.run, name


def _run_openvino(model, threads, device, precision):
    """(run, name) of a model (bytes) in OpenVINO, as for ONNX Runtime."""
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

    def run(outputs, inputs):
        results = request.infer(inputs)
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
    from elcells.inference.line_decoder import LINES, apart

    if engine == "auto":
        has_openvino = importlib.util.find_spec("openvino") is not None
        engine = "openvino" if has_openvino and device != "cuda" else "onnxruntime"
    opener = _run_openvino if engine == "openvino" else _run_onnxruntime
    features, weight = (last_features(proto, metadata) if maps else None) or (None, None)
    has_lines = any(output.name == LINES for output in proto.graph.output)
    network, decoder, decoder_inputs = apart(proto) if has_lines else (proto, None, [])
    small_size = None if metadata.get("tta") else small_side(metadata["image_size"])  # turning in the file has one size
    for_maps = [features] if features else []
    if features:
        network.graph.output.add().name = features
    try:
        run_full_size, name = opener(network.SerializeToString(), threads, device, precision)
        runs = {metadata["image_size"]: run_full_size}
        if small_size:
            of_small_size = for_side(network, small_size)
            runs[small_size], _ = opener(of_small_size.SerializeToString(), threads, device, precision)
        if has_lines:
            run_decoder, _ = opener(decoder.SerializeToString(), threads, device, precision)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None

    def run_network(images, more=()):  # the probabilities, then what more is asked for by name
        side = images.shape[-1]
        if side not in runs:
            raise InputError(f"{path}: takes images of {' or '.join(map(str, runs))} pixels a side, not {side}")
        given = images
        if metadata["input"] != "uint8":
            mean, std = np.float32(metadata["mean"]), np.float32(metadata["std"])
            given = np.repeat((images.astype(np.float32) / 255 - mean) / std, 3, axis=1)
        probabilities, *others = runs[side](["output", *more], {"input": given})
        return [lowered(probabilities, images, small_size), *others]

    def look(images):
        can_be_followed = has_lines and images.shape[-1] == metadata["image_size"]  # the lines in these images
        for_lines = decoder_inputs if can_be_followed else []
        probabilities, *values = run_network(images, [*for_lines, *for_maps])
        # Of eight symmetries the first is the image
        class_maps = weighted(values.pop()[: len(images)], weight) if features else None

        def lines(number):  # one image at a time, as a result may depend on the size of its batch in the last digit
            of_image = {name: value[number : number + 1] for name, value in zip(for_lines, values)}
            [[[seen]]] = run_decoder([LINES], of_image)
            return seen

        return Look(probabilities, class_maps, lines if can_be_followed else None)

    return Engine(
        lambda images: run_network(images)[0],
        tuple(metadata["classes"]),
        metadata["image_size"],
        name,
        metadata["operating_points"],
        look,
        has_lines=has_lines,
        small_size=small_size,
        metadata=metadata,
    )
