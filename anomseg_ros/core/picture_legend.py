"""Legends below pictures: the classes with the mark of anomalies, and the colour bar of a score."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.anomaly_marks import EDGE_COLOR, Rgb, anomaly_color, draw_marks
from anomseg_ros.core.labels import UNLABELLED, ClassInfo, palette
from anomseg_ros.core.score_scale import ScoreScale, color_map
from anomseg_ros.core.types import RgbImage

GROUND: Rgb = (24, 24, 24)
INK: Rgb = (240, 240, 240)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_ANOMALY = "anomaly"
UNKNOWN = "no known class"
"""Name of the pixels that are none of the known classes and keep the frame's own colour."""


def with_class_legend(picture: RgbImage, classes: Sequence[ClassInfo], *, anomalies: bool = True) -> RgbImage:
    """Return a uint8 (H, W, 3) RGB picture with the names and colours of all classes below it, taller than before.

    The height depends on the classes and the width alone, so that the pictures of a drive have one size. anomalies:
    also show how anomalies are marked.
    """
    return np.vstack([picture, class_legend(classes, picture.shape[1], anomalies=anomalies)])


def with_score_bar(picture: RgbImage, scale: ScoreScale, name: str, threshold: float | None = None) -> RgbImage:
    """Return a uint8 (H, W, 3) RGB picture with the colour bar of its score below it, taller than before.

    name: of the score. threshold: of the mask, marked on the bar.
    """
    return np.vstack([picture, score_bar(scale, name, picture.shape[1], threshold)])


def class_legend(classes: Sequence[ClassInfo], width: int, *, anomalies: bool = True) -> RgbImage:
    """Return uint8 (h, width, 3) RGB: a swatch and the name of each class in columns, the anomaly first.

    Where pixels can be none of the known classes, because a class has the train id 255, an empty swatch comes last.
    """
    size = _text_size(width)
    entries = [(_plain(info.name), info.color) for info in classes if info.train_id != UNLABELLED]
    if len(entries) < len(classes):
        entries.append((UNKNOWN, GROUND))
    names = ([_ANOMALY] if anomalies else []) + [name for name, _ in entries]
    swatch, gap, row = round(34 * size), round(14 * size), round(32 * size)
    cell = max((_text_width(name, size) for name in names), default=0) + swatch + 3 * gap
    columns = max(1, min((width - gap) // cell, len(names)))
    strip = _ground(-(-len(names) // columns) * row + gap, width)
    color = anomaly_color(palette(classes))
    for place, name in enumerate(names):
        x, y = gap + place % columns * ((width - gap) // columns), gap // 2 + place // columns * row
        box = strip[y + row // 6 : y + row - row // 6, x : x + swatch]
        if anomalies and place == 0:
            box[:] = 110
            _draw_anomaly(box, color)
        else:
            box[:] = entries[place - anomalies][1]
            cv2.rectangle(strip, (x, y + row // 6), (x + swatch - 1, y + row - row // 6 - 1), (120, 120, 120), 1)
        _put_text(strip, name, (x + swatch + gap // 2, y + round(0.68 * row)), size)
    return strip


def score_bar(scale: ScoreScale, name: str, width: int, threshold: float | None = None) -> RgbImage:
    """Return uint8 (h, width, 3) RGB: the colours with labelled thresholds, or the ends of the range without any."""
    size = _text_size(width)
    row, margin = round(30 * size), round(24 * size)
    strip = _ground(round(3.6 * row), width)
    left, right, top = margin, width - margin, round(1.25 * row)
    if right <= left:  # no room for a bar
        return strip
    bar = color_map()[np.linspace(0, 255, right - left).round().astype(np.uint8)]
    strip[top : top + row, left:right] = bar[None]
    cv2.rectangle(strip, (left - 1, top - 1), (right, top + row), (120, 120, 120), 1)
    key = "" if threshold is None else "mask"
    title = f"score {name}; " + ("ticks: share of usual pixels above" if scale.ticks else "no calibrated threshold")
    room = right - left - _text_width(key, size) - 2 * row
    _put_text(strip, title, (left, round(0.85 * row)), _fitting(title, size, room))
    for value, label in scale.ticks:
        x = left + round(scale.place(value) * (right - left - 1))
        _draw_tick(strip, x, (top, top + row + row // 4), INK, size)
        _put_text(strip, label, (x - _text_width(label, size) // 2, top + 2 * row), size)
    for text, x in (("usual", left), ("anomalous", right - _text_width("anomalous", size))):
        _put_text(strip, text, (x, top + 2 * row), size)
    if threshold is not None:
        _draw_threshold(strip, left + round(scale.place(threshold) * (right - left - 1)), top, size)
        _put_text(strip, key, (right - _text_width(key, size), round(0.85 * row)), size)
        _draw_threshold(strip, right - _text_width(key, size) - row // 2, round(0.7 * row), size)
    return strip


def _draw_anomaly(box: npt.NDArray[np.uint8], color: Rgb) -> None:
    height, width = box.shape[:2]
    corners = [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]
    swatch = np.ascontiguousarray(box)
    draw_marks(swatch, [np.array(corners, np.int32)[:, None]], np.full((height, width), 255, np.uint8), color)
    box[:] = swatch


def _draw_tick(strip: RgbImage, x: int, ends: tuple[int, int], color: Rgb, size: float) -> None:
    line = max(1, round(2 * size))
    cv2.line(strip, (x, ends[0]), (x, ends[1]), EDGE_COLOR, line + 2)
    cv2.line(strip, (x, ends[0]), (x, ends[1]), color, line)


def _draw_threshold(strip: RgbImage, x: int, y: int, size: float) -> None:
    """Draw the sign of the mask's threshold, a triangle above y that points down to it."""
    half = max(4, round(9 * size))
    triangle = np.array([[x - half, y - half], [x + half, y - half], [x, y + half // 2]], np.int32)
    cv2.fillPoly(strip, [triangle], INK, cv2.LINE_AA)
    cv2.polylines(strip, [triangle], True, EDGE_COLOR, 1, cv2.LINE_AA)


def _text_size(width: int) -> float:
    """Return the scale of the font: letters of 9 px in pictures up to 760 px wide, larger in wider ones."""
    return float(np.clip(width / 1900, 0.4, 1.6))


def _fitting(text: str, size: float, width: int) -> float:
    return min(size, size * width / max(1, _text_width(text, size)))


def _text_width(text: str, size: float) -> int:
    return int(cv2.getTextSize(text, _FONT, size, 1)[0][0])


def _put_text(strip: RgbImage, text: str, origin: tuple[int, int], size: float) -> None:
    cv2.putText(strip, text, origin, _FONT, size, INK, max(1, round(size)), cv2.LINE_AA)


def _plain(name: str) -> str:
    """Return a name in the letters that OpenCV has: without accents, and others as question marks."""
    letters = unicodedata.normalize("NFKD", name.replace("ß", "ss"))
    return "".join(each for each in letters if not unicodedata.combining(each)).encode("ascii", "replace").decode()


def _ground(height: int, width: int) -> RgbImage:
    strip: RgbImage = np.empty((height, width, 3), np.uint8)
    strip[:] = GROUND
    return strip
