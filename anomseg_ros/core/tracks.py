"""Components of anomaly masks followed over time: which is the same thing as before, and which is there often enough.

Every track moves on with constant velocity, by the stamps of the frames. Components and tracks are paired greedily, the
pair that overlaps most first; pairs that do not overlap are taken if they are of like size and close to one another. A
track ends when it was not seen for a time. Its id is never given again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from anomseg_ros.core.connected_components import Component, numbered_components
from anomseg_ros.core.types import Mask, ScoreMap
from anomseg_ros.errors import ConfigError

MIN_IOU = 0.1
"""Boxes that overlap less are paired by the distance of their centres."""

MAX_DISTANCE = 1.0
"""Of centres, in units of the mean diagonal of the two boxes."""

MAX_AREA_RATIO = 4.0
"""Between two boxes that do not overlap."""

VELOCITY_GAIN = 0.5
"""Share of the newest measured velocity in a track's."""

LONGEST_WINDOW = 100
"""Most frames that an alarm may be judged by."""

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AlarmRule:
    """What makes an alarm of a component.

    min_area_px: of the component. frames_n, frames_m: a track is confirmed, for its life, once it was there in n of the
    last m frames. timeout_s: how long a track lives without being seen.
    """

    min_area_px: int = 1
    frames_n: int = 1
    frames_m: int = 1
    timeout_s: float = 0.5

    @property
    def is_immediate(self) -> bool:
        """Whether every component is an alarm at once."""
        return self.frames_n == 1


def check_alarm_frames(frames_n: int, frames_m: int) -> None:
    """Raise ConfigError unless n of m frames can be asked for."""
    if not 1 <= frames_n <= frames_m <= LONGEST_WINDOW:
        raise ConfigError(
            f"alarm_frames_n is {frames_n!r}, alarm_frames_m {frames_m!r}; expected n of m frames with 1 <= n <= m <= "
            f"{LONGEST_WINDOW}; set both at once, or first the one that makes room"
        )


@dataclass(frozen=True)
class Alarm:
    """A component of a confirmed track, and the track's id, 1 or more."""

    track_id: int
    component: Component


@dataclass(frozen=True)
class Alarms:
    """The alarms of one frame, largest first; mask: uint8 (H, W), 255 where their pixels are."""

    alarms: Sequence[Alarm]
    mask: Mask


@dataclass
class _Track:
    id: int
    box: _Floats  # x, y of the centre, width, height, in pixels
    seen_ns: int
    velocity: _Floats = field(default_factory=lambda: np.zeros(2))  # pixels per second
    history: int = 0  # a bit per frame, the newest lowest
    confirmed: bool = False

    def predicted(self, stamp_ns: int) -> _Floats:
        moved: _Floats = self.box.copy()
        moved[:2] += self.velocity * ((stamp_ns - self.seen_ns) / 1e9)
        return moved

    def see(self, box: _Floats, stamp_ns: int) -> None:
        elapsed_s = (stamp_ns - self.seen_ns) / 1e9
        if elapsed_s > 0:
            measured = (box[:2] - self.box[:2]) / elapsed_s
            is_first = self.history.bit_count() == 1
            self.velocity += (1.0 if is_first else VELOCITY_GAIN) * (measured - self.velocity)
        self.box, self.seen_ns = box, stamp_ns

    def count(self, seen: bool, rule: AlarmRule) -> None:
        self.history = (self.history << 1 | seen) & ((1 << LONGEST_WINDOW) - 1)
        hits = (self.history & ((1 << rule.frames_m) - 1)).bit_count()
        self.confirmed = self.confirmed or hits >= rule.frames_n


class Tracker:
    """Follows the components of one camera's masks, frame by frame."""

    def __init__(self) -> None:
        self._tracks: list[_Track] = []
        self._last_id = 0
        self._stamp_ns = 0
        self._shape: tuple[int, ...] = ()

    def reset(self) -> None:
        """End all tracks; new ones get ids of their own."""
        self._tracks = []

    def alarms(self, stamp_ns: int, mask: Mask, scores: ScoreMap, rule: AlarmRule) -> Alarms:
        """Follow what is in the next frame and return the alarms.

        Tracks end at a stamp before the last one, and where the size changes.

        Args:
            stamp_ns: of the frame.
            mask: uint8 (H, W), non-zero where anomalous; returned as it is where every component is an alarm.
            scores: float32 (H, W).
            rule: what makes an alarm.
        """
        if stamp_ns < self._stamp_ns or mask.shape != self._shape:
            self.reset()
        self._stamp_ns, self._shape = stamp_ns, mask.shape
        ids, numbered = numbered_components(mask, scores, rule.min_area_px)
        tracks = self._follow(stamp_ns, [component for _, component in numbered], rule)
        followed = zip(numbered, tracks, strict=True)
        confirmed = [(number, Alarm(track.id, part)) for (number, part), track in followed if track.confirmed]
        alarms = [alarm for _, alarm in confirmed]
        if rule.is_immediate:
            return Alarms(alarms, mask)
        shown = np.zeros(int(ids.max()) + 1, np.uint8)
        shown[[number for number, _ in confirmed]] = 255
        return Alarms(alarms, shown[ids])

    def _follow(self, stamp_ns: int, components: Sequence[Component], rule: AlarmRule) -> list[_Track]:
        """Return the track of each component."""
        self._tracks = [track for track in self._tracks if stamp_ns - track.seen_ns <= rule.timeout_s * 1e9]
        boxes = np.array([_box(component) for component in components], np.float64).reshape(-1, 4)
        predicted = np.array([track.predicted(stamp_ns) for track in self._tracks], np.float64).reshape(-1, 4)
        partners = _paired(boxes, predicted)
        followed: list[_Track] = []
        for number, box in enumerate(boxes):
            if number in partners:
                track = self._tracks[partners[number]]
                track.see(box, stamp_ns)
            else:
                self._last_id += 1
                track = _Track(self._last_id, box, stamp_ns)
            followed.append(track)
        seen = {track.id for track in followed}
        known = {track.id for track in self._tracks}
        self._tracks += [track for track in followed if track.id not in known]
        for track in self._tracks:
            track.count(track.id in seen, rule)
        return followed


def _box(component: Component) -> tuple[float, float, float, float]:
    width, height = component.width_px, component.height_px
    return component.x_px + (width - 1) / 2, component.y_px + (height - 1) / 2, width, height


def _paired(boxes: _Floats, predicted: _Floats) -> dict[int, int]:
    """Return component -> track for boxes (D, 4) and tracks (T, 4): centre x, y, width, height."""
    if not len(boxes) or not len(predicted):
        return {}
    affinity = _affinity(boxes[:, np.newaxis], predicted[np.newaxis])
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for flat in np.argsort(-affinity, axis=None, kind="stable"):
        component, track = divmod(int(flat), len(predicted))
        if affinity[component, track] <= 0:
            break
        if component not in pairs and track not in taken:
            pairs[component] = track
            taken.add(track)
    return pairs


def _affinity(one: _Floats, other: _Floats) -> _Floats:
    """Return IoU from MIN_IOU on; below it less than MIN_IOU by the distance of the centres; 0 for no pair."""
    extent = (one[..., 2:] + other[..., 2:]) / 2
    apart = np.abs(one[..., :2] - other[..., :2])
    overlap = np.clip(np.minimum(extent - apart, np.minimum(one[..., 2:], other[..., 2:])), 0, None).prod(axis=-1)
    areas = one[..., 2:].prod(axis=-1), other[..., 2:].prod(axis=-1)
    iou = overlap / (areas[0] + areas[1] - overlap)
    diagonal = (np.hypot(*np.moveaxis(one[..., 2:], -1, 0)) + np.hypot(*np.moveaxis(other[..., 2:], -1, 0))) / 2
    closeness = 1 - np.hypot(*np.moveaxis(apart, -1, 0)) / (MAX_DISTANCE * diagonal)
    alike = np.maximum(areas[0], areas[1]) <= MAX_AREA_RATIO * np.minimum(areas[0], areas[1])
    near = np.where(alike & (closeness > 0), MIN_IOU * closeness, 0.0)
    return np.where(iou >= MIN_IOU, iou, near)
