"""The 150 classes of ADE20k's scene parsing benchmark (Zhou et al., CVPR 2017), in the order of its objectInfo150.txt.

Names are the first ones of that list, as mmsegmentation has them, and are unique here. Colours are ours: hues in steps
of the golden ratio, so that classes that follow each other differ.
"""

from __future__ import annotations

import colorsys

NAMES = tuple(
    """wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
    table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair,
    seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers,
    counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table,
    pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench,
    countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel,
    light, truck, tower, chandelier, awning, streetlight, booth, television receiver, airplane, dirt track, apparel,
    pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt,
    canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball,
    food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood,
    sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator,
    glass, clock, flag""".replace("\n    ", " ").split(", ")
)

_GOLDEN = (5**0.5 - 1) / 2


def colours() -> tuple[tuple[int, int, int], ...]:
    """Return one RGB colour per class."""
    made = []
    for index in range(len(NAMES)):
        rgb = colorsys.hsv_to_rgb(index * _GOLDEN % 1.0, (0.9, 0.55)[index % 2], (1.0, 0.75, 0.5)[index % 3])
        made.append((round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])))
    return tuple(made)
