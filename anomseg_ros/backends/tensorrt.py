"""TensorRT: runs engines that were built of a bundle's graph for this computer's GPU.

Engines come from the cache (engine_cache.py), where `anomseg build` puts them once they have been checked. There are
two: one for the labels and the default score, one for everything. A frame runs on the smallest that has all that is
asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt

from anomseg_ros.backends.backend_options import CONFIGURE, BackendOptions
from anomseg_ros.backends.built_engines import Built, EngineSet
from anomseg_ros.backends.cuda import Cuda, open_cuda
from anomseg_ros.backends.engine_cache import EngineCache, EngineKey
from anomseg_ros.backends.noise_check import check_on_noise
from anomseg_ros.backends.onnxruntime import OnnxRuntimeBackend
from anomseg_ros.backends.tensorrt_build import BuildOptions, build_engine, engine_key
from anomseg_ros.backends.tensorrt_engine import TensorRtEngine
from anomseg_ros.backends.tensorrt_library import Library, load_library
from anomseg_ros.core.bundle import GRAPH_FILE, Bundle
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import BackendError, unknown_name

PROVIDERS: dict[str, int | None] = {"cpu": None, "gpu": None, "dla0": 0, "dla1": 1}
"""Provider -> core of a Jetson's DLA that runs what it can, None for the GPU alone. cpu is every backend's default."""

HOW_IT_WAS_BUILT = ("workspace_bytes",)
"""Fields of a key that limit the builder's search. The engine was checked with them, so any value will do."""


class TensorRtBackend:
    """Runs engines of model.onnx. The options threads, arena and spin have no effect."""

    BUILDS = True
    """It takes a listener of builds."""

    def __init__(self, bundle: Bundle, options: BackendOptions, progress: Progress = no_progress) -> None:
        if options.provider not in PROVIDERS:
            raise BackendError(unknown_name("tensorrt provider", options.provider, PROVIDERS))
        dla_core = PROVIDERS[options.provider]
        self._build_options = BuildOptions(dla_core=dla_core)
        device = "gpu" if dla_core is None else options.provider
        self.requested = self.actual = f"tensorrt:{device}"
        bundle.require_program(GRAPH_FILE)
        self._bundle = bundle
        self._library = load_library()
        self._cuda = open_cuda(options.device)
        self._lock = threading.Lock()
        self._is_closed = False
        maker = _Maker(bundle, self._library, self._cuda, self._build_options, progress)
        self._engines = EngineSet(bundle, EngineCache(), maker, _command(bundle, dla_core), HOW_IT_WAS_BUILT)
        try:
            if options.build_engine == CONFIGURE:
                self._engines.provide(progress)
            self._engines.smallest()
        except BaseException:
            self.close()
            raise

    def run(self, tensor: RgbImage, outputs: Sequence[str]) -> list[npt.NDArray[np.generic]]:
        """Run the smallest engine that has the outputs; see Backend.run. It is loaded at its first use, never built."""
        with self._lock:
            if self._is_closed:
                raise BackendError("the backend tensorrt was closed, and runs no more frames; open it again")
            return self._engines.smallest(outputs).run(tensor, outputs)

    def facts(self) -> dict[str, str]:
        """Return what is in use, in words, for diagnostics. It waits for nothing."""
        used, loaded = self._engines.used, tuple(self._engines.loaded.values())
        if used is None:
            return {}
        (engine, found), device = used, self._cuda.device
        return {
            "tensorrt": self._library.version_text,
            "gpu": f"{device.name} (compute {device.compute_capability}, {device.multiprocessors} multiprocessors)",
            "cuda": f"{_version(device.runtime_version)}, driver for {_version(device.driver_version)}",
            "cuda_binding": self._cuda.binding,
            **self._engines.facts(),
            "tf32": "yes" if found.facts["key"].get("tf32") else "no",
            "cuda_graph": engine.cuda_graph,
            **{f"{name}_ms": f"{value:.3f}" for name, value in self.stages_ms().items()},
            "device_memory_mib": f"{sum(each.device_memory_bytes for each in loaded) / (1 << 20):.1f}",
        }

    def stages_ms(self) -> dict[str, float]:
        """Return how long upload, compute and download of the last frame took on the GPU, milliseconds."""
        used = self._engines.used
        times = used[0].times._asdict() if used else {}
        return {name.removesuffix("_ms"): value for name, value in times.items()}

    def close(self) -> None:
        """Release the engines, once the frame in work is done."""
        with self._lock:
            self._is_closed = True
            for engine in self._engines.loaded.values():
                engine.close()
            self._engines.unload()
            self._cuda.close()


class _Maker:
    """See built_engines.Maker."""

    def __init__(self, bundle: Bundle, library: Library, cuda: Cuda, options: BuildOptions, progress: Progress) -> None:
        self._bundle, self._library, self._cuda = bundle, library, cuda
        self._options, self._progress = options, progress

    def key(self, outputs: tuple[str, ...]) -> EngineKey:
        return engine_key(self._bundle, outputs, self._library, self._cuda.device, self._options)

    def build(self, outputs: tuple[str, ...], timings: bytes) -> Built:
        if self._bundle.contract.precision == "bf16":
            raise BackendError(
                f"bundle {self._bundle.contract.name!r} is in bf16, which ONNX Runtime cannot run on a processor, so "
                "there is nothing here to compare a new engine with; build it before, with "
                f"`anomseg build {self._bundle.directory}`"
            )
        try:
            with self._cuda.entered():
                return build_engine(self._library, self._bundle, outputs, self._options, timings, self._progress)
        except BackendError as error:
            raise BackendError(
                f"{self._bundle.graph_path} cannot be loaded by {self._library.title}: {error}"
            ) from error

    def check(self, outputs: tuple[str, ...], built: Built) -> Mapping[str, Any]:
        with (
            closing(self.load(outputs, built.plan)) as engine,
            closing(OnnxRuntimeBackend(self._bundle, BackendOptions())) as reference,
        ):
            return check_on_noise(self._bundle, outputs, engine.run, reference.run)

    def load(self, outputs: tuple[str, ...], plan: bytes) -> TensorRtEngine:
        return TensorRtEngine(self._library, self._cuda, self._bundle, plan, self._options.dla_core)


def _command(bundle: Bundle, dla_core: int | None) -> str:
    """Return the command that builds the bundle's engines."""
    return f"anomseg build {bundle.directory}" + ("" if dla_core is None else f" --dla {dla_core}")


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
