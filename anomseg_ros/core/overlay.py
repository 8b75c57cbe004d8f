"""Pictures of a detector's outputs for people to look at."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.labels import UNLABELLED, ClassInfo, palette
from anomseg_ros.core.preprocess import resized_labels, resized_scores
from anomseg_ros.core.types import LabelImage, Mask, RgbImage, ScoreMap

ANOMALY_COLOR = (255, 40, 0)
HEAT_MAP = cv2.COLORMAP_TURBO
LABEL_WEIGHT = 0.45
ANOMALY_WEIGHT = 0.65
MAX_TILE_PX = 1024


def anomaly_mask(scores: ScoreMap, threshold: float) -> Mask:
    """Return uint8 (H, W), 255 where the float32 (H, W) score is above the threshold."""
    # Clamped, because a number outside the range of float32 would become infinite, with a warning.
    limit = float(np.finfo(np.float32).max)
    mask: Mask = (scores > np.float32(min(max(threshold, -limit), limit))).view(np.uint8)
    mask *= 255  # in place, on the booleans' own bytes
    return mask


def label_colors(labels: LabelImage, colors: npt.NDArray[np.uint8]) -> RgbImage:
    """Return uint8 (H, W, 3) RGB of a label image, by the (256, 3) palette."""
    # cv2.LUT walks the image once; fancy indexing takes five times as long.
    spread = cv2.merge([labels, labels, labels])
    return np.asarray(cv2.LUT(spread, colors[np.newaxis]), np.uint8)


def heat_map(scores: ScoreMap, low: float, high: float) -> RgbImage:
    """Return uint8 (H, W, 3) RGB of a score map, `low` blue to `high` red."""
    return np.asarray(
        cv2.cvtColor(cv2.applyColorMap(gray_scores(scores, low, high), HEAT_MAP), cv2.COLOR_BGR2RGB), np.uint8
    )


def gray_scores(scores: ScoreMap, low: float, high: float) -> npt.NDArray[np.uint8]:
    """Return uint8 (H, W): `low` and below 0, `high` and above 255, linear between."""
    scale = 255.0 / max(high - low, 1e-12)
    # cv2.convertScaleAbs takes the absolute value of negative numbers, so values are clipped in float first.
    scaled: npt.NDArray[np.uint8] = np.clip(scores * np.float32(scale) - np.float32(low * scale), 0, 255).astype(
        np.uint8
    )
    return scaled


def overlay(image: RgbImage, labels: LabelImage, mask: Mask | None, colors: npt.NDArray[np.uint8]) -> RgbImage:
    """Return the frame tinted by class colour, anomalous pixels bright orange-red with a white outline.

    image: uint8 (H, W, 3) RGB; labels, mask: of any one size; the result has the image's size. Unlabelled pixels keep
    the frame's own colour.
    """
    height, width = image.shape[:2]
    labels = resized_labels(labels, height, width)
    tinted = np.asarray(
        cv2.addWeighted(image, 1 - LABEL_WEIGHT, label_colors(labels, colors), LABEL_WEIGHT, 0), np.uint8
    )
    cv2.copyTo(image, (labels == UNLABELLED).view(np.uint8), tinted)
    return tinted if mask is None else _mark_anomalies(tinted, image, resized_labels(mask, height, width))


def _mark_anomalies(canvas: RgbImage, image: RgbImage, mask: Mask) -> RgbImage:
    if not cv2.countNonZero(mask):
        return canvas
    flat = np.empty_like(image)
    flat[:] = ANOMALY_COLOR
    marked = cv2.addWeighted(image, 1 - ANOMALY_WEIGHT, flat, ANOMALY_WEIGHT, 0)
    cv2.copyTo(marked, mask, canvas)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(canvas, contours, -1, (255, 255, 255), 1)
    return canvas


def panel(
    image: RgbImage,
    labels: LabelImage,
    scores: ScoreMap,
    mask: Mask,
    classes: Sequence[ClassInfo],
    drawn_range: tuple[float, float],
    score_name: str,
) -> RgbImage:
    """Return input | labels | anomaly heat map | mask side by side in a 2x2 grid, captioned; uint8 (2H, 2W, 3) RGB.

    Everything is brought to the frame's size, or to MAX_TILE_PX across where that is less.
    """
    width = min(image.shape[1], MAX_TILE_PX)
    height = round(image.shape[0] * width / image.shape[1])
    small = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    tiles = {
        "input": small,
        "labels": label_colors(resized_labels(labels, height, width), palette(classes)),
        f"anomaly score: {score_name}": heat_map(resized_scores(scores, height, width), *drawn_range),
        "anomaly mask on labels": overlay(small, labels, mask, palette(classes)),
    }
    captioned = [_caption(tile, text) for text, tile in tiles.items()]
    return np.vstack([np.hstack(captioned[:2]), np.hstack(captioned[2:])])


def _caption(tile: RgbImage, text: str) -> RgbImage:
    tile = np.ascontiguousarray(tile)
    scale = max(tile.shape[1] / 1024, 0.4)
    (width, height), baseline = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    margin = round(10 * scale)
    # A dark band, not a thicker outline below the text: from OpenCV 5 on, thicker text is also wider.
    cv2.rectangle(tile, (0, 0), (width + 2 * margin, height + baseline + margin), (0, 0, 0), cv2.FILLED)
    origin = (margin, margin // 2 + height)
    cv2.putText(tile, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), 1, cv2.LINE_AA)
    return tile
