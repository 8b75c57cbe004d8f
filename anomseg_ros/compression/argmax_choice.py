"""Which form of the labels is faster in an engine: both are built, and run in turns on the device."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from anomseg_ros.backends.built_engines import Built
from anomseg_ros.core.bundle import GRAPH_FILE, Bundle, save_bundle
from anomseg_ros.core.detector import Backend
from anomseg_ros.core.preprocess import noise_frames
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.errors import BackendError

EXPORTED, FASTEST = "exported", "fastest"
ARGMAX_CHOICES = (EXPORTED, FASTEST)
"""The form that the bundle has, or the faster one."""
FACT = "argmax"
"""Name in an engine's facts of the form it has, and of the times of both."""
WARM_UP, ROUNDS = 5, 40


def build_faster_form(
    bundle: Bundle,
    build: Callable[[Bundle, bytes], Built],
    open_plan: Callable[[bytes], Backend],
    outputs: Sequence[str],
    timings: bytes,
    progress: Progress = no_progress,
) -> Built:
    """Build an engine of the bundle's graph and one with comparisons in place of ArgMax; return the faster one.

    Args:
        bundle: exported with ArgMax.
        build: builds an engine of a bundle, given the timing cache.
        open_plan: opens a backend that runs an engine.
        outputs: of the engines.
        timings: the timing cache.
        progress: called after each round.

    Raises:
        BackendError: an engine cannot be built or run, or the package onnx is missing.
    """
    exported = build(bundle, timings)
    with tempfile.TemporaryDirectory(prefix="anomseg-") as folder:
        other = _with_comparisons(bundle, Path(folder))
        if other is None:
            return replace(exported, facts={**exported.facts, FACT: {"form": "as exported", "medians_ms": {}}})
        compared = build(other, exported.timings)
    argmax_ms, compare_ms = _median_ms([exported.plan, compared.plan], open_plan, bundle, outputs, progress)
    chosen, form = (compared, "compare") if compare_ms < argmax_ms else (exported, "argmax")
    medians_ms = {"argmax": round(argmax_ms, 4), "compare": round(compare_ms, 4)}
    build_s = round(exported.facts["build_s"] + compared.facts["build_s"], 2)
    return Built(
        chosen.plan,
        {**chosen.facts, "build_s": build_s, FACT: {"form": form, "medians_ms": medians_ms}},
        compared.timings,
    )


def _with_comparisons(bundle: Bundle, folder: Path) -> Bundle | None:
    """Return the bundle with the other form of its labels, None where its graph has no ArgMax over the classes."""
    try:
        import onnx  # of the offline half; only this choice needs it

        from anomseg_ros.networks.argmax_form import with_comparisons
    except ImportError as error:
        raise BackendError(
            f"the other form of argmax needs the package onnx ({error}): pip install 'anomseg_ros[offline]', or leave "
            f"out `argmax` {FASTEST}"
        ) from error
    model = onnx.load(bundle.require_program(GRAPH_FILE))
    changed = with_comparisons(model)
    if changed is model:
        return None
    onnx.save(changed, folder / GRAPH_FILE)
    return save_bundle(bundle.contract, {GRAPH_FILE: folder / GRAPH_FILE}, folder / "compare")


def _median_ms(
    plans: Sequence[bytes],
    open_plan: Callable[[bytes], Backend],
    bundle: Bundle,
    outputs: Sequence[str],
    progress: Progress,
) -> list[float]:
    """Return the median time of each engine, run in turns, in milliseconds, copies included."""
    given = bundle.contract.input
    frame = noise_frames(given.height_px, given.width_px)[1][np.newaxis]
    with closing(open_plan(plans[0])) as first, closing(open_plan(plans[1])) as second:
        times_s: list[list[float]] = [[], []]
        for number in range(WARM_UP + ROUNDS):
            for backend, taken in zip((first, second), times_s, strict=True):
                started = time.perf_counter()
                backend.run(frame, outputs)
                taken.append(time.perf_counter() - started)
            progress("timing both forms of argmax", number + 1, WARM_UP + ROUNDS)
    return [1e3 * statistics.median(taken[WARM_UP:]) for taken in times_s]
