"""Health with a simulated clock: each fault is an ERROR within 5 s of its beginning, and cleared within 10 s."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from anomseg_ros.node.health import (
    BAD,
    DROPPED,
    IDLE,
    PUBLISHED,
    STATE_CHECKS,
    Counts,
    FrameResult,
    Health,
    Level,
    Limits,
    State,
    current_states,
    percentiles,
)

GOOD = FrameResult(PUBLISHED, latency_ms=30.0, processing_ms=20.0, network_ms=15.0, size=(160, 90))
RATE_HZ = 10
TICK_S = 1.0
"""Time between two diagnostics."""


class Run:
    """Health of a camera at RATE_HZ that is reported once a second, as by the node."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.now = 1000.0
        self.health = Health(limits, lambda: self.now)
        self.publishers = 1
        self.wrong_types: tuple[str, ...] = ()
        self.reports: list[tuple[float, State]] = []
        self._next_tick = self.now + TICK_S

    def frame(self, result: FrameResult = GOOD, age_s: float | None = 0.01) -> None:
        self.health.received(age_s, "front")
        self.health.started()
        self.health.finished(result)

    def go(self, seconds: float, frame: Callable[[int], None] | None = None) -> None:
        """Let time pass, with a frame at every beat; the default is a good one."""
        for index in range(round(seconds * RATE_HZ)):
            (frame or (lambda _: self.frame()))(index)
            self.now += 1 / RATE_HZ
            if self.now >= self._next_tick - 1e-6:
                self._next_tick += TICK_S
                self.reports.append((self.now, self.states[0]))

    @property
    def states(self) -> list[State]:
        return current_states(self.health.snapshot(self.publishers, self.wrong_types), self.health.limits)

    @property
    def counts(self) -> Counts:
        return self.health.snapshot().counts

    def seconds_to(self, level: Level, since: float) -> float:
        """Seconds from a moment to the first diagnostics of this level."""
        return next(at for at, state in self.reports if at > since and state.level == level) - since


def nothing(_: int) -> None:
    """Send no frame."""


def faulty(run: Run, result: FrameResult = GOOD, age_s: float | None = 0.01) -> Callable[[int], None]:
    return lambda _: run.frame(result, age_s)


def hang(run: Run) -> Callable[[int], None]:
    """Take the first frame and never finish it; later frames replace each other."""

    def frame(index: int) -> None:
        run.health.received(0.01)
        if index == 0:
            run.health.started()
        elif index > 1:
            run.health.dropped()

    return frame


def never_taken(run: Run) -> Callable[[int], None]:
    """Receive frames that no worker takes."""

    def frame(index: int) -> None:
        run.health.received(0.01)
        if index:
            run.health.dropped()

    return frame


FAULTS: dict[str, tuple[Callable[[Run], Callable[[int], None]], str]] = {
    "stuck": (hang, "restart the node"),
    "starved": (never_taken, "restart the node"),
    "silent": (lambda run: nothing, "check that it sends and that its QoS is compatible"),
    "unusable": (lambda run: faulty(run, FrameResult(BAD, "no step")), "the last one: no step"),
    "unstamped": (lambda run: faulty(run, age_s=None), "fill header.stamp"),
    "future": (lambda run: faulty(run, age_s=-3600.0), "by 3600.00 s: synchronise the clocks"),
    "past": (lambda run: faulty(run, age_s=3600.0), "by 3600.00 s: synchronise the clocks"),
    "rate": (lambda run: lambda index: run.frame() if index % 4 == 0 else None, "check the camera"),
    "output": (lambda run: faulty(run, replace(GOOD, failed={"~/overlay": "no encoder"})), "~/overlay: no encoder"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_raises_error_within_5_s_and_clears_within_10_s(name: str) -> None:
    make, remedy = FAULTS[name]
    run = Run(Limits(min_rate_hz=8.0))
    run.go(70)  # long good running hides nothing
    assert {state.level for _, state in run.reports[3:]} == {Level.OK}
    began = run.now
    run.go(15, make(run))
    assert run.seconds_to(Level.ERROR, began) <= 5.0
    assert all(state.level == Level.ERROR for at, state in run.reports if at > began + 5.0)
    assert name in {state.name for state in run.states}
    (message,) = (state.message for state in run.states if state.name == name)
    assert remedy in message
    over = run.now
    if name in ("stuck", "starved"):
        run.health.finished(FrameResult(PUBLISHED, latency_ms=6e4, processing_ms=6e4))
    run.go(15)
    assert run.seconds_to(Level.OK, over) <= 10.0
    assert all(state.level == Level.OK for at, state in run.reports if at > over + 10.0)


@pytest.mark.parametrize("name", FAULTS)
def test_fault_from_first_frame_raises_error(name: str) -> None:
    run = Run(Limits(min_rate_hz=8.0))
    run.go(10, FAULTS[name][0](run))
    assert run.seconds_to(Level.ERROR, 1000.0) <= 5.0
    assert name in {state.name for state in run.states}


def test_faults_cover_every_error_state() -> None:
    assert set(FAULTS) | {"slow", "behind", "roadless", "sizes", "publishers"} == set(STATE_CHECKS)


WARNINGS: dict[str, tuple[FrameResult, str]] = {
    "slow": (replace(GOOD, processing_ms=600.0), "processing takes 600 ms (p95)"),
    "behind": (replace(GOOD, latency_ms=1200.0), "1.20 s behind"),
    "roadless": (replace(GOOD, roadless=True), "no road found in 100% of the frames"),
}


@pytest.mark.parametrize("name", WARNINGS)
def test_slow_late_and_roadless_answers_raise_warning(name: str) -> None:
    result, message = WARNINGS[name]
    run = Run()
    run.go(5, faulty(run, result))
    (state,) = run.states
    assert (state.level, state.name) == (Level.WARN, name) and message in state.message
    run.go(4)
    assert run.states[0].name == "running"


@pytest.mark.parametrize("name", ["unusable", "unstamped", "future", "past", "output"])
def test_single_faulty_frame_raises_temporary_warning(name: str) -> None:
    run = Run()
    run.go(5)
    FAULTS[name][0](run)(0)
    run.go(1)
    assert (run.states[0].level, run.states[0].name) == (Level.WARN, name)
    run.go(3)
    assert run.states[0].name == "running"


def test_mixed_sizes_and_two_publishers_raise_warnings() -> None:
    run = Run()
    run.go(4, lambda index: run.frame(replace(GOOD, size=((160, 90), (100, 40))[index % 2])))
    assert (run.states[0].level, run.states[0].name) == (Level.WARN, "sizes")
    assert "2 sizes within 3 s (100x40, 160x90)" in run.states[0].message
    run.publishers = 2
    assert [state.name for state in run.states] == ["sizes", "publishers"]
    run.publishers = 1
    run.go(4)
    assert run.states[0].name == "running"


def test_lost_frames_are_not_reported_as_silent_camera() -> None:
    run = Run()
    run.go(5, nothing)
    run.publishers = 0
    assert "the image topic has no publisher" in run.states[0].message
    run.health.lost(7)
    assert "7 frames were sent but lost in transport" in run.states[0].message


def test_lost_frames_are_counted_once_if_reported_and_missing() -> None:
    run = Run()
    run.health.lost(3)
    run.health.lost(3, reported=False)
    run.health.lost(2, reported=False)  # replaced in the queue, which the middleware does not report
    assert run.health.snapshot().counts.lost == 5


def test_silent_camera_message_names_other_type_of_topic() -> None:
    run = Run()
    run.wrong_types = ("std_msgs/msg/String",)
    run.go(5, nothing)
    assert "the image topic carries std_msgs/msg/String: give the node a topic of images" in run.states[0].message


def test_rate_error_distinguishes_slow_network_from_slow_camera() -> None:
    run = Run(Limits(min_rate_hz=8.0))

    def every_fourth(index: int) -> None:
        if index % 4 == 0:
            run.frame()
        else:
            run.health.received(0.01)
            run.health.dropped()

    run.go(6, every_fourth)
    (state,) = run.states
    assert state.name == "rate" and "8 are expected" in state.message
    assert "arrive: use a smaller network" in state.message


def test_waiting_and_idle_states_are_ok() -> None:
    run = Run()
    assert run.states[0][:2] == (Level.OK, "waiting")
    run.go(3, faulty(run, FrameResult(IDLE)))
    assert run.states[0][:2] == (Level.OK, "idle") and "no output has a subscriber" in run.states[0].message


def test_limits_of_zero_disable_checks() -> None:
    off = Limits(*[0.0] * 6)
    for name in ("stuck", "starved", "silent", "future", "past", "rate"):
        run = Run(off)
        run.go(10, FAULTS[name][0](run))
        assert run.states[0].level == Level.OK, name
    run = Run(off)
    run.go(5, faulty(run, replace(GOOD, processing_ms=1e6, latency_ms=1e6)))
    assert run.states[0].level == Level.OK and run.counts.late == 0


def test_each_frame_is_counted_exactly_once() -> None:
    run = Run()
    results = (GOOD, FrameResult(BAD, "x"), FrameResult(IDLE), FrameResult(DROPPED))
    for index in range(200):
        run.health.received(0.0)
        if index % 3 == 0:
            run.health.dropped()
        else:
            run.health.started()
            assert run.counts.in_work == 1
            run.health.finished(results[index % 4])
        counts = run.counts
        assert counts.received == counts.published + counts.dropped + counts.bad + counts.idle + counts.in_work
    assert run.counts.in_work == 0 and min(vars(run.counts)[name] for name in ("published", "bad", "idle")) > 20


def test_snapshot_holds_counts_and_latencies() -> None:
    run = Run()
    for latency_ms in (10.0, 20.0, -5.0, None):
        run.frame(replace(GOOD, latency_ms=latency_ms, processing_ms=8.0, network_ms=5.0))
    run.frame(FrameResult(BAD, "truncated"))
    run.frame(replace(GOOD, latency_ms=1500.0, failed={"~/overlay": "no encoder", "~/labels": "none"}))
    snapshot = run.health.snapshot()
    assert snapshot.counts == Counts(received=6, published=5, bad=1, late=1, failed=2)
    assert snapshot.latency_ms[50] == 20.0  # of 10, 20 and 1500: below zero is no latency, and no stamp is none
    assert snapshot.processing_ms[50] == 8.0 and snapshot.network_ms[50] == 5.0
    assert (snapshot.last_error, snapshot.last_failure, snapshot.frame_id) == ("truncated", "~/labels: none", "front")


def test_percentiles_cover_last_minute_only() -> None:
    run = Run()
    run.go(30, faulty(run, replace(GOOD, latency_ms=4e9)))
    run.go(61)
    assert run.health.snapshot().latency_ms == {50: 30.0, 95: 30.0, 99: 30.0}
    assert run.health.snapshot().rate_hz == pytest.approx(RATE_HZ)


def test_percentiles_of_range_and_empty_list() -> None:
    assert percentiles(range(101)) == {50: 50.0, 95: 95.0, 99: 99.0}
    assert percentiles([]) == {}


def test_clock_jump_back_clears_latencies() -> None:
    run = Run()
    run.go(1)
    run.health.clock_jumped()
    snapshot = run.health.snapshot()
    assert snapshot.counts.clock_jumps == 1 and snapshot.latency_ms == {} and snapshot.processing_ms
    assert run.states[0].name == "running"
