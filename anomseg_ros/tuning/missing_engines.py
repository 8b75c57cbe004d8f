"""Building the engines that candidates need, before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anomseg_ros.backends.built_engines import engine_outputs
from anomseg_ros.backends.engine_cache import Found
from anomseg_ros.backends.tensorrt import HOW_IT_WAS_BUILT, PROVIDERS
from anomseg_ros.backends.tensorrt_build import BuildOptions
from anomseg_ros.bench.candidate_runs import LeftOut
from anomseg_ros.bench.candidates import Candidate
from anomseg_ros.compression.checked_engines import (
    SYNTHETIC_FRAMES,
    EngineRequest,
    cache_of,
    engine_states,
    provide_engines,
)
from anomseg_ros.compression.engine_machines import Machine, ThisMachine
from anomseg_ros.core.bundle import LABELS_OUTPUT, load_bundle
from anomseg_ros.core.progress import Progress
from anomseg_ros.errors import BackendError, CompressionError

BACKEND = "tensorrt"
"""The backend that runs engines of the cache."""


def build_missing(
    candidates: Sequence[Candidate], frames: Path | None, progress: Progress
) -> tuple[list[Candidate], list[LeftOut]]:
    """Build the engines that the cache lacks, and check them as `anomseg build` does.

    Args:
        candidates: of all backends; those of others stay as they are.
        frames: folder of images to check the engines on, None for generated scenes.
        progress: called while an engine is built and checked.

    Returns:
        The candidates, and those whose engine cannot be built or is not as accurate as its bundle.
    """
    machine = _machine() if any(one.backend == BACKEND for one in candidates) else None
    if machine is None:
        return list(candidates), []  # opening the candidates says what is missing
    usable, failed = [], []
    for candidate in candidates:
        try:
            if candidate.backend == BACKEND:
                _provide(candidate, frames, machine, progress)
            usable.append(candidate)
        except (BackendError, CompressionError) as error:
            failed.append(LeftOut(candidate.title, f"its engine could not be built: {error}"))
    return usable, failed


def _machine() -> Machine | None:
    try:
        return ThisMachine(0)
    except BackendError:
        return None


def _provide(candidate: Candidate, frames: Path | None, machine: Machine, progress: Progress) -> None:
    """Build the smallest engine that a candidate can run on, unless the cache has it."""
    bundle = load_bundle(candidate.bundle)
    wanted = {LABELS_OUTPUT, candidate.score}
    sets = engine_outputs(bundle.contract)
    smallest = min((name for name in sets if wanted <= set(sets[name])), key=lambda name: len(sets[name]))
    options = BuildOptions(dla_core=PROVIDERS[candidate.provider])
    checked_on = SYNTHETIC_FRAMES if frames is None else (str(frames),)
    request = EngineRequest(bundle, (smallest,), options, checked_on)
    (state,) = engine_states(request, machine)
    if not isinstance(cache_of(request, machine).find(state.key, HOW_IT_WAS_BUILT), Found):
        provide_engines(request, machine, progress)
