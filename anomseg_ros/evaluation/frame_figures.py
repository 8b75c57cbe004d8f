"""Exact figures of a single frame, with the anomalous scores as the only thresholds.

Sorting both kinds of scores and searching the anomalous ones among the known takes a few milliseconds for 512x1024
pixels. An accumulator per frame would take several times as long and give the same numbers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from anomseg_ros.core.types import LabelImage
from anomseg_ros.metrics.curve import FprRule, ScoreCurve
from anomseg_ros.metrics.pixel_curves import ANOMALY, KNOWN
from anomseg_ros.metrics.smiyc_pixels import sorted_scores


def frame_auprc_fpr95(
    scores: npt.NDArray[np.floating], labels: LabelImage, rule: FprRule
) -> tuple[float | None, float | None]:
    """Return AuPRC and FPR95 of one frame, finite scores (H, W) and labels 0/1/other; None without both kinds."""
    known, anomaly = sorted_scores(scores[labels == KNOWN]), sorted_scores(scores[labels == ANOMALY])
    if known.size == 0 or anomaly.size == 0:
        return None, None
    curve = _curve_at_anomalies(known, anomaly)
    return curve.average_precision().value, curve.fpr_at_recall(0.95, rule).value


def _curve_at_anomalies(known: npt.NDArray[np.floating], anomaly: npt.NDArray[np.floating]) -> ScoreCurve:
    """Return the curve at the distinct anomalous scores, from sorted scores.

    Each has two points: just above it, where the flat part before its rise ends, and at it. Other thresholds move along
    flat parts only, where neither figure changes.
    """
    thresholds, first = np.unique(anomaly, return_index=True)
    found = (anomaly.size - first)[::-1]
    alarms_above = (known.size - np.searchsorted(known, thresholds, side="right"))[::-1]
    alarms = (known.size - np.searchsorted(known, thresholds, side="left"))[::-1]
    found_above = np.concatenate([[0], found[:-1]])
    last = [[anomaly.size], [known.size]]
    return ScoreCurve(
        thresholds=np.concatenate([np.repeat(thresholds[::-1].astype(np.float64), 2), [-np.inf]]),
        true_positives=np.concatenate([np.stack([found_above, found], axis=1).reshape(-1), last[0]]),
        false_positives=np.concatenate([np.stack([alarms_above, alarms], axis=1).reshape(-1), last[1]]),
    )
