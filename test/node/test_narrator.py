"""The node's log lines: new states once, counts every ten seconds, what the subscription waits for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sensor_msgs.msg import CompressedImage, Image

from anomseg_ros.node.health import PUBLISHED, Counts, FrameResult, Health, Level, Snapshot, State
from anomseg_ros.node.narrator import COUNTS_PERIOD_S, Narrator, counts_line, waiting_line


class Log:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __getattr__(self, severity: str) -> Any:
        return lambda message: self.lines.append((severity, message))


def test_state_is_logged_when_it_begins() -> None:
    log = Log()
    narrator = Narrator(log)
    running, silent = State(Level.OK, "running", "running"), State(Level.ERROR, "silent", "camera silent")
    slow = State(Level.WARN, "slow", "slower than expected")
    for states in ([running], [running], [silent, slow], [silent], [running], [silent]):
        narrator.tell(Snapshot(Counts()), states)
    assert log.lines == [
        ("info", "running"),
        ("error", "camera silent"),
        ("warning", "slower than expected"),
        ("info", "running"),
        ("error", "camera silent"),
    ]


def test_counts_are_logged_every_ten_seconds_if_frames_come() -> None:
    log, clock = Log(), SimpleNamespace(now=100.0)
    health = Health(now=lambda: clock.now)
    narrator = Narrator(log, now=lambda: clock.now)

    def seconds(count: int, frames: int) -> None:
        for _ in range(count):
            for _ in range(frames):
                health.received(0.05, "camera")
                health.started()
                health.finished(FrameResult(PUBLISHED, latency_ms=80.0, processing_ms=30.0))
            clock.now += 1
            narrator.tell(health.snapshot(), [])

    seconds(9, 5)
    assert log.lines == []
    seconds(1, 5)
    line = "10 s: received 50, published 50; 5.0 Hz, stamp to output p50 80 ms, p99 80 ms"
    assert log.lines == [("info", line)]
    seconds(int(COUNTS_PERIOD_S), 0)  # silence is a state, not a line of zeros
    assert len(log.lines) == 1
    seconds(int(COUNTS_PERIOD_S), 1)
    assert log.lines[1][1].startswith("10 s: received 10, published 10; 1.0 Hz")


def test_activation_starts_the_counts_again() -> None:
    log, clock = Log(), SimpleNamespace(now=0.0)
    narrator = Narrator(log, now=lambda: clock.now)
    clock.now = 10.0
    narrator.tell(Snapshot(Counts(received=50, idle=50)), [])
    clock.now = 12.0
    narrator.begin()
    clock.now = 22.0
    narrator.tell(Snapshot(Counts(received=20, idle=20)), [])
    assert [line for _, line in log.lines] == [
        "10 s: received 50, published 0, idle 50",
        "10 s: received 20, published 0, idle 20",
    ]


def test_line_names_only_what_happened() -> None:
    now = Snapshot(Counts(received=30, published=8, dropped=20, bad=2, lost=4), processing_ms={50: 12.3, 99: 40.0})
    expected = (
        "10 s: received 20, published 8, dropped 10, bad 2, lost 4; 0.8 Hz, arrival to output p50 12 ms, p99 40 ms"
    )
    assert counts_line(Counts(received=10, dropped=10), now, 10.0) == expected
    assert counts_line(now.counts, now, 10.0) == ""


@pytest.mark.parametrize(
    ("kind", "reliability", "line"),
    [
        (Image, "BEST_EFFORT", "waiting for images on /front/image (raw, best effort)"),
        (CompressedImage, "RELIABLE", "waiting for images on /front/image (compressed, reliable)"),
    ],
)
def test_waiting_line_has_topic_type_and_reliability(kind: type, reliability: str, line: str) -> None:
    profile = SimpleNamespace(reliability=SimpleNamespace(name=reliability))
    assert waiting_line(SimpleNamespace(topic_name="/front/image", msg_type=kind, qos_profile=profile)) == line
