"""A pass over frames: all frames before an unreadable one are counted, for any number of frames in inference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.core.bundle import Bundle
from anomseg_ros.datasets.dataset import LabelledFrame
from anomseg_ros.errors import ConfigError, DatasetError, MetricError
from anomseg_ros.evaluation.drive import DriveSpec
from anomseg_ros.evaluation.measures import MeasureSpec
from anomseg_ros.evaluation.passes import ModelSource, PassTask, measured, run_pass

SPEC = MeasureSpec(("void",), ("fishyscapes",))
FRAMES = 8


class DrawnDataset:
    """Frames with a green box on red. The frame `unreadable` cannot be read."""

    name, split, path, layout = "drawn", "", "nowhere", ""
    has_anomalies, classes, label_set, published_count, problems = True, None, None, None, ()

    def __init__(self, unreadable: int | None = None) -> None:
        self.unreadable = unreadable

    def __len__(self) -> int:
        return FRAMES

    def frame_id(self, index: int) -> str:
        return str(index)

    def load(self, index: int) -> LabelledFrame:
        if index == self.unreadable:
            raise DatasetError(f"frame {index} is gone")
        image = np.zeros((128, 256, 3), np.uint8)
        image[..., 0] = 255
        anomaly = np.zeros((128, 256), np.uint8)
        image[80:90, 20 : 40 + index], anomaly[80:90, 20 : 40 + index] = (0, 255, 0), 1
        return LabelledFrame(str(index), image, None, anomaly)


def task_of(bundle: Bundle, dataset: Any, lanes: int = 1) -> PassTask:
    source = ModelSource(
        str(bundle.directory), bundle.contract.program_sha256, options=BackendOptions(threads=1), lanes=lanes
    )
    return PassTask(dataset, tuple(range(FRAMES)), source, SPEC)


@pytest.mark.parametrize("lanes", [1, 3])
def test_frames_before_an_unreadable_frame_are_counted(painted: Bundle, lanes: int) -> None:
    task = task_of(painted, DrawnDataset(unreadable=5), lanes)
    seen: list[int] = []
    passed = run_pass(task, lambda now: seen.append(now.frames))
    assert passed.frames == 5 and passed.measures.done == set(range(5)) and seen == [1, 2, 3, 4, 5]
    assert str(passed.failure) == "frame 5 is gone"
    with pytest.raises(DatasetError, match="frame 5 is gone"):
        measured(task)


def test_several_lanes_give_the_same_results(painted: Bundle) -> None:
    one, three = (measured(task_of(painted, DrawnDataset(), lanes)) for lanes in (1, 3))
    assert one.done == three.done == set(range(FRAMES))
    key = ("void", "fishyscapes")
    assert [frame.anomaly_px for frame in three.frame_results(key)] == [10 * (20 + n) for n in range(FRAMES)]
    assert [frame.auprc for frame in one.frame_results(key)] == [frame.auprc for frame in three.frame_results(key)]


def test_measures_of_several_passes_merge(painted: Bundle) -> None:
    first = run_pass(task_of(painted, DrawnDataset()))
    second = run_pass(replace(task_of(painted, DrawnDataset()), number=1, first_index=FRAMES))
    assert (first.number, second.number) == (0, 1)
    assert first.measures.merge(second.measures).done == set(range(2 * FRAMES))


def test_drive_without_stamps_is_refused(painted: Bundle) -> None:
    task = replace(task_of(painted, DrawnDataset()), drive=DriveSpec("void", 0.5, "as stated"))
    with pytest.raises(MetricError, match="frames of drawn have no stamps"):
        run_pass(task)


def test_unknown_backend_is_refused(painted: Bundle) -> None:
    task = task_of(painted, DrawnDataset())
    assert isinstance(task.source, ModelSource)
    with pytest.raises(ConfigError, match="unknown backend 'onnx'"):
        run_pass(replace(task, source=replace(task.source, backend="onnx")))
