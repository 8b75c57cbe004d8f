"""Pictures of a detector's outputs for people to look at."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.anomaly_marks import anomaly_color, draw_marks, drawn_area, drawn_contours
from anomseg_ros.core.labels import UNLABELLED, ClassInfo, palette
from anomseg_ros.core.picture_legend import class_legend, score_bar
from anomseg_ros.core.preprocess import resized_labels, resized_scores
from anomseg_ros.core.score_scale import ScoreScale
from anomseg_ros.core.types import LabelImage, Mask, Outputs, RgbImage, ScoreMap

LABEL_WEIGHT = 0.45
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


def overlay(image: RgbImage, labels: LabelImage, mask: Mask | None, colors: npt.NDArray[np.uint8]) -> RgbImage:
    """Return the frame tinted by class colour, its anomalies hatched and outlined (`anomaly_marks`).

    image: uint8 (H, W, 3) RGB; labels, mask: of any one size; the result has the image's size. Unlabelled pixels keep
    the frame's own colour. Of the mask, only components that are large enough to be seen are drawn; the mask itself is
    not changed.
    """
    height, width = image.shape[:2]
    labels = resized_labels(labels, height, width)
    contours = [] if mask is None else drawn_contours(resized_labels(mask, height, width))
    untinted = np.asarray(labels == UNLABELLED).view(np.uint8)
    tinted = np.asarray(
        cv2.addWeighted(image, 1 - LABEL_WEIGHT, label_colors(labels, colors), LABEL_WEIGHT, 0), np.uint8
    )
    if not contours:
        cv2.copyTo(image, untinted, tinted)
        return tinted
    area = drawn_area(contours, height, width)
    cv2.copyTo(image, cv2.bitwise_or(area, untinted), tinted)
    draw_marks(tinted, contours, area, anomaly_color(colors))
    return tinted


def panel(
    image: RgbImage,
    outputs: Outputs,
    mask: Mask,
    classes: Sequence[ClassInfo],
    scale: ScoreScale,
    score: str,
    threshold: float | None = None,
) -> RgbImage:
    """Return frame, overlay, score map and mask in a 2x2 grid, captioned, with the legends below; uint8 (h, w, 3) RGB.

    Args:
        image: uint8 (H, W, 3) RGB. Tiles have its size, or MAX_TILE_PX across where that is less.
        outputs: with labels and the score, of any size.
        mask: uint8, not 0 = anomalous, of any size.
        classes: those of the labels.
        scale: colours of the score.
        score: its name.
        threshold: that of the mask, marked on the colour bar.
    """
    assert outputs.labels is not None
    width = min(image.shape[1], MAX_TILE_PX)
    height = round(image.shape[0] * width / image.shape[1])
    small = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    tiles = {
        "camera": small,
        "classes and anomalies": overlay(small, outputs.labels, mask, palette(classes)),
        f"anomaly score: {score}": scale.colored(resized_scores(outputs.scores[score], height, width)),
        "anomaly mask": cv2.merge([resized_labels(mask, height, width)] * 3),
    }
    captioned = [with_caption(np.asarray(tile, np.uint8), text) for text, tile in tiles.items()]
    grid = np.vstack([np.hstack(captioned[:2]), np.hstack(captioned[2:])])
    return np.vstack([grid, score_bar(scale, score, 2 * width, threshold), class_legend(classes, 2 * width)])


def with_caption(tile: RgbImage, text: str) -> RgbImage:
    """Return a uint8 (H, W, 3) RGB picture with a text in its upper left corner."""
    tile = np.ascontiguousarray(tile)
    scale = max(tile.shape[1] / 1024, 0.4)
    (width, height), baseline = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    margin = round(10 * scale)
    # A dark band, not a thicker outline below the text: from OpenCV 5 on, thicker text is also wider.
    cv2.rectangle(tile, (0, 0), (width + 2 * margin, height + baseline + margin), (0, 0, 0), cv2.FILLED)
    origin = (margin, margin // 2 + height)
    cv2.putText(tile, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), 1, cv2.LINE_AA)
    return tile
