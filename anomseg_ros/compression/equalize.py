"""Scale the channels of each value to similar ranges. The neighbouring weights absorb the factors exactly.

An activation has one scale for all channels. Where one channel reaches 1 and another 30, the first has eight of 256
levels left. ReLUs (leaky ones too), pooling, unpooling, sums and concatenations commute with a positive factor per
channel. So the convolutions before can be divided by the factor and the convolutions after multiplied by it (Nagel et
al., Data-free quantization through weight equalization and bias correction, ICCV 2019). The factors balance the ranges
of activations and weights as SmoothQuant does (Xiao et al., ICML 2023). ALPHA leaves more to the weights than
SmoothQuant's 0.5, since rounding.py can compensate their rounding errors. Ranges are measured on camera frames.

Channels that are summed or compared must have one factor. A union-find structure collects them: a residual stream is
one set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from anomseg_ros.compression.graph import Array, Graph, attributes

ALPHA = 0.85
LARGEST_FACTOR = 1e3
"""Dead channels have no range. A larger factor means nothing and loses bits of the float weights."""

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
    """Return the values whose ranges per channel `equalize` needs: float values (N, C, H, W)."""
    return [name for node in graph.nodes for name in node.output if graph.is_float(name) and _is_map(graph, name)]


def equalize(graph: Graph, ranges: Mapping[str, Floats]) -> int:
    """Scale the channels of a graph; return how many convolutions changed.

    ranges: the largest magnitudes of each of `channel_values`, (C,).
    """
    sets = _ChannelSets(graph, ranges)
    for node in graph.nodes:
        _join(graph, node, sets)
    factors = _factors(graph, sets, ranges)
    changed = 0
    for node in [node for node in graph.nodes if _has_weights(graph, node)]:
        before, after = factors[sets.of(node.input[0])], factors[sets.of(node.output[0])]
        if np.any(before != 1) or np.any(after != 1):
            _scale_weights(graph, node, before, after)
            changed += 1
    graph.index()
    return changed


class _ChannelSets:
    """Channels of values, in sets that share a factor. The set of element 0 is pinned: its factor is 1."""

    def __init__(self, graph: Graph, values: Iterable[str]) -> None:
        self._channels: dict[str, range] = {}
        total = 1
        for name in values:
            self._channels[name] = range(total, total + graph.shape(name)[1])
            total = self._channels[name].stop
        self._parent = list(range(total))
        for name in graph.outputs:
            self.pin(name)

    def __contains__(self, name: str) -> bool:
        """Return whether a value has channels that may be scaled."""
        return name in self._channels

    def __len__(self) -> int:
        """Return a number above every set."""
        return len(self._parent)

    def join(self, first: str, second: str, start: int = 0) -> None:
        """Give the channels of the second value and those of the first value from `start` on one factor each."""
        for one, two in zip(self._channels[first][start:], self._channels[second], strict=False):
            self._parent[self._root(one)] = self._root(two)

    def pin(self, name: str) -> None:
        """Do not scale a value."""
        for channel in self._channels.get(name, ()):
            self._parent[self._root(channel)] = self._root(0)

    def of(self, name: str) -> Ints:
        """Return the set of each channel; the pinned set alone for an unknown value."""
        return np.array([self._root(channel) for channel in self._channels.get(name, (0,))])

    def _root(self, index: int) -> int:
        while self._parent[index] != index:
            self._parent[index] = self._parent[self._parent[index]]
            index = self._parent[index]
        return index


def _has_weights(graph: Graph, node: NodeProto) -> bool:
    return node.op_type in ("Conv", "ConvTranspose") and graph.constant(node.input[1]) is not None


def _join(graph: Graph, node: NodeProto, sets: _ChannelSets) -> None:
    """Apply what a node requires of the factors of its inputs and outputs."""
    names = (*node.input, *node.output)
    values = [name for name in names if name in sets]
    if _has_weights(graph, node):
        if attributes(node).get("group", 1) not in (1, graph.shape(node.input[0])[1]):
            for name in values:
                sets.pin(name)
    # Float values without channels are those of tokens.
    elif _keeps_channels(graph, node) and all(name in sets for name in names if graph.is_float(name)):
        for name in values[1:]:
            sets.join(values[0], name)
    elif node.op_type == "Concat" and attributes(node)["axis"] == 1 and len(values) == len(node.input) + 1:
        start = 0
        for name in node.input:
            sets.join(node.output[0], name, start)
            start += graph.shape(name)[1]
    else:
        for name in values:
            sets.pin(name)


def _keeps_channels(graph: Graph, node: NodeProto) -> bool:
    """Return whether scaling a channel of the inputs scales the same channel of the output."""
    op, given = node.op_type, attributes(node)
    if op == "Pad":
        pads = graph.constant(node.input[1])
        assert pads is not None
        fill = graph.bias(node)
        return given.get("mode", b"constant") == b"constant" and not np.any(fill or 0) and pads[1] == 0
    if len({graph.shape(name)[1] for name in (*node.input, *node.output) if _is_map(graph, name)}) != 1:
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
    """Return the factor of each set."""
    activation, weight = np.zeros(len(sets)), np.zeros(len(sets))
    for name, magnitudes in ranges.items():
        np.maximum.at(activation, sets.of(name), magnitudes)
    for node in graph.nodes:
        if _has_weights(graph, node) and attributes(node).get("group", 1) == 1:
            np.maximum.at(weight, sets.of(node.input[0]), _shares(graph, node))
    factors = np.ones_like(activation)
    both, alone = (activation > 0) & (weight > 0), (activation > 0) & (weight == 0)
    factors[both] = activation[both] ** ALPHA / weight[both] ** (1 - ALPHA)
    factors[alone] = activation[alone]
    factors = np.clip(factors, 1 / LARGEST_FACTOR, LARGEST_FACTOR)
    factors[sets.of("")] = 1.0
    return factors


def _shares(graph: Graph, node: NodeProto) -> Floats:
    """Return (C,): the largest weight of each input channel, as a share of the largest of the same output channel."""
    weight = np.abs(_by_output(graph, node)).max(axis=(2, 3))
    largest = weight.max(axis=1, keepdims=True)
    shares: Floats = np.divide(weight, largest, out=np.zeros_like(weight), where=largest > 0).max(axis=0)
    return shares


def _by_output(graph: Graph, node: NodeProto) -> Array:
    weight = graph.constant(node.input[1])
    assert weight is not None
    return np.asarray(weight.swapaxes(0, 1) if node.op_type == "ConvTranspose" else weight, np.float64)


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
    if (bias := graph.bias(node)) is not None:
        node.input[2] = graph.add_constant((bias / after).astype(np.float32), "bias")
