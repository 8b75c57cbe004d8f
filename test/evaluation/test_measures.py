"""Measures are the same when merged from any split and when reloaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anomseg_ros.core.types import Outputs
from anomseg_ros.errors import MetricError
from anomseg_ros.evaluation.measures import Measures, MeasureSpec, TimedOutputs, without_times
from anomseg_ros.evaluation.views import make_view

SPEC = MeasureSpec(
    ("void", "msp"), ("seeds", "fishyscapes", "smiyc"), num_classes=4, thresholds=(("void", 0.5), ("msp", 0.25))
)


def add_frame(measures: Measures, index: int, *, broken: bool = False) -> None:
    generator = np.random.default_rng(index)
    image = generator.integers(0, 256, (20, 40, 3), dtype=np.uint8)
    labels = generator.choice(np.array([0, 1, 2, 3, 255], np.uint8), (20, 40))
    anomaly = np.zeros((20, 40), np.uint8)
    if index != 2:
        anomaly[5:12, 4:20] = 1
    scores = {name: generator.random((10, 20), dtype=np.float32) for name in ("void", "msp")}
    if broken:
        scores["msp"][3, 3] = np.nan
    outputs = Outputs(generator.integers(0, 4, (10, 20), dtype=np.uint8), scores, 1.5)
    views = [make_view(image, labels, anomaly, size) for size in measures.spec.sizes]
    measures.add(index, f"f{index}", [(view, TimedOutputs(outputs, 2.0)) for view in views])


def measures_of(count: int) -> Measures:
    measures = Measures(SPEC)
    for index in range(count):
        add_frame(measures, index)
    return measures


@pytest.fixture(scope="module")
def whole() -> Measures:
    return measures_of(6)


@pytest.mark.slow
@pytest.mark.parametrize("split", [[[0, 1, 2], [3, 4, 5]], [[5], [1, 3], [0, 2, 4]]])
def test_any_split_merges_to_the_same_measures(split: list[list[int]], whole: Measures) -> None:
    union = Measures(SPEC)
    for indices in split:
        measures = Measures(SPEC)
        for index in indices:
            add_frame(measures, index)
        union = union.merge(measures)
    assert without_times(union) == without_times(whole)
    assert [frame.frame_id for frame in union.frame_results(("void", "fishyscapes"))] == [f"f{i}" for i in range(6)]


def test_only_protocol_seeds_skips_frames_without_anomaly(whole: Measures) -> None:
    assert whole.skipped == {"seeds": 1, "fishyscapes": 0, "smiyc": 0}
    assert [len(whole.rows["void", name]) for name in ("seeds", "fishyscapes", "smiyc")] == [5, 6, 6]
    assert whole.curves["void", "seeds"].frames == 5


@pytest.mark.slow
def test_loaded_measures_continue_like_the_original(tmp_path: Path, whole: Measures) -> None:
    half = measures_of(3)
    half.save(tmp_path)
    loaded = Measures.load(SPEC, tmp_path)
    assert loaded == half
    for index in range(3, 6):
        add_frame(loaded, index)
    assert without_times(loaded) == without_times(whole)


def test_frame_cannot_be_counted_twice() -> None:
    measures = measures_of(2)
    with pytest.raises(MetricError, match="counted before"):
        add_frame(measures, 1)
    with pytest.raises(MetricError, match="share frames"):
        measures_of(2).merge(measures_of(1))


def test_non_finite_score_error_names_frame_and_score() -> None:
    with pytest.raises(MetricError, match=r"frame 'f4', .*score 'msp'.*not finite"):
        add_frame(Measures(SPEC), 4, broken=True)
