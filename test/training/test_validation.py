from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lightning_fabric import Fabric  # noqa: E402
from torch import Tensor  # noqa: E402

from anomseg_ros.core.labels import CAMVID  # noqa: E402
from anomseg_ros.networks.network import SegmentationNetwork  # noqa: E402
from anomseg_ros.outliers.cut_paste import OUTLIER  # noqa: E402
from anomseg_ros.training.frame_cache import Frames  # noqa: E402
from anomseg_ros.training.validation import PICTURES, Validation, validate  # noqa: E402


class RedChannelNetwork(SegmentationNetwork):
    """A network that predicts the value of the red channel as the class."""

    name = "red"
    stride = 1
    feature_names = ("classes",)
    class_parameter = ("classifier.weight", 0)

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.classifier = torch.nn.Identity()

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        classes = (images[:, 0] * 255).round().long().clamp(0, self.num_classes - 1)
        return {"classes": torch.nn.functional.one_hot(classes, self.num_classes).permute(0, 3, 1, 2).float()}


def frames(truth: np.ndarray, answers: np.ndarray) -> Frames:
    images = np.stack([answers, np.zeros_like(answers), np.zeros_like(answers)], -1).astype(np.uint8)
    counts = np.bincount(truth.reshape(-1), minlength=256)
    return Frames(images, truth, tuple(map(str, range(len(truth)))), counts, CAMVID[:3])


def validate_answers(truth: np.ndarray, answers: np.ndarray, void_class: int | None = None) -> Validation:
    network = RedChannelNetwork(3 + (void_class is not None)).eval()
    seen: list[tuple[int, int]] = []
    fabric = Fabric(accelerator="cpu", devices=1)
    watch = lambda _, done, total: seen.append((done, total))  # noqa: E731
    found = validate(network, frames(truth, answers), void_class, fabric, watch)
    assert seen == [(done, len(truth)) for done in range(len(truth) + 1)]
    return found


def labels(*rows: Any) -> np.ndarray:
    return np.array([[row] for row in rows], np.uint8)


def test_figures_of_known_answers() -> None:
    found = validate_answers(labels([0, 0, 1, 1], [2, 2, 2, 255]), labels([0, 1, 1, 1], [2, 2, 2, 0]))
    assert found.iou == pytest.approx((1 / 2, 2 / 3, 1.0))
    assert found.miou == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)
    assert found.pixel_accuracy == pytest.approx(6 / 7)


def test_void_answers_are_wrong_and_outliers_not_counted() -> None:
    found = validate_answers(labels([0, 0, 1, OUTLIER]), labels([0, 3, 1, 3]), void_class=3)
    assert found.iou[:2] == pytest.approx((1 / 2, 1.0))
    assert len(found.iou) == 3


def test_pictures_are_spread_over_the_frames() -> None:
    truth = np.zeros((10, 2, 2), np.uint8)
    truth[:, 0, 0] = OUTLIER
    answers = np.full((10, 2, 2), 3, np.uint8)
    answers[:, 1] = np.arange(10)[:, None] % 3
    found = validate_answers(truth, answers, void_class=3)
    assert len(found.pictures) == PICTURES
    assert [int(picture.image[1, 0, 0]) for picture in found.pictures] == [index % 3 for index in (0, 3, 6)]
    assert all(picture.predicted[0, 0] == 255 and picture.truth[0, 0] == 255 for picture in found.pictures)
    assert all(picture.truth[1, 1] == 0 for picture in found.pictures)
