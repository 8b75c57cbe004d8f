"""What `anomseg bench` and `anomseg tune` say, as plain data: written to JSON, drawn by chart.py."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anomseg_ros.bench.statistics import Ratio
from anomseg_ros.core.schema import from_plain, to_plain
from anomseg_ros.errors import ConfigError

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Accuracy:
    """A figure between 0 and 1 and what it is: its name (auprc, miou, label_agreement), the sets, where it was read."""

    value: float
    metric: str
    dataset: str
    source: str


@dataclass(frozen=True)
class Entry:
    """One candidate and what was measured of it. Times in milliseconds by percentile name; None: not measured.

    speedup: title of another candidate -> how many times as fast as that one this is.
    """

    title: str
    name: str
    backend: str
    actual: str
    threads: int
    height_px: int
    width_px: int
    precision: str
    score: str
    latency_ms: Mapping[str, float]
    frames_per_second: float
    rounds: int
    speedup: Mapping[str, Ratio] = field(default_factory=dict)
    parameters: int | None = None
    nonzero_parameters: int | None = None
    multiply_adds: int | None = None
    effective_multiply_adds: int | None = None
    file_bytes: int | None = None
    peak_memory_mib: float | None = None
    accuracy: Accuracy | None = None
    own_eager: str | None = None
    """Title of the candidate that is the same network, not exported, at the same size and with the same threads."""
    sha256: str | None = None
    """Of the file that holds the weights."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class BenchReport:
    """All candidates of one run. times_ms: one row per round, a time per entry in the order of `entries`."""

    format_version: int
    entries: tuple[Entry, ...]
    created: str = ""
    command: str = ""
    machine: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    times_ms: tuple[tuple[float, ...], ...] = ()
    warnings: tuple[str, ...] = ()


def save_report(report: BenchReport, path: Path) -> None:
    """Write JSON, beside first and then renamed."""
    write_json(to_plain(report, keep_none=True), path)


def load_report(path: Path) -> BenchReport:
    """Read what save_report wrote. Raises ConfigError naming the file and what is wrong with it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} is not a benchmark: {error}; `anomseg bench --json {path.name}` writes one"
        ) from error
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise ConfigError(f"{path}: benchmark format {version!r}, this anomseg_ros reads {FORMAT_VERSION}")
    return from_plain(BenchReport, data, str(path))


def write_json(plain: Any, path: Path) -> None:
    """Write JSON types beside their place, then rename, so that a reader never sees half of them."""
    part = path.with_name(f".{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(json.dumps(plain, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, path)
