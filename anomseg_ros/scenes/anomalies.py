"""Anomalies: things that do not belong on a road. For their kinds see `TRAIN_KINDS` and `HELD_OUT_KINDS`."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import cv2
import numpy as np

from anomseg_ros.scenes.mesh import Model, ModelBuilder, Points, limb, ring, upright
from anomseg_ros.scenes.render import ANOMALY
from anomseg_ros.scenes.scene import tinted
from anomseg_ros.scenes.street import Textures
from anomseg_ros.scenes.textures import Color, Image, Rng, Texture, make_texture, random_color

Maker = Callable[[Rng, Textures, float], Model]


def make_anomaly(kind: str, rng: Rng, textures: Textures, size_m: float) -> Model:
    """Return a model of an anomaly kind that stands on the ground; its longest side is about `size_m`."""
    makers: dict[str, Maker] = {
        **{"box": _box, "tyre": _tyre, "ball": _ball, "blob": _blob, "chair": _chair, "dog": _dog, "debris": _debris},
        **{"collage": _collage, "cone": _cone, "barrel": _barrel, "sofa": _sofa, "deer": _deer, "cloth": _cloth},
        "rock": _rock,
    }
    return makers[kind](rng, textures, size_m)


def _any(rng: Rng, textures: Textures) -> Texture:
    return textures.patterns[int(rng.integers(len(textures.patterns)))]


def _footprint(build: ModelBuilder, half_x: float, half_z: float, height: float) -> None:
    build.shadow(ring((0, 0, 0), half_x, half_z, 12, "xz")[:, [0, 2]], 0.0, height)


def _box(rng: Rng, textures: Textures, size_m: float) -> Model:
    build = ModelBuilder(ANOMALY)
    half_x, height, half_z = (size_m * rng.uniform(*share) for share in ((0.3, 0.5), (0.35, 0.9), (0.3, 0.5)))
    texture = _any(rng, textures) if rng.random() < 0.6 else None
    color = random_color(rng) if rng.random() < 0.5 else (168.0, 128.0, 84.0)
    faces = build.box((-half_x, 0, -half_z), (half_x, height, half_z), color, None, texture)
    if texture is None:
        build.flat(upright(-0.08 * size_m, 0.08 * size_m, 0, height, -half_z), tinted(color, 1.25), on=faces[0])
    if rng.random() < 0.4:
        lid = (half_x * 0.9, height + half_x * 0.5, -half_z)
        build.flat(
            [(half_x, height, -half_z), lid, (lid[0], lid[1], half_z), (half_x, height, half_z)], tinted(color, 0.85)
        )
    build.centred_shadow(half_x, half_z, height)
    return build.finish()


def _tyre(rng: Rng, textures: Textures, size_m: float) -> Model:
    build = ModelBuilder(ANOMALY)
    radius = min(size_m, 1.3) / 2
    thick = radius * float(rng.uniform(0.35, 0.6))
    rubber = tinted((52.0, 52.0, 54.0), float(rng.uniform(0.6, 1.4)))
    if rng.random() < 0.5:
        build.cylinder((0, radius), (thick, radius), 18, rubber)
        build.flat(ring((0, thick, 0), radius * 0.75, radius * 0.75, 18, "xz"), tinted(rubber, 0.75))
        build.flat(ring((0, thick, 0), radius * 0.55, radius * 0.55, 18, "xz"), (16.0, 16.0, 16.0))
        _footprint(build, radius, radius, thick)
        return build.finish()
    build.prism(
        ring((0, radius, -thick / 2), radius, radius, 20), ring((0, radius, thick / 2), radius, radius, 20), rubber
    )
    front = -thick / 2 - 0.01
    build.flat(ring((0, radius, front), radius, radius, 20), rubber)
    build.flat(ring((0, radius, front), radius * 0.8, radius * 0.8, 20), tinted(rubber, 0.75))
    build.flat(ring((0, radius, front), radius * 0.55, radius * 0.55, 18), random_color(rng, (0.0, 0.2), (0.3, 0.8)))
    _footprint(build, radius, thick, radius * 2)
    return build.finish()


def _ball(rng: Rng, textures: Textures, size_m: float) -> Model:
    build = ModelBuilder(ANOMALY, faces_camera=True)
    radius = size_m / 2
    skin = cv2.resize(_any(rng, textures).levels[0], (96, 96), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    y, x = np.mgrid[:96, :96].astype(np.float32) / 47.5 - 1
    up = np.sqrt(np.clip(1 - x * x - y * y, 0, 1))
    shade = 0.35 + 0.65 * np.clip(0.5 * up - 0.6 * y - 0.3 * x, 0, 1) + 0.15 * up
    image: Image = np.clip(skin * shade[..., None], 0, 255).astype(np.uint8)
    circle = ring((0, radius, 0), radius, radius, 24)
    build.flat(np.roll(circle[::-1], 6, axis=0), (128.0, 128.0, 128.0), None, make_texture(image))
    _footprint(build, radius * 0.7, radius * 0.6, size_m)
    return build.finish()


def _ragged(rng: Rng, radius_x: float, radius_y: float, middle_y: float, count: int, roughness: float) -> Points:
    """Return a random upright outline that stands on the ground."""
    angle = np.sort(rng.uniform(0, 2 * np.pi, count))
    reach = 1.0 + roughness * rng.uniform(-1, 1, count)
    points = np.stack(
        [radius_x * reach * np.cos(angle), middle_y + radius_y * reach * np.sin(angle), np.zeros(count)], axis=1
    )
    points[:, 1] -= points[:, 1].min()
    return points.astype(np.float32)


def _blob(rng: Rng, textures: Textures, size_m: float) -> Model:
    build = ModelBuilder(ANOMALY, faces_camera=True)
    half, high = size_m * rng.uniform(0.3, 0.55), size_m * rng.uniform(0.2, 0.5)
    outline = _ragged(rng, half, high, high, int(rng.integers(7, 24)), float(rng.uniform(0.05, 0.4)))
    build.flat(outline, random_color(rng), None, _any(rng, textures))
    _footprint(build, half * 0.9, half * 0.5, high * 1.6)
    return build.finish()


def _collage(rng: Rng, textures: Textures, size_m: float) -> Model:
    build = ModelBuilder(ANOMALY, faces_camera=True)
    for index in range(int(rng.integers(2, 6))):
        half, high = size_m * rng.uniform(0.12, 0.35), size_m * rng.uniform(0.12, 0.4)
        outline = _ragged(rng, half, high, high, int(rng.integers(3, 9)), 0.5)
        outline[:, 0] += rng.uniform(-0.25, 0.25) * size_m
        outline[:, 1] += 0.0 if index == 0 else rng.uniform(0, 0.35) * size_m
        build.flat(outline, random_color(rng), None, _any(rng, textures) if rng.random() < 0.5 else None)
    _footprint(build, size_m * 0.4, size_m * 0.3, size_m * 0.7)
    return build.finish()


def _chair(rng: Rng, textures: Textures, size_m: float) -> Model:
    build = ModelBuilder(ANOMALY)
    color = random_color(rng, (0.0, 0.8), (0.2, 0.9))
    half, seat, back = size_m * 0.26, size_m * 0.48, size_m
    leg = size_m * 0.04
    for x in (-half, half - leg):
        for z in (-half, half - leg):
            build.box((x, 0, z), (x + leg, seat, z + leg), tinted(color, 0.75))
    build.box((-half, seat, -half), (half, seat + 0.06 * size_m, half), color)
    if rng.random() < 0.75:
        z = half - leg if rng.random() < 0.5 else -half
        for x in (-half, -half * 0.3, half * 0.3, half - leg):
            build.box((x, seat, z), (x + leg, back, z + leg), tinted(color, 0.85))
        build.box((-half, back - 0.18 * size_m, z), (half, back, z + leg), color)
    build.centred_shadow(half, half, back * 0.8)
    return build.finish()


def _dog(rng: Rng, textures: Textures, size_m: float) -> Model:
    return _quadruped(rng, size_m, leg=0.17, neck_rise=0.2, antlers=False)


def _deer(rng: Rng, textures: Textures, size_m: float) -> Model:
    return _quadruped(rng, size_m * 1.25, leg=0.47, neck_rise=0.36, antlers=True)


def _quadruped(rng: Rng, length_m: float, leg: float, neck_rise: float, antlers: bool) -> Model:
    """Return a four-legged animal from the side, facing left or right. leg, neck_rise: shares of its length."""
    build = ModelBuilder(ANOMALY, faces_camera=True)
    furs = [(136.0, 98.0, 62.0), (70.0, 58.0, 50.0), (186.0, 164.0, 134.0), (96.0, 90.0, 86.0), (206.0, 200.0, 192.0)]
    fur = tinted(furs[int(rng.integers(len(furs)))], float(rng.uniform(0.7, 1.15)))
    scale = np.array([length_m * float(rng.choice([-1.0, 1.0])), length_m, 1.0], np.float32)
    middle = leg + 0.136
    neck_x, neck_y = 0.42, middle + neck_rise

    def add(points: Points, shade: float) -> None:
        build.flat(points * scale, tinted(fur, shade))

    for place, bend in ((-0.27, 0.03), (-0.2, -0.05), (0.2, 0.05), (0.27, -0.04)):
        knee = (place + bend, leg * 0.5)
        add(limb((place, middle), knee, 0.11, 0.06), 0.8)
        add(limb(knee, (place, 0.0), 0.055, 0.04), 0.7)
    add(ring((0, middle, 0), 0.36, 0.17, 18), 1.0)
    add(ring((0.02, middle - 0.077, 0), 0.26, 0.085, 14), 1.15)
    add(limb((0.24, middle), (neck_x, neck_y), 0.2, 0.11), 1.0)
    add(ring((neck_x + 0.05, neck_y, 0), 0.12, 0.075, 14), 0.95)
    add(limb((neck_x, neck_y + 0.04), (neck_x - 0.05, neck_y + 0.14), 0.06, 0.02), 0.8)
    add(limb((-0.33, middle + 0.04), (-0.46, middle + (0.02 if antlers else 0.14)), 0.06, 0.03), 1.0)
    for lean in (-0.12, 0.1) if antlers else ():
        add(limb((neck_x, neck_y + 0.05), (neck_x + lean, neck_y + 0.36), 0.035, 0.02), 1.5)
        add(limb((neck_x + lean * 0.5, neck_y + 0.2), (neck_x + lean * 1.6, neck_y + 0.27), 0.03, 0.015), 1.5)
    _footprint(build, 0.36 * length_m, 0.13 * length_m, (middle + 0.17) * length_m)
    return build.finish()


def _debris(rng: Rng, textures: Textures, size_m: float) -> Model:
    build = ModelBuilder(ANOMALY)
    for _ in range(int(rng.integers(4, 11))):
        x, z = rng.uniform(-0.6, 0.6, 2) * size_m
        part = size_m * rng.uniform(0.1, 0.3)
        color = random_color(rng, (0.0, 0.6), (0.15, 0.9))
        if rng.random() < 0.5:
            tilt = rng.uniform(0, 0.6) * part
            near = [(x - part, 0.02, z - part), (x + part, 0.02 + tilt, z - part * 0.6)]
            far = [(x + part * 0.8, 0.03 + tilt, z + part), (x - part * 0.7, 0.02, z + part * 0.7)]
            build.flat([*near, *far], color, None, _any(rng, textures) if rng.random() < 0.4 else None)
        else:
            height = part * rng.uniform(0.2, 0.9)
            build.box((x - part * 0.5, 0, z - part * 0.3), (x + part * 0.5, height, z + part * 0.3), color)
    _footprint(build, size_m * 0.5, size_m * 0.5, size_m * 0.08)
    return build.finish()


def _cone(rng: Rng, textures: Textures, size_m: float) -> Model:
    build = ModelBuilder(ANOMALY)
    height = size_m * 0.9
    orange: Color = (236.0, 92.0, 30.0) if rng.random() < 0.7 else random_color(rng, (0.6, 1.0), (0.6, 1.0))
    base = height * 0.3
    build.box((-base, 0, -base), (base, height * 0.06, base), tinted(orange, 0.6))
    for low, high, color in (
        (0.06, 0.35, orange),
        (0.35, 0.55, (238.0, 236.0, 230.0)),
        (0.55, 0.72, orange),
        (0.72, 0.84, (238.0, 236.0, 230.0)),
        (0.84, 1.0, orange),
    ):
        bottom, top = height * 0.24 * (1.05 - low), height * 0.24 * (1.05 - high)
        build.cylinder((low * height, bottom), (high * height, top), 14, color)
    _footprint(build, base, base, height * 0.5)
    return build.finish()


def _barrel(rng: Rng, textures: Textures, size_m: float) -> Model:
    build = ModelBuilder(ANOMALY)
    color, radius = random_color(rng, (0.2, 0.9), (0.25, 0.85)), size_m * 0.32
    bands = 5
    for band in range(bands):
        low, high = size_m * band / bands, size_m * (band + 1) / bands
        shade = tinted(color, 1.0 if band % 2 == 0 else 0.75)
        build.cylinder((low, radius), (high, radius), 16, shade)
    _footprint(build, radius, radius, size_m)
    return build.finish()


def _sofa(rng: Rng, textures: Textures, size_m: float) -> Model:
    build = ModelBuilder(ANOMALY)
    color = random_color(rng, (0.1, 0.8), (0.2, 0.8))
    texture = _any(rng, textures) if rng.random() < 0.5 else None
    half, deep, seat, back = size_m * 0.62, size_m * 0.25, size_m * 0.26, size_m * 0.55
    build.box((-half, 0.05, -deep), (half, seat, deep), color, None, texture)
    rear = (deep * 0.4, deep) if rng.random() < 0.5 else (-deep, -deep * 0.4)
    build.box((-half, seat, rear[0]), (half, back, rear[1]), tinted(color, 0.9), None, texture)
    for x in (-half, half - 0.12 * size_m):
        build.box((x, 0.05, -deep), (x + 0.12 * size_m, seat * 1.5, deep), tinted(color, 0.8))
    build.centred_shadow(half, deep, back)
    return build.finish()


def _cloth(rng: Rng, textures: Textures, size_m: float) -> Model:
    """Return a crumpled sheet: strips of different brightness with one pattern."""
    build = ModelBuilder(ANOMALY)
    texture, folds = _any(rng, textures), int(rng.integers(3, 7))
    edges = np.linspace(-0.6, 0.6, folds + 1) * size_m
    heights = rng.uniform(0.02, 0.3, folds + 1) * size_m
    heights[0] = heights[-1] = 0.01
    color = random_color(rng)
    for i in range(folds):
        near, far = -size_m * rng.uniform(0.3, 0.5), size_m * rng.uniform(0.3, 0.5)
        strip = [
            (edges[i], heights[i], far),
            (edges[i + 1], heights[i + 1], far),
            (edges[i + 1], heights[i + 1] * 0.2, near),
            (edges[i], heights[i] * 0.2, near),
        ]
        build.flat(strip, tinted(color, float(rng.uniform(0.7, 1.2))), None, texture if rng.random() < 0.7 else None)
    _footprint(build, size_m * 0.6, size_m * 0.4, size_m * 0.1)
    return build.finish()


def _rock(rng: Rng, textures: Textures, size_m: float) -> Model:
    build = ModelBuilder(ANOMALY)
    count = int(rng.integers(7, 11))
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    grey = tinted((136.0, 130.0, 120.0), float(rng.uniform(0.6, 1.2)))
    levels = ((0.0, 0.42), (0.28, 0.5), (0.55, 0.28))
    rings = []
    for height, radius in levels:
        reach = size_m * radius * rng.uniform(0.75, 1.15, count)
        ring_y = size_m * height * (1 + 0.12 * rng.uniform(-1, 1, count)) if height else np.zeros(count)
        rings.append(np.stack([reach * np.cos(angle), ring_y, reach * np.sin(angle)], axis=1).astype(np.float32))
    for low, high in itertools.pairwise(rings):
        build.prism(low, high, tinted(grey, float(rng.uniform(0.85, 1.1))))
    _footprint(build, size_m * 0.42, size_m * 0.42, size_m * 0.5)
    return build.finish()
