"""Pasting of outliers into labelled frames, for training.

After sections 3.5 and 3.6 of "Efficient Anomaly Segmentation via Angular Margins and Low-Rank Adaptation" (Ziccardi,
Sanna et al.): 1 to 3 objects, scaled by 0.5 to 1.5, blended by a Gaussian-blurred mask, equation 5:
I' = I (1 - A) + I_obj A. Deviations, and why:

- A pixel gets the label 254 where A is at least one half, not in the whole mask. Blurring thins legs and rounds
corners,
  and pixels that mostly show the frame should not be outliers.
- The object's own colours are continued beyond its mask. In the paper, the background of the object's picture shines
  through the blurred rim.
- Scales are drawn log-uniformly from those at which the object fits. So no object is discarded, and distant (small)
  objects are as frequent as near ones.
- 40 % bounds all objects of a frame together; in the paper it bounds each object.
- The object's brightness is moved a little towards that of the place.

PasteConfig has further options: sizes by distance (places.py), looks that follow the frame (looks.py), and stains and
shadows on known classes (distractors.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from anomseg_ros.core.labels import ClassInfo
from anomseg_ros.core.types import LabelImage, RgbImage
from anomseg_ros.errors import ConfigError, DatasetError
from anomseg_ros.outliers import places
from anomseg_ros.outliers.distractors import Scene, add_distractors
from anomseg_ros.outliers.looks import Bytes, Floats, FrameLooks, matched, measure
from anomseg_ros.outliers.objects import ObjectSource, OutlierObject
from anomseg_ros.outliers.paste_config import PasteConfig
from anomseg_ros.outliers.places import Ground, Stand
from anomseg_ros.outliers.shadow import cast_shadow

__all__ = ["OUTLIER", "PasteConfig", "paste_objects"]

OUTLIER = 254
"""Label of pasted pixels in label images (section 3.7)."""

_DRAWS = 20
_FITTINGS = 6
_PLACES = 8
_HALF = 128
"""Least alpha, of 0 to 255, of an object's pixels."""


def paste_objects(
    image: RgbImage,
    labels: LabelImage,
    source: ObjectSource,
    rng: np.random.Generator,
    config: PasteConfig,
    other_frames: Sequence[RgbImage] = (),
    classes: Sequence[ClassInfo] = (),
    horizon_px: float | None = None,
    other_labels: Sequence[LabelImage] = (),
) -> tuple[RgbImage, LabelImage]:
    """Return a copy of a frame with pasted objects, and a copy of its labels with OUTLIER at the objects.

    The result depends on the arguments and the state of `rng` alone. A frame without room for the drawn number of
    objects gets fewer, but at least `config.objects[0]`.

    Args:
        image: uint8 (H, W, 3) RGB.
        labels: uint8 (H, W) train ids, 255 unlabelled.
        source: of the objects.
        rng, config: random numbers, and how to paste.
        other_frames: uint8 RGB, for the source's textures; without any, this frame is used.
        classes: of the labels; they tell the ground.
        horizon_px: row of the horizon, for crops; None to take it from the labels.
        other_labels: of the other frames, whose ground distractors then show.

    Raises:
        ConfigError: the frame is too small for `config.objects[0]` objects of `min_area_px` within `max_share`, or none
            of 20 objects could be scaled to fit.
        DatasetError: shapes or dtypes do not fit, labels hold OUTLIER already, or a mask is empty.
    """
    _require_frame(image, labels)
    count = _draw_count(rng, config, labels.shape)
    pasted, marked = image.copy(), labels.copy()
    ground = _draw_ground(labels, classes, config, rng, horizon_px)
    if config.distractor_share > 0 and rng.random() < config.distractor_share:
        others = list(zip(other_frames, other_labels, strict=False))
        add_distractors(
            Scene(pasted, labels, classes, others, ground.horizon_px if ground else horizon_px), config, rng
        )
    looks = measure(image) if _follows_frame(config) else None
    for number in range(count):
        room_px = _room_px(marked, count - number - 1, config)
        cut = _draw_cut(rng, source, other_frames or (image,), config, labels.shape, room_px, ground)
        if cut is not None:
            _blend(pasted, marked, cut, _draw_place(rng, cut, marked, config), config, looks, rng)
        elif number < config.objects[0]:
            raise _no_object_fits(room_px, labels, config)
    return pasted, marked


def _draw_ground(
    labels: LabelImage,
    classes: Sequence[ClassInfo],
    config: PasteConfig,
    rng: np.random.Generator,
    horizon_px: float | None,
) -> places.Ground | None:
    """Return the road plane of a frame, None where objects go anywhere."""
    return places.draw_ground(labels, classes, config, rng, horizon_px) if config.placement == "road" else None


def _no_object_fits(room_px: int, labels: LabelImage, config: PasteConfig) -> ConfigError:
    return ConfigError(
        f"paste: none of {_DRAWS} objects has {config.min_area_px} to {room_px} px at a size that fits a frame of "
        f"{labels.shape[1]}x{labels.shape[0]}; lower min_area_px, or give less elongated objects"
    )


def paste_at(
    image: RgbImage,
    labels: LabelImage,
    drawn: OutlierObject,
    scale: float,
    place_px: tuple[int, int],
    feather_radius_px: float,
    tone_match: float,
) -> None:
    """Blend one object into a frame and its labels, in place; parts beyond the frame are cut off.

    Args:
        image: uint8 (H, W, 3) RGB.
        labels: uint8 (H, W), which gets OUTLIER at the object.
        drawn: the object.
        scale: factor on the object's size.
        place_px: top and left of the scaled object's box; may be negative, or beyond the frame.
        feather_radius_px: see PasteConfig.
        tone_match: see PasteConfig.
    """
    config = PasteConfig(feather_radius_px=feather_radius_px, tone_match=tone_match)
    unused = np.random.default_rng(0)  # only shadows and looks draw numbers
    _blend(image, labels, _cut(drawn, scale, feather_radius_px), place_px, config, None, unused)


def _follows_frame(config: PasteConfig) -> bool:
    matches = (config.color_match[1], config.blur_match[1], config.noise_match[1])
    return max(*matches, config.lighting, config.jpeg_share) > 0


@dataclass(frozen=True, eq=False)
class _Cut:
    """A scaled object. image: uint8 (h, w, 3). alpha: uint8 (h, w), 255 = object. pad_px: rim around the mask's box.

    cut_sides: see OutlierObject. stand: its place on the ground, None for a free place.
    """

    image: RgbImage
    alpha: Bytes
    pad_px: int
    cut_sides: frozenset[str] = frozenset()
    stand: Stand | None = None

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width without the rim."""
        return self.alpha.shape[0] - 2 * self.pad_px, self.alpha.shape[1] - 2 * self.pad_px

    @property
    def area_px(self) -> int:
        """Number of the object's pixels."""
        return int(np.count_nonzero(self.alpha >= _HALF))


def _require_frame(image: RgbImage, labels: LabelImage) -> None:
    if image.dtype != np.uint8 or labels.dtype != np.uint8 or image.shape != (*labels.shape, 3):
        raise DatasetError(
            f"cannot paste into an image {image.dtype} {image.shape} with labels {labels.dtype} {labels.shape}; "
            "expected uint8 (H, W, 3) and uint8 (H, W)"
        )
    if bool((labels == OUTLIER).any()):
        raise DatasetError(
            f"labels hold {OUTLIER} already, which marks pasted pixels; expected train ids below it, and 255"
        )


def _draw_count(rng: np.random.Generator, config: PasteConfig, size_px: tuple[int, ...]) -> int:
    fewest, most = config.objects
    possible = int(config.max_share * size_px[0] * size_px[1]) // config.min_area_px
    if possible < fewest:
        raise ConfigError(
            f"paste: a frame of {size_px[1]}x{size_px[0]} has no room for {fewest} object(s) of "
            f"min_area_px {config.min_area_px} within max_share {config.max_share}; lower min_area_px, or paste into "
            "larger frames"
        )
    return min(int(rng.integers(fewest, most + 1)), possible)


def _room_px(marked: LabelImage, left: int, config: PasteConfig) -> int:
    """Return how many pixels the next object may have. left: number of objects after it, which also need room."""
    free_px = int(config.max_share * marked.size) - int(np.count_nonzero(marked == OUTLIER))
    return max(free_px // (left + 1), free_px - 2 * left * config.min_area_px)


def _draw_cut(
    rng: np.random.Generator,
    source: ObjectSource,
    frames: Sequence[RgbImage],
    config: PasteConfig,
    size_px: tuple[int, ...],
    room_px: int,
    ground: Ground | None,
) -> _Cut | None:
    """Return an object scaled to min_area_px to room_px pixels and a box inside the frame; None if none fits."""
    for _ in range(_DRAWS):
        drawn = source.draw(rng, frames)
        if drawn.mask.shape != drawn.image.shape[:2] or not drawn.mask.any():
            raise DatasetError(f"object {drawn.kind!r}: its mask is empty, or not of its image's size")
        position, flipped = rng.random(), rng.random() < 0.5
        if flipped:
            drawn = replace(drawn, cut_sides=_mirrored(drawn.cut_sides))
        if not _can_be_placed(drawn, config):
            continue
        scales = _scales(drawn, config, size_px, room_px)
        stand = None
        if ground is not None and rng.random() >= config.free_share:
            stand = places.draw_stand(ground, drawn, (scales.low, scales.high), config, rng)
            if stand is None:
                continue
            scales = _Scales(stand.scale, *stand.scale, stand.scale[1])
        cut = _fitted(drawn, config, position, scales, room_px, _draw_feather_px(rng, config))
        if cut is not None:
            image, alpha = (cut.image[:, ::-1], cut.alpha[:, ::-1]) if flipped else (cut.image, cut.alpha)
            return _Cut(image, alpha, cut.pad_px, drawn.cut_sides, stand)
    return None


def _mirrored(cut_sides: frozenset[str]) -> frozenset[str]:
    names = {"left": "right", "right": "left"}
    return frozenset(names.get(side, side) for side in cut_sides)


def _draw_feather_px(rng: np.random.Generator, config: PasteConfig) -> float:
    limits = config.feather_range_px
    return config.feather_radius_px if limits is None else float(rng.uniform(*limits))


def _can_be_placed(drawn: OutlierObject, config: PasteConfig) -> bool:
    if not drawn.cut_sides or config.cut_objects == "anywhere":
        return True
    return config.cut_objects == "border" and places.can_be_cut(drawn.cut_sides)


@dataclass(frozen=True)
class _Scales:
    """Factors on an object's size. wanted: bounds to draw between, within low and high. largest: absolute limit."""

    wanted: tuple[float, float]
    low: float
    high: float
    largest: float


def _scales(drawn: OutlierObject, config: PasteConfig, size_px: tuple[int, ...], room_px: int) -> _Scales:
    """Return the factors that the bounds of the area, the frame and the object's resolution allow."""
    area_px = int(np.count_nonzero(drawn.mask))
    largest = min(size_px[0] / drawn.mask.shape[0], size_px[1] / drawn.mask.shape[1])
    if config.max_upscale is not None:
        largest = min(largest, config.max_upscale)
    low, high = (float(np.sqrt(bound_px / area_px)) for bound_px in (config.min_area_px, room_px))
    return _Scales(config.scale, low, min(high, largest), largest)


def _fitted(
    drawn: OutlierObject, config: PasteConfig, position: float, scales: _Scales, room_px: int, feather_px: float
) -> _Cut | None:
    """Return the object scaled, log-uniformly by `position` in 0 to 1, or None if no scale fits."""
    start, end = np.clip(scales.wanted, min(scales.low, scales.high), scales.high)
    scale = float(start * (end / start) ** position)
    middle_px = float(np.sqrt(config.min_area_px * room_px))
    for _ in range(_FITTINGS):
        cut = _cut(drawn, scale, feather_px)
        if config.min_area_px <= cut.area_px <= room_px:
            return cut
        # Rounding and blurring change the area, most of all that of thin objects.
        wanted_px = min(1.05 * config.min_area_px, middle_px)
        if cut.area_px > room_px:
            wanted_px = max(0.95 * room_px, middle_px)
        scale *= float(np.clip(np.sqrt(wanted_px / max(cut.area_px, 1)), 0.5, 2.0))
        if scale > scales.largest:
            return None
    return None


def _cut(drawn: OutlierObject, scale: float, sigma_px: float) -> _Cut:
    """Return the object at a scale, with the alpha of equation 5 and its rim."""
    height, width = (max(1, int(side * scale)) for side in drawn.mask.shape)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    image = cv2.resize(drawn.image, (width, height), interpolation=method)
    solid = cv2.resize(drawn.mask.astype(np.uint8) * np.uint8(255), (width, height), interpolation=method)
    _, mask = cv2.threshold(solid, _HALF - 1, 255, cv2.THRESH_BINARY)
    pad_px = int(np.ceil(3 * sigma_px))
    if pad_px == 0:
        return _Cut(np.asarray(image, np.uint8), np.asarray(mask, np.uint8), 0)
    border = (pad_px,) * 4
    mask = cv2.copyMakeBorder(mask, *border, cv2.BORDER_CONSTANT, value=0)
    image = cv2.copyMakeBorder(image, *border, cv2.BORDER_REPLICATE)
    # The kernel ends at the rim, so no pixel beyond it changes.
    alpha = cv2.GaussianBlur(mask, (2 * pad_px + 1,) * 2, sigma_px, borderType=cv2.BORDER_CONSTANT)
    filled = _continued(np.asarray(image, np.uint8), np.asarray(mask, np.uint8), sigma_px)
    return _Cut(filled, np.asarray(alpha, np.uint8), pad_px)


def _continued(image: RgbImage, mask: Bytes, sigma_px: float) -> RgbImage:
    """Return the image with the pixels outside the mask replaced by the object's nearest colours.

    These are weighted means of the pixels inside, computed at a lower resolution: they are smooth, and only the rim is
    visible.
    """
    height, width = mask.shape
    step = max(1.0, sigma_px / 1.5)
    small_size = (max(1, int(width / step)), max(1, int(height / step)))
    inside = cv2.bitwise_and(image, image, mask=mask)
    small = cv2.merge(
        [
            *cv2.split(cv2.resize(inside, small_size, interpolation=cv2.INTER_AREA)),
            cv2.resize(mask, small_size, interpolation=cv2.INTER_AREA),
        ]
    ).astype(np.float32)
    blurred = cv2.GaussianBlur(small, (0, 0), max(1.5, sigma_px / step), borderType=cv2.BORDER_CONSTANT)
    colors = blurred[:, :, :3] / np.maximum(blurred[:, :, 3:] / 255, np.float32(1e-4))
    around = cv2.resize(np.clip(colors, 0, 255), (width, height), interpolation=cv2.INTER_LINEAR)
    filled = np.asarray(around, np.uint8)
    cv2.copyTo(image, mask, filled)
    return filled


def _draw_place(rng: np.random.Generator, cut: _Cut, marked: LabelImage, config: PasteConfig) -> tuple[int, int]:
    """Return top and left of the object's box without its rim. A part of the box may lie outside the frame."""
    if cut.stand is not None:
        place = places.standing_place(cut.stand, cut.size_px, marked.shape)
    else:
        place = _draw_free_place(rng, cut, marked, config)
    if cut.cut_sides and config.cut_objects == "border":
        return places.at_border(place, cut.size_px, marked.shape, cut.cut_sides, 2 * cut.pad_px // 3)
    if config.cut_share > 0 and rng.random() < config.cut_share:
        return places.moved_out(place, cut.size_px, marked.shape, rng)
    return place


def _draw_free_place(rng: np.random.Generator, cut: _Cut, marked: LabelImage, config: PasteConfig) -> tuple[int, int]:
    """Return top and left of the object's box. Tries a few places to cover no other object."""
    (height, width), (frame_height, frame_width) = cut.size_px, marked.shape
    low = rng.random() < config.low_share
    highest_bottom = max(height, frame_height // 3 if low else 0)
    for _ in range(_PLACES):
        top = int(rng.integers(highest_bottom, frame_height + 1)) - height
        left = int(rng.integers(frame_width - width + 1))
        if not bool((marked[top : top + height, left : left + width] == OUTLIER).any()):
            break
    return top, left


def _blend(
    pasted: RgbImage,
    marked: LabelImage,
    cut: _Cut,
    place_px: tuple[int, int],
    config: PasteConfig,
    looks: FrameLooks | None,
    rng: np.random.Generator,
) -> None:
    """Blend an object into a frame and its labels, in place. place_px: top and left of its box without the rim."""
    start = np.array(place_px) - cut.pad_px
    end = start + cut.alpha.shape
    first, last = np.maximum(start, 0), np.minimum(end, marked.shape)
    if (first >= last).any():  # outside the frame
        return
    place = (slice(first[0], last[0]), slice(first[1], last[1]))
    window = tuple(slice(a, b) for a, b in zip(first - start, last - start, strict=True))
    alpha, below = cut.alpha[window], pasted[place]
    image: RgbImage | Floats = cut.image[window]
    if cut.stand is not None and rng.random() < config.shadow:
        cast_shadow(pasted, cut.alpha, (int(start[0]), int(start[1])), rng)
    if looks is not None:
        image = matched(cut.image[window], alpha, below, looks, config, rng)
    weight = alpha.astype(np.float32)[:, :, None] / np.float32(255)
    tone_match = 0.0 if config.color_match[1] > 0 else config.tone_match
    lit = image * np.float32(_tone(image, alpha, below, tone_match))
    mixed = below + (np.minimum(lit, 255) - below) * weight
    pasted[place] = np.round(mixed).astype(np.uint8)
    marked[place][alpha >= _HALF] = OUTLIER


def _tone(image: RgbImage | Floats, alpha: Bytes, below: RgbImage, tone_match: float) -> float:
    """Return the factor on the object's brightness."""
    light = np.mean(cv2.mean(np.ascontiguousarray(image), (alpha >= _HALF).astype(np.uint8))[:3])
    place = np.mean(cv2.mean(np.ascontiguousarray(below))[:3])
    return float((1 - tone_match) + tone_match * np.clip(place / max(light, 1.0), 0.4, 2.0))
