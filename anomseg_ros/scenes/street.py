"""Models beside the road: buildings, walls, fences, trees, bushes, poles, lamps, signs and traffic lights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anomseg_ros.scenes.mesh import Model, ModelBuilder, limb, ring, sideways, upright
from anomseg_ros.scenes.scene import tinted
from anomseg_ros.scenes.textures import (
    Color,
    Rng,
    Texture,
    brick,
    crown,
    facade,
    make_texture,
    pattern,
    roof_tiles,
    shaded_noise,
    slats,
)

BUILDING, WALL, FENCE, POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN, VEGETATION = 2, 3, 4, 5, 6, 7, 8

POLE_GREY: Color = (128.0, 130.0, 132.0)


@dataclass(frozen=True)
class Textures:
    """The textures that a sequence's street furniture and anomalies share."""

    crowns: tuple[Texture, ...]
    bushes: tuple[Texture, ...]
    patterns: tuple[Texture, ...]


def draw_textures(rng: Rng) -> Textures:
    """Return the shared textures of one sequence."""
    return Textures(
        crowns=tuple(make_texture(crown(rng, 160, False)) for _ in range(5)),
        bushes=tuple(make_texture(crown(rng, 128, True)) for _ in range(3)),
        patterns=tuple(make_texture(pattern(rng)) for _ in range(12)),
    )


def building(rng: Rng, side: float, length_m: float, height_m: float, depth_m: float, pitched: bool) -> Model:
    """Return a house with its front at x = 0, from z = 0 to its length. side: 1 right of the road, -1 left of it."""
    build = ModelBuilder(BUILDING)
    shop = height_m > 8.0 and rng.random() < 0.5
    front = make_texture(facade(rng, length_m, height_m, bool(shop)))
    plain = front.levels[0][2:6].mean(axis=(0, 1))
    flank_color: Color = (float(plain[0]) * 0.95, float(plain[1]) * 0.95, float(plain[2]) * 0.95)
    flank = make_texture(shaded_noise(rng, 64, 64, flank_color, 0.12))
    if rng.random() < 0.4:
        flank = make_texture(facade(rng, depth_m, height_m, False))
    x0, x1 = (0.0, depth_m) if side > 0 else (-depth_m, 0.0)
    faces = [
        upright(x0, x1, 0, height_m, 0),
        upright(x1, x0, 0, height_m, length_m),
        sideways(x0, length_m, 0, 0, height_m),
        sideways(x1, 0, length_m, 0, height_m),
    ]
    build.solid(faces, [(160.0, 160.0, 160.0)] * 4, None, [flank, flank, front, front])
    if pitched:
        _add_roof(rng, build, (x0, x1), length_m, height_m, flank_color)
    build.box_shadow((x0, x1), (0, length_m), height_m)
    return build.finish()


def _add_roof(
    rng: Rng, build: ModelBuilder, x_range: tuple[float, float], length_m: float, height_m: float, gable: Color
) -> None:
    x0, x1 = x_range
    middle, top = (x0 + x1) / 2, height_m + (x1 - x0) * rng.uniform(0.25, 0.45)
    tiles = make_texture(roof_tiles(rng))
    over = 0.3
    build.solid(
        [
            [(x0 - over, height_m, 0), (middle, top, 0), (x1 + over, height_m, 0)],
            [(middle, top, length_m), (middle, top, 0), (x0 - over, height_m, 0), (x0 - over, height_m, length_m)],
            [(middle, top, 0), (middle, top, length_m), (x1 + over, height_m, length_m), (x1 + over, height_m, 0)],
        ],
        [gable, (140.0, 80.0, 60.0), (140.0, 80.0, 60.0)],
        None,
        [None, tiles, tiles],
    )


def wall(rng: Rng, length_m: float) -> Model:
    """Return a garden or retaining wall along z = 0..length at x = 0."""
    height = float(rng.uniform(1.0, 2.6))
    texture = make_texture(brick(rng, length_m, height))
    build = ModelBuilder(WALL)
    build.box((-0.13, 0, 0), (0.13, height, length_m), (150.0, 144.0, 136.0), None, texture)
    build.box_shadow((-0.13, 0.13), (0, length_m), height)
    return build.finish()


def fence(rng: Rng, length_m: float) -> Model:
    """Return a see-through fence along z = 0..length at x = 0."""
    height = float(rng.uniform(0.9, 1.9))
    build = ModelBuilder(FENCE)
    texture = make_texture(slats(rng, length_m, height))
    build.flat(sideways(0, 0, length_m, 0, height), (120.0, 120.0, 120.0), None, texture)
    build.box_shadow((-0.05, 0.05), (0, length_m), height * 0.8)
    return build.finish()


def hedge(rng: Rng, length_m: float, textures: Textures) -> Model:
    """Return a clipped hedge along z = 0..length at x = 0."""
    height, half = float(rng.uniform(0.9, 2.0)), 0.4
    color: Color = tinted((72.0, 92.0, 44.0), float(rng.uniform(0.8, 1.2)))
    leaves = make_texture(shaded_noise(rng, 48, max(48, int(length_m * 24)), color, 0.75, 12))
    build = ModelBuilder(VEGETATION)
    build.box((-half, 0, 0), (half, height, length_m), color, None, leaves)
    build.box_shadow((-half, half), (0, length_m), height)
    return build.finish()


def tree(rng: Rng, textures: Textures, widest_m: float = 5.0) -> Model:
    """Return a tree that faces the camera. widest_m: largest half width of its crown."""
    height, trunk = float(rng.uniform(4.5, 11.0)), float(rng.uniform(1.7, 2.6))
    wide = min(float(rng.uniform(0.28, 0.48)) * height, widest_m)
    thick = 0.05 * height * rng.uniform(0.5, 0.9)
    bark = tinted((92.0, 78.0, 64.0), float(rng.uniform(0.6, 1.2)))
    build = ModelBuilder(VEGETATION, faces_camera=True)
    build.flat(limb((0.0, 0.0), (0.0, trunk + 0.35 * (height - trunk)), thick, thick * 0.6), bark)
    for bend in (-1.0, 1.0):
        build.flat(
            limb((0.0, trunk), (bend * wide * 0.5, trunk + 0.4 * (height - trunk)), thick * 0.5, thick * 0.2), bark
        )
    low = trunk * 0.8
    for _ in range(2):
        texture = textures.crowns[int(rng.integers(len(textures.crowns)))]
        dx, dy = rng.uniform(-0.15, 0.15) * wide, rng.uniform(-0.05, 0.05) * height
        x0, x1, y0, y1 = dx - wide, dx + wide, low + dy, height + dy
        build.flat(upright(x0, x1, y0, y1, 0), (80.0, 100.0, 50.0), None, texture)
    build.shadow(ring((0, 0, 0), wide * 0.75, wide * 0.75, 14, "xz")[:, [0, 2]], low + 1.0, height * 0.8)
    build.centred_shadow(thick / 2, 0.1, trunk + 0.5)
    return build.finish()


def bush(rng: Rng, textures: Textures) -> Model:
    """Return a bush that faces the camera."""
    height = float(rng.uniform(0.6, 2.2))
    half = height * float(rng.uniform(0.55, 1.1))
    build = ModelBuilder(VEGETATION, faces_camera=True)
    texture = textures.bushes[int(rng.integers(len(textures.bushes)))]
    build.flat(upright(-half, half, -0.08 * height, height, 0), (80.0, 100.0, 50.0), None, texture)
    build.shadow(ring((0, 0, 0), half * 0.8, half * 0.5, 12, "xz")[:, [0, 2]], 0.0, height * 0.6)
    return build.finish()


def lamp(rng: Rng, side: float) -> Model:
    """Return a street light; its arm reaches over the road."""
    height, arm = float(rng.uniform(5.5, 8.5)), float(rng.uniform(0.6, 2.2))
    color = tinted(POLE_GREY, float(rng.uniform(0.4, 1.1)))
    build = ModelBuilder(POLE, faces_camera=True)
    build.flat(limb((0, 0), (0, height), 0.16, 0.1), color)
    build.flat(limb((0, height - 0.05), (-side * arm, height + 0.15), 0.1, 0.08), color)
    head = upright(-side * arm - 0.3, -side * arm + 0.3, height + 0.1, height + 0.25, 0)
    build.flat(head, tinted(color, 0.8))
    _pole_shadow(build, height)
    return build.finish()


def utility_pole(rng: Rng) -> Model:
    """Return a wooden pole with a cross-arm."""
    height = float(rng.uniform(6.5, 9.0))
    build = ModelBuilder(POLE, faces_camera=True)
    wood: Color = tinted((112.0, 94.0, 76.0), float(rng.uniform(0.7, 1.1)))
    build.flat(limb((0, 0), (0, height), 0.24, 0.17), wood)
    build.flat(limb((-0.9, height - 0.7), (0.9, height - 0.7), 0.13, 0.13), wood)
    _pole_shadow(build, height)
    return build.finish()


def bollard(rng: Rng) -> Model:
    """Return a short post at the kerb."""
    build = ModelBuilder(POLE, faces_camera=True)
    height = float(rng.uniform(0.7, 1.1))
    build.flat(limb((0, 0), (0, height), 0.16, 0.13), tinted(POLE_GREY, float(rng.uniform(0.3, 1.2))))
    build.flat(limb((0, height * 0.75), (0, height * 0.87), 0.15, 0.15), (222.0, 218.0, 210.0))
    _pole_shadow(build, height)
    return build.finish()


def _pole_shadow(build: ModelBuilder, height: float) -> None:
    build.centred_shadow(0.07, 0.07, height)


RED: Color = (196.0, 30.0, 32.0)
WHITE: Color = (236.0, 236.0, 232.0)
BLUE: Color = (28.0, 72.0, 168.0)
BLACK: Color = (24.0, 24.0, 26.0)
YELLOW: Color = (232.0, 196.0, 40.0)
GREEN: Color = (30.0, 92.0, 62.0)


def sign(rng: Rng) -> Model:
    """Return a traffic sign on its pole: round, triangular, octagonal, square or a town sign."""
    build = ModelBuilder(POLE, faces_camera=True)
    middle, radius = float(rng.uniform(1.9, 2.6)), float(rng.uniform(0.3, 0.5))
    build.flat(limb((0, 0), (0, middle + radius), 0.09, 0.09), POLE_GREY)
    family = int(rng.integers(6))
    # Discs of each family: corners, share of the radius, turn, colour.
    discs: tuple[tuple[int, float, float, Color], ...] = (
        ((20, 1.0, 0.0, RED), (20, 0.72, 0.0, WHITE)),
        ((3, 1.15, np.pi / 2, RED), (3, 0.72, np.pi / 2, WHITE)),
        ((8, 1.0, np.pi / 8, RED),),
        ((20, 1.0, 0.0, BLUE),),
        ((4, 1.2, np.pi / 4, BLUE), (3, 0.6, np.pi / 2, WHITE)),
        (),
    )[family]
    for corners, share, turn, color in discs:
        _disc(build, middle, radius * share, corners, turn, color)
    if family == 5:
        _town_sign(build, middle, radius, YELLOW if rng.random() < 0.5 else GREEN)
    elif family != 4:
        # The bar of each family: half width, lower end, upper end, thickness, colour.
        half, low, high, thick, color = (
            (0.35, 0.0, 0.0, 0.5, BLACK),
            (0.0, -0.2, 0.3, 0.16, BLACK),
            (0.6, 0.0, 0.0, 0.35, WHITE),
            (0.0, -0.5, 0.5, 0.3, WHITE),
        )[family]
        start, end = (-half * radius, middle + low * radius), (half * radius, middle + high * radius)
        build.flat(limb(start, end, thick * radius, thick * radius), color, TRAFFIC_SIGN)
    _pole_shadow(build, middle + radius)
    return build.finish()


def _town_sign(build: ModelBuilder, middle: float, radius: float, color: Color) -> None:
    half = radius * 2.2
    build.flat(limb((-half, middle), (half, middle), 2 * radius, 2 * radius), color, TRAFFIC_SIGN)
    for row, ink in ((-0.35, BLACK), (0.35, WHITE)):
        y = middle + row * radius
        build.flat(limb((-half * 0.8, y), (half * 0.6, y), 0.25 * radius, 0.25 * radius), ink, TRAFFIC_SIGN)


def _disc(build: ModelBuilder, middle: float, radius: float, corners: int, turn: float, color: Color) -> None:
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False) + turn
    points = np.stack([radius * np.cos(angle), middle + radius * np.sin(angle), np.zeros(corners)], axis=1)
    build.flat(points, color, TRAFFIC_SIGN)


def traffic_light(rng: Rng, side: float) -> Model:
    """Return a traffic light, some with a second head on an arm over the road."""
    build = ModelBuilder(POLE, faces_camera=True)
    color = tinted(POLE_GREY, float(rng.uniform(0.5, 1.0)))
    lit = int(rng.integers(3))
    height = float(rng.uniform(3.0, 3.5))
    if rng.random() < 0.5:
        arm = float(rng.uniform(2.0, 4.0))
        build.flat(limb((0, 0), (0, 5.6), 0.17, 0.14), color)
        build.flat(limb((0, 5.5), (-side * arm, 5.6), 0.12, 0.09), color)
        _signal_head(build, -side * arm, 5.1, lit)
    else:
        build.flat(limb((0, 0), (0, height + 0.3), 0.13, 0.12), color)
    _signal_head(build, -side * 0.05, height - 0.6, lit)
    _pole_shadow(build, height)
    return build.finish()


def _signal_head(build: ModelBuilder, x: float, y: float, lit: int) -> None:
    build.flat(upright(x - 0.2, x + 0.2, y - 0.5, y + 0.55, 0), (26.0, 30.0, 28.0), TRAFFIC_LIGHT)
    bright = ((255.0, 50.0, 36.0), (255.0, 190.0, 40.0), (60.0, 250.0, 150.0))
    for index in range(3):
        color = tinted(bright[index], 1.6) if index == lit else tinted(bright[index], 0.22)
        build.flat(ring((x, y + 0.35 - 0.32 * index, 0), 0.12, 0.12, 12), color, TRAFFIC_LIGHT)
