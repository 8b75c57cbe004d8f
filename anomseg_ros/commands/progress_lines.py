"""Progress of long work on standard error."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from anomseg_ros.commands.startup import announced

if TYPE_CHECKING:  # torch takes seconds to import
    from anomseg_ros.training.status import TrainingStatus

SECONDS_BETWEEN_LINES = 10


class _Bars(Bars):
    """Bars of which the first one ends the wait for a sign of life."""

    def add_task(self, *words: Any, **options: Any) -> TaskID:
        """Add a bar; see the base class."""
        announced()
        return super().add_task(*words, **options)


class ProgressLines:
    """A bar for each job. In a log file, training prints a line every SECONDS_BETWEEN_LINES instead."""

    def __init__(self, *columns: ProgressColumn) -> None:
        """columns: columns after name and bar; by default counts and times."""
        more_columns = columns or (MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self.console = Console(stderr=True)
        self.bars = _Bars(TextColumn("{task.description}"), BarColumn(), *more_columns, console=self.console)
        self._tasks: dict[str, TaskID] = {}
        self._last_line = 0.0

    def __enter__(self) -> ProgressLines:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """Show that `done` of `total` steps are done; a Progress function."""
        self._show(what, what, done, total)

    def tell(self, text: str) -> None:
        """Print a line above the bars."""
        announced()
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    def training(self, run: str, status: TrainingStatus) -> None:
        """Show the status of a training run."""
        if status.stage == "compile":
            self.tell(f"{run}: compiling the network; the first step takes minutes")
            return
        text = f"{run}: {status.stage}"
        if status.loss is not None:
            text += f" loss {status.loss:.3f}"
        if status.miou is not None:
            text += f", best mIoU {status.miou:.1%}"
        if status.seconds_left is not None:
            text += f", {duration(status.seconds_left)} left"
        if self.console.is_terminal:
            self._show(f"{run}: {status.stage}", text, status.done, status.total)
        elif status.stage != "decode" and (
            status.done == status.total or time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES
        ):
            self._last_line = time.monotonic()
            self.tell(f"{time.strftime('%H:%M:%S')} {text} {status.done}/{status.total}")

    def _show(self, job: str, text: str, done: int, total: int | None) -> None:
        if job not in self._tasks:
            self._tasks[job] = self.bars.add_task(text, total=total)
        self.bars.update(self._tasks[job], completed=done, total=total, description=text)


def duration(seconds: float) -> str:
    """Return a duration as text, such as `12 min` or `3 h 05 min`."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
