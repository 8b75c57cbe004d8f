"""The candidates to measure: a bundle on a backend with a number of threads, or its checkpoint in torch."""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from anomseg_ros.backends import BACKENDS, known_providers, open_detector
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.core.bundle import GRAPH_FILE, Bundle, load_bundle
from anomseg_ros.core.detector import backend_facts, backend_stages_ms
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import BackendError, ConfigError, unknown_name

EAGER = "torch eager"
"""The backend name of a checkpoint that runs in torch without export."""

PROGRAM_FILES = {"torch": "model.pt2"}
"""Backend -> the file that it runs instead of the ONNX graph."""

WITHOUT_THREADS = ("tensorrt",)
"""Backends that use no threads of the processor: one candidate stands for all numbers of threads."""


@dataclass(frozen=True)
class Candidate:
    """One thing to measure.

    name: of the bundle in tables, unique among bundles. bundle: its directory. backend: of the table, or EAGER.
    threads: 0 for one per core. score: computed beside the labels. checkpoint: file with the weights, of EAGER only.
    runner: "module:Class" that runs it, also in another process.
    """

    name: str
    bundle: str
    backend: str
    threads: int
    score: str
    height_px: int
    width_px: int
    precision: str
    provider: str = "cpu"
    checkpoint: str | None = None
    runner: str = "anomseg_ros.bench.candidates:BundleRunner"

    @property
    def title(self) -> str:
        """Name, backend, threads and size in words; unique among the candidates of a run."""
        threads = "all threads" if self.threads == 0 else f"{self.threads} thread{'s' * (self.threads != 1)}"
        provider = "" if self.provider == "cpu" else f":{self.provider}"
        words = [self.name, f"{self.backend}{provider}", threads, f"{self.height_px}x{self.width_px}"]
        return ", ".join(word for word in words if word is not threads or self.backend not in WITHOUT_THREADS)

    @property
    def is_on_nvidia_gpu(self) -> bool:
        """Whether the engine that is asked for runs on an NVIDIA GPU."""
        return self.backend == "tensorrt" or self.provider in ("cuda", "tensorrt")

    @property
    def program(self) -> Path:
        """The file that holds the weights."""
        if self.checkpoint is not None:
            return Path(self.checkpoint)
        return Path(self.bundle) / PROGRAM_FILES.get(self.backend, GRAPH_FILE)


class Runner(Protocol):
    """A loaded candidate. requested, actual: the requested engine, and the one in use."""

    requested: str
    actual: str

    def facts(self) -> Mapping[str, str]:
        """Return what the engine says of itself, in words."""
        ...

    def stages_ms(self) -> Mapping[str, float]:
        """Return the times of the last frame's stages in the engine, milliseconds; empty where it does not tell."""
        ...

    def __call__(self, frame: RgbImage) -> None:
        """Compute labels and one score of a uint8 (H, W, 3) RGB frame; discard them."""
        ...

    def close(self) -> None:
        """Release the memory."""
        ...


class BundleRunner:
    """A bundle on a backend, called as the node calls it, with resizing."""

    def __init__(self, candidate: Candidate) -> None:
        options = BackendOptions(threads=candidate.threads, provider=candidate.provider)
        self._detector = open_detector(candidate.bundle, candidate.backend, options)
        self._scores = (candidate.score,)
        self.requested = self._detector.backend.requested
        self.actual = self._detector.backend.actual

    def __call__(self, frame: RgbImage) -> None:
        """Compute labels and score."""
        self._detector.detect(frame, self._scores)

    def facts(self) -> Mapping[str, str]:
        """See Runner."""
        return backend_facts(self._detector.backend)

    def stages_ms(self) -> Mapping[str, float]:
        """See Runner."""
        return backend_stages_ms(self._detector.backend)

    def close(self) -> None:
        """Release the backend."""
        self._detector.close()


def open_runner(candidate: Candidate) -> Runner:
    """Load a candidate. Raises BundleError, BackendError, CheckpointError or ConfigError."""
    module, _, attribute = candidate.runner.partition(":")
    runner: Runner = getattr(importlib.import_module(module), attribute)(candidate)
    return runner


def candidates_of(
    directories: Sequence[Path],
    backends: Sequence[str],
    threads: Sequence[int],
    *,
    score: str = "",
    provider: str = "cpu",
) -> list[Candidate]:
    """Return every bundle with every backend that can run it and every number of threads.

    Args:
        directories: of the bundles.
        backends: names; one is left out for bundles without the file that it runs.
        threads: numbers of threads, 0 for one per core. Backends without threads have one candidate.
        score: "" for each bundle's default.
        provider: backends that do not know it run on their default.

    Raises:
        BundleError: a bundle cannot be used.
        ConfigError: a bundle lacks the score or is given twice, or no backend knows the provider.
    """
    providers = _provider_of_each(backends, provider)
    bundles = [load_bundle(directory) for directory in directories]
    candidates = [
        Candidate(
            name=name,
            bundle=str(bundle.directory),
            backend=backend,
            threads=number,
            score=bundle.check_score(score),
            height_px=bundle.contract.input.height_px,
            width_px=bundle.contract.input.width_px,
            precision=bundle.contract.precision,
            provider=providers[backend],
        )
        for bundle, name in zip(bundles, _unique_names(bundles), strict=True)
        for backend in backends
        if PROGRAM_FILES.get(backend, GRAPH_FILE) in bundle.contract.files
        for number in thread_numbers(backend, threads)
    ]
    for title, count in Counter(candidate.title for candidate in candidates).items():
        if count > 1:
            raise ConfigError(f"{title} is given twice; give each bundle, backend and number of threads once")
    return candidates


def thread_numbers(backend: str, threads: Sequence[int]) -> Sequence[int]:
    """Return the numbers of threads to measure a backend with; 0 alone for one that uses none."""
    return threads if backend not in WITHOUT_THREADS else (0,)


def _unique_names(bundles: Sequence[Bundle]) -> list[str]:
    """Return the bundles' names. Bundles of the same name are told apart by their precision, or else their folder."""
    names = [bundle.contract.name for bundle in bundles]
    precise = [f"{name} {bundle.contract.precision}" for name, bundle in zip(names, bundles, strict=True)]
    return [
        name if names.count(name) == 1 else longer if precise.count(longer) == 1 else str(bundle.directory)
        for name, longer, bundle in zip(names, precise, bundles, strict=True)
    ]


def left_out(directories: Sequence[Path], backends: Sequence[str], provider: str = "cpu") -> list[str]:
    """Return a sentence for each backend that candidates_of leaves out or runs on another provider."""
    missing = [
        f"{directory} has no {PROGRAM_FILES.get(backend, GRAPH_FILE)}: it is not measured on {backend}"
        for directory in directories
        for backend in backends
        if PROGRAM_FILES.get(backend, GRAPH_FILE) not in load_bundle(directory).contract.files
    ]
    other = [
        f"{backend} has no provider {provider!r}: it is measured on {used}"
        for backend, used in _provider_of_each(backends, provider).items()
        if used != provider
    ]
    return missing + other


def _provider_of_each(backends: Sequence[str], provider: str) -> dict[str, str]:
    """Return backend -> its provider. Raises ConfigError for a provider that no backend knows."""
    default = BackendOptions().provider
    if provider == default:
        return dict.fromkeys(backends, default)
    known = {backend: _providers(backend) for backend in backends}
    if any(known.values()) and not any(provider in names for names in known.values()):
        every = list(dict.fromkeys(name for names in known.values() for name in names))
        raise ConfigError(unknown_name(f"provider of {', '.join(backends)}:", provider, every))
    return {backend: provider if provider in names else default for backend, names in known.items()}


def _providers(backend: str) -> tuple[str, ...]:
    """Return the providers of a backend; none where it is not installed, which opening it will say."""
    try:
        return known_providers(backend)
    except BackendError:
        return ()


def thread_warnings(threads: Sequence[int]) -> tuple[str, ...]:
    """Return a warning for each number of threads above the number of cores."""
    cores = core_count()
    beyond = [number for number in threads if number > cores]
    return tuple(f"{n} threads on {cores} core(s): they take turns, and more of them is slower" for n in beyond)


def known_backends(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of backends. Raises ConfigError for an unknown one."""
    for name in names:
        if name not in BACKENDS:
            raise ConfigError(unknown_name("backend", name, BACKENDS))
    return tuple(names)


def core_count() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
