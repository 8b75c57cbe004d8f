"""The four panels of scores of clusters: input, truth, clusters, score."""

from __future__ import annotations

import numpy as np
import pytest

from anomseg_ros.core.score_scale import ScoreScale
from anomseg_ros.evaluation.cluster_panels import ANOMALY_COLOR, KNOWN_COLOR, VOID_COLOR, cluster_panels, clusters_of

SIZE = (40, 80)
SCALE = ScoreScale((-10.0, 2.0), (0.0, 1.0))
IDS = np.arange(80, dtype=np.int64).repeat(40).reshape(80, 40).T // 20


def maps() -> dict[str, np.ndarray]:
    ratio = np.array([0.0, 0.0, 0.5, 0.25], np.float32)[IDS]  # two clusters have the same share
    mean = np.array([-9.0, -3.0, -1.0, -2.0], np.float32)[IDS]
    mix = np.random.default_rng(0).normal(size=SIZE).astype(np.float32)
    return {"max_logit": mix, "cluster_ratio": ratio, "cluster_mean": mean, "cluster_mix": mix}


def test_clusters_come_from_the_map_that_tells_most_apart() -> None:
    found = clusters_of(maps())
    assert found is not None and found[0, ::20].tolist() == [0, 1, 3, 2]
    without = {name: map_ for name, map_ in maps().items() if name != "cluster_mean"}
    assert clusters_of(without)[0, ::20].tolist() == [0, 0, 2, 1]


def test_no_panels_without_a_map_of_clusters() -> None:
    only = {name: maps()[name] for name in ("max_logit", "cluster_mix")}
    assert clusters_of(only) is None
    assert cluster_panels(np.zeros((*SIZE, 3), np.uint8), None, only, "cluster_mix", SCALE, 160) is None


@pytest.mark.parametrize("score", ["cluster_ratio", "cluster_mean", "cluster_mix"])
def test_panels_show_input_truth_clusters_and_score(score: str) -> None:
    image = np.full((*SIZE, 3), (10, 200, 60), np.uint8)
    truth = np.zeros(SIZE, np.uint8)
    truth[:, 40:60], truth[:, 70:] = 1, 255
    panels = cluster_panels(image, truth, maps(), score, SCALE, 160)
    assert panels is not None and panels.shape == (80, 160, 3) and panels.dtype == np.uint8
    assert (panels[2, 2] == (10, 200, 60)).all()
    top = panels[2, 80:]
    assert tuple(top[10]) == KNOWN_COLOR and tuple(top[50]) == ANOMALY_COLOR and tuple(top[75]) == VOID_COLOR
    assert len({tuple(color) for color in panels[42, 5:80:20]}) == 4


def test_missing_truth_is_grey() -> None:
    panels = cluster_panels(np.zeros((*SIZE, 3), np.uint8), None, maps(), "cluster_mean", SCALE, 160)
    assert panels is not None and tuple(panels[2, 100]) == VOID_COLOR
