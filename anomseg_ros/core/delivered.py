"""What a source of data states that it holds, beside what came out of it: the one comparison for bags, videos, folders.

The rule, for all of them: less than stated is an error, and what was delivered is used all the same; more than stated,
or another length of time, is a warning, since nothing is lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Delivered:
    """A number that `source` states of `what`, and the number that was delivered.

    slack: so much less may be rounding of the statement. is_count: whether less means that something is missing.
    remedy: what to do about it.
    """

    source: str
    what: str
    stated: int
    delivered: int
    slack: int = 0
    is_count: bool = True
    remedy: str = ""

    @property
    def is_loss(self) -> bool:
        """Whether something that was stated did not come."""
        return self.is_count and self.delivered + self.slack < self.stated

    @property
    def agrees(self) -> bool:
        """Whether statement and delivery are the same."""
        return self.delivered == self.stated

    def __str__(self) -> str:
        text = f"{self.source} states {self.stated} {self.what}, {self.delivered} could be read"
        return f"{text}; {self.remedy}" if self.remedy and self.is_loss else text


def losses(compared: Iterable[Delivered]) -> tuple[str, ...]:
    """Return those in words where something is missing, each once: errors."""
    return tuple(dict.fromkeys(str(one) for one in compared if one.is_loss))


def deviations(compared: Iterable[Delivered]) -> tuple[str, ...]:
    """Return those in words that differ without a loss, each once: warnings."""
    return tuple(dict.fromkeys(str(one) for one in compared if not one.agrees and not one.is_loss))
