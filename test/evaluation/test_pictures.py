"""Pictures of the report: true anomalies are outlined, legends are below the frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from anomseg_ros.backends import open_detector
from anomseg_ros.core.image_files import decode_rgb
from anomseg_ros.core.picture_legend import class_legend, score_bar
from anomseg_ros.core.score_scale import score_scale
from anomseg_ros.datasets.synthetic import SyntheticDataset
from anomseg_ros.evaluation.pictures import WIDTH_PX, draw_worst, outline_truth
from anomseg_ros.evaluation.results import Curves, Result

RESULT = Result("tiny", "synthetic", "max_logit", "seeds", frames=1, auprc=0.5, fpr95=None, auroc=None, miou=None)


def test_truth_is_outlined_in_white_with_a_dark_edge() -> None:
    for level in (0, 128, 255):  # seen on any ground
        canvas = np.full((40, 60, 3), level, np.uint8)
        truth = np.zeros((40, 60), bool)
        truth[10:30, 20:40] = True
        outline_truth(canvas, truth)
        assert canvas[10, 30].tolist() == [255] * 3 and canvas[9, 30].tolist() == canvas[11, 30].tolist() == [0] * 3
        assert (canvas[15:25, 25:35] == level).all() and (canvas[:8] == level).all()


def test_frames_have_the_scale_of_the_score_or_the_classes_below(tiny_bundle: Path) -> None:
    detector, dataset = open_detector(tiny_bundle), SyntheticDataset("1000105:1")
    met = replace(RESULT, curves=Curves(histogram_edges=(-3.0, 2.0)))
    scale = score_scale({}, (-3.0, 2.0), bounded=False)  # the bundle has no thresholds: the scores met
    labels_only = replace(RESULT, auprc=None)
    classes = detector.bundle.contract.classes
    for result, legend in (
        (met, score_bar(scale, "max_logit", WIDTH_PX)),
        (labels_only, class_legend(classes, WIDTH_PX, anomalies=False)),
    ):
        (jpeg,) = draw_worst(detector, dataset, [result], count=1).values()
        below = decode_rgb(np.frombuffer(jpeg, np.uint8), "picture")[320:]
        assert below.shape == legend.shape
        assert np.abs(below.astype(int) - legend)[8:].mean() < 6  # a JPEG's loss
