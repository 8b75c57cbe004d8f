"""The configuration of self-training, for bundles with and without a void class, and with a teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from adaptation_runs import Halves, small_request
from small_bundles import small_network

from anomseg_ros.adaptation.input_frames import AtInputSize, decoded, first_frames, spread
from anomseg_ros.adaptation.self_training import Round, Teacher, TrainingConfig, self_train, train_config
from anomseg_ros.core.bundle import CHECKPOINT_FILE
from anomseg_ros.core.untrusted_text import parse_yaml
from anomseg_ros.training.config import config_text, parse_config
from anomseg_ros.training.segmentation_loss import LossConfig


@pytest.fixture
def task(tmp_path: Path) -> Round:
    request = small_request(tmp_path)
    start = request.bundle.directory / CHECKPOINT_FILE
    return Round(request.bundle.contract, start, small_network("mide_net"), ("procedural",), threads=1)


def test_the_run_is_a_configuration_like_any_other(task: Round) -> None:
    config = train_config(task, TrainingConfig(steps=40), frames=10)
    text: Any = parse_yaml(config_text(config))
    assert parse_config(text, "here") == config
    assert config.network.frozen_norms and config.data.void == "outliers" and config.run.ema_decay == 0.99
    assert config.run.epochs * 10 / config.run.batch_size == pytest.approx(40, rel=0.1)
    assert (config.augment.crop_height_px, config.augment.crop_width_px) == (64, 102)


def test_without_a_void_class_outliers_raise_the_entropy(task: Round) -> None:
    contract = replace(task.contract, classes=task.contract.classes[:-1], void_class=None)
    config = train_config(replace(task, contract=contract), TrainingConfig(), 10)
    assert isinstance(config.loss, LossConfig)
    assert config.data.void == "none" and config.loss.entropy_weight == 1


def test_a_teacher_is_distilled_from(task: Round) -> None:
    config = train_config(replace(task, teacher=Teacher("erfnet", task.start, 20)), TrainingConfig(), 10)
    assert isinstance(config.loss, LossConfig)
    assert config.loss.distillation_weight == 1 and config.teachers[0].network == "erfnet"


@pytest.mark.parametrize("taught", [False, True])
def test_own_labels_are_learned_at_the_bundles_size(task: Round, tmp_path: Path, taught: bool) -> None:
    task = replace(task, teacher=Teacher("mide_net", task.start, 20) if taught else None)
    own = AtInputSize(Halves(), (0, 1, 3), task.contract.input)  # type: ignore[arg-type]
    frames = decoded([own, own], task.contract, lambda *_: None)  # type: ignore[list-item]
    assert frames.images.shape == (6, 64, 128, 3) and frames.ids == ("0", "1", "3", "0", "1", "3")
    losses: list[float] = []
    result = self_train(
        task,
        TrainingConfig(steps=6, ema_decay=0.5, workers=0),
        frames,
        first_frames(frames, 1),
        tmp_path / "run",
        lambda now: losses.append(now.loss) if now.stage == "train" and now.loss is not None else None,
    )
    assert result.steps == len(losses) >= 6 and losses[-1] < losses[0] and result.checkpoint.is_file()


def test_frames_are_spread() -> None:
    assert spread((3, 4, 5), 5) == (3, 4, 5)
    assert spread(tuple(range(100, 200)), 4) == (100, 133, 166, 199)
