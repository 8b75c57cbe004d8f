"""Region of interest from the labels: the road and the objects on it. Alarms are limited to this region.

An obstacle interrupts the road's labels: it makes a hole, a notch in the outline, or a gap between two parts. The
region covers all three: it is the convex hull of every part, filled from the highest to the lowest row of each column.
Its upper edge is then raised by the height of an object that stands there. On flat ground an object whose foot is n
rows below the horizon, seen by a camera of height c, is n * height / c rows tall. The horizon is taken to be where the
road ends. A road that ends below LOWEST_HORIZON is taken to be blocked by an object.

The constants were chosen on CamVid's validation frames and eight frames of Cityscapes with objects pasted onto the
road, with ground-truth labels and with those of erfnet-camvid. Every object that caused an alarm without the region
also did with it. Each object had at least a tenth of its pixels in the region, and 95 to 99 % on average. Half of the
other pixels above the threshold were outside. Closing the labels instead lost a tenth to a third of the objects'
pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.bundle import Contract
from anomseg_ros.core.types import LabelImage, Mask, ScoreMap
from anomseg_ros.errors import ConfigError, unknown_name

NO_REGION = "none"

_ROAD = ("road", "road line")
_SIDEWALK = ("sidewalk", "pavement")

SURFACES: dict[str, tuple[tuple[str, ...], ...]] = {"road": (_ROAD,), "road_and_sidewalk": (_ROAD, _SIDEWALK)}
"""Region -> its surfaces, each with the names that label sets have for it."""

GRID_WIDTH_PX = 256
"""Labels are first resized to this width; distances in pixels below refer to this grid."""

MIN_ROAD_SHARE = 0.01
"""A road whose largest part covers less of the frame than this is taken for a mistake of the network."""

MIN_PART_SHARE = 0.02
"""A part of the road that is smaller than this share of the largest part is taken for a mistake as well."""

OBJECT_HEIGHT = 0.7
"""Largest height, in units of the camera's height, of an object that the region covers whole at its upper edge."""

LOWEST_HORIZON = 0.6
"""Share of the frame's height."""

GROWTH_PX = 2

_GROW = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * GROWTH_PX + 1,) * 2)

_Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class RoadRegion:
    """A region of SURFACES for one set of classes. train_ids: train ids of the surfaces' classes."""

    name: str
    train_ids: tuple[int, ...]

    def find(self, labels: LabelImage) -> Mask | None:
        """Return uint8 (H, W), 255 on the road and the objects on it; None where the labels (H, W) show no road."""
        height, width = labels.shape
        road = self._on_grid(labels)
        region = _hulls(road)
        if region is None:
            return None
        grown = cv2.dilate(_raised(region), _GROW)
        return np.asarray(cv2.resize(grown, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)

    def _on_grid(self, labels: LabelImage) -> _Bytes:
        size = GRID_WIDTH_PX, max(1, round(labels.shape[0] * GRID_WIDTH_PX / labels.shape[1]))
        table = np.zeros(256, np.uint8)
        table[list(self.train_ids)] = 255
        return np.asarray(cv2.LUT(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST), table), np.uint8)


def road_region(name: str, contract: Contract) -> RoadRegion | None:
    """Return the region called `name` for a bundle's classes, None for NO_REGION.

    Raises ConfigError for an unknown name, and for a bundle that has no class for one of the region's surfaces.
    """
    if name == NO_REGION:
        return None
    if name not in SURFACES:
        raise ConfigError(unknown_name("road region", name, (NO_REGION, *SURFACES)))
    train_ids: list[int] = []
    for names in SURFACES[name]:
        found = [info.train_id for info in contract.classes if info.name in names]
        if not found:
            classes = ", ".join(info.name for info in contract.classes) or "none"
            raise ConfigError(
                f"road region {name!r}: bundle {contract.name!r} has no class {' or '.join(map(repr, names))}, but "
                f"{classes}; choose another bundle, or road region {NO_REGION!r}"
            )
        train_ids += found
    return RoadRegion(name, tuple(train_ids))


def limited_scores(scores: ScoreMap, region: Mask | None, outside: float) -> ScoreMap:
    """Return float32 (H, W) scores with the value `outside` everywhere outside the region.

    region: uint8 of any size, non-zero inside; None leaves the scores as they are.
    """
    if region is None:
        return scores
    size = scores.shape[1], scores.shape[0]
    inside = cv2.resize(region, size, interpolation=cv2.INTER_NEAREST) > 0
    return np.where(inside, scores, np.float32(outside))


def _hulls(road: _Bytes) -> _Bytes | None:
    """Return the union of the convex hulls of the road's parts; None if no part is large enough."""
    _, ids, stats, _ = cv2.connectedComponentsWithStats(road, connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    if not areas.size or areas.max() < MIN_ROAD_SHARE * road.size:
        return None
    region = np.zeros_like(road)
    for part in np.flatnonzero(areas >= MIN_PART_SHARE * areas.max()) + 1:
        points = cv2.findNonZero((ids == part).view(np.uint8))
        cv2.fillConvexPoly(region, cv2.convexHull(points), 255)
    return region


def _raised(region: _Bytes) -> _Bytes:
    """Return the region with its columns filled, and their tops raised towards the horizon."""
    height = region.shape[0]
    inside = region.any(axis=0)
    top = region.argmax(axis=0)
    bottom = height - 1 - region[::-1].argmax(axis=0)
    horizon = min(int(top[inside].min()), round(LOWEST_HORIZON * height))
    top = top - np.round(OBJECT_HEIGHT * (top - horizon)).astype(top.dtype)
    rows = np.arange(height)[:, np.newaxis]
    return np.asarray(np.where(inside & (rows >= top) & (rows <= bottom), 255, 0), np.uint8)
