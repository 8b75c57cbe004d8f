"""Configuration, camera and frames of a synthetic driving sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from anomseg_ros.errors import ConfigError, unknown_name

TRAIN_KINDS = ("box", "tyre", "ball", "blob", "chair", "dog", "debris", "collage")
"""Anomaly kinds meant for training and calibration."""

HELD_OUT_KINDS = ("cone", "barrel", "sofa", "deer", "cloth", "rock")
"""Anomaly kinds that no training frame shows, to measure a detector on unseen shapes."""

ALL_KINDS = TRAIN_KINDS + HELD_OUT_KINDS

STYLES = ("urban", "suburban", "rural")

MIN_SIDE_PX = 32
MAX_SIDE_PX = 8192


@dataclass(frozen=True)
class SyntheticConfig:
    """Settings of the sequences of a set. Pairs are (least, most) of a value that is drawn per sequence.

    anomaly_probability: per 15 m of road. anomaly_kinds: equally likely kinds. Raises ConfigError.
    """

    height_px: int = 512
    width_px: int = 1024
    rate_hz: float = 10.0
    anomaly_probability: float = 0.6
    anomaly_kinds: tuple[str, ...] = ALL_KINDS
    anomaly_size_m: tuple[float, float] = (0.35, 1.5)
    styles: tuple[str, ...] = STYLES
    speed_mps: tuple[float, float] = (7.0, 15.0)
    camera_height_m: tuple[float, float] = (1.25, 1.75)
    focal_per_width: tuple[float, float] = (0.75, 1.05)
    horizon_per_height: tuple[float, float] = (0.38, 0.47)
    hood_probability: float = 0.3
    sun_elevation_deg: tuple[float, float] = (18.0, 60.0)
    cloudiness: tuple[float, float] = (0.0, 1.0)
    brightness: tuple[float, float] = (0.75, 1.15)
    warmth: tuple[float, float] = (-0.07, 0.08)
    visibility_m: tuple[float, float] = (250.0, 4000.0)
    noise_std: tuple[float, float] = (1.0, 5.0)
    blur_px: tuple[float, float] = (0.45, 0.8)
    vignetting: tuple[float, float] = (0.0, 0.3)
    jpeg_quality: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for values that cannot be drawn."""
        for name in ("height_px", "width_px"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not MIN_SIDE_PX <= value <= MAX_SIDE_PX:
                raise ConfigError(f"{name} is {value!r}; give a whole number from {MIN_SIDE_PX} to {MAX_SIDE_PX}")
        if not 0.1 <= self.rate_hz <= 1000.0:
            raise ConfigError(f"rate_hz is {self.rate_hz!r}; give frames per second from 0.1 to 1000")
        for name in ("anomaly_probability", "hood_probability"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; give a probability from 0 to 1")
        _check_names("anomaly kind", self.anomaly_kinds, ALL_KINDS)
        _check_names("scene style", self.styles, STYLES)
        for field in fields(self):
            if field.name in _LIMITS:
                _check_range(field.name, getattr(self, field.name), *_LIMITS[field.name])
        if self.jpeg_quality is not None:
            _check_range("jpeg_quality", self.jpeg_quality, 1, 100)


_LIMITS: dict[str, tuple[float, float]] = {
    "anomaly_size_m": (0.1, 4.0),
    "speed_mps": (0.0, 60.0),
    "camera_height_m": (0.5, 4.0),
    "focal_per_width": (0.3, 4.0),
    "horizon_per_height": (0.2, 0.7),
    "sun_elevation_deg": (5.0, 90.0),
    "cloudiness": (0.0, 1.0),
    "brightness": (0.1, 2.0),
    "warmth": (-0.3, 0.3),
    "visibility_m": (20.0, 100_000.0),
    "noise_std": (0.0, 40.0),
    "blur_px": (0.0, 5.0),
    "vignetting": (0.0, 0.9),
}


def _check_names(kind: str, given: Sequence[str], known: Sequence[str]) -> None:
    if isinstance(given, str) or not given:
        raise ConfigError(f"the list of {kind}s is {given!r}; give at least one of {', '.join(known)}")
    for name in given:
        if name not in known:
            raise ConfigError(unknown_name(kind, name, known))


def _check_range(name: str, value: Sequence[float], lowest: float, highest: float) -> None:
    if len(value) != 2 or not lowest <= value[0] <= value[1] <= highest:
        raise ConfigError(f"{name} is {value!r}; give (least, most) with {lowest:g} <= least <= most <= {highest:g}")


@dataclass(frozen=True)
class CameraIntrinsics:
    """A pinhole camera without distortion, in pixels. It looks along the road; the horizon is on row `cy`."""

    fx: float
    fy: float
    cx: float
    cy: float
    width_px: int
    height_px: int

    def matrix(self) -> npt.NDArray[np.float64]:
        """Return the (3, 3) float64 camera matrix K: pixel = K (x right, y down, z forward) / z."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]], np.float64)


@dataclass(frozen=True)
class SyntheticFrame:
    """One labelled frame.

    image: (H, W, 3) uint8 RGB. labels: (H, W) uint8 Cityscapes train ids 0..18, 255 unlabelled or anomalous. anomaly:
    (H, W) uint8, 0 known, 1 anomaly, 255 ignored (the ego vehicle's hood). time_s: since frame 0.
    """

    image: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    anomaly: npt.NDArray[np.uint8]
    index: int
    time_s: float
