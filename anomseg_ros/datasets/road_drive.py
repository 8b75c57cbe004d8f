"""Paste objects onto the road of a real drive. They stand still and grow as the car comes closer.

Real drives seldom have anomalies, and those have no labels. Here the road, the light and the traffic are real, and the
objects are drawn (outliers/objects.py), so their pixels are known.

The geometry is that of a pinhole camera over a flat, straight road: an object `distance_m` ahead meets the road
`focal_px * height_m / distance_m` rows below the horizon.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from anomseg_ros.core.schema import from_plain
from anomseg_ros.core.types import LabelImage, RgbImage
from anomseg_ros.core.untrusted_text import parse_yaml
from anomseg_ros.datasets.dataset import ANOMALY, KNOWN, LabelledFrame
from anomseg_ros.errors import ConfigError, reason_of, unknown_name
from anomseg_ros.outliers.cut_paste import OUTLIER, paste_at
from anomseg_ros.outliers.objects import ALL_KINDS, OutlierObject, ProceduralObjects

_DRAWN_PX = 256
"""Longer side at which an object is drawn once, before it is scaled for each frame."""

_NEAREST_M = 2.0
_FARTHEST_M = 120.0
"""Objects are pasted between these distances. Farther ones have a few pixels; nearer ones are below the picture."""

_FEATHER_PX = 0.8
_TONE_MATCH = 0.4
_SHADOW_DEPTH = 0.45
"""Share of the light that the road loses below an object."""


@dataclass(frozen=True)
class RoadCamera:
    """The camera of a drive and how it moves, for frames of width_px x height_px.

    focal_px: focal length. above_road_m: height of the camera. horizon_px: row of the horizon. vanishing_px: column
    where the road vanishes. speed_mps: along the road. path: (seconds, metres right of where the camera was at first),
    linear between; constant before and after.
    """

    width_px: int
    height_px: int
    focal_px: float
    above_road_m: float
    horizon_px: float
    vanishing_px: float
    speed_mps: float
    path: tuple[tuple[float, float], ...] = ((0.0, 0.0),)

    def __post_init__(self) -> None:
        """Raise ConfigError for values out of range."""
        for name in ("width_px", "height_px", "focal_px", "above_road_m", "speed_mps"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"camera: {name} is {getattr(self, name)!r}; expected a number above 0")
        times = [time_s for time_s, _ in self.path]
        if not times or times != sorted(times):
            raise ConfigError(f"camera: path is {self.path!r}; expected [seconds, metres] in order of time")

    def moved_m(self, time_s: float) -> float:
        """Return how far the camera is to the right of its first place."""
        times, metres = zip(*self.path, strict=True)
        return float(np.interp(time_s, times, metres))


@dataclass(frozen=True)
class RoadObject:
    """One object on the road.

    name: with its article, for texts. kind: of ALL_KINDS. seed: chooses the object of its kind. size_m: longer side.
    lateral_m: distance of its middle to the right of the camera's first place. passed_at_s: when the car reaches it, in
    seconds since the first frame.
    """

    name: str
    kind: str
    seed: int
    size_m: float
    lateral_m: float
    passed_at_s: float

    def __post_init__(self) -> None:
        """Raise ConfigError for an unknown kind or an empty object."""
        if self.kind not in ALL_KINDS:
            raise ConfigError(unknown_name("kind of object", self.kind, ALL_KINDS))
        if not self.size_m > 0:
            raise ConfigError(f"object {self.kind!r}: size_m is {self.size_m!r}; expected metres above 0")


@dataclass(frozen=True)
class RoadScene:
    """The objects for a drive. source: the origin of the drive, for texts."""

    source: str
    camera: RoadCamera
    objects: tuple[RoadObject, ...]


def load_road_scene(path: Path) -> RoadScene:
    """Read a scene from YAML. Raises ConfigError with the file and the fault."""
    import yaml

    try:
        plain = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"road scene {str(path)!r} cannot be read: {reason_of(error)}") from error
    return from_plain(RoadScene, plain, str(path))


def paste_on_road(frames: Iterable[RgbImage], rate_hz: float, scene: RoadScene) -> Iterator[LabelledFrame]:
    """Yield the frames of a drive with the objects of the scene; the anomaly mask is 1 in the objects, else 0.

    frames: uint8 (H, W, 3) RGB of the camera's size. rate_hz: frames per second.

    Raises:
        ConfigError: a frame of another size than the camera's.
    """
    drawn: list[OutlierObject] = []
    size_px = (scene.camera.height_px, scene.camera.width_px)
    # The farthest first: near objects hide far ones.
    objects = sorted(scene.objects, key=lambda standing: -standing.passed_at_s)
    for index, frame in enumerate(frames):
        if frame.shape[:2] != size_px:
            raise ConfigError(
                f"frame {index} is {frame.shape[1]}x{frame.shape[0]}, the scene's camera {size_px[1]}x{size_px[0]}; "
                "give the video that the scene was made for"
            )
        drawn = drawn or [_drawn(standing, frame) for standing in objects]
        image, labels = frame.copy(), np.zeros(size_px, np.uint8)
        for standing, picture in zip(objects, drawn, strict=True):
            _paste(image, labels, standing, picture, scene.camera, index / rate_hz)
        anomaly = np.where(labels == OUTLIER, ANOMALY, KNOWN).astype(np.uint8)
        yield LabelledFrame(f"{index:06d}", image, None, anomaly)


def _drawn(standing: RoadObject, frame: RgbImage) -> OutlierObject:
    source = ProceduralObjects((standing.kind,), (_DRAWN_PX, _DRAWN_PX))
    return source.draw(np.random.default_rng(standing.seed), [frame])


def _paste(
    image: RgbImage, labels: LabelImage, standing: RoadObject, drawn: OutlierObject, camera: RoadCamera, time_s: float
) -> None:
    """Paste one object at its place in a frame, unless it is too far away or was passed."""
    distance_m = camera.speed_mps * (standing.passed_at_s - time_s)
    if not _NEAREST_M < distance_m < _FARTHEST_M:
        return
    px_per_m = camera.focal_px / distance_m
    scale = standing.size_m * px_per_m / _DRAWN_PX
    height_px, width_px = (side * scale for side in drawn.mask.shape)
    bottom_px = camera.horizon_px + camera.above_road_m * px_per_m
    middle_px = camera.vanishing_px + (standing.lateral_m - camera.moved_m(time_s)) * px_per_m
    if bottom_px - height_px > image.shape[0] or not -width_px / 2 < middle_px < image.shape[1] + width_px / 2:
        return
    _shade(image, middle_px, bottom_px, width_px)
    # Whole pixels, like the scaled object; its foot must be exactly in place.
    place_px = (round(bottom_px) - int(height_px), round(middle_px - int(width_px) / 2))
    paste_at(image, labels, drawn, scale, place_px, _FEATHER_PX, _TONE_MATCH)


def _shade(image: RgbImage, middle_px: float, bottom_px: float, width_px: float) -> None:
    """Darken the road below an object, in place. Objects without a shadow seem to float."""
    radius = (width_px * 0.55, max(width_px * 0.1, 1.0))
    top, bottom = (int(np.clip(bottom_px + side * 2 * radius[1], 0, image.shape[0])) for side in (-1, 1))
    left, right = (int(np.clip(middle_px + side * 1.3 * radius[0], 0, image.shape[1])) for side in (-1, 1))
    if top >= bottom or left >= right:
        return
    rows, columns = np.arange(top, bottom, dtype=np.float32)[:, None], np.arange(left, right, dtype=np.float32)
    away = ((columns - middle_px) / radius[0]) ** 2 + ((rows - bottom_px) / radius[1]) ** 2
    light = 1 - np.float32(_SHADOW_DEPTH) * np.exp(-1.5 * away * away).astype(np.float32)
    place = np.s_[top:bottom, left:right]
    image[place] = cv2.multiply(image[place], cv2.merge([light] * 3), dtype=cv2.CV_8U)
