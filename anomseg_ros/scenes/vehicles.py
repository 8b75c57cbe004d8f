"""Cars, trucks, buses and trams as small polygon models."""

from __future__ import annotations

import numpy as np

from anomseg_ros.scenes.mesh import Model, ModelBuilder, Points, ring, sideways, upright
from anomseg_ros.scenes.scene import tinted
from anomseg_ros.scenes.textures import Color, Rng, random_color

CAR, TRUCK, BUS, TRAIN = 13, 14, 15, 16

GLASS: Color = (46.0, 54.0, 62.0)
RUBBER: Color = (28.0, 28.0, 30.0)
STEEL: Color = (120.0, 122.0, 126.0)


def _profile(corners: str, low: int, high: int) -> tuple[tuple[tuple[float, float], ...], int, int]:
    values = [float(value) for value in corners.split()]
    return tuple(zip(values[::2], values[1::2], strict=True)), low, high


PROFILES = (
    _profile("-.49 .17 -.5 .42 -.48 .64 -.32 .97 .04 1 .24 .66 .46 .54 .5 .36 .48 .17", 2, 5),
    _profile("-.49 .17 -.5 .42 -.48 .6 -.44 .95 .08 1 .27 .62 .47 .5 .5 .34 .48 .17", 2, 5),
    _profile("-.49 .18 -.5 .4 -.49 .62 -.3 .66 -.16 .97 .08 1 .26 .64 .47 .55 .5 .36 .48 .18", 3, 6),
    _profile("-.49 .14 -.5 .4 -.5 .56 -.48 .97 .26 1 .4 .56 .49 .46 .5 .3 .48 .14", 2, 5),
)
"""Side profiles (z forward, y up) of length 1 and height 1, from the rear lower corner over the roof to the front lower
corner. The two numbers are the corners between which the windows lie."""


def car_paint(rng: Rng) -> Color:
    """Return a paint colour, mostly white, grey, silver or black."""
    if rng.random() < 0.65:
        grey = float(rng.choice([235.0, 205.0, 165.0, 120.0, 70.0, 38.0]))
        return grey, grey, min(255.0, grey * 1.03)
    return random_color(rng, (0.45, 0.9), (0.25, 0.75))


def car(rng: Rng) -> Model:
    """Return a car: hatchback, estate, saloon or van."""
    kind = int(rng.integers(len(PROFILES)))
    length = float(rng.uniform(3.7, 4.7)) * (1.1 if kind == 3 else 1.0)
    height = float(rng.uniform(1.42, 1.62)) * (1.25 if kind == 3 else 1.0)
    half = float(rng.uniform(0.84, 0.93))
    paint = car_paint(rng)
    build = ModelBuilder(CAR)
    shape, low, high = PROFILES[kind]
    profile = [(z * length, y * height) for z, y in shape]
    faces = _car_body(build, profile, low, high, half, paint)
    _car_windows(build, profile, faces, low, high, half)
    _car_ends(build, profile, faces, half, paint)
    for z in (-0.3 * length, 0.31 * length):
        _wheel_pair(build, faces, half, z, 0.225 * height)
    build.centred_shadow(half, length / 2, height * 0.8)
    return build.finish()


def _car_body(
    build: ModelBuilder, profile: list[tuple[float, float]], low: int, high: int, half: float, paint: Color
) -> list[int]:
    """Add the body. Faces: lower left, lower right, upper left, upper right, then strips from rear to front."""
    roof = half * 0.78
    widths = [roof if low < i < high else half for i in range(len(profile))]
    corners = [[(side * w, y, z) for (z, y), w in zip(profile, widths, strict=True)] for side in (-1.0, 1.0)]
    lower = [[c for i, c in enumerate(side) if not low < i < high] for side in corners]
    upper = [side[low : high + 1] for side in corners]
    strips = [[corners[0][i + 1], corners[1][i + 1], corners[1][i], corners[0][i]] for i in range(len(profile) - 1)]
    polygons = [lower[0], lower[1], upper[0], upper[1], *strips]
    return build.solid(polygons, [paint] * len(polygons))


def _car_windows(
    build: ModelBuilder, profile: list[tuple[float, float]], faces: list[int], low: int, high: int, half: float
) -> None:
    for side, face in ((-1.0, faces[2]), (1.0, faces[3])):
        points = []
        for i in range(low, high + 1):
            z, y = profile[i]
            points.append((side * half * (0.79 if low < i < high else 1.0), y, z))
        glass = _shrunk(np.array(points, np.float32), 0.84)
        build.flat(glass, GLASS, on=face)
        middle_z = float(glass[:, 2].mean())
        top, bottom = float(glass[:, 1].max()), float(glass[:, 1].min())
        upper = [(side * half * 0.79, top, middle_z + shift) for shift in (-0.04, 0.04)]
        lower = [(side * half, bottom, middle_z + shift) for shift in (0.04, -0.04)]
        build.flat([*upper, *lower], (30.0, 32.0, 34.0), on=face)
    for strip in (low, high - 1):
        (z0, y0), (z1, y1) = profile[strip], profile[strip + 1]
        w0, w1 = (half, half * 0.78) if strip == low else (half * 0.78, half)
        quad = np.array([(-w1, y1, z1), (w1, y1, z1), (w0, y0, z0), (-w0, y0, z0)], np.float32)
        build.flat(_shrunk(quad, 0.86), GLASS, on=faces[4 + strip])


def _shrunk(points: Points, factor: float) -> Points:
    middle = points.mean(axis=0)
    return np.asarray(middle + (points - middle) * factor, np.float32)


def _car_ends(
    build: ModelBuilder, profile: list[tuple[float, float]], faces: list[int], half: float, paint: Color
) -> None:
    """Add bumpers, lights and number plates on the rear and the front strips."""
    rear, front = faces[5], faces[-2]
    for face, (za, ya), (zb, yb), lamp in (
        (rear, profile[1], profile[2], (176.0, 24.0, 22.0)),
        (front, profile[-2], profile[-3], (232.0, 230.0, 214.0)),
    ):
        for side in (-1.0, 1.0):
            outer, inner, y, z = side * half * 0.96, side * half * 0.66, (ya + yb) / 2, (za + zb) / 2
            build.flat([(outer, yb, zb), (inner, yb, zb), (inner, y, z), (outer, y, z)], lamp, on=face)
        y = ya + 0.03
        build.flat(upright(-0.26, 0.26, y, y + 0.11, za), (226.0, 224.0, 206.0), on=face)
    for face, (za, ya), (zb, yb) in ((faces[4], profile[0], profile[1]), (faces[-1], profile[-1], profile[-2])):
        y, z = (ya + yb) / 2, (za + zb) / 2
        bumper = [(-half, y, z), (half, y, z), (half, ya, za), (-half, ya, za)]
        build.flat(bumper, tinted(paint, 0.45), on=face)


def _wheel_pair(build: ModelBuilder, faces: list[int], half: float, z: float, radius: float) -> None:
    for side, face in ((-1.0, faces[0]), (1.0, faces[1])):
        x = side * (half + 0.01)
        build.flat(ring((x, radius, z), radius, radius, 16, "zy"), RUBBER, on=face)
        build.flat(ring((x * 1.01, radius, z), radius * 0.6, radius * 0.6, 12, "zy"), STEEL, on=face)
        inner = side * (half - 0.22)
        build.flat(upright(x, inner, 0.0, radius * 1.1, z), RUBBER, first=True)


def truck(rng: Rng) -> Model:
    """Return a lorry: cab in front, box or tarpaulin behind."""
    build = ModelBuilder(TRUCK)
    length, height = float(rng.uniform(6.5, 10.0)), float(rng.uniform(2.9, 3.7))
    half, cab = 1.2, 1.9
    load = random_color(rng, (0.0, 0.7), (0.5, 0.95))
    back = -length / 2
    cargo = build.box((-half, 0.95, back), (half, height, length / 2 - cab - 0.15), load)
    build.flat(upright(0.02, -0.02, 1.0, height - 0.1, back), tinted(load, 0.6), on=cargo[0])
    stripe = random_color(rng)
    for face, x in ((cargo[2], -half), (cargo[3], half)):
        build.flat(sideways(x, back + 0.4, 0.5, height * 0.55, height * 0.75), stripe, on=face)
    chassis = build.box((-half * 0.9, 0.35, back), (half * 0.9, 0.95, length / 2 - 0.3), (48.0, 48.0, 50.0))
    for side in (-1.0, 1.0):
        build.flat(upright(side * 1.0, side * 0.75, 0.65, 0.85, back), (180.0, 26.0, 22.0), on=chassis[0])
    paint = car_paint(rng)
    front = length / 2
    head = build.box((-half, 0.45, front - cab), (half, 2.7, front), paint)
    _glass_panel(build, head[1], half * 0.9, 1.6, 2.4, front)
    for face, x in ((head[2], -half), (head[3], half)):
        build.flat(sideways(x, front - 1.2, front - 0.2, 1.6, 2.4), GLASS, on=face)
    _big_wheels(build, (chassis[2], chassis[3]), half, (back + 1.2, back + 2.3, front - 1.2))
    build.centred_shadow(half, length / 2, height)
    return build.finish()


def bus(rng: Rng) -> Model:
    """Return a city bus."""
    return _long_vehicle(rng, BUS, float(rng.uniform(9.5, 12.5)), 3.1, True)


def tram(rng: Rng) -> Model:
    """Return a tram; Cityscapes calls it train."""
    return _long_vehicle(rng, TRAIN, float(rng.uniform(15.0, 18.0)), 3.5, False)


def _long_vehicle(rng: Rng, label: int, length: float, height: float, wheels: bool) -> Model:
    build = ModelBuilder(label)
    paint = random_color(rng, (0.4, 0.95), (0.45, 0.9))
    half, end = 1.25, length / 2
    body = build.box((-half, 0.3, -end), (half, height, end), paint)
    _glass_panel(build, body[0], half * 0.85, height * 0.48, height * 0.85, -end)
    _glass_panel(build, body[1], half * 0.92, height * 0.4, height * 0.88, end)
    panes = max(3, int(length / 1.5))
    for face, x in ((body[2], -half), (body[3], half)):
        build.flat(sideways(x, -end, end, 0.3, 0.85), tinted(paint, 0.55), on=face)
        for i in range(panes):
            z0 = -end + 0.3 + i * (length - 0.6) / panes
            z1 = z0 + (length - 0.6) / panes - 0.15
            build.flat(sideways(x, z0, z1, height * 0.46, height * 0.86), GLASS, on=face)
    for side in (-1.0, 1.0):
        for face, z, lamp in ((body[0], -end, (184.0, 26.0, 22.0)), (body[1], end, (236.0, 232.0, 214.0))):
            build.flat(upright(side * 1.15, side * 0.85, 0.7, 1.0, z), lamp, on=face)
    if wheels:
        _big_wheels(build, (body[2], body[3]), half, (-end + 2.6, end - 2.4))
    else:
        build.box((-0.9, 0.0, -end + 0.5), (0.9, 0.3, end - 0.5), (40.0, 40.0, 42.0))
    build.centred_shadow(half, end, height)
    return build.finish()


def _glass_panel(build: ModelBuilder, face: int, half: float, low: float, high: float, z: float) -> None:
    build.flat(upright(-half, half, low, high, z), GLASS, on=face)


def _big_wheels(build: ModelBuilder, sides: tuple[int, int], half: float, places: tuple[float, ...]) -> None:
    for z in places:
        for side, face in ((-1.0, sides[0]), (1.0, sides[1])):
            x, inner = side * (half + 0.01), side * (half - 0.35)
            build.flat(upright(x, inner, 0.0, 0.95, z), RUBBER, first=True)
            build.flat(ring((x, 0.48, z), 0.48, 0.48, 16, "zy"), RUBBER, on=face)
            build.flat(ring((x * 1.005, 0.48, z), 0.27, 0.27, 12, "zy"), STEEL, on=face)
