"""The contents of each stretch of road and the traffic. Both depend on the seed and the stretch's number alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from anomseg_ros.scenes import people, street, vehicles
from anomseg_ros.scenes.anomalies import make_anomaly
from anomseg_ros.scenes.ground import KERB_M, Decal
from anomseg_ros.scenes.mesh import Model
from anomseg_ros.scenes.scene import CHUNK_M, VIEW_M, Layout
from anomseg_ros.scenes.scene_config import SyntheticConfig
from anomseg_ros.scenes.textures import Rng

STRIDES = 6
"""Models of a walking person, one per phase of a step."""

TRAFFIC_LOOP_M = VIEW_M + 24.0
BEHIND_CAMERA_M = 12.0

CHUNK_STREAM, TRAFFIC_STREAM, ANOMALY_STREAM = 11, 12, 13


@dataclass(frozen=True)
class Placed:
    """A model at (s, u) at the moment when the camera passes it, with a constant speed in metres a second.

    outward_m: added to a long model's distance from the road, so that models before its front hide it.
    """

    s_m: float
    u_m: float
    models: tuple[Model, ...]
    turn: float = 0.0
    s_speed: float = 0.0
    u_speed: float = 0.0
    outward_m: float = 0.0

    def model_at(self, time_s: float) -> Model:
        """Return the model of this moment. People walk at about two steps a second."""
        return self.models[int(time_s * STRIDES * 0.95 + self.s_m) % len(self.models)]


@dataclass
class Stretch:
    """The contents of one 15 m stretch of road."""

    placed: list[Placed] = field(default_factory=list)
    decals: list[Decal] = field(default_factory=list)


@dataclass(frozen=True)
class Population:
    """Makes stretches and traffic."""

    seed: int
    config: SyntheticConfig
    layout: Layout
    textures: street.Textures
    ego_speed_mps: float

    def stretch(self, number: int) -> Stretch:
        """Return the contents of the stretch from `number * CHUNK_M` on."""
        rng = np.random.default_rng([self.seed, CHUNK_STREAM, number + 1_000_000])
        start = number * CHUNK_M
        result = Stretch()
        for side in (-1.0, 1.0):
            edge = self.layout.road_right if side > 0 else -self.layout.road_left
            self._add_frontage(rng, result, start, side, edge)
            self._add_verge(rng, result, start, side, edge)
            self._add_people(rng, result, start, side, edge)
            self._add_parked(rng, result, start, side, edge)
        self._add_decals(rng, result, start)
        self._add_anomalies(np.random.default_rng([self.seed, ANOMALY_STREAM, number + 1_000_000]), result, start)
        return result

    def _add_frontage(self, rng: Rng, result: Stretch, start: float, side: float, edge: float) -> None:
        """Add houses, and the walls, fences, hedges, trees and bushes of their plots."""
        layout = self.layout
        line = edge + KERB_M + layout.sidewalk_m
        built = rng.random() < {"urban": 0.88, "suburban": 0.6, "rural": 0.08}[layout.style]
        if built:
            self._add_building(rng, result, start, side, line)
        if layout.style != "urban" or not built:
            border = rng.choice(["wall", "fence", "hedge", "open"], p=_BORDERS[layout.style])
            makers: dict[str, Callable[[], Model]] = {
                "wall": lambda: street.wall(rng, CHUNK_M),
                "fence": lambda: street.fence(rng, CHUNK_M),
                "hedge": lambda: street.hedge(rng, CHUNK_M, self.textures),
            }
            offset = 0.5 if layout.style != "rural" else 1.8
            if border in makers:
                result.placed.append(Placed(start, side * (line + offset), (makers[str(border)](),), outward_m=0.8))
            for _ in range(int(rng.integers(1, 4))):
                u = side * (line + rng.uniform(2.0, 5.5 if built else 22.0))
                make = street.tree if rng.random() < 0.65 else street.bush
                result.placed.append(Placed(start + rng.uniform(1, 14), u, (make(rng, self.textures),)))

    def _add_building(self, rng: Rng, result: Stretch, start: float, side: float, line: float) -> None:
        urban = self.layout.style == "urban"
        length = CHUNK_M if urban else float(rng.uniform(8.0, 13.0))
        height = float(rng.uniform(8.0, 24.0)) if urban else float(rng.uniform(3.2, 7.0))
        depth = float(rng.uniform(9.0, 12.0))
        pitched = not urban or rng.random() < 0.3
        model = street.building(rng, side, length, height, depth, bool(pitched))
        setback = self.layout.setback_m + (rng.uniform(0, 0.6) if urban else rng.uniform(0, 3.0))
        result.placed.append(Placed(start, side * (line + setback), (model,), outward_m=2.0))

    def _add_verge(self, rng: Rng, result: Stretch, start: float, side: float, edge: float) -> None:
        """Add trees, lamps, signs, traffic lights, posts and parked cycles between kerb and frontage."""
        layout = self.layout
        rural = layout.style == "rural"
        # Crowns must not reach into houses.
        widest = layout.sidewalk_m * 0.75 if layout.style == "urban" else 5.0
        near = side * (edge + KERB_M + (0.45 if not rural else 1.2))
        chances: list[tuple[float, Callable[[], Model]]] = [
            (0.1 if rural else 0.3, lambda: street.tree(rng, self.textures, widest)),
            (0.25 if rural else 0.05, lambda: street.bush(rng, self.textures)),
            (0.0 if rural else 0.4, lambda: street.lamp(rng, side)),
            (0.25 if rural else 0.03, lambda: street.utility_pole(rng)),
            (0.14 if rural else 0.28, lambda: street.sign(rng)),
            (0.01 if rural else 0.09, lambda: street.traffic_light(rng, side)),
            (0.12, lambda: street.bollard(rng)),
        ]
        slots = start + CHUNK_M * (rng.permutation(len(chances)) + 0.5) / len(chances)
        for place, (chance, make) in zip(slots, chances, strict=True):
            if rng.random() < chance:
                result.placed.append(Placed(float(place), near, (make(),)))
        if not rural and rng.random() < 0.22:
            for i in range(int(rng.integers(1, 4))):
                u = near + side * 0.4
                result.placed.append(Placed(start + 3 + 0.7 * i, u, (people.parked_cycle(rng),), turn=1.3 * side))

    def _add_people(self, rng: Rng, result: Stretch, start: float, side: float, edge: float) -> None:
        count = int(rng.poisson({"urban": 0.85, "suburban": 0.4, "rural": 0.06}[self.layout.style]))
        for _ in range(count):
            u = side * (edge + KERB_M + rng.uniform(0.7, max(1.0, self.layout.sidewalk_m - 0.4)))
            speed = float(rng.choice([-1.3, 0.0, 1.2]))
            result.placed.append(Placed(start + rng.uniform(0, CHUNK_M), u, _walkers(rng, speed != 0), s_speed=speed))
        if rng.random() < 0.02 and side > 0:
            result.placed.append(_crossing(rng, start + 7.0, edge, _walkers(rng, True), 1.2))

    def _add_parked(self, rng: Rng, result: Stretch, start: float, side: float, edge: float) -> None:
        parking = self.layout.parking_right if side > 0 else self.layout.parking_left
        if not parking:
            return
        for slot in range(2):
            if rng.random() < 0.62:
                turn = 0.0 if side > 0 else np.pi
                place = start + (slot + 0.5) * CHUNK_M / 2 + rng.uniform(-0.5, 0.5)
                result.placed.append(Placed(place, side * (edge - 1.1), (vehicles.car(rng),), turn=turn))

    def _add_decals(self, rng: Rng, result: Stretch, start: float) -> None:
        layout = self.layout
        left, right = layout.lane_left_edge, layout.lane_right_edge
        if rng.random() < 0.3:
            s, u = start + rng.uniform(0, 10), rng.uniform(left, right - 1)
            result.decals.append(Decal(s, s + rng.uniform(0.8, 6), u, u + rng.uniform(0.5, 1.6), False))
        if layout.style != "rural" and rng.random() < 0.06:
            for u in np.arange(left + 0.3, right - 0.4, 1.0):
                result.decals.append(Decal(start + 5, start + 8.5, float(u), float(u) + 0.5, True))

    def _add_anomalies(self, rng: Rng, result: Stretch, start: float) -> None:
        """Add at most one anomaly. Anomalies in the camera's lane cross it, so that none is driven over."""
        if rng.random() >= self.config.anomaly_probability:
            return
        kind = self.config.anomaly_kinds[int(rng.integers(len(self.config.anomaly_kinds)))]
        low, high = np.log(self.config.anomaly_size_m)
        size = float(np.exp(rng.uniform(low, high)))
        model = make_anomaly(kind, rng, self.textures, size)
        s, turn = start + float(rng.uniform(2, 13)), float(rng.uniform(-0.6, 0.6))
        layout = self.layout
        choice = rng.random()
        if choice < 0.3 and not layout.lead_vehicle:
            result.placed.append(_crossing(rng, s, 2.2, (model,), float(rng.uniform(0.3, 0.9))))
            return
        clear = 1.25 + size * 0.6
        if choice < 0.85:
            right = float(rng.uniform(min(clear, layout.road_right - 0.3), layout.road_right - 0.2))
            left = float(rng.uniform(layout.road_left + 0.2, max(-clear, layout.road_left + 0.3)))
            free_left = not layout.oncoming_traffic and not layout.parking_left
            u = left if free_left and rng.random() < 0.6 else right
        else:
            u = layout.road_right + KERB_M + float(rng.uniform(0.2, 1.2))
        result.placed.append(Placed(s, u, (model,), turn=turn))

    def traffic(self, time_s: float) -> list[Placed]:
        """Return the moving vehicles near the camera. They keep their lanes; new ones appear at the far end."""
        layout, rng = self.layout, np.random.default_rng([self.seed, TRAFFIC_STREAM])
        lanes: list[tuple[float, float, int, bool]] = []
        for i in range(layout.lanes_left):
            if layout.oncoming_traffic:
                speed = -self.ego_speed_mps * rng.uniform(0.7, 1.1) - 2.0
                lanes.append((-layout.lane_m * (1 + i), speed, int(rng.integers(2, 5)), False))
        for i in range(layout.lanes_right):
            speed = self.ego_speed_mps * rng.uniform(0.6, 0.9)
            lanes.append((layout.lane_m * (1 + i), speed, int(rng.integers(1, 4)), False))
        if layout.lead_vehicle:
            lanes.append((0.0, self.ego_speed_mps, 1, False))
        if rng.random() < 0.6:
            lanes.append((layout.lane_right_edge - 0.65, self.ego_speed_mps * 0.45, int(rng.integers(1, 3)), True))
        phases = rng.random((8, 8))
        moving = []
        for lane, (u, speed, count, cycles) in enumerate(lanes):
            for i in range(count):
                moving.append(self._mover(lane, i, u, speed, (i + 0.4 * phases[lane, i]) / count, cycles, time_s))
        return moving

    def _mover(
        self, lane: int, number: int, u: float, speed: float, phase: float, cycles: bool, time_s: float
    ) -> Placed:
        """Return a vehicle of a loop that moves with the camera. Each round has another vehicle."""
        ego = self.ego_speed_mps * time_s
        if speed == self.ego_speed_mps:
            ahead = 17.0 + 35.0 * phase + 3.0 * float(np.sin(time_s * 0.25 + 6 * phase))
            lap = 0
        else:
            way = phase * TRAFFIC_LOOP_M + (speed - self.ego_speed_mps) * time_s
            lap = int(np.floor(way / TRAFFIC_LOOP_M))
            ahead = way - lap * TRAFFIC_LOOP_M - BEHIND_CAMERA_M
        stride = int(time_s * STRIDES * 0.95) % STRIDES if cycles else 0
        key = (self.seed, TRAFFIC_STREAM, lane, number, lap + 1_000_000, int(cycles), stride)
        return Placed(ego + ahead, u, (_vehicle(key, self.layout.style),), turn=np.pi if speed < 0 else 0.0)


_BORDERS = {"urban": [0.5, 0.25, 0.15, 0.1], "suburban": [0.22, 0.28, 0.28, 0.22], "rural": [0.04, 0.22, 0.1, 0.64]}

_VEHICLES: dict[tuple[object, ...], Model] = {}
_VEHICLE_LIMIT = 400


def _vehicle(key: tuple[int, ...], style: str) -> Model:
    """Return the cached vehicle of a key, which alone decides how it looks."""
    full_key = (*key, style)
    if full_key not in _VEHICLES:
        if len(_VEHICLES) >= _VEHICLE_LIMIT:
            _VEHICLES.clear()
        rng = np.random.default_rng(key[:-2])
        stride = key[-1] * 2 * np.pi / STRIDES
        _VEHICLES[full_key] = _two_wheels(rng, stride) if key[-2] else _four_wheels(rng, stride, style)
    return _VEHICLES[full_key]


def _two_wheels(rng: Rng, stride: float) -> Model:
    return people.cyclist(rng, stride) if rng.random() < 0.75 else people.motorcyclist(rng, stride)


def _four_wheels(rng: Rng, stride: float, style: str) -> Model:
    draw = rng.random()
    if draw < 0.13:
        return vehicles.truck(rng)
    if draw < 0.22:
        return vehicles.bus(rng)
    if draw < 0.27 and style == "urban":
        return vehicles.tram(rng)
    if draw < 0.33:
        return people.motorcyclist(rng, stride)
    return vehicles.car(rng)


def _walkers(rng: Rng, moving: bool) -> tuple[Model, ...]:
    """Return a person at each phase of a step, or standing."""
    seed = int(rng.integers(2**31))
    count = STRIDES if moving else 1
    return tuple(people.person(np.random.default_rng(seed), 2 * np.pi * i / STRIDES) for i in range(count))


def _crossing(rng: Rng, s_m: float, beside_m: float, models: tuple[Model, ...], speed: float) -> Placed:
    """Return something that crosses the road and is `beside_m` beside the camera's path when the camera arrives."""
    way = float(rng.choice([-1.0, 1.0]))
    return Placed(s_m, way * max(beside_m, 2.2), models, u_speed=way * speed)
