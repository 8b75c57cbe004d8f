"""The options that all backends share."""

from __future__ import annotations

from dataclasses import dataclass

from anomseg_ros.errors import ConfigError, unknown_name

MAX_THREADS = 256
"""More than any machine that this runs on has; an engine that is asked for 100 000 makes them, and does not end."""
MAX_DEVICE = 63
NEVER, CONFIGURE = "never", "configure"
BUILD_ENGINE = (NEVER, CONFIGURE)

PROVIDERS_IN_WORDS = (
    "cpu; cuda, tensorrt, openvino (onnxruntime); gpu (openvino, tensorrt); dla0, dla1 (tensorrt); eager, aot, cuda, "
    "cuda-aot (torch)"
)
"""Providers and the backends that have them. Each backend's module has its own table, which needs its engine."""


@dataclass(frozen=True)
class BackendOptions:
    """How a backend runs.

    threads: processor threads for one frame, 0 for one per core. provider: where the engine runs, see
    PROVIDERS_IN_WORDS. arena: keep freed memory for the next frame, which is faster and takes more resident memory.
    spin: let idle worker threads spin, which lowers latency and uses a whole core. device: index of the GPU.
    build_engine: whether a backend whose engines are built (tensorrt; torch with aot or cuda-aot) may do so when it is
    opened; otherwise `anomseg build` has to have done it. fallback_backend: opened where the backend cannot be; empty
    for none.
    """

    threads: int = 0
    provider: str = "cpu"
    arena: bool = True
    spin: bool = False
    device: int = 0
    build_engine: str = NEVER
    fallback_backend: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.threads <= MAX_THREADS:
            raise ConfigError(f"threads {self.threads!r}: expected 0 (one per core) to {MAX_THREADS}")
        if not 0 <= self.device <= MAX_DEVICE:
            raise ConfigError(f"device {self.device!r}: expected the index of a GPU, 0 to {MAX_DEVICE}")
        if self.build_engine not in BUILD_ENGINE:
            raise ConfigError(unknown_name("value of build_engine:", self.build_engine, BUILD_ENGINE))
