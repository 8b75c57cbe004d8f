"""Thresholds written into a bundle give the calibrated rate when the detector runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from brightness_teacher import ByBrightness
from dataset_trees import write
from flat_dataset import write_flat_dataset

from anomseg_ros.backends import open_detector
from anomseg_ros.core.bundle import change_bundle, load_bundle
from anomseg_ros.core.preprocess import resized_scores
from anomseg_ros.datasets import open_named
from anomseg_ros.datasets.pseudo_label import LabelConfig
from anomseg_ros.datasets.pseudo_label_sources import open_sources
from anomseg_ros.datasets.pseudo_label_write import WriteConfig, write_pseudo_labels
from anomseg_ros.evaluation.calibrate import measure_scores, threshold_changes, with_thresholds


@pytest.mark.parametrize("score", ["void", "max_logit"])
def test_calibrated_bundle_keeps_the_false_positive_rate(score: str, tiny_bundle: Path, tmp_path: Path) -> None:
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


def test_rate_holds_on_every_source_of_pseudo_labels(tiny_bundle: Path, tmp_path: Path) -> None:
    """One source has four noisy frames, the other one plain frame. The higher of their rates is the target rate."""
    rng = np.random.default_rng(0)
    for number in range(4):
        write(tmp_path / "noisy" / f"{number}.png", rng.integers(0, 256, (64, 128, 3), np.uint8))
    write(tmp_path / "plain" / "0.png", np.full((64, 128, 3), 30, np.uint8))
    sources = open_sources([f"folder={tmp_path / 'noisy'}", f"folder={tmp_path / 'plain'}"])
    write_pseudo_labels(sources, [ByBrightness()], tmp_path / "set", WriteConfig(LabelConfig(confidence=0.0)))
    dataset, bundle = open_named(f"pseudo_label={tmp_path / 'set'}:train"), load_bundle(tiny_bundle)
    (change,) = threshold_changes(bundle, measure_scores(bundle, [dataset], ["max_logit"]), [0.1])
    detector = open_detector(bundle)
    above: dict[str, list[float]] = {"folder": [], "folder2": []}
    for index in range(len(dataset)):
        scores = detector.detect(dataset.load(index).image, ["max_logit"]).scores["max_logit"]
        share = float(np.mean(scores > np.float32(change.threshold)))
        above[dataset.frame_id(index).partition("-")[0]].append(share)
    rates = [float(np.mean(shares)) for shares in above.values()]
    assert [len(shares) for shares in above.values()] == [4, 1]
    assert 0.09 < max(rates) <= 0.101 and abs(rates[0] - rates[1]) > 0.02
    assert change.achieved_fpr == pytest.approx(max(rates), abs=1e-3)
