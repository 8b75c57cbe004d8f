"""Channels of one value brought to alike ranges, by factors that neighbouring weights absorb: the result is the same.

An activation has one scale for all its channels; where one channel reaches 1 and another 30, the first is left with
eight of 256 levels. ReLUs (leaky ones too), pooling, unpooling, sums and concatenations commute with a positive factor
per channel, so that the convolutions before can be divided by it and those after multiplied (Nagel et al., Data-free
quantization through weight equalization and bias correction, ICCV 2019). The factors balance the ranges of activation
and weight as SmoothQuant does (Xiao et al., ICML 2023), with more left to the weights, whose rounding errors can be
made good (rounding.py), than its alpha of 0.5; ranges are measured on camera frames.

Channels that must have one factor, since they are summed or compared, are found by union: a residual stream is one set.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from anomseg_ros.compression.graph import Array, Graph, attributes

ALPHA = 0.85
LARGEST_FACTOR = 1e3
"""Dead channels have no range; a factor beyond this says nothing and loses bits of the float weights."""

HOMOGENEOUS = {
    "Relu",
    "LeakyRelu",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Identity",
    "Dropout",
    "DepthToSpace",
}

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def channel_values(graph: Graph) -> list[str]:
    """Return the values whose ranges per channel `equalize` needs: what convolutions, sums and joins make."""
    return [name for node in graph.nodes for name in node.output if _has_channels(graph, name)]


def equalize(graph: Graph, ranges: Mapping[str, Floats]) -> int:
    """Scale channels by the largest magnitudes `ranges`, (C,) per value; return how many convolutions changed."""
    sets = _ChannelSets(graph, ranges)
    for node in graph.nodes:
        _join(graph, node, sets)
    factors = _factors(graph, sets, ranges)
    changed = 0
    for node in [node for node in graph.nodes if _has_weights(graph, node)]:
        before, after = factors[sets.of(node.input[0])], factors[sets.of(node.output[0])]
        if np.ptp(before) or np.ptp(after) or before[0] != 1 or after[0] != 1:
            _scale_weights(graph, node, before, after)
            changed += 1
    graph.index()
    return changed


class _ChannelSets:
    """Channels of values, in sets that share a factor; a set with a pinned channel keeps the factor 1."""

    def __init__(self, graph: Graph, values: Mapping[str, Floats]) -> None:
        self._start: dict[str, tuple[int, int]] = {}
        total = 0
        for name in values:
            count = graph.shape(name)[1]
            self._start[name] = (total, count)
            total += count
        self._parent = np.arange(total)
        self._pinned = np.zeros(total, bool)
        for name in graph.outputs:
            self.pin(name)

    def knows(self, name: str) -> bool:
        """Whether a value has channels that may be scaled."""
        return name in self._start

    def join(
        self, first: str, second: str, first_from: int = 0, second_from: int = 0, count: int | None = None
    ) -> None:
        """Give `count` channels of two values one factor each."""
        (a, a_count), (b, b_count) = self._start[first], self._start[second]
        count = min(a_count - first_from, b_count - second_from) if count is None else count
        for index in range(count):
            self._parent[self._root(a + first_from + index)] = self._root(b + second_from + index)

    def pin(self, name: str) -> None:
        """Leave a value as it is."""
        if name in self._start:
            start, count = self._start[name]
            self._pinned[start : start + count] = True

    def of(self, name: str) -> Ints:
        """Return the set of each channel; -1 where it is pinned or the value is unknown."""
        if name not in self._start:
            return np.array([-1])
        start, count = self._start[name]
        roots = np.array([self._root(index) for index in range(start, start + count)])
        return np.where(self._pinned_roots()[roots], -1, roots)

    def size(self) -> int:
        """Return a number above every set."""
        return len(self._parent)

    def _pinned_roots(self) -> npt.NDArray[np.bool_]:
        if not hasattr(self, "_pinned_sets"):
            self._pinned_sets = np.zeros(len(self._parent), bool)
            for index in np.flatnonzero(self._pinned):
                self._pinned_sets[self._root(int(index))] = True
        return self._pinned_sets

    def _root(self, index: int) -> int:
        while self._parent[index] != index:
            self._parent[index] = self._parent[self._parent[index]]
            index = int(self._parent[index])
        return index


def _has_channels(graph: Graph, name: str) -> bool:
    return graph.is_float(name) and len(graph.shape(name)) >= 4


def _has_weights(graph: Graph, node: NodeProto) -> bool:
    return node.op_type in ("Conv", "ConvTranspose") and graph.constant(node.input[1]) is not None


def _join(graph: Graph, node: NodeProto, sets: _ChannelSets) -> None:
    """Say what a node demands of the factors of its inputs and outputs."""
    values = [name for name in (*node.input, *node.output) if sets.knows(name)]
    if _has_weights(graph, node):
        if attributes(node).get("group", 1) not in (1, graph.shape(node.input[0])[1]):
            for name in values:
                sets.pin(name)
    elif _keeps_channels(graph, node):
        for name in values[1:]:
            sets.join(values[0], name)
    elif node.op_type == "Concat" and attributes(node)["axis"] == 1 and len(values) == len(node.input) + 1:
        start = 0
        for name in node.input:
            sets.join(node.output[0], name, start, 0, graph.shape(name)[1])
            start += graph.shape(name)[1]
    else:
        for name in values:
            sets.pin(name)


def _keeps_channels(graph: Graph, node: NodeProto) -> bool:
    """Whether every channel of the output comes from the same channel of the inputs, homogeneously."""
    op, given = node.op_type, attributes(node)
    channels = {graph.shape(name)[1] for name in (*node.input, *node.output) if _is_map(graph, name)}
    if op == "Pad":
        pads = graph.constant(node.input[1])
        assert pads is not None
        fill = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        return given.get("mode", b"constant") == b"constant" and not np.any(fill or 0) and pads[1] == 0
    if len(channels) != 1:
        return False
    constants = graph.constants_of(node)
    if op == "Where":
        return not any(np.any(value) for value in constants)
    if op in ("Add", "Equal", "Max"):
        return not constants
    if op == "Concat":
        return given["axis"] not in (1, 1 - len(graph.shape(node.output[0])))
    if op == "Slice":
        axes = graph.constant(node.input[3]) if len(node.input) > 3 else None
        return axes is not None and not {0, 1, 1 - len(graph.shape(node.input[0]))}.intersection(axes.tolist())
    if op in ("Reshape", "Unsqueeze"):
        return graph.shape(node.input[0])[:2] == graph.shape(node.output[0])[:2]
    return op in HOMOGENEOUS or (op == "PRelu" and bool(constants))


def _is_map(graph: Graph, name: str) -> bool:
    return bool(name) and graph.constant(name) is None and len(graph.shape(name)) >= 4


def _factors(graph: Graph, sets: _ChannelSets, ranges: Mapping[str, Floats]) -> Floats:
    """Return the factor of each set; the last entry, which -1 finds, is 1."""
    activation = np.zeros(sets.size() + 1)
    weight = np.zeros(sets.size() + 1)
    for name, magnitudes in ranges.items():
        np.maximum.at(activation, sets.of(name), magnitudes)
    for node in graph.nodes:
        if _has_weights(graph, node) and attributes(node).get("group", 1) == 1:
            np.maximum.at(weight, sets.of(node.input[0]), _shares(graph, node))
    known = (activation > 0) & (weight > 0)
    factors = np.ones_like(activation)
    factors[known] = activation[known] ** ALPHA / weight[known] ** (1 - ALPHA)
    alone = (activation > 0) & (weight == 0)
    factors[alone] = activation[alone]
    factors = np.clip(factors, 1 / LARGEST_FACTOR, LARGEST_FACTOR)
    factors[-1] = 1.0
    return factors


def _shares(graph: Graph, node: NodeProto) -> Floats:
    """Return per input channel its largest weight as a share of the largest of the same output channel, (C,)."""
    weight = np.abs(_by_output(graph, node)).max(axis=(2, 3))
    largest = weight.max(axis=1, keepdims=True)
    shares: Floats = np.divide(weight, largest, out=np.zeros_like(weight), where=largest > 0).max(axis=0)
    return shares


def _by_output(graph: Graph, node: NodeProto) -> Array:
    weight = graph.constant(node.input[1])
    assert weight is not None
    transposed = node.op_type == "ConvTranspose"
    return np.asarray(weight.swapaxes(0, 1) if transposed else weight, np.float64)


def _scale_weights(graph: Graph, node: NodeProto, before: Floats, after: Floats) -> None:
    """Multiply a convolution's weights by its input's factors and divide them by its output's."""
    weight = _by_output(graph, node)
    if attributes(node).get("group", 1) == 1:
        scaled = weight * before[None, :, None, None] / after[:, None, None, None]
    else:
        repeated = np.repeat(before, weight.shape[0] // len(before)) if len(before) > 1 else before
        scaled = weight * (repeated / after)[:, None, None, None]
    if node.op_type == "ConvTranspose":
        scaled = scaled.swapaxes(0, 1)
    node.input[1] = graph.add_constant(scaled.astype(np.float32), "weight")
    if len(node.input) > 2 and node.input[2]:
        bias = graph.constant(node.input[2])
        assert bias is not None
        node.input[2] = graph.add_constant((bias / after).astype(np.float32), "bias")
