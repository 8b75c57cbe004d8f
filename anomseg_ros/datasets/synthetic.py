"""Generated driving scenes as a dataset: `synthetic=SEED:FRAMES`, `SEED:DRIVESxFRAMES`, or a folder of them."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from anomseg_ros.core.labels import CITYSCAPES, ClassInfo
from anomseg_ros.core.problems import FrameProblem
from anomseg_ros.datasets.dataset import Dataset, FileDataset, Found, LabelledFrame
from anomseg_ros.errors import DatasetError
from anomseg_ros.scenes.sequence import TRAIN_KINDS, SyntheticConfig, SyntheticSequence

DEFAULT_FRAMES = 100
SPEC = re.compile(r"(\d+)(?::(\d+)(?:x(\d+))?)?")

# For training: a few frames of many drives. The frames are far enough apart to differ, and nearly all have an anomaly.
TRAINING_INTERVAL_S = 3.0
TRAINING_SCENES = SyntheticConfig(anomaly_probability=1.0, anomaly_kinds=TRAIN_KINDS, anomaly_size_m=(0.35, 2.0))


class SyntheticDataset:
    """Generated frames with train ids and anomaly masks.

    `SEED:FRAMES` is one drive: frames 0 to FRAMES - 1 of the seed's sequence. `SEED:DRIVESxFRAMES` is for training:
    FRAMES frames, three seconds apart, of each drive SEED to SEED + DRIVES - 1. Its anomalies are of TRAIN_KINDS only,
    so that the other kinds remain for evaluation.
    """

    name = "synthetic"
    splits: ClassVar[Mapping[str, int]] = {}
    default_split = ""
    layouts = ("SEED, SEED:FRAMES or SEED:DRIVESxFRAMES, for example 7:100 or 0:400x4; no files are read",)

    def __init__(self, path: str, split: str | None = None) -> None:
        """Parse the specification. path: `SEED`, `SEED:FRAMES`, `SEED:DRIVESxFRAMES` or "" (`0:100`).

        Raises DatasetError.
        """
        match = SPEC.fullmatch(path or "0")
        if match is None or split is not None:
            given = path if split is None else f"{path}:{split}"
            raise DatasetError(f"synthetic: {given!r} is neither SEED:FRAMES, as in 7:100, nor a folder of frames")
        self.path, self.split, self.layout = path, "", "generated"
        self.label_set: str | None = "cityscapes"
        self.classes: tuple[ClassInfo, ...] | None = CITYSCAPES
        self.has_anomalies = True
        self.published_count: int | None = None
        self.problems: tuple[FrameProblem, ...] = ()
        self._seed = int(match[1])
        self._drives = int(match[2]) if match[3] else 1
        self._frames = int(match[3] or match[2] or DEFAULT_FRAMES)
        self._config, self._step = None, 1
        if match[3]:
            self._config, self._step = TRAINING_SCENES, round(TRAINING_INTERVAL_S * TRAINING_SCENES.rate_hz)
        self._count = self._drives * self._frames
        if self._count < 1:
            raise DatasetError(f"synthetic: {path!r} has no frames; expected SEED:FRAMES with at least 1 frame")
        self._local = threading.local()

    def __len__(self) -> int:
        """Return the number of frames."""
        return self._count

    def frame_id(self, index: int) -> str:
        """Return SEED_NUMBER of a frame."""
        seed, number = self._place(index)
        return f"{seed}_{number:06d}"

    def origin(self, index: int) -> str:
        """Return drive and number of a frame, independent of the size of the dataset; see Dataset.origin."""
        scenes = "usual" if self._config is None else "training"
        return f"synthetic, {scenes} scenes: {self.frame_id(index)}"

    def load(self, index: int) -> LabelledFrame:
        """Draw one frame."""
        if not 0 <= index < self._count:
            raise DatasetError(f"synthetic: no frame {index!r}; the dataset has {self._count}")
        seed, number = self._place(index)
        # A sequence caches its layout, so each thread has its own sequence of the drive it reads.
        if getattr(self._local, "seed", None) != seed:
            self._local.seed, self._local.sequence = seed, SyntheticSequence(seed, self._config)
        frame = self._local.sequence.frame(number)
        return LabelledFrame(self.frame_id(index), frame.image, frame.labels, frame.anomaly)

    def _place(self, index: int) -> tuple[int, int]:
        """Return the seed of a frame's drive and its number in that drive."""
        return self._seed + index // self._frames, index % self._frames * self._step

    def __getstate__(self) -> dict[str, object]:
        """Return the state for another process, without the sequences."""
        return {name: value for name, value in self.__dict__.items() if name != "_local"}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Restore the state in another process."""
        self.__dict__.update(state)
        self._local = threading.local()


class _SyntheticFolder(FileDataset):
    name = "synthetic"
    splits: ClassVar[Mapping[str, int]] = {"": 0}
    default_split = ""
    layouts = ("SEED:FRAMES",)

    def __init__(self, path: str, split: str | None = None) -> None:
        super().__init__(path, split)
        self.published_count = None

    def find_official(self, root: Path) -> Found | None:
        """Return None: folders of generated frames are flat."""
        return None


class Synthetic:
    """Opens generated scenes or a folder of them; see SyntheticDataset."""

    splits = SyntheticDataset.splits
    default_split = SyntheticDataset.default_split
    layouts = SyntheticDataset.layouts

    def __new__(cls, path: str, split: str | None = None) -> Dataset:  # type: ignore[misc]  # a choice of two classes
        """Return the dataset in a folder if `path` is one, else generated frames."""
        if path and not SPEC.fullmatch(path) and Path(path).expanduser().is_dir():
            return _SyntheticFolder(path, split)
        return SyntheticDataset(path, split)
