from __future__ import annotations

import time

import pytest
from diagnostic_msgs.msg import DiagnosticStatus

from anomseg_ros.node.health import Counts, Health, Limits, Snapshot, camera_status, drift_values, percentiles

LIMITS = Limits(camera_timeout_s=2.0, max_image_age_s=1.0, max_processing_ms=100.0)
RUNNING = Snapshot(Counts(received=10, published=10), {50: 30.0, 95: 40.0, 99: 50.0}, {50: 20.0, 95: 30.0, 99: 40.0})


def status(snapshot: Snapshot, active: bool = True, limits: Limits = LIMITS) -> DiagnosticStatus:
    return camera_status("/detector", snapshot, limits, active)


def test_percentiles() -> None:
    assert percentiles(range(101)) == {50: 50.0, 95: 95.0, 99: 99.0}
    assert percentiles([]) == {}


def test_counts_and_latencies_add_up() -> None:
    health = Health()
    for latency in (10.0, 20.0, -5.0):
        health.received()
        health.published(latency, 8.0, 5.0, LIMITS)
    health.received()
    health.bad("truncated")
    health.add(lost=3, idle=1)
    snapshot = health.snapshot(dropped=2)
    assert snapshot.counts == Counts(received=4, published=3, dropped=2, bad=1, idle=1, lost=3)
    assert snapshot.latency_ms[50] == 15.0  # the negative one is not a latency
    assert snapshot.processing_ms[99] == 8.0 and snapshot.network_ms[50] == 5.0
    assert snapshot.last_error == "truncated"
    health.reset()
    assert health.snapshot(0).counts == Counts()


def test_late_frames_are_counted() -> None:
    health = Health()
    health.published(1500.0, 8.0, 5.0, LIMITS)
    health.published(10.0, 150.0, 5.0, LIMITS)
    health.published(10.0, 8.0, 5.0, LIMITS)
    health.published(1e9, 1e9, 5.0, Limits(0.0, 0.0, 0.0))
    assert health.snapshot(0).counts.late == 2


def test_frames_without_a_road_are_a_share_of_the_last_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    health = Health()
    assert health.snapshot(0).roadless_share == 0.0
    for roadless in (True, False, False, False):
        health.published(10.0, 8.0, 5.0, LIMITS, roadless=roadless)
    assert (health.snapshot(0).counts.roadless, health.snapshot(0).roadless_share) == (1, 0.25)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 11.0)
    health.published(10.0, 8.0, 5.0, LIMITS)
    assert (health.snapshot(0).counts.roadless, health.snapshot(0).roadless_share) == (1, 0.0)


def test_a_clock_that_jumps_back_forgets_latencies() -> None:
    health = Health()
    health.published(10.0, 8.0, 5.0, LIMITS)
    health.clock_jumped()
    snapshot = health.snapshot(0)
    assert snapshot.counts.clock_jumps == 1 and snapshot.latency_ms == {} and snapshot.processing_ms


@pytest.mark.parametrize(
    ("snapshot", "level", "message"),
    [
        (RUNNING, DiagnosticStatus.OK, "running"),
        (Snapshot(Counts()), DiagnosticStatus.OK, "waiting for the first frame"),
        (Snapshot(Counts(), silent_s=2.5), DiagnosticStatus.ERROR, "camera silent for 2.5 s"),
        (
            Snapshot(Counts(received=3, bad=3), last_error="no step"),
            DiagnosticStatus.ERROR,
            "every frame is unusable: no step",
        ),
        (Snapshot(Counts(received=3, bad=1), last_error="no step"), DiagnosticStatus.WARN, "1 unusable frames"),
        (Snapshot(Counts(received=3, idle=3)), DiagnosticStatus.OK, "nobody subscribes"),
        (Snapshot(Counts(received=3), processing_ms={95: 120.0}), DiagnosticStatus.WARN, "processing takes 120 ms"),
        (
            Snapshot(Counts(received=3), roadless_share=0.25),
            DiagnosticStatus.WARN,
            "no road found in 25% of the frames: there, alarms are everywhere",
        ),
        (Snapshot(Counts(received=3), latency_ms={50: 1200.0}), DiagnosticStatus.WARN, "1.20 s behind"),
    ],
)
def test_levels(snapshot: Snapshot, level: bytes, message: str) -> None:
    found = status(snapshot)
    assert found.level == level and message in found.message


def test_an_inactive_node_does_not_complain_of_silence() -> None:
    assert status(Snapshot(Counts(), silent_s=100.0), active=False).level == DiagnosticStatus.OK


def test_watchdogs_can_be_switched_off() -> None:
    off = Limits(0.0, 0.0, 0.0)
    late = Snapshot(Counts(received=1), {50: 1e6}, {95: 1e6}, silent_s=100.0)
    assert status(late, limits=off).level == DiagnosticStatus.OK


def test_values_are_all_there() -> None:
    values = {pair.key: pair.value for pair in status(RUNNING).values}
    assert values["received"] == "10" and values["latency_ms_p95"] == "40.00" and values["processing_ms_p50"] == "20.00"


def test_the_drift_of_a_compressed_bundle_is_shown() -> None:
    drift = {
        "label_agreement": 0.98123,
        "scores": {"void": {"rank_correlation": 0.99, "max_difference": 0.5}},
        "datasets": {"fs_static": {"auprc": [0.20702, 0.2]}},
    }
    assert drift_values({"method": "int8 static", "drift": drift}) == {
        "compression": "int8 static",
        "drift_label_agreement": "0.9812",
        "drift_rank_correlation_void": "0.9900",
        "drift_auprc_fs_static": "0.2070 -> 0.2000",
    }
    assert drift_values({}) == {}
    assert drift_values({"tuned": {"goal": "p50 of at most 50 ms"}}) == {}  # a float bundle that tune chose


def test_the_drift_of_every_step_is_shown() -> None:
    steps = {
        "method": "channels removed; then int8",
        "drift": {"label_agreement": 0.99},
        "parent": {"compression": {"method": "channels removed", "drift": {"label_agreement": 0.9}}},
        "original": {"drift": {"label_agreement": 0.89}},
    }
    assert drift_values(steps) == {
        "compression": "channels removed; then int8",
        "drift_label_agreement": "0.9900",
        "parent_drift_label_agreement": "0.9000",
        "original_drift_label_agreement": "0.8900",
    }
