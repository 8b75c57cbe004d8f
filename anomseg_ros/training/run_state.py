"""The state of a run in one file: weights, averaged weights, objective, optimizer and position."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomseg_ros.core.schema import from_plain
from anomseg_ros.core.staging import replace_bytes
from anomseg_ros.errors import CheckpointError, ConfigError, TrainingError, first_line

STATE_FILE = "state.pt"


@dataclass(frozen=True)
class Position:
    """The progress of a run."""

    step: int = 0  # optimizer steps done
    seconds: float = 0.0
    best_miou: float | None = None
    best_step: int = 0
    worse: int = 0  # validations since the best one
    processes: int = 1  # processes that share a step; the frames of a step depend on it
    source_layout: str | None = None  # source of the first weights, see SegmentationNetwork.source_layout


class Average:
    """Exponential moving average of a network's weights and of its norms' statistics.

    The decay starts smaller, at (1 + t) / (10 + t), so that the random start is forgotten soon (as in TensorFlow's
    ExponentialMovingAverage).
    """

    def __init__(self, network: nn.Module, average: nn.Module, decay: float) -> None:
        self.decay = decay
        self._current, self._averaged = _values(network, True), _values(average, True)
        self._counters = list(zip(_values(network, False), _values(average, False), strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after optimizer step number `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averaged, self._current, 1.0 - decay)
        for current, counter in self._counters:
            counter.copy_(current)


def _values(network: nn.Module, floating: bool) -> list[Tensor]:
    return [value for value in network.state_dict().values() if value.is_floating_point() == floating]


def save_state(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    position: Position,
    precision: dict[str, Any] | None = None,
) -> None:
    """Replace the state in one step: a kill at any moment leaves the old or the new state.

    Args:
        folder: the run's folder.
        modules: modules with a state by name: "network", "objective" and, if there is one, "average".
        optimizer: the optimizer of all parameters that train.
        position: the run's progress.
        precision: the state of float16's loss scaling; empty or None for other precisions.

    Raises:
        TrainingError: the disk is full, or the file cannot be written.
    """
    content = {
        **{name: module.state_dict() for name, module in modules.items()},
        "optimizer": optimizer.state_dict(),
        "position": asdict(position),
        "precision": precision or {},
    }
    # Through memory, because torch's file writer does not report a full disk.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    try:
        replace_bytes(folder / STATE_FILE, buffer.getbuffer())
    except OSError as error:
        full = "the disk is full" if error.errno == errno.ENOSPC else str(error)
        raise TrainingError(
            f"cannot save the run's state in {folder}: {full}; the last saved state is whole: free space and continue "
            "with --resume"
        ) from error


def load_state(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    load_precision: Callable[[dict[str, Any]], None] | None = None,
) -> Position:
    """Load the folder's state into modules and optimizer, and return the position.

    Args:
        folder: the run's folder.
        modules: as for `save_state`.
        optimizer: as for `save_state`.
        load_precision: receives `save_state`'s precision, unless it was empty.

    Raises:
        CheckpointError: the state is damaged or belongs to another run.
    """
    path = folder / STATE_FILE
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way
        raise CheckpointError(f"{path} is damaged ({first_line(error)}); start afresh with --overwrite") from error
    try:
        for name, module in modules.items():
            module.load_state_dict(content.get(name) or {})  # states of earlier versions have no objective
        optimizer.load_state_dict(content["optimizer"])
        if load_precision is not None and content.get("precision"):
            load_precision(content["precision"])
        return from_plain(Position, content["position"], str(path))
    except (RuntimeError, KeyError, ValueError, AttributeError, TypeError, ConfigError) as error:
        cause = first_line(error)
        raise CheckpointError(f"{path} is no state of this run ({cause}); start afresh with --overwrite") from error
