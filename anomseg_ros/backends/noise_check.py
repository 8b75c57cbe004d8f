"""What an engine that is built while a node is configured must show: that it computes what the bundle does, on noise.

`anomseg build` also measures the drift on camera frames. The node has none while it is configured, so the engines that
it builds are only checked for gross faults.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from anomseg_ros.core.bundle import LABELS_OUTPUT, Bundle
from anomseg_ros.core.preprocess import noise_frames
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import BackendError

LEAST_AGREEMENT = {"fp32": 0.995, "fp16": 0.9, "bf16": 0.8, "int8": 0.8}
"""Precision -> share of equal labels. On noise many pixels are near ties, which rounding decides."""
LEAST_CORRELATION = {"fp32": 0.999, "fp16": 0.95, "bf16": 0.9, "int8": 0.9}
"""Precision -> correlation of a score's values."""
_FLAT = 1e-6


Run = Callable[[RgbImage, Sequence[str]], list[npt.NDArray[np.generic]]]
"""As Backend.run."""


def check_on_noise(bundle: Bundle, names: Sequence[str], run: Run, reference: Run) -> dict[str, Any]:
    """Return output -> agreement of an engine with its bundle, in values of JSON.

    Args:
        bundle: that the engine was built of.
        names: outputs of the engine.
        run: runs the engine.
        reference: runs the bundle on the CPU.

    Raises:
        BackendError: the agreement is too small, or a score is not finite.
    """
    worst: dict[str, float] = {}
    for frame in noise_frames(bundle.contract.input.height_px, bundle.contract.input.width_px):
        tensor = frame[np.newaxis]
        got = dict(zip(names, run(tensor, names), strict=True))
        expected = dict(zip(names, reference(tensor, names), strict=True))
        for name in names:
            worst[name] = min(worst.get(name, 1.0), _agreement(name, expected[name], got[name]))
    _require(bundle, worst)
    return {"noise": {name: round(value, 6) for name, value in worst.items()}}


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
                f"the engine of bundle {bundle.contract.name!r} does not compute what the bundle does: the agreement "
                f"of {name!r} is {value:.4f}, expected at least {least}; it was not put into the cache. Use a bundle "
                "of a higher precision"
            )
