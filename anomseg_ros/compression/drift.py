"""The drift guard: measure how far a compressed bundle is from its parent, on frames without calibration frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from anomseg_ros.backends import open_detector
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.core.bundle import Bundle, Contract
from anomseg_ros.core.detector import Detector
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.schema import to_plain
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import CompressionError
from anomseg_ros.evaluation.evaluate import Request, evaluate
from anomseg_ros.evaluation.results import Result

SAMPLED_PX = 20_000
"""Pixels per frame for the rank correlation. One more digit would need a hundred times as many."""

ALARM_CHANGE = 0.1
ALARM_FLOOR = 1e-4
"""A threshold is kept if the share of pixels above it changes by at most a tenth, or by at most ALARM_FLOOR."""


@dataclass(frozen=True)
class Tolerance:
    """What a compressed bundle may lose.

    label_agreement, rank_correlation: lower bounds, 0 to 1. The others: upper bounds for the fall of AuPRC and mIoU and
    for the rise of FPR95, in points (hundredths).
    """

    label_agreement: float = 0.97
    rank_correlation: float = 0.98
    auprc_points: float = 1.0
    fpr95_points: float = 1.0
    miou_points: float = 1.0


TOLERANCES = {
    "fp32": Tolerance(label_agreement=0.995, rank_correlation=0.999),
    "fp16": Tolerance(label_agreement=0.995, rank_correlation=0.995),
    "bf16": Tolerance(label_agreement=0.97, rank_correlation=0.98),
    "int8": Tolerance(label_agreement=0.97, rank_correlation=0.98),
}
"""Precision -> what it may lose: a bundle against its parent, an engine against its bundle.

Float32 loses only the unpooling of near ties. bfloat16 has as many bits of fraction as 8-bit integers have.
"""


@dataclass(frozen=True)
class Guard:
    """How a compressed bundle is judged.

    datasets: labelled frames to measure on, as NAME=PATH. allow_partial: accept fewer or more of them than published.
    accept_drift: write the bundle even if it lost too much. threads: processor threads, 0 for one per core.
    """

    tolerance: Tolerance = field(default_factory=Tolerance)
    datasets: tuple[str, ...] = ()
    allow_partial: bool = False
    accept_drift: bool = False
    threads: int = 0


@dataclass(frozen=True)
class ScoreDrift:
    """Spearman's rank correlation of a score over pixels of all held-out frames, and its largest difference."""

    rank_correlation: float
    max_difference: float


@dataclass(frozen=True)
class Drift:
    """What compressing changed.

    frames: number of held-out frames. datasets: name -> measure -> (before, after), fractions. alarms: score -> rate ->
    share of held-out pixels above the parent's threshold (before, after). accepted: the bundle was written.
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
        """Return a sentence for each tolerance that is exceeded."""
        limits = self.tolerance
        excesses = []
        if self.label_agreement < limits.label_agreement:
            excesses.append(
                f"labels agree in {self.label_agreement:.2%} of the pixels (at least {limits.label_agreement:.2%})"
            )
        for name, score in self.scores.items():
            # A constant score has no ranks; its NaN exceeds any tolerance.
            if not score.rank_correlation >= limits.rank_correlation:
                excesses.append(
                    f"score {name!r} has rank correlation {score.rank_correlation:.4f} "
                    f"(at least {limits.rank_correlation:g})"
                )
        points = {"auprc": limits.auprc_points, "fpr95": limits.fpr95_points, "miou": limits.miou_points}
        for dataset, measures in self.datasets.items():
            for measure, (before, after) in measures.items():
                lost = 100 * (after - before if measure == "fpr95" else before - after)
                if lost > points[measure]:
                    excesses.append(
                        f"{measure} on {dataset} went from {100 * before:.2f} to {100 * after:.2f} "
                        f"(at most {points[measure]:g} points worse)"
                    )
        return excesses

    def plain(self) -> dict[str, Any]:
        """Return the drift in the form of bundle.yaml."""
        plain: dict[str, Any] = to_plain(self)
        return plain


def measure_drift(
    parent: Bundle,
    child: Bundle,
    frames: Sequence[RgbImage],
    guard: Guard | None = None,
    *,
    calibration_frames: int = 0,
    child_backend: str = "onnxruntime",
    child_provider: str = "cpu",
    open_parent: Callable[[], Detector] | None = None,
    open_child: Callable[[], Detector] | None = None,
    progress: Progress = no_progress,
) -> Drift:
    """Compare a compressed bundle with its parent, which runs in ONNX Runtime unless `open_parent` says otherwise.

    Args:
        parent: the bundle before compression.
        child: the compressed bundle.
        frames: held-out frames, uint8 (H, W, 3) RGB of any size.
        guard: labelled datasets and the tolerance; None: frames alone and the default tolerance.
        calibration_frames: number of frames that the child was calibrated on.
        child_backend, child_provider: what runs the child.
        open_parent, open_child: open the two instead, for measuring on frames alone.
        progress: called after each frame.

    Raises:
        CompressionError: there are no frames, or a dataset cannot be evaluated.
    """
    if not frames:
        raise CompressionError("the drift cannot be measured without held-out frames; give more frames")
    guard = guard or Guard()
    options = BackendOptions(threads=guard.threads)
    child_options = BackendOptions(threads=guard.threads, provider=child_provider)
    before = open_parent() if open_parent else open_detector(parent, options=options)
    after = open_child() if open_child else open_detector(child, child_backend, child_options)
    comparison = _Comparison(parent.contract, child.contract)
    with closing(before), closing(after):
        for index, frame in enumerate(frames):
            comparison.add(before, after, frame)
            progress("drift on held-out frames", index + 1, len(frames))
    runs = ("before", parent, "onnxruntime", options), ("after", child, child_backend, child_options)
    datasets = _dataset_drift(runs, guard, progress) if guard.datasets else {}
    agreement, scores, alarms = round(comparison.agreement(), 5), comparison.scores(), comparison.alarms()
    return Drift(len(frames), calibration_frames, agreement, scores, datasets, guard.tolerance, alarms)


class DriftError(CompressionError):
    """A compressed bundle lost more than its tolerance. drift: what was measured."""

    def __init__(self, message: str, drift: Drift) -> None:
        super().__init__(message)
        self.drift = drift


QUANTIZED_REMEDY = "calibrate on more frames of the usual scenes, leave more layers in float"
"""The advice where quantizing lost too much."""


def require(drift: Drift, accept: bool = False, remedy: str = QUANTIZED_REMEDY) -> Drift:
    """Return the drift marked as accepted.

    Raises DriftError with the excesses and the remedy, unless the drift is within the tolerance or `accept`.
    """
    excesses = drift.excesses()
    if excesses and not accept:
        raise DriftError(
            f"the compressed bundle is too far from its parent: {'; '.join(excesses)}. Nothing was written; "
            f"{remedy}, or accept it with `accept_drift`",
            drift,
        )
    return replace(drift, accepted=True)


def compressed_contract(
    parent: Bundle, precision: str, method: str, settings: Mapping[str, Any], drift: Drift
) -> Contract:
    """Return the contract of a compressed bundle: the parent's, with the method, its settings and the drift.

    If the parent was compressed too, its compression goes below `parent`. Thresholds whose alarm rate changed are left
    out, since their stated rate is wrong for the child. So is the quality, which was measured for the parent.

    Args:
        parent: the bundle before this step.
        precision: of the child.
        method: in words.
        settings: of the method.
        drift: from parent to child.
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
    """Return the contract of a bundle made in two steps, with the drift of both steps together.

    whole: the drift from the original bundle, measured on frames. The drift on labelled datasets follows from the
    drifts of both steps.
    """
    second = contract.compression["drift"]["datasets"]
    first = contract.compression["parent"]["compression"]["drift"]["datasets"]
    datasets = {
        name: {m: (first[name][m][0], after) for m, (_, after) in figures.items() if m in first[name]}
        for name, figures in second.items()
        if name in first
    }
    drift = {**whole.plain(), "datasets": to_plain(datasets)}
    # Without bounds: each step was judged by its own.
    measures = {name: drift[name] for name in ("frames", "label_agreement", "scores", "datasets")}
    entry = {"name": original.contract.name, "sha256": original.contract.program_sha256, "drift": measures}
    return replace(contract, compression={**contract.compression, "original": entry})


def keeps_alarms(alarms: Mapping[float, tuple[float, float]]) -> bool:
    """Return whether the share of pixels above each of a score's thresholds stayed nearly the same."""
    return all(abs(after - before) <= max(ALARM_CHANGE * before, ALARM_FLOOR) for before, after in alarms.values())


class _Comparison:
    """The frames compared so far."""

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
        alarms: dict[str, dict[float, tuple[float, float]]] = {}
        for (name, rate), shares in self._above.items():
            before, after = np.mean(shares, axis=0)
            alarms.setdefault(name, {})[rate] = (round(float(before), 6), round(float(after), 6))
        return alarms


def rank_correlation(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> float:
    """Return Spearman's rank correlation of two flat arrays. Ties have their mean rank; a constant array gives NaN."""
    ranks = []
    for values in (first, second):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[inverse])
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.asarray(np.corrcoef(np.stack(ranks)))[0, 1])


def _dataset_drift(
    runs: Sequence[tuple[str, Bundle, str, BackendOptions]],
    guard: Guard,
    progress: Progress,
) -> dict[str, dict[str, tuple[float, float]]]:
    """Return the measures of the parent's default score by the protocol `seeds`.

    runs: ("before", parent, backend, its options), then the same of the child.
    """
    results = []
    score = runs[0][1].contract.score_names[0]
    for which, bundle, backend, options in runs:
        # One request for all datasets gives two of the same name different names.
        request = Request(
            bundles=(Path(bundle.directory),),
            datasets=guard.datasets,
            scores=(score,),
            allow_partial=guard.allow_partial,
            backend=backend,
            options=options,
        )
        outcome = evaluate(request, lambda what, done, total, which=which: progress(f"{which}: {what}", done, total))  # type: ignore[misc]
        if outcome.errors:
            raise CompressionError(f"the drift could not be measured: {'; '.join(outcome.errors)}")
        results.append(outcome.results)
    return {before.dataset: _changes(before, after) for before, after in zip(*results, strict=True)}


def _changes(before: Result, after: Result) -> dict[str, tuple[float, float]]:
    pairs = {measure: (getattr(before, measure), getattr(after, measure)) for measure in ("auprc", "fpr95", "miou")}
    return {name: (round(pair[0], 5), round(pair[1], 5)) for name, pair in pairs.items() if None not in pair}
