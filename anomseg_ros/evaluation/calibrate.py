"""Thresholds that keep a promised false-positive rate, found on labelled frames with the bundle as it will run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from anomseg_ros.backends.options import BackendOptions
from anomseg_ros.core.bundle import Bundle, Contract
from anomseg_ros.core.labels import ClassInfo
from anomseg_ros.core.thresholds import ThresholdTable
from anomseg_ros.datasets.base import KNOWN, VOID, Dataset, LabelledFrame
from anomseg_ros.datasets.problems import FrameProblem
from anomseg_ros.errors import ConfigError, MetricError
from anomseg_ros.evaluation.measures import MeasureSpec
from anomseg_ros.evaluation.part import PartTask, evaluate_part
from anomseg_ros.metrics.calibration import threshold_at_fpr
from anomseg_ros.metrics.pixel_curves import PixelCurves

NATIVE_PROTOCOL = "fishyscapes"
"""Every labelled pixel at its own size, frames without an anomaly too: what a camera will show."""


@dataclass(frozen=True)
class ThresholdChange:
    """One calibrated threshold, the one the bundle had, and what each does on the frames measured; shares 0 to 1.

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
        """Return what tells the picture in another dataset."""
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
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, PixelCurves]:
    """Return the pixel counts per score over all frames of the datasets, at the labels' own size."""
    spec = MeasureSpec(tuple(map(bundle.check_score, scores)), (NATIVE_PROTOCOL,))
    merged: dict[str, PixelCurves] = {}
    for given in datasets:
        dataset = given if given.has_anomalies else KnownFrames(given)
        task = PartTask(
            bundle=str(bundle.directory),
            bundle_sha256=bundle.contract.program_sha256,
            dataset=dataset,
            indices=tuple(range(len(dataset))),
            spec=spec,
            backend=backend,
            options=options or BackendOptions(),
        )
        measures = evaluate_part(task, lambda now, of=dataset: progress(of.name, len(now.done), len(of)))  # type: ignore[misc]
        for (score, _), curves in measures.curves.items():
            assert isinstance(curves, PixelCurves)
            merged[score] = merged[score].merge(curves) if score in merged else curves
    return merged


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
        before = bundle.threshold(score, rate)
    except ConfigError:  # calibrated, but for higher rates only
        before = None
    return ThresholdChange(
        score=score,
        target_fpr=rate,
        threshold=found.threshold,
        achieved_fpr=found.achieved_fpr,
        detected=_share_above(counted, found.threshold)[1],
        before=None if before is None else before.value,
        before_source="none" if before is None else before.source,
        fpr_before=None if before is None else _share_above(counted, before.value)[0],
    )


def _share_above(counted: PixelCurves, threshold: float) -> tuple[float | None, float | None]:
    """Return the shares of known and of anomalous pixels with score > threshold, exact to a bin."""
    shares: list[float | None] = []
    for side in (counted.known, counted.anomaly):
        above = int(side.counts[side.highest_scores() > threshold].sum())
        shares.append(above / side.total if side.total else None)
    return shares[0], shares[1]
