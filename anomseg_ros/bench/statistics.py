"""Percentiles of times, and ratios of the times of candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PERCENTILES = (50, 95, 99)
CONFIDENCE = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as another candidate: the median over rounds, and its 95 % bootstrap interval."""

    median: float
    low: float
    high: float


def percentiles(times_ms: Sequence[float]) -> dict[str, float]:
    """Return p50, p95, p99, mean, min and max of times, milliseconds, interpolated linearly between samples."""
    array = np.asarray(times_ms, np.float64)
    named = {f"p{p}": float(v) for p, v in zip(PERCENTILES, np.percentile(array, PERCENTILES), strict=True)}
    return {**named, "mean": float(array.mean()), "min": float(array.min()), "max": float(array.max())}


def ratio(reference_ms: Sequence[float], times_ms: Sequence[float], seed: int = 0) -> Ratio:
    """Return reference / times, round by round: above 1 where `times_ms` is the faster one.

    Both sequences have one time per round, in the same order. A busy machine slows both times of a round, so their
    ratio is steadier than the ratio of two medians. The interval is the percentile bootstrap of the median over rounds
    (Efron 1979).
    """
    ratios = np.asarray(reference_ms, np.float64) / np.asarray(times_ms, np.float64)
    picks = np.random.default_rng(seed).integers(0, len(ratios), (RESAMPLES, len(ratios)))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(np.median(ratios[picks], axis=1), (tail, 100 - tail))
    return Ratio(float(np.median(ratios)), float(low), float(high))
