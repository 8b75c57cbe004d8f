"""Draws models into picture and labels, far ones first (painter's algorithm)."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.scenes.mesh import Model, Points
from anomseg_ros.scenes.scene import NEAR_M, Light, Pose, View, clip_near
from anomseg_ros.scenes.textures import Texture

ANOMALY = 254
"""Label of anomalies while a frame is drawn. Frames have 255 in `labels` and 1 in `anomaly` there."""

SHIFT = 4  # fractional bits of the coordinates handed to OpenCV
SMALLEST_PX = 0.8


def fixed_point(pixels: Points) -> npt.NDArray[np.int32]:
    """Return (N, 2) pixels in OpenCV's fixed point."""
    return np.asarray(np.rint(pixels * (1 << SHIFT)), np.int32)


class Canvas:
    """One frame being drawn: `image` (H, W, 3) uint8 RGB and `labels` (H, W) uint8."""

    def __init__(self, view: View, light: Light) -> None:
        """Start an empty frame of the view's size."""
        height, width = view.camera.height_px, view.camera.width_px
        self.view = view
        self.light = light
        self.sun = view.sun_in_camera(light)
        self.image: npt.NDArray[np.uint8] = np.zeros((height, width, 3), np.uint8)
        self.labels: npt.NDArray[np.uint8] = np.full((height, width), 255, np.uint8)

    def draw(self, model: Model, pose: Pose, label: int | None = None) -> None:
        """Draw a model at `pose`. label: replaces the labels of its faces."""
        if model.faces_camera:
            pose = Pose(pose.x, pose.z, 0.0)
        points = self.view.to_camera(model.vertices, pose)
        if float(points[:, 2].max()) < NEAR_M:
            return
        crosses_near = float(points[:, 2].min()) < NEAR_M
        pixels = self.view.project(points)
        if not crosses_near and self._outside(pixels):
            return
        colors, gains, haze = self._shade(model, pose)
        fixed = fixed_point(pixels)
        for face in self._order(model, points, pose):
            start, end = model.starts[face], model.starts[face + 1]
            outline = fixed[start:end]
            if crosses_near:
                clipped = clip_near(points[start:end])
                if len(clipped) == 0:
                    continue
                outline = fixed_point(self.view.project(clipped))
            shown = model.labels[face] if label is None else label
            if face in model.textures:
                frame = self.view.to_camera(model.frames[face], pose)
                self._fill_textured(outline, model.textures[face], frame, gains[face], haze, shown)
            else:
                cv2.fillPoly(self.image, [outline], colors[face], cv2.LINE_AA, SHIFT)
                cv2.fillPoly(self.labels, [outline], (shown,), cv2.LINE_8, SHIFT)

    def _outside(self, pixels: Points) -> bool:
        low, high = pixels.min(axis=0), pixels.max(axis=0)
        height, width = self.labels.shape
        return bool(high[0] < 0 or high[1] < 0 or low[0] >= width or low[1] >= height)

    def _order(self, model: Model, points: Points, pose: Pose) -> list[int]:
        """Return the visible faces in drawing order: by solid, then by face, far to near."""
        counts = np.diff(model.starts)
        sums = np.add.reduceat(points, model.starts[:-1], axis=0)
        centers = sums / counts[:, None]
        normals = _turned(model.normals, pose.turn)
        away = (normals * centers).sum(axis=1) > 0
        close_enough = model.sizes_m * self.view.camera.fx > SMALLEST_PX * np.maximum(centers[:, 2], NEAR_M)
        seen = ~away[model.anchors] & close_enough
        solid_count = int(model.solids.max()) + 1
        per_solid = np.bincount(model.solids, minlength=solid_count)
        solid_z = np.bincount(model.solids, weights=centers[:, 2], minlength=solid_count) / np.maximum(per_solid, 1)
        solid_z[0] = np.inf
        number = np.arange(len(counts))
        if model.faces_camera:
            order = number
        else:
            face_z, by_solid = centers[model.anchors, 2], solid_z[model.solids]
            order = np.lexsort((number, -face_z.round(3), model.solids, -by_solid.round(3)))
        return [int(face) for face in order if seen[face]]

    def _shade(self, model: Model, pose: Pose) -> tuple[list[list[float]], Points, float]:
        """Return the faces' colours, their light gains (F, 3), and the share of haze at the model's distance."""
        normals = _turned(model.normals, pose.turn)
        lit = np.maximum(normals @ self.sun, 0.0)
        lit[~model.normals.any(axis=1)] = 0.45
        haze = self.light.haze_at(pose.z)
        # Ambient light also reaches faces that are turned away from the sun.
        gains = (self.light.ambient + self.light.sun * lit[:, None]) * (1 - haze)
        colors = np.clip(model.colors * gains + self.light.haze * haze, 0, 255)
        return colors.tolist(), np.asarray(gains, np.float32), haze

    def _fill_textured(
        self, outline: npt.NDArray[np.int32], texture: Texture, frame: Points, gain: Points, haze: float, label: int
    ) -> None:
        """Fill a polygon with a texture in perspective, transparent where the texture is."""
        height, width = self.labels.shape
        left, top = np.maximum((outline.min(axis=0) >> SHIFT) - 1, 0)
        right, bottom = np.minimum((outline.max(axis=0) >> SHIFT) + 2, (width, height))
        if left >= right or top >= bottom:
            return
        mask = np.zeros((bottom - top, right - left), np.uint8)
        cv2.fillPoly(mask, [outline - (np.array([left, top], np.int32) << SHIFT)], (255,), cv2.LINE_AA, SHIFT)
        surface = self._warp(texture, frame, (int(left), int(top), int(right), int(bottom)))
        if surface.shape[2] == 4:
            mask = np.asarray(cv2.multiply(mask, np.ascontiguousarray(surface[..., 3]), scale=1 / 255.0), np.uint8)
        self._blend(surface[..., :3], mask, (int(left), int(top)), gain, haze, label)

    def _warp(self, texture: Texture, frame: Points, box: tuple[int, int, int, int]) -> npt.NDArray[np.uint8]:
        camera = self.view.camera
        left, top, right, bottom = box
        origin, across, down = frame[0], frame[1] - frame[0], frame[2] - frame[0]
        depth = max(float((frame[1, 2] + frame[2, 2]) / 2), NEAR_M)
        level = texture.level_for(float(np.linalg.norm(down)) * camera.fy / depth)
        size_y, size_x = level.shape[:2]
        # The homography from texture coordinates (a, b, 1) over camera points to pixels of the box.
        plane = np.stack([across / size_x, down / size_y, origin], axis=1).astype(np.float64)
        pixels = np.array([[camera.fx, 0, camera.cx - left], [0, camera.fy, camera.cy - top], [0, 0, 1]]) @ plane
        size = (right - left, bottom - top)
        warped = cv2.warpPerspective(level, pixels, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(warped, np.uint8)

    def _blend(
        self,
        surface: npt.NDArray[np.uint8],
        mask: npt.NDArray[np.uint8],
        at: tuple[int, int],
        gain: Points,
        haze: float,
        label: int,
    ) -> None:
        left, top = at
        bottom, right = top + mask.shape[0], left + mask.shape[1]
        levels = np.arange(256, dtype=np.float32)[:, None] * gain + self.light.haze * haze
        table = np.clip(levels, 0, 255).astype(np.uint8)[:, None, :]
        lit = cv2.LUT(np.ascontiguousarray(surface), table)
        weight = mask.astype(np.float32) * (1 / 255.0)
        under = np.ascontiguousarray(self.image[top:bottom, left:right])
        self.image[top:bottom, left:right] = cv2.blendLinear(lit, under, weight, 1.0 - weight)
        self.labels[top:bottom, left:right][mask > 127] = label


def _turned(normals: Points, turn: float) -> Points:
    """Return model normals (F, 3), y up, in camera coordinates, y down."""
    cos, sin = np.cos(turn), np.sin(turn)
    result = np.empty_like(normals)
    result[:, 0] = normals[:, 0] * cos + normals[:, 2] * sin
    result[:, 1] = -normals[:, 1]
    result[:, 2] = -normals[:, 0] * sin + normals[:, 2] * cos
    return result


def draw_shadows(view: View, light: Light, casters: list[tuple[Model, Pose]]) -> npt.NDArray[np.float32]:
    """Return (H, W) float32: the share of light that sun shadows and contact shadows leave on the ground."""
    height, width = view.camera.height_px, view.camera.width_px
    sun_mask = np.zeros((height, width), np.uint8)
    contact = np.zeros((height, width), np.uint8)
    sun = view.sun_in_camera(light)
    # Metres of shadow per metre of height, in the camera's ground plane. Long evening shadows are limited.
    reach = -np.array([sun[0], sun[2]], np.float32) / max(float(light.to_sun[2]), 0.25)
    for model, pose in casters:
        for outline, low_m, high_m in model.shadows:
            base = np.insert(outline, 1, 0.0, axis=1).astype(np.float32)
            ground = view.to_camera(base, pose)
            _fill_shadow(sun_mask, view, np.concatenate([ground + _lift(reach, low_m), ground + _lift(reach, high_m)]))
            if low_m == 0.0 and pose.z < 70.0:
                middle = ground.mean(axis=0)
                _fill_shadow(contact, view, middle + (ground - middle) * 1.08)
    _soften(sun_mask, view, 0.004)
    _soften(contact, view, 0.012)
    light_left = sun_mask.astype(np.float32) * (-light.sun_share * 0.9 / 255.0) + 1.0
    return np.asarray(light_left * (1.0 - contact.astype(np.float32) * (0.55 / 255.0)), np.float32)


def _lift(reach: npt.NDArray[np.float32], height_m: float) -> npt.NDArray[np.float32]:
    return np.array([reach[0] * height_m, 0.0, reach[1] * height_m], np.float32)


def _fill_shadow(mask: npt.NDArray[np.uint8], view: View, points: Points) -> None:
    hull = cv2.convexHull(np.ascontiguousarray(points[:, [0, 2]], np.float32))[:, 0]
    polygon = np.insert(hull, 1, view.camera_height_m, axis=1).astype(np.float32)
    polygon = clip_near(polygon) if polygon[:, 2].min() < NEAR_M else polygon
    if len(polygon):
        cv2.fillPoly(mask, [fixed_point(view.project(polygon))], (255,), cv2.LINE_AA, SHIFT)


def _soften(mask: npt.NDArray[np.uint8], view: View, share: float) -> None:
    """Blur the part of a shadow mask below the horizon, in place."""
    top = max(0, int(view.camera.cy) - 2)
    size = max(1, int(view.camera.width_px * share)) | 1
    if size > 1:
        mask[top:] = cv2.blur(mask[top:], (size, size))
