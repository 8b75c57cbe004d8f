"""Page and chart of road_anomaly.py: our rows, those of published checkpoints, and those printed in papers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean
from typing import Any

from anomseg_ros.bench.chart import pareto_chart
from anomseg_ros.bench.figures import Accuracy, BenchReport, Entry
from anomseg_ros.bench.published import PublishedRow, published_rows
from anomseg_ros.core.processor import has_exact_int8

SETS = {
    "road_anomaly_21": "RoadAnomaly21",
    "road_obstacle_21": "RoadObstacle21",
    "fs_static": "fs_static",
    "fs_lost_found": "FS_LostFound_full",
    "road_anomaly": "RoadAnomaly",
}
"""Name of an anomaly set -> its folder in ANOMSEG_DATA."""
HEADINGS = {
    "road_anomaly_21": "RoadAnomaly21",
    "road_obstacle_21": "RoadObstacle21",
    "fs_static": "FS Static",
    "fs_lost_found": "FS Lost&Found",
    "road_anomaly": "RoadAnomaly",
}
CAMVID = "camvid"

Row = Mapping[str, Any]

INTRODUCTION = """# Detectors on all anomaly sets

Written by `benchmarks/road_anomaly.py`; do not edit. Each row is one bundle with one score and one threshold rule for
all sets: its default score and the threshold that it ships with. Figures are in per cent unless stated otherwise.

- Sets: AuPRC / FPR95, protocol `seeds` (docs/evaluate.md), on the public validation frames. These frames are for
  measuring only: none of our bundles was trained, selected or calibrated on them.
- mIoU: CamVid's 101 validation frames at their own size, with the 19 classes of Cityscapes mapped to its 11. Bundles
  with camvid in their names were trained on its training frames.
- ms, frames/s: p50 / p99 of one frame, from {size} pixels as an array to labels and score as arrays, on the faster
  backend of this machine ({machine}, {threads}). frames/s is 1000 / p50.
  int8 gains more on processors with VNNI (docs/compress.md).
- The papers' rows are as printed (corrections: `anomseg_ros/bench/published.py`). Their times are omitted because they
  come from other machines.
"""

PICTURE_LINE = """![mean AuPRC over the sets against latency; hollow marks are the papers' rows](road_anomaly.svg)
"""

THRESHOLD_NOTE = """
## One threshold

F1: of components, protocol `smiyc`, mean over its overlaps, at the set's own best-F1 threshold. FPR: share of the known
pixels above the bundle's threshold for a false-positive rate of {rate:g} %, at the frames' own size. TPR: share of the
anomalous pixels above it. In CamVid all labelled pixels are known. Rates need a calibrated threshold.
"""

TIME_NOTE = """
## Time and size

p50 / p99 in ms, frames/s. The precisions and backends of a model take turns in one run; rows of different models come
from different runs.
"""

OTHER_NOTE = """
## Other scores

AuPRC / FPR95, protocol `seeds`, of the scores of the bundles other than the default one.
"""


def as_markdown(result: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    """Return the page with the results of road_anomaly.py."""
    rows: Sequence[Row] = result["rows"]
    height, width = result["frames_timed"]
    threads = "a thread per core" if result["threads"] == 0 else f"threads: {result['threads']}"
    processor = f"{machine['cpu']}{'' if has_exact_int8() else ' without VNNI'}, {machine['cores']} cores"
    parts = [INTRODUCTION.format(size=f"{width}x{height}", machine=processor, threads=threads)]
    if any(row["times"] for row in rows):
        parts.append(PICTURE_LINE)
    parts += main_table(rows, result["sets"])
    parts += ["", *notes(result)]
    measured = [name for name in SETS if name in result["sets"]]
    parts += [THRESHOLD_NOTE.format(rate=100 * result["target_fpr"]), *threshold_table(rows, measured)]
    parts += [TIME_NOTE, *time_table(rows), OTHER_NOTE, *score_table(rows, measured)]
    return "\n".join(parts) + "\n"


def main_table(rows: Sequence[Row], present: Sequence[str]) -> list[str]:
    """Return the lines of the first table: our rows, published checkpoints, papers."""
    theirs = published_rows()
    sets = [name for name in SETS if name in present or any(row.figure("auprc", name) is not None for row in theirs)]
    headings = ["", "", "M params", "score", *(HEADINGS[name] for name in sets), "mIoU", "ms", "frames/s"]
    lines = [line(headings), "|---|---|---:|---|" + "---:|" * (len(headings) - 4)]
    for row in rows:
        fastest = min(row["times"].values(), key=lambda times: times["p50"], default=None)
        cells = [name_of(row), row["source"], f"{row['parameters'] / 1e6:.2f}", f"`{row['score']}`"]
        cells += [pair(row["sets"].get(name)) for name in sets]
        cells += [percent(row.get("miou"), 1), *times_cells(fastest)]
        lines.append(line(cells))
    return lines + [line(published_cells(row, sets)) for row in theirs]


def published_cells(row: PublishedRow, sets: Sequence[str]) -> list[str]:
    """Return the cells of a paper's row, without times and mIoU on CamVid."""
    size = "" if row.parameters_m is None else f"{row.parameters_m:g}"
    pairs = [{"auprc": row.figure("auprc", name), "fpr95": row.figure("fpr95", name)} for name in sets]
    return [row.label, row.table, size, "", *map(pair, pairs), "", "", ""]


def notes(result: Mapping[str, Any]) -> list[str]:
    """Return notes on missing models, failed measurements and missing sets."""
    lines = [f"- Not measured: {title}: {reason}" for title, reason in result["missing"].items()]
    lines += [f"- {name_of(row)}: {error}" for row in result["rows"] for error in row["errors"]]
    absent = [HEADINGS[name] for name in SETS if name not in result["sets"]]
    return lines + ([f"- Not on this machine: {', '.join(absent)}."] if absent else [])


def threshold_table(rows: Sequence[Row], sets: Sequence[str]) -> list[str]:
    """Return the lines of the table of component F1 and rates at the bundle's threshold."""
    headings = ["", "score", *(f"F1 {HEADINGS[name]}" for name in sets), *(f"FPR / TPR {HEADINGS[n]}" for n in sets)]
    lines = [line([*headings, "FPR CamVid"]), "|---|---|" + "---:|" * (2 * len(sets) + 1)]
    for row in rows:
        found = [row["sets"].get(name, {}) for name in sets]
        f1 = [percent(figures.get("f1")) for figures in found]
        rates = [pair(figures, "fpr", "tpr") for figures in found]
        camvid = percent(row["sets"].get(CAMVID, {}).get("fpr"))
        lines.append(line([name_of(row), f"`{row['score']}`", *f1, *rates, camvid]))
    return lines


def time_table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the table of costs and times, with two columns per backend."""
    backends = list(dict.fromkeys(backend for row in rows for backend in row["times"]))
    headings = ["", "input", "M params", "G multiply-adds", "MiB"]
    headings += [text for backend in backends for text in (f"{backend} ms", "frames/s")]
    lines = [line(headings), "|---|---|" + "---:|" * (len(headings) - 2)]
    for row in rows:
        cells = [name_of(row), row["input"], f"{row['parameters'] / 1e6:.2f}", f"{row['multiply_adds'] / 1e9:.2f}"]
        cells.append(f"{row['file_bytes'] / 2**20:.2f}")
        lines.append(line([*cells, *(c for backend in backends for c in times_cells(row["times"].get(backend)))]))
    return lines


def score_table(rows: Sequence[Row], sets: Sequence[str]) -> list[str]:
    """Return the lines of the table of other scores than the bundles' defaults."""
    lines = [line(["", "score", *(HEADINGS[name] for name in sets)]), "|---|---|" + "---:|" * len(sets)]
    for row in rows:
        for score, figures in row["other_scores"].items():
            lines.append(line([name_of(row), f"`{score}`", *(pair(figures.get(name)) for name in sets)]))
    return lines


def chart(rows: Sequence[Row], reports: Sequence[BenchReport]) -> str:
    """Return an SVG of the mean AuPRC over the sets against latency, each bundle on its faster backend."""
    by_program = {row["sha256"]: row for row in rows}
    fastest: dict[str, Entry] = {}
    for entry in (entry for report in reports for entry in report.entries if entry.sha256 in by_program):
        best = fastest.get(str(entry.sha256))
        if best is None or entry.latency_ms["p50"] < best.latency_ms["p50"]:
            fastest[str(entry.sha256)] = entry
    entries = [with_accuracy(entry, by_program[program]) for program, entry in fastest.items()]
    return pareto_chart(replace(reports[-1], entries=tuple(entries), times_ms=()), published=True)


def with_accuracy(entry: Entry, row: Row) -> Entry:
    """Return the entry with the mean AuPRC over the anomaly sets of the row."""
    found = {name: row["sets"][name]["auprc"] for name in SETS if name in row["sets"]}
    accuracy = Accuracy(mean(found.values()), "auprc", ", ".join(found), "protocol seeds") if found else None
    return replace(entry, title=f"{name_of(row)}, {entry.backend}, {row['input']}", accuracy=accuracy)


def name_of(row: Row) -> str:
    """Return a row's heading: the model, and its precision unless it is float32."""
    return row["model"] if row["precision"] == "fp32" else f"{row['model']}, {row['precision']}"


def line(cells: Sequence[str]) -> str:
    """Return one line of a table."""
    return "| " + " | ".join(cells) + " |"


def pair(figures: Mapping[str, float | None] | None, first: str = "auprc", second: str = "fpr95") -> str:
    """Return two figures as `AuPRC / FPR95` in per cent, empty if both are missing."""
    values = [None if figures is None else figures.get(name) for name in (first, second)]
    return "" if values == [None, None] else " / ".join(map(percent, values))


def percent(value: float | None, digits: int = 2) -> str:
    """Return a fraction in per cent, empty for None."""
    return "" if value is None else f"{100 * value:.{digits}f}"


def times_cells(times: Mapping[str, Any] | None) -> list[str]:
    """Return `p50 / p99` and frames per second, empty without times."""
    if times is None:
        return ["", ""]
    return [f"{times['p50']:.1f} / {times['p99']:.1f}", f"{times['frames_per_second']:.1f}"]
