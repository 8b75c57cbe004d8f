"""Figures of a soak: slope of memory, latencies, and the number of frames per outcome."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

Reading = dict[str, Any]
"""One line of a soak's readings: one camera at one time. Counts cover the slice so far, ages the time since the last
reading."""

WARM_UP_S = 600.0
"""Warm-up of each slice, but at most a third of it. The slope of memory excludes it, because allocators fill."""
SUMMED = ("sent", "received", "published", "heard", "dropped", "bad", "idle", "in_work", "lost", "unbalanced")


def read_readings(path: Path) -> list[Reading]:
    """Return the readings of all slices in order, without the setting and without a truncated last line."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    return [json.loads(line) for line in lines if line.endswith("}")]


def last_slice(readings: Sequence[Reading]) -> int:
    """Return the number of the last slice, 0 without readings."""
    return max((reading["slice"] for reading in readings), default=0)


def hours_of(readings: Sequence[Reading]) -> float:
    """Return the total hours of all slices."""
    return sum(run[-1]["elapsed_s"] for _, run in slices(readings)) / 3600 / max(len(cameras_of(readings)), 1)


def cameras_of(readings: Sequence[Reading]) -> list[str]:
    """Return the names of the cameras."""
    return sorted({reading["camera"] for reading in readings})


def slices(readings: Sequence[Reading]) -> Iterator[tuple[tuple[str, int], list[Reading]]]:
    """Yield (camera, slice) and its readings, which are of one process of the node."""

    def process_key(reading: Reading) -> tuple[str, int]:
        return reading["camera"], reading["slice"]

    for key, run in groupby(sorted(readings, key=process_key), process_key):
        yield key, list(run)


def figures(readings: Sequence[Reading]) -> dict[str, Any]:
    """Return hours and, by camera, counts, memory, its slopes, and ages from stamp to mask in milliseconds."""
    return {
        "hours": hours_of(readings),
        "slices": last_slice(readings),
        "cameras": {
            name: _camera_figures([one for one in readings if one["camera"] == name]) for name in cameras_of(readings)
        },
    }


def _camera_figures(readings: Sequence[Reading]) -> dict[str, Any]:
    runs = [run for _, run in slices(readings)]
    slopes, last_slopes = (
        {kind: memory_slope(chosen, kind) for kind in ("pss_mib", "anonymous_mib")} for chosen in (runs, runs[-1:])
    )
    aged = [reading for reading in readings if "age_ms_p50" in reading]
    pss = [reading["pss_mib"] for reading in readings]
    return {
        **{name: sum(run[-1][name] for run in runs) for name in SUMMED},
        "pss_mib": {"first": pss[0], "median": statistics.median(pss), "last": pss[-1], "max": max(pss)},
        "slope_per_hour": {kind: slope for kind, (slope, _) in slopes.items()},
        "slope_error_per_hour": {kind: error for kind, (_, error) in slopes.items()},
        # The software may change between slices.
        "last_slice_slope_per_hour": {kind: slope for kind, (slope, _) in last_slopes.items()},
        "last_slice_slope_error_per_hour": {kind: error for kind, (_, error) in last_slopes.items()},
        "age_ms": {
            "p50": statistics.median(reading["age_ms_p50"] for reading in aged),
            "p99": statistics.median(reading["age_ms_p99"] for reading in aged),
            "worst_p99": max(reading["age_ms_p99"] for reading in aged),
            "max": max(reading["age_ms_max"] for reading in aged),
        },
    }


def memory_slope(runs: Sequence[Sequence[Reading]], kind: str) -> tuple[float, float]:
    """Return the slope over time of a kind of memory and its standard error, MiB per hour; NaN below three readings.

    One slope is fitted to all slices (least squares). Each slice has its own level, since it starts new processes.
    """
    hours, levels, degrees = [], [], -1
    for run in runs:
        warm_up_s = min(WARM_UP_S, run[-1]["elapsed_s"] / 3)
        steady = [reading for reading in run if reading["elapsed_s"] > warm_up_s and kind in reading]
        if not steady:
            continue
        time, memory = (np.array([reading[name] for reading in steady]) for name in ("elapsed_s", kind))
        hours.append((time - time.mean()) / 3600)
        levels.append(memory - memory.mean())
        degrees += len(steady) - 1
    if degrees < 1:
        return float("nan"), float("nan")
    x, y = np.concatenate(hours), np.concatenate(levels)
    spread = float(x @ x)
    slope = float(x @ y) / spread
    residuals = y - slope * x
    return slope, float(np.sqrt(residuals @ residuals / degrees / spread))
