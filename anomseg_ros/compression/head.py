"""The head of a detector's graph: what follows the last convolution, pixel by pixel, and stays in floating point."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import NodeProto

from anomseg_ros.compression.graph import Array, Graph, attributes

WEIGHTED = ("Conv", "ConvTranspose", "Gemm")
ELEMENTWISE = {
    "Sub",
    "Add",
    "Mul",
    "Div",
    "Exp",
    "Log",
    "Neg",
    "Reciprocal",
    "Cast",
    "Equal",
    "Where",
    "Max",
    "Greater",
}
ALONG_CLASSES = {"ReduceMax", "ArgMax", "Slice", "Gather"}


def head_nodes(graph: Graph) -> list[NodeProto]:
    """Return the nodes from which no weighted layer is reached any more: upsampling, scores and labels."""
    leads_on: set[str] = set()
    head = []
    for node in reversed(graph.nodes):
        if node.op_type in WEIGHTED or leads_on.intersection(node.output):
            leads_on.update(node.input)
        else:
            head.append(node)
    return head[::-1]


def output_layers(graph: Graph) -> list[NodeProto]:
    """Return the weighted layers whose result goes to the head alone: the classifiers."""
    head = {id(node) for node in head_nodes(graph)}
    return [
        node
        for node in graph.nodes
        if node.op_type in WEIGHTED
        and graph.consumers(node.output[0])
        and all(id(reader) in head for reader in graph.consumers(node.output[0]))
    ]


def shuffle_after_head(graph: Graph) -> bool:
    """Move the pixel shuffle of a classifier that enlarges to the end, where one value per pixel is left of C logits.

    Labels and scores are computed pixel by pixel, in whatever order the pixels are: with the phases of the transposed
    convolution below each other, (N, C, s s H, W), nothing has to be moved before. Returns whether it could be done.
    """
    found = _shuffled_classifier(graph)
    if found is None:
        return False
    conv, chain, stride = found
    batch, classes, height, width = graph.shape(chain[-1].output[0])
    head = [node for node in head_nodes(graph) if all(node is not link for link in chain)]
    changed = _head_on_phases(graph, head, (height, width), (stride * height, width // stride))
    if changed is None:
        return False
    order = np.arange(stride * stride * classes).reshape(stride * stride, classes).T.reshape(-1)
    weights = [graph.add_constant(value[order], f"{name}*") for name, value in _weights(graph, conv)]
    logits = graph.node("Conv", (conv.input[0], *weights), **attributes(conv))
    shape = graph.add_constant(np.array((batch, classes, stride * height, width // stride)), "phases")
    below = graph.node("Reshape", (logits.output[0], shape), chain[-1].output[0])
    graph.replace([conv, *chain, *head], [logits, below, *changed])
    for name in graph.outputs:
        _unshuffle(graph, name, (batch, height, width), stride)
    return True


def _weights(graph: Graph, conv: NodeProto) -> list[tuple[str, Array]]:
    named = ((name, graph.constant(name)) for name in conv.input[1:])
    return [(name, value) for name, value in named if value is not None]


def _shuffled_classifier(graph: Graph) -> tuple[NodeProto, list[NodeProto], int] | None:
    """Return the last convolution, the five nodes of its pixel shuffle and the stride; None for another graph."""
    layers = output_layers(graph)
    if len(layers) != 1:
        return None
    chain: list[NodeProto] = []
    name = layers[0].output[0]
    for op in ("Transpose", "Reshape", "Transpose", "Reshape", "Transpose"):
        node = graph.only_consumer(name)
        if node is None or node.op_type != op:
            return None
        chain.append(node)
        name = node.output[0]
    blocks = graph.constant(chain[1].input[1])
    assert blocks is not None
    return layers[0], chain, int(blocks[3])


def _head_on_phases(
    graph: Graph, head: Sequence[NodeProto], size: tuple[int, int], phased: tuple[int, int]
) -> list[NodeProto] | None:
    """Return the head's nodes for pixels in another order and shape; None where one of them is not pixel by pixel."""
    changed = []
    for node in head:
        if node.op_type in ELEMENTWISE:
            if any(value.ndim > 1 and value.shape[-2:] != (1, 1) for value in graph.constants_of(node)):
                return None
        elif node.op_type in ALONG_CLASSES:
            if not _along_classes(graph, node):
                return None
        elif node.op_type == "MatMul":
            if graph.constant(node.input[0]) is None or graph.shape(node.output[0])[-1] != math.prod(size):
                return None
        elif node.op_type == "Reshape":
            target = list(graph.shape(node.output[0]))
            if tuple(target[-2:]) == size:
                target[-2:] = phased
            elif target[-1] != math.prod(size):
                return None
            node = graph.node("Reshape", (node.input[0], graph.add_constant(np.array(target), "size")), node.output[0])
        else:
            return None
        changed.append(node)
    return changed


def _along_classes(graph: Graph, node: NodeProto) -> bool:
    given = attributes(node)
    if node.op_type in ("ArgMax", "Gather"):
        return given.get("axis", 0) == 1 or (node.op_type == "Gather" and graph.constant(node.input[0]) is not None)
    axes = graph.constant(node.input[1 if node.op_type == "ReduceMax" else 3])
    return axes is not None and axes.tolist() == [1]


def _unshuffle(graph: Graph, output: str, shape: tuple[int, int, int], stride: int) -> None:
    """Put the pixels of an output (N, H, W) from phases below each other to where they belong."""
    batch, height, width = shape
    made = graph.producer(output)
    assert made is not None
    inner = graph.new_name(output)
    for reader in graph.consumers(output):
        reader.input[:] = [inner if name == output else name for name in reader.input]
    made.output[:] = [inner]
    phases = graph.add_constant(np.array((batch, stride, stride, height // stride, width // stride)), "phases")
    apart = graph.node("Reshape", (inner, phases))
    woven = graph.node("Transpose", apart.output, perm=(0, 3, 1, 4, 2))
    graph.replace(
        [],
        [apart, woven, graph.node("Reshape", (woven.output[0], graph.add_constant(np.array(shape), "size")), output)],
    )
