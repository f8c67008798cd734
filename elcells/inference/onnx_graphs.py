"""Changes to an exported ONNX graph, so that other and older runtimes run it, and what it says about itself."""

import json

import onnx

from elcells.files import InputError, reason
from elcells.inference.line_decoder import ancestors

GLOBAL_POOLING = {"ReduceMean": "GlobalAveragePool", "ReduceMax": "GlobalMaxPool"}


def put_probabilities_last(path):
    """Order an ONNX file's nodes so that the last one makes `output`, which OpenCV takes for the network's result."""
    proto = onnx.load(path)
    nodes = list(proto.graph.node)
    last = ancestors(nodes, "output")[-1]
    nodes.remove(last)
    del proto.graph.node[:]
    proto.graph.node.extend([*nodes, last])
    onnx.save(proto, path)


def name_global_pooling(path):
    """Write an ONNX file's means and maxima over height and width as GlobalAveragePool and GlobalMaxPool.

    The exporter writes ReduceMean and ReduceMax with their axes as an input, which OpenCV before 4.9 overlooks.
    """
    proto = onnx.load(path)
    graph = proto.graph
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        if node.op_type not in GLOBAL_POOLING or len(node.input) < 2:
            continue
        keeps_rank = all(a.i for a in node.attribute if a.name == "keepdims")
        if keeps_rank and {axis % 4 for axis in tensors.get(node.input[1], ())} == {2, 3}:
            node.op_type = GLOBAL_POOLING[node.op_type]
            del node.input[1:], node.attribute[:]
    used = {name for node in graph.node for name in node.input}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
    onnx.save(proto, path)


def set_metadata(path, metadata):
    """Store a dict as an ONNX file's metadata, each value as JSON; remove the exporter's notes on this machine."""
    proto = onnx.load(path)
    for part in (proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]  # stack traces, with the paths of our files
    proto.ir_version = onnx.helper.find_min_ir_version_for(proto.opset_import, True)  # for old runtimes
    onnx.helper.set_model_props(proto, {key: json.dumps(value) for key, value in metadata.items()})
    onnx.save(proto, path)


def check_onnx(path, name):
    """Raise InputError, calling the file by `name`, where ONNX's checker or shape inference objects to it."""
    try:
        proto = onnx.shape_inference.infer_shapes(onnx.load(path), check_type=True, strict_mode=True)
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:
        raise InputError(f"{name}: not valid ONNX ({reason(error)}); nothing written") from None
