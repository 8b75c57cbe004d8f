"""Objects pasted into the frames of a drive, to measure whether a detector finds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.labels import UNLABELLED
from anomseg_ros.datasets.dataset import ANOMALY, KNOWN, VOID, LabelledFrame
from anomseg_ros.datasets.unlabelled_drive import UnlabelledDrive
from anomseg_ros.outliers.cut_paste import OUTLIER, PasteConfig, paste_objects
from anomseg_ros.outliers.mixture import ObjectsConfig, open_objects
from anomseg_ros.outliers.objects import ObjectSource

FEATHER_SHARE = 1.5 / 360
"""Blur of an object's rim, as a share of the frame's height: that of the recipe enet-camvid-void."""


def paste_config(height_px: int) -> PasteConfig:
    """Return how objects are pasted into frames of this height; small ones, as they stand on a road, are frequent."""
    smallest_px = max(16, round((height_px / 30) ** 2))
    return PasteConfig(feather_radius_px=FEATHER_SHARE * height_px, min_area_px=smallest_px, scale=(0.2, 1.5))


def objects_of(sources: Sequence[str], part: str) -> tuple[ObjectsConfig, ...]:
    """Return the sources of objects of a part, "train" or "val". Procedural objects have no parts: seeds differ."""
    return tuple(
        ObjectsConfig(source) if source == ObjectsConfig().source else ObjectsConfig(source, part=part)
        for source in sources
    )


def pasted_drive(drive: UnlabelledDrive, sources: Sequence[str], seed: int) -> UnlabelledDrive:
    """Return the drive with held-out objects in every frame: `anomaly` is 1 on them, 255 on the own vehicle.

    A frame's objects depend on its index, the sources and the seed alone.
    """
    return drive.changed(_Paste(open_objects(objects_of(sources, "val")), seed))


class _Paste:
    """Pastes objects into a frame; can be sent to other processes."""

    def __init__(self, source: ObjectSource, seed: int) -> None:
        self._source, self._seed = source, seed

    def __call__(self, index: int, frame: LabelledFrame) -> LabelledFrame:
        rng = np.random.default_rng([self._seed, 4, index])
        known = np.full(frame.image.shape[:2], UNLABELLED, np.uint8)
        image, labels = paste_objects(frame.image, known, self._source, rng, paste_config(len(known)))
        anomaly = np.where(labels == OUTLIER, ANOMALY, KNOWN).astype(np.uint8)
        if frame.anomaly is not None:
            anomaly[frame.anomaly == VOID] = VOID
        return replace(frame, image=image, anomaly=anomaly)


def object_pixels(anomaly: npt.NDArray[np.uint8], smallest_px: int) -> list[tuple[npt.NDArray[np.intp], ...]]:
    """Return the pixels (rows, columns) of each pasted object: an 8-connected region of at least so many pixels."""
    count, regions = cv2.connectedComponents((anomaly == ANOMALY).astype(np.uint8), connectivity=8)
    found = (np.nonzero(regions == number) for number in range(1, count))
    return [pixels for pixels in found if len(pixels[0]) >= smallest_px]
