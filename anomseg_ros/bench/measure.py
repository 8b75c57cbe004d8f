"""Measure candidates for a report: their times together, then memory, size and accuracy one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np

from anomseg_ros.bench.candidate_runs import Engine, LeftOut, open_each, require_some, run_together
from anomseg_ros.bench.candidates import EAGER, Candidate, candidates_of
from anomseg_ros.bench.figures import Accuracy, Entry
from anomseg_ros.bench.peak_memory import measure_memory
from anomseg_ros.bench.power import PowerMeter, PowerRequest
from anomseg_ros.bench.rounds import Stop
from anomseg_ros.bench.statistics import Ratio, percentiles, ratio
from anomseg_ros.core.bundle import GRAPH_FILE, Bundle, sha256_of
from anomseg_ros.core.image_files import image_files, read_image
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.types import Cost, RgbImage
from anomseg_ros.errors import BackendError, ConfigError
from anomseg_ros.scenes.sequence import SyntheticSequence

MAX_FRAMES = 8
DRAWN_FRAMES = 4
DRAWN_SEED = 20

CostOf = Callable[[Path], Cost]


@dataclass(frozen=True)
class Extras:
    """What to measure beside the times. accuracy: by candidate title; own_eager: title -> title of its torch eager."""

    memory: bool = True
    power: PowerRequest = field(default_factory=PowerRequest)
    cost_of: CostOf | None = None
    accuracy: Mapping[str, Accuracy] = field(default_factory=dict)
    own_eager: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """Entries in the candidates' order, a row of times per round, warnings, and the candidates that cannot run."""

    entries: tuple[Entry, ...]
    times_ms: tuple[tuple[float, ...], ...]
    warnings: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()


def measure(
    candidates: Sequence[Candidate],
    frames: Sequence[RgbImage],
    stop: Stop,
    extras: Extras,
    progress: Progress = no_progress,
) -> Measured:
    """Measure candidates on the same frames.

    Args:
        candidates: at least one.
        frames: uint8 (H, W, 3) RGB of any size; without any, drawn frames of each candidate's size.
        stop: when to stop.
        extras: what else to measure.
        progress: called after each step.

    Raises:
        ConfigError: there is no candidate, or none that can run.
    """
    if not candidates:
        raise ConfigError("nothing to measure; give at least one bundle, and a backend that runs it")
    with ExitStack() as stack:
        by_candidate = dict(zip(candidates, frames_for(candidates, frames), strict=True))
        runners, out = open_each(candidates, list(by_candidate.values()), stack, progress)
        usable = list(runners)
        require_some(usable, out)
        meter = stack.enter_context(PowerMeter(extras.power))
        rows, engines = run_together(runners, [by_candidate[one] for one in usable], stop, meter, progress=progress)
    times = {one.title: [row[index] for row in rows] for index, one in enumerate(usable)}
    entries = []
    for index, (candidate, engine) in enumerate(zip(usable, engines, strict=True)):
        entries.append(entry_of(candidate, engine, times, extras))
        progress("memory and size", index + 1, len(usable))
    warnings = [*sentences(out), *surprises(usable, engines)]
    return Measured(tuple(entries), tuple(map(tuple, rows)), tuple(warnings), tuple(out))


def time_in_turns(
    before: Bundle, after: Bundle, rounds: int, threads: int, progress: Progress = no_progress
) -> tuple[Entry, Entry]:
    """Return the times of two bundles, measured alternately in ONNX Runtime, and the speedup of the second."""
    candidates = candidates_of([before.directory, after.directory], ["onnxruntime"], [threads])
    extras = Extras(memory=False, power=PowerRequest(seconds=0))
    measured = measure(candidates, (), Stop(rounds=rounds), extras, progress)
    if measured.left_out:
        raise BackendError("; ".join(sentences(measured.left_out)))
    first, second = measured.entries
    return first, second


def entry_of(candidate: Candidate, engine: Engine, times: Mapping[str, Sequence[float]], extras: Extras) -> Entry:
    """Return the entry of one candidate. times: title -> milliseconds by round, of all candidates."""
    own = times[candidate.title]
    latency_ms = percentiles(own)
    memory_mib, notes = _memory(candidate) if extras.memory else (None, ())
    entry = Entry(
        title=candidate.title,
        name=candidate.name,
        backend=candidate.backend,
        actual=engine.actual,
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
        engine=engine.facts,
        stages_ms=engine.stages_ms,
        power=engine.power,
    )
    graph = Path(candidate.bundle) / GRAPH_FILE
    if extras.cost_of is None or not graph.is_file():
        return entry  # bundles for torch alone have no ONNX graph to count in
    return replace(entry, **asdict(extras.cost_of(graph)))


def _memory(candidate: Candidate) -> tuple[float | None, tuple[str, ...]]:
    """Return the peak memory, or a note why it was not measured. An error here must not lose the times."""
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


def sentences(out: Sequence[LeftOut]) -> list[str]:
    """Return a warning for each candidate that is left out."""
    return [f"left out: {one.what}: {one.reason}" for one in out]


def surprises(candidates: Sequence[Candidate], engines: Sequence[Engine]) -> list[str]:
    """Return a warning for each candidate that runs on another engine than the requested one."""
    return [
        f"{candidate.title}: {engine.requested} was asked for, {engine.actual} is in use"
        for candidate, engine in zip(candidates, engines, strict=True)
        if engine.actual != engine.requested
    ]


def read_frames(folder: Path | None) -> list[RgbImage]:
    """Return the first frames of a folder, none for None. Raises FrameError that names the file."""
    return [] if folder is None else [read_image(path) for path in image_files(folder)[:MAX_FRAMES]]


def frames_for(candidates: Sequence[Candidate], frames: Sequence[RgbImage]) -> list[list[RgbImage]]:
    """Return the frames of each candidate: the given ones, or drawn road scenes of its size."""
    if frames:
        return [list(frames)] * len(candidates)
    drawn = [frame.image for frame in SyntheticSequence(DRAWN_SEED).frames(DRAWN_FRAMES)]
    sizes = [(candidate.width_px, candidate.height_px) for candidate in candidates]
    by_size = {size: [np.asarray(cv2.resize(image, size), np.uint8) for image in drawn] for size in set(sizes)}
    return [by_size[size] for size in sizes]
