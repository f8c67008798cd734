"""Where a network sees each class, without PyTorch and gradients: class activation maps from an exported file.

Zhou et al. 2016, "Learning Deep Features for Discriminative Localization": the last feature maps, weighted as the last
layer weights them. They are coarse (a tenth of the image's side); `visualize_activations.py` has finer ones.
"""

import numpy as np

from elcells.inference.engines import needed, read_onnx

RESHAPING = ("Reshape", "Flatten", "Concat", "Squeeze")  # operations between pooling and the last layer


def weighted(features, weight):
    """Class maps (B, C, h, w), 0 and more, of the last feature maps (B, K, h, w) and the last layer's weight (C, K or
    2 K).

    With 2 K weights the layer sees each map's mean, then its maximum: here both count where the map is high.
    """
    weight = weight.reshape(len(weight), -1, features.shape[1]).sum(1)
    return np.maximum(np.einsum("ck,bkhw->bchw", weight, features), 0)


def onnx_class_maps(path, threads=0):
    """A function from uint8 images (B, 1, S, S) to class maps (B, C, h, w) of an ONNX file.

    None where its last layer is in another form (`--int8`, `--raw-input`).
    """
    onnx = needed("onnx")
    onnxruntime = needed("onnxruntime")
    proto, metadata = read_onnx(path)
    nodes = {name: node for node in proto.graph.node for name in node.output}
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    last = next((node for node in reversed(proto.graph.node) if node.op_type == "Gemm"), None)
    if last is None or last.input[1] not in tensors or metadata["input"] != "uint8":
        return None
    weight = onnx.numpy_helper.to_array(tensors[last.input[1]])
    pooling = nodes.get(last.input[0])
    while pooling is not None and pooling.op_type in RESHAPING:
        pooling = nodes.get(pooling.input[0])
    if pooling is None or pooling.op_type != "GlobalAveragePool":
        return None
    features_name = pooling.input[0]
    proto.graph.output.append(onnx.helper.make_tensor_value_info(features_name, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def class_maps(images):
        [features] = session.run([features_name], {"input": images})
        return weighted(features[: len(images)], weight)  # of eight symmetries the first is the image itself

    return class_maps
