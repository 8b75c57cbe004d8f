"""What the node knows of its own health: counts, latencies, watchdogs; and how that reads as diagnostics."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR

WINDOW_FRAMES = 600
RECENT_S = 10.0
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Counts:
    """Frames since activation. received = published + dropped + bad + idle (+ one in work).

    lost: never arrived, as the middleware says. dropped: replaced by a newer one before their turn. bad: unusable.
    idle: nobody subscribed to any output. late: took longer than max_processing_ms or were older than max_image_age_s.
    roadless: published with alarms everywhere, because road_region is set and the labels showed no road.
    """

    received: int = 0
    published: int = 0
    dropped: int = 0
    bad: int = 0
    idle: int = 0
    lost: int = 0
    late: int = 0
    clock_jumps: int = 0
    roadless: int = 0


@dataclass(frozen=True)
class Limits:
    """Watchdog limits; 0 switches one off. The time without a camera frame and the age of a frame are in seconds."""

    camera_timeout_s: float = 2.0
    max_image_age_s: float = 1.0
    max_processing_ms: float = 500.0


@dataclass(frozen=True)
class Snapshot:
    """The state of health at one moment. Latencies in milliseconds by percentile; empty before the first frame."""

    counts: Counts
    latency_ms: dict[int, float] = field(default_factory=dict)
    processing_ms: dict[int, float] = field(default_factory=dict)
    network_ms: dict[int, float] = field(default_factory=dict)
    rate_hz: float = 0.0
    silent_s: float = 0.0
    last_error: str = ""
    roadless_share: float = 0.0
    """Of the frames published in the last ten seconds."""


class Health:
    """Counts and times, written by the receiving and the processing thread, read by the diagnostics timer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget everything; the camera counts as silent from now on."""
        with self._lock:
            self._counts = Counts()
            self._latency_ms: deque[float] = deque(maxlen=WINDOW_FRAMES)
            self._processing_ms: deque[float] = deque(maxlen=WINDOW_FRAMES)
            self._network_ms: deque[float] = deque(maxlen=WINDOW_FRAMES)
            self._published_at: deque[float] = deque(maxlen=WINDOW_FRAMES)
            self._roadless_at: deque[float] = deque(maxlen=WINDOW_FRAMES)
            self._last_frame = time.monotonic()
            self._last_error = ""

    def add(self, **increments: int) -> None:
        """Add to counts by name: add(received=1)."""
        with self._lock:
            self._add(**increments)

    def received(self) -> None:
        """Count a frame that arrived, and feed the silence watchdog."""
        with self._lock:
            self._add(received=1)
            self._last_frame = time.monotonic()

    def bad(self, reason: str) -> None:
        """Count an unusable frame and remember why."""
        with self._lock:
            self._add(bad=1)
            self._last_error = reason

    def published(
        self, latency_ms: float, processing_ms: float, network_ms: float, limits: Limits, *, roadless: bool = False
    ) -> None:
        """Record a frame whose outputs were published.

        latency_ms: header stamp to publication, by the node's clock; negative (clock jumped, or stamps of another
        clock) is not recorded. processing_ms: arrival to publication.
        """
        too_old = 0 < limits.max_image_age_s < latency_ms / 1e3
        too_slow = 0 < limits.max_processing_ms < processing_ms
        with self._lock:
            self._add(published=1, late=int(too_old or too_slow), roadless=int(roadless))
            if latency_ms >= 0:
                self._latency_ms.append(latency_ms)
            self._processing_ms.append(processing_ms)
            self._network_ms.append(network_ms)
            self._published_at.append(time.monotonic())
            if roadless:
                self._roadless_at.append(self._published_at[-1])

    def clock_jumped(self) -> None:
        """The node's clock went back: latencies measured across the jump mean nothing."""
        with self._lock:
            self._add(clock_jumps=1)
            self._latency_ms.clear()

    def snapshot(self, dropped: int) -> Snapshot:
        """Return the present state; `dropped` comes from the mailbox, which does that count."""
        with self._lock:
            return Snapshot(
                replace(self._counts, dropped=dropped),
                percentiles(self._latency_ms),
                percentiles(self._processing_ms),
                percentiles(self._network_ms),
                _rate_hz(self._published_at),
                time.monotonic() - self._last_frame,
                self._last_error,
                len(_recent(self._roadless_at)) / max(1, len(_recent(self._published_at))),
            )

    def _add(self, **increments: int) -> None:
        sums = {name: getattr(self._counts, name) + increment for name, increment in increments.items()}
        self._counts = replace(self._counts, **sums)


def percentiles(values: Iterable[float]) -> dict[int, float]:
    """Return {50: …, 95: …, 99: …}, or nothing for no values."""
    array = np.fromiter(values, float)
    if not array.size:
        return {}
    return dict(zip(PERCENTILES, map(float, np.percentile(array, PERCENTILES)), strict=True))


def _rate_hz(times: deque[float]) -> float:
    # Of the last seconds, so that a camera that stopped does not keep its old rate.
    recent = _recent(times)
    return (len(recent) - 1) / (recent[-1] - recent[0]) if len(recent) > 1 else 0.0


def _recent(times: deque[float]) -> list[float]:
    now = time.monotonic()
    return [moment for moment in times if now - moment < RECENT_S]


def camera_status(name: str, snapshot: Snapshot, limits: Limits, active: bool) -> DiagnosticStatus:
    """Return the status of the frame path: silence, bad frames, ages and times beyond the limits."""
    level, message = _camera_level(snapshot, limits) if active else (OK, "not active")
    values = {name: str(value) for name, value in vars(snapshot.counts).items()}
    values["rate_hz"] = f"{snapshot.rate_hz:.2f}"
    values["silent_s"] = f"{snapshot.silent_s:.2f}"
    for key in ("latency_ms", "processing_ms", "network_ms"):
        values |= {f"{key}_p{p}": f"{value:.2f}" for p, value in getattr(snapshot, key).items()}
    if snapshot.last_error:
        values["last_error"] = snapshot.last_error
    return status(f"{name}: frames", level, message, values)


def _camera_level(snapshot: Snapshot, limits: Limits) -> tuple[bytes, str]:
    counts = snapshot.counts
    if 0 < limits.camera_timeout_s < snapshot.silent_s:
        return ERROR, f"camera silent for {snapshot.silent_s:.1f} s; is anything published on the image topic?"
    if counts.received and counts.bad == counts.received:
        return ERROR, f"every frame is unusable: {snapshot.last_error}"
    slow = snapshot.processing_ms.get(95, 0.0)
    if 0 < limits.max_processing_ms < slow:
        return WARN, f"processing takes {slow:.0f} ms (p95), allowed {limits.max_processing_ms:g} ms"
    age = snapshot.latency_ms.get(50, 0.0) / 1e3
    if 0 < limits.max_image_age_s < age:
        return WARN, f"outputs are {age:.2f} s behind their frames, allowed {limits.max_image_age_s:g} s"
    if snapshot.roadless_share:
        return WARN, f"no road found in {snapshot.roadless_share:.0%} of the frames: there, alarms are everywhere"
    if counts.bad:
        return WARN, f"{counts.bad} unusable frames, the last one: {snapshot.last_error}"
    if counts.received and counts.idle == counts.received:
        return OK, "receiving frames; nobody subscribes to an output, so nothing is computed"
    return OK, "running" if counts.received else "waiting for the first frame"


def drift_values(compression: Mapping[str, Any]) -> dict[str, str]:
    """Return what a bundle's contract says of its compression as diagnostic values; nothing for a float bundle.

    drift_…: against the bundle it was made from; parent_drift_…: of that one against its own, where it was compressed
    as well; original_drift_…: of both steps together, where that was measured.
    """
    if "method" not in compression:  # a tuned float bundle has other notes there
        return {}
    parent = compression.get("parent", {}).get("compression", {})
    return {
        "compression": str(compression["method"]),
        **_drift_values("drift", compression.get("drift", {})),
        **_drift_values("parent_drift", parent.get("drift", {})),
        **_drift_values("original_drift", compression.get("original", {}).get("drift", {})),
    }


def _drift_values(prefix: str, drift: Mapping[str, Any]) -> dict[str, str]:
    values = {}
    if "label_agreement" in drift:
        values[f"{prefix}_label_agreement"] = f"{drift['label_agreement']:.4f}"
    for score, changes in drift.get("scores", {}).items():
        values[f"{prefix}_rank_correlation_{score}"] = f"{changes['rank_correlation']:.4f}"
    for dataset, measures in drift.get("datasets", {}).items():
        for measure, (before, after) in measures.items():
            values[f"{prefix}_{measure}_{dataset}"] = f"{before:.4f} -> {after:.4f}"
    return values


def status(name: str, level: bytes, message: str, values: dict[str, str]) -> DiagnosticStatus:
    """Return a DiagnosticStatus with its key-value pairs."""
    pairs = [KeyValue(key=key, value=value) for key, value in values.items()]
    return DiagnosticStatus(name=name, level=level, message=message, hardware_id="", values=pairs)
