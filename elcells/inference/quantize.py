"""Smaller ONNX files: int8 arithmetic, or int8 weights alone."""

import contextlib
import io
import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from elcells.devices import cpu_has
from elcells.inference.engine import in_batches
from elcells.inference.line_decoder import decoder_nodes, reached

BATCH = 8  # calibration images at once
MIN_WEIGHTS = 16384  # convolutions with fewer keep their weights in float


def quantise(source, target, calibration):
    """Static int8 quantisation (ONNX Runtime: QDQ, weights per channel, activations uint8) of a float ONNX file.

    The range of an activation leaves out 0.001 % of its values, and the last layer stays in float: of all settings
    tried, these change the probabilities least (doc/results.md). The decoder of crack lines stays in float too.

    A processor without VNNI adds products of 8 bits in 16, which overflow: there, weights get 7 bits. Such a file is
    right on any processor, but changes the probabilities more.

    calibration: training cells from which the ranges of the activations are measured, as the file takes them.
    Returns what the file's metadata should say of it, a dict.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            count = len(calibration) // BATCH * BATCH or len(calibration)  # histograms need batches of one size
            self.batches = iter(in_batches(calibration[:count], BATCH))

        def get_next(self):
            batch = next(self.batches, None)
            return None if batch is None else {"input": batch}

    has_vnni = cpu_has("avx512_vnni", "avx_vnni")
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):  # it prints
            prepared = Path(folder) / "prepared.onnx"
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            proto = onnx.load(prepared)
            decoder = decoder_nodes(proto, reached(proto.graph.node, {"input"}))
            quantize_static(
                str(prepared),
                str(target),
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                reduce_range=not has_vnni,
                calibrate_method=CalibrationMethod.Percentile,
                nodes_to_exclude=[node.name for node in decoder],
                # If its ReLU is quantised too, a convolution writes uint8 directly: 1.1 to 1.2 times as fast
                op_types_to_quantize=["Conv", "Relu", "Clip", "Add", "MaxPool"],
                extra_options={"CalibPercentile": 99.999},
            )
    finally:
        logger.setLevel(level)
    return {"int8_checked_on": "VNNI" if has_vnni else "no VNNI; weights of 7 bits"}


def round_weights(source, target, calibration):
    """Store the weights of a float ONNX file's convolutions as int8, scaled per output channel.

    The arithmetic stays in float. Rounding changes the mean of a layer's output; its bias is corrected by as much
    ("bias correction" of Nagel et al. 2019, "Data-Free Quantization through Weight Equalization and Bias Correction").

    calibration: training cells on which these means are measured, as the file takes them.
    Returns what the file's metadata should say of it, a dict.
    """
    model = onnx.load(source)
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv" and node.input[1] in tensors]
    convolutions = [node for node in convolutions if np.prod(tensors[node.input[1]].dims) >= MIN_WEIGHTS]
    input_means = channel_means(model, [node.input[0] for node in convolutions], calibration)
    for node in convolutions:
        name = node.input[1]
        weight = onnx.numpy_helper.to_array(tensors[name])
        scale = np.maximum(np.abs(weight).max((1, 2, 3), keepdims=True) / 127, 1e-12).astype(np.float32)
        rounded = np.round(weight / scale).astype(np.int8)
        bias = -output_shift(rounded * scale - weight, input_means[node.input[0]])
        graph.initializer.remove(tensors[name])
        if len(node.input) == 3:
            old_bias = tensors[node.input[2]]
            bias += onnx.numpy_helper.to_array(old_bias)
            graph.initializer.remove(old_bias)
        node.input[2:] = [f"{name}_corrected_bias"]
        new_tensors = {"int8": rounded, "scale": scale, "corrected_bias": bias.astype(np.float32)}
        for suffix, array in new_tensors.items():
            graph.initializer.append(onnx.numpy_helper.from_array(array, f"{name}_{suffix}"))
        # ONNX Runtime would compute DequantizeLinear for every batch, but Cast and Mul of constants only once
        cast = onnx.helper.make_node("Cast", [f"{name}_int8"], [f"{name}_float"], to=onnx.TensorProto.FLOAT)
        multiply = onnx.helper.make_node("Mul", [f"{name}_float", f"{name}_scale"], [name])
        graph.node.insert(0, multiply)
        graph.node.insert(0, cast)
    onnx.save(model, target)
    return {}


def channel_means(model, names, images):
    """{name: mean of each channel over the images, float (K,)} of intermediate results (N, K, h, w) of an ONNX model.

    images: as the model takes them.
    """
    names = list(dict.fromkeys(names))  # each once
    with_outputs = onnx.ModelProto()
    with_outputs.CopyFrom(model)
    for name in names:
        with_outputs.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(with_outputs.SerializeToString())
    sums = dict.fromkeys(names, 0)
    for batch in in_batches(images, BATCH):
        for name, maps in zip(names, session.run(names, {"input": batch})):
            sums[name] = sums[name] + maps.sum((0, 2, 3), dtype=float) / maps[0, 0].size
    return {name: total / len(images) for name, total in sums.items()}


def output_shift(weight_error, input_mean):
    """How far an error of a convolution's weights shifts the mean of each output channel, float (K_out,).

    weight_error: (K_out, K_in / groups, h, w). input_mean: (K_in,), the mean of each input channel.
    """
    mean_of_group = input_mean.reshape(-1, weight_error.shape[1])
    outputs_per_group = len(weight_error) // len(mean_of_group)
    return (weight_error.sum((2, 3)) * np.repeat(mean_of_group, outputs_per_group, 0)).sum(1)
