"""Half precision written into a program of torch: the same rule as for ONNX graphs (half.py), on torch's operators.

The network, from the first to the last weighted layer, is in float16 or bfloat16; pixels and head stay in float32.
Normalisations are folded into the convolutions before them, because variances can be too small for float16. One that
follows no convolution keeps its own tensors in float32.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.nn.utils.fusion import fuse_conv_bn_weights

from anomseg_ros.errors import CompressionError
from anomseg_ros.networks.torch_program import delete_unused_tensors, program_of

TYPES: Mapping[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""Precision of a bundle -> torch's type."""

_ATEN = torch.ops.aten
_CONVOLUTIONS = (_ATEN.conv2d.default, _ATEN.conv_transpose2d.input)
_WEIGHTED = (*_CONVOLUTIONS, _ATEN.linear.default)
_NORM = _ATEN.batch_norm.default


def program_in_half_precision(program: ExportedProgram, precision: str) -> ExportedProgram:
    """Return the program with its network typed in half precision.

    Raises CompressionError where a weight is beyond the range of float16, ExportError where torch cannot export it.
    """
    graph = program.module()
    assert isinstance(graph, GraphModule)
    _remove_checks(graph)
    _fold_norms(graph)
    _type_body(graph, precision)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    image = next(node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder")
    delete_unused_tensors(graph)
    return program_of(graph, torch.zeros(tuple(image.shape), dtype=image.dtype))


def _remove_checks(graph: GraphModule) -> None:
    """Remove what checks types and inputs; the types change."""
    for node in list(graph.graph.nodes):
        if node.target is _ATEN._assert_tensor_metadata.default or node.op == "call_module":
            graph.graph.erase_node(node)


def _fold_norms(graph: GraphModule) -> None:
    for node in list(graph.graph.nodes):
        before = node.args[0] if node.target is _NORM else None
        if not isinstance(before, Node) or before.target not in _CONVOLUTIONS or len(before.users) > 1:
            continue
        weight, bias = (_tensor(graph, one) for one in (before.args[1], _argument(before, 2)))
        scale, shift, mean, variance = (_tensor(graph, one) for one in node.args[1:5])
        transposed = before.target is not _CONVOLUTIONS[0]
        folded = fuse_conv_bn_weights(weight, bias, mean, variance, node.args[7], scale, shift, transpose=transposed)
        with graph.graph.inserting_before(before):
            new = [
                _constant(graph, f"{before.name}_{name}", one.detach()) for name, one in zip("wb", folded, strict=True)
            ]
        before.args = (before.args[0], *new, *before.args[3:])
        node.replace_all_uses_with(before)
        graph.graph.erase_node(node)


def _type_body(graph: GraphModule, precision: str) -> None:
    """Cast where the body begins and ends; its weights become half."""
    body = _body(graph)
    casts: dict[tuple[Node, torch.dtype], Node] = {}
    for node, given in list(_float_inputs(graph)):
        if given.op == "get_attr" and node in body:
            if node.target is _NORM:
                continue
            if (given, TYPES[precision]) not in casts:
                with graph.graph.inserting_before(node):
                    half = _in_half(_tensor(graph, given), str(given.target), precision)
                    casts[given, TYPES[precision]] = _constant(graph, f"{given.name}_half", half)
        elif (node in body) == (given in body):
            continue
        dtype = TYPES[precision] if node in body else torch.float32
        if (given, dtype) not in casts:
            with graph.graph.inserting_after(given):
                casts[given, dtype] = graph.graph.call_function(_ATEN.to.dtype, (given, dtype))
        node.replace_input_with(given, casts[given, dtype])


def _body(graph: GraphModule) -> set[Node]:
    """Return the nodes from the first to the last weighted layers."""
    before_layers: set[Node] = set()
    for node in reversed(graph.graph.nodes):
        if node.target in _WEIGHTED or node in before_layers:
            before_layers.add(node)
            before_layers.update(node.all_input_nodes)
    body: set[Node] = set()
    for node in graph.graph.nodes:
        if node in before_layers and (node.target in _WEIGHTED or body.intersection(node.all_input_nodes)):
            body.add(node)
    return body


def _float_inputs(graph: GraphModule) -> Iterator[tuple[Node, Node]]:
    """Yield (node, float32 input) of all nodes."""
    for node in graph.graph.nodes:
        for given in node.all_input_nodes:
            value = _tensor(graph, given) if given.op == "get_attr" else given.meta.get("val")
            if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
                yield node, given


def _in_half(weight: torch.Tensor, name: str, precision: str) -> torch.Tensor:
    half = weight.detach().to(TYPES[precision])
    if not torch.isfinite(half).all():
        raise CompressionError(f"constant {name!r} holds {weight.abs().max():.4g}, more than {precision} can; use bf16")
    return half


def _argument(node: Node, index: int) -> Any:
    return node.args[index] if len(node.args) > index else None


def _tensor(graph: GraphModule, node: Any) -> Any:
    """Return the tensor that a node stands for; None for none."""
    return None if node is None else operator.attrgetter(str(node.target))(graph)


def _constant(graph: GraphModule, name: str, value: torch.Tensor) -> Node:
    graph.register_buffer(name, value)
    return graph.graph.get_attr(name)
