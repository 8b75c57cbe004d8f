"""Rewrites of a detector's graph that change its speed and not its result: what integer kernels take, and take fast.

Each is exact in real numbers; quantize_onnx.py holds the rewritten graph to the one it came from. Why each is there was
measured with ONNX Runtime on a CPU: it has integer kernels for convolutions, but none for transposed convolutions, its
PRelu runs in no fused kernel, and a batch normalisation that stands apart breaks a chain of integer operators in two.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto

from anomseg_ros.compression.graph import Array, Graph, attributes
from anomseg_ros.core.transposed_convolution import phase_kernels
from anomseg_ros.errors import CompressionError

CHANNELS_LAST, CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
BLOCK_ORDER = (0, 1, 3, 2, 4)
"""(N, H, s, W, s x C) from (N, H, W, s, s x C): rows of a block apart, pixels of one row side by side."""


def fold_and_replace(graph: Graph) -> None:
    """Leave no batch normalisation and no PReLU in a graph, where that can be had."""
    split_norms_after_concat(graph)
    fold_norms(graph)
    replace_prelus(graph)
    graph.infer()


def split_norms_after_concat(graph: Graph) -> None:
    """Give each branch of a channel concatenation its part of the normalisation and activation that follow.

    ENet's and ERFNet's downsampling ends like this: a convolution beside a pooling, joined, normalised. The branch of
    the convolution can then absorb its part, and the other becomes a convolution of one weight per channel.
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
    """Put batch normalisations into the convolutions before them; those that stand apart become convolutions."""
    for norm in [node for node in graph.nodes if node.op_type == "BatchNormalization"]:
        scale, shift = _scale_and_shift(graph, norm)
        graph.replace([norm], [_affine(graph, norm.input[0], scale, shift, norm.output[0])])
    for affine in [node for node in graph.nodes if _is_affine(graph, node)]:
        before = graph.producer(affine.input[0])
        if before is None or before.op_type != "Conv" or graph.only_consumer(before.output[0]) is not affine:
            continue
        weight = graph.constant(before.input[1])
        scale, shift = graph.constants_of(affine)
        if weight is None:
            continue
        scale = scale.reshape(-1)
        bias = graph.constant(before.input[2]) if len(before.input) > 2 else np.zeros(len(scale), np.float32)
        assert bias is not None
        folded = graph.add_constant((weight * scale[:, None, None, None]).astype(np.float32), f"{before.input[1]}*")
        moved = graph.add_constant((bias * scale + shift).astype(np.float32), f"{before.input[1]}*bias")
        new = graph.node("Conv", (before.input[0], folded, moved), affine.output[0], **attributes(before))
        graph.replace([before, affine], [new])


def replace_prelus(graph: Graph) -> None:
    """Make PReLUs of one slope leaky ReLUs, which are fused into convolutions; others max(x, slope x), or two terms."""
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
    """Make transposed convolutions that multiply the size by their stride convolutions, whose channels are pixels.

    See core/transposed_convolution.py. An activation that follows goes before the shuffle, to the convolution.
    """
    for node in [node for node in graph.nodes if node.op_type == "ConvTranspose"]:
        plan = _phase_kernels(graph, node)
        if plan is None:
            continue
        weight, bias, pads, stride = plan
        shape = graph.shape(node.output[0])
        inputs = [node.input[0], graph.add_constant(weight, f"{node.input[1]}*phases")]
        inputs.append(graph.add_constant(bias, f"{node.input[1]}*bias"))
        conv = graph.node("Conv", inputs, pads=pads, kernel_shape=weight.shape[2:], strides=[1, 1])
        activation = graph.only_consumer(node.output[0])
        old, new, last = [node], [conv], conv.output[0]
        target = node.output[0]
        if activation is not None and activation.op_type in ("Relu", "LeakyRelu"):
            moved = graph.node(activation.op_type, [last], **attributes(activation))
            old, new, last, target = [node, activation], [conv, moved], moved.output[0], activation.output[0]
        graph.replace(old, new + _pixel_shuffle(graph, last, shape, stride, target))


def multiply_instead_of_select(graph: Graph) -> None:
    """Make selections between a value and zero products with 0 or 1.

    ENet's unpooling is eight of them. ONNX Runtime selects 8-bit values one by one, which took a fifth of its time.
    """
    for node in [node for node in graph.nodes if node.op_type == "Where"]:
        other = graph.constant(node.input[2])
        if other is None or other.size != 1 or other.any() or not graph.is_float(node.input[1]):
            continue
        chosen = graph.node("Cast", node.input[:1], to=TensorProto.FLOAT)
        graph.replace([node], [chosen, graph.node("Mul", (node.input[1], chosen.output[0]), node.output[0])])


def widen_grouped_inputs(graph: Graph) -> None:
    """Repeat the inputs of depthwise convolutions that give several outputs per channel, once for each of them.

    BiSeNet v2 expands its channels sixfold like this. ONNX Runtime's fast integer kernel takes as many outputs as
    inputs; without it these eight convolutions took a fifth of the network's time. The copies lie behind each other,
    which costs nothing, so the outputs come in another order, and the layers that follow take them so.
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
    """Return the depthwise convolutions that follow a value and the ordinary one behind them; none where something
    else reads its channels."""
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
    """Give a convolution its output channels, or take its input channels, in another order."""
    for index in range(1, len(conv.input) if outputs else 2):
        value = graph.constant(conv.input[index])
        assert value is not None
        conv.input[index] = graph.add_constant(value[order] if outputs else value[:, order], f"{conv.input[index]}*")


def _phase_kernels(graph: Graph, node: NodeProto) -> tuple[Array, Array, list[int], int] | None:
    """Return the weights (s s C, D, kh, kw) in the order (row phase, column phase, class), biases, pads and stride s.

    None for a transposed convolution of another kind than networks use to enlarge.
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
    bias = graph.constant(node.input[2]) if len(node.input) > 2 else None
    repeated = np.tile(np.zeros(weight.shape[1], np.float32) if bias is None else bias, stride * stride)
    return kernels.weight, repeated, [kernels.top, kernels.left, kernels.bottom, kernels.right], stride


def _pixel_shuffle(graph: Graph, name: str, shape: tuple[int, ...], stride: int, target: str) -> list[NodeProto]:
    """Return nodes from (N, s s C, H, W), channels in the order (row, column, class), to `shape`, (N, C, s H, s W).

    Channels last on the way: that is where integer convolutions leave their result, and runs of s C values are copied.
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
    parts = [graph.constant(name) for name in norm.input[1:5]]
    if any(part is None for part in parts):
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
