"""Small polygon models in metres: x right, y up, z forward, the origin on the ground."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from anomseg_ros.scenes.textures import Color, Texture

Points = npt.NDArray[np.float32]
PointsLike = Sequence[Sequence[float]] | npt.NDArray[np.floating]


@dataclass(frozen=True)
class Model:
    """A finished model of F faces with V vertices.

    vertices: (V, 3) float32. starts: (F + 1,), the first vertex of each face. colors: (F, 3), 0..255. labels: (F,).
    anchors: (F,), the face whose visibility and depth each face shares. solids: (F,), the number of each face's solid.
    normals: (F, 3), zero for faces that are visible from both sides. sizes_m: (F,). textures, frames: of textured faces
    by number; a frame is the texture's upper left, upper right and lower left corner.
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
class _Face:
    """A face: the columns of Model."""

    points: Points
    color: Color
    label: int
    anchor: int
    solid: int
    normal: Points
    texture: Texture | None


@dataclass
class ModelBuilder:
    """Collects the faces of a model. label: train id of faces without one of their own."""

    label: int
    faces_camera: bool = False
    _faces: list[_Face] = field(default_factory=list)
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
        """Add a face that is visible from both sides, and return its number.

        Args:
            points: (N, 3) corners.
            color: 0..255.
            label: train id, None for the builder's.
            texture: replaces the colour.
            on: number of a face that it lies on.
            same_solid: whether it belongs to the last solid.
            first: whether it is drawn before all solids.
        """
        number = len(self._faces)
        if on is None:
            self._solid_count += not same_solid
            anchor, solid, normal = number, 0 if first else self._solid_count, np.zeros(3, np.float32)
        else:
            below = self._faces[on]
            anchor, solid, normal = below.anchor, below.solid, below.normal
        corners = np.asarray(points, np.float32).reshape(-1, 3)
        label = self.label if label is None else label
        self._faces.append(_Face(corners, color, label, anchor, solid, normal, texture))
        return number

    def solid(
        self,
        polygons: Sequence[PointsLike],
        colors: Sequence[Color],
        label: int | None = None,
        textures: Sequence[Texture | None] | None = None,
    ) -> list[int]:
        """Add a closed, roughly convex solid. Its faces look away from its middle, whatever their winding."""
        faces = [np.asarray(polygon, np.float32).reshape(-1, 3) for polygon in polygons]
        middle = np.concatenate(faces).mean(axis=0)
        self._solid_count += 1
        numbers = []
        for index, face in enumerate(faces):
            texture = None if textures is None else textures[index]
            number = self.flat(face, colors[index], label, texture, same_solid=True)
            normal = _normal(face)
            self._faces[number].normal = normal if np.dot(normal, face.mean(axis=0) - middle) >= 0 else -normal
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
        """Add an upright box without bottom between two corners (x, y, z). Faces: back, front, left, right, top."""
        (x0, y0, z0), (x1, y1, z1) = low, high
        polygons = [
            upright(x0, x1, y0, y1, z0),
            upright(x1, x0, y0, y1, z1),
            sideways(x0, z1, z0, y0, y1),
            sideways(x1, z0, z1, y0, y1),
            [(x0, y1, z1), (x1, y1, z1), (x1, y1, z0), (x0, y1, z0)],
        ]
        return self.solid(polygons, [color] * 5, label, [texture] * 5)

    def prism(self, bottom: PointsLike, top: PointsLike, color: Color) -> None:
        """Add the solid between two rings with the same number of (x, y, z) points: cylinder, cone, boulder."""
        low, high = np.asarray(bottom, np.float32), np.asarray(top, np.float32)
        polygons: list[PointsLike] = [high]
        count = len(low)
        for i in range(count):
            j = (i + 1) % count
            polygons.append(np.stack([high[i], high[j], low[j], low[i]]))
        self.solid(polygons, [color] * len(polygons))

    def cylinder(self, low: tuple[float, float], high: tuple[float, float], count: int, color: Color) -> None:
        """Add an upright cylinder or cone around the origin. low, high: its height and radius at either end."""
        (bottom, wide), (top, narrow) = low, high
        self.prism(ring((0, bottom, 0), wide, wide, count, "xz"), ring((0, top, 0), narrow, narrow, count, "xz"), color)

    def shadow(self, outline: PointsLike, low_m: float, high_m: float) -> None:
        """Cast the shadow of an outline (N, 2) of (x, z) from `low_m` to `high_m` above the ground."""
        self._shadows.append((np.asarray(outline, np.float32).reshape(-1, 2), low_m, high_m))

    def box_shadow(self, x: tuple[float, float], z: tuple[float, float], height: float) -> None:
        """Cast the shadow of an upright box on the ground between two x and two z."""
        self.shadow([(x[0], z[0]), (x[1], z[0]), (x[1], z[1]), (x[0], z[1])], 0.0, height)

    def centred_shadow(self, half_width: float, half_length: float, height: float) -> None:
        """Cast the shadow of an upright box around the origin."""
        self.box_shadow((-half_width, half_width), (-half_length, half_length), height)

    def finish(self) -> Model:
        """Return the model."""
        faces, points = self._faces, [face.points for face in self._faces]
        extents = [float(np.linalg.norm(corners.max(axis=0) - corners.min(axis=0))) for corners in points]
        textures = {number: face.texture for number, face in enumerate(faces) if face.texture is not None}
        return Model(
            vertices=np.concatenate(points),
            starts=np.cumsum([0] + [len(corners) for corners in points]),
            colors=np.asarray([face.color for face in faces], np.float32),
            labels=tuple(face.label for face in faces),
            anchors=np.asarray([face.anchor for face in faces]),
            solids=np.asarray([face.solid for face in faces]),
            normals=np.stack([face.normal for face in faces]),
            sizes_m=np.asarray(extents, np.float32),
            textures=textures,
            frames={number: _texture_frame(points[number]) for number in textures},
            faces_camera=self.faces_camera,
            shadows=tuple(self._shadows),
        )


def _normal(face: Points) -> Points:
    """Return the unit normal of a planar face (Newell's method, which also works for collinear corners)."""
    after = np.roll(face, -1, axis=0)
    normal = np.cross(face, after).sum(axis=0)
    return np.asarray(normal / max(float(np.linalg.norm(normal)), 1e-9), np.float32)


def _texture_frame(face: Points) -> Points:
    """Return (3, 3): upper left, upper right and lower left corner of the smallest texture that covers the face.

    The first edge is the texture's upper edge, so a rectangle from its upper left corner is mapped exactly.
    """
    right = face[1] - face[0]
    right = right / max(float(np.linalg.norm(right)), 1e-9)
    down = np.cross(_normal(face), right)
    if np.dot(down, face[-1] - face[0]) < 0:
        down = -down
    a, b = (face - face[0]) @ right, (face - face[0]) @ down
    origin = face[0] + right * a.min() + down * b.min()
    corners = [origin, origin + right * (a.max() - a.min()), origin + down * (b.max() - b.min())]
    return np.stack(corners).astype(np.float32)


def upright(x0: float, x1: float, y0: float, y1: float, z: float) -> PointsLike:
    """Return an upright rectangle across the road, from its upper left corner (x0, y1)."""
    return [(x0, y1, z), (x1, y1, z), (x1, y0, z), (x0, y0, z)]


def sideways(x: float, z0: float, z1: float, y0: float, y1: float) -> PointsLike:
    """Return an upright rectangle along the road, from its upper corner at z0."""
    return [(x, y1, z0), (x, y1, z1), (x, y0, z1), (x, y0, z0)]


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
