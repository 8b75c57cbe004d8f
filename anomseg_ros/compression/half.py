"""Half precision written into a graph: the network in float16 or bfloat16, pixels and head in float32.

TensorRT from version 11 on takes precision from the graph alone ("strongly typed"), and version 10 can; so the graph
states it. Values that no weighted layer has touched stay in float32, since rounding pixels would be one more error. The
head (upsampling, labels, scores) stays in float32, since scores in half precision have many ties. Chosen layers stay in
float32 too, each with the nodes up to the next layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from anomseg_ros.compression.graph import WEIGHTED, Array, Graph, head_nodes, is_layer, name_nodes, with_followers
from anomseg_ros.compression.rewrites import replace_transposed_convolutions
from anomseg_ros.errors import CompressionError

HALF: Mapping[str, tuple[int, Any]] = {
    "fp16": (TensorProto.FLOAT16, np.float16),
    "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
}
"""Precision of a bundle -> ONNX's and numpy's type."""

FLOAT_INPUTS: Mapping[str, tuple[int, ...]] = {"Resize": (1, 2)}
"""Operator -> inputs that are float32 in ONNX whatever the type of the data."""


def layers_in_half(model: onnx.ModelProto, precision: str) -> list[str]:
    """Return the names of the layers that get half precision, in order, for `keep_float` of the functions below."""
    return _Half(model, precision).layers


def in_half_precision(model: onnx.ModelProto, precision: str, keep_float: Collection[str] = ()) -> onnx.ModelProto:
    """Return the graph with its network typed in half precision, for engines that take their types from the graph.

    keep_float: names of layers that stay in float32. Raises CompressionError where a weight is beyond the range of
    float16.
    """
    return _Half(model, precision, keep_float).typed()


def rounded_like(model: onnx.ModelProto, precision: str, keep_float: Collection[str] = ()) -> onnx.ModelProto:
    """Return a float32 graph that rounds every value that `in_half_precision` types in half, for a CPU.

    An engine that adds up in float32 and stores in half precision computes the same. ONNX Runtime has no kernels for
    bfloat16 on a CPU. Raises CompressionError as `in_half_precision` does.
    """
    return _Half(model, precision, keep_float).rounded()


def in_single_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph of half precision computing in float32 with the same weights, for a CPU without its kernels."""
    single, half = onnx.ModelProto(), {elem_type for elem_type, _ in HALF.values()}
    single.CopyFrom(model)
    del single.graph.value_info[:]  # they state the types that are no more
    attributes = [attribute for node in single.graph.node for attribute in node.attribute]
    constants = [attribute.t for attribute in attributes if attribute.type == onnx.AttributeProto.TENSOR]
    for tensor in (*single.graph.initializer, *constants):
        if tensor.data_type in half:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for attribute in attributes:
        if attribute.name == "to" and attribute.i in half:
            attribute.i = TensorProto.FLOAT
    return single


class _Half:
    """A graph on its way to half precision.

    Its body is what lies between the pixels and the head, the first and the last weighted layers included, without the
    layers that stay in float32.
    """

    def __init__(self, model: onnx.ModelProto, precision: str, keep_float: Collection[str] = ()) -> None:
        self._graph, self._precision = Graph(model), precision
        name_nodes(self._graph)
        if precision == "bf16":  # TensorRT has no transposed convolution of this type
            replace_transposed_convolutions(self._graph)
            self._graph.infer()
        self._elem_type, self._dtype = HALF[precision]
        body = _body(self._graph)
        self.layers = [node.name for node in body if is_layer(self._graph, node)]
        kept = set(with_followers(self._graph, keep_float, self.layers))
        body = [node for node in body if node.name not in kept]
        self._body = {id(node) for node in body}
        self._values = {name for node in body for name in node.output if self._graph.is_float(name)}
        self._casts: dict[tuple[str, int], NodeProto] = {}

    def typed(self) -> onnx.ModelProto:
        """Cast where the body begins and ends."""
        for node, index, name, reads_half in self._float_inputs():
            if reads_half and (weight := self._graph.constant(name)) is not None:
                node.input[index] = self._graph.add_constant(self._in_half(weight, name), f"{name}*half")
            elif reads_half != (name in self._values):
                node.input[index] = self._cast(name, self._elem_type if reads_half else TensorProto.FLOAT)
        return self._finish()

    def rounded(self) -> onnx.ModelProto:
        """Cast every value of the body to half precision and back."""
        for node, index, name, reads_half in self._float_inputs():
            if reads_half and (weight := self._graph.constant(name)) is not None:
                rounded = self._in_half(weight, name).astype(np.float32)
                node.input[index] = self._graph.add_constant(rounded, f"{name}*rounded")
            elif reads_half or name in self._values:
                node.input[index] = self._cast(self._cast(name, self._elem_type), TensorProto.FLOAT)
        return self._finish()

    def _float_inputs(self) -> Iterator[tuple[NodeProto, int, str, bool]]:
        """Yield (node, index, name, whether the body reads it as half) of each float32 input of a node."""
        for node in list(self._graph.nodes):
            fixed = FLOAT_INPUTS.get(node.op_type, ())
            for index, name in enumerate(node.input):
                weight = self._graph.constant(name)
                if self._graph.is_float(name) if weight is None else weight.dtype == np.float32:
                    yield node, index, name, id(node) in self._body and index not in fixed

    def _in_half(self, weight: Array, name: str) -> Array:
        with np.errstate(over="ignore"):  # checked below
            half: Array = weight.astype(self._dtype)
        if not np.isfinite(half.astype(np.float32)).all():
            raise CompressionError(
                f"constant {name!r} holds {np.abs(weight).max():.4g}, more than {self._precision} can; use bf16"
            )
        return half

    def _cast(self, name: str, elem_type: int) -> str:
        """Return the value cast; equal casts are one node."""
        if (name, elem_type) not in self._casts:
            self._casts[name, elem_type] = self._graph.node("Cast", [name], to=elem_type)
        cast: str = self._casts[name, elem_type].output[0]
        return cast

    def _finish(self) -> onnx.ModelProto:
        self._graph.replace([], self._casts.values())
        return self._graph.finish()


def _body(graph: Graph) -> list[NodeProto]:
    head = {id(node) for node in head_nodes(graph)}
    reached: set[str] = set()
    body = []
    for node in graph.nodes:
        if id(node) not in head and (node.op_type in WEIGHTED or reached.intersection(node.input)):
            reached.update(node.output)
            body.append(node)
    return body
