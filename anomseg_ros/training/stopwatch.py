"""The time of a training step: waiting for frames, forward, backward, updating weights, and the rest."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds per named part since `reset`. On a GPU, a part ends when its kernels are started, not when they end."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._before = {"wait": 0.0, "step": 0.0}
        self._last = time.perf_counter()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Add the time of a with-block to a part."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - started

    def lap(self) -> float:
        """Return the seconds since the last lap and add them to the part "step"."""
        now = time.perf_counter()
        lap, self._last = now - self._last, now
        self.seconds["step"] += lap
        return lap

    def shares(self) -> dict[str, float]:
        """Return two shares of the steps' time without validation.

        waited: time waiting for frames / time of steps. overhead: time of steps / (forward + backward) - 1.
        """
        parts = self.seconds
        step = parts["step"] - parts["validate"]
        core = parts["forward"] + parts["backward"]
        return {"waited": parts["wait"] / max(step, 1e-9), "overhead": step / max(core, 1e-9) - 1.0}

    def waited(self) -> float | None:
        """Return the share of all steps' time, also before `reset`, spent waiting for frames; None without steps."""
        waited, step = (self._before[part] + self.seconds[part] for part in ("wait", "step"))
        step -= self.seconds["validate"]
        return waited / step if step > 0 else None

    def reset(self) -> None:
        """Start from zero."""
        self._before["wait"] += self.seconds["wait"]
        self._before["step"] += self.seconds["step"] - self.seconds["validate"]
        self.seconds.clear()
