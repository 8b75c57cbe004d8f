"""Measures: merged in any split and reloaded, they are the same."""

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


def whole(count: int = 6) -> Measures:
    measures = Measures(SPEC)
    for index in range(count):
        add_frame(measures, index)
    return measures


@pytest.mark.parametrize("split", [[[0, 1, 2], [3, 4, 5]], [[5], [1, 3], [0, 2, 4]]])
def test_any_split_merges_to_the_same(split: list[list[int]]) -> None:
    union = Measures(SPEC)
    for part in split:
        measures = Measures(SPEC)
        for index in part:
            add_frame(measures, index)
        union = union.merge(measures)
    assert without_times(union) == without_times(whole())
    assert [frame.frame_id for frame in union.frame_results(("void", "fishyscapes"))] == [f"f{i}" for i in range(6)]


def test_seeds_leaves_out_frames_without_anomaly_others_do_not() -> None:
    measures = whole()
    assert measures.skipped == {"seeds": 1, "fishyscapes": 0, "smiyc": 0}
    assert [len(measures.rows["void", name]) for name in ("seeds", "fishyscapes", "smiyc")] == [5, 6, 6]
    assert measures.curves["void", "seeds"].frames == 5


def test_saved_and_loaded_it_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    half = whole(3)
    half.save(tmp_path)
    loaded = Measures.load(SPEC, tmp_path)
    assert loaded == half
    for index in range(3, 6):
        add_frame(loaded, index)
    assert without_times(loaded) == without_times(whole())


def test_a_frame_counts_once() -> None:
    measures = whole(2)
    with pytest.raises(MetricError, match="counted before"):
        add_frame(measures, 1)
    with pytest.raises(MetricError, match="share frames"):
        whole(2).merge(whole(1))


def test_a_bad_score_names_frame_and_score() -> None:
    with pytest.raises(MetricError, match=r"frame 'f4', .*score 'msp'.*not finite"):
        add_frame(Measures(SPEC), 4, broken=True)
