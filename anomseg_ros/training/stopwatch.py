"""Where a training step's time goes: waiting for frames, forward, backward, updating weights, and the rest."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Seconds per named part since `reset`. On a GPU parts are timed to the end of their kernels only when `exact`.

    exact: wait for the device at the end of each part; slows training down, for measuring only.
    """

    def __init__(self, device: torch.device, exact: bool = False) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.steps = 0
        self._before = {"wait": 0.0, "step": 0.0}
        self._exact = exact and device.type == "cuda"
        self._last = time.perf_counter()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Add the time of a with-block to a part."""
        started = time.perf_counter()
        try:
            yield
        finally:
            if self._exact:
                torch.cuda.synchronize()
            self.seconds[part] += time.perf_counter() - started

    def lap(self) -> float:
        """Return the seconds since the last lap and count them as one step's."""
        now = time.perf_counter()
        lap, self._last = now - self._last, now
        self.seconds["step"] += lap
        self.steps += 1
        return lap

    def shares(self) -> dict[str, float]:
        """Return of the steps' time: waited for frames, and overhead, all beyond forward and backward but validation.

        overhead is relative to forward and backward: (step - validate) / (forward + backward) - 1.
        """
        parts = self.seconds
        step = parts["step"] - parts["validate"]
        core = parts["forward"] + parts["backward"]
        return {"waited": parts["wait"] / max(step, 1e-9), "overhead": step / max(core, 1e-9) - 1.0}

    def waited(self) -> float | None:
        """Return the share of all steps' time, also before `reset`, that was waited for frames; None without steps."""
        waited, step = (self._before[part] + self.seconds[part] for part in ("wait", "step"))
        step -= self.seconds["validate"]
        return waited / step if step > 0 else None

    def reset(self) -> None:
        """Begin anew."""
        self._before["wait"] += self.seconds["wait"]
        self._before["step"] += self.seconds["step"] - self.seconds["validate"]
        self.seconds.clear()
        self.steps = 0
