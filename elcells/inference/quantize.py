"""Smaller ONNX files."""

import contextlib
import io
import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime


def quantise(source, target, calibration):
    """Static int8 quantisation (ONNX Runtime: QDQ, weights per channel, activations uint8) of a float ONNX file.

    The range of an activation leaves out 0.001 % of its values, and the last layer stays in float: of what was tried,
    that changes the probabilities least (doc/results.md).

    calibration: uint8 (N, 1, S, S) training cells, from which the ranges of the activations are measured.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            whole = calibration[: len(calibration) // 8 * 8 or None]  # the histograms want batches of one size
            self.batches = iter([whole[i : i + 8] for i in range(0, len(whole), 8)])

        def get_next(self):
            batch = next(self.batches, None)
            return None if batch is None else {"input": batch}

    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):  # it prints
            prepared = Path(folder) / "prepared.onnx"
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(target),
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.Percentile,
                # With its ReLU quantised too, a convolution writes uint8 at once: 1.1 to 1.2 times as fast
                op_types_to_quantize=["Conv", "Relu", "Clip", "Add", "MaxPool"],
                extra_options={"CalibPercentile": 99.999},
            )
    finally:
        logging.getLogger().setLevel(level)


def round_weights(source, target, calibration, small=16384):
    """A float ONNX file with its convolutions' weights as int8, scaled per output channel; arithmetic stays float.

    Biases make up for the mean error of a layer's output that rounding brings ("bias correction" of Nagel et al. 2019,
    "Data-Free Quantization through Weight Equalization and Bias Correction"), as seen on calibration: uint8
    (N, 1, S, S) training cells. Weights of fewer than `small` numbers stay as they are.
    """
    model = onnx.load(source)
    weights = {i.name: i for i in model.graph.initializer}
    layers = [n for n in model.graph.node if n.op_type == "Conv" and n.input[1] in weights]
    layers = [n for n in layers if np.prod(weights[n.input[1]].dims) >= small]
    inputs = list(dict.fromkeys(n.input[0] for n in layers))
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    for name in inputs:
        watched.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(watched.SerializeToString())
    batches = [calibration[i : i + 8] for i in range(0, len(calibration), 8)]
    seen = zip(*([x.sum((0, 2, 3)) / x[0, 0].size for x in session.run(inputs, {"input": b})] for b in batches))
    means = {name: np.sum(sums, 0) / len(calibration) for name, sums in zip(inputs, seen)}
    for node in layers:
        name = node.input[1]
        weight = onnx.numpy_helper.to_array(weights[name])
        scale = np.maximum(np.abs(weight).max((1, 2, 3), keepdims=True) / 127, 1e-12).astype(np.float32)
        rounded = np.round(weight / scale).astype(np.int8)
        error = (rounded * scale - weight).sum((2, 3))
        groups = means[node.input[0]].reshape(-1, weight.shape[1])  # of the input channels
        bias = -(error * np.repeat(groups, len(weight) // len(groups), 0)).sum(1)
        if len(node.input) == 3:
            bias += onnx.numpy_helper.to_array(weights[node.input[2]])
            model.graph.initializer.remove(weights[node.input[2]])
        node.input[2:] = [f"{name}_corrected_bias"]
        model.graph.initializer.remove(weights[name])
        for array, part in ((rounded, "int8"), (scale, "scale"), (bias.astype(np.float32), "corrected_bias")):
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, f"{name}_{part}"))
        # Not DequantizeLinear, which ONNX Runtime would run anew for every batch
        cast = onnx.helper.make_node("Cast", [f"{name}_int8"], [f"{name}_float"], to=onnx.TensorProto.FLOAT)
        model.graph.node.insert(0, onnx.helper.make_node("Mul", [f"{name}_float", f"{name}_scale"], [name]))
        model.graph.node.insert(0, cast)
    onnx.save(model, target)
