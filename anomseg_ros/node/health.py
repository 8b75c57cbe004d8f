"""The health of the node: the outcome of every frame, and named states such as `stuck` or `silent`.

This module does not use ROS, and reads time only from the clock that it is given. Every state depends on the last few
seconds only, so a fault is reported within seconds of its beginning and cleared within seconds of its end.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import NamedTuple, TypeVar

import numpy as np

HISTORY_S = 60.0
"""Percentiles cover the frames of this time, seconds."""
PERCENTILES = (50, 95, 99)

OUTCOMES = PUBLISHED, DROPPED, BAD, IDLE = "published", "dropped", "bad", "idle"

T = TypeVar("T")


class Level(IntEnum):
    """Severity, with the values of diagnostic_msgs/DiagnosticStatus."""

    OK = 0
    WARN = 1
    ERROR = 2


class State(NamedTuple):
    """A named state of the node. The message describes the symptom and the remedy."""

    level: Level
    name: str
    message: str


@dataclass(frozen=True)
class Counts:
    """Frame counts since activation. received = published + dropped + bad + idle + in_work at all times.

    dropped: replaced by a newer frame before processing, or still waiting at deactivation. bad: unusable. idle: no
    output had a subscriber. in_work: waiting or being processed. lost: never arrived, or replaced in the middleware's
    queue. late: took longer than max_processing_ms, or older than max_image_age_s when published. failed: messages of
    single outputs that could not be created. roadless: alarms were not limited to the road, as the labels showed none.
    """

    received: int = 0
    published: int = 0
    dropped: int = 0
    bad: int = 0
    idle: int = 0
    in_work: int = 0
    lost: int = 0
    late: int = 0
    failed: int = 0
    clock_jumps: int = 0
    roadless: int = 0


@dataclass(frozen=True)
class Limits:
    """Limits for a healthy node over the last window_s seconds; 0 switches a limit off."""

    camera_timeout_s: float = 2.0
    output_timeout_s: float = 3.0
    min_rate_hz: float = 0.0
    max_image_age_s: float = 1.0
    max_stamp_lead_s: float = 0.2
    max_processing_ms: float = 500.0
    window_s: float = 3.0


@dataclass(frozen=True)
class FrameResult:
    """The result of one frame.

    outcome: one of OUTCOMES. reason: why a frame is bad. latency_ms: stamp to publication by the node's clock, None
    without a stamp. processing_ms: arrival to publication. network_ms: run time of the graph. size: width and height of
    the frame, pixels. roadless: alarms were not limited to the road, because the labels showed none. failed: output ->
    why its message could not be created.
    """

    outcome: str
    reason: str = ""
    latency_ms: float | None = None
    processing_ms: float = 0.0
    network_ms: float = 0.0
    size: tuple[int, int] | None = None
    roadless: bool = False
    failed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """Health at one moment.

    ages_s, results, lost: of the frames in the window; an age is None for a frame without a stamp. active_s: time since
    activation. silent_s: time since the last frame arrived. working_s: how long the current frame has been processed.
    waiting_s: how long frames have been waiting without any result. wrong_types: what the publishers of the image topic
    send instead of images. latency_ms, processing_ms, network_ms: percentile -> milliseconds, over the last HISTORY_S
    seconds; empty before the first frame.
    """

    counts: Counts
    ages_s: tuple[float | None, ...] = ()
    results: tuple[FrameResult, ...] = ()
    lost: int = 0
    active_s: float = 0.0
    silent_s: float = 0.0
    working_s: float = 0.0
    waiting_s: float = 0.0
    publishers: int = 1
    wrong_types: Sequence[str] = ()
    rate_hz: float = 0.0
    frame_id: str = ""
    last_error: str = ""
    last_failure: str = ""
    latency_ms: Mapping[int, float] = field(default_factory=dict)
    processing_ms: Mapping[int, float] = field(default_factory=dict)
    network_ms: Mapping[int, float] = field(default_factory=dict)


class Health:
    """Records the frames of one activation. Thread-safe: the receiver, the worker and the diagnostics timer use it."""

    def __init__(self, limits: Limits | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits or Limits()
        self._now = now
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._ages: deque[tuple[float, float | None]] = deque()
        self._results: deque[tuple[float, FrameResult]] = deque()
        self._lost: deque[tuple[float, int]] = deque()
        self._lost_counts = [0, 0]  # missing, reported: a frame that was lost in transport is in both
        self._activated_at = self._last_arrival_at = now()
        self._started_at: float | None = None
        self._waiting_since = 0.0
        self._latest = {"frame_id": "", "last_error": "", "last_failure": ""}

    def received(self, age_s: float | None, frame_id: str = "") -> None:
        """Count a frame that arrived. age_s: age of its stamp, negative for the future, None without a stamp."""
        with self._lock:
            self._last_arrival_at = self._now()
            if not self._in_work():
                self._waiting_since = self._last_arrival_at
            self._counts["received"] += 1
            self._append(self._ages, age_s)
            self._latest["frame_id"] = frame_id

    def started(self) -> None:
        """Record that the processing of a frame begins."""
        with self._lock:
            self._started_at = self._now()

    def finished(self, result: FrameResult) -> None:
        """Count the result of the frame that was being processed."""
        too_old = result.latency_ms is not None and 0 < self.limits.max_image_age_s < result.latency_ms / 1e3
        too_slow = 0 < self.limits.max_processing_ms < result.processing_ms
        with self._lock:
            self._counts[result.outcome] += 1
            self._counts["late"] += too_old or too_slow
            self._counts["roadless"] += result.roadless
            self._counts["failed"] += len(result.failed)
            self._append(self._results, result)
            self._started_at, self._waiting_since = None, self._now()
            self._latest["last_error"] = result.reason or self._latest["last_error"]
            for output, reason in result.failed.items():
                self._latest["last_failure"] = f"{output}: {reason}"

    def dropped(self) -> None:
        """Count a frame that was received but not processed."""
        with self._lock:
            self._counts[DROPPED] += 1

    def lost(self, frames: int, *, reported: bool = True) -> None:
        """Count frames that never arrived: reported by the middleware, or missing in the publisher's numbers."""
        with self._lock:
            self._lost_counts[reported] += frames
            if reported:
                self._append(self._lost, frames)

    def clock_jumped(self) -> None:
        """Discard ages and latencies after the node's clock has jumped back; across the jump they mean nothing."""
        with self._lock:
            self._counts["clock_jumps"] += 1
            self._ages.clear()
            self._results = deque((at, replace(result, latency_ms=None)) for at, result in self._results)

    def snapshot(self, publishers: int = 1, wrong_types: Sequence[str] = ()) -> Snapshot:
        """Return the current health. Arguments as in Snapshot."""
        with self._lock:
            now = self._now()
            since = now - self.limits.window_s
            published = [result for _, result in self._results if result.outcome == PUBLISHED]
            latencies_ms = (result.latency_ms for result in published)
            published_at = [at for at, result in self._results if result.outcome == PUBLISHED and at >= since]
            return Snapshot(
                Counts(**self._counts, in_work=self._in_work(), lost=max(self._lost_counts)),
                ages_s=tuple(age for at, age in self._ages if at >= since),
                results=tuple(result for at, result in self._results if at >= since),
                lost=sum(frames for at, frames in self._lost if at >= since),
                active_s=now - self._activated_at,
                silent_s=now - self._last_arrival_at,
                working_s=0.0 if self._started_at is None else now - self._started_at,
                waiting_s=now - self._waiting_since if self._in_work() else 0.0,
                publishers=publishers,
                wrong_types=wrong_types,
                rate_hz=_rate_hz(published_at),
                **self._latest,
                # A negative latency is not valid: the clocks of camera and node differ, or one of them has jumped.
                latency_ms=percentiles(latency for latency in latencies_ms if latency is not None and latency >= 0),
                processing_ms=percentiles(result.processing_ms for result in published),
                network_ms=percentiles(result.network_ms for result in published),
            )

    def _append(self, records: deque[tuple[float, T]], record: T) -> None:
        now = self._now()
        records.append((now, record))
        while records[0][0] < now - HISTORY_S:
            records.popleft()

    def _in_work(self) -> int:
        return self._counts["received"] - sum(self._counts[outcome] for outcome in OUTCOMES)


def _rate_hz(times: Sequence[float]) -> float:
    return (len(times) - 1) / (times[-1] - times[0]) if times and times[-1] > times[0] else 0.0


def percentiles(values: Iterable[float]) -> dict[int, float]:
    """Return {50: …, 95: …, 99: …}, or an empty dictionary if there are no values."""
    array = np.fromiter(values, float)
    if not array.size:
        return {}
    return dict(zip(PERCENTILES, map(float, np.percentile(array, PERCENTILES)), strict=True))


def current_states(now: Snapshot, limits: Limits) -> list[State]:
    """Return the current states of an active node, the worst first; a single OK state if nothing is wrong."""
    checked = {name: check(now, limits) for name, check in STATE_CHECKS.items()}
    faults = [State(fault[0], name, fault[1]) for name, fault in checked.items() if fault]
    if faults:
        return sorted(faults, key=lambda state: -state.level)
    if not now.counts.received:
        return [State(Level.OK, "waiting", "waiting for the first frame")]
    if now.results and all(result.outcome == IDLE for result in now.results):
        return [State(Level.OK, "idle", "receiving frames; no output has a subscriber, so nothing is computed")]
    return [State(Level.OK, "running", "running")]


_Fault = tuple[Level, str] | None
"""Level and message of a state that applies, None if it does not."""


def _stuck(now: Snapshot, limits: Limits) -> _Fault:
    if not 0 < limits.output_timeout_s < now.working_s:
        return None
    return Level.ERROR, (
        f"stuck: one frame has been in processing for {now.working_s:.1f} s, the limit is {limits.output_timeout_s:g} "
        "s; if this persists, restart the node and check the device and the driver of the engine"
    )


def _starved(now: Snapshot, limits: Limits) -> _Fault:
    if not 0 < limits.output_timeout_s < now.waiting_s:
        return None
    message = f"starved: frames arrive, but none has been processed for {now.waiting_s:.1f} s; restart the node"
    return Level.ERROR, message


def _silent(now: Snapshot, limits: Limits) -> _Fault:
    if not 0 < limits.camera_timeout_s < now.silent_s:
        return None
    if now.lost:
        remedy = f"{now.lost} frames were sent but lost in transport: start the camera with config/fastdds.xml as well"
    elif now.wrong_types:
        remedy = f"the image topic carries {', '.join(now.wrong_types)}: give the node a topic of images"
    elif now.publishers:
        remedy = "the image topic has a publisher: check that it sends and that its QoS is compatible"
    else:
        remedy = "the image topic has no publisher: start the camera, or give the node the camera's topic"
    return Level.ERROR, f"camera silent for {now.silent_s:.1f} s; {remedy}"


def _unusable(now: Snapshot, limits: Limits) -> _Fault:
    reasons = [result.reason for result in now.results if result.outcome == BAD]
    return _by_share(reasons, now.results, f"frames are unusable, the last one: {reasons[-1]}" if reasons else "")


def _unstamped(now: Snapshot, limits: Limits) -> _Fault:
    unstamped = [age for age in now.ages_s if age is None]
    return _by_share(unstamped, now.ages_s, "frames have no stamp: configure the camera driver to fill header.stamp")


def _future(now: Snapshot, limits: Limits) -> _Fault:
    leads = [-age for age in now.ages_s if age is not None and 0 < limits.max_stamp_lead_s < -age]
    remedy = "synchronise the clocks of camera and node (PTP, NTP); with use_sim_time, publish /clock"
    return _by_share(leads, now.ages_s, f"stamps are in the future, by {max(leads, default=0):.2f} s: {remedy}")


def _past(now: Snapshot, limits: Limits) -> _Fault:
    ages = [age for age in now.ages_s if age is not None and 0 < limits.max_image_age_s < age]
    remedy = "synchronise the clocks of camera and node (PTP, NTP); play bags with --clock, and set use_sim_time"
    return _by_share(ages, now.ages_s, f"stamps are in the past on arrival, by {max(ages, default=0):.2f} s: {remedy}")


def _rate(now: Snapshot, limits: Limits) -> _Fault:
    processed = sum(result.outcome in (PUBLISHED, IDLE) for result in now.results)
    # One more frame may lie just outside the window.
    if now.active_s < limits.window_s or (processed + 1) / limits.window_s >= limits.min_rate_hz:
        return None
    enough_arrive = (len(now.ages_s) + 1) / limits.window_s >= limits.min_rate_hz
    remedy = "use a smaller network or more threads" if enough_arrive else "check the camera and its connection"
    processed_hz, arriving_hz = processed / limits.window_s, len(now.ages_s) / limits.window_s
    figures = f"{processed_hz:.1f} frames per second are processed, {limits.min_rate_hz:g} are expected"
    return Level.ERROR, f"{figures}, {arriving_hz:.1f} arrive: {remedy}"


def _output(now: Snapshot, limits: Limits) -> _Fault:
    incomplete = [result for result in now.results if result.failed]
    reasons = {output: reason for result in incomplete for output, reason in result.failed.items()}
    details = "; ".join(f"{output}: {reason}" for output, reason in reasons.items())
    not_idle = [result for result in now.results if result.outcome != IDLE]
    return _by_share(incomplete, not_idle, f"frames lack outputs: {details}")


def _slow(now: Snapshot, limits: Limits) -> _Fault:
    p95_ms = percentiles(result.processing_ms for result in now.results if result.outcome == PUBLISHED).get(95, 0.0)
    if not 0 < limits.max_processing_ms < p95_ms:
        return None
    return Level.WARN, (
        f"processing takes {p95_ms:.0f} ms (p95), the limit is {limits.max_processing_ms:g} ms: use a smaller network "
        "or more threads"
    )


def _behind(now: Snapshot, limits: Limits) -> _Fault:
    latencies_ms = (result.latency_ms for result in now.results if result.latency_ms is not None)
    age_s = percentiles(latencies_ms).get(50, 0.0) / 1e3
    if not 0 < limits.max_image_age_s < age_s:
        return None
    return Level.WARN, f"outputs are {age_s:.2f} s behind their frames, the limit is {limits.max_image_age_s:g} s"


def _roadless(now: Snapshot, limits: Limits) -> _Fault:
    published = [result for result in now.results if result.outcome == PUBLISHED]
    share = sum(result.roadless for result in published) / max(1, len(published))
    if not share:
        return None
    return Level.WARN, f"no road found in {share:.0%} of the frames: alarms in these frames are not limited to the road"


def _sizes(now: Snapshot, limits: Limits) -> _Fault:
    sizes = sorted({result.size for result in now.results if result.size is not None})
    if len(sizes) < 2:
        return None
    examples = ", ".join(f"{width}x{height}" for width, height in sizes[:5])
    return Level.WARN, f"frames have {len(sizes)} sizes within {limits.window_s:g} s ({examples}): use only one camera"


def _publishers(now: Snapshot, limits: Limits) -> _Fault:
    if now.publishers < 2:
        return None
    return Level.WARN, f"{now.publishers} publishers send on the image topic, so their frames are mixed: keep only one"


def _by_share(faulty: Sequence[object], frames: Sequence[object], message: str) -> _Fault:
    """Return an ERROR if at least half of the frames are faulty, a WARN if fewer, None if there are none."""
    if not faulty:
        return None
    level = Level.ERROR if 2 * len(faulty) >= len(frames) else Level.WARN
    return level, f"{len(faulty)} of {len(frames)} {message}"


STATE_CHECKS: dict[str, Callable[[Snapshot, Limits], _Fault]] = {
    "stuck": _stuck,
    "starved": _starved,
    "silent": _silent,
    "unusable": _unusable,
    "unstamped": _unstamped,
    "future": _future,
    "past": _past,
    "rate": _rate,
    "output": _output,
    "slow": _slow,
    "behind": _behind,
    "roadless": _roadless,
    "sizes": _sizes,
    "publishers": _publishers,
}
"""Name of a state -> the check for it. States of the same level are reported in this order."""
