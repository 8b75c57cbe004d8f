"""The ranges of a graph's inner values on camera frames. A range is what the 256 levels cover.

minmax: from the smallest to the largest value of any frame.
percentile: contains the wanted share of the pooled values; the same share is cut at both ends.
entropy: the symmetric range of least Kullback-Leibler divergence between the values' histogram and its quantized one
    (Migacz, 8-bit inference with TensorRT, GTC 2017).
error: the range of least total error by rounding and clipping, each raised to ERROR_POWER.

The histograms are those of ONNX Runtime's HistogramCollector. Its calibrators keep every value of every frame in memory
at once, which takes gigabytes. Here the collector gets one frame at a time and every second row and column.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.calibrate import CalibrationMethod, HistogramCollector, TensorsData

from anomseg_ros.backends.onnxruntime import DISABLED_OPTIMIZERS, compute_int8_in_float
from anomseg_ros.backends.onnxruntime_gpu import CPU
from anomseg_ros.compression.graph import Graph
from anomseg_ros.core.bundle import GRAPH_INPUT
from anomseg_ros.core.processor import has_exact_int8
from anomseg_ros.core.progress import Progress
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import CompressionError, ConfigError

METHODS = ("error", "minmax", "percentile", "entropy")
PERCENTILE = 99.999
BINS = {"percentile": 2048, "entropy": 512, "error": 2048}
LEVELS = 255
ERROR_POWER = 3.0
"""With 2, the mean square, rare large values are cut; they matter in frames unlike those of calibration."""
CUTS = np.linspace(1.0, 0.2, 33)
"""Shares of the smallest and of the largest value that are tried as ends of a range."""
QUANTIZED_BINS = 128
SAMPLE_STRIDE_PX = 2

Errors = npt.NDArray[np.float64]
Limits = tuple[np.float32, np.float32]
"""The lowest and the highest value."""


@dataclass(frozen=True)
class RangeConfig:
    """How ranges are found; percentile: share of the values inside the range, in per cent."""

    method: str = "error"
    percentile: float = PERCENTILE
    symmetric: bool = False

    def __post_init__(self) -> None:
        """Raise ConfigError for a percentile out of range."""
        if not 50 < self.percentile <= 100:
            raise ConfigError(f"`percentile` {self.percentile:g}: expected more than 50 and at most 100")


def find_ranges(
    graph: Graph, names: Sequence[str], tensors: Sequence[RgbImage], config: RangeConfig, progress: Progress
) -> TensorsData:
    """Return the range of each named value.

    Args:
        graph: computes the values.
        names: of the values.
        tensors: the graph's input on calibration frames, uint8 (1, H, W, 3).
        config: how ranges are found.
        progress: called after each frame.
    """
    collector = None
    if config.method != "minmax":
        counting = "percentile" if config.method == "error" else config.method
        collector = HistogramCollector(
            counting, config.symmetric, BINS[config.method], QUANTIZED_BINS, config.percentile, "same"
        )
    session = _observing_session(graph, names, sampled=collector is not None)
    lowest, highest = np.full(len(names), np.inf, np.float32), np.full(len(names), -np.inf, np.float32)
    for index, tensor in enumerate(tensors):
        observed = session.run(None, {GRAPH_INPUT: tensor})
        lowest = np.minimum(lowest, np.array(observed[: len(names)]).reshape(-1))
        highest = np.maximum(highest, np.array(observed[len(names) : 2 * len(names)]).reshape(-1))
        if collector is not None:
            with contextlib.redirect_stdout(io.StringIO()):
                collector.collect(dict(zip(names, observed[2 * len(names) :], strict=True)))
        progress("ranges of values", index + 1, len(tensors))
    limits = dict(zip(names, zip(lowest, highest, strict=True), strict=True))
    ranges = limits if collector is None else _cut(collector, limits, config)
    return TensorsData(CalibrationMethod.MinMax, ranges)


def channel_magnitudes(
    graph: Graph, names: Sequence[str], tensors: Sequence[RgbImage], progress: Progress
) -> dict[str, npt.NDArray[np.float64]]:
    """Return the largest magnitude per channel, (C,), of values (N, C, …).

    The result is the mean over frames, which one unusual frame changes less than it changes the maximum.
    """
    model = graph.finish()
    for name in names:
        axes = [axis for axis in range(len(graph.shape(name))) if axis != 1]
        model.graph.initializer.append(numpy_helper.from_array(np.array(axes), f"{name}~axes"))
        model.graph.node.append(helper.make_node("Abs", [name], [f"{name}~abs"]))
        inputs = [f"{name}~abs", f"{name}~axes"]
        model.graph.node.append(helper.make_node("ReduceMax", inputs, [f"{name}~magnitude"], keepdims=0))
    session = session_with_outputs(model, [f"{name}~magnitude" for name in names])
    total: list[npt.NDArray[np.float64]] = [np.zeros(graph.shape(name)[1]) for name in names]
    for index, tensor in enumerate(tensors):
        total = [so_far + now for so_far, now in zip(total, session.run(None, {GRAPH_INPUT: tensor}), strict=True)]
        progress("ranges of channels", index + 1, len(tensors))
    return {name: value / len(tensors) for name, value in zip(names, total, strict=True)}


def plain_session(model: onnx.ModelProto) -> ort.InferenceSession:
    """Return a session on the CPU. Raises CompressionError with the message of ONNX Runtime, which names the node."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    if not has_exact_int8():
        compute_int8_in_float(settings)
    try:
        return ort.InferenceSession(model.SerializeToString(), settings, [CPU], disabled_optimizers=DISABLED_OPTIMIZERS)
    except Exception as error:  # onnxruntime raises bare pybind exceptions of many classes
        raise CompressionError(
            f"onnxruntime {ort.__version__} cannot run this graph: {' '.join(str(error).split())}; export the network "
            "without that operator, or keep the float bundle"
        ) from error


def session_with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> ort.InferenceSession:
    """Return a session of a model, which is changed, whose outputs are these inner float values."""
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    return plain_session(model)


def _observing_session(graph: Graph, names: Sequence[str], sampled: bool) -> ort.InferenceSession:
    """Return a session with the minimum of each value, then each maximum and, if asked for, a sample of each value."""
    model = graph.finish()
    slices = {
        "sample_starts": [0, 0],
        "sample_ends": [2**31 - 1, 2**31 - 1],
        "sample_axes": [2, 3],
        "sample_steps": [SAMPLE_STRIDE_PX, SAMPLE_STRIDE_PX],
    }
    for name, values in slices.items():
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [2], values))
    for name in names:
        for op in ("ReduceMin", "ReduceMax"):
            model.graph.node.append(helper.make_node(op, [name], [f"{name}~{op}"], keepdims=0))
        if sampled:
            spatial = len(graph.shape(name)) == 4 and min(graph.shape(name)[2:]) > SAMPLE_STRIDE_PX
            inputs = [name, *slices] if spatial else [name]
            model.graph.node.append(helper.make_node("Slice" if spatial else "Identity", inputs, [f"{name}~sample"]))
    kinds = ("ReduceMin", "ReduceMax", "sample") if sampled else ("ReduceMin", "ReduceMax")
    return session_with_outputs(model, [f"{name}~{kind}" for kind in kinds for name in names])


def _cut(collector: HistogramCollector, limits: dict[str, Limits], config: RangeConfig) -> dict[str, Limits]:
    """Return the ranges that a method finds in histograms, each within its limits."""
    if config.method == "error":
        return {
            name: least_error_range(counts, edges, limits[name], config.symmetric)
            for name, (counts, edges, *_) in collector.histogram_dict.items()
        }
    if config.method == "entropy":
        _level_zeros(collector)
    with contextlib.redirect_stdout(io.StringIO()):
        ranges = collector.compute_collection_result()
    return {
        name: (np.float32(max(low, limits[name][0])), np.float32(min(high, limits[name][1])))
        for name, (low, high, *_) in ranges.items()
    }


def least_error_range(
    counts: npt.NDArray[np.int64], edges: npt.NDArray[np.float32], limits: Limits, symmetric: bool
) -> Limits:
    """Return the range within `limits` of least error for values with this histogram, rounded to 256 levels.

    Args:
        counts: int64 (N,) values per bin.
        edges: float32 (N + 1,) of the bins.
        limits: the lowest and the highest value.
        symmetric: only try ranges with zero in the middle.
    """
    filled = np.flatnonzero(counts)
    weights, centres = counts[filled], ((edges[:-1] + edges[1:]) / 2).astype(np.float64)[filled]
    # Zero is always in range: integer kernels pad with it.
    lows = min(0.0, float(limits[0])) * CUTS
    highs = max(0.0, float(limits[1])) * CUTS
    if symmetric:
        highs = np.maximum(-lows, highs)
        lows = -highs
    below, weight_below = _clipping_error(lows - centres[:, np.newaxis], weights)
    above, weight_above = _clipping_error(centres[:, np.newaxis] - highs, weights)
    if symmetric:  # the ends move together
        errors, inside, widths = below + above, weights.sum() - weight_below - weight_above, highs - lows
    else:
        errors = below[:, np.newaxis] + above
        inside = weights.sum() - weight_below[:, np.newaxis] - weight_above
        widths = highs - lows[:, np.newaxis]
    errors = errors + inside * (widths / LEVELS / 2) ** ERROR_POWER / (ERROR_POWER + 1)
    best = int(np.argmin(errors))
    low, high = (best, best) if symmetric else divmod(best, len(highs))
    return np.float32(lows[low]), np.float32(highs[high])


def _clipping_error(excess: npt.NDArray[np.float64], weights: npt.NDArray[np.int64]) -> tuple[Errors, Errors]:
    """Return the error of the values outside each end of a range, and the weight of these values.

    excess: (values, ends), how far each value lies outside.
    """
    clipped = np.maximum(excess, 0.0)
    return weights @ clipped**ERROR_POWER, np.asarray(weights @ (clipped > 0), np.float64)


def _level_zeros(collector: HistogramCollector) -> None:
    """Lower the bin of zero to its neighbours. The many zeros after a ReLU are exact in any range and would decide."""
    for name, (counts, edges, *rest) in collector.histogram_dict.items():
        middle = int(np.searchsorted(edges, 0.0, side="right")) - 1
        around = [counts[index] for index in (middle - 1, middle + 1) if 0 <= index < len(counts)]
        counts[middle] = min(counts[middle], max(around))
        collector.histogram_dict[name] = (counts, edges, *rest)
