"""What a new engine must show before it serves: that it computes what its bundle does.

Parity is measured on noise, pixel by pixel. Drift is measured on frames of the camera, by the guard of compressed
bundles. The bundle itself runs in ONNX Runtime on the CPU. Nothing here needs torch, so a vehicle's computer can do it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from anomseg_ros.backends import open_backend
from anomseg_ros.backends.built_engines import DRIFT
from anomseg_ros.compression.drift import Drift, Guard, Tolerance, measure_drift
from anomseg_ros.core.bundle import GRAPH_FILE, LABELS_OUTPUT, Bundle, save_bundle
from anomseg_ros.core.detector import Backend, Detector
from anomseg_ros.core.preprocess import noise_frames
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import BackendError, CompressionError

TOLERANCES = {
    "fp32": Tolerance(label_agreement=0.995, rank_correlation=0.999),
    "fp16": Tolerance(label_agreement=0.995, rank_correlation=0.995),
    "bf16": Tolerance(label_agreement=0.97, rank_correlation=0.98),
    "int8": Tolerance(label_agreement=0.97, rank_correlation=0.98),
}
"""Precision -> what an engine may lose against its own bundle; of float32, only the unpooling of near ties."""

PARITY = "parity"
"""What is measured beside the drift. An engine that the node built has neither: the node compares on noise alone."""

RELATIVE_TOLERANCE, USUAL_SCORE = 5e-5, 20.0
"""In float32 a score may differ by this share of its magnitude, as in the parity check of an export."""
SPARED_SHARE = 0.005
"""Pixels that may differ more: max-unpooling puts a value at an arbitrary place among near ties."""


def check_engine(
    bundle: Bundle,
    outputs: Sequence[str],
    open_engine: Callable[[], Backend],
    frames: Sequence[RgbImage],
    *,
    tolerance: Tolerance | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Compare an engine with its bundle; return what was measured, in values of JSON.

    Args:
        bundle: that the engine was built of.
        outputs: of the engine, the labels and one score at least.
        open_engine: opens a backend that runs the engine; it is called twice.
        frames: uint8 (H, W, 3) RGB of any size; frames of the camera.
        tolerance: what it may lose; None: TOLERANCES of the bundle's precision.
        progress: called after each frame.

    Raises:
        CompressionError: the engine is too far from its bundle, or its outputs are not what bundle.yaml says.
    """
    tolerance = tolerance or TOLERANCES[bundle.contract.precision]
    kept = tuple(output for output in bundle.contract.outputs if output.name in outputs)
    child = Bundle(bundle.directory, replace(bundle.contract, outputs=kept))
    with runnable_on_cpu(bundle) as reference:
        parity = _parity(reference, child, open_engine)
        guard, open_child = Guard(tolerance), lambda: Detector(child, open_engine())
        drift = measure_drift(reference, child, frames, guard, open_child=open_child, progress=progress)
    _require(bundle, parity, drift)
    scores = {name: vars(score) for name, score in drift.scores.items()}
    measured = {"frames": drift.frames, "label_agreement": drift.label_agreement, "scores": scores}
    return {PARITY: parity, DRIFT: measured}


def require_comparable(bundle: Bundle) -> None:
    """Raise BackendError where the packages are missing that a bundle of this precision is compared with."""
    if bundle.contract.precision == "bf16" and any(find_spec(name) is None for name in ("onnx", "ml_dtypes")):
        raise BackendError(
            f"an engine of bundle {bundle.contract.name!r}, which is in bf16, is compared with the bundle in float32, "
            "and that needs the packages onnx and ml_dtypes: pip install 'anomseg_ros[offline]', or use a bundle in "
            "fp16 or fp32"
        )


@contextmanager
def runnable_on_cpu(bundle: Bundle) -> Iterator[Bundle]:
    """Yield the bundle, or one with its weights in float32: ONNX Runtime has no bfloat16 on a CPU."""
    if bundle.contract.precision != "bf16":
        yield bundle
        return
    import onnx  # of the offline half; only bundles of bfloat16 need it

    from anomseg_ros.compression.half import in_single_precision

    with tempfile.TemporaryDirectory(prefix="anomseg-") as folder:
        path = Path(folder, GRAPH_FILE)
        onnx.save(in_single_precision(onnx.load(bundle.graph_path)), path)
        yield save_bundle(bundle.contract, {GRAPH_FILE: path}, Path(folder, "float32"))


def _parity(reference: Bundle, child: Bundle, open_engine: Callable[[], Backend]) -> dict[str, float]:
    """Return output -> largest share of pixels, of any frame of noise, that differ by more than float32 rounding."""
    names = [output.name for output in child.contract.outputs]
    spec = child.contract.input
    shares = dict.fromkeys(names, 0.0)
    with closing(open_backend("onnxruntime", reference)) as before, closing(open_engine()) as after:
        for frame in noise_frames(spec.height_px, spec.width_px):
            pairs = zip(before.run(frame[np.newaxis], names), after.run(frame[np.newaxis], names), strict=True)
            for output, (expected, got) in zip(child.contract.outputs, pairs, strict=True):
                _require_form(child, output.name, output.dtype, expected, got)
                shares[output.name] = max(shares[output.name], round(_off(output.name, expected, got), 6))
    return shares


def _require_form(
    bundle: Bundle, name: str, dtype: str, expected: npt.NDArray[np.generic], got: npt.NDArray[np.generic]
) -> None:
    if got.shape != expected.shape or got.dtype != dtype or not np.isfinite(got).all():
        state = "" if got.shape != expected.shape or got.dtype != dtype else ", with values that are not finite"
        raise CompressionError(
            f"the engine of bundle {bundle.contract.name!r} gives {name!r} as {got.dtype} {got.shape}{state}; expected "
            f"{dtype} {expected.shape}; it was not put into the cache"
        )


def _off(name: str, expected: npt.NDArray[np.generic], got: npt.NDArray[np.generic]) -> float:
    if name == LABELS_OUTPUT:
        return float((expected != got).mean())
    before, after = np.asarray(expected, np.float32), np.asarray(got, np.float32)
    allowed = RELATIVE_TOLERANCE * max(USUAL_SCORE, float(np.abs(before).max()))
    return float((np.abs(before - after) > allowed).mean())


def _require(bundle: Bundle, parity: dict[str, float], drift: Drift) -> None:
    excesses = drift.excesses()
    if bundle.contract.precision == "fp32":
        excesses += [
            f"{name!r} differs in {share:.2%} of the pixels of noise (at most {SPARED_SHARE:.2%})"
            for name, share in parity.items()
            if share > SPARED_SHARE
        ]
    if excesses:
        raise CompressionError(
            f"the engine of bundle {bundle.contract.name!r} does not compute what the bundle does: "
            f"{'; '.join(excesses)}. It was not put into the cache; use a bundle of a higher precision or another "
            "version of TensorRT, and report this one"
        )
