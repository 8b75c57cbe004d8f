"""Engines of a bundle for this machine: built where the cache has none, and stored once they have been checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anomseg_ros.backends.built_engines import DRIFT, Built, engine_outputs, provide_engine
from anomseg_ros.backends.engine_cache import EngineCache, EngineKey, Found, Miss
from anomseg_ros.backends.tensorrt_build import BuildOptions, build_engine
from anomseg_ros.backends.tensorrt_library import Library, load_library
from anomseg_ros.compression.argmax_choice import EXPORTED, FACT, FASTEST, build_faster_form
from anomseg_ros.compression.calibration_frames import drawn_frames
from anomseg_ros.compression.engine_check import check_engine
from anomseg_ros.compression.engine_machines import Machine
from anomseg_ros.core.bundle import Bundle
from anomseg_ros.core.detector import Backend
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import ConfigError, unknown_name

MOST_FRAMES = 16
SYNTHETIC_FRAMES = ("synthetic=1000105:8",)


@dataclass(frozen=True)
class EngineRequest:
    """Which engines to provide.

    engines: names of engine_outputs; empty for all. frames: folders of images, or datasets as NAME=PATH, to check the
    engines on. cache: folder of the cache, None for the user's own. argmax: "exported" for the form of the labels that
    the graph has, "fastest" to build both forms and keep the faster one.
    """

    bundle: Bundle
    engines: tuple[str, ...] = ()
    options: BuildOptions = field(default_factory=BuildOptions)
    frames: tuple[str, ...] = SYNTHETIC_FRAMES
    cache: Path | None = None
    seed: int = 0
    argmax: str = EXPORTED

    @property
    def built_with(self) -> tuple[str, ...]:
        """Names that the facts of an engine must have."""
        return (FACT,) if self.argmax == FASTEST else ()

    def read_frames(self, progress: Progress = no_progress) -> list[RgbImage]:
        """Return the frames to check engines on. Raises DatasetError or FrameError."""
        return drawn_frames(self.frames, MOST_FRAMES, seed=self.seed, progress=progress)

    def outputs(self) -> dict[str, tuple[str, ...]]:
        """Return name -> outputs of the engines that are asked for. Raises ConfigError for an unknown name."""
        known = engine_outputs(self.bundle.contract)
        for name in self.engines:
            if name not in known:
                raise ConfigError(unknown_name("engine", name, known))
        return {name: known[name] for name in self.engines or known}


@dataclass(frozen=True)
class EngineState:
    """An engine before anything is built. state: that it is in the cache, or why it is not."""

    name: str
    key: EngineKey
    state: Found | Miss


@dataclass
class _Frames:
    """Frames that are read when the first engine needs them, before it is built."""

    request: EngineRequest
    progress: Progress
    read: list[RgbImage] = field(default_factory=list)

    def get(self) -> list[RgbImage]:
        self.read = self.read or self.request.read_frames(self.progress)
        return self.read


def cache_of(request: EngineRequest, machine: Machine) -> EngineCache:
    """Return the cache of a request: the machine's own unless it names another."""
    return EngineCache(request.cache or machine.folder)


def engine_states(request: EngineRequest, machine: Machine) -> list[EngineState]:
    """Return, for each engine that is asked for, whether the cache has it. Raises BackendError or ConfigError."""
    cache, states = cache_of(request, machine), []
    for name, outputs in request.outputs().items():
        key = machine.key(request.bundle, outputs, request.options)
        found = cache.find(key)
        if isinstance(found, Found) and not set(request.built_with) <= set(found.facts):
            found = Miss(f"the engine {key.digest[:12]} was built without a choice between the forms of argmax")
        states.append(EngineState(name, key, found))
    return states


def provide_engines(
    request: EngineRequest, machine: Machine, progress: Progress = no_progress
) -> dict[str, Mapping[str, Any]]:
    """Build, check and store the engines that the cache lacks; return name -> facts of all that are asked for.

    What a check needs, frames among it, is there before anything is built, and an engine of the cache stays until a
    better one replaces it. Raises DatasetError for frames that cannot be read, BackendError where an engine cannot be
    built, CompressionError where it does not compute what the bundle does.
    """
    cache, frames = cache_of(request, machine), _Frames(request, progress)
    provided: dict[str, Mapping[str, Any]] = {}
    for name, outputs in request.outputs().items():
        key = machine.key(request.bundle, outputs, request.options)
        found = cache.find(key)
        facts = found.facts if isinstance(found, Found) else {}
        if not set(request.built_with) <= set(facts) or DRIFT not in facts.get("check", ()):
            machine.require_reference(request.bundle)
            frames.get()

        def build(timings: bytes, name: str = name, outputs: tuple[str, ...] = outputs) -> Built:
            return _build(request, machine, outputs, timings, _named(progress, name))

        def check(built: Built, outputs: tuple[str, ...] = outputs) -> Mapping[str, Any]:
            def open_engine() -> Backend:
                return machine.open_plan(request.bundle, built.plan, outputs, request.options)

            with machine.reference(request.bundle) as open_reference:
                return check_engine(
                    request.bundle, outputs, open_engine, open_reference, frames.get(), progress=progress
                )

        told = _named(progress, name)
        provided[name] = provide_engine(cache, key, build, check, (DRIFT,), told, request.built_with).facts
    return provided


def _build(
    request: EngineRequest, machine: Machine, outputs: tuple[str, ...], timings: bytes, progress: Progress
) -> Built:
    def build(bundle: Bundle, timings: bytes) -> Built:
        return machine.build(bundle, outputs, request.options, timings, progress)

    def open_plan(plan: bytes) -> Backend:
        return machine.open_plan(request.bundle, plan, outputs, request.options)

    if request.argmax == EXPORTED:
        return build(request.bundle, timings)
    return build_faster_form(request.bundle, build, open_plan, outputs, timings, progress)


def check_graph_builds(request: EngineRequest, progress: Progress = no_progress) -> tuple[Library, dict[str, Built]]:
    """Parse and build the engines with whatever library there is, on a computer without a GPU as well; keep nothing.

    Raises BackendError where no library is installed, or where it refuses the graph.
    """
    library = load_library(parse_only=True)
    built = {
        name: build_engine(library, request.bundle, outputs, request.options, progress=_named(progress, name))
        for name, outputs in request.outputs().items()
    }
    return library, built


def _named(progress: Progress, name: str) -> Progress:
    """Return a report of progress that says which engine it is about."""
    return lambda what, done, total: progress(f"{name}: {what}", done, total)
