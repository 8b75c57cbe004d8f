"""What a new engine must show before it serves: that it computes what its bundle does.

It is compared on noise, as every engine is (backends/noise_check.py). Drift is measured on frames of the camera, by the
guard of compressed bundles. The bundle itself runs in ONNX Runtime on the CPU. Nothing here needs torch, so a vehicle's
computer can do it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from anomseg_ros.backends import open_backend
from anomseg_ros.backends.built_engines import DRIFT
from anomseg_ros.backends.noise_check import compare_on_noise
from anomseg_ros.compression.drift import TOLERANCES, Guard, Tolerance, measure_drift
from anomseg_ros.core.bundle import GRAPH_FILE, Bundle, save_bundle
from anomseg_ros.core.detector import Backend, Detector
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import BackendError, CompressionError


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
    names = [output.name for output in kept]
    with runnable_on_cpu(bundle) as reference:
        with closing(open_backend("onnxruntime", reference)) as before, closing(open_engine()) as after:
            noise = compare_on_noise(child, names, after.run, before.run)
        if noise.malformed:  # no drift can be measured of it
            raise _differs(bundle, noise.malformed)
        guard, open_child = Guard(tolerance), lambda: Detector(child, open_engine())
        drift = measure_drift(reference, child, frames, guard, open_child=open_child, progress=progress)
    if excesses := [*noise.excesses, *drift.excesses()]:
        raise _differs(bundle, excesses)
    scores = {name: vars(score) for name, score in drift.scores.items()}
    measured = {"frames": drift.frames, "label_agreement": drift.label_agreement, "scores": scores}
    return {**noise.facts, DRIFT: measured}


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


def _differs(bundle: Bundle, excesses: Sequence[str]) -> CompressionError:
    return CompressionError(
        f"the engine of bundle {bundle.contract.name!r} does not compute what the bundle does: "
        f"{'; '.join(excesses)}. It was not put into the cache; use a bundle of a higher precision or another "
        "version of TensorRT, and report this one"
    )
