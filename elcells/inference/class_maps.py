"""Where a network sees each class, without PyTorch and gradients: class activation maps beside the probabilities.

Zhou et al. 2016, "Learning Deep Features for Discriminative Localization": the last feature maps, weighted as the last
layer weights them. They are coarse (10 x 10, in small cells 8 x 8); `visualize_activations.py` has finer ones.
"""

import numpy as np

HIGHEST = 6.0  # of a class map, in logits: brighter than that is not shown
RESHAPING = ("Reshape", "Flatten", "Concat", "Squeeze")  # operations between pooling and the last layer


def weighted(features, weight):
    """Class maps (B, C, h, w), 0 and more, of the last feature maps (B, K, h, w) and the last layer's weight (C, K or
    2 K).

    With 2 K weights the layer sees each map's mean, then its maximum: here both count where the map is high.
    """
    weight = weight.reshape(len(weight), -1, features.shape[1]).sum(1)
    return np.maximum(np.einsum("ck,bkhw->bchw", weight, features), 0)


def as_bytes(class_map):
    """A class map (C, h, w) as the bytes of uint8 (C, h, w), 255 for HIGHEST."""
    return np.rint(255 * np.clip(class_map / HIGHEST, 0, 1)).astype(np.uint8).tobytes()


def last_features(proto, metadata):
    """(name of the last feature maps, the last layer's weight) of an onnx.ModelProto.

    None where its last layer is in another form (`--int8`, `--raw-input`).
    """
    from onnx.numpy_helper import to_array

    nodes = {name: node for node in proto.graph.node for name in node.output}
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    last = next((node for node in reversed(proto.graph.node) if node.op_type == "Gemm"), None)
    if last is None or last.input[1] not in tensors or metadata["input"] != "uint8":
        return None
    weight = to_array(tensors[last.input[1]])
    pooling = nodes.get(last.input[0])
    while pooling is not None and pooling.op_type in RESHAPING:
        pooling = nodes.get(pooling.input[0])
    if pooling is None or pooling.op_type != "GlobalAveragePool":
        return None
    return pooling.input[0], weight
