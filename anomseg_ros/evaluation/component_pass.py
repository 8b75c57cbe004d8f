"""The second look at a dataset that SegmentMeIfYouCan's component metrics need.

Their threshold is the best-F1 threshold of the whole dataset, known only after every frame was seen once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from anomseg_ros.core.preprocess import resized_scores
from anomseg_ros.evaluation.measures import Measures
from anomseg_ros.evaluation.part import PartTask, detected_frames, open_lanes
from anomseg_ros.evaluation.results import Components
from anomseg_ros.metrics.components import ComponentMetrics, ComponentSums, component_sizes, mask_above


@dataclass(frozen=True)
class ComponentTask:
    """A part, and the best-F1 threshold of each score to look at."""

    part: PartTask
    thresholds: Mapping[str, float]


Sums = dict[str, ComponentSums]


def component_sums(task: ComponentTask) -> Sums:
    """Return the component sums of the task's frames per score, at the labels' own size, scores as float16."""
    part = replace(task.part, spec=replace(task.part.spec, protocols=("smiyc",)))
    sums = _empty(task)
    for _, seen in detected_frames(part, open_lanes(part), Measures(part.spec)):
        for view, timed in seen:
            if view.anomaly is None or timed is None:
                continue
            height, width = view.anomaly.shape
            for score, threshold in task.thresholds.items():
                scores = resized_scores(timed.outputs.scores[score], height, width).astype(np.float16)
                sums[score].add(mask_above(scores, threshold), view.anomaly)
    return sums


def merged_sums(parts: Sequence[Sums]) -> Sums:
    """Return the sums over the frames of all parts."""
    union = dict(parts[0])
    for part in parts[1:]:
        union = {score: sums.merge(part[score]) for score, sums in union.items()}
    return union


def components_of(sums: Sums, thresholds: Mapping[str, float]) -> dict[str, Components]:
    """Return the metrics per score; a score without any component to rate is left out."""
    read = {score: part.metrics() for score, part in sums.items()}
    return {
        score: Components(figures.siou, 0.0 if math.isnan(figures.ppv) else figures.ppv, figures.f1, thresholds[score])
        for score, figures in read.items()
        if _rated(figures)
    }


def _rated(figures: ComponentMetrics) -> bool:
    return figures.true_components > 0 and not math.isnan(figures.f1)


def _empty(task: ComponentTask) -> Sums:
    sizes = component_sizes(task.part.dataset.name)
    return {score: ComponentSums(sizes) for score in task.thresholds}
