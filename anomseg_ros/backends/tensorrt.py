"""TensorRT: runs engines that were built of a bundle's graph for this computer's GPU.

Engines come from the cache (engine_cache.py), where `anomseg build` puts them once they have been checked. There are
two: one for the labels and the default score, one for everything. A frame runs on the smallest that has all that is
asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from anomseg_ros.backends.backend_options import CONFIGURE, BackendOptions
from anomseg_ros.backends.cuda import Cuda, open_cuda
from anomseg_ros.backends.engine_cache import EngineCache, EngineKey, Found, Miss
from anomseg_ros.backends.tensorrt_build import (
    BuildOptions,
    Built,
    build_engine,
    engine_key,
    engine_outputs,
    provide_engine,
)
from anomseg_ros.backends.tensorrt_check import check_on_noise
from anomseg_ros.backends.tensorrt_engine import TensorRtEngine
from anomseg_ros.backends.tensorrt_library import Library, load_library
from anomseg_ros.core.bundle import GRAPH_FILE, Bundle
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import BackendError, unknown_name

PROVIDERS: dict[str, int | None] = {"cpu": None, "gpu": None, "dla0": 0, "dla1": 1}
"""Provider -> core of a Jetson's DLA that runs what it can, None for the GPU alone. cpu is every backend's default."""

HOW_IT_WAS_BUILT = ("workspace_bytes", "optimization_level")
"""Fields of a key that limit the builder's search. They do not change what an engine computes, so any value will do."""


class TensorRtBackend:
    """Runs engines of model.onnx. The options threads, arena and spin have no effect."""

    BUILDS = True
    """It takes a listener of builds."""

    def __init__(self, bundle: Bundle, options: BackendOptions, progress: Progress = no_progress) -> None:
        if options.provider not in PROVIDERS:
            raise BackendError(unknown_name("tensorrt provider", options.provider, PROVIDERS))
        self._build_options = BuildOptions(dla_core=PROVIDERS[options.provider])
        device = "gpu" if self._build_options.dla_core is None else options.provider
        self.requested = self.actual = f"tensorrt:{device}"
        bundle.require_program(GRAPH_FILE)
        self._bundle, self._progress = bundle, progress
        self._library = load_library()
        self._cuda = open_cuda(options.device)
        self._cache = EngineCache()
        self._lock = threading.Lock()
        self._sets = {name: frozenset(outputs) for name, outputs in engine_outputs(bundle.contract).items()}
        self._open: dict[str, TensorRtEngine] = {}
        self._facts: dict[str, str] = {}
        self._hits: dict[str, str] = {}
        try:
            if options.build_engine == CONFIGURE:
                for name in self._sets:
                    self._provide(name)
            self._engine_for(min(self._sets.values(), key=len))
        except BaseException:
            self.close()
            raise

    def run(self, tensor: RgbImage, outputs: Sequence[str]) -> list[npt.NDArray[np.generic]]:
        """Run the smallest engine that has the outputs; see Backend.run. It is loaded at its first use, never built."""
        with self._lock:
            return self._engine_for(frozenset(outputs)).run(tensor, outputs)

    def facts(self) -> dict[str, str]:
        """Return what is in use, in words, for diagnostics. It waits for nothing."""
        engines = tuple(self._open.items())
        if not engines:
            return {}
        _, engine = engines[-1]
        device = self._cuda.device
        return {
            "tensorrt": self._library.version_text,
            "gpu": f"{device.name} (compute {device.compute_capability}, {device.multiprocessors} multiprocessors)",
            "cuda": f"{_version(device.runtime_version)}, driver for {_version(device.driver_version)}",
            "cuda_binding": self._cuda.binding,
            "engines": ", ".join(name for name, _ in engines),
            **self._facts,
            "cuda_graph": engine.cuda_graph,
            **{f"{name}_ms": f"{value:.3f}" for name, value in self.stages_ms().items()},
            "device_memory_mib": f"{sum(engine.device_memory_bytes for _, engine in engines) / (1 << 20):.1f}",
        }

    def stages_ms(self) -> dict[str, float]:
        """Return how long upload, compute and download of the last frame took on the GPU, milliseconds."""
        engines = tuple(self._open.values())
        times = engines[-1].times._asdict() if engines else {}
        return {name.removesuffix("_ms"): value for name, value in times.items()}

    def close(self) -> None:
        """Release the engines."""
        for engine in self._open.values():
            engine.close()
        self._open.clear()
        self._cuda.close()

    def _engine_for(self, wanted: frozenset[str]) -> TensorRtEngine:
        """Return the smallest engine that covers the outputs, of those in the cache. Raises BackendError."""
        covering = sorted((name for name in self._sets if self._sets[name] >= wanted), key=lambda n: len(self._sets[n]))
        if not covering:
            raise BackendError(f"bundle {self._bundle.contract.name!r} has no {', '.join(sorted(wanted))}")
        reasons = []
        for name in covering:
            if name in self._open:
                return self._open[name]
            found = self._cache.find(self._key(name), HOW_IT_WAS_BUILT)
            if isinstance(found, Found):
                return self._load(name, found)
            reasons.append(found.reason)
        raise BackendError(self._not_built(reasons[0]))

    def _load(self, name: str, found: Found) -> TensorRtEngine:
        engine = self._engine(found.plan)
        self._open[name] = engine
        self._facts = {
            "engine_key": found.plan_path.parent.name[:12],
            "engine": self._hits.get(name, "found in the cache"),
            "engine_build_s": str(found.facts.get("build_s", "unknown")),
            "engine_layers": str(found.facts.get("layers_by_device", "unknown")),
            "engine_check": _plain(found.facts.get("check", "none")),
            "engine_precision": str(found.facts.get("precision", self._bundle.contract.precision)),
            "tf32": "yes" if self._key(name).tf32 else "no",
        }
        return engine

    def _provide(self, name: str) -> None:
        """Build, check and store an engine unless the cache has it."""
        key = self._key(name)
        found = self._cache.find(key, HOW_IT_WAS_BUILT)
        if isinstance(found, Miss):
            self._hits[name] = f"built now: {found.reason}"
            provide_engine(
                self._cache, key, lambda timings: self._build(name, timings), lambda built: self._check(built)
            )

    def _build(self, name: str, timings: bytes) -> Built:
        try:
            with self._cuda.entered():
                return build_engine(
                    self._library, self._bundle, self._sets[name], self._build_options, timings, self._progress
                )
        except BackendError as error:
            raise BackendError(
                f"{self._bundle.graph_path} cannot be loaded by {self._library.title}: {error}"
            ) from error

    def _check(self, built: Built) -> Mapping[str, Any]:
        engine = self._engine(built.plan)
        try:
            return check_on_noise(self._bundle, engine)
        finally:
            engine.close()

    def _engine(self, plan: bytes) -> TensorRtEngine:
        return TensorRtEngine(self._library, self._cuda, self._bundle, plan, self._build_options.dla_core)

    def _key(self, name: str) -> EngineKey:
        return engine_key(self._bundle, self._sets[name], self._library, self._cuda.device, self._build_options)

    def _not_built(self, reason: str) -> str:
        core = self._build_options.dla_core
        dla = "" if core is None else f" --dla {core}"
        return (
            f"bundle {self._bundle.contract.name!r} has no engine for this computer: {reason}; build it with "
            f"`anomseg build {self._bundle.directory}{dla}`, or set build_engine to {CONFIGURE!r}"
        )


def open_plan(
    bundle: Bundle, plan: bytes, outputs: Sequence[str], library: Library, cuda: Cuda, dla_core: int | None = None
) -> TensorRtEngine:
    """Return a backend that runs an engine which is not in the cache, such as one that has to be checked.

    Args:
        bundle: that the engine was built of.
        plan: the engine.
        outputs: that it was built for.
        library: that built it.
        cuda: the GPU.
        dla_core: that it was built for.

    Raises:
        BackendError: it cannot be loaded, or lacks one of the outputs.
    """
    engine = TensorRtEngine(library, cuda, bundle, plan, dla_core)
    if not engine.outputs >= set(outputs):
        engine.close()
        raise BackendError(f"the engine computes {', '.join(sorted(engine.outputs))}, not {', '.join(outputs)}")
    return engine


def check_usable() -> None:
    """Raise BackendError with a remedy unless TensorRT is installed and there is a GPU."""
    load_library()
    open_cuda().close()


def _version(number: int) -> str:
    """Return 12060 as 12.6."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _plain(value: Any) -> str:
    """Return nested values as one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    return str(value)
