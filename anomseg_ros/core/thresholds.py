"""Thresholds of a score by false-positive rate, and the data that each was calibrated on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from anomseg_ros.errors import ConfigError


@dataclass(frozen=True)
class Threshold:
    """A threshold and its source, in words for logs and diagnostics."""

    value: float
    source: str
    calibrated: bool


@dataclass(frozen=True)
class AlarmThreshold:
    """A threshold that keeps alarms below a number per minute, and the drive that it was calibrated on."""

    threshold: float
    calibrated_on: str


@dataclass(frozen=True)
class ThresholdTable:
    """Thresholds of one score: false-positive rate on known pixels -> score above which a pixel is called anomalous."""

    calibrated_on: str
    by_target_fpr: Mapping[float, float]
    calibrated_elsewhere: Mapping[float, str] | None = None
    """Rate -> what it was calibrated on, where that is not `calibrated_on`."""
    by_target_alarms_per_minute: Mapping[float, AlarmThreshold] | None = None
    """Alarms per minute -> threshold with at most so many; None where no drive was calibrated on."""

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

    def at_alarms(self, alarms_per_minute: float) -> Threshold | None:
        """Return the threshold of the largest number of alarms not above the given one, None where there is none."""
        found = self.by_target_alarms_per_minute or {}
        targets = [target for target in found if target <= alarms_per_minute * (1 + 1e-9)]
        if not targets:
            return None
        chosen = found[max(targets)]
        source = f"target_alarms_per_minute {max(targets):g} on {chosen.calibrated_on}"
        return Threshold(chosen.threshold, source, True)

    def with_alarms(self, thresholds: Mapping[float, AlarmThreshold]) -> ThresholdTable:
        """Return the table with these thresholds by alarms per minute added or replaced."""
        merged = dict(sorted({**(self.by_target_alarms_per_minute or {}), **thresholds}.items()))
        return replace(self, by_target_alarms_per_minute=merged or None)

    def updated(self, calibrated_on: str, by_target_fpr: Mapping[float, float]) -> ThresholdTable:
        """Return the table with these rates added or replaced; the others keep threshold and source."""
        values = dict(sorted({**self.by_target_fpr, **by_target_fpr}.items()))
        sources = {rate: calibrated_on if rate in by_target_fpr else self.source(rate) for rate in values}
        usual = Counter(sources.values()).most_common(1)[0][0]
        others = {rate: source for rate, source in sources.items() if source != usual}
        return ThresholdTable(usual, values, others or None, self.by_target_alarms_per_minute)

    @property
    def falls(self) -> bool:
        """Whether thresholds never rise with the rate; rates calibrated on different sets may break this."""
        values = [self.by_target_fpr[rate] for rate in sorted(self.by_target_fpr)]
        return values == sorted(values, reverse=True)


def alarm_threshold(bundle: str, score: str, table: ThresholdTable | None, alarms_per_minute: float) -> Threshold:
    """Return the threshold of a score for the largest calibrated number of alarms not above the given one.

    bundle: its name, for the error. Raises ConfigError if there is none.
    """
    found = None if table is None else table.at_alarms(alarms_per_minute)
    if found is not None:
        return found
    targets = (table.by_target_alarms_per_minute if table is not None else None) or {}
    known = f"thresholds of {score!r} only for {', '.join(f'{one:g}' for one in targets)}"
    raise ConfigError(
        f"target_alarms_per_minute {alarms_per_minute:g}: bundle {bundle!r} has "
        f"{known if targets else f'no such threshold of {score!r}'}; `anomseg calibrate threshold --frames DRIVE "
        "--target-alarms-per-minute` adds one"
    )
