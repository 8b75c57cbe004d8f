"""Places and sizes of pasted objects on the road, which is a plane seen from the height of a camera.

A pinhole camera that looks along a flat road sees a point of the road at distance d in row `horizon + f h / d`, where f
is its focal length in pixels and h its height in metres. A metre at that distance is f / d = (row - horizon) / h pixels
long, so neither f nor d is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.labels import ClassInfo
from anomseg_ros.core.types import LabelImage
from anomseg_ros.outliers.objects import OutlierObject
from anomseg_ros.outliers.paste_config import PasteConfig

ROAD_CLASSES = ("road",)
GROUND_CLASSES = (*ROAD_CLASSES, "sidewalk", "pavement", "terrain")
"""Names of the classes that objects stand on, in the label sets of core/labels.py."""

_ROAD_ROW_SHARE = 0.02
"""The first row with at least this share of road is the top of the road."""

_ABOVE_ROAD = 0.01
"""Distance of the horizon above the top of the road, as a share of the frame's height."""

_TRIES = 8
_LARGEST_PART_OUTSIDE = 0.5


@dataclass(frozen=True, eq=False)
class Ground:
    """The road plane of one frame. mask: bool (H, W), where objects may stand. rows: the rows with any of it."""

    mask: npt.NDArray[np.bool_]
    rows: npt.NDArray[np.intp]
    horizon_px: float
    camera_height_m: float

    def px_per_m(self, row: float) -> float:
        """Return the length of a metre in pixels for an object whose foot is in a row."""
        return (row - self.horizon_px) / self.camera_height_m


@dataclass(frozen=True)
class Stand:
    """The place of an object on the ground. foot_px: row and column below the middle of its lower edge; may be outside
    the frame. scale: bounds of the factor on the object's size."""

    foot_px: tuple[int, int]
    scale: tuple[float, float]


def class_mask(labels: LabelImage, ids: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Return uint8 (H, W), 1 where labels are one of the train ids, else 0."""
    table = np.zeros(256, np.uint8)
    table[list(ids)] = 1
    return np.asarray(cv2.LUT(labels, table), np.uint8)


def class_ids(classes: Sequence[ClassInfo], names: Sequence[str]) -> list[int]:
    """Return the train ids of the classes that have one of the names."""
    return [info.train_id for info in classes if info.name in names]


def draw_horizon(
    labels: LabelImage, classes: Sequence[ClassInfo], config: PasteConfig, rng: np.random.Generator
) -> float:
    """Return the row of the horizon in a whole frame: just above the top of its road, or drawn if no road is labelled.

    labels: uint8 (H, W) train ids. The row is always within `config.horizon`.
    """
    height = labels.shape[0]
    low, high = (share * height for share in config.horizon)
    drawn = float(rng.uniform(low, high))
    road = class_mask(labels, class_ids(classes, ROAD_CLASSES))
    rows = np.flatnonzero(cv2.reduce(road, 1, cv2.REDUCE_AVG, dtype=cv2.CV_32F) >= _ROAD_ROW_SHARE)
    return float(np.clip(rows[0] - _ABOVE_ROAD * height, low, high)) if len(rows) else drawn


def draw_ground(
    labels: LabelImage,
    classes: Sequence[ClassInfo],
    config: PasteConfig,
    rng: np.random.Generator,
    horizon_px: float | None = None,
) -> Ground | None:
    """Return the ground of a frame, or None if it shows none.

    Args:
        labels: uint8 (H, W) train ids.
        classes: of the labels. If none of them is ground, everything below the horizon is.
        config: see PasteConfig.
        rng: random numbers.
        horizon_px: row of the horizon, which may be outside a crop; None for draw_horizon.
    """
    if horizon_px is None:
        horizon_px = draw_horizon(labels, classes, config, rng)
    camera_height_m = float(rng.uniform(*config.camera_height_m))
    ids = class_ids(classes, GROUND_CLASSES)
    mask = class_mask(labels, ids).view(bool) if ids else np.ones(labels.shape, bool)
    mask[: max(0, int(horizon_px) + 1)] = False
    rows = np.flatnonzero(mask.any(axis=1))
    return Ground(mask, rows, horizon_px, camera_height_m) if len(rows) else None


def draw_stand(
    ground: Ground, drawn: OutlierObject, limits: tuple[float, float], config: PasteConfig, rng: np.random.Generator
) -> Stand | None:
    """Return a place for an object at a size of `config.size_m`, or None if a few tries find none.

    Rows are equally likely, so that far places are as frequent as near ones.

    Args:
        ground: of the frame.
        drawn: the object.
        limits: smallest and largest factor on its size for which the frame has room.
        config: see PasteConfig.
        rng: random numbers.
    """
    longer_px = max(drawn.mask.shape)
    below = "bottom" in drawn.cut_sides
    for _ in range(_TRIES):
        row = int(ground.rows[int(rng.integers(len(ground.rows)))])
        columns = np.flatnonzero(ground.mask[row])
        column = int(columns[int(rng.integers(len(columns)))])
        if below:
            row = ground.mask.shape[0] - 1
        px_per_m = ground.px_per_m(row)
        low, high = (size_m * px_per_m / longer_px for size_m in config.size_m)
        low, high = max(low, limits[0]), min(high, limits[1], (row + 1) / drawn.mask.shape[0])
        if low <= high:
            return Stand((row + 1, column), (low, high))
    return None


def standing_place(stand: Stand, size_px: tuple[int, int], frame_px: tuple[int, ...]) -> tuple[int, int]:
    """Return top and left of an object with a size in pixels at its place; its sides stay in the frame."""
    (height, width), (row, column) = size_px, stand.foot_px
    return row - height, int(np.clip(column - width // 2, 0, max(0, frame_px[1] - width)))


def moved_out(
    place_px: tuple[int, int], size_px: tuple[int, int], frame_px: tuple[int, ...], rng: np.random.Generator
) -> tuple[int, int]:
    """Return top and left of an object so that the frame's left, right or lower border cuts it, at most in half."""
    (top, left), (height, width) = place_px, size_px
    part = float(rng.uniform(0.1, _LARGEST_PART_OUTSIDE))
    side = int(rng.integers(3))
    if side == 0:
        return top, -round(part * width)
    if side == 1:
        return top, frame_px[1] - width + round(part * width)
    return frame_px[0] - height + round(part * height), left


def at_border(
    place_px: tuple[int, int],
    size_px: tuple[int, int],
    frame_px: tuple[int, ...],
    cut_sides: frozenset[str],
    overhang_px: int,
) -> tuple[int, int]:
    """Return top and left of an object whose cut sides lie `overhang_px` beyond the frame's border."""
    (top, left), (height, width) = place_px, size_px
    if "bottom" in cut_sides:
        top = frame_px[0] - height + overhang_px
    if "left" in cut_sides:
        left = -overhang_px
    if "right" in cut_sides:
        left = frame_px[1] - width + overhang_px
    return top, left


def can_be_cut(cut_sides: frozenset[str]) -> bool:
    """Return whether a frame's border can hide the cuts; it cannot for cuts above, or on the left and the right."""
    return "top" not in cut_sides and not {"left", "right"} <= cut_sides
