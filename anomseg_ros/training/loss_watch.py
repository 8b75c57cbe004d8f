"""Detects losses and weights that are not finite, and names the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anomseg_ros.errors import TrainingError


class LossWatch:
    """Checks losses every few steps, because each check makes the processor wait for a GPU."""

    def __init__(self, every: int) -> None:
        self.every = every
        self._waiting: list[tuple[int, tuple[str, ...], Tensor]] = []
        self._last: tuple[int, tuple[str, ...]] = (0, ())

    def add(self, step: int, names: tuple[str, ...], loss: Tensor) -> None:
        """Add one batch's loss; raise TrainingError if it or an earlier one is not finite."""
        self._waiting.append((step, names, loss))
        self._last = (step, names)
        if len(self._waiting) >= self.every:
            self.check()

    def check(self, network: nn.Module | None = None) -> None:
        """Check the losses added since the last check, and the network's weights if given. Raises TrainingError."""
        if self._waiting:
            finite = torch.isfinite(torch.stack([loss for *_, loss in self._waiting])).tolist()
            for (step, names, loss), good in zip(self._waiting, finite, strict=True):
                if not good:
                    raise TrainingError(_message(f"the loss is {float(loss)}", step, names))
            self._waiting.clear()
        if network is not None and not _all_finite(network):
            raise TrainingError(_message("weights are not finite any more", *self._last))


@torch.no_grad()
def _all_finite(network: nn.Module) -> bool:
    # A sum is finite only if all its parts are. An overflow would be a fault, too.
    values = [value for value in network.state_dict().values() if value.is_floating_point()]
    return bool(torch.isfinite(torch.stack([value.double().sum() for value in values])).all())


def _message(what: str, step: int, names: tuple[str, ...]) -> str:
    return (
        f"{what} at step {step}, frames {', '.join(names)}; the last saved state is good: lower "
        "optimizer.learning_rate, set optimizer.gradient_clip or use run.precision=32-true, in a new folder or with "
        "--overwrite"
    )
