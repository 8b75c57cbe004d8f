"""What to adapt, on which drive, and how much work to put into it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anomseg_ros.adaptation.float_bundles import require_float
from anomseg_ros.adaptation.norms import NormConfig
from anomseg_ros.adaptation.pasted_drive import objects_of
from anomseg_ros.adaptation.self_labels import SelfLabelConfig
from anomseg_ros.adaptation.self_training import Teacher, TrainingConfig
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.core.bundle import CHECKPOINT_FILE, Bundle, check_target, sha256_of
from anomseg_ros.core.resources import is_shipped, own_checkpoint
from anomseg_ros.core.road_region import RoadRegion
from anomseg_ros.core.schema import to_plain
from anomseg_ros.datasets.dataset import Dataset
from anomseg_ros.datasets.unlabelled_drive import UnlabelledDrive
from anomseg_ros.errors import BundleError, CheckpointError, ConfigError, unknown_name
from anomseg_ros.evaluation.drive import MIN_ALARM_PX
from anomseg_ros.evaluation.drive_thresholds import DriveRequest, split_blocks, without_blocks
from anomseg_ros.outliers.mixture import open_objects

NORMS, SELF = STAGES = ("bn", "self")
"""Stages in their order: statistics of the norms, then self-training."""


THRESHOLD_PART = 5
"""One block of so many that are not held back is for the thresholds."""


@dataclass(frozen=True)
class Level:
    """How much work. rounds: of self-training, each on labels of the round before. frames: of the drive that it labels
    and trains on, spread over the drive."""

    norms: NormConfig = field(default_factory=NormConfig)
    labels: SelfLabelConfig = field(default_factory=SelfLabelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    rounds: int = 1
    frames: int = 60


LEVELS: Mapping[str, Level] = {
    "quick": Level(),
    "full": Level(labels=SelfLabelConfig(scales=(0.75, 1.0, 1.25)), training=TrainingConfig(400), rounds=2, frames=160),
}


@dataclass(frozen=True)
class Split:
    """The frames of a drive, by what they are for.

    adapted: stages learn from them. thresholds: those of an adapted bundle come from them. A network is surer of frames
    that it has learned from, so thresholds of such frames are too low. held_back: they judge the stages.
    """

    adapted: tuple[int, ...]
    thresholds: tuple[int, ...]
    held_back: tuple[int, ...]


@dataclass(frozen=True)
class AdaptRequest:
    """A bundle, a drive of its new road, and where the adapted bundle goes.

    checkpoint: that the bundle was exported from, None for the one that is with it or a shipped one. labels: labelled
    frames of that road; a third is held back. objects: sources of pasted objects. road: where alarms count. target_fpr:
    of the threshold that says what is strange, and at which bundles are compared. command: for the provenance.
    """

    bundle: Bundle
    drive: UnlabelledDrive
    output: Path
    checkpoint: Path | None = None
    stages: tuple[str, ...] = STAGES
    level: Level = field(default_factory=Level)
    labels: Dataset | None = None
    teacher: Teacher | None = None
    objects: tuple[str, ...] = ("procedural",)
    road: RoadRegion | None = None
    target_fpr: float = 0.01
    min_alarm_px: int = MIN_ALARM_PX
    seed: int = 0
    threads: int = 0
    overwrite: bool = False
    command: str | None = None

    @property
    def work(self) -> Path:
        """Folder of what is done so far, beside the output."""
        return self.output.with_name(f"{self.output.name}.adapt")

    @property
    def split(self) -> Split:
        """What each frame of the drive is for."""
        rest, held_back = split_blocks(len(self.drive))
        # The last block of a short drive lies at its end. One in the middle would have frames on both sides of those
        # held back, each next to frames that are learned from, and those of a street resemble each other.
        return Split(*without_blocks(rest, THRESHOLD_PART, THRESHOLD_PART - 1), held_back)

    @property
    def labelled_frames(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Indices of the labelled frames to train on, and of those held back."""
        count = 0 if self.labels is None else len(self.labels)
        held_back = tuple(range(1, count, 3))
        return tuple(index for index in range(count) if index not in held_back), held_back

    def drive_request(self, bundle: Bundle, scores: tuple[str, ...] | None = None) -> DriveRequest:
        """Return the request that measures a bundle on the drive, by its first score unless others are given."""
        rates = {self.target_fpr}
        if scores is None:
            scores = bundle.contract.score_names[:1]
        else:
            rates |= {rate for table in self.bundle.contract.thresholds.values() for rate in table.by_target_fpr}
        options = BackendOptions(threads=self.threads)
        drive = (bundle, self.drive, scores, tuple(sorted(rates)), self.road)
        return DriveRequest(*drive, options=options, min_alarm_px=self.min_alarm_px)

    def check(self) -> Path:
        """Return the checkpoint. Raises the package's errors, before any frame is read, if the request cannot work."""
        if not self.stages or (unknown := [one for one in self.stages if one not in STAGES]):
            raise ConfigError(unknown_name("stage", unknown[0] if self.stages else "", STAGES))
        if not 0 < self.target_fpr < 1:
            raise ConfigError(f"target_fpr {self.target_fpr!r}: expected a share above 0 and below 1, such as 0.01")
        self._check_bundle()
        self._check_output()
        split_blocks(len(self.drive))
        self._check_labels()
        self._check_teacher()
        for part in ("train", "val"):
            open_objects(objects_of(self.objects, part))
        return self._checkpoint()

    def facts(self, checkpoint: Path) -> dict[str, Any]:
        """Return what decides the result, in plain types: work is continued only where all of it is the same."""
        names = "\n".join(map(self.drive.frame_id, range(len(self.drive))))
        labels = self.labels
        return {
            "bundle": self.bundle.contract.program_sha256,
            "checkpoint": sha256_of(checkpoint),
            "drive": {"inputs": list(self.drive.input_names), "sha256": hashlib.sha256(names.encode()).hexdigest()},
            "stages": list(self.stages),
            "level": to_plain(self.level),
            "labels": None if labels is None else [labels.name, labels.split, len(labels)],
            "teacher": None if self.teacher is None else sha256_of(self.teacher.checkpoint),
            "objects": list(self.objects),
            "road": None if self.road is None else to_plain(self.road),
            "target_fpr": self.target_fpr,
            "min_alarm_px": self.min_alarm_px,
            "seed": self.seed,
            "frames": {name: len(indices) for name, indices in vars(self.split).items()},
        }

    def _check_bundle(self) -> None:
        contract = self.bundle.contract
        require_float(contract)
        if contract.void_class not in (None, len(contract.classes) - 1):
            raise ConfigError(
                f"the void class of bundle {contract.name!r} is output {contract.void_class} of "
                f"{len(contract.classes)}; adaptation wants it last"
            )

    def _check_output(self) -> None:
        if self.output.resolve() == self.bundle.directory.resolve():
            raise ConfigError(f"the output {str(self.output)!r} is the bundle itself, which is never changed")
        if is_shipped(self.output):
            raise BundleError(f"{self.output} is in the package's models/; choose an output outside it")
        check_target(self.output, self.overwrite)

    def _check_labels(self) -> None:
        if self.labels is None:
            return
        if self.labels.classes is None:
            raise ConfigError(f"{self.labels.name} has no class labels to learn from; leave it out")
        ours = self.drive_classes
        if [info.name for info in self.labels.classes] != list(ours):
            raise ConfigError(
                f"{self.labels.name} has the classes {', '.join(info.name for info in self.labels.classes)}; bundle "
                f"{self.bundle.contract.name!r} has {', '.join(ours)}: give frames labelled with these"
            )
        if len(self.labels) < 3:
            raise ConfigError(f"{self.labels.name} has {len(self.labels)} frames; a third is held back: give 3 or more")

    def _check_teacher(self) -> None:
        if self.teacher is None:
            return
        known = len(self.drive_classes)
        if self.teacher.num_classes not in (known, known + 1):
            raise ConfigError(
                f"the teacher has {self.teacher.num_classes} outputs, bundle {self.bundle.contract.name!r} has {known} "
                "known classes; give a teacher of the same classes, with or without a void class"
            )

    @property
    def drive_classes(self) -> tuple[str, ...]:
        """Names of the bundle's known classes, by train id."""
        contract = self.bundle.contract
        return tuple(info.name for index, info in enumerate(contract.classes) if index != contract.void_class)

    def _checkpoint(self) -> Path:
        checkpoint = self.checkpoint or own_checkpoint(self.bundle)
        if checkpoint is None:
            source = self.bundle.contract.provenance.source_checkpoint or "a checkpoint"
            raise CheckpointError(
                f"no {CHECKPOINT_FILE} is with bundle {self.bundle.contract.name!r}; give the `checkpoint` that it was "
                f"exported from, {source}"
            )
        return checkpoint
