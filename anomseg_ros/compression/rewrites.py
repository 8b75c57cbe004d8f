"""Rewrites of a detector's graph that make it faster in integers and keep its result.

Each rewrite is exact in real numbers; quantize_onnx.py compares the rewritten graph with the original. The reasons were
measured with ONNX Runtime on a CPU. It has no integer kernel for transposed convolutions, fuses PRelu with nothing, and
a separate batch normalisation splits a chain of integer operators in two.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto

from anomseg_ros.compression.graph import Array, Graph, attributes
from anomseg_ros.core.transposed_convolution import phase_kernels
from anomseg_ros.errors import CompressionError

CHANNELS_LAST, CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
BLOCK_ORDER = (0, 1, 3, 2, 4)
"""From (N, H, W, s, s x C) to (N, H, s, W, s x C): the pixels of one image row become neighbours."""


def fold_and_replace(graph: Graph) -> None:
    """Remove batch normalisations and PReLUs from a graph where possible."""
    split_norms_after_concat(graph)
    fold_norms(graph)
    replace_prelus(graph)
    graph.infer()


def split_norms_after_concat(graph: Graph) -> None:
    """Move a normalisation and activation before the channel concatenation they follow, to each branch its part.

    The downsampling of ENet and ERFNet ends with such a concatenation of a convolution and a pooling. The convolution
    then absorbs its part; the other part becomes a convolution of one weight per channel.
    """
    for norm in [node for node in graph.nodes if node.op_type == "BatchNormalization"]:
        concat = graph.producer(norm.input[0])
        if concat is None or concat.op_type != "Concat" or attributes(concat)["axis"] != 1:
            continue
        if graph.only_consumer(concat.output[0]) is not norm:
            continue
        scale, shift = _scale_and_shift(graph, norm)
        activation = graph.only_consumer(norm.output[0])
        if activation is not None and not _acts_per_channel(graph, activation, len(scale)):
            activation = None
        joined = norm.output[0] if activation is None else activation.output[0]
        new, branches, start = [], [], 0
        for name in concat.input:
            stop = start + graph.shape(name)[1]
            affine = _affine(graph, name, scale[start:stop], shift[start:stop])
            new.append(affine)
            branches.append(affine.output[0])
            if activation is not None:
                new.append(_activation_of(graph, activation, affine.output[0], start, stop))
                branches[-1] = new[-1].output[0]
            start = stop
        new.append(graph.node("Concat", branches, joined, axis=1))
        graph.replace([norm, concat, *([activation] if activation is not None else [])], new)


def fold_norms(graph: Graph) -> None:
    """Fold batch normalisations into the convolutions before them; other ones become convolutions."""
    for norm in [node for node in graph.nodes if node.op_type == "BatchNormalization"]:
        scale, shift = _scale_and_shift(graph, norm)
        graph.replace([norm], [_affine(graph, norm.input[0], scale, shift, norm.output[0])])
    for affine in [node for node in graph.nodes if _is_affine(graph, node)]:
        before = graph.producer(affine.input[0])
        if before is None or before.op_type != "Conv" or graph.only_consumer(before.output[0]) is not affine:
            continue
        weight, bias = graph.constant(before.input[1]), graph.bias(before)
        if weight is None:
            continue
        scale, shift = graph.constants_of(affine)
        scale = scale.reshape(-1)
        bias = np.zeros(len(scale), np.float32) if bias is None else bias
        folded = graph.add_constant((weight * scale[:, None, None, None]).astype(np.float32), f"{before.input[1]}*")
        moved = graph.add_constant((bias * scale + shift).astype(np.float32), f"{before.input[1]}*bias")
        new = graph.node("Conv", (before.input[0], folded, moved), affine.output[0], **attributes(before))
        graph.replace([before, affine], [new])


def replace_prelus(graph: Graph) -> None:
    """Replace PReLUs of one slope by leaky ReLUs, which fuse with convolutions, and others by max(x, slope x)."""
    for node in [node for node in graph.nodes if node.op_type == "PRelu"]:
        slope = graph.constant(node.input[1])
        if slope is None:
            continue
        if np.ptp(slope) == 0:
            alpha = float(slope.reshape(-1)[0])
            graph.replace([node], [graph.node("LeakyRelu", node.input[:1], node.output[0], alpha=alpha)])
        elif slope.min() >= 0 and slope.max() <= 1:
            scaled = graph.node("Mul", node.input)
            graph.replace([node], [scaled, graph.node("Max", (node.input[0], scaled.output[0]), node.output[0])])


def replace_transposed_convolutions(graph: Graph) -> None:
    """Replace transposed convolutions that multiply the size by their stride by convolutions and a pixel shuffle.

    See core/transposed_convolution.py. An activation that follows moves to the convolution, before the shuffle.
    """
    for node in [node for node in graph.nodes if node.op_type == "ConvTranspose"]:
        phases = _phase_convolution(graph, node)
        if phases is None:
            continue
        weight, bias, pads, stride = phases
        shape = graph.shape(node.output[0])
        inputs = [node.input[0], graph.add_constant(weight, f"{node.input[1]}*phases")]
        inputs.append(graph.add_constant(bias, f"{node.input[1]}*bias"))
        conv = graph.node("Conv", inputs, pads=pads, kernel_shape=weight.shape[2:], strides=[1, 1])
        activation = graph.only_consumer(node.output[0])
        old, new = [node], [conv]
        if activation is not None and activation.op_type in ("Relu", "LeakyRelu"):
            old.append(activation)
            new.append(graph.node(activation.op_type, conv.output, **attributes(activation)))
        graph.replace(old, new + _pixel_shuffle(graph, new[-1].output[0], shape, stride, old[-1].output[0]))


def multiply_instead_of_select(graph: Graph) -> None:
    """Replace selections between a value and zero by products with 0 or 1.

    ENet's unpooling has eight. ONNX Runtime selects 8-bit values one by one, which took a fifth of ENet's time.
    """
    for node in [node for node in graph.nodes if node.op_type == "Where"]:
        other = graph.constant(node.input[2])
        if other is None or other.size != 1 or other.any() or not graph.is_float(node.input[1]):
            continue
        chosen = graph.node("Cast", node.input[:1], to=TensorProto.FLOAT)
        graph.replace([node], [chosen, graph.node("Mul", (node.input[1], chosen.output[0]), node.output[0])])


def widen_grouped_inputs(graph: Graph) -> None:
    """Repeat the inputs of depthwise convolutions that give several outputs per channel, once for each output.

    BiSeNet v2 expands its channels sixfold with such convolutions. ONNX Runtime's fast integer kernel needs as many
    outputs as inputs; without it these eight convolutions took a fifth of the network's time. The input is concatenated
    with itself, which costs nothing. This changes the order of the outputs, so the weights that follow are reordered.
    """
    for node in [node for node in graph.nodes if node.op_type == "Conv"]:
        weight, given = graph.constant(node.input[1]), attributes(node)
        groups = given.get("group", 1)
        if weight is None or groups == 1 or weight.shape[1] != 1 or len(weight) == groups:
            continue
        order = np.arange(len(weight)).reshape(groups, -1).T.reshape(-1)
        following = _readers_of_channels(graph, node.output[0])
        if not following:
            continue
        wide = graph.node("Concat", [node.input[0]] * (len(weight) // groups), axis=1)
        conv = graph.node("Conv", (wide.output[0], *node.input[1:]), node.output[0], **{**given, "group": len(weight)})
        for layer in (conv, *following[:-1]):
            _reorder(graph, layer, order, outputs=True)
        _reorder(graph, following[-1], order, outputs=False)
        graph.replace([node], [wide, conv])


def _readers_of_channels(graph: Graph, name: str) -> list[NodeProto]:
    """Return the depthwise convolutions that follow a value and the ordinary one after them.

    The list is empty where anything else reads the channels.
    """
    layers: list[NodeProto] = []
    while (node := graph.only_consumer(name)) is not None:
        if node.op_type == "Conv":
            weight = graph.constant(node.input[1])
            if weight is None or weight.ndim != 4:
                return []
            layers.append(node)
            groups = attributes(node).get("group", 1)
            if groups == 1:
                return layers
            if not groups == len(weight) == graph.shape(name)[1]:
                return []
        elif node.op_type not in ("Relu", "LeakyRelu"):
            return []
        name = node.output[0]
    return []


def _reorder(graph: Graph, conv: NodeProto, order: Array, *, outputs: bool) -> None:
    """Reorder the output channels of a convolution, or else its input channels."""
    for index in range(1, len(conv.input) if outputs else 2):
        value = graph.constant(conv.input[index])
        assert value is not None
        conv.input[index] = graph.add_constant(value[order] if outputs else value[:, order], f"{conv.input[index]}*")


def _phase_convolution(graph: Graph, node: NodeProto) -> tuple[Array, Array, list[int], int] | None:
    """Return the weights (s s C, D, kh, kw) in the order (row phase, column phase, class), biases, pads and stride s.

    None for a transposed convolution that does more than enlarge by its stride.
    """
    weight = graph.constant(node.input[1])
    given = attributes(node)
    strides, dilations = given.get("strides", [1, 1]), given.get("dilations", [1, 1])
    if weight is None or given.get("group", 1) != 1 or set(dilations) != {1} or len(set(strides)) != 1:
        return None
    stride = strides[0]
    in_shape, out_shape = graph.shape(node.input[0]), graph.shape(node.output[0])
    if stride < 2 or tuple(out_shape[2:]) != tuple(stride * size for size in in_shape[2:]):
        return None
    begins = given.get("pads", [0, 0, 0, 0])[:2]
    kernels = phase_kernels(weight, stride, (begins[0], begins[1]))
    if kernels is None:
        return None
    bias = graph.bias(node)
    repeated = np.tile(np.zeros(weight.shape[1], np.float32) if bias is None else bias, stride * stride)
    return kernels.weight, repeated, [kernels.top, kernels.left, kernels.bottom, kernels.right], stride


def _pixel_shuffle(graph: Graph, name: str, shape: tuple[int, ...], stride: int, target: str) -> list[NodeProto]:
    """Return nodes from (N, s s C, H, W), channels in the order (row, column, class), to `shape`, (N, C, s H, s W).

    They work with channels last, as integer convolutions do, and so copy runs of s C values.
    """
    batch, classes, height, width = shape
    blocks = (batch, height // stride, width // stride, stride, stride * classes)
    last = graph.node("Transpose", [name], perm=CHANNELS_LAST)
    blocked = graph.node("Reshape", [last.output[0], graph.add_constant(np.array(blocks), "blocks")])
    moved = graph.node("Transpose", blocked.output, perm=BLOCK_ORDER)
    pixels = graph.add_constant(np.array((batch, height, width, classes)), "pixels")
    joined = graph.node("Reshape", [moved.output[0], pixels])
    return [last, blocked, moved, joined, graph.node("Transpose", joined.output, target, perm=CHANNELS_FIRST)]


def _scale_and_shift(graph: Graph, norm: NodeProto) -> tuple[Array, Array]:
    """Return a batch normalisation as scale and shift, float64 (C,)."""
    parts = graph.constants_of(norm)
    if len(parts) < 4:
        raise CompressionError(f"node {norm.name!r} (BatchNormalization) has weights that are computed; export again")
    weight, bias, mean, variance = (np.asarray(part, np.float64) for part in parts)
    scale = weight / np.sqrt(variance + attributes(norm).get("epsilon", 1e-5))
    return scale, bias - mean * scale


def _affine(graph: Graph, name: str, scale: Array, shift: Array, output: str | None = None) -> NodeProto:
    """Return a convolution of one weight per channel: scale x + shift."""
    weight = graph.add_constant(scale.reshape(-1, 1, 1, 1).astype(np.float32), "scale")
    bias = graph.add_constant(shift.astype(np.float32), "shift")
    return graph.node("Conv", (name, weight, bias), output, kernel_shape=[1, 1], group=len(scale))


def _is_affine(graph: Graph, node: NodeProto) -> bool:
    return node.op_type == "Conv" and node.input[1].startswith("scale~") and len(graph.constants_of(node)) == 2


def _acts_per_channel(graph: Graph, node: NodeProto, channels: int) -> bool:
    if node.op_type in ("Relu", "LeakyRelu"):
        return True
    slope = graph.constant(node.input[1]) if node.op_type == "PRelu" else None
    return slope is not None and slope.size in (1, channels)


def _activation_of(graph: Graph, node: NodeProto, name: str, start: int, stop: int) -> NodeProto:
    """Return an activation of the channels from `start` to before `stop`, with their slopes."""
    slopes = graph.constants_of(node)
    if not slopes:
        return graph.node(node.op_type, [name], **attributes(node))
    slope = slopes[0] if slopes[0].size == 1 else slopes[0].reshape(-1, 1, 1)[start:stop]
    return graph.node("PRelu", (name, graph.add_constant(slope, "slope")))
