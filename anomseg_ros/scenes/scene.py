"""The road's course and lanes, the light, and the view from the moving camera.

Road coordinates: s metres along the camera's path, u metres to its right.
Camera coordinates: x right, y down, z forward, metres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anomseg_ros.scenes.mesh import Points
from anomseg_ros.scenes.scene_config import CameraIntrinsics, SyntheticConfig
from anomseg_ros.scenes.textures import Color, Rng

CHUNK_M = 15.0
"""Length of one stretch. No building is longer, so drawing far stretches first hides things correctly."""

VIEW_M = 150.0
BEHIND_M = 20.0
NEAR_M = 0.8


@dataclass(frozen=True)
class Course:
    """The road's heading (radians, right positive) as a sum of slow waves."""

    amplitudes: npt.NDArray[np.float64]
    wavelengths_m: npt.NDArray[np.float64]
    phases: npt.NDArray[np.float64]

    def heading(self, s_m: npt.NDArray[np.float64] | float) -> npt.NDArray[np.float64]:
        """Return the heading at each s, in radians."""
        waves = np.asarray(s_m, np.float64)[..., None] * (2 * np.pi / self.wavelengths_m) + self.phases
        return np.asarray((self.amplitudes * np.sin(waves)).sum(axis=-1))


@dataclass(frozen=True)
class Layout:
    """The road's cross-section, in metres to the right of the camera's path in the middle of a lane."""

    style: str
    lane_m: float
    lanes_left: int
    lanes_right: int
    parking_left: bool
    parking_right: bool
    road_left: float
    road_right: float
    sidewalk_m: float
    setback_m: float
    oncoming_traffic: bool
    lead_vehicle: bool

    @property
    def lane_right_edge(self) -> float:
        """Right edge of the rightmost driving lane."""
        return self.lane_m * (0.5 + self.lanes_right)

    @property
    def lane_left_edge(self) -> float:
        """Left edge of the leftmost driving lane."""
        return -self.lane_m * (0.5 + self.lanes_left)


@dataclass(frozen=True)
class Light:
    """Sun, sky light and haze. ambient, sun: factors on surface colours. to_sun: east, north, up for heading 0."""

    ambient: Points
    sun: Points
    to_sun: Points
    haze: Points
    visibility_m: float
    cloudiness: float

    @property
    def sun_share(self) -> float:
        """Share of the light on the ground that a shadow removes."""
        strength = float(self.sun.mean()) * float(self.to_sun[2])
        return strength / (strength + float(self.ambient.mean()))

    def haze_at(self, z_m: float) -> float:
        """Return the share of haze in the colour of something `z_m` away; 95 % at visibility_m."""
        return float(1.0 - np.exp(-3.0 * max(z_m, 0.0) / self.visibility_m))


def draw_course(rng: Rng) -> Course:
    """Return a straight or gently curving course with radii above about 100 m."""
    bend = float(rng.choice([0.0, 0.4, 1.0]))
    return Course(
        amplitudes=rng.uniform(0.4, 1.0, 3) * np.array([0.2, 0.1, 0.04]) * bend,
        wavelengths_m=rng.uniform(0.8, 1.4, 3) * np.array([420.0, 230.0, 110.0]),
        phases=rng.uniform(0, 2 * np.pi, 3),
    )


def draw_layout(rng: Rng, config: SyntheticConfig) -> Layout:
    """Return the cross-section of one sequence's road."""
    style = str(rng.choice(config.styles))
    lane = float(rng.uniform(3.0, 3.7))
    left, right = int(rng.choice([1, 1, 2])), int(rng.choice([0, 0, 1]))
    parking = rng.random(2) < {"urban": 0.75, "suburban": 0.45, "rural": 0.0}[style]
    sidewalk = {"urban": rng.uniform(2.6, 4.5), "suburban": rng.uniform(1.5, 2.4), "rural": 0.0}[style]
    setback = {"urban": 0.1, "suburban": rng.uniform(4.0, 10.0), "rural": rng.uniform(9.0, 25.0)}[style]
    margin = 0.25 if style != "rural" else 0.5
    return Layout(
        style=style,
        lane_m=lane,
        lanes_left=left,
        lanes_right=right,
        parking_left=bool(parking[0]),
        parking_right=bool(parking[1]),
        road_left=-lane * (0.5 + left) - (2.3 if parking[0] else margin),
        road_right=lane * (0.5 + right) + (2.3 if parking[1] else margin),
        sidewalk_m=float(sidewalk),
        setback_m=float(setback),
        oncoming_traffic=bool(rng.random() < 0.75),
        lead_vehicle=bool(rng.random() < 0.45),
    )


def draw_light(rng: Rng, config: SyntheticConfig) -> Light:
    """Return the light of one sequence: strong warm sun in clear skies, flat grey light in covered ones."""
    clouds = float(rng.uniform(*config.cloudiness))
    elevation = np.deg2rad(rng.uniform(*config.sun_elevation_deg))
    azimuth = rng.uniform(0, 2 * np.pi)
    flat = np.cos(elevation)
    to_sun = np.array([np.sin(azimuth) * flat, np.cos(azimuth) * flat, np.sin(elevation)], np.float32)
    sun = np.array([1.0, 0.94, 0.84], np.float32) * (0.95 * (1 - clouds) ** 0.7)
    ambient = np.array([0.95, 1.0, 1.06], np.float32) * (0.42 + 0.4 * clouds)
    haze = np.array([196, 208, 220], np.float32) * (1 - 0.08 * clouds)
    haze = haze + np.array([6, -2, -10], np.float32) * (1 - clouds)
    low, high = np.log(config.visibility_m)
    return Light(ambient, sun, to_sun, haze, float(np.exp(rng.uniform(low, high))), clouds)


def draw_camera(rng: Rng, config: SyntheticConfig) -> CameraIntrinsics:
    """Return the camera of one sequence, with square pixels."""
    focal = float(rng.uniform(*config.focal_per_width)) * config.width_px
    return CameraIntrinsics(
        fx=focal,
        fy=focal,
        cx=(config.width_px - 1) / 2,
        cy=float(rng.uniform(*config.horizon_per_height)) * config.height_px,
        width_px=config.width_px,
        height_px=config.height_px,
    )


@dataclass(frozen=True)
class Pose:
    """The place of a model in the camera's ground plane: metres right, metres forward, turn right in radians."""

    x: float
    z: float
    turn: float


class View:
    """The camera's view at one place: from road coordinates to camera coordinates to pixels."""

    def __init__(self, camera: CameraIntrinsics, camera_height_m: float, course: Course, s_m: float) -> None:
        """Compute the course around the camera at `s_m`."""
        self.camera = camera
        self.camera_height_m = camera_height_m
        self.s_m = s_m
        self.heading = float(course.heading(s_m))
        self.path_s = np.arange(-BEHIND_M, VIEW_M + 51.0, 1.0)
        self.path_turn = course.heading(s_m + self.path_s) - self.heading
        step = 0.5 * (self.path_turn[1:] + self.path_turn[:-1])
        start = int(BEHIND_M)
        path_x = np.concatenate([[0.0], np.cumsum(np.sin(step))])
        path_z = np.concatenate([[0.0], np.cumsum(np.cos(step))])
        self.path_x, self.path_z = path_x - path_x[start], path_z - path_z[start]

    def pose(self, s_m: float, u_m: float, turn: float = 0.0) -> Pose:
        """Return the pose at road coordinates (s, u), turned by `turn` against the road's direction there."""
        ahead = s_m - self.s_m
        angle = float(np.interp(ahead, self.path_s, self.path_turn))
        x = float(np.interp(ahead, self.path_s, self.path_x)) + u_m * np.cos(angle)
        z = float(np.interp(ahead, self.path_s, self.path_z)) - u_m * np.sin(angle)
        return Pose(float(x), float(z), angle + turn)

    def to_camera(self, points: Points, pose: Pose) -> Points:
        """Return (N, 3) model points as (N, 3) camera points."""
        cos, sin = np.cos(pose.turn), np.sin(pose.turn)
        result = np.empty_like(points)
        result[:, 0] = pose.x + points[:, 0] * cos + points[:, 2] * sin
        result[:, 1] = self.camera_height_m - points[:, 1]
        result[:, 2] = pose.z - points[:, 0] * sin + points[:, 2] * cos
        return result

    def project(self, points: Points) -> Points:
        """Return (N, 3) camera points in front of the camera as (N, 2) pixels (x, y)."""
        z = np.maximum(points[:, 2], 1e-3)
        x = self.camera.cx + self.camera.fx * points[:, 0] / z
        y = self.camera.cy + self.camera.fy * points[:, 1] / z
        # Far outside the picture, OpenCV's fixed point would overflow.
        return np.clip(np.stack([x, y], axis=1), -30000.0, 30000.0).astype(np.float32)

    def sun_in_camera(self, light: Light) -> Points:
        """Return the unit vector to the sun in camera coordinates."""
        east, north, up = (float(v) for v in light.to_sun)
        cos, sin = np.cos(self.heading), np.sin(self.heading)
        return np.array([east * cos - north * sin, -up, east * sin + north * cos], np.float32)


def clip_near(polygon: Points, near_m: float = NEAR_M) -> Points:
    """Return the part of a (N, 3) camera polygon at least `near_m` before the camera; it may be empty."""
    corners: list[Points] = []
    for i in range(len(polygon)):
        here, after = polygon[i], polygon[(i + 1) % len(polygon)]
        if here[2] >= near_m:
            corners.append(here)
        if (here[2] >= near_m) != (after[2] >= near_m):
            share = (near_m - here[2]) / (after[2] - here[2])
            corners.append((here + share * (after - here)).astype(np.float32))
    return np.stack(corners) if len(corners) >= 3 else np.zeros((0, 3), np.float32)


def tinted(color: Color, factor: float) -> Color:
    """Return a lighter or darker colour."""
    red, green, blue = (min(255.0, max(0.0, c * factor)) for c in color)
    return red, green, blue
