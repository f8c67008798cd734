"""The decoder of crack lines of an ONNX file as a model of its own, which is run for cells with a crack alone."""

import onnx
import onnx.utils

LINES = "crack_lines"  # the file's second output


def apart(proto):
    """Two models of an onnx.ModelProto with the outputs `output` and `crack_lines`: (network, decoder, inputs).

    network has the decoder's inputs, whose names are the list `inputs`, as further outputs. decoder makes `crack_lines`
    of them.
    """
    from_images = reached(proto.graph.node, {"input"})
    decoder = decoder_nodes(proto, from_images)
    made = {name for node in decoder for name in node.output}
    taken = {name for node in decoder for name in node.input if name in from_images and name not in made}
    inputs = sorted(taken)
    parts = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(proto))
    network = parts.extract_model([proto.graph.input[0].name], ["output", *inputs])
    return network, parts.extract_model(inputs, [LINES]), inputs


def decoder_nodes(proto, from_images):
    """The nodes that `crack_lines` needs and `output` does not, or that only prepare weights, in their order.

    from_images: names of what is made of the images.
    """
    for_output = {name for node in ancestors(proto.graph.node, "output") for name in node.output} & from_images
    return [node for node in ancestors(proto.graph.node, LINES) if not for_output & set(node.output)]


def reached(nodes, names):
    """Names of all that nodes, in their order, make of these names."""
    names = set(names)
    for node in nodes:
        if names & set(node.input):
            names |= set(node.output)
    return names


def ancestors(nodes, name):
    """The nodes that a result needs, in their order."""
    wanted = {name}
    chosen = []
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted |= set(node.input)
            chosen.append(node)
    return chosen[::-1]
