"""Thresholds for a target false-positive rate, calibrated on labelled frames with the bundle's own graph."""

from __future__ import annotations

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


@dataclass(frozen=True)
class ThresholdChange:
    """One calibrated threshold, the bundle's previous one, and the rates of both on the source where each is highest.

    Rates are shares from 0 to 1. detected: share of the anomalous pixels above the new threshold, None where the frames
    have none.
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
) -> dict[str, list[PixelCurves]]:
    """Return the pixel counts per score, of every dataset, at the labels' own size.

    Those of a set of pseudo-labels are counted for each of its sources. Sources differ as roads do: a mean over them
    would let the rate of the strangest one be several times that of the others.
    """
    spec = MeasureSpec(tuple(map(bundle.check_score, scores)), (NATIVE_PROTOCOL,))
    program = bundle.contract.program_sha256
    source = ModelSource(str(bundle.directory), program, backend, options or BackendOptions())
    counted: dict[str, list[PixelCurves]] = {score: [] for score in spec.scores}
    for given in datasets:
        dataset, done = given if given.has_anomalies else KnownFrames(given), 0
        for indices in _sources(given):
            watch = partial(_tell, progress, dataset.name, done, len(dataset))
            part = measured(PassTask(dataset, indices, source, spec), watch)
            done += len(indices)
            for key, curves in part.curves.items():
                counted[key[0]].append(_pixel_curves(curves))
    return counted


def _sources(dataset: Dataset) -> list[tuple[int, ...]]:
    """Return the frames of each source of a set of pseudo-labels, or all frames of another dataset."""
    return list(dataset.by_source().values()) if isinstance(dataset, PseudoLabel) else [tuple(range(len(dataset)))]


def _tell(progress: Progress, name: str, before: int, total: int, now: Passed) -> None:
    progress(name, before + now.frames, total)


def _pixel_curves(curves: object) -> PixelCurves:
    assert isinstance(curves, PixelCurves)
    return curves


def threshold_changes(
    bundle: Bundle, curves: Mapping[str, Sequence[PixelCurves]], target_fprs: Sequence[float]
) -> list[ThresholdChange]:
    """Return, per score and rate, the threshold that keeps the rate on every source, and the bundle's present one.

    curves: the sources' counts by score. Raises MetricError where no source has a known pixel.
    """
    return [_change(bundle, score, counted, rate) for score, counted in curves.items() for rate in sorted(target_fprs)]


def with_thresholds(contract: Contract, changes: Sequence[ThresholdChange], calibrated_on: str) -> Contract:
    """Return the contract with these thresholds; those of other scores and rates, and their sources, are kept."""
    tables = dict(contract.thresholds)
    for score in dict.fromkeys(change.score for change in changes):
        rates = {change.target_fpr: change.threshold for change in changes if change.score == score}
        table = tables.get(score)
        tables[score] = table.updated(calibrated_on, rates) if table else ThresholdTable(calibrated_on, rates)
    return replace(contract, thresholds=tables)


def _change(bundle: Bundle, score: str, parts: Sequence[PixelCurves], rate: float) -> ThresholdChange:
    known = [part for part in parts if part.known_px]
    if not known:
        raise MetricError(f"score {score!r}: no known pixel was measured; calibrate on frames with labelled pixels")
    threshold = max(threshold_at_fpr(part, rate).threshold for part in known)
    try:
        before = threshold_of(bundle, score, rate)
    except ConfigError:  # calibrated, but for higher rates only
        before = None
    return ThresholdChange(
        score=score,
        target_fpr=rate,
        threshold=threshold,
        achieved_fpr=_highest_rate(known, threshold),
        detected=share_above(PixelCurves.merged(parts), threshold)[1],
        before=None if before is None else before.value,
        before_source="none" if before is None else before.source,
        fpr_before=None if before is None else _highest_rate(known, before.value),
    )


def _highest_rate(parts: Sequence[PixelCurves], threshold: float) -> float:
    return max(rate for part in parts if (rate := share_above(part, threshold)[0]) is not None)


def share_above(counted: PixelCurves, threshold: float) -> tuple[float | None, float | None]:
    """Return the shares of known and of anomalous pixels with score > threshold, exact to a bin."""
    shares: list[float | None] = []
    for side in (counted.known, counted.anomaly):
        above = int(side.counts[side.highest_scores() > threshold].sum())
        shares.append(above / side.total if side.total else None)
    return shares[0], shares[1]
