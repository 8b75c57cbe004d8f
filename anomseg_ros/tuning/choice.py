"""The choice among measured candidates: the most accurate within a latency, or the fastest with enough accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anomseg_ros.bench.figures import Entry
from anomseg_ros.bench.statistics import PERCENTILES
from anomseg_ros.errors import ConfigError


@dataclass(frozen=True)
class TuneGoal:
    """The goal: the most accurate within max_latency_ms, or the fastest with at least min_auprc (0 to 1).

    percentile: of the latency that counts.
    """

    max_latency_ms: float | None = None
    min_auprc: float | None = None
    percentile: int = 95

    def __post_init__(self) -> None:
        if (self.max_latency_ms is None) == (self.min_auprc is None):
            number = "both" if self.max_latency_ms is not None else "neither"
            raise ConfigError(f"give either `max_latency_ms` or `min_auprc`, not {number}")
        if self.max_latency_ms is not None and not self.max_latency_ms > 0:
            raise ConfigError(f"`max_latency_ms` is {self.max_latency_ms!r}; give milliseconds above 0")
        if self.min_auprc is not None and not 0 < self.min_auprc <= 1:
            raise ConfigError(f"`min_auprc` is {self.min_auprc!r}; give a fraction above 0 and at most 1, such as 0.2")
        if self.percentile not in PERCENTILES:
            raise ConfigError(f"percentile is {self.percentile!r}; expected one of {', '.join(map(str, PERCENTILES))}")

    @property
    def latency(self) -> str:
        """Name of the percentile that counts."""
        return f"p{self.percentile}"

    @property
    def limit(self) -> str:
        """The condition for candidates, in words."""
        if self.max_latency_ms is not None:
            return f"a {self.latency} of at most {self.max_latency_ms:g} ms"
        return f"an AuPRC of at least {100 * (self.min_auprc or 0):g} %"

    @property
    def words(self) -> str:
        """The goal, in words."""
        best = "most accurate" if self.max_latency_ms is not None else f"fastest by {self.latency}"
        return f"the {best} with {self.limit}"

    def fits_latency(self, entry: Entry) -> bool:
        """Return whether an entry is fast enough; True without a limit."""
        return self.max_latency_ms is None or entry.latency_ms[self.latency] <= self.max_latency_ms

    def fits(self, entry: Entry) -> bool:
        """Return whether an entry meets the goal. An entry without an accuracy does not."""
        if entry.accuracy is None:
            return False
        return self.fits_latency(entry) and (self.min_auprc is None or entry.accuracy.value >= self.min_auprc)


def choose(entries: Sequence[Entry], goal: TuneGoal) -> Entry | None:
    """Return the best entry that fits, None if none does.

    Within a latency this is the most accurate, and of equals the fastest. Above an accuracy it is the fastest, and of
    equals the most accurate.
    """
    fitting = [(entry, entry.accuracy.value) for entry in entries if entry.accuracy is not None and goal.fits(entry)]
    if not fitting:
        return None
    if goal.max_latency_ms is not None:
        return min(fitting, key=lambda pair: (-pair[1], pair[0].latency_ms[goal.latency]))[0]
    return min(fitting, key=lambda pair: (pair[0].latency_ms[goal.latency], -pair[1]))[0]


def nearest(entries: Sequence[Entry], goal: TuneGoal) -> str:
    """Return a text about a goal that no entry meets: the nearest entry, its figure, and what to do."""
    if goal.max_latency_ms is not None:
        fastest = min(entries, key=lambda entry: entry.latency_ms[goal.latency])
        latency = f"{goal.latency} {fastest.latency_ms[goal.latency]:.1f} ms"
        remedy = (
            "give smaller sizes or pruned networks with the checkpoint, frames to quantize by, other candidates, or a "
            "higher `max_latency_ms`"
        )
        return f"no candidate has {goal.limit}: the nearest is {fastest.title}, {latency}; {remedy}"
    measured = [(entry.accuracy.value, entry) for entry in entries if entry.accuracy is not None]
    if not measured:
        return f"no candidate has {goal.limit}: the accuracy of no candidate could be measured"
    value, best = max(measured, key=lambda pair: pair[0])
    remedy = "give larger sizes with the checkpoint, better networks as candidates, or a lower `min_auprc`"
    return f"no candidate has {goal.limit}: the nearest is {best.title}, AuPRC {100 * value:.2f} %; {remedy}"
