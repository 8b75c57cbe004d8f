"""A bundle as a teacher of pseudo-labels. Labels are weighted by the confidence score if the bundle has it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from anomseg_ros.core.detector import Detector
from anomseg_ros.core.labels import CITYSCAPES
from anomseg_ros.core.preprocess import resized_labels, resized_scores
from anomseg_ros.core.types import RgbImage
from anomseg_ros.datasets.pseudo_label import CLASSES, Probabilities, TeacherInfo
from anomseg_ros.errors import ConfigError
from anomseg_ros.scores import confidence_score


class BundleTeacher:
    """A bundle with Cityscapes' classes. Its graph has one size, so scales give no further views."""

    def __init__(self, detector: Detector) -> None:
        """Check the classes. Raises ConfigError if they are not Cityscapes'."""
        contract = detector.bundle.contract
        known = {(info.train_id, info.name) for info in CITYSCAPES}
        if not known <= {(info.train_id, info.name) for info in contract.classes}:
            names = ", ".join(info.name for info in contract.classes)
            raise ConfigError(
                f"bundle {contract.name!r} has the classes {names}; a teacher needs the {CLASSES} of Cityscapes with "
                "their train ids"
            )
        self._detector = detector
        self._scores = tuple(name for name in contract.score_names if name == confidence_score())
        self.info = TeacherInfo(contract.name, contract.program_sha256, detector.backend.actual)

    def look(
        self, image: RgbImage, size_px: tuple[int, int], scales: tuple[float, ...], flip: bool
    ) -> Iterator[Probabilities]:
        """Yield one view, and the mirrored one; see datasets.pseudo_label.Teacher."""
        yield self._probabilities(image, size_px)
        if flip:
            yield self._probabilities(np.ascontiguousarray(image[:, ::-1]), size_px)[:, :, ::-1]

    def _probabilities(self, image: RgbImage, size_px: tuple[int, int]) -> Probabilities:
        outputs = self._detector.detect(image, self._scores)
        assert outputs.labels is not None
        labels = resized_labels(outputs.labels, *size_px)
        weight = np.ones(size_px, np.float32)
        for name in self._scores:
            weight -= resized_scores(outputs.scores[name], *size_px)
        one_hot = labels[np.newaxis] == np.arange(CLASSES, dtype=np.uint8)[:, np.newaxis, np.newaxis]
        return np.asarray(one_hot * weight, np.float32)
