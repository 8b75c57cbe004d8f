"""Thresholds written into a bundle keep their rate when the detector runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from flat_dataset import write_flat_dataset

from anomseg_ros.backends import open_detector
from anomseg_ros.core.bundle import change_bundle, load_bundle
from anomseg_ros.core.preprocess import resized_scores
from anomseg_ros.datasets import open_named
from anomseg_ros.evaluation.calibrate import measure_scores, threshold_changes, with_thresholds


@pytest.mark.parametrize("score", ["void", "max_logit"])
def test_the_bundle_keeps_the_rate(score: str, tiny_bundle: Path, tmp_path: Path) -> None:
    dataset = open_named(write_flat_dataset(tmp_path / "flat"))
    bundle = load_bundle(tiny_bundle)
    changes = threshold_changes(bundle, measure_scores(bundle, [dataset], [score]), [0.05, 0.01])
    calibrated = partial(with_thresholds, changes=changes, calibrated_on="noise (6 frames)")
    written = change_bundle(bundle, calibrated, tmp_path / "out")
    threshold = written.threshold(score, 0.05)
    assert threshold is not None and threshold.calibrated and "noise" in threshold.source
    detector = open_detector(written)
    above = known = 0
    for index in range(len(dataset)):
        frame = dataset.load(index)
        scores = resized_scores(detector.detect(frame.image, [score]).scores[score], *frame.image.shape[:2])
        assert frame.anomaly is not None
        above += int(np.count_nonzero(scores[frame.anomaly == 0] > np.float32(threshold.value)))
        known += int(np.count_nonzero(frame.anomaly == 0))
    assert 0.04 < above / known <= 0.05
    assert [change.target_fpr for change in changes] == [0.01, 0.05]
    assert changes[1].achieved_fpr == pytest.approx(above / known)
    assert changes[0].detected is not None
