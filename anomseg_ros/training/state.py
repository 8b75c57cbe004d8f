"""What a run keeps so that it can go on: weights, averaged weights, optimizer and where it was, in one file."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomseg_ros.core.schema import from_plain
from anomseg_ros.errors import CheckpointError, ConfigError, TrainingError

STATE_FILE = "state.pt"


@dataclass(frozen=True)
class Position:
    """Optimizer steps done, seconds they took, and what validation found. worse: validations since the best one.

    processes: how many shared a step. Which frames a step takes depends on it. source_layout: what the first weights
    came from, as the network says.
    """

    step: int = 0
    seconds: float = 0.0
    best_miou: float | None = None
    best_step: int = 0
    worse: int = 0
    processes: int = 1
    source_layout: str | None = None


class Average:
    """Exponential moving average of a network's weights; norms' statistics are averaged as well.

    The first steps use a faster decay, (1 + t) / (10 + t), so that the random start is forgotten soon (the warm-up of
    TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, network: nn.Module, average: nn.Module, decay: float) -> None:
        self.decay = decay
        self._current, self._kept = _floats(network), _floats(average)
        self._whole = list(zip(_others(network), _others(average), strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step number `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._kept, self._current, 1.0 - decay)
        for current, kept in self._whole:
            kept.copy_(current)


def _floats(network: nn.Module) -> list[Tensor]:
    return [value for value in network.state_dict().values() if value.is_floating_point()]


def _others(network: nn.Module) -> list[Tensor]:
    return [value for value in network.state_dict().values() if not value.is_floating_point()]


def save_state(
    folder: Path,
    network: nn.Module,
    average: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    position: Position,
    precision: dict[str, Any] | None = None,
) -> None:
    """Write the state beside and rename it: a kill at any moment leaves a whole state. Raises TrainingError.

    precision: the state of float16's loss scaling, empty or None elsewhere.
    """
    content = {
        "network": network.state_dict(),
        "average": None if average is None else average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "position": asdict(position),
        "precision": precision or {},
    }
    beside = folder / f"{STATE_FILE}.{os.getpid()}.part"
    try:
        # Through memory: torch's own file writer does not say that the disk is full.
        buffer = io.BytesIO()
        torch.save(content, buffer)
        beside.write_bytes(buffer.getbuffer())
        os.replace(beside, folder / STATE_FILE)
    except OSError as error:
        beside.unlink(missing_ok=True)
        full = "the disk is full" if error.errno == errno.ENOSPC else str(error)
        raise TrainingError(
            f"cannot save the run's state in {folder}: {full}; the last saved state is whole: free space and continue "
            "with --resume"
        ) from error


def load_state(
    folder: Path,
    network: nn.Module,
    average: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    load_precision: Callable[[dict[str, Any]], None] | None = None,
) -> Position:
    """Fill network, average and optimizer from the folder's state and return its position. Raises CheckpointError.

    load_precision: takes what save_state was given for it.
    """
    path = folder / STATE_FILE
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way
        raise CheckpointError(f"{path} is damaged ({_first_line(error)}); start afresh with --overwrite") from error
    try:
        network.load_state_dict(content["network"], strict=True)
        if average is not None:
            average.load_state_dict(content["average"], strict=True)
        optimizer.load_state_dict(content["optimizer"])
        if load_precision is not None and content.get("precision"):
            load_precision(content["precision"])
        return from_plain(Position, content["position"], str(path))
    except (RuntimeError, KeyError, ValueError, AttributeError, TypeError, ConfigError) as error:
        cause = _first_line(error)
        raise CheckpointError(f"{path} is no state of this run ({cause}); start afresh with --overwrite") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
