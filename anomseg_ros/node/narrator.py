"""What the node writes to its log while it works: each state when it begins, and a line of counts every ten seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from anomseg_ros.node.health import Counts, Level, Snapshot, State

COUNTS_PERIOD_S = 10.0
REPORTED = ("received", "published", "idle", "dropped", "bad", "lost", "late", "failed")


class Narrator:
    """Writes to the log of one node. Each count is that of the time since the last line."""

    def __init__(self, logger: Any, now: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._now = now
        self._states: set[str] = set()
        self._counted_at = now()
        self._counts = Counts()

    def begin(self) -> None:
        """Start again with the counts of a new activation."""
        self._counted_at, self._counts = self._now(), Counts()

    def tell(self, snapshot: Snapshot, states: Sequence[State]) -> None:
        """Log the states that are new, and the counts if ten seconds have passed and a frame has come."""
        for state in states:
            if state.name in self._states:
                continue
            if state.level == Level.ERROR:  # rclpy requires a separate call for each severity
                self._logger.error(state.message)
            elif state.level == Level.WARN:
                self._logger.warning(state.message)
            else:
                self._logger.info(state.message)
        self._states = {state.name for state in states}
        elapsed_s = self._now() - self._counted_at
        if elapsed_s < COUNTS_PERIOD_S:
            return
        if line := counts_line(self._counts, snapshot, elapsed_s):
            self._logger.info(line)
        self._counted_at, self._counts = self._now(), snapshot.counts


def counts_line(before: Counts, now: Snapshot, elapsed_s: float) -> str:
    """Return the counts since `before`, those above zero, with the rate and latency; empty if no frame has come."""
    grown = {name: getattr(now.counts, name) - getattr(before, name) for name in REPORTED}
    if not grown["received"] and not grown["lost"]:
        return ""
    words = [f"{name} {count}" for name, count in grown.items() if count or name in ("received", "published")]
    line = f"{elapsed_s:.0f} s: {', '.join(words)}"
    if grown["published"]:
        line += f"; {grown['published'] / elapsed_s:.1f} Hz"
    times = now.latency_ms or now.processing_ms
    if times and grown["published"]:
        what = "stamp to output" if now.latency_ms else "arrival to output"
        line += f", {what} p50 {times[50]:.0f} ms, p99 {times[99]:.0f} ms"
    return line


def waiting_line(subscription: Any) -> str:
    """Return what a subscription of images waits for: topic, type, and reliability as QoS overrides left it."""
    reliability = subscription.qos_profile.reliability.name.lower().replace("_", " ")
    kind = "compressed" if subscription.msg_type.__name__ == "CompressedImage" else "raw"
    return f"waiting for images on {subscription.topic_name} ({kind}, {reliability})"
