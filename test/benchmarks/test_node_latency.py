"""benchmarks/node_latency.py: the figures from given stamps, and a few frames through the real processes."""

from __future__ import annotations

from pathlib import Path

import node_latency
import pytest

MS = 1_000_000


def test_ages_and_drops_exclude_the_warm_up_frames() -> None:
    sent = [number * 50 * MS for number in range(node_latency.WARM_UP_FRAMES + 5)]
    measured = sent[node_latency.WARM_UP_FRAMES :]
    answered = [measured[0], measured[2], measured[4]]
    slow = [(stamp, stamp + 900 * MS) for stamp in sent[: node_latency.WARM_UP_FRAMES]]
    masks = [*slow, *((stamp, stamp + ms * MS) for stamp, ms in zip(answered, (10, 20, 30), strict=True))]
    counts = {"received": "25", "published": "23", "dropped": "2", "latency_ms_p50": "9.5"}
    received = node_latency.Received(masks, {**counts, "latency_ms_p95": "9.6", "latency_ms_p99": "9.7"}, 3)
    found = node_latency.figures(sent, received)
    assert (found["sent"], found["answered"], found["dropped"]) == (5, 3, 2)
    assert found["stamp_to_mask_ms"]["p50"] == 20 and found["stamp_to_mask_ms"]["max"] == 30
    assert found["sent_hz"] == pytest.approx(20) and found["frames_per_second"] == pytest.approx(2 / 0.22)
    assert found["node"]["counts"]["dropped"] == 2 and found["node"]["latency_ms"]["p99"] == 9.7
    with pytest.raises(SystemExit, match="0 of 5 frames were answered"):
        node_latency.figures(sent, node_latency.Received(slow))


def setting(bundle: Path, rate_hz: float | None, threshold: float | None) -> node_latency.Setting:
    return node_latency.Setting(str(bundle), "onnxruntime", 1, rate_hz, 10, (72, 128), threshold)


def test_bundle_without_a_threshold_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(SystemExit, match="no threshold of void, so no mask; give --threshold"):
        node_latency.measure(setting(tiny_bundle, None, None))


@pytest.mark.slow
@pytest.mark.parametrize("rate_hz", [None, 20.0])
def test_latency_is_measured_with_the_real_node(rate_hz: float | None, tiny_bundle: Path) -> None:
    run = node_latency.measure(setting(tiny_bundle, rate_hz, 0.5))
    assert run["sent"] == 10 and 2 <= run["answered"] <= 10 and run["answered"] + run["dropped"] == 10
    assert 0 < run["stamp_to_mask_ms"]["p50"] < 5000 and run["node"]["counts"]["received"] > 0
    assert 0 < run["node"]["latency_ms"]["p50"] < 5000  # includes the warm-up, so it may exceed the age of every mask
    assert run["rate_hz"] == rate_hz and run["bundle"] == "tiny"
