"""Static post-training quantization of a bundle's graph to 8 bits, for ONNX Runtime on a CPU or for TensorRT.

The network's body becomes integer: QuantizeLinear and DequantizeLinear surround each operator (QDQ), weights are
quantized by output channel. The classifier and the head (upsampling, labels and scores) stay in float: they take little
time, and 256 levels of a logit would make many scores equal. `rewrites`, `equalize` and `rounding` prepare the graph.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from anomseg_ros.compression.equalize import channel_values, equalize
from anomseg_ros.compression.graph import Array, Graph, head_nodes, is_layer, name_nodes, output_layers, with_followers
from anomseg_ros.compression.ranges import RangeConfig, channel_magnitudes, find_ranges, plain_session
from anomseg_ros.compression.rewrites import (
    fold_and_replace,
    multiply_instead_of_select,
    replace_transposed_convolutions,
    widen_grouped_inputs,
)
from anomseg_ros.compression.rounding import Rounded, input_moments, round_weights
from anomseg_ros.compression.sensitivity import AUTO, NONE, PROBES, Goal, checked_layers, find_float_layers
from anomseg_ros.core.bundle import GRAPH_INPUT
from anomseg_ros.core.progress import Progress
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import CompressionError, ConfigError


@dataclass(frozen=True)
class _Search:
    """How a target's search for layers to leave in float goes.

    ranges: method for the ranges of values. max_float: share of the layers that it may leave in float. margin, probes:
    see sensitivity.Goal. weight_bits: of integer weights.
    """

    ranges: str
    max_float: float
    margin: float
    probes: int
    weight_bits: int


_SEARCHES = {
    "onnxruntime": _Search("error", 0.25, 0.1, PROBES, 7),
    "tensorrt": _Search("entropy", 0.5, 0.3, 2 * PROBES, 8),
}
"""TensorRT's ranges are symmetric, so values after a ReLU have 7 bits: more layers have to stay in float. Weights
for a CPU have 7 bits: sums with 8 overflow on processors without VNNI (core/processor.py)."""
TARGETS = tuple(_SEARCHES)
WIDER_SHARES = (0.5, 0.75)
"""Shares of the layers that may stay in float where fewer are not enough for the held-out frames."""
QUANTIZED = ("Conv", "Gemm", "MatMul")
"""Operators of the layers that get integer weights."""
WEIGHT_BITS = (7, 8)
RELATIVE_TOLERANCE = 1e-3
"""Allowed difference of rewritten scores, as a share of their range: float32 sums in another order differ."""
COMPARED_FRAMES = 5
"""Frames on which the rewritten graph is compared with the original."""
ROUNDING = 16
"""Units in the last place by which they may always differ."""

_TENSORRT_OPTIONS: Mapping[str, Any] = {
    "ActivationSymmetric": True,
    "AddQDQPairToWeight": True,
    "DedicatedQDQPair": True,
    "QuantizeBias": False,
    "OpTypesToExcludeOutputQuantization": ["Conv", "Add"],
}
"""TensorRT: zero points of 0, one pair of nodes per reader, no pair between a convolution and its activation."""


@dataclass(frozen=True)
class QuantizeConfig:
    """How to quantize.

    keep_float: layers to leave in float: "auto", "none", or names as `layer_names` returns them. label_agreement,
    rank_correlation: what "auto" must preserve of the labels and of each score on calibration frames. max_float: share
    of the layers that it may leave in float for that; None: a quarter, for TensorRT half. margin: see sensitivity.Goal;
    None: the target's. weight_bits: 7 or 8; None: the target's.
    """

    target: str = "onnxruntime"
    ranges: RangeConfig = field(default_factory=RangeConfig)
    equalize: bool = True
    compensate: bool = True
    keep_float: str | tuple[str, ...] = AUTO
    label_agreement: float = 0.97
    rank_correlation: float = 0.98
    max_float: float | None = None
    margin: float | None = None
    weight_bits: int | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for a number of bits that no target has."""
        if self.weight_bits not in (*WEIGHT_BITS, None):
            raise ConfigError(f"`weight_bits` {self.weight_bits!r}: expected 7 or 8")

    @property
    def bits(self) -> int:
        """The number of bits of integer weights."""
        return _SEARCHES[self.target].weight_bits if self.weight_bits is None else self.weight_bits

    def goal(self, layers: int) -> Goal:
        """Return what the search for layers to leave in float must reach."""
        search = _SEARCHES[self.target]
        most = int((search.max_float if self.max_float is None else self.max_float) * layers)
        margin = search.margin if self.margin is None else self.margin
        return Goal(self.label_agreement, self.rank_correlation, most, margin, search.probes)

    def wider(self) -> Iterator[QuantizeConfig]:
        """Yield configurations that leave more layers in float, for "auto" where held-out frames lost too much."""
        search = _SEARCHES[self.target]
        share = search.max_float if self.max_float is None else self.max_float
        margin = search.margin if self.margin is None else self.margin
        for wider_share in WIDER_SHARES if self.keep_float == AUTO else ():
            if wider_share > share:
                margin = (1 + margin) / 2
                yield replace(self, max_float=wider_share, margin=margin)


def default_ranges(target: str) -> str:
    """Return the method for ranges that is best for most networks on a target."""
    return _SEARCHES[target].ranges


@dataclass(frozen=True)
class Quantized:
    """A quantized graph. float_layers: layers in float, with the classifier. noise_db: see find_float_layers."""

    model: onnx.ModelProto
    layers: int
    float_layers: tuple[str, ...]
    noise_db: Mapping[str, float]


def quantize(
    model: onnx.ModelProto, tensors: Sequence[RgbImage], config: QuantizeConfig, progress: Progress
) -> Quantized:
    """Quantize a detector's graph.

    Args:
        model: the float graph.
        tensors: calibration frames, uint8 (1, H, W, 3).
        config: how to quantize.
        progress: called after each frame and layer.

    Raises:
        CompressionError: the graph is quantized already, has nothing to quantize or cannot be run.
    """
    _require_float(model)
    reference = plain_session(model)
    graph = prepare(model, tensors, config, progress)
    _require_same(reference, graph, tensors[:COMPARED_FRAMES])
    layers = layer_names(graph)
    sums = sum_names(graph) if config.target == "tensorrt" else []
    rounded: dict[str, Rounded] = {}
    if config.compensate:
        convolutions = [node for node in graph.nodes if node.op_type == "Conv" and node.name in layers]
        moments = input_moments(graph, convolutions, tensors, progress)
        rounded = round_weights(graph, convolutions, moments, config.bits)
    head = {id(node) for node in head_nodes(graph)}
    names = [name for node in graph.nodes for name in node.output if id(node) not in head and graph.is_float(name)]
    range_config = replace(config.ranges, symmetric=config.target == "tensorrt")
    ranges = find_ranges(graph, names, tensors, range_config, progress)
    plan = _Plan(graph.finish(), ranges, rounded, config.target, config.bits)
    noise: dict[str, float] = {}
    if config.keep_float == AUTO:
        goal = config.goal(len(layers))
        float_layers, noise = find_float_layers(plan.build, layers, reference, tensors, goal, progress, sums)
    else:
        float_layers = () if config.keep_float == NONE else checked_layers(config.keep_float, [*layers, *sums])
    classifiers = _classifiers(graph)
    model = plan.build(float_layers)
    return Quantized(model, len(layers) + len(classifiers), (*classifiers, *float_layers), noise)


def prepare(model: onnx.ModelProto, tensors: Sequence[RgbImage], config: QuantizeConfig, progress: Progress) -> Graph:
    """Return an equal graph that quantizes well: rewritten, with channels of similar ranges."""
    graph = Graph(model)
    name_nodes(graph)
    fold_and_replace(graph)
    if config.equalize:
        equalize(graph, channel_magnitudes(graph, channel_values(graph), tensors, progress))
    replace_transposed_convolutions(graph)
    multiply_instead_of_select(graph)
    if config.target == "onnxruntime":
        widen_grouped_inputs(graph)
    graph.infer()
    if not layer_names(graph):
        raise CompressionError("the graph has no convolution but its classifier: there is nothing to quantize")
    return graph


def layer_names(graph: Graph) -> list[str]:
    """Return the names of the layers that can be quantized, in order: all weighted layers but the classifier."""
    others = {node.name for node in (*output_layers(graph), *head_nodes(graph))}
    layers = [node for node in graph.nodes if node.op_type in QUANTIZED and is_layer(graph, node)]
    return [node.name for node in layers if node.name not in others]


def sum_names(graph: Graph) -> list[str]:
    """Return the names of the sums of two values. Where their inputs are quantized, residual streams lose most."""
    head = {id(node) for node in head_nodes(graph)}
    adds = [node for node in graph.nodes if node.op_type == "Add" and id(node) not in head]
    return [node.name for node in adds if not graph.constants_of(node) and graph.is_float(node.output[0])]


def _classifiers(graph: Graph) -> tuple[str, ...]:
    """Return the classifiers' names; for a classifier that works in strips, that of the first strip."""
    return tuple({node.input[1]: node.name for node in reversed(output_layers(graph))}.values())


@dataclass(frozen=True)
class _Plan:
    """Everything that determines a quantized graph, except the layers left in float."""

    model: onnx.ModelProto
    ranges: TensorsData
    rounded: Mapping[str, Rounded]
    target: str
    weight_bits: int

    def build(self, keep_float: Collection[str]) -> onnx.ModelProto:
        """Return the graph with everything quantized except these layers and the head."""
        graph = Graph(self.model)
        overrides = {}
        for node in graph.nodes:
            if node.name in self.rounded and node.name not in keep_float:
                self.rounded[node.name].put_into(graph, node)
                overrides[node.input[1]] = _override(self.rounded[node.name].scale)
        model = graph.finish()
        excluded = [node.name for node in (*head_nodes(graph), *output_layers(graph))]
        # A sum or concatenation would round the results of layers in float.
        excluded += [*with_followers(graph, keep_float, layer_names(graph)), *keep_float]
        tensorrt = self.target == "tensorrt"
        # Runtimes have no integer kernel for these; they would only be rounded.
        operators = sorted({*QDQRegistry, *QLinearOpsRegistry} - {"Softmax", "ArgMax", "LayerNormalization"})
        if tensorrt:  # products of two computed matrices, as in attention, stay in float
            layers = set(layer_names(graph))
            excluded += [node.name for node in graph.nodes if node.op_type == "MatMul" and node.name not in layers]
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=self.weight_bits < 8,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8 if tensorrt else QuantType.QUInt8,
            tensors_range=self.ranges,
            nodes_to_quantize=[],
            nodes_to_exclude=excluded,
            op_types_to_quantize=[*QUANTIZED, "Add"] if tensorrt else operators,
            extra_options={**(_TENSORRT_OPTIONS if tensorrt else {}), "TensorQuantOverrides": overrides},
        )
        root = logging.getLogger()
        level = root.level
        root.setLevel(logging.ERROR)
        try:
            quantizer.quantize_model()
        finally:
            root.setLevel(level)
        quantizer.model.topological_sort()  # ONNX and graph_outputs.py require this order
        built: onnx.ModelProto = quantizer.model.model
        return _with_float_inputs(built, excluded) if tensorrt else built


def _with_float_inputs(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """Return the model with these nodes reading values before they are rounded for other readers.

    The quantizer gives every reader of a quantized value a pair of nodes. ONNX Runtime is faster with them.
    """
    graph, chosen = Graph(model), set(names)
    for node in [node for node in graph.nodes if node.name in chosen]:
        for index, name in enumerate(node.input):
            dequantize = graph.producer(name)
            if dequantize is None or dequantize.op_type != "DequantizeLinear":
                continue
            quantize_node = graph.producer(dequantize.input[0])
            if quantize_node is not None and graph.constant(quantize_node.input[0]) is None:
                node.input[index] = quantize_node.input[0]
    return graph.finish()


def _override(scales: Array) -> list[dict[str, Any]]:
    """Return the quantizer's settings for given scales per output channel and zero points of 0."""
    rows = [{"scale": np.float32(scale), "zero_point": np.int8(0), "quant_type": QuantType.QInt8} for scale in scales]
    rows[0]["axis"] = 0
    return rows


def _require_float(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if "QuantizeLinear" in node.op_type or node.op_type.startswith("QLinear"):
            raise CompressionError(
                f"node {node.name!r} ({node.op_type}): the graph is quantized already; quantize the float bundle it "
                "was made from"
            )
        if node.domain not in ("", "ai.onnx"):
            raise CompressionError(
                f"node {node.name!r} is {node.domain}.{node.op_type}, which no backend but its own knows; export the "
                "network without it"
            )


def _require_same(reference: Any, graph: Graph, tensors: Sequence[RgbImage]) -> None:
    """Raise CompressionError unless the rewritten graph computes the scores of the original on half of the frames.

    A wrong graph differs on all of them. A right one may differ on some: max-unpooling takes another place where values
    are equal up to rounding, which changes a region of the frame.
    """
    outputs = [output.name for output in reference.get_outputs() if output.type == "tensor(float)"]
    rewritten = plain_session(graph.finish())
    shares = []
    for tensor in tensors:
        before, after = (session.run(outputs, {GRAPH_INPUT: tensor}) for session in (reference, rewritten))
        shares.append([_share_off(*pair) for pair in zip(before, after, strict=True)])
    for name, share in zip(outputs, np.quantile(shares, 0.5, axis=0, method="lower"), strict=True):
        if share > RELATIVE_TOLERANCE:
            raise CompressionError(
                f"output {name!r} changed in {share:.1%} of the pixels when the graph was rewritten; nothing was "
                "written; please report this network"
            )


def _share_off(before: Array, after: Array) -> float:
    """Return the share of the pixels whose score changed by more than rounding."""
    # Where a score hardly varies, its magnitude limits what float32 can resolve.
    least = ROUNDING * float(np.finfo(np.float32).eps) * float(np.abs(before).max())
    return float((np.abs(before - after) > max(1e-9, RELATIVE_TOLERANCE * float(np.ptp(before)), least)).mean())
