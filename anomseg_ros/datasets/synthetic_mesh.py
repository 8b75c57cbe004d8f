"""Small polygon models in metres: x right, y up, z forward, the origin on the ground."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from anomseg_ros.datasets.synthetic_textures import Color, Texture

Points = npt.NDArray[np.float32]
PointsLike = Sequence[Sequence[float]] | npt.NDArray[np.floating]


@dataclass(frozen=True)
class Model:
    """A finished model: every face's vertices in one array, and per face what drawing it needs.

    vertices (V, 3) float32; starts (F + 1,) int; colors (F, 3) 0..255; labels (F,); anchors (F,) the face whose
    visibility and depth it shares; solids (F,) the solid it belongs to; normals (F, 3), zero for faces seen from both
    sides; sizes_m (F,); textures and their frames (origin, right, down corners as three vertices) where textured.
    """

    vertices: Points
    starts: npt.NDArray[np.int64]
    colors: Points
    labels: tuple[int, ...]
    anchors: npt.NDArray[np.int64]
    solids: npt.NDArray[np.int64]
    normals: Points
    sizes_m: Points
    textures: dict[int, Texture]
    frames: dict[int, Points]
    faces_camera: bool
    shadows: tuple[tuple[Points, float, float], ...]


@dataclass
class ModelBuilder:
    """Collects faces; `finish` makes the model. `label` is the train id of faces that do not name their own."""

    label: int
    faces_camera: bool = False
    _faces: list[Points] = field(default_factory=list)
    _colors: list[Color] = field(default_factory=list)
    _labels: list[int] = field(default_factory=list)
    _anchors: list[int] = field(default_factory=list)
    _solids: list[int] = field(default_factory=list)
    _normals: list[Points] = field(default_factory=list)
    _textures: dict[int, Texture] = field(default_factory=dict)
    _shadows: list[tuple[Points, float, float]] = field(default_factory=list)
    _solid_count: int = 0

    def flat(
        self,
        points: PointsLike,
        color: Color,
        label: int | None = None,
        texture: Texture | None = None,
        on: int | None = None,
        same_solid: bool = False,
        first: bool = False,
    ) -> int:
        """Add a face seen from both sides, or one stuck on face `on`; `first`: before all solids. Return its number."""
        number = len(self._faces)
        self._faces.append(np.asarray(points, np.float32).reshape(-1, 3))
        self._colors.append(color)
        self._labels.append(self.label if label is None else label)
        self._anchors.append(number if on is None else self._anchors[on])
        if on is None and not same_solid:
            self._solid_count += 1
        own_solid = 0 if first else self._solid_count
        self._solids.append(own_solid if on is None else self._solids[on])
        self._normals.append(np.zeros(3, np.float32) if on is None else self._normals[on])
        if texture is not None:
            self._textures[number] = texture
        return number

    def solid(
        self,
        polygons: Sequence[PointsLike],
        colors: Sequence[Color],
        label: int | None = None,
        textures: Sequence[Texture | None] | None = None,
    ) -> list[int]:
        """Add a closed, roughly convex solid; its faces look away from its middle, whatever their winding."""
        faces = [np.asarray(polygon, np.float32).reshape(-1, 3) for polygon in polygons]
        middle = np.concatenate(faces).mean(axis=0)
        self._solid_count += 1
        numbers = []
        for index, face in enumerate(faces):
            texture = None if textures is None else textures[index]
            number = self.flat(face, colors[index], label, texture, same_solid=True)
            normal = _normal(face)
            self._normals[number] = normal if np.dot(normal, face.mean(axis=0) - middle) >= 0 else -normal
            numbers.append(number)
        return numbers

    def box(
        self,
        low: Sequence[float],
        high: Sequence[float],
        color: Color,
        label: int | None = None,
        texture: Texture | None = None,
    ) -> list[int]:
        """Add an upright box between two corners (x, y, z); faces: back, front, left, right, top (no bottom)."""
        (x0, y0, z0), (x1, y1, z1) = low, high
        polygons = [
            [(x0, y1, z0), (x1, y1, z0), (x1, y0, z0), (x0, y0, z0)],
            [(x1, y1, z1), (x0, y1, z1), (x0, y0, z1), (x1, y0, z1)],
            [(x0, y1, z1), (x0, y1, z0), (x0, y0, z0), (x0, y0, z1)],
            [(x1, y1, z0), (x1, y1, z1), (x1, y0, z1), (x1, y0, z0)],
            [(x0, y1, z1), (x1, y1, z1), (x1, y1, z0), (x0, y1, z0)],
        ]
        return self.solid(polygons, [color] * 5, label, [texture] * 5)

    def prism(self, bottom: PointsLike, top: PointsLike, color: Color, texture: Texture | None = None) -> list[int]:
        """Add the solid between two rings of equally many (x, y, z) points: cylinder, cone, boulder."""
        low, high = np.asarray(bottom, np.float32), np.asarray(top, np.float32)
        polygons: list[PointsLike] = [high]
        count = len(low)
        for i in range(count):
            j = (i + 1) % count
            polygons.append(np.stack([high[i], high[j], low[j], low[i]]))
        return self.solid(polygons, [color] * len(polygons), None, [texture] * len(polygons))

    def shadow(self, outline: PointsLike, low_m: float, high_m: float) -> None:
        """Let the outline (N, 2) of (x, z), from `low_m` to `high_m` above the ground, cast a shadow."""
        self._shadows.append((np.asarray(outline, np.float32).reshape(-1, 2), low_m, high_m))

    def box_shadow(self, half_width: float, half_length: float, height: float) -> None:
        """Cast the shadow of an upright box around the origin."""
        w, h = half_width, half_length
        self.shadow([(-w, -h), (w, -h), (w, h), (-w, h)], 0.0, height)

    def finish(self) -> Model:
        """Return the model, with the sizes and texture frames worked out."""
        frames = {number: _texture_frame(self._faces[number]) for number in self._textures}
        extents = [float(np.linalg.norm(face.max(axis=0) - face.min(axis=0))) for face in self._faces]
        return Model(
            vertices=np.concatenate(self._faces),
            starts=np.cumsum([0] + [len(face) for face in self._faces]),
            colors=np.asarray(self._colors, np.float32),
            labels=tuple(self._labels),
            anchors=np.asarray(self._anchors),
            solids=np.asarray(self._solids),
            normals=np.stack(self._normals),
            sizes_m=np.asarray(extents, np.float32),
            textures=self._textures,
            frames=frames,
            faces_camera=self.faces_camera,
            shadows=tuple(self._shadows),
        )


def _normal(face: Points) -> Points:
    """Return the unit normal of a planar face (Newell's method, which survives collinear corners)."""
    after = np.roll(face, -1, axis=0)
    normal = np.cross(face, after).sum(axis=0)
    return np.asarray(normal / max(float(np.linalg.norm(normal)), 1e-9), np.float32)


def _texture_frame(face: Points) -> Points:
    """Return (3, 3): the corners of the texture (upper left, upper right, lower left) that just covers the face.

    The first edge is the texture's upper edge, so a rectangle given from its upper left corner is mapped exactly.
    """
    right = face[1] - face[0]
    right = right / max(float(np.linalg.norm(right)), 1e-9)
    down = np.cross(_normal(face), right)
    if np.dot(down, face[-1] - face[0]) < 0:
        down = -down
    a, b = (face - face[0]) @ right, (face - face[0]) @ down
    origin = face[0] + right * a.min() + down * b.min()
    return np.stack([origin, origin + right * (a.max() - a.min()), origin + down * (b.max() - b.min())]).astype(
        np.float32
    )


def ring(center: Sequence[float], radius_x: float, radius_y: float, count: int = 14, plane: str = "xy") -> Points:
    """Return `count` points of an ellipse in the plane "xy" (upright), "zy" (sideways) or "xz" (flat)."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    first, second = {"xy": (0, 1), "zy": (2, 1), "xz": (0, 2)}[plane]
    points = np.tile(np.asarray(center, np.float32), (count, 1))
    points[:, first] += radius_x * np.cos(angle)
    points[:, second] += radius_y * np.sin(angle)
    return points


def limb(
    start: tuple[float, float], end: tuple[float, float], width_start: float, width_end: float, z: float = 0.0
) -> Points:
    """Return the upright quad of a limb from `start` to `end` (x, y)."""
    (x0, y0), (x1, y1) = start, end
    length = max(float(np.hypot(x1 - x0, y1 - y0)), 1e-6)
    nx, ny = -(y1 - y0) / length / 2, (x1 - x0) / length / 2
    return np.array(
        [
            (x0 + nx * width_start, y0 + ny * width_start, z),
            (x1 + nx * width_end, y1 + ny * width_end, z),
            (x1 - nx * width_end, y1 - ny * width_end, z),
            (x0 - nx * width_start, y0 - ny * width_start, z),
        ],
        np.float32,
    )
