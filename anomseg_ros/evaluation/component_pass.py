"""The second pass over a dataset for SegmentMeIfYouCan's component metrics.

Their threshold is the best-F1 threshold of the whole dataset, which is known only after a first pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from anomseg_ros.evaluation.measures import Key, Measures, scores_in_protocol
from anomseg_ros.evaluation.passes import PassTask, seen_frames
from anomseg_ros.evaluation.results import Components
from anomseg_ros.evaluation.workers import Workers, run_parts
from anomseg_ros.metrics.protocols import protocol
from anomseg_ros.metrics.smiyc_components import ComponentMetrics, ComponentSums, component_sizes, mask_above

Sums = dict[Key, ComponentSums]


@dataclass(frozen=True)
class ComponentTask:
    """A pass, and the best-F1 threshold of each (score, protocol) to measure."""

    frames: PassTask
    thresholds: Mapping[Key, float]


def measure_components(
    tasks: Sequence[PassTask], thresholds: Mapping[Key, float], workers: Workers
) -> tuple[dict[Key, Components], list[str]]:
    """Return the component metrics of the frames of all tasks, and notes on the scores that have none.

    Raises what a pass raises.
    """
    parts = run_parts(component_sums, [ComponentTask(task, thresholds) for task in tasks], workers)
    sums = reduce(lambda a, b: {key: sums.merge(b[key]) for key, sums in a.items()}, parts)
    components = components_of(sums, thresholds)
    missing = dict.fromkeys(score for score, _ in thresholds.keys() - components.keys())
    return components, [f"no true component is large enough to rate: score {score}" for score in missing]


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
    frames = replace(task.frames, spec=replace(task.frames.spec, protocols=protocols), drive=None)
    sizes = component_sizes(frames.dataset.name)
    sums = {key: ComponentSums(sizes) for key in task.thresholds}
    for frame in seen_frames(frames):
        for view, timed in frame.seen or ():
            if view.anomaly is None or timed is None:
                continue
            for key, threshold in task.thresholds.items():
                scores = scores_in_protocol(timed.outputs, key, view.anomaly.shape).astype(np.float16)
                sums[key].add(mask_above(scores, threshold), view.anomaly)
    return sums


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
