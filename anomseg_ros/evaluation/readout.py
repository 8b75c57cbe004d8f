"""Read results off measures: figures, curves to draw, times, and notes on what was not measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from anomseg_ros.core.bundle import Contract
from anomseg_ros.core.thresholds import Threshold
from anomseg_ros.evaluation.measures import Key, Measures
from anomseg_ros.evaluation.results import AtThreshold, Components, Curves, FrameResult, Result
from anomseg_ros.metrics.curve import ScoreCurve
from anomseg_ros.metrics.pixel_curves import PixelCurves
from anomseg_ros.metrics.protocols import PixelAccumulator, protocol
from anomseg_ros.scores import score_facts

HISTOGRAM_BINS = 100
RELIABILITY_BINS = 15
"""M of Guo et al., ICML 2017."""

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Identity:
    """What the results belong to. bundle, dataset: names in the table; backend: the one in use.

    thresholds: those of the scores that have a calibrated one.
    """

    bundle: str
    dataset: str
    contract: Contract
    backend: str
    class_names: tuple[str, ...] = ()
    workers: int = 1
    thresholds: Mapping[str, Threshold] = field(default_factory=dict)


@dataclass(frozen=True)
class Reliability:
    """ECE and the points of the reliability diagram: mean probability, share true and share of pixels per bin."""

    ece: float
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    share: tuple[float, ...]


def read_results(
    measures: Measures, identity: Identity, components: dict[Key, Components] | None = None, notes: Sequence[str] = ()
) -> tuple[Result, ...]:
    """Return one Result per (score, protocol). components: SegmentMeIfYouCan's, for its protocol."""
    return tuple(_read(key, measures, identity, components or {}, notes) for key in measures.spec.keys)


def timing(values_ms: Sequence[float | None]) -> dict[str, float] | None:
    """Return mean, p50, p95 and p99 of the times that were taken, milliseconds; None without any."""
    taken = [value for value in values_ms if value is not None]
    if not taken:
        return None
    percentiles = np.percentile(taken, PERCENTILES)
    named = {f"p{p}": float(v) for p, v in zip(PERCENTILES, percentiles, strict=True)}
    return {"mean": float(np.mean(taken)), **named}


def reliability(
    accumulator: PixelCurves, *, score_is_probability_of_anomaly: bool, bins: int = RELIABILITY_BINS
) -> Reliability | None:
    """Return the calibration error of the pixels counted (Guo et al., eq. 2 and 3); None where there are none.

    With `score_is_probability_of_anomaly` the outcome is the label 1; else the probability is 1 - score, the confidence
    in a class, and the outcome is the label 0 (right). Read off the counts per score, whose bins are finer than 1e-5.
    """
    curve = accumulator.curve()
    anomaly, known = _counts(curve)
    if anomaly.sum() + known.sum() == 0:
        return None
    lowest = curve.thresholds
    probability = lowest if score_is_probability_of_anomaly else 1.0 - lowest
    true = anomaly if score_is_probability_of_anomaly else known
    pixels = anomaly + known
    index = np.clip(np.ceil(probability * bins).astype(np.int64) - 1, 0, bins - 1)
    in_bin = np.bincount(index, weights=pixels, minlength=bins)
    true_in_bin = np.bincount(index, weights=true, minlength=bins)
    probability_in_bin = np.bincount(index, weights=pixels * probability, minlength=bins)
    used = in_bin > 0
    total = float(in_bin.sum())
    return Reliability(
        ece=float(np.abs(true_in_bin - probability_in_bin).sum() / total),
        confidence=_floats(probability_in_bin[used] / in_bin[used]),
        accuracy=_floats(true_in_bin[used] / in_bin[used]),
        share=_floats(in_bin[used] / total),
    )


def _read(
    key: Key, measures: Measures, identity: Identity, components: dict[Key, Components], notes: Sequence[str]
) -> Result:
    score, name = key
    figures, noted = _pixel_figures(key, measures)
    if protocol(name).road_region is None:
        size = protocol(name).size_px
        calibrated, at_threshold = _calibration(key, measures), _at_threshold(measures, identity, score, size)
        semantic, semantic_notes = _semantic_figures(measures, size, identity)
    else:  # labels, probabilities and pixels above the threshold are not limited to a region
        calibrated, at_threshold, semantic, semantic_notes = None, None, {"miou": None}, _roadless(measures)
    frames = measures.frame_results(key)
    timed = frames or tuple(measures.times.values())
    inference = timing([frame.inference_ms for frame in timed])
    network = timing([frame.network_ms for frame in timed])
    return Result(
        bundle=identity.bundle,
        dataset=identity.dataset,
        score=score,
        protocol=name,
        frames=len(timed),
        frames_skipped=measures.skipped.get(name, 0),
        components=components.get(key),
        at_threshold=at_threshold,
        ece=None if calibrated is None else calibrated.ece,
        inference_ms=inference,
        network_ms=network,
        wall_ms=measures.seconds * 1e3 / len(measures.times) / identity.workers if measures.times else None,
        bundle_sha256=identity.contract.program_sha256 or None,
        network=identity.contract.network,
        precision=identity.contract.precision,
        backend=identity.backend,
        curves=_points(measures.curves.get(key), calibrated, drawable=figures["auprc"] is not None),
        per_frame=frames,
        notes=(*notes, *noted, *semantic_notes),
        **figures,
        **semantic,
    )


def _pixel_figures(key: Key, measures: Measures) -> tuple[dict[str, Any], list[str]]:
    accumulator = measures.curves.get(key)
    known, anomaly = (0, 0) if accumulator is None else (accumulator.known_px, accumulator.anomaly_px)
    figures: dict[str, Any] = dict.fromkeys(("auprc", "fpr95", "auroc"))
    figures |= {"known_px": known, "anomaly_px": anomaly}
    if accumulator is None:
        return figures, []
    if known == 0 or anomaly == 0:
        return figures, [f"AuPRC, FPR95 and AUROC are not measured: {known} known and {anomaly} anomaly pixels"]
    read = protocol(key[1]).read(accumulator)
    figures |= {
        "auprc": read.auprc,
        "fpr95": read.fpr95,
        "auroc": read.auroc,
        "auprc_error": read.auprc_bound,
        "fpr95_error": read.fpr95_bound,
        "auroc_error": read.auroc_bound,
        "best_f1": read.best_f1,
        "best_f1_threshold": read.best_f1_threshold,
    }
    return figures, []


def _roadless(measures: Measures) -> list[str]:
    count = len(measures.roadless)
    told = f"no road was found in {count} of {len(measures.done)} frames: there, scores are not limited to it"
    return [told] if count else []


def _semantic_figures(
    measures: Measures, size: tuple[int, int] | None, identity: Identity
) -> tuple[dict[str, Any], list[str]]:
    matrix = measures.confusion.get(size)
    if matrix is None:
        return {"miou": None}, []
    if matrix.counts.sum() == 0:
        return {"miou": None}, ["mIoU is not measured: no pixel has a label of a known class"]
    read = matrix.metrics()
    named = zip(identity.class_names, read.iou, strict=True)
    return {"miou": read.miou, "iou": {name: value for name, value in named if np.isfinite(value)}}, []


def _at_threshold(
    measures: Measures, identity: Identity, score: str, size: tuple[int, int] | None
) -> AtThreshold | None:
    threshold, counted = identity.thresholds.get(score), measures.above.get((score, size))
    if threshold is None or counted is None or counted.known_px + counted.anomaly_px == 0:
        return None
    return AtThreshold(
        threshold=threshold.value,
        source=threshold.source,
        fpr=counted.known_above_px / counted.known_px if counted.known_px else None,
        tpr=counted.anomaly_above_px / counted.anomaly_px if counted.anomaly_px else None,
    )


def _calibration(key: Key, measures: Measures) -> Reliability | None:
    """Return the calibration of a probability against anomaly masks or labels; other scores have none."""
    score, name = key
    accumulator = measures.curves.get(key)
    event = score_facts(score).probability_of
    if event == "anomaly" and isinstance(accumulator, PixelCurves) and accumulator.anomaly_px:
        return reliability(accumulator, score_is_probability_of_anomaly=True)
    mistakes = measures.mistakes.get(protocol(name).size_px)
    if event == "mistake" and mistakes is not None:
        return reliability(mistakes, score_is_probability_of_anomaly=False)
    return None


def _points(accumulator: PixelAccumulator | None, calibrated: Reliability | None, *, drawable: bool) -> Curves:
    if accumulator is None or not drawable:
        recall = precision = fpr = tpr = np.empty(0)
        edges, known, anomaly = np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64)
    else:
        curve = accumulator.curve()
        recall, precision = curve.precision_recall_points()
        fpr, tpr = curve.roc_points()
        edges, known, anomaly = _histogram(curve)
    return Curves(
        recall=_floats(recall),
        precision=_floats(precision),
        fpr=_floats(fpr),
        tpr=_floats(tpr),
        histogram_edges=_floats(edges),
        histogram_known=tuple(int(n) for n in known),
        histogram_anomaly=tuple(int(n) for n in anomaly),
        reliability_confidence=() if calibrated is None else calibrated.confidence,
        reliability_accuracy=() if calibrated is None else calibrated.accuracy,
        reliability_share=() if calibrated is None else calibrated.share,
    )


def _histogram(curve: ScoreCurve) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    anomaly, known = _counts(curve)
    lowest, highest = float(curve.thresholds.min()), float(curve.thresholds.max())
    edges = np.linspace(lowest, highest if highest > lowest else lowest + 1.0, HISTOGRAM_BINS + 1)
    index = np.clip(np.searchsorted(edges, curve.thresholds, side="right") - 1, 0, HISTOGRAM_BINS - 1)
    # Weighted sums of whole numbers below 2^53 are exact in float64.
    known_px = np.bincount(index, weights=known, minlength=HISTOGRAM_BINS).astype(np.int64)
    anomaly_px = np.bincount(index, weights=anomaly, minlength=HISTOGRAM_BINS).astype(np.int64)
    return edges, known_px, anomaly_px


def _counts(curve: ScoreCurve) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the anomalous and the known pixels at each threshold alone."""
    return np.diff(curve.true_positives, prepend=0), np.diff(curve.false_positives, prepend=0)


def _floats(values: npt.NDArray[np.floating]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def worst_first(frames: Sequence[FrameResult]) -> list[FrameResult]:
    """Return frames by their own AuPRC, lowest first; frames without one are left out."""
    measured = [frame for frame in frames if frame.auprc is not None]
    return sorted(measured, key=lambda frame: (frame.auprc, frame.frame_id))
