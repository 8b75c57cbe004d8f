"""Whether an engine computes what its bundle does, on frames of noise. Every engine is compared so before it serves.

`anomseg build` also measures the drift on camera frames. The node has none while it is configured, so the engines that
it builds are only checked for gross faults.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from anomseg_ros.core.bundle import LABELS_OUTPUT, Bundle
from anomseg_ros.core.preprocess import noise_frames
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import BackendError

RELATIVE_TOLERANCE, USUAL_SCORE = 5e-5, 20.0
"""In float32 a score may differ by this share of its magnitude, as in the parity check of an export."""
_FLAT = 1e-6


@dataclass(frozen=True)
class NoiseTolerance:
    """What an engine may lose on noise, where many pixels are near ties, which rounding decides.

    label_agreement: least share of equal labels. correlation: least correlation of a score's values. off: largest share
    of pixels that differ by more than rounding in float32 explains; 1 where the precision rounds more.
    """

    label_agreement: float
    correlation: float
    off: float = 1.0


NOISE_TOLERANCES = {
    "fp32": NoiseTolerance(0.995, 0.999, off=0.005),  # max-unpooling puts a value at any place among near ties
    "fp16": NoiseTolerance(0.9, 0.95),
    "bf16": NoiseTolerance(0.8, 0.9),
    "int8": NoiseTolerance(0.8, 0.9),
}
"""Precision of a bundle -> what its engines may lose."""

Run = Callable[[RgbImage, Sequence[str]], list[npt.NDArray[np.generic]]]
"""As Backend.run."""


@dataclass
class NoiseComparison:
    """The worst frame. agreement: output -> agreement, 1 at best; off: output -> share of pixels that differ.

    malformed: what is not of the bundle's form at all. excesses: what is beyond the tolerance.
    """

    agreement: dict[str, float] = field(default_factory=dict)
    off: dict[str, float] = field(default_factory=dict)
    malformed: list[str] = field(default_factory=list)
    excesses: list[str] = field(default_factory=list)

    @property
    def facts(self) -> dict[str, Any]:
        """What was measured, in values of JSON."""
        return {"noise": self.agreement, "parity": self.off}


def compare_on_noise(bundle: Bundle, names: Sequence[str], run: Run, reference: Run) -> NoiseComparison:
    """Return how an engine differs from its bundle.

    Args:
        bundle: that the engine was built of.
        names: outputs of the engine.
        run: runs the engine.
        reference: runs the bundle on the CPU.
    """
    comparison = NoiseComparison(dict.fromkeys(names, 1.0), dict.fromkeys(names, 0.0))
    for frame in noise_frames(bundle.contract.input.height_px, bundle.contract.input.width_px):
        tensor = frame[np.newaxis]
        pairs = zip(reference(tensor, names), run(tensor, names), strict=True)
        for name, (expected, got) in zip(names, pairs, strict=True):
            if malformed := _malformed(name, expected, got):
                comparison.malformed.append(malformed)
                continue
            agreement, off = _compared(name, expected, got)
            comparison.agreement[name] = min(comparison.agreement[name], round(agreement, 6))
            comparison.off[name] = max(comparison.off[name], round(off, 6))
    comparison.excesses += _excesses(NOISE_TOLERANCES[bundle.contract.precision], comparison)
    return comparison


def check_on_noise(bundle: Bundle, names: Sequence[str], run: Run, reference: Run) -> dict[str, Any]:
    """Return what compare_on_noise measured, in values of JSON; arguments as there.

    Raises BackendError where the engine is too far from its bundle, or its outputs are not what bundle.yaml says.
    """
    comparison = compare_on_noise(bundle, names, run, reference)
    if problems := comparison.malformed or comparison.excesses:
        raise BackendError(
            f"the engine of bundle {bundle.contract.name!r} does not compute what the bundle does: "
            f"{'; '.join(problems)}. It was not put into the cache; use a bundle of a higher precision"
        )
    return comparison.facts


def _malformed(name: str, expected: npt.NDArray[np.generic], got: npt.NDArray[np.generic]) -> str:
    """Return how an output differs from the bundle's in form; empty where it does not."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return f"it gives {name!r} as {got.dtype} {got.shape}; expected {expected.dtype} {expected.shape}"
    return "" if np.isfinite(got).all() else f"it gives {name!r} with values that are not finite"


def _compared(name: str, expected: npt.NDArray[np.generic], got: npt.NDArray[np.generic]) -> tuple[float, float]:
    """Return the agreement of an output, and the share of pixels that differ by more than float32 rounding."""
    if name == LABELS_OUTPUT:
        same = float((expected == got).mean())
        return same, 1.0 - same
    before, after = np.asarray(expected, np.float64).ravel(), np.asarray(got, np.float64).ravel()
    allowed = RELATIVE_TOLERANCE * max(USUAL_SCORE, float(np.abs(before).max()))
    off = float((np.abs(before - after) > allowed).mean())
    if before.std() < _FLAT:
        return float(np.abs(before - after).max() < _FLAT), off
    return float(np.corrcoef(before, after)[0, 1]) if after.std() > 0 else 0.0, off


def _excesses(tolerance: NoiseTolerance, comparison: NoiseComparison) -> list[str]:
    excesses = []
    for name, value in comparison.agreement.items():
        least = tolerance.label_agreement if name == LABELS_OUTPUT else tolerance.correlation
        if not value >= least:
            excesses.append(f"the agreement of {name!r} on noise is {value:.4f} (at least {least})")
    for name, share in comparison.off.items():
        if share > tolerance.off:
            excesses.append(f"{name!r} differs in {share:.2%} of the pixels of noise (at most {tolerance.off:.2%})")
    return excesses
