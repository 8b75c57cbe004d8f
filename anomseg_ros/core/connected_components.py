"""Connected components of an anomaly mask: what a planner or a person would call an object."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.types import Mask, ScoreMap

ComponentIds = npt.NDArray[np.int32]
"""int32 (H, W): the number of the component that a pixel belongs to, 0 for none."""


@dataclass(frozen=True)
class Component:
    """One 8-connected region of the mask: its box and area in pixels of the mask, and its highest score."""

    x_px: int
    y_px: int
    width_px: int
    height_px: int
    area_px: int
    score: float


def find_components(mask: Mask, scores: ScoreMap, min_area_px: int = 1) -> list[Component]:
    """Return the components of a uint8 (H, W) mask (non-zero = anomalous) of at least `min_area_px`, largest first.

    8-connectivity, as SegmentMeIfYouCan's component metrics use. scores: float32 (H, W).
    """
    return [component for _, component in numbered_components(mask, scores, min_area_px)[1]]


def numbered_components(
    mask: Mask, scores: ScoreMap, min_area_px: int = 1
) -> tuple[ComponentIds, list[tuple[int, Component]]]:
    """Return the number of each pixel's component, and (number, component), the rest as `find_components`."""
    count, ids, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    components = []
    for index in range(1, count):
        x, y, width, height, area = (int(value) for value in stats[index])
        if area < min_area_px:
            continue
        box = np.s_[y : y + height, x : x + width]
        peak = float(scores[box][ids[box] == index].max())
        components.append((index, Component(x, y, width, height, area, peak)))
    return np.asarray(ids, np.int32), sorted(components, key=lambda numbered: -numbered[1].area_px)
