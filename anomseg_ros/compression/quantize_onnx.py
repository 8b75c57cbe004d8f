"""Static post-training quantization of a bundle's graph to 8 bits, for ONNX Runtime on a CPU or for TensorRT.

The network's body becomes integer, QuantizeLinear and DequantizeLinear around each operator (QDQ), weights by output
channel. The classifier and what follows, upsampling, labels and scores, stay in float: 256 levels of a logit make ties
of scores, and these operators take little time. `rewrites`, `equalize` and `rounding` say what is done before, and why.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from anomseg_ros.compression import sensitivity
from anomseg_ros.compression.calibration import Calibration, Progress, calibrate, channel_magnitudes, plain_session
from anomseg_ros.compression.equalize import channel_values, equalize
from anomseg_ros.compression.graph import Array, Graph
from anomseg_ros.compression.head import head_nodes, output_layers
from anomseg_ros.compression.rewrites import (
    fold_and_replace,
    multiply_instead_of_select,
    replace_transposed_convolutions,
    widen_grouped_inputs,
)
from anomseg_ros.compression.rounding import Rounded, input_moments, round_weights
from anomseg_ros.core.bundle import GRAPH_INPUT
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import CompressionError, closest_first

TARGETS = ("onnxruntime", "tensorrt")
AUTO, NONE = "auto", "none"
RELATIVE_TOLERANCE = 1e-3
"""By how much rewritten scores may differ, of their range: float32 sums in another order, through a whole network."""
ROUNDING = 16
"""By how many units in the last place they may differ in any case."""

_TENSORRT_OPTIONS: Mapping[str, Any] = {
    "ActivationSymmetric": True,
    "AddQDQPairToWeight": True,
    "DedicatedQDQPair": True,
    "QuantizeBias": False,
    "OpTypesToExcludeOutputQuantization": ["Conv", "Add"],
}
"""TensorRT: zero points 0, a pair of nodes per reader, and none between a convolution and its activation."""


@dataclass(frozen=True)
class QuantizeConfig:
    """How to quantize. keep_float: "auto", "none", or names of layers; see `layer_names`.

    label_agreement: share of the labels that `auto` has to keep, on calibration frames; max_float: share of the layers
    that it may leave in float for that.
    """

    target: str = "onnxruntime"
    calibration: Calibration = field(default_factory=Calibration)
    equalize: bool = True
    compensate: bool = True
    keep_float: str | tuple[str, ...] = AUTO
    label_agreement: float = 0.97
    max_float: float = 0.25


@dataclass(frozen=True)
class Quantized:
    """A quantized graph and how it came about. float_layers: layers left in float, the classifier among them."""

    model: onnx.ModelProto
    layers: int
    float_layers: tuple[str, ...]
    noise_db: Mapping[str, float]


def quantize(
    model: onnx.ModelProto, tensors: Sequence[RgbImage], config: QuantizeConfig, progress: Progress
) -> Quantized:
    """Quantize a detector's graph, calibrated on uint8 (1, H, W, 3) tensors.

    Raises CompressionError for a graph that is quantized already, has nothing to quantize or cannot be run.
    """
    _require_float(model)
    reference = plain_session(model)
    graph = prepare(model, tensors, config, progress)
    _require_same(reference, graph, tensors[0])
    rounded = _rounded(graph, tensors, progress) if config.compensate else {}
    names = _body_values(graph)
    wanted = replace(config.calibration, symmetric=config.target == "tensorrt")
    plan = _Plan(graph.finish(), calibrate(graph, names, tensors, wanted, progress), rounded, config.target)
    layers = layer_names(graph)
    noise: dict[str, float] = {}
    if config.keep_float == AUTO:
        goal = sensitivity.Goal(config.label_agreement, int(config.max_float * len(layers)))
        kept, noise = sensitivity.find_float_layers(plan.build, layers, reference, tensors, goal, progress)
    else:
        kept = _checked_names(() if config.keep_float == NONE else config.keep_float, layers)
    classifiers = _classifiers(graph)
    return Quantized(plan.build(kept), len(layers) + len(classifiers), (*classifiers, *kept), noise)


def prepare(model: onnx.ModelProto, tensors: Sequence[RgbImage], config: QuantizeConfig, progress: Progress) -> Graph:
    """Return an equal graph that quantizes well: rewritten, and its channels brought to alike ranges."""
    graph = Graph(model)
    _name_nodes(graph)
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
    """Return the names of the layers that can be quantized: convolutions before the classifier, in order."""
    last = {node.name for node in output_layers(graph)}
    return [node.name for node in graph.nodes if node.op_type in ("Conv", "Gemm") and node.name not in last]


def _classifiers(graph: Graph) -> tuple[str, ...]:
    """Return the classifiers' names, of one that goes over a frame in strips the first strip's."""
    return tuple({node.input[1]: node.name for node in reversed(output_layers(graph))}.values())


@dataclass(frozen=True)
class _Plan:
    """All that a quantized graph is made of, but for the layers left in float."""

    model: onnx.ModelProto
    ranges: TensorsData
    rounded: Mapping[str, Rounded]
    target: str

    def build(self, keep_float: Collection[str]) -> onnx.ModelProto:
        """Return the graph with everything quantized but these layers and the head."""
        graph = Graph(self.model)
        overrides = {}
        for node in graph.nodes:
            if node.name in self.rounded and node.name not in keep_float:
                self.rounded[node.name].put_into(graph, node)
                overrides[node.input[1]] = _override(self.rounded[node.name].scale)
        model = graph.finish()
        excluded = [node.name for node in (*head_nodes(graph), *output_layers(graph))]
        excluded += _with_followers(graph, keep_float)
        options: dict[str, Any] = dict(_TENSORRT_OPTIONS) if self.target == "tensorrt" else {}
        options["TensorQuantOverrides"] = overrides
        operators = {*QDQRegistry, *QLinearOpsRegistry} - {"Softmax", "ArgMax"}
        quantizer = QDQQuantizer(
            model,
            True,
            False,
            QuantType.QInt8,
            QuantType.QInt8 if self.target == "tensorrt" else QuantType.QUInt8,
            self.ranges,
            [],
            excluded,
            ["Conv", "Gemm", "Add"] if self.target == "tensorrt" else sorted(operators),
            options,
        )
        root = logging.getLogger()
        level = root.level
        root.setLevel(logging.ERROR)
        try:
            quantizer.quantize_model()
        finally:
            root.setLevel(level)
        quantizer.model.topological_sort()  # which ONNX demands, and the cutting of outputs relies on
        built: onnx.ModelProto = quantizer.model.model
        return built


def _with_followers(graph: Graph, layers: Collection[str]) -> list[str]:
    """Return layers and what follows each up to the next one: a sum or join would round their results all the same."""
    known, kept, inside = set(layer_names(graph)), [], False
    for node in graph.nodes:
        inside = node.name in layers if node.name in known else inside
        if inside:
            kept.append(node.name)
    return kept


def _override(scales: Array) -> list[dict[str, Any]]:
    """Return the quantizer's words for given scales per output channel, and zero points of 0."""
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


def _name_nodes(graph: Graph) -> None:
    """Give every node a name of its own: layers are chosen by name."""
    used: set[str] = set()
    for index, node in enumerate(graph.nodes):
        if not node.name or node.name in used:
            node.name = f"{node.op_type}_{index}"
        used.add(node.name)


def _rounded(graph: Graph, tensors: Sequence[RgbImage], progress: Progress) -> dict[str, Rounded]:
    last = {node.name for node in output_layers(graph)}
    convolutions = [node for node in graph.nodes if node.op_type == "Conv" and node.name not in last]
    return round_weights(graph, convolutions, input_moments(graph, convolutions, tensors, progress))


def _body_values(graph: Graph) -> list[str]:
    head = {id(node) for node in head_nodes(graph)}
    body: list[NodeProto] = [node for node in graph.nodes if id(node) not in head]
    return [name for node in body for name in node.output if graph.is_float(name)]


def _checked_names(names: Sequence[str], layers: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if name not in layers:
            close = ", ".join(closest_first(name, layers)[:5])
            raise CompressionError(
                f"--keep-float: the graph has no layer {name!r}; the closest of {len(layers)}: {close}"
            )
    return tuple(names)


def _require_same(reference: Any, graph: Graph, tensor: RgbImage) -> None:
    """Raise CompressionError unless the rewritten graph computes what the one it came from does."""
    outputs = [output.name for output in reference.get_outputs()]
    rewritten = plain_session(graph.finish()).run(outputs, {GRAPH_INPUT: tensor})
    kinds = {output.name: output.type.tensor_type.elem_type for output in graph.model.graph.output}
    for name, before, after in zip(outputs, reference.run(outputs, {GRAPH_INPUT: tensor}), rewritten, strict=True):
        if kinds[name] != TensorProto.FLOAT:
            continue
        # Where a score hardly varies, its size says what float32 can tell apart: sums of C terms, in another order.
        least = ROUNDING * float(np.finfo(np.float32).eps) * float(np.abs(before).max())
        off = np.abs(before - after) > max(1e-9, RELATIVE_TOLERANCE * float(np.ptp(before)), least)
        if off.mean() > RELATIVE_TOLERANCE:
            raise CompressionError(
                f"output {name!r} changed in {off.mean():.1%} of the pixels when the graph was rewritten; nothing "
                "was written; please report this network"
            )
