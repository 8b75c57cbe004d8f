"""The second look at a dataset that SegmentMeIfYouCan's component metrics need.

Their threshold is the best-F1 threshold of the whole dataset, known only after every frame was seen once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from anomseg_ros.evaluation.measures import Key, Measures, scores_in_protocol
from anomseg_ros.evaluation.part import PartTask, detected_frames, open_lanes
from anomseg_ros.evaluation.results import Components
from anomseg_ros.metrics.components import ComponentMetrics, ComponentSums, component_sizes, mask_above
from anomseg_ros.metrics.protocols import protocol


@dataclass(frozen=True)
class ComponentTask:
    """A part, and the best-F1 threshold of each (score, protocol) to look at."""

    part: PartTask
    thresholds: Mapping[Key, float]


Sums = dict[Key, ComponentSums]


def component_thresholds(measures: Measures) -> dict[Key, float]:
    """Return the best-F1 threshold per score in SegmentMeIfYouCan's protocol, where one can be read."""
    return {
        key: protocol(key[1]).read(accumulator).best_f1_threshold
        for key, accumulator in measures.curves.items()
        if protocol(key[1]).quantile_bins and accumulator.anomaly_px and accumulator.known_px
    }


def component_sums(task: ComponentTask) -> Sums:
    """Return the component sums of the task's frames, at the labels' own size, scores as float16."""
    protocols = tuple(dict.fromkeys(name for _, name in task.thresholds))
    part = replace(task.part, spec=replace(task.part.spec, protocols=protocols))
    sums = _empty(task)
    for _, seen in detected_frames(part, open_lanes(part), Measures(part.spec)):
        for view, timed in seen:
            if view.anomaly is None or timed is None:
                continue
            for key, threshold in task.thresholds.items():
                scores = scores_in_protocol(timed.outputs, key, view.anomaly.shape).astype(np.float16)
                sums[key].add(mask_above(scores, threshold), view.anomaly)
    return sums


def merged_sums(parts: Sequence[Sums]) -> Sums:
    """Return the sums over the frames of all parts."""
    union = dict(parts[0])
    for part in parts[1:]:
        union = {key: sums.merge(part[key]) for key, sums in union.items()}
    return union


def components_of(sums: Sums, thresholds: Mapping[Key, float]) -> dict[Key, Components]:
    """Return the metrics; a (score, protocol) without any component to rate is left out."""
    read = {key: part.metrics() for key, part in sums.items()}
    return {
        key: Components(figures.siou, 0.0 if math.isnan(figures.ppv) else figures.ppv, figures.f1, thresholds[key])
        for key, figures in read.items()
        if _rated(figures)
    }


def _rated(figures: ComponentMetrics) -> bool:
    return figures.true_components > 0 and not math.isnan(figures.f1)


def _empty(task: ComponentTask) -> Sums:
    sizes = component_sizes(task.part.dataset.name)
    return {key: ComponentSums(sizes) for key in task.thresholds}
