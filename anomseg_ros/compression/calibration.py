"""The ranges of a graph's inner values on camera frames: what 256 levels are spread over.

minmax: the smallest and largest value of any frame. percentile: as much of the pooled values as is asked for lies
inside, the same share cut at both ends. entropy: the symmetric range of least Kullback-Leibler divergence between the
values' histogram and its quantized one (Migacz, 8-bit inference with TensorRT, GTC 2017). error: the range whose
rounding and clipping errors together are least, each raised to ERROR_POWER. The histograms are ONNX Runtime's
HistogramCollector's; its calibrators keep every value of every frame in memory at once, some gigabytes each, so the
frames are fed to it one by one here, and every second row and column is counted.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.calibrate import CalibrationMethod, HistogramCollector, TensorsData

from anomseg_ros.compression.graph import Graph
from anomseg_ros.core.bundle import GRAPH_INPUT
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import CompressionError

METHODS = ("error", "minmax", "percentile", "entropy")
PERCENTILE = 99.999
BINS = {"minmax": 1, "percentile": 2048, "entropy": 512, "error": 2048}
LEVELS = 255
ERROR_POWER = 3.0
"""With 2, the mean square, rare large values are cut that decide in frames unlike those of calibration."""
CUTS = np.linspace(1.0, 0.2, 33)
"""Shares of the largest and of the smallest value that are tried as ends of a range."""
QUANTIZED_BINS = 128
SAMPLE_STRIDE_PX = 2
Progress = Callable[[str, int, int], None]
"""Called with (what, done, of how many)."""


@dataclass(frozen=True)
class Calibration:
    """How ranges are found; percentile: share of the values inside the range, in per cent."""

    method: str = "error"
    percentile: float = PERCENTILE
    symmetric: bool = False


def calibrate(
    graph: Graph, names: Sequence[str], tensors: Sequence[RgbImage], wanted: Calibration, progress: Progress
) -> TensorsData:
    """Return the range of each named value on the graph's input tensors, uint8 (1, H, W, 3)."""
    session, minima, maxima, samples = _observing_session(graph, names, wanted.method != "minmax")
    lowest = np.full(len(names), np.inf, np.float32)
    highest = np.full(len(names), -np.inf, np.float32)
    counted_as = "percentile" if wanted.method == "error" else wanted.method
    collector = HistogramCollector(
        counted_as, wanted.symmetric, BINS[wanted.method], QUANTIZED_BINS, wanted.percentile, "same"
    )
    for index, tensor in enumerate(tensors):
        found = session.run([*minima, *maxima, *samples], {GRAPH_INPUT: tensor})
        lowest = np.minimum(lowest, np.array(found[: len(names)]).reshape(-1))
        highest = np.maximum(highest, np.array(found[len(names) : 2 * len(names)]).reshape(-1))
        if samples:
            with _silence():
                collector.collect(dict(zip(names, found[2 * len(names) :], strict=True)))
        progress("calibrating", index + 1, len(tensors))
    limits = dict(zip(names, zip(lowest, highest, strict=True), strict=True))
    if wanted.method == "minmax":
        return TensorsData(CalibrationMethod.MinMax, limits)
    if wanted.method == "error":
        least = {
            name: least_error_range(counts, edges, limits[name], wanted.symmetric)
            for name, (counts, edges, *_) in collector.histogram_dict.items()
        }
        return TensorsData(CalibrationMethod.MinMax, least)
    if wanted.method == "entropy":
        _forget_zeros(collector)
    with _silence():
        cut = collector.compute_collection_result()
    ranges = {
        name: (np.float32(max(low, limits[name][0])), np.float32(min(high, limits[name][1])))
        for name, (low, high, *_) in cut.items()
    }
    return TensorsData(CalibrationMethod.MinMax, ranges)


def channel_magnitudes(
    graph: Graph, names: Sequence[str], tensors: Sequence[RgbImage], progress: Progress
) -> dict[str, npt.NDArray[np.float64]]:
    """Return the largest magnitude per channel, (C,), of values (N, C, …): the mean over frames, which one odd frame
    moves less than the largest of all."""
    model = graph.finish()
    del model.graph.output[:]
    for name in names:
        axes = [axis for axis in range(len(graph.shape(name))) if axis != 1]
        model.graph.initializer.append(numpy_helper.from_array(np.array(axes), f"{name}~axes"))
        model.graph.node.append(helper.make_node("Abs", [name], [f"{name}~abs"]))
        inputs = [f"{name}~abs", f"{name}~axes"]
        model.graph.node.append(helper.make_node("ReduceMax", inputs, [f"{name}~magnitude"], keepdims=0))
        model.graph.output.append(helper.make_tensor_value_info(f"{name}~magnitude", TensorProto.FLOAT, None))
    session = plain_session(model)
    total: list[npt.NDArray[np.float64]] = [np.zeros(graph.shape(name)[1]) for name in names]
    for index, tensor in enumerate(tensors):
        total = [so_far + now for so_far, now in zip(total, session.run(None, {GRAPH_INPUT: tensor}), strict=True)]
        progress("ranges of channels", index + 1, len(tensors))
    return {name: value / len(tensors) for name, value in zip(names, total, strict=True)}


def plain_session(model: onnx.ModelProto | bytes) -> ort.InferenceSession:
    """Return a session on the CPU. Raises CompressionError that names the node where one is not supported."""
    content = model if isinstance(model, bytes) else model.SerializeToString()
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    try:
        return ort.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises bare pybind exceptions of many classes
        raise CompressionError(
            f"onnxruntime {ort.__version__} cannot run this graph: {' '.join(str(error).split())}; export the network "
            "without that operator, or keep the float bundle"
        ) from error


def _observing_session(
    graph: Graph, names: Sequence[str], sampled: bool
) -> tuple[ort.InferenceSession, list[str], list[str], list[str]]:
    """Return a session that gives each value's minimum, maximum and, if asked for, a sample of it."""
    model = graph.finish()
    starts = {
        "calibration_starts": [0, 0],
        "calibration_ends": [2**31 - 1, 2**31 - 1],
        "calibration_axes": [2, 3],
        "calibration_steps": [SAMPLE_STRIDE_PX, SAMPLE_STRIDE_PX],
    }
    model.graph.initializer.extend(
        helper.make_tensor(name, TensorProto.INT64, [2], values) for name, values in starts.items()
    )
    del model.graph.output[:]
    made: list[list[str]] = [[], [], []]
    for name in names:
        for op, kept in (("ReduceMin", made[0]), ("ReduceMax", made[1])):
            kept.append(f"{name}~{op}")
            model.graph.node.append(helper.make_node(op, [name], [kept[-1]], keepdims=0))
        if sampled:
            made[2].append(f"{name}~sample")
            spatial = len(graph.shape(name)) == 4 and min(graph.shape(name)[2:]) > SAMPLE_STRIDE_PX
            inputs = [name, *starts] if spatial else [name]
            model.graph.node.append(helper.make_node("Slice" if spatial else "Identity", inputs, made[2][-1:]))
    outputs = [name for names_made in made for name in names_made]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs)
    return plain_session(model), made[0], made[1], made[2]


def least_error_range(
    counts: npt.NDArray[np.int64],
    edges: npt.NDArray[np.float32],
    limits: tuple[np.float32, np.float32],
    symmetric: bool,
) -> tuple[np.float32, np.float32]:
    """Return the range within `limits` in which values with this histogram, rounded to 256 levels, are least wrong."""
    filled = np.flatnonzero(counts)
    weights, centres = counts[filled], ((edges[:-1] + edges[1:]) / 2).astype(np.float64)[filled]
    # Zero is always in range: integer kernels pad with it.
    lowest, highest = min(0.0, float(limits[0])), max(0.0, float(limits[1]))
    best, least = (lowest, highest), np.inf
    for low, high in _cut_ranges(lowest, highest, symmetric):
        clipped = np.abs(centres - np.clip(centres, low, high)) ** ERROR_POWER
        rounded = ((high - low) / LEVELS / 2) ** ERROR_POWER / (ERROR_POWER + 1)
        error = float(weights @ np.where(clipped > 0, clipped, rounded))
        if error < least:
            best, least = (low, high), error
    return np.float32(best[0]), np.float32(best[1])


def _cut_ranges(lowest: float, highest: float, symmetric: bool) -> list[tuple[float, float]]:
    if symmetric:
        bound = max(-lowest, highest)
        return [(-bound * cut, bound * cut) for cut in CUTS]
    lows = lowest * CUTS if lowest < 0 else [0.0]
    highs = highest * CUTS if highest > 0 else [0.0]
    return [(float(low), float(high)) for low in lows for high in highs]


def _forget_zeros(collector: HistogramCollector) -> None:
    """Level the bin of zero to its neighbours: the many zeros after a ReLU are exact in any range, and would decide."""
    for name, (counts, edges, *rest) in collector.histogram_dict.items():
        middle = int(np.searchsorted(edges, 0.0, side="right")) - 1
        around = [counts[index] for index in (middle - 1, middle + 1) if 0 <= index < len(counts)]
        counts[middle] = min(counts[middle], max(around))
        collector.histogram_dict[name] = (counts, edges, *rest)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the collector from printing."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
