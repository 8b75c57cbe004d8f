"""Whether an adapted bundle still knows its classes: compared with the given bundle, and with labels, if any."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import numpy as np

from anomseg_ros.backends import open_detector
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.core.bundle import Bundle
from anomseg_ros.core.preprocess import resized_labels
from anomseg_ros.datasets.dataset import Dataset
from anomseg_ros.datasets.unlabelled_drive import UnlabelledDrive
from anomseg_ros.metrics.miou import ConfusionMatrix
from anomseg_ros.scores import confidence_score

MAX_FRAMES = 16
CONFIDENT = 0.9
"""Probability of the class above which the given bundle is confident of it."""


def label_agreement(
    given: Bundle, adapted: Bundle, drive: UnlabelledDrive, indices: Sequence[int], options: BackendOptions
) -> float:
    """Return the share of the pixels that the given bundle is confident of whose class is the same, 0 to 1.

    Without the score of confidence in the bundle, all pixels count. At most MAX_FRAMES of the frames are compared.
    """
    score = confidence_score()
    asked = (score,) if score in given.contract.score_names else ()
    equal = total = 0
    with (
        closing(open_detector(given.directory, options=options)) as one,
        closing(open_detector(adapted.directory, options=options)) as other,
    ):
        for index in indices[:: max(1, -(-len(indices) // MAX_FRAMES))]:
            image = drive.load(index).image
            before, after = one.detect(image, asked), other.detect(image, ())
            assert before.labels is not None and after.labels is not None
            sure = np.ones(before.labels.shape, np.bool_) if not asked else before.scores[score] < 1 - CONFIDENT
            equal += int(np.count_nonzero((before.labels == after.labels) & sure))
            total += int(np.count_nonzero(sure))
    return equal / total if total else 1.0


def labelled_miou(bundle: Bundle, labels: Dataset, indices: Sequence[int], options: BackendOptions) -> float:
    """Return the mIoU of a bundle on labelled frames of its own classes, at their own size, 0 to 1."""
    matrix = ConfusionMatrix(bundle.contract.known_count)
    with closing(open_detector(bundle.directory, options=options)) as detector:
        for index in indices:
            frame = labels.load(index)
            predicted = detector.detect(frame.image, ()).labels
            assert frame.labels is not None and predicted is not None
            matrix.add(resized_labels(predicted, *frame.labels.shape), frame.labels)
    return float(matrix.metrics().miou)
