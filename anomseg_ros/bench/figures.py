"""The figures of `anomseg bench` and `anomseg tune` as plain data, for JSON files and for chart.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anomseg_ros.bench.power import Power
from anomseg_ros.bench.statistics import Ratio
from anomseg_ros.core.output_files import write_results
from anomseg_ros.core.schema import from_plain, to_plain
from anomseg_ros.core.untrusted_text import parse_json
from anomseg_ros.errors import ConfigError, reason_of

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Accuracy:
    """A figure between 0 and 1. metric: auprc, miou, label_agreement, …; dataset: one or several."""

    value: float
    metric: str
    dataset: str
    source: str


@dataclass(frozen=True)
class Entry:
    """The figures of one candidate; None where one was not measured.

    latency_ms: by name of percentile. speedup: title of another candidate -> how many times as fast this one is.
    own_eager: title of the candidate that is the same network without export, at the same size and threads. sha256: of
    the file with the weights. engine: what the backend says of itself, in words: its key, its GPU and others.
    stages_ms: stage of a frame on the GPU -> median over the rounds.
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
    sha256: str | None = None
    notes: tuple[str, ...] = ()
    engine: Mapping[str, str] = field(default_factory=dict)
    stages_ms: Mapping[str, float] = field(default_factory=dict)
    power: Power | None = None


@dataclass(frozen=True)
class BenchReport:
    """All candidates of one run. times_ms: one row per round with a time for each entry."""

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
    """Write a report as JSON."""
    write_json(to_plain(report, keep_none=True), path)


def load_report(path: Path) -> BenchReport:
    """Read a report of save_report. Raises ConfigError with the file and the fault."""
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} is not a benchmark: {reason_of(error)}; `anomseg bench` writes one as JSON"
        ) from error
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise ConfigError(f"{path}: benchmark format {version!r}, this anomseg_ros reads {FORMAT_VERSION}")
    return from_plain(BenchReport, data, str(path))


def write_json(plain: Any, path: Path) -> None:
    """Write JSON types, see write_results."""
    write_results(path, json.dumps(plain, indent=1, allow_nan=False) + "\n")
