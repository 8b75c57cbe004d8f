"""The choice among measured candidates: the most accurate within a time, or the fastest of enough accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anomseg_ros.bench.results import Entry
from anomseg_ros.bench.statistics import PERCENTILES
from anomseg_ros.errors import ConfigError


@dataclass(frozen=True)
class TuneGoal:
    """What is asked for, one of both: the most accurate within max_latency_ms, or the fastest of at least min_auprc
    (0 to 1). percentile: of the latency that counts."""

    max_latency_ms: float | None = None
    min_auprc: float | None = None
    percentile: int = 95

    def __post_init__(self) -> None:
        if (self.max_latency_ms is None) == (self.min_auprc is None):
            given = "both" if self.max_latency_ms is not None else "neither"
            raise ConfigError(f"give either --max-latency-ms or --min-auprc, not {given}")
        if self.max_latency_ms is not None and not self.max_latency_ms > 0:
            raise ConfigError(f"max-latency-ms is {self.max_latency_ms!r}; give milliseconds above 0")
        if self.min_auprc is not None and not 0 < self.min_auprc <= 1:
            raise ConfigError(f"min-auprc is {self.min_auprc!r}; give a fraction above 0 and at most 1, such as 0.2")
        if self.percentile not in PERCENTILES:
            raise ConfigError(f"percentile is {self.percentile!r}; expected one of {', '.join(map(str, PERCENTILES))}")

    @property
    def latency(self) -> str:
        """Name of the percentile that counts."""
        return f"p{self.percentile}"

    @property
    def limit(self) -> str:
        """What a candidate must have, in words."""
        if self.max_latency_ms is not None:
            return f"a {self.latency} of at most {self.max_latency_ms:g} ms"
        return f"an AuPRC of at least {100 * (self.min_auprc or 0):g} %"

    @property
    def words(self) -> str:
        """What was asked, in words."""
        best = "most accurate" if self.max_latency_ms is not None else f"fastest by {self.latency}"
        return f"the {best} with {self.limit}"

    def fits_latency(self, entry: Entry) -> bool:
        """Whether an entry is fast enough, as far as that was asked for."""
        return self.max_latency_ms is None or entry.latency_ms[self.latency] <= self.max_latency_ms

    def fits(self, entry: Entry) -> bool:
        """Whether an entry is what was asked for. One whose accuracy is not known is not."""
        if entry.accuracy is None:
            return False
        return self.fits_latency(entry) and (self.min_auprc is None or entry.accuracy.value >= self.min_auprc)


def choose(entries: Sequence[Entry], goal: TuneGoal) -> Entry | None:
    """Return the best entry that fits, None if none does.

    Within a latency: the most accurate, of equals the fastest. Above an accuracy: the fastest, of equals the most
    accurate.
    """
    fitting = [(entry, entry.accuracy.value) for entry in entries if entry.accuracy is not None and goal.fits(entry)]
    if not fitting:
        return None
    if goal.max_latency_ms is not None:
        return min(fitting, key=lambda pair: (-pair[1], pair[0].latency_ms[goal.latency]))[0]
    return min(fitting, key=lambda pair: (pair[0].latency_ms[goal.latency], -pair[1]))[0]


def nearest(entries: Sequence[Entry], goal: TuneGoal) -> str:
    """Return which entry comes closest to a goal that none reaches, by how much it misses, and what to do."""
    if goal.max_latency_ms is not None:
        fastest = min(entries, key=lambda entry: entry.latency_ms[goal.latency])
        found = f"{goal.latency} {fastest.latency_ms[goal.latency]:.1f} ms"
        remedy = (
            "give smaller --size or --prune with --checkpoint, --frames to quantize by, other bundles by --candidates, "
            "or a higher --max-latency-ms"
        )
        return f"no candidate has {goal.limit}: the nearest is {fastest.title}, {found}; {remedy}"
    known = [(entry.accuracy.value, entry) for entry in entries if entry.accuracy is not None]
    if not known:
        return f"no candidate has {goal.limit}: of none the accuracy could be measured"
    value, best = max(known, key=lambda pair: pair[0])
    remedy = "give larger --size with --checkpoint, better networks by --candidates, or a lower --min-auprc"
    return f"no candidate has {goal.limit}: the nearest is {best.title}, AuPRC {100 * value:.2f} %; {remedy}"
