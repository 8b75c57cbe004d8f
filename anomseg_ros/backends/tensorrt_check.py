"""What an engine that is built while a node is configured must show: that it computes what the graph does, on noise.

`anomseg build` also measures the drift on camera frames. The node has none while it is configured, so the engines that
it builds are only checked for gross faults.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.backends.onnxruntime import OnnxRuntimeBackend
from anomseg_ros.backends.tensorrt_engine import TensorRtEngine
from anomseg_ros.core.bundle import LABELS_OUTPUT, Bundle
from anomseg_ros.core.preprocess import noise_frames
from anomseg_ros.errors import BackendError

LEAST_AGREEMENT = {"fp32": 0.995, "fp16": 0.9, "bf16": 0.8, "int8": 0.8}
"""Precision -> share of equal labels. On noise many pixels are near ties, which rounding decides."""
LEAST_CORRELATION = {"fp32": 0.999, "fp16": 0.95, "bf16": 0.9, "int8": 0.9}
"""Precision -> correlation of a score's values."""
_FLAT = 1e-6


def check_on_noise(bundle: Bundle, engine: TensorRtEngine) -> dict[str, Any]:
    """Return output -> agreement of an engine with ONNX Runtime on the CPU, in values of JSON.

    Raises BackendError where it is too small, or a score is not finite.
    """
    names = sorted(engine.outputs)
    reference = _reference(bundle)
    worst: dict[str, float] = {}
    for frame in noise_frames(bundle.contract.input.height_px, bundle.contract.input.width_px):
        tensor = frame[np.newaxis]
        got = dict(zip(names, engine.run(tensor, names), strict=True))
        expected = got if reference is None else dict(zip(names, reference.run(tensor, names), strict=True))
        for name in names:
            worst[name] = min(worst.get(name, 1.0), _agreement(name, expected[name], got[name]))
    if reference is not None:
        reference.close()
    _require(bundle, worst)
    return {"noise": {name: round(value, 6) for name, value in worst.items()}}


def _reference(bundle: Bundle) -> OnnxRuntimeBackend | None:
    try:
        return OnnxRuntimeBackend(bundle, BackendOptions())
    except BackendError:
        if bundle.contract.precision == "bf16":  # which ONNX Runtime does not have on a CPU
            return None
        raise


def _agreement(name: str, expected: npt.NDArray[np.generic], got: npt.NDArray[np.generic]) -> float:
    if name == LABELS_OUTPUT:
        return float((expected == got).mean())
    before, after = np.asarray(expected, np.float64).ravel(), np.asarray(got, np.float64).ravel()
    if not np.isfinite(after).all():
        return float("-inf")
    if before.std() < _FLAT:
        return float(np.abs(before - after).max() < _FLAT)
    return float(np.corrcoef(before, after)[0, 1]) if after.std() > 0 else 0.0


def _require(bundle: Bundle, worst: dict[str, float]) -> None:
    precision = bundle.contract.precision
    for name, value in worst.items():
        least = (LEAST_AGREEMENT if name == LABELS_OUTPUT else LEAST_CORRELATION)[precision]
        if not value >= least:
            raise BackendError(
                f"the engine of bundle {bundle.contract.name!r} does not compute what the graph does: the agreement of "
                f"{name!r} is {value:.4f}, expected at least {least}; it was not put into the cache. Use a bundle of a "
                "higher precision"
            )
