from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402
from tiny_runs import Killed, files_of_at_most, killed_at, run, tiny_config, write_frames  # noqa: E402

from anomseg_ros.core.labels import CAMVID  # noqa: E402
from anomseg_ros.errors import TrainingError  # noqa: E402
from anomseg_ros.training.journal import Journal  # noqa: E402
from anomseg_ros.training.stopwatch import Stopwatch  # noqa: E402
from anomseg_ros.training.validation import Picture, Validation  # noqa: E402

CLASSES = CAMVID[:3]


def found(miou: float = 0.5) -> Validation:
    image = np.full((4, 6, 3), 77, np.uint8)
    truth = np.full((4, 6), 1, np.uint8)
    predicted = np.full((4, 6), 255, np.uint8)
    return Validation(miou, (0.25, 0.75, math.nan), 0.9, (Picture(image, truth, predicted),))


def clock() -> Stopwatch:
    watch = Stopwatch()
    with watch("forward"):
        pass
    watch.lap()
    return watch


def write_steps(journal: Journal, *steps: int) -> None:
    for step in steps:
        journal.step(step, {"total": torch.tensor(1.0 / step)}, 0.1, clock())


def events(folder: Path) -> Any:
    return EventAccumulator(str(folder / "tensorboard"), {"scalars": 0, "images": 0}).Reload()


def lines(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of log.jsonl. NaN is refused, because it is not valid JSON."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    return [json.loads(line, parse_constant=refuse) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_steps_and_validations_are_written_to_both_logs(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.go_on_from(0)
    write_steps(journal, *range(1, 21))
    journal.validation(20, found(), CLASSES)
    journal.close()
    log = lines(tmp_path)
    assert [entry["step"] for entry in log] == [10, 20, 20]
    assert log[0]["loss"]["total"] == pytest.approx(0.1) and log[0]["learning_rate"] == 0.1
    assert {"waited", "overhead"} <= log[0].keys()
    assert log[2]["miou"] == 0.5 and log[2]["iou"] == {"sky": 0.25, "building": 0.75, "pole": None}
    board = events(tmp_path)
    assert [(event.step, event.value) for event in board.Scalars("loss/total")] == [
        (10, pytest.approx(0.1)),
        (20, pytest.approx(0.05)),
    ]
    expected = {"learning_rate", "loss/total", "time/waited", "time/overhead", "validation/miou", "iou/sky"}
    assert expected <= set(board.Tags()["scalars"])
    assert "iou/pole" not in board.Tags()["scalars"]
    assert [event.value for event in board.Scalars("validation/miou")] == [0.5]


def test_panels_show_image_truth_and_prediction(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.go_on_from(0)
    journal.validation(5, found(), CLASSES)
    journal.close()
    (event,) = events(tmp_path).Images("validation/0")
    assert (event.step, event.width, event.height) == (5, 18, 4)
    panel = cv2.imdecode(np.frombuffer(event.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert (panel[:, :6] == 77).all()
    assert (panel[:, 6:12] == CLASSES[1].color).all()
    assert (panel[:, 12:] == 0).all()


@pytest.mark.slow
def test_resuming_discards_entries_after_the_state(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    first.go_on_from(0)
    write_steps(first, 10, 20, 30)
    first.flush()  # killed here, so it is never closed
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 40, "lo')
    time.sleep(1.1)  # TensorBoard orders files by the second of their creation
    second = Journal(tmp_path)
    second.go_on_from(20)
    write_steps(second, 30, 40)
    second.close()
    assert [entry["step"] for entry in lines(tmp_path)] == [10, 20, 30, 40]
    assert [event.step for event in events(tmp_path).Scalars("loss/total")] == [10, 20, 30, 40]


def test_other_processes_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    journal = Journal(None)
    journal.go_on_from(0)
    write_steps(journal, 10)
    journal.validation(10, found(), CLASSES)
    journal.flush()
    journal.close()
    assert not list(tmp_path.iterdir())


def test_unwritable_log_raises_training_error(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.go_on_from(0)
    with (
        files_of_at_most(10),
        pytest.raises(TrainingError, match=r"cannot write the log in .*; free space and --resume"),
    ):
        write_steps(journal, 10)


def test_killed_and_resumed_run_logs_every_step_once(tmp_path: Path) -> None:
    data = write_frames(tmp_path / "data")
    config = tiny_config(tmp_path, data, run={"epochs": 15, "checkpoint_every": 8, "validate_every": 5})
    with pytest.raises(Killed):
        run(config, tmp_path / "out", killed_at(23))
    run(config, tmp_path / "out")
    board = events(tmp_path / "out")
    assert [event.step for event in board.Scalars("loss/total")] == [10, 20, 30, 40]
    assert [event.step for event in board.Scalars("validation/miou")] == [15, 30, 45]
    assert [event.step for event in board.Images("validation/2")] == [15, 30, 45]
    steps = [(entry["step"], "miou" in entry) for entry in lines(tmp_path / "out")]
    expected = [(10, False), (15, True), (20, False), (30, False), (30, True), (40, False), (45, True)]
    assert steps == expected
