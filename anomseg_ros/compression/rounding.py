"""Weights rounded to eight bits so that the error of one is made good by its neighbours, and the mean by the bias.

Rounding each weight to the nearest level is not what keeps a convolution's output: neighbouring pixels are alike, and
errors that add up over a kernel shift whole areas. Weights are rounded one input at a time, and what each loses is
spread over those still to come by the inputs' second moments, as GPTQ does (Frantar et al., ICLR 2023); the mean that
remains is taken from the bias (Nagel et al., ICCV 2019). Inputs are those of the float network on camera frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import NodeProto, TensorProto, helper

from anomseg_ros.compression.calibration import Progress, plain_session
from anomseg_ros.compression.graph import Array, Graph, attributes
from anomseg_ros.core.bundle import GRAPH_INPUT
from anomseg_ros.core.types import RgbImage

LEVELS = 127
DAMPING = 0.01
"""Share of the mean variance that is added to each input's own: keeps rarely active inputs from taking large errors."""
PATCHES = 12000
"""Places looked at in all frames together, per convolution."""

Floats = npt.NDArray[np.float64]


@dataclass
class Moments:
    """Second moments and sums of a convolution's input patches, (K, K) and (K,), over `count` patches.

    Both are of patches less `centre`: without that, float32 loses a small variance beside a large mean.
    """

    squares: npt.NDArray[np.float32]
    sums: Floats
    centre: npt.NDArray[np.float32]
    count: int = 0

    def covariance(self) -> Floats:
        """Return the patches' covariance."""
        mean = self.sums / max(1, self.count)
        covariance: Floats = self.squares.astype(np.float64) / max(1, self.count) - np.outer(mean, mean)
        return covariance

    def mean(self) -> Floats:
        """Return the patches' mean."""
        mean: Floats = self.centre + self.sums / max(1, self.count)
        return mean

    def add(self, patches: npt.NDArray[np.float32]) -> None:
        """Count patches (n, K)."""
        less = patches - self.centre
        self.squares += less.T @ less
        self.sums += less.sum(axis=0, dtype=np.float64)
        self.count += len(patches)


def input_moments(
    graph: Graph, convolutions: Sequence[NodeProto], tensors: Sequence[RgbImage], progress: Progress
) -> dict[str, Moments]:
    """Return the moments of each ordinary convolution's input, by the convolution's output, on uint8 (1, H, W, 3)."""
    wanted = [node for node in convolutions if attributes(node).get("group", 1) == 1]
    names = list(dict.fromkeys(node.input[0] for node in wanted))
    session = _session(graph, names)
    moments: dict[str, Moments] = {}
    generator = np.random.default_rng(0)
    for index, tensor in enumerate(tensors):
        values = dict(zip(names, session.run(names, {GRAPH_INPUT: tensor}), strict=True))
        for node in wanted:
            patches = _patches(graph, node, np.asarray(values[node.input[0]]), PATCHES // len(tensors), generator)
            size = patches.shape[1]
            if node.output[0] not in moments:
                moments[node.output[0]] = Moments(
                    np.zeros((size, size), np.float32), np.zeros(size), patches.mean(axis=0)
                )
            moments[node.output[0]].add(patches)
        progress("weights", index + 1, len(tensors))
    return moments


@dataclass(frozen=True)
class Rounded:
    """A convolution's weights as whole multiples of `scale`, (O,), and its bias (O,); None leaves that as it is."""

    weight: Array
    scale: Array
    bias: Array | None

    def put_into(self, graph: Graph, node: NodeProto) -> None:
        """Give a convolution these weights."""
        node.input[1] = graph.add_constant(self.weight, "weight")
        if self.bias is not None:
            node.input[:] = [node.input[0], node.input[1], graph.add_constant(self.bias, "bias")]


def round_weights(
    graph: Graph, convolutions: Sequence[NodeProto], moments: Mapping[str, Moments]
) -> dict[str, Rounded]:
    """Return rounded weights and corrected biases by the convolutions' names; the graph stays as it is.

    Grouped convolutions have few weights per channel, and are rounded to the nearest.
    """
    found = {}
    for node in convolutions:
        weight = graph.constant(node.input[1])
        if weight is None:
            continue
        flat = weight.reshape(len(weight), -1).astype(np.float64)
        largest = np.abs(flat).max(axis=1)
        scale = np.where(largest > 0, largest / LEVELS, 1.0).astype(np.float32).astype(np.float64)
        known = moments.get(node.output[0])
        steps = flat / scale[:, None]
        levels = np.clip(np.round(steps), -LEVELS, LEVELS) if known is None else _compensated(steps, known.covariance())
        rounded = (levels * scale[:, None]).astype(np.float32)
        bias = None if known is None else _shifted_bias(graph, node, (flat - rounded) @ known.mean())
        found[node.name] = Rounded(rounded.reshape(weight.shape), scale.astype(np.float32), bias)
    return found


def _compensated(steps: Floats, covariance: Floats) -> Floats:
    """Return integer levels (O, K) for weights in units of their scale, each column's error spread over the next."""
    size = len(covariance)
    variance = np.diag(covariance)
    # Never less than float32 can tell apart: few frames, or dead channels, leave directions without any variance.
    damped = covariance + np.eye(size) * max(DAMPING * float(variance.mean()), 1e-5 * float(variance.max()), 1e-12)
    # Inputs that vary most first: their errors have the most columns left to go to.
    order = np.argsort(-variance, kind="stable")
    upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    left: Floats = steps[:, order].copy()
    levels: Floats = np.zeros_like(left)
    for column in range(size):
        levels[:, column] = np.clip(np.round(left[:, column]), -LEVELS, LEVELS)
        lost = (left[:, column] - levels[:, column]) / upper[column, column]
        left[:, column + 1 :] -= np.outer(lost, upper[column, column + 1 :])
    result: Floats = np.empty_like(levels)
    result[:, order] = levels
    return result


def _shifted_bias(graph: Graph, node: NodeProto, shift: Floats) -> Array:
    bias = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(len(shift), np.float32)
    assert bias is not None
    return np.asarray(bias + shift, np.float32)


def _patches(
    graph: Graph, node: NodeProto, value: Array, count: int, generator: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Return `count` of the patches that a convolution sees in (1, C, H, W), each flat (C kh kw,), float32."""
    given = attributes(node)
    weight_shape, out_shape = graph.shape(node.input[1]), graph.shape(node.output[0])
    (stride_y, stride_x), (step_y, step_x) = given.get("strides", [1, 1]), given.get("dilations", [1, 1])
    top, left, bottom, right = given.get("pads", [0, 0, 0, 0])
    padded = np.pad(value[0], ((0, 0), (top, bottom), (left, right)))
    rows = generator.integers(0, out_shape[2], count) * stride_y
    columns = generator.integers(0, out_shape[3], count) * stride_x
    ys = rows[:, None, None] + step_y * np.arange(weight_shape[2])[None, :, None]
    xs = columns[:, None, None] + step_x * np.arange(weight_shape[3])[None, None, :]
    taken = padded[:, ys, xs]
    return np.ascontiguousarray(taken.transpose(1, 0, 2, 3).reshape(count, -1), np.float32)


def _session(graph: Graph, names: Sequence[str]) -> ort.InferenceSession:
    model = graph.finish()
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    return plain_session(model)
