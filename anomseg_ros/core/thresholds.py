"""Thresholds of a score by false-positive rate, and the data that each was calibrated on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Threshold:
    """A threshold and its source, in words for logs and diagnostics."""

    value: float
    source: str
    calibrated: bool


@dataclass(frozen=True)
class ThresholdTable:
    """Thresholds of one score: false-positive rate on known pixels -> score above which a pixel is called anomalous."""

    calibrated_on: str
    by_target_fpr: Mapping[float, float]
    calibrated_elsewhere: Mapping[float, str] | None = None
    """Rate -> what it was calibrated on, where that is not `calibrated_on`."""

    def source(self, rate: float) -> str:
        """Return what a rate was calibrated on."""
        return (self.calibrated_elsewhere or {}).get(rate, self.calibrated_on)

    def at(self, target_fpr: float) -> Threshold | None:
        """Return the threshold of the largest rate not above `target_fpr`, None where every rate is above it."""
        rates = [rate for rate in self.by_target_fpr if rate <= target_fpr * (1 + 1e-9)]
        if not rates:
            return None
        rate = max(rates)
        return Threshold(self.by_target_fpr[rate], f"target_fpr {rate:g} on {self.source(rate)}", True)

    def updated(self, calibrated_on: str, by_target_fpr: Mapping[float, float]) -> ThresholdTable:
        """Return the table with these rates added or replaced; the others keep threshold and source."""
        values = dict(sorted({**self.by_target_fpr, **by_target_fpr}.items()))
        sources = {rate: calibrated_on if rate in by_target_fpr else self.source(rate) for rate in values}
        usual = Counter(sources.values()).most_common(1)[0][0]
        others = {rate: source for rate, source in sources.items() if source != usual}
        return ThresholdTable(usual, values, others or None)

    @property
    def falls(self) -> bool:
        """Whether thresholds never rise with the rate; rates calibrated on different sets may break this."""
        values = [self.by_target_fpr[rate] for rate in sorted(self.by_target_fpr)]
        return values == sorted(values, reverse=True)
