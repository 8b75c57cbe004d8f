"""Candidates to entries of a report: times side by side, then memory, sizes and accuracy one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from anomseg_ros.bench.candidates import EAGER, Candidate, Runner, open_runner
from anomseg_ros.bench.memory import measure_memory
from anomseg_ros.bench.results import Accuracy, Entry
from anomseg_ros.bench.rounds import Progress, Stop, measure_rounds
from anomseg_ros.bench.statistics import Ratio, percentiles, ratio
from anomseg_ros.core.bundle import GRAPH_FILE, sha256_of
from anomseg_ros.core.image_files import image_files, read_image
from anomseg_ros.core.types import RgbImage
from anomseg_ros.datasets.synthetic import SyntheticSequence
from anomseg_ros.errors import BackendError, ConfigError

MAX_FRAMES = 8
DRAWN_FRAMES = 4
DRAWN_SEED = 20


class Cost(Protocol):
    """What is counted in an ONNX file; compression.cost says how."""

    @property
    def parameters(self) -> int: ...

    @property
    def nonzero_parameters(self) -> int: ...

    @property
    def multiply_adds(self) -> int: ...

    @property
    def effective_multiply_adds(self) -> int: ...


CostOf = Callable[[Path], Cost]


class InUse(Protocol):
    """The engine that was asked for, and the one in use: a runner, or what is kept of one."""

    @property
    def requested(self) -> str: ...

    @property
    def actual(self) -> str: ...


@dataclass(frozen=True)
class Extras:
    """What is found out beside the times. accuracy: by candidate title; own: title -> title of its torch eager."""

    memory: bool = True
    cost_of: CostOf | None = None
    accuracy: Mapping[str, Accuracy] = field(default_factory=dict)
    own_eager: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """Entries in the candidates' order, a row of times per round, and what may surprise."""

    entries: tuple[Entry, ...]
    times_ms: tuple[tuple[float, ...], ...]
    warnings: tuple[str, ...]


def measure(
    candidates: Sequence[Candidate],
    frames: Sequence[RgbImage],
    stop: Stop,
    extras: Extras,
    progress: Progress = lambda what, done, total: None,
) -> Measured:
    """Measure candidates on the same frames, uint8 (H, W, 3) RGB of any size; none for drawn ones of each one's size.

    Raises the errors of bundles, backends and checkpoints that cannot be loaded.
    """
    if not candidates:
        raise ConfigError("nothing to measure; give at least one bundle, and a backend that runs it")
    with ExitStack() as stack:
        runners = open_runners(candidates, stack, progress)
        actual = [runner.actual for runner in runners]
        warnings = surprises(candidates, runners)
        rows = measure_rounds(runners, frames_for(candidates, frames), stop, progress=progress)
    times = {one.title: [row[index] for row in rows] for index, one in enumerate(candidates)}
    entries = []
    for index, candidate in enumerate(candidates):
        entries.append(entry_of(candidate, actual[index], times, extras))
        progress("memory and size", index + 1, len(candidates))
    return Measured(tuple(entries), tuple(map(tuple, rows)), tuple(warnings))


def open_runners(candidates: Sequence[Candidate], stack: ExitStack, progress: Progress) -> list[Runner]:
    """Load all candidates; the stack closes them."""
    runners = []
    for index, candidate in enumerate(candidates):
        runner = open_runner(candidate)
        stack.callback(runner.close)
        runners.append(runner)
        progress("loading", index + 1, len(candidates))
    return runners


def entry_of(candidate: Candidate, actual: str, times: Mapping[str, Sequence[float]], extras: Extras) -> Entry:
    """Return the entry of one candidate; times: milliseconds by round, of all candidates by title."""
    own = times[candidate.title]
    latency_ms = percentiles(own)
    memory_mib, notes = _memory(candidate) if extras.memory else (None, ())
    entry = Entry(
        title=candidate.title,
        name=candidate.name,
        backend=candidate.backend,
        actual=actual,
        threads=candidate.threads,
        height_px=candidate.height_px,
        width_px=candidate.width_px,
        precision="fp32" if candidate.backend == EAGER else candidate.precision,
        score=candidate.score,
        latency_ms=latency_ms,
        frames_per_second=1e3 / latency_ms["p50"],
        rounds=len(own),
        speedup=_speedups(candidate, times, extras),
        file_bytes=candidate.program.stat().st_size,
        peak_memory_mib=memory_mib,
        accuracy=extras.accuracy.get(candidate.title),
        own_eager=extras.own_eager.get(candidate.title),
        sha256=sha256_of(candidate.program),
        notes=notes,
    )
    graph = Path(candidate.bundle) / GRAPH_FILE
    if extras.cost_of is None or not graph.is_file():
        return entry  # counted in the ONNX graph, which bundles for torch alone lack
    cost = extras.cost_of(graph)
    return replace(
        entry,
        parameters=cost.parameters,
        nonzero_parameters=cost.nonzero_parameters,
        multiply_adds=cost.multiply_adds,
        effective_multiply_adds=cost.effective_multiply_adds,
    )


def _memory(candidate: Candidate) -> tuple[float | None, tuple[str, ...]]:
    """Return peak memory; where it cannot be measured, why. The times are taken by then, and not lost for it."""
    try:
        return measure_memory(candidate), ()
    except BackendError as error:
        return None, (f"memory was not measured: {error}",)


def _speedups(candidate: Candidate, times: Mapping[str, Sequence[float]], extras: Extras) -> dict[str, Ratio]:
    first = next(iter(times))
    wanted = dict.fromkeys(title for title in (first, extras.own_eager.get(candidate.title)) if title in times)
    own = times[candidate.title]
    return {
        title: ratio(times[title], own)
        for title in wanted
        if title is not None and title != candidate.title and len(times[title]) == len(own)
    }


def surprises(candidates: Sequence[Candidate], engines: Sequence[InUse]) -> list[str]:
    """Return a warning for each candidate that runs on another engine than asked for."""
    return [
        f"{candidate.title}: {engine.requested} was asked for, {engine.actual} is in use"
        for candidate, engine in zip(candidates, engines, strict=True)
        if engine.actual != engine.requested
    ]


def read_frames(folder: Path | None) -> list[RgbImage]:
    """Return the first frames of a folder, none for None. Raises FrameError naming what cannot be read."""
    return [] if folder is None else [read_image(path) for path in image_files(folder)[:MAX_FRAMES]]


def frames_for(candidates: Sequence[Candidate], frames: Sequence[RgbImage]) -> list[list[RgbImage]]:
    """Return for each candidate the frames it gets: those given, or drawn road scenes of its own size."""
    if frames:
        return [list(frames)] * len(candidates)
    drawn = [frame.image for frame in SyntheticSequence(DRAWN_SEED).frames(DRAWN_FRAMES)]
    by_size: dict[tuple[int, int], list[RgbImage]] = {}
    for candidate in candidates:
        size = (candidate.width_px, candidate.height_px)
        if size not in by_size:
            by_size[size] = [np.asarray(cv2.resize(image, size), np.uint8) for image in drawn]
    return [by_size[(candidate.width_px, candidate.height_px)] for candidate in candidates]
