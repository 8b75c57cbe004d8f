"""What a check says: one fact, whether it is good, and what to do."""

from __future__ import annotations

from dataclasses import dataclass, replace

OK, ABSENT, PROBLEM = "ok", "absent", "problem"
STATES = (OK, ABSENT, PROBLEM)
"""ok: works. absent: optional, and not there. problem: does not work, and something of the package needs it."""


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    remedy: what to do, empty where nothing is to be done. area: see CHECKS.
    """

    name: str
    state: str
    text: str
    remedy: str = ""
    area: str = ""

    def of(self, area: str) -> Finding:
        """Return the finding with its area."""
        return replace(self, area=area)
