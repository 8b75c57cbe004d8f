"""What a training run reports while it works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from anomseg_ros.core.progress import Progress


@dataclass(frozen=True)
class TrainingStatus:
    """Progress of a stage: "decode", "compile", "train" or "validate".

    seconds_left: of the whole run, None while unknown.
    """

    stage: str
    done: int
    total: int | None
    loss: float | None = None
    miou: float | None = None
    seconds_left: float | None = None


Report = Callable[[TrainingStatus], None]


def report_to(report: Report) -> Progress:
    """Return the progress callback of stages without a loss."""
    return lambda stage, done, total: report(TrainingStatus(stage, done, total))
