"""Training a network on the labels that it gave to a drive itself (self_labels.py), with objects pasted as void.

It is a run of training/ like any other: killed, it continues with the same bits. Consistency over augmentations comes
from the samples: labels are those of the plain frame, and the network sees it in other colours, sizes and cuts, with
objects in front of it. The result is the average of the weights over the steps (mean teacher: Tarvainen and Valpola,
NeurIPS 2017, arXiv 1703.01780), which labels the drive for the next round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomseg_ros.adaptation.pasted_drive import objects_of, paste_config
from anomseg_ros.compression.fine_tune import breaks_bfloat16
from anomseg_ros.core.bundle import Contract
from anomseg_ros.datasets.transforms import AugmentConfig
from anomseg_ros.networks.checkpoints import load_checkpoint
from anomseg_ros.networks.network import SegmentationNetwork
from anomseg_ros.training.config import (
    CutPasteConfig,
    DataConfig,
    InitialConfig,
    NetworkConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TeacherConfig,
    TrainConfig,
)
from anomseg_ros.training.frame_cache import Frames
from anomseg_ros.training.loop import Result, Sources, train
from anomseg_ros.training.segmentation_loss import LossConfig
from anomseg_ros.training.status import Report

NAME = "adapt"
VALIDATION_FRAMES = 4
"""Frames on which the run's log has an mIoU; nothing is chosen by it."""

CROP_SHARE = 0.8
"""Height and width of the crops that the network sees, as a share of the frame's."""

AUGMENTATION: Mapping[str, Any] = {
    **{"scale": (0.75, 1.5), "aspect": (0.8, 1.25), "gain": (0.7, 1.3), "gamma": (0.8, 1.25), "tint": 0.1, "grey": 0.1},
    **{"blur_sigma_px": 1.0, "noise_sigma": 5.0, "motion_blur": 0.05, "jpeg": 0.1, "response": 0.1},
}
"""Fields of AugmentConfig: milder than the recipes', since all frames are of one camera."""

SMALL_CROP_PX = 288 * 384
"""A step takes four crops of at most this size, and fewer larger ones."""


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. steps: optimizer steps of a round. pasted: share of the samples with objects. workers: processes
    that make the samples."""

    steps: int = 150
    learning_rate: float = 2e-4
    pasted: float = 0.75
    ema_decay: float = 0.99
    workers: int = 1


@dataclass(frozen=True)
class Teacher:
    """A larger network of the same known classes: name in the table of networks, file, number of outputs."""

    network: str
    checkpoint: Path
    num_classes: int

    def load(self) -> SegmentationNetwork:
        """Return the network. Raises CheckpointError."""
        return load_checkpoint(self.checkpoint, self.network, self.num_classes)


@dataclass(frozen=True)
class Round:
    """What a round trains on. start: the weights. objects: sources. teacher: None for none. threads: 0 for all."""

    contract: Contract
    start: Path
    network: SegmentationNetwork
    objects: tuple[str, ...]
    teacher: Teacher | None = None
    seed: int = 0
    threads: int = 0


def self_train(
    task: Round, config: TrainingConfig, frames: Frames, validation: Frames, folder: Path, report: Report
) -> Result:
    """Train for a round and return the result; a killed run continues in its folder. Raises TrainingError."""
    teachers = () if task.teacher is None else (task.teacher.checkpoint,)
    sources = Sources(task.start, teachers, (frames, validation))
    return train(train_config(task, config, len(frames)), folder, sources, report)


def train_config(task: Round, config: TrainingConfig, frames: int) -> TrainConfig:
    """Return the configuration of a round's run on so many frames."""
    size_px = (task.contract.input.height_px, task.contract.input.width_px)
    crop = (_crop_px(size_px[0]), _crop_px(size_px[1]))
    batch = max(1, min(4, round(4 * SMALL_CROP_PX / (crop[0] * crop[1]))))
    epochs = max(1, round(config.steps * batch / frames))
    start = str(task.start.resolve())
    return TrainConfig(
        name=NAME,
        network=_network_config(task.network, start),
        data=DataConfig(
            "drive",
            *size_px,
            path=start,
            void="none" if task.contract.void_class is None else "outliers",
            cut_paste=CutPasteConfig(config.pasted, objects_of(task.objects, "train"), paste_config(size_px[0])),
            workers=config.workers,
            cache="memory",
        ),
        run=RunConfig(
            epochs,
            batch,
            precision="32-true" if breaks_bfloat16(task.network) else "bf16-mixed",
            ema_decay=config.ema_decay,
            seed=task.seed,
            threads=task.threads,
            validate_every=epochs,
            checkpoint_every=25,
            accelerator="cpu",
            devices="1",
        ),
        augment=AugmentConfig(*crop, **AUGMENTATION),
        loss=_loss_config(task),
        optimizer=OptimizerConfig("adamw", config.learning_rate, weight_decay=0.0, gradient_clip=1.0),
        schedule=ScheduleConfig(warmup_steps=min(20, config.steps // 5)),
        teachers=_teacher_configs(task.teacher),
    )


def _crop_px(side_px: int) -> int:
    return min(side_px, max(64, round(CROP_SHARE * side_px)))


def _network_config(network: SegmentationNetwork, start: str) -> NetworkConfig:
    return NetworkConfig(
        network.name,
        network.options(),
        network.mean,
        network.std,
        InitialConfig(checkpoint=start, num_classes=network.num_classes),
        frozen_norms=True,  # they follow the drive already, or were left as they are on purpose
    )


def _loss_config(task: Round) -> LossConfig:
    return LossConfig(
        auxiliary_weight=0.0,
        entropy_weight=1.0 if task.contract.void_class is None else 0.3,
        distillation_weight=0.0 if task.teacher is None else 1.0,
        distillation_temperature=1.0,
    )


def _teacher_configs(teacher: Teacher | None) -> tuple[TeacherConfig, ...]:
    if teacher is None:
        return ()
    return (TeacherConfig(teacher.network, str(teacher.checkpoint.resolve()), num_classes=teacher.num_classes),)
