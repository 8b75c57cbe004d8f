"""Everything one bundle gathers on one dataset or bag: mergeable, savable, and read off only at the end.

All sums are whole numbers and per-frame rows carry their frame's index, so that any split of the frames over processes,
machines and interrupted runs gives the same result to the last digit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from anomseg_ros.core.bundle import Contract
from anomseg_ros.core.labels import UNLABELLED, counted_labels
from anomseg_ros.core.preprocess import resized_labels, resized_scores
from anomseg_ros.core.road_region import RoadRegion, limited_scores, road_region
from anomseg_ros.core.types import LabelImage, Outputs, ScoreMap
from anomseg_ros.core.untrusted_text import parse_json
from anomseg_ros.datasets.dataset import VOID
from anomseg_ros.errors import ConfigError, MetricError
from anomseg_ros.evaluation.frame_figures import frame_auprc_fpr95
from anomseg_ros.evaluation.results import FrameResult
from anomseg_ros.evaluation.views import Size, View, view_sizes
from anomseg_ros.metrics.miou import ConfusionMatrix
from anomseg_ros.metrics.pixel_curves import ANOMALY, KNOWN, PixelCurves
from anomseg_ros.metrics.protocols import PixelAccumulator, Protocol, protocol
from anomseg_ros.scores import confidence_score, score_facts

CONFIDENCE_SCORE = confidence_score()
"""1 - this score is the probability of the predicted class, which the semantic calibration error is about."""

_ROWS_FILE = "rows.json"
Key = tuple[str, str]


@dataclass(frozen=True)
class MeasureSpec:
    """What to measure.

    scores, protocols: names. num_classes: known classes for mIoU, None where it is not measured. anomalies: whether
    there are anomaly masks. exact: as in PixelCurves. road: the region of the protocols that have one. label_map:
    predicted label value -> train id of the ground truth, 256 of them, None where they are the same. thresholds: pairs
    of score and value to count the pixels above.
    """

    scores: tuple[str, ...]
    protocols: tuple[str, ...]
    num_classes: int | None = None
    anomalies: bool = True
    exact: bool = False
    road: RoadRegion | None = None
    label_map: tuple[int, ...] | None = None
    thresholds: tuple[tuple[str, float], ...] = ()

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The views that are needed."""
        return view_sizes(self.protocols)

    @property
    def keys(self) -> tuple[Key, ...]:
        """Every (score, protocol)."""
        return tuple((score, name) for name in self.protocols for score in self.scores)

    @property
    def calibrated(self) -> bool:
        """Whether the semantic calibration error is measured: the confidence is one in a class, not in a group."""
        return self.num_classes is not None and CONFIDENCE_SCORE in self.scores and self.label_map is None


def road_of(contract: Contract, protocols: Sequence[str]) -> RoadRegion | None:
    """Return the one region that protocols ask for, found by a bundle's classes; None where no protocol asks for one.

    Raises ConfigError for a bundle without the region's classes, and for protocols of different regions.
    """
    regions = [region for region in dict.fromkeys(protocol(name).road_region for name in protocols) if region]
    if len(regions) > 1:
        raise ConfigError(f"protocols limit alarms to {' and '.join(map(repr, regions))}; expected one road region")
    return road_region(regions[0], contract) if regions else None


@dataclass(frozen=True)
class TimedOutputs:
    """What a detector said of one view, and how long that took from the frame to the outputs, milliseconds."""

    outputs: Outputs
    inference_ms: float


@dataclass(frozen=True)
class PixelsAbove:
    """Known and anomalous pixels, and how many of each have a score above a threshold."""

    known_px: int = 0
    known_above_px: int = 0
    anomaly_px: int = 0
    anomaly_above_px: int = 0

    def plus(self, other: PixelsAbove) -> PixelsAbove:
        """Return the sums."""
        return PixelsAbove(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class _Row:
    index: int
    result: FrameResult


@dataclass
class Measures:
    """Accumulators of every (score, protocol) and of every view; rows per frame; which frames are in.

    curves: known and anomalous pixels by score. confusion: true and predicted classes by view. mistakes: pixels by
    1 - confidence, label 1 where the predicted class is wrong, by view. above: pixels above the spec's thresholds by
    score and view; in frames without an anomaly mask every labelled pixel is known. seconds: working time, opening
    excluded. roadless: frames of which a view should have been limited to the road, but showed none.
    """

    spec: MeasureSpec
    done: set[int] = field(default_factory=set)
    seconds: float = 0.0
    curves: dict[Key, PixelAccumulator] = field(default_factory=dict)
    confusion: dict[Size, ConfusionMatrix] = field(default_factory=dict)
    mistakes: dict[Size, PixelCurves] = field(default_factory=dict)
    above: dict[tuple[str, Size], PixelsAbove] = field(default_factory=dict)
    rows: dict[Key, list[_Row]] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    times: dict[int, FrameResult] = field(default_factory=dict)
    roadless: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Make what is not given yet."""
        for key in self.spec.keys if self.spec.anomalies else ():
            self.curves.setdefault(key, protocol(key[1]).new_accumulator(exact=self.spec.exact))
            self.rows.setdefault(key, [])
            self.skipped.setdefault(key[1], 0)
        for size in self.spec.sizes:
            if self.spec.num_classes is not None:
                self.confusion.setdefault(size, ConfusionMatrix(self.spec.num_classes))
            if self.spec.calibrated:
                self.mistakes.setdefault(size, PixelCurves(exact=self.spec.exact))
            for score, _ in self.spec.thresholds:
                self.above.setdefault((score, size), PixelsAbove())

    def needs(self, view: View) -> bool:
        """Whether the detector must look at this view: some protocol counts it, or it has labels to compare with."""
        counted = (self.spec.anomalies and view.counts_in(chosen) for chosen in self._protocols(view.size_px))
        return (self.spec.num_classes is not None and view.labels is not None) or any(counted)

    def add(self, index: int, frame_id: str, seen: list[tuple[View, TimedOutputs | None]]) -> None:
        """Count a frame: its views with the detector's outputs, None for a view that is not needed.

        Raises MetricError that names the frame and the score; nothing of the frame is then counted.
        """
        if index in self.done:
            raise MetricError(f"frame {index} ({frame_id!r}) was counted before; give each frame once")
        # All that can be refused is looked at before anything is counted: figures of half a frame are of no use.
        self._require_measurable(frame_id, seen)
        compared = {view.size_px: self._compared(frame_id, view, timed) for view, timed in seen}
        for view, timed in seen:
            self._add_view(index, frame_id, view, timed, compared[view.size_px])
        self.add_times(index, frame_id, seen)

    def add_times(self, index: int, frame_id: str, seen: list[tuple[View, TimedOutputs | None]]) -> None:
        """Note how long a frame took (its first view that was run) and that it is done, without measuring it."""
        for _, timed in seen:
            if timed is not None and index not in self.times:
                self.times[index] = FrameResult(
                    frame_id, 0, 0, inference_ms=timed.inference_ms, network_ms=timed.outputs.network_ms
                )
        self.done.add(index)

    def merge(self, other: Measures) -> Measures:
        """Return the measures of the frames of both. Raises MetricError where specs differ or frames are in both."""
        if self.spec != other.spec or self.done & other.done:
            raise MetricError("cannot merge measures of other scores and protocols, or that share frames")
        return Measures(
            spec=self.spec,
            done=self.done | other.done,
            seconds=self.seconds + other.seconds,
            # The type of an accumulator is its protocol's, so both sides are of one kind.
            curves={key: curves.merge(other.curves[key]) for key, curves in self.curves.items()},  # type: ignore[arg-type]
            confusion={size: matrix.merge(other.confusion[size]) for size, matrix in self.confusion.items()},
            mistakes={size: curves.merge(other.mistakes[size]) for size, curves in self.mistakes.items()},
            above={key: counted.plus(other.above[key]) for key, counted in self.above.items()},
            rows={key: sorted(rows + other.rows[key], key=lambda row: row.index) for key, rows in self.rows.items()},
            skipped={name: count + other.skipped[name] for name, count in self.skipped.items()},
            times=dict(sorted((self.times | other.times).items())),
            roadless=self.roadless | other.roadless,
        )

    def frame_results(self, key: Key) -> tuple[FrameResult, ...]:
        """Return the frames of one (score, protocol) in the dataset's order."""
        return tuple(row.result for row in sorted(self.rows.get(key, []), key=lambda row: row.index))

    def save(self, folder: Path) -> None:
        """Write everything to files in an existing, empty folder; the caller makes that atomic."""
        for number, key in enumerate(self.curves):
            self.curves[key].save(folder / f"curves-{number}.npz")
        for number, size in enumerate(self.spec.sizes):
            if size in self.confusion:
                self.confusion[size].save(folder / f"confusion-{number}.npz")
            if size in self.mistakes:
                self.mistakes[size].save(folder / f"mistakes-{number}.npz")
        plain: dict[str, Any] = {
            "done": sorted(self.done),
            "seconds": self.seconds,
            "skipped": self.skipped,
            "above": [astuple(counted) for counted in self.above.values()],
            "rows": [[[row.index, asdict(row.result)] for row in self.rows[key]] for key in self.curves],
            "times": [[index, asdict(result)] for index, result in self.times.items()],
            "roadless": sorted(self.roadless),
        }
        (folder / _ROWS_FILE).write_text(json.dumps(plain), encoding="utf-8")

    @classmethod
    def load(cls, spec: MeasureSpec, folder: Path) -> Measures:
        """Read what `save` wrote for the same spec. Raises MetricError, OSError or ValueError for damaged files."""
        empty = cls(spec)
        plain = parse_json((folder / _ROWS_FILE).read_text(encoding="utf-8"))
        numbered = list(enumerate(spec.sizes))
        return cls(
            spec=spec,
            done=set(plain["done"]),
            seconds=plain["seconds"],
            curves={
                key: protocol(key[1]).load_accumulator(folder / f"curves-{number}.npz")
                for number, key in enumerate(empty.curves)
            },
            confusion={s: ConfusionMatrix.load(folder / f"confusion-{n}.npz") for n, s in numbered if empty.confusion},
            mistakes={s: PixelCurves.load(folder / f"mistakes-{n}.npz") for n, s in numbered if empty.mistakes},
            above={key: PixelsAbove(*counts) for key, counts in zip(empty.above, plain["above"], strict=True)},
            rows={
                key: [_Row(index, FrameResult(**result)) for index, result in rows]
                for key, rows in zip(empty.curves, plain["rows"], strict=True)
            },
            skipped=plain["skipped"],
            times={index: FrameResult(**result) for index, result in plain["times"]},
            roadless=set(plain["roadless"]),
        )

    def _protocols(self, size: Size) -> list[Protocol]:
        return [chosen for chosen in map(protocol, self.spec.protocols) if chosen.size_px == size]

    def _require_measurable(self, frame_id: str, seen: list[tuple[View, TimedOutputs | None]]) -> None:
        halves = any(protocol(name).score_dtype == "float16" for name in self.spec.protocols)
        for view, timed in seen:
            if timed is None:
                continue
            names = self.spec.scores if self.spec.anomalies and view.anomaly is not None else ()
            names = names or ((CONFIDENCE_SCORE,) if self.spec.calibrated else ())
            for name in names:
                require_finite(frame_id, name, timed.outputs.scores[name], as_float16=halves)

    def _compared(self, frame_id: str, view: View, timed: TimedOutputs | None) -> ConfusionMatrix | None:
        """Return the frame's own confusion matrix, None where there is nothing to compare."""
        if timed is None or view.labels is None or self.spec.num_classes is None:
            return None
        matrix = ConfusionMatrix(self.spec.num_classes)
        try:
            matrix.add(self._predicted(timed.outputs, view.labels.shape), view.labels)
        except MetricError as error:
            raise MetricError(f"frame {frame_id!r}, labels: {error}") from error
        return matrix

    def _add_view(
        self, index: int, frame_id: str, view: View, timed: TimedOutputs | None, compared: ConfusionMatrix | None
    ) -> None:
        if compared is not None and timed is not None:
            self.confusion[view.size_px] = self.confusion[view.size_px].merge(compared)
            if self.spec.calibrated:
                self._add_mistakes(frame_id, view, timed.outputs)
        if timed is not None:
            self._add_above(view, timed.outputs)
        if not self.spec.anomalies or view.anomaly is None:
            return
        for chosen in self._protocols(view.size_px):
            if timed is None or not view.counts_in(chosen):
                self.skipped[chosen.name] += 1
                continue
            if chosen.road_region is not None and timed.outputs.region is None:
                self.roadless.add(index)
            for score in self.spec.scores:
                self._add_score((score, chosen.name), index, frame_id, view, timed)

    def _add_score(self, key: Key, index: int, frame_id: str, view: View, timed: TimedOutputs) -> None:
        assert view.anomaly is not None
        chosen = protocol(key[1])
        scores = scores_in_protocol(timed.outputs, key, view.anomaly.shape)
        try:
            chosen.add(self.curves[key], scores, view.anomaly)
        except MetricError as error:
            raise MetricError(f"frame {frame_id!r}, score {key[0]!r}, protocol {key[1]!r}: {error}") from error
        auprc, fpr95 = frame_auprc_fpr95(scores.astype(chosen.score_dtype, copy=False), view.anomaly, chosen.fpr_rule)
        result = FrameResult(
            frame_id=frame_id,
            known_px=int(np.count_nonzero(view.anomaly == KNOWN)),
            anomaly_px=int(np.count_nonzero(view.anomaly == ANOMALY)),
            auprc=auprc,
            fpr95=fpr95,
            inference_ms=timed.inference_ms,
            network_ms=timed.outputs.network_ms,
        )
        self.rows[key].append(_Row(index, result))

    def _predicted(self, outputs: Outputs, shape: tuple[int, ...]) -> LabelImage:
        """Return the predicted labels uint8 (H, W) at a size, in the classes of the ground truth."""
        assert outputs.labels is not None
        predicted = resized_labels(outputs.labels, *shape)
        return predicted if self.spec.label_map is None else np.array(self.spec.label_map, np.uint8)[predicted]

    def _add_above(self, view: View, outputs: Outputs) -> None:
        truth = view.anomaly
        if truth is None and view.labels is not None:
            truth = np.where(view.labels == UNLABELLED, VOID, KNOWN).astype(np.uint8)
        if truth is None:
            return
        known, anomaly = truth == KNOWN, truth == ANOMALY
        for score, threshold in self.spec.thresholds:
            above = _scores_of_size(outputs, score, truth.shape) > np.float32(threshold)
            counts = (known, known & above, anomaly, anomaly & above)
            seen = PixelsAbove(*(int(np.count_nonzero(pixels)) for pixels in counts))
            self.above[score, view.size_px] = self.above[score, view.size_px].plus(seen)

    def _add_mistakes(self, frame_id: str, view: View, outputs: Outputs) -> None:
        assert view.labels is not None
        predicted, truth = self._predicted(outputs, view.labels.shape), counted_labels(view.labels)
        wrong = np.where(truth == UNLABELLED, UNLABELLED, predicted != truth).astype(np.uint8)
        try:
            self.mistakes[view.size_px].add(_scores_of_size(outputs, CONFIDENCE_SCORE, wrong.shape), wrong)
        except MetricError as error:
            raise MetricError(f"frame {frame_id!r}, score {CONFIDENCE_SCORE!r}: {error}") from error


def without_times(measures: Measures) -> Measures:
    """Return the measures with every clock reading removed: what must be equal between two ways of running."""
    bare = {
        key: [_Row(row.index, replace(row.result, inference_ms=None, network_ms=None)) for row in rows]
        for key, rows in measures.rows.items()
    }
    return replace(measures, rows=bare, times={}, seconds=0.0)


def require_finite(frame_id: str, name: str, scores: ScoreMap, *, as_float16: bool = False) -> None:
    """Raise MetricError that names frame and score unless scores (H, W) are finite, if asked also as float16."""
    lowest, highest = float(scores.min()), float(scores.max())  # NaN if any is
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        bad = ~np.isfinite(scores)
        first = tuple(int(position) for position in np.argwhere(bad)[0])
        nan_px = int(np.isnan(scores).sum())
        raise MetricError(
            f"frame {frame_id!r}, score {name!r}: {int(bad.sum())} of {scores.size} scores are not finite ({nan_px} "
            f"NaN), the first at (row, column) {first}; expected finite scores: mend what computes them"
        )
    if as_float16 and max(-lowest, highest) > np.finfo(np.float16).max:
        raise MetricError(
            f"frame {frame_id!r}, score {name!r}: scores from {lowest:g} to {highest:g} are not finite as float16, "
            "which protocol 'smiyc' rounds them to; scale them, or choose another protocol"
        )


def scores_in_protocol(outputs: Outputs, key: Key, shape: tuple[int, ...]) -> ScoreMap:
    """Return the scores that a (score, protocol) counts, float32 of the shape (H, W): limited to its region, if any."""
    scores = _scores_of_size(outputs, key[0], shape)
    limited = protocol(key[1]).road_region is not None
    return limited_scores(scores, outputs.region, score_facts(key[0]).lowest) if limited else scores


def _scores_of_size(outputs: Outputs, name: str, shape: tuple[int, ...]) -> ScoreMap:
    height, width = shape
    return resized_scores(outputs.scores[name], height, width)
