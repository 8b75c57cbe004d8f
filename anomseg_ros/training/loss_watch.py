"""Notices a loss that is not finite, and says which batch it came from."""

from __future__ import annotations

import torch
from torch import Tensor

from anomseg_ros.errors import TrainingError


class LossWatch:
    """Checks losses every few steps: each check makes the processor wait for a GPU."""

    def __init__(self, every: int) -> None:
        self.every = every
        self._waiting: list[tuple[int, tuple[str, ...], Tensor]] = []

    def add(self, step: int, names: tuple[str, ...], loss: Tensor) -> None:
        """Take one batch's loss; raise TrainingError where it or one before it is not finite."""
        self._waiting.append((step, names, loss))
        if len(self._waiting) >= self.every:
            self.check()

    def check(self) -> None:
        """Check all that were taken, before their weights are kept. Raises TrainingError."""
        if not self._waiting:
            return
        finite = torch.isfinite(torch.stack([loss for *_, loss in self._waiting])).tolist()
        for (step, names, loss), good in zip(self._waiting, finite, strict=True):
            if not good:
                raise TrainingError(
                    f"the loss is {float(loss)} at step {step}, frames {', '.join(names)}; the last saved state is "
                    "good: lower optimizer.learning_rate, set optimizer.gradient_clip or use run.precision=32-true, "
                    "in a new folder or with --overwrite"
                )
        self._waiting.clear()
