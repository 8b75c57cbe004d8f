"""What is shown while long work runs."""

from __future__ import annotations

import pytest

from anomseg_ros.commands.progress_lines import ProgressLines, duration
from anomseg_ros.training.status import TrainingStatus


def test_training_writes_lines_to_log(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLines() as lines:
        lines.training("mine", TrainingStatus("decode", 5, 5))
        lines.training("mine", TrainingStatus("train", 1, 9, 0.5, 0.25, 7200.0))
        lines.training("mine", TrainingStatus("train", 2, 9, 0.4))  # too soon for another line
        lines.training("mine", TrainingStatus("train", 9, 9, 0.3))
    shown = [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert shown == ["mine: train loss 0.500, best mIoU 25.0%, 2 h 00 min left 1/9", "mine: train loss 0.300 9/9"]


def test_job_is_shown_as_one_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLines() as lines:
        for done in range(3):
            lines("reading", done + 1, 3)
    shown = capsys.readouterr().err
    assert shown.count("reading") == 1 and "3/3" in shown
    assert duration(90) == "2 min"
