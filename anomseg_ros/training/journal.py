"""What happened in a run: log.jsonl for programs, TensorBoard scalars and picture panels for people."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from anomseg_ros.core.labels import ClassInfo
from anomseg_ros.core.overlay import label_colors
from anomseg_ros.errors import TrainingError
from anomseg_ros.training.stopwatch import Stopwatch
from anomseg_ros.training.validation import Picture, Validation

LOG_FILE = "log.jsonl"
EVERY = 10
"""Steps between two lines."""


class Journal:
    """Writes nothing where folder is None, as in all processes but the first."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._board: SummaryWriter | None = None

    def go_on_from(self, step: int) -> None:
        """Forget what a killed run logged beyond the state that this one continues from."""
        if self.folder is None:
            return
        log = self.folder / LOG_FILE
        if log.is_file():
            kept = [line for line in log.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
            beside = log.with_name(f"{LOG_FILE}.{os.getpid()}.part")
            with self._writing():
                beside.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
                os.replace(beside, log)
        with self._writing():
            self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)

    def step(self, step: int, terms: dict[str, Tensor], rate: float, clock: Stopwatch) -> None:
        """Log one step's loss terms, learning rate and where its time went, now and then."""
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

    def validation(self, step: int, found: Validation, classes: tuple[ClassInfo, ...]) -> None:
        """Log mIoU, IoU per class, and a panel of frames: image, truth, prediction."""
        if self.folder is None:
            return
        # NaN, of a class that is nowhere to be seen, is no JSON.
        pairs = zip(classes, found.iou, strict=True)
        iou = {info.name: None if math.isnan(value) else round(value, 5) for info, value in pairs}
        self._line({"step": step, "miou": found.miou, "pixel_accuracy": found.pixel_accuracy, "iou": iou})
        self._scalar("validation/miou", found.miou, step)
        for name, share in iou.items():
            if share is not None:
                self._scalar(f"iou/{name}", share, step)
        if self._board is not None:
            for index, picture in enumerate(found.pictures):
                panel = _panel(picture, classes)
                with self._writing():
                    self._board.add_image(f"validation/{index}", panel, step, dataformats="HWC")

    def flush(self) -> None:
        """Put on disk what TensorBoard still holds back, before a state is saved that goes on behind it."""
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
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # half a line, cut by the kill


def _panel(picture: Picture, classes: tuple[ClassInfo, ...]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return image, truth and prediction side by side, uint8 (H, 3 W, 3)."""
    colors = np.zeros((256, 3), np.uint8)
    for info in classes:
        colors[info.train_id] = info.color
    return np.hstack([picture.image, label_colors(picture.truth, colors), label_colors(picture.predicted, colors)])
