"""Electric power and energy per frame of a candidate, which runs alone, frame after frame.

The rounds of rounds.py do not tell candidates apart: there, each runs for some milliseconds, and sensors average over
up to a second. So each candidate has some seconds of its own after the rounds. What a figure contains is the power of
the whole rail, with whatever else draws from it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean

from anomseg_ros.bench.candidates import Candidate, Runner
from anomseg_ros.bench.power_sources import OF_A_GPU, OF_A_PROCESSOR, PowerPlaces, PowerSource, open_source
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import ConfigError, PowerError

INTERVAL_S = 0.05
FEWEST_SAMPLES = 2


@dataclass(frozen=True)
class PowerRequest:
    """How long to measure each candidate, seconds; 0 for not at all.

    lead_s: it runs that long before, since some sensors give the average of the last second.
    """

    seconds: float = 3.0
    lead_s: float = 1.0
    places: PowerPlaces = field(default_factory=PowerPlaces)

    def __post_init__(self) -> None:
        if not 0 <= self.seconds < math.inf:
            raise ConfigError(f"`power_seconds` is {self.seconds!r}; give seconds, or 0 for no measurement of power")


@dataclass(frozen=True)
class Power:
    """What a candidate draws. The figures are None where `reason` says why they could not be measured.

    mean_power_w: of the rail of the source. energy_per_frame_mj: that power times the seconds, by frames. samples: of
    the source. seconds, frames: how long the candidate ran in the meantime, and how many frames it computed.
    """

    mean_power_w: float | None = None
    energy_per_frame_mj: float | None = None
    source: str = ""
    rail: str = ""
    samples: int = 0
    seconds: float = 0.0
    frames: int = 0
    reason: str = ""


class PowerMeter:
    """Measures candidates one after the other. Sensors are opened when the first candidate needs them."""

    def __init__(self, request: PowerRequest) -> None:
        self._request = request
        self._sources: dict[tuple[str, ...], PowerSource | str] = {}

    def __enter__(self) -> PowerMeter:
        return self

    def __exit__(self, *error: object) -> None:
        for source in self._sources.values():
            if not isinstance(source, str):
                source.close()
        self._sources.clear()

    def measure(self, candidate: Candidate, runner: Runner, frames: Sequence[RgbImage]) -> Power | None:
        """Return the power of a candidate; None if that is not wanted.

        Args:
            candidate: tells which sensors there may be.
            runner: of the candidate.
            frames: uint8 (H, W, 3) RGB, taken in turns.
        """
        if not self._request.seconds:
            return None
        names = OF_A_GPU if candidate.is_on_nvidia_gpu else OF_A_PROCESSOR
        if names not in self._sources:
            try:
                self._sources[names] = open_source(names, self._request.places)
            except PowerError as error:
                self._sources[names] = str(error)
        source = self._sources[names]
        if isinstance(source, str):
            return Power(reason=source)
        _run_for(runner, frames, self._request.lead_s)
        with Sampler(source) as sampler:
            count, elapsed_s = _run_for(runner, frames, self._request.seconds)
        return figures(source, sampler, count, elapsed_s)


class Sampler:
    """Reads a source in a thread of its own. times_s and values: one of each for every sample; error: why it ended."""

    def __init__(self, source: PowerSource, interval_s: float = INTERVAL_S) -> None:
        self.times_s: list[float] = []
        self.values: list[float] = []
        self.error = "its thread failed"
        self._source, self._interval_s = source, interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="power", daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        try:
            self._read()
            while not self._stop.wait(self._interval_s):
                self._read()
            if self._source.is_counter:  # up to the end; power would be that of a machine at rest
                self._read()
            self.error = ""
        except PowerError as error:
            self.error = str(error)

    def _read(self) -> None:
        value = self._source.read()
        if self._stop.is_set() and not self._source.is_counter:
            return  # the source had to be waited for, and the candidate no longer runs
        self.times_s.append(time.perf_counter())
        self.values.append(value)


def figures(source: PowerSource, sampler: Sampler, frames: int, elapsed_s: float) -> Power:
    """Return the figures of a measurement that is over.

    Args:
        source: of the samples.
        sampler: with the samples.
        frames: number of frames that were computed.
        elapsed_s: how long that took.
    """
    values, reason = sampler.values, sampler.error
    watts: float | None = None
    if reason:
        reason = f"{source.name} was lost after {len(values)} sample(s): {reason}"
    elif len(values) < FEWEST_SAMPLES:
        reason = f"{source.name} gave {len(values)} sample(s) in {elapsed_s:.2f} s, fewer than {FEWEST_SAMPLES}"
    elif not all(map(math.isfinite, values)):
        reason = f"{source.name} gave a value that is no number"
    elif not source.is_counter:
        watts = mean(values)
    elif values[-1] < values[0]:
        reason = f"the counter of {source.name} went back"
    else:
        watts = (values[-1] - values[0]) / (sampler.times_s[-1] - sampler.times_s[0])
    return Power(
        mean_power_w=watts,
        energy_per_frame_mj=None if watts is None else 1e3 * watts * elapsed_s / frames,
        source=source.name,
        rail=source.rail,
        samples=len(values),
        seconds=elapsed_s,
        frames=frames,
        reason=reason,
    )


def _run_for(runner: Runner, frames: Sequence[RgbImage], seconds: float) -> tuple[int, float]:
    """Compute frames until the time is over, at least one; return their number and the seconds."""
    started, count = time.perf_counter(), 0
    while not count or time.perf_counter() - started < seconds:
        runner(frames[count % len(frames)])
        count += 1
    return count, time.perf_counter() - started
