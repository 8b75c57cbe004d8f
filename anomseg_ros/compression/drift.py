"""The drift guard: how far a compressed bundle is from its float parent, on frames that it was not calibrated on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from anomseg_ros.backends import open_detector
from anomseg_ros.backends.options import BackendOptions
from anomseg_ros.core.bundle import Bundle, Contract
from anomseg_ros.core.detector import Detector
from anomseg_ros.core.schema import to_plain
from anomseg_ros.core.types import RgbImage
from anomseg_ros.datasets.base import Dataset
from anomseg_ros.errors import CompressionError
from anomseg_ros.evaluation.evaluate import Request, evaluate
from anomseg_ros.evaluation.results import Result

SAMPLED_PX = 20_000
"""Pixels per frame that ranks are compared on: one more digit would need a hundred times as many."""

ALARM_CHANGE = 0.1
ALARM_FLOOR = 1e-4
"""A threshold stays where the share of pixels above it moves by a tenth of itself at most, or by so little."""

Progress = Callable[[str, int, int], None]
"""Called with (what, frames done, frames in all)."""


@dataclass(frozen=True)
class Tolerance:
    """What a compressed bundle may lose. label_agreement, rank_correlation: the least, 0 to 1. The others: the most
    that AuPRC and mIoU may fall and FPR95 may rise, in points (hundredths)."""

    label_agreement: float = 0.97
    rank_correlation: float = 0.98
    auprc_points: float = 1.0
    fpr95_points: float = 1.0
    miou_points: float = 1.0


@dataclass(frozen=True)
class ScoreDrift:
    """Spearman's rank correlation of one score over pixels of all held-out frames, and its largest difference."""

    rank_correlation: float
    max_difference: float


@dataclass(frozen=True)
class Drift:
    """What compressing changed. datasets: name -> measure -> (before, after), fractions. frames: held-out ones.

    alarms: score -> rate -> share of held-out pixels above the parent's threshold (before, after).
    """

    frames: int
    calibration_frames: int
    label_agreement: float
    scores: Mapping[str, ScoreDrift]
    datasets: Mapping[str, Mapping[str, tuple[float, float]]]
    tolerance: Tolerance
    alarms: Mapping[str, Mapping[float, tuple[float, float]]] = field(default_factory=dict)
    accepted: bool = False

    def excesses(self) -> list[str]:
        """Return what is beyond the tolerance, in words; empty where everything holds."""
        limits = self.tolerance
        found = []
        if self.label_agreement < limits.label_agreement:
            found.append(
                f"labels agree in {self.label_agreement:.2%} of the pixels (at least {limits.label_agreement:.2%})"
            )
        for name, score in self.scores.items():
            # A score that is constant has no ranks: NaN is beyond any tolerance.
            if not score.rank_correlation >= limits.rank_correlation:
                found.append(
                    f"score {name!r} has rank correlation {score.rank_correlation:.4f} "
                    f"(at least {limits.rank_correlation:g})"
                )
        points = {"auprc": limits.auprc_points, "fpr95": limits.fpr95_points, "miou": limits.miou_points}
        for dataset, measures in self.datasets.items():
            for measure, (before, after) in measures.items():
                lost = 100 * (after - before if measure == "fpr95" else before - after)
                if lost > points[measure]:
                    found.append(
                        f"{measure} on {dataset} went from {100 * before:.2f} to {100 * after:.2f} "
                        f"(at most {points[measure]:g} points worse)"
                    )
        return found

    def plain(self) -> dict[str, Any]:
        """Return the drift as bundle.yaml has it."""
        plain: dict[str, Any] = to_plain(self)
        return plain


def measure_drift(
    parent: Bundle,
    child: Bundle,
    frames: Sequence[RgbImage],
    datasets: Sequence[str | Dataset] = (),
    tolerance: Tolerance | None = None,
    *,
    calibration_frames: int = 0,
    child_backend: str = "onnxruntime",
    allow_partial: bool = False,
    options: BackendOptions | None = None,
    child_options: BackendOptions | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Drift:
    """Compare a compressed bundle with its parent on frames, uint8 (H, W, 3) RGB, and on labelled datasets.

    child_options: of the child's backend, those of the parent's where not given.
    Raises CompressionError without frames, and the evaluation's errors for datasets.
    """
    if not frames:
        raise CompressionError("the drift cannot be measured without held-out frames; give more frames")
    options = options or BackendOptions()
    child_options = child_options or options
    before, after = open_detector(parent, options=options), open_detector(child, child_backend, child_options)
    try:
        compared = _Compared(parent.contract, child.contract)
        for index, frame in enumerate(frames):
            compared.add(before, after, frame)
            progress("drift on held-out frames", index + 1, len(frames))
    finally:
        before.close()
        after.close()
    runs = ("before", parent, "onnxruntime", options), ("after", child, child_backend, child_options)
    return Drift(
        len(frames),
        calibration_frames,
        round(compared.agreement(), 5),
        compared.scores(),
        _dataset_drift(runs, datasets, allow_partial, progress) if datasets else {},
        tolerance or Tolerance(),
        compared.alarms(),
    )


QUANTIZED_REMEDY = "calibrate on more frames of the usual scenes, leave more layers in float"
"""What helps where quantizing cost too much."""


def require(drift: Drift, accept: bool = False, remedy: str = QUANTIZED_REMEDY) -> Drift:
    """Return the drift marked as accepted; raise CompressionError that says what is beyond the tolerance by how much,
    and the remedy, unless `accept`."""
    excesses = drift.excesses()
    if excesses and not accept:
        raise CompressionError(
            f"the compressed bundle is too far from its parent: {'; '.join(excesses)}. Nothing was written; "
            f"{remedy}, or pass --accept-drift"
        )
    return replace(drift, accepted=True)


def compressed_contract(
    parent: Bundle, precision: str, method: str, settings: Mapping[str, Any], drift: Drift
) -> Contract:
    """Return the parent's contract for a compressed bundle, with what was done and what it cost.

    Of a parent that was compressed itself, what was done and what that cost is kept below `parent`. Thresholds whose
    rate of alarms moved are left out, since they would promise a rate they do not keep; what was measured of the
    parent's quality is not the child's.
    """
    before = parent.contract.compression
    compression: dict[str, Any] = {
        "method": f"{before['method']}; then {method}" if "method" in before else method,
        "parent": {"name": parent.contract.name, "sha256": parent.contract.program_sha256},
        "settings": to_plain(settings),
        "drift": drift.plain(),
    }
    if "method" in before:
        compression["parent"]["compression"] = dict(before)
    thresholds = {
        name: table for name, table in parent.contract.thresholds.items() if keeps_alarms(drift.alarms.get(name, {}))
    }
    return replace(parent.contract, precision=precision, thresholds=thresholds, quality={}, compression=compression)


def with_original(contract: Contract, original: Bundle, whole: Drift) -> Contract:
    """Return the contract of a bundle made in two steps with the drift of both together.

    whole: from the bundle that the first step started with, measured on frames; what labelled datasets gave follows
    from the drifts of both steps.
    """
    second = contract.compression["drift"]["datasets"]
    first = contract.compression["parent"]["compression"]["drift"]["datasets"]
    datasets = {
        name: {m: (first[name][m][0], after) for m, (_, after) in measures.items() if m in first[name]}
        for name, measures in second.items()
        if name in first
    }
    drift = {**whole.plain(), "datasets": to_plain(datasets)}
    # No bounds of its own: each step was held to its own.
    kept = {name: drift[name] for name in ("frames", "label_agreement", "scores", "datasets")}
    entry = {"name": original.contract.name, "sha256": original.contract.program_sha256, "drift": kept}
    return replace(contract, compression={**contract.compression, "original": entry})


def keeps_alarms(alarms: Mapping[float, tuple[float, float]]) -> bool:
    """Whether the share of pixels above each of a score's thresholds stayed what it was."""
    return all(abs(after - before) <= max(ALARM_CHANGE * before, ALARM_FLOOR) for before, after in alarms.values())


class _Compared:
    """Sums over the frames seen so far."""

    def __init__(self, parent: Contract, child: Contract) -> None:
        self._names = tuple(name for name in parent.score_names if name in child.score_names)
        self._tables = {
            name: parent.thresholds[name].by_target_fpr for name in self._names if name in parent.thresholds
        }
        self._equal: list[float] = []
        self._ranked: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in self._names}
        self._largest = dict.fromkeys(self._names, 0.0)
        self._above: dict[tuple[str, float], list[tuple[float, float]]] = {}

    def add(self, before: Detector, after: Detector, frame: RgbImage) -> None:
        """Compare two detectors on one frame."""
        one, two = before.detect(frame, self._names), after.detect(frame, self._names)
        assert one.labels is not None and two.labels is not None
        self._equal.append(float((one.labels == two.labels).mean()))
        for name in self._names:
            pair = np.stack([one.scores[name].reshape(-1), two.scores[name].reshape(-1)])
            self._largest[name] = max(self._largest[name], float(np.abs(pair[0] - pair[1]).max()))
            self._ranked[name].append(pair[:, :: max(1, pair.shape[1] // SAMPLED_PX)])
            for rate, threshold in self._tables.get(name, {}).items():
                shares = float((pair[0] > threshold).mean()), float((pair[1] > threshold).mean())
                self._above.setdefault((name, rate), []).append(shares)

    def agreement(self) -> float:
        """Return the share of pixels with the same label."""
        return float(np.mean(self._equal))

    def scores(self) -> dict[str, ScoreDrift]:
        """Return each score's drift over all frames together."""
        return {
            name: ScoreDrift(
                round(rank_correlation(*np.concatenate(pairs, axis=1)), 5), float(f"{self._largest[name]:.4g}")
            )
            for name, pairs in self._ranked.items()
        }

    def alarms(self) -> dict[str, dict[float, tuple[float, float]]]:
        """Return the mean shares of pixels above each threshold."""
        found: dict[str, dict[float, tuple[float, float]]] = {}
        for (name, rate), shares in self._above.items():
            before, after = np.mean(shares, axis=0)
            found.setdefault(name, {})[rate] = (round(float(before), 6), round(float(after), 6))
        return found


def rank_correlation(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> float:
    """Return Spearman's rank correlation of two flat arrays, ties by their mean rank; NaN where one is constant."""
    ranks = []
    for values in (first, second):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        ends = np.cumsum(counts)
        ranks.append((ends - (counts - 1) / 2)[inverse])
    deviations = [rank - rank.mean() for rank in ranks]
    scale = float(np.sqrt((deviations[0] ** 2).sum() * (deviations[1] ** 2).sum()))
    return float((deviations[0] * deviations[1]).sum()) / scale if scale > 0 else float("nan")


def _dataset_drift(
    runs: Sequence[tuple[str, Bundle, str, BackendOptions]],
    datasets: Sequence[str | Dataset],
    allow_partial: bool,
    progress: Progress,
) -> dict[str, dict[str, tuple[float, float]]]:
    """Return the measures of the parent's default score by protocol `seeds`, where the datasets have them.

    runs: ("before", parent, backend, its options), then the same of the child.
    """
    found = []
    score = runs[0][1].contract.score_names[0]
    for which, bundle, backend, options in runs:
        # All datasets in one request, which tells two of the same name apart.
        request = Request(
            bundles=(Path(bundle.directory),),
            datasets=tuple(datasets),
            scores=(score,),
            allow_partial=allow_partial,
            backend=backend,
            options=options,
        )
        outcome = evaluate(request, lambda what, done, total, which=which: progress(f"{which}: {what}", done, total))  # type: ignore[misc]
        if outcome.errors:
            raise CompressionError(f"the drift could not be measured: {'; '.join(outcome.errors)}")
        found.append(outcome.results)
    return {before.dataset: _changes(before, after) for before, after in zip(*found, strict=True)}


def _changes(before: Result, after: Result) -> dict[str, tuple[float, float]]:
    pairs = {measure: (getattr(before, measure), getattr(after, measure)) for measure in ("auprc", "fpr95", "miou")}
    return {name: (round(pair[0], 5), round(pair[1], 5)) for name, pair in pairs.items() if None not in pair}
