"""The ranges of a graph's inner values on camera frames: what 256 levels are spread over.

minmax: the smallest and largest value of any frame. percentile: as much of the pooled values as is asked for lies
inside, the same share cut at both ends. entropy: the symmetric range of least Kullback-Leibler divergence between the
values' histogram and its quantized one (Migacz, 8-bit inference with TensorRT, GTC 2017). The last two are ONNX
Runtime's HistogramCollector; its calibrators keep every value of every frame in memory at once, some gigabytes each,
so the frames are fed to it one by one here, and every second row and column is counted.
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

METHODS = ("minmax", "percentile", "entropy")
PERCENTILE = 99.999
BINS = {"minmax": 1, "percentile": 2048, "entropy": 512}
QUANTIZED_BINS = 128
SAMPLE_STRIDE_PX = 2
Progress = Callable[[str, int, int], None]
"""Called with (what, done, of how many)."""


@dataclass(frozen=True)
class Calibration:
    """How ranges are found; percentile: share of the values inside the range, in per cent."""

    method: str = "minmax"
    percentile: float = PERCENTILE
    symmetric: bool = False


def calibrate(
    graph: Graph, names: Sequence[str], tensors: Sequence[RgbImage], wanted: Calibration, progress: Progress
) -> TensorsData:
    """Return the range of each named value on the graph's input tensors, uint8 (1, H, W, 3)."""
    session, minima, maxima, samples = _observing_session(graph, names, wanted.method != "minmax")
    lowest = np.full(len(names), np.inf, np.float32)
    highest = np.full(len(names), -np.inf, np.float32)
    collector = HistogramCollector(
        wanted.method, wanted.symmetric, BINS[wanted.method], QUANTIZED_BINS, wanted.percentile, "same"
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
