"""Thresholds for a target false-positive rate, calibrated on labelled frames with the bundle's own graph."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.core.bundle import Bundle, Contract
from anomseg_ros.core.labels import ClassInfo
from anomseg_ros.core.problems import FrameProblem
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.thresholds import ThresholdTable
from anomseg_ros.datasets.dataset import KNOWN, VOID, Dataset, LabelledFrame
from anomseg_ros.datasets.pseudo_label_dataset import PseudoLabel
from anomseg_ros.errors import ConfigError, MetricError
from anomseg_ros.evaluation.measures import MeasureSpec
from anomseg_ros.evaluation.passes import ModelSource, Passed, PassTask, measured
from anomseg_ros.metrics.pixel_curves import PixelCurves
from anomseg_ros.metrics.reliability import threshold_at_fpr
from anomseg_ros.scores import threshold_of

NATIVE_PROTOCOL = "fishyscapes"
"""Counts every labelled pixel at its own size, in frames without an anomaly too, as on a vehicle."""

WEIGHT_STEPS = 16
"""Weight of a pixel of the largest source; weights of smaller sources are rounded to whole numbers."""


@dataclass(frozen=True)
class ThresholdChange:
    """One calibrated threshold, the bundle's previous one, and the rates of both on the frames measured, 0 to 1.

    detected: share of the anomalous pixels above the new threshold, None where the frames have none.
    """

    score: str
    target_fpr: float
    threshold: float
    achieved_fpr: float
    detected: float | None
    before: float | None
    before_source: str
    fpr_before: float | None


class KnownFrames:
    """A dataset of semantic labels alone, read as frames whose labelled pixels are all known."""

    def __init__(self, inner: Dataset) -> None:
        """Wrap a dataset that has no anomaly masks."""
        self._inner = inner
        self.name, self.split, self.layout, self.path = inner.name, inner.split, inner.layout, inner.path
        self.label_set: str | None = None
        self.classes: tuple[ClassInfo, ...] | None = None
        self.has_anomalies = True
        self.published_count = inner.published_count
        self.problems: tuple[FrameProblem, ...] = inner.problems

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self._inner)

    def frame_id(self, index: int) -> str:
        """Return the name of a frame."""
        return self._inner.frame_id(index)

    def origin(self, index: int) -> str:
        """Return the name by which another dataset can recognise the picture."""
        return self._inner.origin(index)

    def load(self, index: int) -> LabelledFrame:
        """Read one frame; labelled pixels are known, the others void."""
        frame = self._inner.load(index)
        assert frame.labels is not None
        return LabelledFrame(frame.id, frame.image, None, np.where(frame.labels == VOID, VOID, KNOWN).astype(np.uint8))


def measure_scores(
    bundle: Bundle,
    datasets: Sequence[Dataset],
    scores: Sequence[str],
    backend: str = "onnxruntime",
    options: BackendOptions | None = None,
    progress: Progress = no_progress,
) -> dict[str, PixelCurves]:
    """Return the pixel counts per score over all frames of the datasets, at the labels' own size.

    Every source of a set of pseudo-labels has the same weight, whatever its number of frames. A threshold then keeps
    its rate on average over the sources, not on the largest one.
    """
    spec = MeasureSpec(tuple(map(bundle.check_score, scores)), (NATIVE_PROTOCOL,))
    program = bundle.contract.program_sha256
    source = ModelSource(str(bundle.directory), program, backend, options or BackendOptions())
    merged: dict[str, PixelCurves] = {}
    for given in datasets:
        dataset, done = given if given.has_anomalies else KnownFrames(given), 0
        parts = []
        for indices in _sources(given):
            watch = partial(_tell, progress, dataset.name, done, len(dataset))
            parts.append(measured(PassTask(dataset, indices, source, spec), watch))
            done += len(indices)
        for key in parts[0].curves:
            counted = _balanced([_pixel_curves(part.curves[key]) for part in parts])
            merged[key[0]] = merged[key[0]].merge(counted) if key[0] in merged else counted
    return merged


def _sources(dataset: Dataset) -> list[tuple[int, ...]]:
    """Return the frames of each source of a set of pseudo-labels, or all frames of another dataset."""
    return list(dataset.by_source().values()) if isinstance(dataset, PseudoLabel) else [tuple(range(len(dataset)))]


def _tell(progress: Progress, name: str, before: int, total: int, now: Passed) -> None:
    progress(name, before + now.frames, total)


def _balanced(parts: Sequence[PixelCurves]) -> PixelCurves:
    """Return the parts merged, each weighted to about the known pixels of the largest part, times WEIGHT_STEPS."""
    parts = [part for part in parts if part.known_px] or parts[:1]
    if len(parts) == 1:
        return parts[0]
    largest = max(part.known_px for part in parts)
    weighted = [part.times(max(1, round(WEIGHT_STEPS * largest / part.known_px))) for part in parts]
    return functools.reduce(PixelCurves.merge, weighted)


def _pixel_curves(curves: object) -> PixelCurves:
    assert isinstance(curves, PixelCurves)
    return curves


def threshold_changes(
    bundle: Bundle, curves: Mapping[str, PixelCurves], target_fprs: Sequence[float]
) -> list[ThresholdChange]:
    """Return, per score and rate, the threshold that keeps the rate and the one that the bundle has now."""
    return [_change(bundle, score, counted, rate) for score, counted in curves.items() for rate in sorted(target_fprs)]


def with_thresholds(contract: Contract, changes: Sequence[ThresholdChange], calibrated_on: str) -> Contract:
    """Return the contract with these thresholds; those of other scores and rates, and their sources, are kept."""
    tables = dict(contract.thresholds)
    for score in dict.fromkeys(change.score for change in changes):
        rates = {change.target_fpr: change.threshold for change in changes if change.score == score}
        table = tables.get(score)
        tables[score] = table.updated(calibrated_on, rates) if table else ThresholdTable(calibrated_on, rates)
    return replace(contract, thresholds=tables)


def _change(bundle: Bundle, score: str, counted: PixelCurves, rate: float) -> ThresholdChange:
    if counted.known_px == 0:
        raise MetricError(f"score {score!r}: no known pixel was measured; calibrate on frames with labelled pixels")
    found = threshold_at_fpr(counted, rate)
    try:
        before = threshold_of(bundle, score, rate)
    except ConfigError:  # calibrated, but for higher rates only
        before = None
    return ThresholdChange(
        score=score,
        target_fpr=rate,
        threshold=found.threshold,
        achieved_fpr=found.achieved_fpr,
        detected=share_above(counted, found.threshold)[1],
        before=None if before is None else before.value,
        before_source="none" if before is None else before.source,
        fpr_before=None if before is None else share_above(counted, before.value)[0],
    )


def share_above(counted: PixelCurves, threshold: float) -> tuple[float | None, float | None]:
    """Return the shares of known and of anomalous pixels with score > threshold, exact to a bin."""
    shares: list[float | None] = []
    for side in (counted.known, counted.anomaly):
        above = int(side.counts[side.highest_scores() > threshold].sum())
        shares.append(above / side.total if side.total else None)
    return shares[0], shares[1]
