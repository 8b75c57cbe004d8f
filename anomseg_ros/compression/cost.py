"""Parameters and multiply-adds of an ONNX graph. Counting in the graph covers pruned and int8 networks too."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto

from anomseg_ros.compression.graph import Array, Graph, attributes
from anomseg_ros.core.types import Cost
from anomseg_ros.errors import CompressionError

_WEIGHT_INPUT = {
    "Conv": 1,
    "ConvTranspose": 1,
    "ConvInteger": 1,
    "QLinearConv": 3,
    "MatMul": 1,
    "MatMulInteger": 1,
    "QLinearMatMul": 3,
    "Gemm": 1,
}
_OTHER_PARAMETERS = {
    "Conv": (2,),
    "ConvTranspose": (2,),
    "QLinearConv": (8,),
    "Gemm": (2,),
    "BatchNormalization": (1, 2),
    "PRelu": (1,),
}
# Operators between a weight and its node that keep the number of values.
_PASSING = ("DequantizeLinear", "QuantizeLinear", "Cast", "Identity", "Reshape", "Transpose", "Unsqueeze", "Squeeze")


def graph_cost(path: Path) -> Cost:
    """Return the cost of an ONNX file. Raises CompressionError where it cannot be read or its sizes are not static.

    The convention is that of networks.counting: a convolution uses each weight once per output position, a transposed
    convolution once per input position, a matrix product once per row. Products of two computed matrices count too.
    Export writes bilinear upsampling as products with shares that sum to 1; these do not count.
    """
    try:
        graph = Graph(onnx.load(path))
    except Exception as error:  # onnx raises bare protobuf and C++ exceptions
        raise CompressionError(f"{path} cannot be read as an ONNX graph: {' '.join(str(error).split())}") from error
    try:
        return _count(graph)
    except CompressionError as error:
        raise CompressionError(f"{path}: {error}") from error


def _count(graph: Graph) -> Cost:
    multiply_adds = effective = 0
    # By the name of the constant: weights that two nodes share are one set of parameters.
    parameters: dict[str, Array] = {}
    for node in graph.nodes:
        if node.op_type in _WEIGHT_INPUT:
            uses, weight = _uses(graph, node)
            array = None if weight is None else _parameter(graph, weight)
            if array is not None and node.op_type == "MatMul" and _interpolates(array, weight == node.input[0]):
                continue
            multiply_adds += uses
            effective += uses if array is None else round(uses * np.count_nonzero(array) / array.size)
            if array is not None and weight is not None:
                parameters[_source(graph, weight)] = array
        for index in _OTHER_PARAMETERS.get(node.op_type, ()):
            if index < len(node.input) and (array := _parameter(graph, node.input[index])) is not None:
                parameters[_source(graph, node.input[index])] = array
    return Cost(
        sum(array.size for array in parameters.values()),
        sum(int(np.count_nonzero(array)) for array in parameters.values()),
        multiply_adds,
        effective,
    )


def _uses(graph: Graph, node: NodeProto) -> tuple[int, str | None]:
    """Return the node's multiply-adds and the name of its weight, None where both factors are computed."""
    first, name = node.input[0], node.input[_WEIGHT_INPUT[node.op_type]]
    if "Conv" in node.op_type:
        positions = graph.shape(first if node.op_type == "ConvTranspose" else node.output[0])
        # (N, C, ...): one use of every weight per image and place.
        return math.prod(graph.shape(name)) * positions[0] * math.prod(positions[2:]), name
    inner = graph.shape(first)[-2 if attributes(node).get("transA") else -1]
    candidates = [factor for factor in (name, first) if _parameter(graph, factor) is not None]
    return math.prod(graph.shape(node.output[0])) * inner, candidates[0] if candidates else None


def _parameter(graph: Graph, name: str) -> Array | None:
    """Return the values of a constant, None for computed values. The zero point of int8 weights is subtracted."""
    constant, maker = graph.constant(name), graph.producer(name)
    if constant is not None or maker is None or maker.op_type not in _PASSING:
        return constant
    values = _parameter(graph, maker.input[0])
    if maker.op_type != "DequantizeLinear" or values is None or len(maker.input) < 3:
        return values
    zero = _parameter(graph, maker.input[2])
    if zero is None or not zero.any():
        return values
    shape = [1] * values.ndim
    if zero.size > 1:
        shape[attributes(maker).get("axis", 1)] = zero.size
    return np.asarray(values.astype(np.int32) - zero.astype(np.int32).reshape(shape))


def _source(graph: Graph, name: str) -> str:
    maker = graph.producer(name)
    return name if maker is None else _source(graph, maker.input[0])


def _interpolates(array: Array, first: bool) -> bool:
    """Return whether a factor interpolates, which nothing learned does; first: it is the first factor."""
    if array.ndim < 2:
        return False
    return bool((array >= 0).all() and (array.sum(axis=-1 if first else -2) == 1).all())
