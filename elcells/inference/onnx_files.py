"""An ONNX file as an Engine, for programs that may run without PyTorch.

>>> engine = open_model("onnx/best.onnx")
>>> probabilities = engine(images)  # uint8 (N, 1, S, S) -> float32 (N, C), one look at each image
>>> probabilities = engine.judged(images, engine.thresholds())  # as predict.py judges cells that are not small
"""

import functools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from elcells.files import InputError, needed, reason
from elcells.inference.class_maps import last_features, weighted
from elcells.inference.engine import Engine, Look, in_batches
from elcells.inference.small import for_side, lowered, small_side

# onnxruntime and onnx are imported by the functions that use them.

NEEDED_METADATA = {"classes", "operating_points", "image_size", "mean", "std", "input"}


def is_onnx(path):
    """Whether a file is called like an ONNX file; any other network is a checkpoint."""
    return Path(path).suffix.lower() == ".onnx"


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
    except PermissionError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None
    except Exception as error:  # protobuf's own exceptions
        raise InputError(f"{path}: damaged or no ONNX file ({reason(error)}); export it again") from None
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


def _in_onnxruntime(model, device):
    """(run, whether it is on CUDA) of a model (bytes) in ONNX Runtime, on its CUDA provider where that is installed and
    `device` allows it; run(names, {input: array}) gives a list of the outputs of these names."""
    onnxruntime = needed("onnxruntime")
    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if device == "cuda" and not has_cuda:
        raise InputError("--device cuda: needs ONNX Runtime's CUDA provider; `pip install onnxruntime-gpu`")
    providers = ["CPUExecutionProvider"]
    if has_cuda and device != "cpu":
        providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": 0}))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # see open_model
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:  # onnxruntime's own exceptions
        raise InputError(f"ONNX Runtime can't load it ({reason(error)})") from None
    return session.run, session.get_providers()[0].startswith("CUDA")


def open_model(path, threads=0, device="auto", maps=False, whole_batches=False):
    """Open an ONNX file as an Engine.

    threads: on the CPU, 0 for all cores. Each works on an image of its own: so no result depends on the batch, and it
        takes less CPU time than all threads at one batch, which wait for each other busily.
    device: "cpu", "cuda", or "auto" (CUDA where ONNX Runtime has it).
    maps: whether it makes class maps too, where the file's last layer allows it.
    whole_batches: whether the file gets whole batches on the CPU, too, as other programs run it.
    """
    proto, metadata = read_onnx(path)
    from elcells.inference.line_decoder import LINES, apart

    features, weight = (last_features(proto, metadata) if maps else None) or (None, None)
    has_lines = any(output.name == LINES for output in proto.graph.output)
    network, decoder, decoder_inputs = apart(proto) if has_lines else (proto, None, [])
    small_size = None if metadata.get("tta") else small_side(metadata["image_size"])  # turning in the file has one size
    for_maps = [features] if features else []
    if features:
        network.graph.output.add().name = features
    try:
        run_full_size, on_cuda = _in_onnxruntime(network.SerializeToString(), device)
        runs = {metadata["image_size"]: run_full_size}
        if small_size:
            of_small_size = for_side(network, small_size)
            runs[small_size], _ = _in_onnxruntime(of_small_size.SerializeToString(), device)
        if has_lines:
            run_decoder, _ = _in_onnxruntime(decoder.SerializeToString(), device)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None

    def look_at_once(images):
        side = images.shape[-1]
        if side not in runs:
            raise InputError(f"{path}: takes images of {' or '.join(map(str, runs))} pixels a side, not {side}")
        given = images
        if metadata["input"] != "uint8":
            mean, std = np.float32(metadata["mean"]), np.float32(metadata["std"])
            given = np.repeat((images.astype(np.float32) / 255 - mean) / std, 3, axis=1)
        can_be_followed = has_lines and side == metadata["image_size"]  # the lines in these images
        for_lines = decoder_inputs if can_be_followed else []
        probabilities, *values = runs[side](["output", *for_lines, *for_maps], {"input": given})
        # Of eight symmetries the first is the image
        class_maps = weighted(values.pop()[: len(images)], weight) if features else None

        def follow_lines(number):
            # One image at a time, as a result may depend on the size of its batch in the last digit
            of_image = {name: value[number : number + 1] for name, value in zip(for_lines, values)}
            [[[lines]]] = run_decoder([LINES], of_image)
            return lines

        probabilities = lowered(probabilities, images, small_size)
        return Look(probabilities, class_maps, follow_lines if can_be_followed else None)

    def look_in_threads(images):
        return joined(list(map_in_threads(look_at_once, in_batches(images, 1), threads or cores())))

    batch_matters = on_cuda or whole_batches
    return Engine(
        look_at_once if batch_matters else look_in_threads,
        tuple(metadata["classes"]),
        metadata["image_size"],
        "onnxruntime on CUDA" if on_cuda else "onnxruntime",
        metadata["operating_points"],
        has_lines=has_lines,
        small_size=small_size,
        batch_matters=batch_matters,
        metadata=metadata,
    )


def joined(looks):
    """The Looks at single images as one Look at their batch."""
    probabilities = np.concatenate([look.probabilities for look in looks])
    has_maps = looks[0].maps is not None
    maps = np.concatenate([look.maps for look in looks]) if has_maps else None
    can_be_followed = looks[0].follow_lines is not None
    follow_lines = (lambda number: looks[number].follow_lines(0)) if can_be_followed else None
    return Look(probabilities, maps, follow_lines)


def map_in_threads(function, items, threads):
    """Results of a function for items, in order."""
    return map(function, items) if threads == 1 else pool_of(os.getpid(), threads).map(function, items)


@functools.cache
def pool_of(process, threads):
    """So many threads of a process; a fork of it has none of them and needs its own."""
    return ThreadPoolExecutor(threads)


def cores():
    """How many of the machine's cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
