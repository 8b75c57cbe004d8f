"""What a new engine must show before it serves: that it computes what its bundle does.

It is compared on noise, as every engine is (backends/noise_check.py). Drift is measured on frames of the camera, by the
guard of compressed bundles. The bundle itself runs on the CPU. Nothing here needs torch, so a vehicle's computer can do
it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from anomseg_ros.backends.built_engines import DRIFT
from anomseg_ros.backends.noise_check import compare_on_noise
from anomseg_ros.compression.drift import TOLERANCES, Guard, Tolerance, measure_drift
from anomseg_ros.core.bundle import Bundle
from anomseg_ros.core.detector import Backend, Detector
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import CompressionError


def check_engine(
    bundle: Bundle,
    outputs: Sequence[str],
    open_engine: Callable[[], Backend],
    open_reference: Callable[[], Backend],
    frames: Sequence[RgbImage],
    *,
    tolerance: Tolerance | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Compare an engine with its bundle; return what was measured, in values of JSON.

    Args:
        bundle: that the engine was built of.
        outputs: of the engine, the labels and one score at least.
        open_engine: opens a backend that runs the engine; it is called twice, as the next is.
        open_reference: opens a backend that runs the bundle itself.
        frames: uint8 (H, W, 3) RGB of any size; frames of the camera.
        tolerance: what it may lose; None: TOLERANCES of the bundle's precision.
        progress: called after each frame.

    Raises:
        CompressionError: the engine is too far from its bundle, or its outputs are not what bundle.yaml says.
    """
    tolerance = tolerance or TOLERANCES[bundle.contract.precision]
    kept = tuple(output for output in bundle.contract.outputs if output.name in outputs)
    child = Bundle(bundle.directory, replace(bundle.contract, outputs=kept))
    names = [output.name for output in kept]
    with closing(open_reference()) as before, closing(open_engine()) as after:
        noise = compare_on_noise(child, names, after.run, before.run)
    if noise.malformed:  # no drift can be measured of it
        raise _differs(bundle, noise.malformed)
    drift = measure_drift(
        bundle,
        child,
        frames,
        Guard(tolerance),
        open_parent=lambda: Detector(bundle, open_reference()),
        open_child=lambda: Detector(child, open_engine()),
        progress=progress,
    )
    if excesses := [*noise.excesses, *drift.excesses()]:
        raise _differs(bundle, excesses)
    scores = {name: vars(score) for name, score in drift.scores.items()}
    measured = {"frames": drift.frames, "label_agreement": drift.label_agreement, "scores": scores}
    return {**noise.facts, DRIFT: measured}


def _differs(bundle: Bundle, excesses: Sequence[str]) -> CompressionError:
    return CompressionError(
        f"the engine of bundle {bundle.contract.name!r} does not compute what the bundle does: "
        f"{'; '.join(excesses)}. It was not put into the cache; use a bundle of a higher precision or another "
        "version of the library, and report this one"
    )
