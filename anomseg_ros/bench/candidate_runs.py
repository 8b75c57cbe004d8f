"""Loading candidates, and running those that can run: in turns for their times, then alone for their power."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median

from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.bench.candidates import Candidate, Runner, open_runner
from anomseg_ros.bench.power import Power, PowerMeter
from anomseg_ros.bench.rounds import Stop, measure_rounds
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import AnomsegError, BackendError, ConfigError


@dataclass(frozen=True)
class Engine:
    """What ran a candidate. requested, actual: the engine that was asked for, and the one in use.

    facts: what it says of itself, in words. stages_ms: stage -> median over the rounds, milliseconds.
    """

    requested: str
    actual: str
    facts: Mapping[str, str] = field(default_factory=dict)
    stages_ms: Mapping[str, float] = field(default_factory=dict)
    power: Power | None = None

    def is_same(self, other: Engine) -> bool:
        """Return whether measurements of the two may be mixed."""
        names = ("engine_key", "gpu")
        return self.actual == other.actual and all(self.facts.get(name) == other.facts.get(name) for name in names)


@dataclass(frozen=True)
class LeftOut:
    """Something that is no candidate, and the reason."""

    what: str
    reason: str


def open_each(
    candidates: Sequence[Candidate], frames: Sequence[Sequence[RgbImage]], stack: ExitStack, progress: Progress
) -> tuple[dict[Candidate, Runner], list[LeftOut]]:
    """Load each candidate and run one frame, because some engines fail only then.

    Args:
        candidates: to load.
        frames: of each candidate, uint8 (H, W, 3) RGB.
        stack: closes the runners.
        progress: called after each candidate.

    Returns:
        The candidates that can run, with their runners, and the others with the reason.
    """
    runners: dict[Candidate, Runner] = {}
    failed = []
    for index, (candidate, sized) in enumerate(zip(candidates, frames, strict=True)):
        try:
            runner = open_runner(candidate)
            stack.callback(runner.close)
            runner(sized[0])
            _check_device(candidate, runner)
            runners[candidate] = runner
        except AnomsegError as error:
            failed.append(LeftOut(candidate.title, str(error)))
        progress("loading", index + 1, len(candidates))
    return runners, failed


def require_some(usable: Sequence[Candidate], failed: Sequence[LeftOut]) -> None:
    """Raise ConfigError with all reasons if no candidate can run."""
    if not usable:
        reasons = "; ".join(f"{one.what}: {one.reason}" for one in failed)
        raise ConfigError(f"none of {len(failed)} candidate(s) can run: {reasons}")


def run_together(
    runners: Mapping[Candidate, Runner],
    frames: Sequence[Sequence[RgbImage]],
    stop: Stop | None,
    meter: PowerMeter,
    *,
    seed: int = 0,
    on_round: Callable[[list[float]], None] = lambda times: None,
    progress: Progress = no_progress,
) -> tuple[list[list[float]], list[Engine]]:
    """Measure loaded candidates.

    Args:
        runners: of the candidates.
        frames: of each candidate, uint8 (H, W, 3) RGB.
        stop: when to stop the rounds; None for no rounds.
        meter: measures the power after the rounds.
        seed: of the orders.
        on_round: called with each finished row.
        progress: called after each round and each measurement of power.

    Returns:
        One row of milliseconds per round, and the engine of each candidate.
    """
    opened = list(runners.values())
    stages: list[list[Mapping[str, float]]] = [[] for _ in opened]

    def after_run(index: int) -> None:
        stages[index].append(opened[index].stages_ms())

    rows: list[list[float]] = []
    if stop is not None:
        rows = measure_rounds(
            opened, frames, stop, seed=seed, on_round=on_round, after_run=after_run, progress=progress
        )
    engines = []
    for index, (candidate, runner) in enumerate(runners.items()):
        power = meter.measure(candidate, runner, frames[index])
        engines.append(engine_of(runner, stages[index], power))
        if power is not None:
            progress("power", index + 1, len(runners))
    return rows, engines


def engine_of(runner: Runner, stages: Sequence[Mapping[str, float]] = (), power: Power | None = None) -> Engine:
    """Return what a runner says of its engine. stages: times of each of its runs."""
    # Among the facts, the times are those of the last frame.
    facts = {name: text for name, text in runner.facts().items() if not name.endswith("_ms")}
    names = dict.fromkeys(name for row in stages for name in row)
    medians = {name: median(row[name] for row in stages if name in row) for name in names}
    return Engine(runner.requested, runner.actual, facts, medians, power)


def _check_device(candidate: Candidate, runner: Runner) -> None:
    """Raise BackendError if a candidate of another device runs on the processor after all."""
    device = runner.actual.partition(":")[2]
    if candidate.provider != BackendOptions().provider and device.split(" ")[0] == "cpu":
        raise BackendError(
            f"{runner.requested} was asked for, {runner.actual} is in use: this computer has no such device, or the "
            f"installed package of {candidate.backend} does not support it"
        )
