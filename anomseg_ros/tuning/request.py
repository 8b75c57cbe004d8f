"""The request of a tune, and the listener to its progress."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from anomseg_ros.bench.power import PowerRequest
from anomseg_ros.tuning.choice import TuneGoal


@dataclass(frozen=True)
class TuneRequest:
    """The candidates, the measurements and the output of a tune."""

    bundle: Path  # directory of the source, which is not changed
    goal: TuneGoal
    output: Path
    candidates: tuple[Path, ...] = ()  # directories of other bundles
    checkpoint: Path | None = None  # of the source, for `sizes` and `prune`
    sizes: tuple[tuple[int, int], ...] = ()  # (height, width) at which to export the checkpoint
    prune: tuple[float, ...] = ()  # shares of the channels to remove, at each size
    fine_tune: str | None = None  # training configuration of the pruned networks
    data: str | None = None  # folder of the dataset of `fine_tune`
    quantize: bool | None = None  # whether to make int8 of every float bundle; None: if that is possible
    accept_drift: bool = False  # whether to measure bundles that lost too much
    datasets: tuple[str, ...] = ()
    """Labelled datasets, as NAME=PATH. Without any, labels are compared with the source's."""
    metric: str | None = None  # auprc, miou, or None for the one that the datasets have
    allow_partial: bool = False
    backends: tuple[str, ...] | None = None  # None for all that are installed and run a bundle
    provider: str = "cpu"
    threads: tuple[int, ...] = (1, 0)  # 0 for one per core
    score: str = ""  # empty for each bundle's first
    frames: Path | None = None
    """Folder of camera frames to measure, quantize and prune with; None for drawn road scenes."""
    rounds: int = 30
    memory: bool = True
    power: PowerRequest = field(default_factory=PowerRequest)
    build_engine: bool = False  # whether to build the engines that are missing
    overwrite: bool = False
    state: Path | None = None  # folder of the state, None for one beside the output
    command: str = "anomseg tune"  # command line for the report

    @property
    def bundles(self) -> tuple[Path, ...]:
        """All given bundles, the source first."""
        return (self.bundle, *self.candidates)

    @property
    def state_folder(self) -> Path:
        """Folder of the state from which a killed tune continues."""
        return self.state or self.output.with_name(self.output.name + ".tune")


class Listener(Protocol):
    """Receives the progress of a tune. The listener itself is a Progress."""

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """Receive the progress of a job."""

    def tell(self, text: str) -> None:
        """Receive a text about the next step."""

    def training(self, run: str, now: Any) -> None:
        """Receive the progress of a training run. now: a TrainingStatus."""
