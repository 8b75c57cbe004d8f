"""What is measured: a bundle on a backend with so many threads, or its checkpoint in torch as it is."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from anomseg_ros.backends import known_providers, open_detector
from anomseg_ros.backends.options import BackendOptions
from anomseg_ros.core.bundle import GRAPH_FILE, Bundle, load_bundle
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import ConfigError, unknown_name

EAGER = "torch eager"
"""The backend name of a checkpoint that runs without being exported."""

RUNNERS = {
    "bundle": "anomseg_ros.bench.candidates:BundleRunner",
    # By name: this package imports no torch.
    "eager": "anomseg_ros.compression.eager:EagerRunner",
}

PROGRAM_FILES = {"torch": "model.pt2"}
"""Backend -> the file of a bundle that it runs, where that is not the ONNX graph."""


@dataclass(frozen=True)
class Candidate:
    """One thing to measure.

    bundle: directory; name: what the bundle is called in tables, unique among bundles; backend: of the table, or EAGER;
    threads: 0 = one per core; score: computed beside the labels; checkpoint: file with the weights, of EAGER only.
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

    @property
    def title(self) -> str:
        """Name, backend, threads and size in words; unique among the candidates of a run."""
        threads = "all threads" if self.threads == 0 else f"{self.threads} thread{'s' * (self.threads != 1)}"
        provider = "" if self.provider == "cpu" else f":{self.provider}"
        return f"{self.name}, {self.backend}{provider}, {threads}, {self.height_px}x{self.width_px}"

    @property
    def program(self) -> Path:
        """The file that holds the weights."""
        if self.checkpoint is not None:
            return Path(self.checkpoint)
        return Path(self.bundle) / PROGRAM_FILES.get(self.backend, GRAPH_FILE)


class Runner(Protocol):
    """A candidate that is loaded. requested, actual: the engine that was asked for, and the one really in use."""

    requested: str
    actual: str

    def __call__(self, frame: RgbImage) -> None:
        """Compute labels and one score of a uint8 (H, W, 3) RGB frame, and throw them away."""
        ...

    def close(self) -> None:
        """Release the memory."""
        ...


class BundleRunner:
    """A bundle on one of the backends, called as the node calls it: resizing included."""

    def __init__(self, candidate: Candidate) -> None:
        options = BackendOptions(threads=candidate.threads, provider=candidate.provider)
        self._detector = open_detector(candidate.bundle, candidate.backend, options)
        self._scores = (candidate.score,)
        self.requested = self._detector.backend.requested
        self.actual = self._detector.backend.actual

    def __call__(self, frame: RgbImage) -> None:
        """Compute labels and score."""
        self._detector.detect(frame, self._scores)

    def close(self) -> None:
        """Release the backend."""
        self._detector.close()


def open_runner(candidate: Candidate) -> Runner:
    """Load a candidate. Raises BundleError, BackendError, CheckpointError or ConfigError."""
    module, _, attribute = RUNNERS["bundle" if candidate.checkpoint is None else "eager"].partition(":")
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

    score: "" for each bundle's default. A backend is left out for bundles without the file it runs, and runs on its own
    default where it is not the one that knows the provider. Raises BundleError for a bundle that cannot be used,
    ConfigError for a score that one of them lacks, a bundle given twice or a provider that no backend knows.
    """
    providers = _provider_of_each(backends, provider)
    bundles = [load_bundle(directory) for directory in directories]
    found = []
    for bundle, name in zip(bundles, _unique_names(bundles), strict=True):
        contract = bundle.contract
        for backend in backends:
            if PROGRAM_FILES.get(backend, GRAPH_FILE) not in contract.files:
                continue
            for number in threads:
                found.append(
                    Candidate(
                        name=name,
                        bundle=str(bundle.directory),
                        backend=backend,
                        threads=number,
                        score=bundle.check_score(score),
                        height_px=contract.input.height_px,
                        width_px=contract.input.width_px,
                        precision=contract.precision,
                        provider=providers[backend],
                    )
                )
    return _each_once(found)


def _unique_names(bundles: Sequence[Bundle]) -> list[str]:
    """A bundle and what was made of it often share their name: their precisions or else their folders differ."""
    names = [bundle.contract.name for bundle in bundles]
    precise = [f"{name} {bundle.contract.precision}" for name, bundle in zip(names, bundles, strict=True)]
    return [
        name if names.count(name) == 1 else longer if precise.count(longer) == 1 else str(bundle.directory)
        for name, longer, bundle in zip(names, precise, bundles, strict=True)
    ]


def left_out(directories: Sequence[Path], backends: Sequence[str], provider: str = "cpu") -> list[str]:
    """Return what candidates_of leaves out or runs otherwise, in words: missing files, unknown providers."""
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
    """Return backend -> the provider it runs on. Raises ConfigError for one that none of them knows."""
    default = BackendOptions().provider
    if provider == default:
        return dict.fromkeys(backends, default)
    known = {backend: known_providers(backend) for backend in backends}
    if not any(provider in names for names in known.values()):
        every = list(dict.fromkeys(name for names in known.values() for name in names))
        raise ConfigError(unknown_name(f"provider of {', '.join(backends)}:", provider, every))
    return {backend: provider if provider in names else default for backend, names in known.items()}


def _each_once(candidates: list[Candidate]) -> list[Candidate]:
    titles = [candidate.title for candidate in candidates]
    twice = [title for title in titles if titles.count(title) > 1]
    if twice:
        raise ConfigError(f"{twice[0]} is given twice; give each bundle, backend and number of threads once")
    return candidates


def thread_counts(texts: Sequence[str]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return numbers of threads and warnings about those beyond the cores. Raises ConfigError for anything else."""
    numbers: list[int] = []
    for text in texts:
        if not text.isdecimal():
            raise ConfigError(f"threads {text!r} is not a whole number; expected 1, 2, … or 0 for one per core")
        numbers.append(int(text))
    cores = core_count()
    beyond = [number for number in numbers if number > cores]
    warnings = [f"{n} threads on {cores} core(s): they take turns, and more of them is slower" for n in beyond]
    return tuple(dict.fromkeys(numbers)), tuple(warnings)


def core_count() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def candidate_from(plain: dict[str, Any]) -> Candidate:
    """Return the candidate of its fields, as a subprocess gets them."""
    return Candidate(**plain)
