"""The colours of score maps: the same colour means the same false-positive rate in every bundle and score.

A score's own range says little: max_logit lies between -20 and 0, and usual roads lie in its upper half. So the scale
is anchored at the bundle's thresholds. Pixels below the lowest one are dark. From there, the colours rise piecewise
linearly from anchor to anchor. They are those of inferno, which people without red or green cones also see from dark to
bright. A bundle without thresholds is drawn linearly over the score's range.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.types import RgbImage, ScoreMap

ANCHOR_RATES = (0.05, 0.01, 0.001)
"""False-positive rates whose thresholds anchor the colours, or the calibrated rates nearest to them."""
FIRST_ANCHOR = 0.25
"""Place of the lowest threshold along the colours, 0 to 1; the others follow at equal distances."""
_STRIP_ROWS = 64
_LARGEST = 1e30  # of a threshold that can be drawn in float32
COLOR_MAP = cv2.COLORMAP_INFERNO


@dataclass(frozen=True)
class ScoreScale:
    """Places along the colours: `values` (strictly rising scores) are at `places` (0 to 1), piecewise linear between.

    ticks: (score, label) of the thresholds, rising; empty without thresholds.
    """

    values: tuple[float, ...]
    places: tuple[float, ...]
    ticks: tuple[tuple[float, str], ...] = ()

    def place(self, score: float) -> float:
        """Return the place of a score along the colours, 0 to 1."""
        return float(np.interp(score, self.values, self.places))

    def gray(self, scores: ScoreMap) -> npt.NDArray[np.uint8]:
        """Return uint8 (H, W): the places of a float32 (H, W) score map, 0 to 255, clipped at the ends."""
        drawn = np.empty(scores.shape, np.uint8)
        # A sum of clipped ramps, in strips that stay in the cache: np.interp takes ten times as long.
        for top in range(0, len(scores), _STRIP_ROWS):
            drawn[top : top + _STRIP_ROWS] = self._places(scores[top : top + _STRIP_ROWS])
        return drawn

    def _places(self, scores: ScoreMap) -> npt.NDArray[np.float32]:
        """Return the places, 0 to 255, and 0.5 more, so that a cast rounds them."""
        total = np.full_like(scores, 0.5)
        ramp, values = np.empty_like(total), np.array(self.values, np.float32)
        for low, high, start, end in zip(values, values[1:], self.places, self.places[1:], strict=False):
            np.clip(scores, low, high, out=ramp)
            ramp -= low
            ramp *= np.float32(255 * (end - start)) / (high - low)
            total += ramp
        return np.clip(total, 0, 255, out=total)

    def colored(self, scores: ScoreMap) -> RgbImage:
        """Return uint8 (H, W, 3) RGB of a float32 (H, W) score map."""
        return np.asarray(cv2.cvtColor(cv2.applyColorMap(self.gray(scores), COLOR_MAP), cv2.COLOR_BGR2RGB), np.uint8)


def score_scale(thresholds: Mapping[float, float], drawn_range: tuple[float, float], bounded: bool) -> ScoreScale:
    """Return the scale of a score.

    Args:
        thresholds: false-positive rate -> threshold; may be empty.
        drawn_range: usual lowest and highest score.
        bounded: no score lies outside `drawn_range`.
    """
    low, high = drawn_range
    anchors = _anchors(thresholds)
    if not anchors:
        return ScoreScale((low, high if high > low else low + 1.0), (0.0, 1.0))
    first, last = anchors[0][0], anchors[-1][0]
    step = (last - first) or max(abs(last), 1.0)
    if bounded:
        low, high = min(low, first - _gap(first)), max(high, last + _gap(last))
    else:  # usual scores are dark, wherever the score's range begins
        low, high = first - step, last + step
    values = (low, *(value for value, _ in anchors), high)
    spread = np.linspace(FIRST_ANCHOR, 1, len(anchors) + 1)
    return ScoreScale(values, (0.0, *map(float, spread)), anchors)


@functools.lru_cache(maxsize=1)
def color_map() -> RgbImage:
    """Return the colours of places 0 to 1, uint8 (256, 3) RGB."""
    ramp = np.arange(256, dtype=np.uint8)[None]
    return np.asarray(cv2.cvtColor(cv2.applyColorMap(ramp, COLOR_MAP), cv2.COLOR_BGR2RGB)[0], np.uint8)


def _anchors(thresholds: Mapping[float, float]) -> tuple[tuple[float, str], ...]:
    """Return threshold and label of the rates nearest to ANCHOR_RATES, thresholds strictly rising."""
    rates = [rate for rate, value in thresholds.items() if rate > 0 and abs(value) < _LARGEST]
    nearest = {min(rates, key=lambda rate: abs(math.log(rate / wanted))) for wanted in ANCHOR_RATES if rates}
    anchors: list[tuple[float, str]] = []
    for rate in sorted(nearest, reverse=True):
        if not anchors or thresholds[rate] >= anchors[-1][0] + _gap(thresholds[rate]):
            anchors.append((thresholds[rate], f"{100 * rate:g} %"))
    return tuple(anchors)


def _gap(score: float) -> float:
    """Return the smallest difference of two anchors, which float32 can still tell apart."""
    return 1e-6 * max(1.0, abs(score))
