"""The head of a detector's graph: what follows the last convolution, pixel by pixel, and stays in floating point."""

from __future__ import annotations

from onnx import NodeProto

from anomseg_ros.compression.graph import Graph

WEIGHTED = ("Conv", "ConvTranspose", "Gemm")


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
