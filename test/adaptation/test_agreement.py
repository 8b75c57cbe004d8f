"""Agreement of labels with another bundle and with truth, with a bundle that sees colours."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from dataset_trees import write
from painted_frames import street

from anomseg_ros.adaptation.agreement import label_agreement, labelled_miou
from anomseg_ros.adaptation.pictures import MARGIN_PX, WIDTH_PX, before_and_after
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.core.bundle import Bundle, load_bundle
from anomseg_ros.datasets.dataset import LabelledFrame
from anomseg_ros.datasets.unlabelled_drive import open_drive
from anomseg_ros.evaluation.drive_thresholds import DriveRequest

OPTIONS = BackendOptions(threads=1)


def test_a_bundle_agrees_with_itself_and_not_with_another(painted: Bundle, tiny_bundle: Path, tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.png", street()[0][:64, :128])
    drive = open_drive([tmp_path])
    tiny = load_bundle(tiny_bundle)
    assert label_agreement(tiny, tiny, drive, range(3), OPTIONS) == 1
    assert label_agreement(painted, painted, drive, range(3), OPTIONS) == 1


class Truth:
    """The street's true classes, road and building; the lower quarter is not labelled.

    The patches, which the bundle takes for void, are building.
    """

    def load(self, index: int) -> LabelledFrame:
        image, anomaly = street()
        labels = np.where(image[..., 0] > image[..., 2], 0, 2).astype(np.uint8)
        labels[96:], labels[anomaly > 0] = 255, 255
        return LabelledFrame(str(index), image, labels, None)


def test_miou_of_labelled_frames(painted: Bundle) -> None:
    assert labelled_miou(painted, Truth(), (0,), OPTIONS) == pytest.approx(0.979, abs=1e-3)  # type: ignore[arg-type]


def test_frames_of_two_sizes_are_drawn_side_by_side(painted: Bundle, tmp_path: Path) -> None:
    write(tmp_path / "0.png", street()[0])
    write(tmp_path / "1.png", street()[0][:, :128])
    request = DriveRequest(painted, open_drive([tmp_path]), ("void",), (0.01,))
    picture = before_and_after([(request, 0.5), (request, 2.0)], (0, 1))
    shown = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    for left in (0, WIDTH_PX + MARGIN_PX):  # a dark band with a bright caption is over both columns
        assert shown[2:12, left : left + 4].max() < 60 and shown[2:14, left + 4 : left + 40].max() > 200
