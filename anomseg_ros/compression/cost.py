"""Parameters and multiply-adds, counted in the ONNX graph itself, so that they hold for pruned and int8 graphs too."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, numpy_helper

from anomseg_ros.errors import CompressionError

Shape = tuple[int, ...]
Array = npt.NDArray[Any]

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
# What stands between a weight and the node that uses it without changing the number of its values.
_PASSING = ("DequantizeLinear", "QuantizeLinear", "Cast", "Identity", "Reshape", "Transpose", "Unsqueeze", "Squeeze")


@dataclass(frozen=True)
class Cost:
    """parameters: values of weights, biases, normalisations and slopes; nonzero_parameters: those that are not 0.

    multiply_adds: of one frame; effective_multiply_adds: without those by a weight of 0, as unstructured pruning is
    counted in papers. Dense kernels compute them all the same.
    """

    parameters: int
    nonzero_parameters: int
    multiply_adds: int
    effective_multiply_adds: int


def graph_cost(path: Path) -> Cost:
    """Return the cost of an ONNX file. Raises CompressionError where it cannot be read or its sizes are not static.

    The convention is that of networks.counting: a convolution uses each of its weights once per output position, a
    transposed one once per input position, a matrix product once per row. Products of two computed matrices count as
    well. Export writes bilinear upsampling as products with shares that add up to 1, which do not count.
    """
    try:
        model = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True)
    except Exception as error:  # onnx raises bare protobuf and C++ exceptions
        raise CompressionError(f"{path} cannot be read as an ONNX graph: {' '.join(str(error).split())}") from error
    return _Counter(model.graph, path).count()


class _Counter:
    """Walks the nodes of a graph."""

    def __init__(self, graph: onnx.GraphProto, path: Path) -> None:
        self._path = path
        self._nodes = graph.node
        self._makers: dict[str, NodeProto] = {name: node for node in graph.node for name in node.output}
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        values = (*graph.value_info, *graph.input, *graph.output)
        self._shapes = {value.name: _static_shape(value.type.tensor_type) for value in values}
        self._counted: dict[str, tuple[int, int]] = {}

    def count(self) -> Cost:
        multiply_adds = effective = 0
        for node in self._nodes:
            if node.op_type in _WEIGHT_INPUT:
                uses, weight = self._uses(node)
                array = None if weight is None else self._parameter(weight)
                if array is not None and node.op_type == "MatMul" and _interpolates(array, weight == node.input[0]):
                    continue
                multiply_adds += uses
                effective += uses if array is None else round(uses * np.count_nonzero(array) / array.size)
                if array is not None and weight is not None:
                    self._note(weight, array)
            for index in _OTHER_PARAMETERS.get(node.op_type, ()):
                if index < len(node.input) and (values := self._parameter(node.input[index])) is not None:
                    self._note(node.input[index], values)
        totals = [sum(pair[place] for pair in self._counted.values()) for place in (0, 1)]
        return Cost(totals[0], totals[1], multiply_adds, effective)

    def _note(self, name: str, array: Array) -> None:
        # By the name of the constant: weights that two nodes share are one set of parameters.
        self._counted[self._source(name)] = (array.size, int(np.count_nonzero(array)))

    def _uses(self, node: NodeProto) -> tuple[int, str | None]:
        """Return the node's multiply-adds and the name of its weight, None where both factors are computed."""
        name = node.input[_WEIGHT_INPUT[node.op_type]]
        if "Conv" in node.op_type:
            weight = self._shape(name)
            positions = self._shape(node.input[0] if node.op_type == "ConvTranspose" else node.output[0])
            # (N, C, ...): one use of every weight per image and place.
            return math.prod(weight) * positions[0] * math.prod(positions[2:]), name
        first = node.input[0]
        inner = self._shape(first)[-2 if _attribute(node, "transA") else -1]
        uses = math.prod(self._shape(node.output[0])) * inner
        candidates = [given for given in (name, first) if self._parameter(given) is not None]
        return uses, candidates[0] if candidates else None

    def _parameter(self, name: str) -> Array | None:
        """Return the values of a constant, with an int8 weight's zero point taken off; None for what is computed."""
        maker = self._makers.get(name)
        if name in self._tensors:
            return numpy_helper.to_array(self._tensors[name])
        if maker is None:
            return None
        if maker.op_type == "Constant":
            return _constant_value(maker)
        if maker.op_type not in _PASSING:
            return None
        values = self._parameter(maker.input[0])
        if maker.op_type != "DequantizeLinear" or values is None or len(maker.input) < 3:
            return values
        zero = self._parameter(maker.input[2])
        if zero is None or not zero.any():
            return values
        axis = [1] * values.ndim
        if zero.size > 1:
            axis[int(_attribute(maker, "axis", 1))] = zero.size
        return np.asarray(values.astype(np.int32) - zero.astype(np.int32).reshape(axis if values.ndim else ()))

    def _source(self, name: str) -> str:
        maker = self._makers.get(name)
        return name if maker is None or maker.op_type == "Constant" else self._source(maker.input[0])

    def _shape(self, name: str) -> Shape:
        if name in self._tensors:
            return tuple(self._tensors[name].dims)
        shape = self._shapes.get(name)
        if shape is None:
            constant = self._parameter(name)
            if constant is None:
                raise CompressionError(
                    f"{self._path}: the size of {name!r} is not known; export the checkpoint again at a fixed size"
                )
            return tuple(constant.shape)
        return shape


def _interpolates(array: Array, first: bool) -> bool:
    """Return whether a factor interpolates, which nothing learned does; first: it is the first factor."""
    if array.ndim < 2:
        return False
    return bool((array >= 0).all() and (array.sum(axis=-1 if first else -2) == 1).all())


def _static_shape(tensor: onnx.TypeProto.Tensor) -> Shape | None:
    sizes = tuple(dimension.dim_value for dimension in tensor.shape.dim)
    return sizes if tensor.HasField("shape") and all(size > 0 for size in sizes) else None


def _attribute(node: NodeProto, name: str, default: int = 0) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def _constant_value(node: NodeProto) -> Array | None:
    for attribute in node.attribute:
        if attribute.name == "value":
            return numpy_helper.to_array(attribute.t)
    return None
