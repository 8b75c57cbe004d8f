"""People, cyclists and motorcyclists as small polygon models."""

from __future__ import annotations

import numpy as np

from anomseg_ros.scenes.mesh import Model, ModelBuilder, limb, ring, upright
from anomseg_ros.scenes.scene import tinted
from anomseg_ros.scenes.textures import Color, Rng, random_color

PERSON, RIDER, MOTORCYCLE, BICYCLE = 11, 12, 17, 18

RUBBER: Color = (28.0, 28.0, 30.0)


def _skin(rng: Rng) -> Color:
    return tinted((224.0, 178.0, 146.0), float(rng.uniform(0.4, 1.05)))


def _cloth(rng: Rng) -> Color:
    return random_color(rng, (0.05, 0.75), (0.12, 0.8))


def person(rng: Rng, stride: float) -> Model:
    """Return a person who faces the camera or away. stride: phase of the walk in radians."""
    build = ModelBuilder(PERSON, faces_camera=True)
    height = float(rng.uniform(1.5, 1.9)) * (0.65 if rng.random() < 0.1 else 1.0)
    wide = float(rng.uniform(0.85, 1.2))
    coat, legs, skin = _cloth(rng), _cloth(rng), _skin(rng)
    hair = tinted((96.0, 70.0, 48.0), float(rng.uniform(0.25, 1.6)))
    skirt = rng.random() < 0.2
    swing = 0.13 * np.sin(stride)
    _legs(build, height, wide, legs, swing)
    _torso(build, height, wide, coat, skin, swing, skirt)
    _head(build, height, skin, hair, bool(rng.random() < 0.5))
    if rng.random() < 0.3:
        build.flat(limb((0.2 * wide, 0.62 * height), (0.22 * wide, 0.42 * height), 0.2, 0.24), _cloth(rng))
    build.shadow(ring((0, 0, 0), 0.24 * wide, 0.16, 10, "xz")[:, [0, 2]], 0.0, height)
    return build.finish()


def _legs(build: ModelBuilder, height: float, wide: float, color: Color, swing: float) -> None:
    for side in (-1.0, 1.0):
        hip, foot = side * 0.075 * wide, side * (0.09 + swing * 0.6) * wide
        lift = max(0.0, side * swing) * 0.4
        knee = (hip + foot) / 2 + side * swing * 0.15
        tone = tinted(color, 1.0 + 0.12 * side)
        build.flat(limb((hip, 0.5 * height), (knee, 0.27 * height), 0.17 * wide, 0.13 * wide), tone)
        build.flat(limb((knee, 0.28 * height), (foot, 0.03 + lift), 0.13 * wide, 0.09 * wide), tone)
        build.flat(ring((foot, 0.045 + lift, 0), 0.07, 0.045, 8), (36.0, 32.0, 30.0))


def _torso(
    build: ModelBuilder, height: float, wide: float, coat: Color, skin: Color, swing: float, skirt: bool
) -> None:
    shoulder, waist = 0.81 * height, 0.47 * height
    for side in (-1.0, 1.0):
        hand = side * 0.27 * wide + swing * 0.4
        elbow = (side * 0.28 * wide, 0.63 * height)
        build.flat(limb((side * 0.2 * wide, shoulder - 0.02), elbow, 0.11 * wide, 0.09 * wide), tinted(coat, 0.88))
        build.flat(limb(elbow, (hand, 0.49 * height), 0.09 * wide, 0.07 * wide), tinted(coat, 0.84))
        build.flat(ring((hand, 0.475 * height, 0), 0.04, 0.05, 8), skin)
    hem = 0.36 * height if skirt else waist
    spread = 0.26 if skirt else 0.17
    right = [(spread, hem), (0.17, 0.6 * height), (0.215, shoulder - 0.05), (0.13, shoulder + 0.03)]
    outline = [*((-x, y) for x, y in reversed(right)), *right]
    build.flat([(x * wide, y, 0.0) for x, y in outline], coat)
    build.flat(
        [(0.02 * wide, shoulder, 0.0), (0.2 * wide, shoulder - 0.06, 0.0), (spread * wide, hem, 0.0), (0.05, hem, 0.0)],
        tinted(coat, 0.9),
    )


def _head(build: ModelBuilder, height: float, skin: Color, hair: Color, from_behind: bool) -> None:
    build.flat(limb((0.0, 0.8 * height), (0.0, 0.87 * height), 0.11, 0.1), tinted(skin, 0.85))
    build.flat(ring((0.0, 0.93 * height, 0), 0.1, 0.125), hair)
    if not from_behind:
        build.flat(ring((0.0, 0.915 * height, 0), 0.085, 0.1), skin)


def cyclist(rng: Rng, stride: float) -> Model:
    """Return a bicycle with its rider, seen along the road."""
    return _two_wheeler(rng, BICYCLE, stride)


def motorcyclist(rng: Rng, stride: float) -> Model:
    """Return a motorcycle with its rider, seen along the road."""
    return _two_wheeler(rng, MOTORCYCLE, stride)


def _two_wheeler(rng: Rng, label: int, stride: float) -> Model:
    build = ModelBuilder(label)
    heavy = label == MOTORCYCLE
    _cycle(build, rng, heavy)
    coat, legs, skin = _cloth(rng), _cloth(rng), _skin(rng)
    swing = 0.12 * np.sin(stride) if not heavy else 0.0
    spread = 0.2 if heavy else 0.12
    for side in (-1.0, 1.0):
        knee, foot = (side * (spread + 0.06), 0.62 + side * swing), (side * spread, 0.28 + side * swing)
        build.flat(limb((side * 0.09, 0.92), knee, 0.17, 0.14), legs, RIDER)
        build.flat(limb(knee, foot, 0.13, 0.09), tinted(legs, 0.85), RIDER)
        elbow = (side * 0.34, 1.14)
        build.flat(limb((side * 0.19, 1.42), elbow, 0.12, 0.1), tinted(coat, 0.85), RIDER)
        build.flat(limb(elbow, (side * 0.27, 0.98), 0.09, 0.07, 0.1), tinted(coat, 0.8), RIDER)
    build.flat(
        [(-0.13, 1.5, 0), (-0.22, 1.42, 0), (-0.18, 0.9, 0), (0.18, 0.9, 0), (0.22, 1.42, 0), (0.13, 1.5, 0)],
        coat,
        RIDER,
    )
    build.flat(limb((0.0, 1.47), (0.0, 1.58), 0.11, 0.1), tinted(skin, 0.85), RIDER)
    helmet = random_color(rng, (0.0, 0.9), (0.15, 0.95))
    build.flat(ring((0.0, 1.67, 0), 0.13, 0.15), helmet if heavy or rng.random() < 0.6 else (70.0, 52.0, 40.0), RIDER)
    build.centred_shadow(0.2, 0.9, 1.7)
    return build.finish()


def parked_cycle(rng: Rng) -> Model:
    """Return a bicycle or motorcycle without a rider."""
    heavy = bool(rng.random() < 0.3)
    build = ModelBuilder(MOTORCYCLE if heavy else BICYCLE)
    _cycle(build, rng, heavy)
    build.centred_shadow(0.12, 0.9, 0.9)
    return build.finish()


def _cycle(build: ModelBuilder, rng: Rng, heavy: bool) -> None:
    paint = random_color(rng, (0.2, 1.0), (0.15, 0.9))
    radius, half, reach = (0.31, 0.08, 0.68) if heavy else (0.34, 0.03, 0.54)
    for z in (-reach, reach):
        build.flat(ring((0.0, radius, z), radius, radius, 18, "zy"), RUBBER)
        build.flat(ring((0.0, radius, z), radius * 0.8, radius * 0.8, 16, "zy"), (126.0, 128.0, 128.0))
        build.flat(upright(-half, half, 0.0, 2 * radius, z), RUBBER)
    if heavy:
        build.box((-0.17, 0.35, -0.55), (0.17, 0.85, 0.5), paint)
        build.box((-0.13, 0.8, -0.75), (0.13, 0.95, 0.1), (34.0, 32.0, 32.0))
        build.flat(upright(-0.09, 0.09, 0.68, 0.78, -0.8), (188.0, 24.0, 20.0))
    else:
        for start, end in (
            ((-0.5, 0.34), (-0.15, 0.3)),
            ((-0.15, 0.3), (-0.25, 0.9)),
            ((-0.2, 0.78), (0.42, 0.85)),
            ((-0.15, 0.3), (0.42, 0.82)),
            ((0.4, 0.95), (0.54, 0.34)),
        ):
            side = limb(start, end, 0.05, 0.05)
            build.flat(np.stack([side[:, 2], side[:, 1], side[:, 0]], axis=1), paint)
        build.box((-0.08, 0.88, -0.38), (0.08, 0.94, -0.12), (34.0, 32.0, 32.0))
    grip = 0.34 if heavy else 0.27
    build.box((-grip, 0.97, 0.34), (grip, 1.01, 0.4), (40.0, 40.0, 42.0))
