"""Where a network sees each class, without PyTorch and gradients: class activation maps from an exported file.

Zhou et al. 2016, "Learning Deep Features for Discriminative Localization": the last maps, weighted as the last layer
weights them. They are coarse (a tenth of the image's side); `visualize_activations.py` has finer ones.
"""

import numpy as np

from elcells.inference.engines import needed, read_onnx


def weighted(features, weight):
    """Class maps (B, C, h, w), 0 and more, of the last maps (B, K, h, w) and the last layer's weight (C, K or 2 K).

    With 2 K weights the layer sees each map's mean, then its maximum: here both count where the map is high.
    """
    weight = weight.reshape(len(weight), -1, features.shape[1]).sum(1)
    return np.maximum(np.einsum("ck,bkhw->bchw", weight, features), 0)


def onnx_class_maps(path, threads=0):
    """A function from uint8 images (B, 1, S, S) to class maps (B, C, h, w) of an ONNX file; None where its last layer
    is in another form (`--int8`, `--raw-input`)."""
    proto, metadata = read_onnx(path)
    made_by = {name: node for node in proto.graph.node for name in node.output}
    tensors = {t.name: t for t in proto.graph.initializer}
    last = next((n for n in reversed(proto.graph.node) if n.op_type == "Gemm"), None)
    if last is None or last.input[1] not in tensors or metadata["input"] != "uint8":
        return None
    onnx, onnxruntime = needed("onnx"), needed("onnxruntime")
    weight, node = onnx.numpy_helper.to_array(tensors[last.input[1]]), made_by.get(last.input[0])
    while node is not None and node.op_type in ("Reshape", "Flatten", "Concat", "Squeeze"):
        node = made_by.get(node.input[0])
    if node is None or node.op_type not in ("ReduceMean", "GlobalAveragePool"):
        return None
    proto.graph.output.append(onnx.helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def maps(images):
        features = session.run([node.input[0]], {"input": images})[0]
        return weighted(features[: len(images)], weight)  # of eight symmetries the first is the image itself

    return maps
