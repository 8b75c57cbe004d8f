"""The pictures of the training-free paper (Nayal et al., Figures 1, 4 and 5): input, truth, clusters and score."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.preprocess import resized_labels, resized_scores
from anomseg_ros.core.score_scale import ScoreScale
from anomseg_ros.core.types import RgbImage, ScoreMap
from anomseg_ros.datasets.dataset import ANOMALY, VOID
from anomseg_ros.scores import score_facts

MOST_CLUSTERS = 64
KNOWN_COLOR, VOID_COLOR, ANOMALY_COLOR = (40, 40, 40), (130, 130, 130), (255, 255, 255)
CAPTIONS = ("input", "truth", "clusters")


def cluster_panels(
    image: RgbImage,
    truth: npt.NDArray[np.uint8] | None,
    scores: Mapping[str, ScoreMap],
    score: str,
    scale: ScoreScale,
    width_px: int,
) -> RgbImage | None:
    """Return input, truth, clusters and the score in colours, in two rows; None if no map tells the clusters.

    Args:
        image: the frame, uint8 (H, W, 3) RGB.
        truth: anomaly mask as in datasets, uint8 (H, W), or None.
        scores: every map of the frame.
        score: name of the map that is drawn.
        scale: its colours.
        width_px: width of the picture.
    """
    clusters = clusters_of(scores)
    if clusters is None:
        return None
    width = width_px // 2
    height = max(1, round(width * image.shape[0] / image.shape[1]))
    small = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    panels = [
        small,
        _truth_colors(truth, height, width),
        _cluster_colors(resized_labels(clusters, height, width)),
        scale.colored(resized_scores(scores[score], height, width)),
    ]
    captioned = [_with_caption(panel, text) for panel, text in zip(panels, (*CAPTIONS, score), strict=True)]
    return np.vstack([np.hstack(captioned[:2]), np.hstack(captioned[2:])])


def clusters_of(scores: Mapping[str, ScoreMap]) -> npt.NDArray[np.uint8] | None:
    """Return the clusters of a frame, uint8 (H, W), in ascending order of a score that is constant in each of them.

    Of several such maps, the one of the most values tells the most clusters apart. None if there is no such map.
    """
    best: npt.NDArray[np.uint8] | None = None
    most = 0
    for name, map_ in scores.items():
        if score_facts(name).of_clusters:
            values, clusters = np.unique(map_, return_inverse=True)
            if most < len(values) <= MOST_CLUSTERS:
                best, most = clusters.reshape(map_.shape).astype(np.uint8), len(values)
    return best


def _truth_colors(truth: npt.NDArray[np.uint8] | None, height: int, width: int) -> RgbImage:
    colors = np.full((height, width, 3), VOID_COLOR, np.uint8)
    if truth is not None:
        small = resized_labels(truth, height, width)
        colors[small != VOID] = KNOWN_COLOR
        colors[small == ANOMALY] = ANOMALY_COLOR
    return colors


def _cluster_colors(clusters: npt.NDArray[np.uint8]) -> RgbImage:
    count = max(1, int(clusters.max()))
    spread = (clusters.astype(np.float32) * (235.0 / count) + 10.0).astype(np.uint8)
    return np.asarray(cv2.cvtColor(cv2.applyColorMap(spread, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB), np.uint8)


def _with_caption(panel: RgbImage, text: str) -> RgbImage:
    panel = panel.copy()
    place = 6, panel.shape[0] - 8
    for color, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(panel, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, color, thickness, cv2.LINE_AA)
    return panel
