"""The official figures of each protocol, and the preparation of frames."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomseg_ros.errors import ConfigError, MetricError
from anomseg_ros.metrics.pixel_curves import PixelCurves
from anomseg_ros.metrics.protocols import PROTOCOLS, PixelMetrics, on_road, protocol


def metrics_of(name: str, frames: Any, score_dtype: str | None = None) -> PixelMetrics:
    chosen = protocol(name)
    if score_dtype is not None:
        chosen = dataclasses.replace(chosen, score_dtype=score_dtype)
    accumulator = chosen.new_accumulator()
    for scores, labels in frames:
        assert chosen.add(accumulator, scores, labels)
    return chosen.read(accumulator)


@pytest.mark.parametrize(
    ("name", "score_dtype", "expected"),
    [
        ("fishyscapes", "float32", {"auprc": 0.73501757, "fpr95": 0.34642910, "auroc": 0.92438794}),
        ("seeds", "float32", {"auprc": 0.73501757, "fpr95": 0.34642910, "auroc": 0.92438794}),
        ("fishyscapes", "float16", {"auprc": 0.73460522}),
        ("pebal", "float32", {"auprc": 0.73501757, "fpr95": 0.34785449}),
        (
            "smiyc",
            "float32",
            {"auprc": 0.73484340, "fpr95": 0.34815145, "best_f1": 0.63360820, "best_f1_threshold": 0.70167906},
        ),
        ("smiyc", None, {"auprc": 0.73478471, "fpr95": 0.34696362}),
    ],
)
def test_metrics_equal_the_official_figures(
    official_frames: Any, name: str, score_dtype: str | None, expected: dict[str, float]
) -> None:
    metrics = metrics_of(name, official_frames, score_dtype)
    for field, value in expected.items():
        assert getattr(metrics, field) == pytest.approx(value, abs=1e-7), field
    assert (metrics.frames, metrics.known_px, metrics.anomaly_px) == (3, 33_675, 4_725)
    assert metrics.auprc_bound == metrics.fpr95_bound == metrics.auroc_bound == metrics.best_f1_bound == 0
    assert metrics.protocol == name


def test_protocol_with_a_region_differs_only_in_name_and_region() -> None:
    limited = protocol(on_road("smiyc", "road_and_sidewalk"))
    assert limited == dataclasses.replace(
        PROTOCOLS["smiyc"], name="smiyc+road_and_sidewalk", road_region="road_and_sidewalk"
    )
    assert all(chosen.road_region is None for chosen in PROTOCOLS.values())


@pytest.mark.parametrize(
    ("name", "message"), [("seeds+", "known: seeds"), ("seeds+raod", "seeds+road"), ("seed+road", "known: seeds")]
)
def test_unknown_regions_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown protocol '{re.escape(name)}'.*{re.escape(message)}"):
        protocol(name)


def test_mean_of_per_image_figures_equals_the_official_figures(official_frames: Any) -> None:
    curves = [curves_of_frame(*frame).curve() for frame in official_frames]
    assert np.mean([c.average_precision().value for c in curves]) == pytest.approx(0.73423835, abs=1e-7)
    assert np.mean([c.fpr_at_recall(rule="nearest").value for c in curves]) == pytest.approx(0.35230883, abs=1e-7)


def curves_of_frame(scores: Any, labels: Any) -> PixelCurves:
    curves = PixelCurves()
    curves.add(scores, labels)
    return curves


def test_only_protocol_seeds_skips_frames_without_anomaly(official_frames: Any) -> None:
    scores, labels = official_frames[0]
    known_only = np.where(labels == 1, 0, labels).astype(np.uint8)
    for name in PROTOCOLS:
        accumulator = protocol(name).new_accumulator()
        assert protocol(name).add(accumulator, scores, known_only) is (name != "seeds")
        assert accumulator.frames == (name != "seeds")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_accumulators_merge_in_any_order_and_are_saved(official_frames: Any, name: str, tmp_path: Path) -> None:
    chosen = protocol(name)
    parts: list[Any] = []
    for index, (scores, labels) in enumerate(official_frames):
        part = chosen.new_accumulator(exact=True)
        chosen.add(part, scores, labels)
        part.save(tmp_path / f"{index}.npz")
        parts.append(chosen.load_accumulator(tmp_path / f"{index}.npz"))
        assert parts[-1] == part
    a, b, c = parts
    assert a.merge(b).merge(c) == a.merge(b.merge(c)) == c.merge(b).merge(a) == type(a).merged([b, a, c])
    assert chosen.read(a.merge(b).merge(c)) == metrics_of(name, official_frames)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_invalid_frames_and_empty_accumulators_are_refused(name: str) -> None:
    chosen = protocol(name)
    accumulator = chosen.new_accumulator()
    with pytest.raises(MetricError, match="not finite"):
        chosen.add(accumulator, np.full((2, 2), np.nan, np.float32), np.ones((2, 2), np.uint8))
    with pytest.raises(MetricError, match="0 anomalous pixels"):
        chosen.read(accumulator)


def test_scores_that_overflow_float16_are_refused() -> None:
    chosen = protocol("smiyc")
    with pytest.raises(MetricError, match="1 infinite"):
        chosen.add(chosen.new_accumulator(), np.array([[1e6, 0]], np.float32), np.array([[1, 0]], np.uint8))


def test_unknown_protocol_error_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown protocol 'seed'; known: seeds"):
        protocol("seed")
