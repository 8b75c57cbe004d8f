"""Seeded, procedural driving sequences with dense labels, anomaly masks and a known camera.

    sequence = SyntheticSequence(seed=7)
    for frame in sequence.frames(100):
        frame.image, frame.labels, frame.anomaly

Seed, configuration and frame number decide everything, so a frame does not depend on those made before.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.errors import ConfigError
from anomseg_ros.scenes.ground import Ground, Sky
from anomseg_ros.scenes.mesh import Model
from anomseg_ros.scenes.population import Placed, Population, Stretch
from anomseg_ros.scenes.render import ANOMALY, SHIFT, Canvas, draw_shadows
from anomseg_ros.scenes.scene import (
    CHUNK_M,
    VIEW_M,
    Pose,
    View,
    draw_camera,
    draw_course,
    draw_layout,
    draw_light,
)
from anomseg_ros.scenes.scene_config import (
    ALL_KINDS,
    HELD_OUT_KINDS,
    TRAIN_KINDS,
    CameraIntrinsics,
    SyntheticConfig,
    SyntheticFrame,
)
from anomseg_ros.scenes.sensor import Sensor
from anomseg_ros.scenes.street import draw_textures
from anomseg_ros.scenes.textures import Color, Image, Rng

__all__ = [
    "ALL_KINDS",
    "HELD_OUT_KINDS",
    "TRAIN_KINDS",
    "CameraIntrinsics",
    "SyntheticConfig",
    "SyntheticFrame",
    "SyntheticSequence",
]

SCENE_STREAM, NOISE_STREAM = 1, 2
CACHED_STRETCHES = 32


class SyntheticSequence:
    """One drive along one road. camera: its pinhole camera."""

    def __init__(self, seed: int, config: SyntheticConfig | None = None) -> None:
        """Draw the road, the light and the camera of a seed, 0 or more. Raises ConfigError."""
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ConfigError(f"the seed is {seed!r}; give a whole number, 0 or more")
        self.seed = int(seed)
        self.config = config if config is not None else SyntheticConfig()
        rng = np.random.default_rng([self.seed, SCENE_STREAM])
        self.camera: CameraIntrinsics = draw_camera(rng, self.config)
        self._camera_height_m = float(rng.uniform(*self.config.camera_height_m))
        self._course = draw_course(rng)
        self._layout = draw_layout(rng, self.config)
        self._light = draw_light(rng, self.config)
        self._speed_mps = float(rng.uniform(*self.config.speed_mps))
        self._population = Population(self.seed, self.config, self._layout, draw_textures(rng), self._speed_mps)
        self._ground = Ground(rng, self._view(0.0), self._layout)
        self._sky = Sky(rng, self._ground.top, self.config.width_px, self._layout, self._light)
        self._sensor = Sensor(rng, self.config)
        self._hood = _hood_outline(rng, self.config)
        self._stretches: dict[int, Stretch] = {}

    def frames(self, count: int) -> Iterator[SyntheticFrame]:
        """Yield frames 0 to `count - 1`."""
        for index in range(count):
            yield self.frame(index)

    def frame(self, index: int) -> SyntheticFrame:
        """Return frame `index`, 0 or more. Raises ConfigError."""
        if index < 0:
            raise ConfigError(f"the frame index is {index!r}; give a whole number, 0 or more")
        time_s = index / self.config.rate_hz
        view = self._view(self._speed_mps * time_s)
        stretches = self._stretches_in_view(view)
        placed = self._things_in_view(view, stretches, time_s)
        canvas = Canvas(view, self._light)
        self._sky.draw(canvas)
        decals = [decal for stretch in stretches for decal in stretch.decals]
        self._ground.draw(canvas, draw_shadows(canvas.view, self._light, placed), decals)
        for model, pose in placed:
            canvas.draw(model, pose)
        self._draw_hood(canvas)
        image = self._sensor.expose(canvas.image, np.random.default_rng([self.seed, NOISE_STREAM, index]))
        return _finished_frame(image, canvas.labels, self._hood is not None, index, time_s)

    def _view(self, s_m: float) -> View:
        return View(self.camera, self._camera_height_m, self._course, s_m)

    def _stretches_in_view(self, view: View) -> list[Stretch]:
        first, last = int(np.floor((view.s_m - CHUNK_M) / CHUNK_M)), int((view.s_m + VIEW_M) / CHUNK_M)
        wanted = range(first, last + 1)
        if len(self._stretches) > CACHED_STRETCHES:
            self._stretches = {number: stretch for number, stretch in self._stretches.items() if number in wanted}
        for number in wanted:
            if number not in self._stretches:
                self._stretches[number] = self._population.stretch(number)
        return [self._stretches[number] for number in wanted]

    def _things_in_view(self, view: View, stretches: list[Stretch], time_s: float) -> list[tuple[Model, Pose]]:
        """Return the models to draw, in drawing order.

        Far stretches come first. Within a stretch, models farther from the road come first, because on one side of the
        road a model hides only those farther from the road.
        """
        things = [thing for stretch in stretches for thing in stretch.placed] + self._population.traffic(time_s)
        keyed: list[tuple[tuple[float, float, float], Model, Pose]] = []
        for thing in things:
            s, u = self._place_at(thing, time_s)
            ahead = s - view.s_m
            if -CHUNK_M < ahead < VIEW_M:
                order = (-np.floor(s / CHUNK_M), -round(2.0 * (abs(u) + thing.outward_m)), -ahead)
                keyed.append((order, thing.model_at(time_s), view.pose(s, u, thing.turn)))
        keyed.sort(key=lambda entry: entry[0])
        return [(model, pose) for _, model, pose in keyed]

    def _place_at(self, thing: Placed, time_s: float) -> tuple[float, float]:
        if thing.s_speed == 0.0 and thing.u_speed == 0.0:
            return thing.s_m, thing.u_m
        since_met = time_s - thing.s_m / max(self._speed_mps, 0.1)
        return thing.s_m + thing.s_speed * since_met, thing.u_m + thing.u_speed * since_met

    def _draw_hood(self, canvas: Canvas) -> None:
        if self._hood is None:
            return
        outline, color = self._hood
        cv2.fillPoly(canvas.image, [outline], color, cv2.LINE_AA, SHIFT)
        cv2.fillPoly(canvas.labels, [outline], (255,), cv2.LINE_8, SHIFT)


def _hood_outline(rng: Rng, config: SyntheticConfig) -> tuple[npt.NDArray[np.int32], Color] | None:
    """Return the outline of the ego vehicle's hood in fixed-point pixels, and its colour; None if it is not visible."""
    if rng.random() >= config.hood_probability:
        return None
    rise, shade = rng.uniform(0.04, 0.1) * config.height_px, float(rng.uniform(18, 90))
    angle = np.linspace(np.pi, 2 * np.pi, 40)
    x = config.width_px * (0.5 + 0.62 * np.cos(angle))
    y = config.height_px + 2 + 1.1 * rise * np.sin(angle)
    outline = np.rint(np.stack([x, y], axis=1) * (1 << SHIFT)).astype(np.int32)
    return outline, (shade, shade, shade * 1.05)


def _finished_frame(image: Image, drawn: Image, has_hood: bool, index: int, time_s: float) -> SyntheticFrame:
    anomaly = np.zeros(drawn.shape, np.uint8)
    anomaly[drawn == ANOMALY] = 1
    if has_hood:
        anomaly[drawn == 255] = 255
    labels = drawn.copy()
    labels[drawn == ANOMALY] = 255
    return SyntheticFrame(image, labels, anomaly, index, time_s)
