"""Anomaly scores smoothed over time: noise that comes and goes is damped, what stays is kept.

The filter is a first-order low-pass with a time constant, by the stamps of the frames: with dt since the frame before,
filtered = scores + exp(-dt / time_constant) * (before - scores). Dropped frames therefore change nothing but dt.

`warped` first moves what was filtered before to where the scene is now: dense inverse search flow (Kroeger et al., ECCV
2016, its fastest preset) between the two frames at 512 pixels across. Pixels that come into view have no past.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.types import RgbImage, ScoreMap
from anomseg_ros.errors import ConfigError, unknown_name

NO_FILTER, EXPONENTIAL, WARPED = "none", "exponential", "warped"
FILTERS = (NO_FILTER, EXPONENTIAL, WARPED)

TIME_CONSTANTS_S = 0.01, 10.0
"""Shortest and longest time constant, seconds."""

MAX_GAP_S = 1.0
"""After a longer gap the scene is another one, whatever the time constant."""

MAX_GAP_CONSTANTS = 5.0
"""After so many time constants less than a hundredth of the past would be left: it is not worth the warping."""

FLOW_WIDTH_PX = 512

_Gray = npt.NDArray[np.uint8]
_Flow = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FilterSpec:
    """Which of FILTERS, and after how many seconds 63 % of a change are through."""

    kind: str = NO_FILTER
    time_constant_s: float = 0.1

    def __post_init__(self) -> None:
        """Raise ConfigError for what cannot be done."""
        if self.kind not in FILTERS:
            raise ConfigError(unknown_name("temporal filter", self.kind, FILTERS))
        low, high = TIME_CONSTANTS_S
        if not low <= self.time_constant_s <= high:
            raise ConfigError(
                f"filter_time_constant_s is {self.time_constant_s!r}; expected {low:g} to {high:g} seconds"
            )

    @property
    def is_on(self) -> bool:
        """Whether anything is filtered."""
        return self.kind != NO_FILTER

    @property
    def described(self) -> str:
        """Return it in words, for logs and diagnostics."""
        return f"{self.kind}, {self.time_constant_s:g} s" if self.is_on else self.kind


UNFILTERED = FilterSpec()


@dataclass
class _Past:
    kind: str
    score: str
    stamp_ns: int
    scores: ScoreMap
    gray: _Gray | None


class ScoreFilter:
    """Filters the score maps of one camera, in the order in which they are given.

    It begins anew after a gap, at a stamp that is not after the one before, and for scores of another name or size.
    """

    def __init__(self) -> None:
        self._past: _Past | None = None
        self._flow: FrameFlow | None = None

    def reset(self) -> None:
        """Forget what came before."""
        self._past = None

    def filtered(self, spec: FilterSpec, score: str, stamp_ns: int, scores: ScoreMap, frame: RgbImage) -> ScoreMap:
        """Return the filtered scores, float32 (H, W); those given are not changed.

        Args:
            spec: what to do; without a filter, `scores` is returned as it is.
            score: name of the score.
            stamp_ns: of the frame.
            scores: float32 (H, W), all finite; scores that are not are returned as they are, and forgotten.
            frame: uint8 (h, w, 3) RGB of any size, of the same view.
        """
        if not spec.is_on:
            self._past = None
            return scores
        gray = self._small(frame, scores.shape) if spec.kind == WARPED else None
        weight = self._weight_of_past(spec, score, stamp_ns, scores)
        blended = scores
        if weight > 0 and self._past is not None:
            before = self._past.scores if gray is None else self._moved(self._past, gray, scores)
            blended = np.asarray(cv2.addWeighted(before, weight, scores, 1 - weight, 0), np.float32)
        is_finite, _ = cv2.checkRange(blended)
        # One NaN would stay for ever.
        self._past = _Past(spec.kind, score, stamp_ns, blended, gray) if is_finite else None
        return blended

    def _weight_of_past(self, spec: FilterSpec, score: str, stamp_ns: int, scores: ScoreMap) -> float:
        """Return 0 where nothing of the past may be used."""
        past = self._past
        if past is None or (past.kind, past.score, past.scores.shape) != (spec.kind, score, scores.shape):
            return 0.0
        elapsed_s = (stamp_ns - past.stamp_ns) / 1e9
        if not 0 < elapsed_s <= min(MAX_GAP_S, MAX_GAP_CONSTANTS * spec.time_constant_s):
            return 0.0
        return math.exp(-elapsed_s / spec.time_constant_s)

    def _small(self, frame: RgbImage, shape: tuple[int, ...]) -> _Gray:
        if self._flow is None or self._flow.shape != shape:
            self._flow = FrameFlow(shape[0], shape[1])
        return self._flow.small(frame)

    def _moved(self, past: _Past, gray: _Gray, scores: ScoreMap) -> ScoreMap:
        if past.gray is None or self._flow is None:
            return past.scores
        return self._flow.moved(past.scores, self._flow.between(past.gray, gray), scores)


class FrameFlow:
    """Optical flow between frames, taken at a small size, for maps of one size."""

    def __init__(
        self,
        height_px: int,
        width_px: int,
        flow_width_px: int = FLOW_WIDTH_PX,
        preset: int = cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    ) -> None:
        """Take the size of the maps that are moved, how wide the frames are made for the flow, and OpenCV's preset."""
        self.shape = (height_px, width_px)
        scale = min(1.0, flow_width_px / width_px)
        # Of the maps' proportions, so that one factor takes both coordinates of a flow to their size.
        self._size = max(16, round(width_px * scale)), max(16, round(height_px * scale))
        self._factor = width_px / self._size[0]
        x, y = np.arange(width_px, dtype=np.float32), np.arange(height_px, dtype=np.float32)
        self._grid = np.ascontiguousarray(np.dstack(np.meshgrid(x, y)))
        # OpenCV's type stubs know neither this name nor a map of both coordinates.
        self._dis = cv2.DISOpticalFlow_create(preset)  # type: ignore[attr-defined]

    def small(self, frame: RgbImage) -> _Gray:
        """Return a uint8 (h, w, 3) RGB frame of any size as the gray one that flows are taken of."""
        small = cv2.resize(frame, self._size, interpolation=cv2.INTER_LINEAR)
        return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8)

    def between(self, before: _Gray, now: _Gray) -> _Flow:
        """Return float32 (H, W, 2): for each pixel of a map of `now`, x and y of where it was `before`."""
        flow = self._dis.calc(now, before, None)
        size = self.shape[1], self.shape[0]
        enlarged = cv2.resize(flow, size, interpolation=cv2.INTER_LINEAR)
        return np.asarray(cv2.addWeighted(enlarged, self._factor, self._grid, 1.0, 0), np.float32)

    def moved(self, before: ScoreMap, places: _Flow, unknown: ScoreMap) -> ScoreMap:
        """Return a float32 (H, W) map as `places` moves it; pixels that were not in view are those of `unknown`."""
        unseen, edge = unknown.copy(), cv2.BORDER_TRANSPARENT
        moved = cv2.remap(before, places, None, cv2.INTER_LINEAR, dst=unseen, borderMode=edge)  # type: ignore[call-overload]
        return np.asarray(moved, np.float32)

    def nearest(self, before: npt.NDArray[np.bool_], places: _Flow) -> npt.NDArray[np.bool_]:
        """Return a bool (H, W) mask as `places` moves it, False where that was not in view."""
        moved = cv2.remap(before.view(np.uint8), places, None, cv2.INTER_NEAREST)  # type: ignore[call-overload]
        return np.asarray(moved, np.uint8) > 0

    def in_view(self, places: _Flow) -> npt.NDArray[np.bool_]:
        """Return bool (H, W): whether a pixel was in view before."""
        x, y = places[..., 0], places[..., 1]
        inside: npt.NDArray[np.bool_] = (x >= 0) & (x <= self.shape[1] - 1) & (y >= 0) & (y <= self.shape[0] - 1)
        return inside
