"""The backdrop: sky, skyline, and the ground with road, markings, pavement and grass."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.scenes.mesh import Points
from anomseg_ros.scenes.render import SHIFT, Canvas, fixed_point
from anomseg_ros.scenes.scene import NEAR_M, VIEW_M, Layout, Light, View, clip_near
from anomseg_ros.scenes.textures import Image, Rng, fractal_noise

ROAD, SIDEWALK, BUILDING, VEGETATION, TERRAIN, SKY = 0, 1, 2, 8, 9, 10

KERB_M = 0.22
TILE_M = 6.0
BROAD_TILE_M = 47.0

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Decal:
    """A rectangle on the road, from s0 to s1 along and u0 to u1 across: white paint or a darker patch."""

    s0: float
    s1: float
    u0: float
    u1: float
    paint: bool


class Sky:
    """A strip of sky and skyline, wider than the picture, which moves sideways as the road turns."""

    def __init__(self, rng: Rng, height_px: int, width_px: int, layout: Layout, light: Light) -> None:
        """Paint the strip (height, 3 width, 3), whose last row is at the horizon."""
        self.width_px = width_px
        self.image = _paint_sky(rng, height_px, 3 * width_px, light)
        self.labels: Image = np.full((height_px, 3 * width_px), SKY, np.uint8)
        for far in (True, False):
            self._paint_skyline(rng, layout, light, far)

    def _paint_skyline(self, rng: Rng, layout: Layout, light: Light, far: bool) -> None:
        """Add trees, hills or roofs along the horizon; far ones are higher and paler."""
        height, width = self.labels.shape
        built = layout.style == "urban" or (layout.style == "suburban" and not far)
        tallest = height * (rng.uniform(0.1, 0.3) if far else rng.uniform(0.05, 0.15))
        if built:
            steps = np.repeat(rng.uniform(0.3, 1.0, 200), rng.integers(max(2, width // 120), max(3, width // 30), 200))
            profile = np.resize(steps, width) * tallest
        else:
            hills = fractal_noise(rng, 8, width, 1, 1)[0] if far else fractal_noise(rng, 64, width, 1, 6)[0]
            profile = (0.35 + 0.65 * hills) * tallest
        mask = np.arange(height)[:, None] >= height - profile[None, :]
        color = np.array([150, 144, 140] if built else [88, 104, 62], np.float32) * rng.uniform(0.8, 1.1)
        haze = light.haze_at(900.0 if far else 350.0) * 0.75
        shade = (light.ambient + 0.4 * light.sun) * (0.85 + 0.3 * fractal_noise(rng, height, width, 8, 4)[..., None])
        painted = np.clip(color * shade * (1 - haze) + light.haze * haze, 0, 255).astype(np.uint8)
        self.image[mask] = painted[mask]
        self.labels[mask] = BUILDING if built else VEGETATION

    def draw(self, canvas: Canvas) -> None:
        """Copy the visible part of the strip into the picture."""
        view = canvas.view
        shift = round(view.heading * view.camera.fx) + self.width_px
        columns = np.arange(shift, shift + self.width_px) % self.labels.shape[1]
        rows = self.labels.shape[0]
        canvas.image[:rows] = self.image[:, columns]
        canvas.labels[:rows] = self.labels[:, columns]


def _paint_sky(rng: Rng, height: int, width: int, light: Light) -> Image:
    up = np.linspace(1.0, 0.0, height, dtype=np.float32)[:, None, None]
    zenith = np.array([84, 132, 200], np.float32) * (1 - 0.15 * light.cloudiness)
    gradient = light.haze * 1.04 * (1 - up**0.6) + zenith * up**0.6
    noise = fractal_noise(rng, 512, 1024, 3, 7)
    # Clouds lie on a ceiling, so they are compressed towards the horizon.
    rows = (260.0 / (np.linspace(1.0, 0.0, height, dtype=np.float32) + 0.22)).repeat(width).reshape(height, width)
    columns = np.arange(width, dtype=np.float32)[None].repeat(height, 0) * (2048.0 / width)
    field = cv2.remap(noise, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    edge = 0.78 - 0.62 * light.cloudiness
    density = np.clip((field - edge) / 0.22, 0, 1)[..., None] * (0.55 + 0.4 * light.cloudiness)
    bright = np.array([246, 246, 248], np.float32) * (1.0 - 0.16 * light.cloudiness)
    cloud = bright * (0.8 + 0.25 * np.clip(1.4 - field, 0, 1))[..., None]
    return np.asarray(np.clip(gradient * (1 - density) + cloud * density, 0, 255), np.uint8)


class Ground:
    """The ground plane below the horizon, with textures in road coordinates."""

    def __init__(self, rng: Rng, view: View, layout: Layout) -> None:
        """Prepare the textures and the place on the ground of each pixel."""
        camera = view.camera
        self.top = int(np.floor(camera.cy)) + 1
        rows = np.arange(self.top, camera.height_px, dtype=np.float32)
        depth = camera.fy * view.camera_height_m / np.maximum(rows - camera.cy, 0.05)
        self.depth_m: Floats = np.minimum(depth, 4000.0).astype(np.float32)
        columns = np.arange(camera.width_px, dtype=np.float32)
        self.x_m: Floats = (self.depth_m[:, None] * ((columns - camera.cx) / camera.fx)[None]).astype(np.float32)
        metres_per_row = self.depth_m**2 / (camera.fy * view.camera_height_m)
        self.detail: Floats = np.clip(0.25 / (metres_per_row + 1e-6) * 0.6, 0.0, 1.0)[:, None].astype(np.float32)
        self.layout = layout
        self.tile = _ground_tile(rng)
        self.broad = (fractal_noise(rng, 256, 256, 4, 6) * 255).astype(np.uint8)
        self.colors, self.labels = _regions(rng, layout)
        self.lines = _road_lines(rng, layout)

    def draw(self, canvas: Canvas, light_left: Floats, decals: list[Decal]) -> None:
        """Draw the ground into the picture. light_left: (H, W), the share of light that shadows leave."""
        view, light, top = canvas.view, canvas.light, self.top
        along, across = self._road_coordinates(view)
        region = self._region(across)
        gain = self._texture_gain(view, along, across, region) * light_left[top:]
        albedo = np.asarray(cv2.LUT(cv2.merge([region, region, region]), self.colors), np.uint8)
        self._draw_paint(view, albedo, decals)
        haze = 1.0 - np.exp(-3.0 * self.depth_m / light.visibility_m)
        lit = light.ambient + light.sun * max(float(light.to_sun[2]), 0.0)
        clear = gain * (1.0 - haze)[:, None]
        gains = cv2.merge([clear * float(c) for c in lit])
        shaded = cv2.multiply(albedo, gains, dtype=cv2.CV_32F)
        shaded += (light.haze[None] * haze[:, None])[:, None, :]
        canvas.image[top:] = cv2.convertScaleAbs(shaded)
        canvas.labels[top:] = cv2.LUT(region, self.labels)

    def _road_coordinates(self, view: View) -> tuple[Floats, Floats]:
        """Return metres along the road and metres to the right of the camera's path, (h, W) each."""
        depth = np.clip(self.depth_m, view.path_z[0], view.path_z[-1])
        turn = np.interp(depth, view.path_z, view.path_turn).astype(np.float32)[:, None]
        path_x = np.interp(depth, view.path_z, view.path_x).astype(np.float32)[:, None]
        path_s = np.interp(depth, view.path_z, view.path_s).astype(np.float32)[:, None]
        sideways = self.x_m - path_x
        return path_s + sideways * np.sin(turn), sideways * np.cos(turn)

    def _region(self, across: Floats) -> Image:
        left, right, walk = self.layout.road_left, self.layout.road_right, self.layout.sidewalk_m
        edges = (left - KERB_M - walk, left - KERB_M, left, right, right + KERB_M, right + KERB_M + walk)
        region: Image = np.zeros(across.shape, np.uint8)
        for edge in edges:
            region += (across > edge).view(np.uint8)
        return region

    def _texture_gain(self, view: View, along: Floats, across: Floats, region: Image) -> Floats:
        size = self.tile.shape[0] / TILE_M
        # Coordinates start within one tile, because OpenCV's maps hold 16-bit pixel numbers.
        start = view.s_m % TILE_M
        columns, rows = (across * size).clip(-30000, 30000), ((along + start) * size).clip(-30000, 30000)
        fine = cv2.remap(self.tile, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        size = self.broad.shape[0] / BROAD_TILE_M
        columns, rows = across * size, (along + view.s_m % BROAD_TILE_M) * size
        broad = cv2.remap(self.broad, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        surfaces = [2, 1, 1, 0, 1, 1, 2] if self.layout.sidewalk_m > 0.0 else [2, 2, 0, 0, 0, 2, 2]
        chosen = cv2.LUT(region, np.pad(np.array(surfaces, np.uint8), (0, 249)))
        texture = np.where(chosen == 0, fine[..., 0], np.where(chosen == 1, fine[..., 1], fine[..., 2]))
        gain = 1.0 + (texture.astype(np.float32) - 128.0) * (self.detail / 128.0)
        return np.asarray(gain * (broad.astype(np.float32) * (0.3 / 255.0) + 0.85), np.float32)

    def _draw_paint(self, view: View, albedo: Image, decals: list[Decal]) -> None:
        """Paint lane lines, crossings and repair patches onto the surface colours."""
        for decal in (d for d in decals if not d.paint):
            self._fill_strip(view, albedo, decal, 0.82)
        for u, width, dash, gap in self.lines:
            period = dash + gap
            left, right = u - width / 2, u + width / 2
            if gap == 0.0:
                self._fill_strip(view, albedo, Decal(view.s_m, view.s_m + VIEW_M, left, right, True), 1.0)
                continue
            first = np.floor(view.s_m / period) * period
            for s in np.arange(first, view.s_m + 110.0, period):
                self._fill_strip(view, albedo, Decal(s, s + dash, left, right, True), 1.0)
        for decal in (d for d in decals if d.paint):
            self._fill_strip(view, albedo, decal, 1.0)

    def _fill_strip(self, view: View, albedo: Image, decal: Decal, strength: float) -> None:
        s0, s1 = max(decal.s0 - view.s_m, -15.0), min(decal.s1 - view.s_m, VIEW_M)
        if s1 <= s0:
            return
        steps = np.linspace(s0, s1, 2 if s1 - s0 < 5 else 40)
        edges = [_on_ground(view, steps, decal.u0), _on_ground(view, steps, decal.u1)[::-1]]
        polygon = np.concatenate(edges).astype(np.float32)
        polygon = clip_near(polygon) if polygon[:, 2].min() < NEAR_M else polygon
        if len(polygon) == 0:
            return
        outline = fixed_point(view.project(polygon)) - np.array([0, self.top << SHIFT], np.int32)
        color = (214.0, 212.0, 204.0) if decal.paint else tuple(float(c) * strength for c in self.colors[3, 0])
        cv2.fillPoly(albedo, [outline], color, cv2.LINE_AA, SHIFT)


def _on_ground(view: View, ahead: npt.NDArray[np.float64], u_m: float) -> Points:
    turn = np.interp(ahead, view.path_s, view.path_turn)
    x = np.interp(ahead, view.path_s, view.path_x) + u_m * np.cos(turn)
    z = np.interp(ahead, view.path_s, view.path_z) - u_m * np.sin(turn)
    return np.stack([x, np.full_like(x, view.camera_height_m), z], axis=1).astype(np.float32)


def _ground_tile(rng: Rng) -> Image:
    """Return a seamless tile (512, 512, 3) uint8 about 128: asphalt, paving slabs and grass."""
    grain = fractal_noise(rng, 512, 512, 8, 6) - 0.5
    asphalt = 128 + 40 * grain + rng.normal(0, 12, (512, 512))
    slabs = 128 + 36 * grain + rng.normal(0, 6, (512, 512))
    rows, columns = int(rng.choice([4, 8, 16])), int(rng.choice([4, 8, 16]))
    tone = rng.normal(0, 7, (rows, columns))
    slabs += np.kron(tone, np.ones((512 // rows, 512 // columns)))
    slabs[:: 512 // rows] -= 34
    slabs[:, :: 512 // columns] -= 34
    grass = 128 + 150 * (fractal_noise(rng, 512, 512, 24, 5) - 0.5) + rng.normal(0, 12, (512, 512))
    return np.clip(np.stack([asphalt, slabs, grass], axis=2), 0, 255).astype(np.uint8)


def _regions(rng: Rng, layout: Layout) -> tuple[Image, Image]:
    """Return the colours (256, 1, 3) and labels (256,) of the seven strips from left to right."""
    road = np.array([1.0, 1.0, 1.04]) * rng.uniform(78, 128)
    slabs = [[150, 146, 140], [164, 150, 136], [136, 136, 138], [158, 132, 118]][int(rng.integers(4))]
    walk = np.array(slabs) * rng.uniform(0.9, 1.1)
    grass = np.array([[92, 114, 56], [110, 118, 62], [132, 122, 76], [80, 104, 54]][int(rng.integers(4))], np.float64)
    kerb = np.array([168.0, 166.0, 160.0])
    outer, outer_label = (walk * 0.95, SIDEWALK) if layout.style == "urban" else (grass, TERRAIN)
    left = [(outer, outer_label), (walk, SIDEWALK), (kerb, SIDEWALK)]
    if layout.sidewalk_m == 0.0:
        gravel = (np.array([132.0, 124.0, 106.0]), TERRAIN)
        left = [(grass, TERRAIN), gravel, gravel]
    strips = [*left, (road, ROAD), *reversed(left)]
    colors, labels = np.zeros((256, 1, 3), np.uint8), np.zeros(256, np.uint8)
    for index, (color, label) in enumerate(strips):
        colors[index, 0], labels[index] = np.clip(color, 0, 255), label
    return colors, labels


def _road_lines(rng: Rng, layout: Layout) -> list[tuple[float, float, float, float]]:
    """Return the painted lines: u, width, dash and gap in metres; a gap of 0 is a solid line."""
    dash, gap, width = float(rng.uniform(2.5, 5.0)), float(rng.uniform(3.0, 8.0)), float(rng.uniform(0.1, 0.16))
    middle = -layout.lane_m / 2
    lines = [(layout.lane_right_edge - 0.1, width, dash, 0.0), (layout.lane_left_edge + 0.1, width, dash, 0.0)]
    if rng.random() < 0.3:
        lines += [(middle - 0.14, width, dash, 0.0), (middle + 0.14, width, dash, 0.0)]
    else:
        lines.append((middle, width, dash, gap))
    lines += [(middle - layout.lane_m * (i + 1), width, dash, gap) for i in range(layout.lanes_left - 1)]
    lines += [(layout.lane_m * (0.5 + i), width, dash, gap) for i in range(layout.lanes_right)]
    return lines
