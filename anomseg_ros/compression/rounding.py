"""Round weights to 8 or 7 bits so that neighbouring weights compensate each error and the bias the remaining mean.

Rounding each weight to the nearest level changes a convolution's output too much: neighbouring pixels are alike, and
errors that add up over a kernel shift whole areas. So weights are rounded one input at a time. The error of each is
spread over the inputs that follow, weighted by the inputs' second moments, as in GPTQ (Frantar et al., ICLR 2023). The
mean error that remains is subtracted from the bias (Nagel et al., ICCV 2019). The inputs are those of the float network
on camera frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from anomseg_ros.compression.graph import Array, Graph, attributes
from anomseg_ros.compression.ranges import session_with_outputs
from anomseg_ros.core.bundle import GRAPH_INPUT
from anomseg_ros.core.progress import Progress
from anomseg_ros.core.types import RgbImage

DAMPING = 0.01
"""Share of the mean variance that is added to each input's variance: keeps rarely active inputs from large errors."""
PATCHES = 12000
"""Patches per convolution, over all frames."""
BLOCK_COLUMNS = 64
"""Columns between two matrix products: each product spreads the errors of all columns before it."""

Floats = npt.NDArray[np.float64]


@dataclass
class Moments:
    """Second moments (K, K) and sums (K,) of `count` input patches of a convolution.

    `centre` is subtracted from every patch: float32 would lose a small variance beside a large mean.
    """

    squares: npt.NDArray[np.float32]
    sums: Floats
    centre: npt.NDArray[np.float32]
    count: int = 0

    def covariance(self) -> Floats:
        """Return the patches' covariance."""
        mean = self.sums / max(1, self.count)
        return np.asarray(self.squares.astype(np.float64) / max(1, self.count) - np.outer(mean, mean))

    def mean(self) -> Floats:
        """Return the patches' mean."""
        return np.asarray(self.centre + self.sums / max(1, self.count))

    def add(self, patches: npt.NDArray[np.float32]) -> None:
        """Count patches (n, K)."""
        centred = patches - self.centre
        self.squares += centred.T @ centred
        self.sums += centred.sum(axis=0, dtype=np.float64)
        self.count += len(patches)


@dataclass(frozen=True)
class Rounded:
    """A convolution's weights as whole multiples of `scale`, (O,), and its new bias (O,), None for the old one."""

    weight: Array
    scale: Array
    bias: Array | None

    def put_into(self, graph: Graph, node: NodeProto) -> None:
        """Give a convolution these weights."""
        node.input[1] = graph.add_constant(self.weight, "weight")
        if self.bias is not None:
            node.input[:] = [node.input[0], node.input[1], graph.add_constant(self.bias, "bias")]


def input_moments(
    graph: Graph, convolutions: Sequence[NodeProto], tensors: Sequence[RgbImage], progress: Progress
) -> dict[str, Moments]:
    """Return the moments of each ungrouped convolution's input on uint8 (1, H, W, 3) tensors.

    The keys are the names of the convolutions' outputs.
    """
    ungrouped = [node for node in convolutions if attributes(node).get("group", 1) == 1]
    names = list(dict.fromkeys(node.input[0] for node in ungrouped))
    session = session_with_outputs(graph.finish(), names)
    moments: dict[str, Moments] = {}
    generator = np.random.default_rng(0)
    for index, tensor in enumerate(tensors):
        values = dict(zip(names, session.run(names, {GRAPH_INPUT: tensor}), strict=True))
        for node in ungrouped:
            patches = _patches(graph, node, np.asarray(values[node.input[0]]), PATCHES // len(tensors), generator)
            size = patches.shape[1]
            empty = Moments(np.zeros((size, size), np.float32), np.zeros(size), patches.mean(axis=0))
            moments.setdefault(node.output[0], empty).add(patches)
        progress("weights", index + 1, len(tensors))
    return moments


def round_weights(
    graph: Graph, convolutions: Sequence[NodeProto], moments: Mapping[str, Moments], bits: int = 8
) -> dict[str, Rounded]:
    """Return rounded weights and corrected biases by the convolutions' names; the graph does not change.

    Grouped convolutions have few weights per channel and are rounded to the nearest level.
    """
    rounded, most = {}, 2 ** (bits - 1) - 1
    for node in convolutions:
        weight = graph.constant(node.input[1])
        if weight is None:
            continue
        flat = weight.reshape(len(weight), -1).astype(np.float64)
        largest = np.abs(flat).max(axis=1)
        scale = np.where(largest > 0, largest / most, 1.0).astype(np.float32).astype(np.float64)
        steps, inputs, bias = flat / scale[:, None], moments.get(node.output[0]), None
        levels = _nearest(steps, most) if inputs is None else _compensated(steps, inputs.covariance(), most)
        values = (levels * scale[:, None]).astype(np.float32)
        if inputs is not None:
            shift = (flat - values) @ inputs.mean()
            old = graph.bias(node)
            bias = np.asarray(shift if old is None else old + shift, np.float32)
        rounded[node.name] = Rounded(values.reshape(weight.shape), scale.astype(np.float32), bias)
    return rounded


def _nearest(steps: Floats, most: int) -> Floats:
    return np.clip(np.round(steps), -most, most)


def _compensated(steps: Floats, covariance: Floats, most: int) -> Floats:
    """Return integer levels (O, K), -most to most, for weights in units of their scale.

    Each column's error goes to later columns.
    """
    size = len(covariance)
    variance = np.diag(covariance)
    # At least what float32 can resolve: few frames, or dead channels, leave directions without any variance.
    damped = covariance + np.eye(size) * max(DAMPING * float(variance.mean()), 1e-5 * float(variance.max()), 1e-12)
    # Inputs that vary most come first: the most columns are left to take up their errors.
    order = np.argsort(-variance, kind="stable")
    feedback = _unit_upper_factor(damped[np.ix_(order, order)])
    ordered = steps[:, order]
    levels, errors = np.empty_like(ordered), np.empty_like(ordered)
    for start in range(0, size, BLOCK_COLUMNS):
        block = slice(start, start + BLOCK_COLUMNS)
        wanted = ordered[:, block] + errors[:, :start] @ feedback[:start, block]
        for column in range(start, start + wanted.shape[1]):
            target = wanted[:, column - start] + errors[:, start:column] @ feedback[start:column, column]
            levels[:, column] = _nearest(target, most)
            errors[:, column] = ordered[:, column] - levels[:, column]
    result: Floats = np.empty_like(levels)
    result[:, order] = levels
    return result


def _unit_upper_factor(matrix: Floats) -> Floats:
    """Return the upper triangular U with ones on its diagonal and matrix = U D U^T, D diagonal and positive.

    Errors spread by the columns of U equal GPTQ's updates by the inverse matrix (Chee et al., QuIP, NeurIPS 2023).
    """
    upper: Floats = np.asarray(np.linalg.cholesky(matrix[::-1, ::-1])[::-1, ::-1], np.float64)
    return upper / np.diag(upper)


def _patches(
    graph: Graph, node: NodeProto, value: Array, count: int, generator: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Return `count` of the patches that a convolution reads from (1, C, H, W), float32 (count, C kh kw)."""
    given = attributes(node)
    weight_shape, out_shape = graph.shape(node.input[1]), graph.shape(node.output[0])
    (stride_y, stride_x), (step_y, step_x) = given.get("strides", [1, 1]), given.get("dilations", [1, 1])
    top, left, bottom, right = given.get("pads", [0, 0, 0, 0])
    padded = np.pad(value[0], ((0, 0), (top, bottom), (left, right)))
    rows = generator.integers(0, out_shape[2], count) * stride_y
    columns = generator.integers(0, out_shape[3], count) * stride_x
    ys = rows[:, None, None] + step_y * np.arange(weight_shape[2])[None, :, None]
    xs = columns[:, None, None] + step_x * np.arange(weight_shape[3])[None, None, :]
    return np.ascontiguousarray(padded[:, ys, xs].transpose(1, 0, 2, 3).reshape(count, -1), np.float32)
