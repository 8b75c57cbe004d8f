"""The log of a run: log.jsonl for programs, TensorBoard scalars and pictures for people."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from anomseg_ros.core.labels import ClassInfo
from anomseg_ros.core.overlay import label_colors
from anomseg_ros.core.staging import replace_text
from anomseg_ros.core.untrusted_text import parse_json
from anomseg_ros.errors import TrainingError
from anomseg_ros.training.stopwatch import Stopwatch
from anomseg_ros.training.validation import Picture, Validation

LOG_FILE = "log.jsonl"
EVERY = 10
"""Steps between two entries."""


class Journal:
    """The log in a folder. All processes but the first have no folder and write nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._board: SummaryWriter | None = None

    def go_on_from(self, step: int) -> None:
        """Open the log. Remove entries beyond `step`, which a killed run wrote after its last state."""
        if self.folder is None:
            return
        log = self.folder / LOG_FILE
        if log.is_file():
            lines = [line for line in log.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
            with self._writing():
                replace_text(log, "".join(line + "\n" for line in lines))
        with self._writing():
            self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)

    def step(self, step: int, terms: dict[str, Tensor], rate: float, clock: Stopwatch) -> None:
        """Log every tenth step's loss terms, learning rate and shares of time."""
        if self.folder is None or step % EVERY:
            return
        losses = {name: float(value) for name, value in terms.items()}
        shares = clock.shares()
        clock.reset()
        self._line({"step": step, "loss": losses, "learning_rate": rate, **shares})
        for name, value in losses.items():
            self._scalar(f"loss/{name}", value, step)
        self._scalar("learning_rate", rate, step)
        for name, value in shares.items():
            self._scalar(f"time/{name}", value, step)

    def validation(self, step: int, result: Validation, classes: tuple[ClassInfo, ...]) -> None:
        """Log mIoU, IoU per class, and panels of frames: image, truth, prediction."""
        if self.folder is None:
            return
        # The IoU of a class that does not occur is NaN, which JSON does not have.
        pairs = zip(classes, result.iou, strict=True)
        iou = {info.name: None if math.isnan(value) else round(value, 5) for info, value in pairs}
        self._line({"step": step, "miou": result.miou, "pixel_accuracy": result.pixel_accuracy, "iou": iou})
        self._scalar("validation/miou", result.miou, step)
        for name, share in iou.items():
            if share is not None:
                self._scalar(f"iou/{name}", share, step)
        if self._board is not None:
            for index, picture in enumerate(result.pictures):
                panel = _panel(picture, classes)
                with self._writing():
                    self._board.add_image(f"validation/{index}", panel, step, dataformats="HWC")

    def flush(self) -> None:
        """Write TensorBoard's buffered entries, before the state of the same step is saved."""
        if self._board is not None:
            with self._writing():
                self._board.flush()

    def close(self) -> None:
        """Finish the TensorBoard file."""
        if self._board is not None:
            with self._writing():
                self._board.close()

    def _line(self, entry: dict[str, Any]) -> None:
        assert self.folder is not None
        with self._writing(), (self.folder / LOG_FILE).open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")

    def _scalar(self, name: str, value: float, step: int) -> None:
        if self._board is not None:
            with self._writing():
                self._board.add_scalar(name, value, step)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(f"cannot write the log in {self.folder}: {error}; free space and --resume") from error


def _step_of(line: str) -> float:
    try:
        return float(parse_json(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line that a kill cut off


def _panel(picture: Picture, classes: tuple[ClassInfo, ...]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return image, truth and prediction side by side, uint8 (H, 3 W, 3)."""
    colors = np.zeros((256, 3), np.uint8)
    for info in classes:
        colors[info.train_id] = info.color
    return np.hstack([picture.image, label_colors(picture.truth, colors), label_colors(picture.predicted, colors)])
