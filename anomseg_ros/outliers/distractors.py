"""Stains, shadows, patches of other ground, puddles, painted strokes and leaves, pasted onto known classes.

Labels do not change. A network that sees only pasted objects learns to find what is blended, unusually coloured or cut
out. Distractors have the same blurred rims, outlines and sizes but are ordinary, so the network must learn to recognise
objects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.labels import ClassInfo
from anomseg_ros.core.types import LabelImage, RgbImage
from anomseg_ros.outliers.looks import Bytes, Floats
from anomseg_ros.outliers.paste_config import PasteConfig
from anomseg_ros.outliers.places import GROUND_CLASSES, class_ids, class_mask
from anomseg_ros.outliers.shapes import SHAPES, rasterise

SURFACE_CLASSES = ("vegetation", "tree", "building", "wall")
"""Classes beside the ground that get patches and shadows."""

_GROUND_SHARE = 0.8
_OUTLINES = ("blob", "polygon", "debris", "composite")
_TRIES = 6
_LEAST_SAME = 0.9
"""Share of a patch's pixels that must be of the class it is put on."""


@dataclass(frozen=True, eq=False)
class Scene:
    """A frame, image uint8 (H, W, 3) and labels uint8 (H, W). others: other frames with their labels.

    horizon_px: row of the horizon, from which sizes on the ground follow; None for sizes independent of distance.
    """

    image: RgbImage
    labels: LabelImage
    classes: Sequence[ClassInfo]
    others: Sequence[tuple[RgbImage, LabelImage]] = ()
    horizon_px: float | None = None


@dataclass(frozen=True, eq=False)
class _Spot:
    """The box of a distractor. outline: uint8 (h, w), 255 inside, unblurred. ids: train ids of the classes below."""

    top: int
    left: int
    outline: Bytes
    ids: tuple[int, ...]

    @property
    def window(self) -> tuple[slice, slice]:
        height, width = self.outline.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


Content = Callable[[Scene, _Spot, np.random.Generator], "tuple[Floats, Bytes]"]
"""Returns colours, float32 (h, w, 3), and their mask, uint8 (h, w), for a spot."""


def add_distractors(scene: Scene, config: PasteConfig, rng: np.random.Generator) -> None:
    """Draw distractors into `scene.image`, in place; their number is drawn from `config.distractors`."""
    ground, surfaces = (class_ids(scene.classes, names) for names in (GROUND_CLASSES, SURFACE_CLASSES))
    for _ in range(int(rng.integers(config.distractors[0], config.distractors[1] + 1))):
        on_ground = rng.random() < _GROUND_SHARE
        kinds = GROUND_KINDS if on_ground else SURFACE_KINDS
        kind = kinds[int(rng.integers(len(kinds)))]
        spot = _draw_spot(scene, ground if on_ground else surfaces, on_ground, rng)
        if spot is None:
            continue
        content, mask = kind(scene, spot, rng)
        _blend(scene, spot, content, mask, config, rng)


def _draw_spot(scene: Scene, ids: Sequence[int], lies_flat: bool, rng: np.random.Generator) -> _Spot | None:
    """Return a box on one of the classes, or None if the frame shows none of them.

    Without known classes, the lower half counts as ground.
    """
    height, width = scene.labels.shape
    allowed = class_mask(scene.labels, ids)
    if not scene.classes and lies_flat:
        allowed[height // 2 :] = 1
    rows = np.flatnonzero(cv2.reduce(allowed, 1, cv2.REDUCE_MAX))
    if not len(rows):
        return None
    row = int(rows[int(rng.integers(len(rows)))])
    columns = np.flatnonzero(allowed[row])
    column = int(columns[int(rng.integers(len(columns)))])
    share = float(np.exp(rng.uniform(np.log(0.04), np.log(0.5))))
    if lies_flat and scene.horizon_px is not None:
        share *= float(np.clip(1.6 * (row - scene.horizon_px) / height, 0.1, 1.0))
    longer_px = max(6, round(share * width))
    outline = rasterise(SHAPES[_OUTLINES[int(rng.integers(len(_OUTLINES)))]](rng), longer_px) > 0
    solid = outline.astype(np.uint8) * np.uint8(255)
    if lies_flat:  # seen at a slant
        lower = max(3, round(solid.shape[0] * float(rng.uniform(0.15, 0.6))))
        solid = np.asarray(cv2.resize(solid, (solid.shape[1], lower), interpolation=cv2.INTER_AREA), np.uint8)
    solid = solid[:height, :width]
    top = int(np.clip(row - solid.shape[0] // 2, 0, height - solid.shape[0]))
    left = int(np.clip(column - solid.shape[1] // 2, 0, width - solid.shape[1]))
    return _Spot(top, left, solid, tuple(ids))


def _blend(
    scene: Scene, spot: _Spot, content: Floats, mask: Bytes, config: PasteConfig, rng: np.random.Generator
) -> None:
    """Blend colours into the frame where its labels are of the spot's classes, with a rim like that of objects."""
    limits = config.feather_range_px or (config.feather_radius_px, config.feather_radius_px)
    sigma_px = float(rng.uniform(*limits))
    if sigma_px > 0:
        mask = np.asarray(cv2.GaussianBlur(mask, (0, 0), sigma_px, borderType=cv2.BORDER_CONSTANT), np.uint8)
    if scene.classes:
        mask = mask * class_mask(np.ascontiguousarray(scene.labels[spot.window]), spot.ids)
    below = scene.image[spot.window]
    mixed = below + (np.clip(content, 0, 255) - below) * (mask.astype(np.float32)[:, :, None] / np.float32(255))
    scene.image[spot.window] = np.round(mixed).astype(np.uint8)


def _patch(scene: Scene, spot: _Spot, rng: np.random.Generator) -> tuple[Floats, Bytes]:
    """Recoloured texture of the same classes from elsewhere in this or another frame."""
    height, width = spot.outline.shape
    frames = [(scene.image, scene.labels), *scene.others]
    source = scene.image[spot.window]
    for _ in range(_TRIES):
        image, labels = frames[int(rng.integers(len(frames)))]
        if labels.shape[0] < height or labels.shape[1] < width:
            continue
        rows, top = labels.shape[0], 0
        if height < rows // 2:
            top = int(rng.integers(rows // 3, rows - height + 1))
        left = int(rng.integers(labels.shape[1] - width + 1))
        window = (slice(top, top + height), slice(left, left + width))
        same = class_mask(np.ascontiguousarray(labels[window]), spot.ids)
        if not scene.classes or float(same.mean()) >= _LEAST_SAME:
            source = image[window]
            break
    return _recoloured(source, rng, (0.65, 1.4), 0.12), spot.outline


def _stain(scene: Scene, spot: _Spot, rng: np.random.Generator) -> tuple[Floats, Bytes]:
    """Dark oil and tar, or bright dust and salt."""
    gains = (0.35, 0.8) if rng.random() < 0.7 else (1.1, 1.6)
    return _recoloured(scene.image[spot.window], rng, gains, 0.1), spot.outline


def _shadow(scene: Scene, spot: _Spot, rng: np.random.Generator) -> tuple[Floats, Bytes]:
    """The shadow of something outside the frame: bluish, with a soft rim."""
    shaded = scene.image[spot.window] * np.float32(rng.uniform(0.4, 0.8))
    shaded[:, :, 2] *= np.float32(rng.uniform(1.0, 1.15))
    sigma_px = float(rng.uniform(0.5, 0.06 * max(spot.outline.shape) + 0.6))
    return shaded, np.asarray(cv2.GaussianBlur(spot.outline, (0, 0), sigma_px), np.uint8)


def _puddle(scene: Scene, spot: _Spot, rng: np.random.Generator) -> tuple[Floats, Bytes]:
    """Water that mirrors the scene above it."""
    height, width = spot.outline.shape
    above = scene.image[max(0, spot.top - 3 * height) : max(1, spot.top), spot.window[1]]
    mirrored = cv2.resize(above[::-1], (width, height), interpolation=cv2.INTER_AREA)
    mirrored = cv2.GaussianBlur(mirrored, (0, 0), 0.5, sigmaY=max(0.5, 0.05 * height)).astype(np.float32)
    share = np.float32(rng.uniform(0.3, 0.85))
    return share * mirrored + (1 - share) * np.float32(0.8) * scene.image[spot.window], spot.outline


def _strokes(scene: Scene, spot: _Spot, rng: np.random.Generator) -> tuple[Floats, Bytes]:
    """Worn paint or tar: a few broad lines and sometimes a letter."""
    height, width = spot.outline.shape
    mask = np.zeros((height, width), np.uint8)
    thickness = max(1, round(height * float(rng.uniform(0.05, 0.25))))
    for _ in range(int(rng.integers(1, 4))):
        ends = (rng.random((2, 2)) * (width, height)).astype(int)
        cv2.line(mask, ends[0].tolist(), ends[1].tolist(), 255, thickness, cv2.LINE_AA)
    if rng.random() < 0.3:
        text = chr(int(rng.integers(ord("A"), ord("Z") + 1)))
        cv2.putText(mask, text, (0, height), cv2.FONT_HERSHEY_SIMPLEX, height / 22, 255, thickness, cv2.LINE_AA)
    below = scene.image[spot.window].astype(np.float32)
    light = np.float32(np.median(below))
    paint = np.array([(1, 1, 1), (1, 0.85, 0.4), (0.3, 0.3, 0.3)][int(rng.integers(3))], np.float32)
    worn = np.clip(rng.normal(0.8, 0.25, (height // 2 + 1, width // 2 + 1)), 0, 1).astype(np.float32)
    mask = np.asarray(mask * cv2.resize(worn, (width, height)), np.uint8)
    return 0.3 * below + np.float32(0.7 * rng.uniform(1.2, 2.4)) * light * paint, mask


def _leaves(scene: Scene, spot: _Spot, rng: np.random.Generator) -> tuple[Floats, Bytes]:
    """Leaves, paper and gravel: many small specks."""
    height, width = spot.outline.shape
    mask, colors = np.zeros((height, width), np.uint8), scene.image[spot.window].copy()
    base = rng.uniform((60, 45, 20), (200, 160, 110)) * float(np.clip(np.median(colors) / 110, 0.4, 1.4))
    largest_px = max(1.0, 0.05 * width)
    for x, y, size, turn in rng.random((int(rng.integers(8, 80)), 4)):
        centre = int(x * width), int(y * height)
        axes = max(1, int(size * largest_px)), max(1, int(size * largest_px / 3))
        color = tuple(float(value) for value in np.clip(base * rng.uniform(0.6, 1.3), 0, 255))
        for picture, value in ((mask, 255), (colors, color)):
            cv2.ellipse(picture, centre, axes, turn * 180, 0, 360, value, -1)
    return colors.astype(np.float32), np.minimum(mask, spot.outline)


def _recoloured(
    image: RgbImage, rng: np.random.Generator, gains: tuple[float, float], tint: float
) -> npt.NDArray[np.float32]:
    factors = rng.uniform(*gains) * rng.uniform(1 - tint, 1 + tint, 3)
    return np.asarray(image * factors.astype(np.float32), np.float32)


GROUND_KINDS: tuple[Content, ...] = (_patch, _stain, _shadow, _puddle, _strokes, _leaves)
SURFACE_KINDS: tuple[Content, ...] = (_patch, _stain, _shadow)
