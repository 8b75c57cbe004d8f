"""The tables of compression.py as Markdown: our rows, then the papers' rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from anomseg_ros.bench.published import PublishedPoint, published_points

SETS = {"road_anomaly_21": "RoadAnomaly21", "road_obstacle_21": "RoadObstacle21", "fs_static": "fs_static"}
"""Name of a set -> its folder in ANOMSEG_DATA."""
PUBLISHED_PLACES = (0, 1, 3)
"""Indices of the sets of SETS in a published row."""

INTRODUCTION = """# Costs and gains of compression

Written by `benchmarks/compression.py`; do not edit.

Our rows: protocol `seeds`, per cent, AuPRC / FPR95 of the score named with each table. Times as fast: relative to the
network's unpruned checkpoint in torch eager float32 with the same number of threads, median of one interleaved run with
its 95 % interval. Labels: share of pixels with the same label as the float graph, on all frames of the three sets. The
engine is ONNX Runtime unless a row names another one.

- N% pruned: single weights are zero in a dense graph, which takes as long as the float graph. The estimated speed is
  the inverse of the remaining share of multiply-adds, as the papers estimate it; it is not measured.
- 30% masked: whole filters are zero (L2 variant of the papers). The time is that of the float graph, too.
- 30% removed: the channels are removed. Networks trained on Cityscapes are not fine-tuned, because it is not available.

The papers' rows: speeds relative to their unpruned float network, estimated in PTQ, on other machines (docs/bench.md);
mIoU on Cityscapes, which is not measured here. The published ERFNet checkpoint was int8 before: a third of its weights
are already 0, so pruning that share changes nothing.
"""


def as_markdown(networks: Mapping[str, Any], papers: Mapping[str, str]) -> str:
    """Return one table per network: our rows, then the papers' rows. papers: network -> name in the papers."""
    published = published_points()
    text = INTRODUCTION
    order = list(papers)
    for key in sorted(networks, key=lambda name: (order.index(networks[name]["network"]), name)):
        network = networks[key]
        paper = papers[network["network"]]
        is_ours = network["weights"] == "trained on CamVid"
        title = f"{paper}, trained on CamVid" if is_ours else paper
        theirs = [p for p in published if p.label == paper or p.label.startswith(f"{paper},")]
        size = f"{network['size']}, {network['threads']} threads"
        lines = ["", f"## {title}", "", f"{size}, score {network['score']}.{note(network)}", ""]
        lines += table(network, [] if is_ours else theirs, paper)
        text += "\n".join(lines) + "\n"
    return text


def note(network: Mapping[str, Any]) -> str:
    """Return a note on the rows of a network, which may be empty."""
    if network["weights"] == "random":
        return " Random weights, so only the times are meaningful; all layers are quantized."
    if network["weights"] == "trained on CamVid":
        return " mIoU on CamVid's validation frames. The network was trained without outliers."
    return ""


def table(network: Mapping[str, Any], theirs: Iterable[PublishedPoint], paper: str) -> list[str]:
    """Return the lines of a network's table."""
    headings = ["", "source", "times as fast", "estimated", "labels", "mIoU", *SETS]
    lines = ["| " + " | ".join(headings) + " |", "|---|---|" + "---:|" * (len(headings) - 2)]
    whole = network["rows"]["float"]["effective_multiply_adds"]
    for name, row in network["rows"].items():
        lines.append("| " + " | ".join([name, "ours", *our_cells(name, row, whole)]) + " |")
    theirs = list(theirs)
    whole_ms = {point.table: point.latency_ms for point in theirs if point.label == paper}
    whole_ms["PTQ table 7"] = next((p.latency_ms for p in theirs if p.table in ("PTQ table 5", "PTQ table 6")), 0.0)
    for point in theirs:
        speed = f"{whole_ms[point.table] / point.latency_ms:.2f}"
        pairs = [f"{point.auprc[at]:.2f} / {point.fpr95[at]:.2f}" for at in PUBLISHED_PLACES]
        cells = ["", speed] if point.estimated else [speed, ""]
        lines.append("| " + " | ".join([point.label, point.table, *cells, "", f"{point.miou:.2f}", *pairs]) + " |")
    return lines


def our_cells(name: str, row: Mapping[str, Any], whole_multiply_adds: int) -> list[str]:
    """Return the cells of one of our rows, without its name and source."""
    speed = row.get("as_eager", {})
    cells = [f"{speed['median']:.2f} ({speed['low']:.2f} to {speed['high']:.2f})" if speed else ""]
    effective = row.get("effective_multiply_adds", whole_multiply_adds)
    cells.append(f"{whole_multiply_adds / effective:.2f}" if name.endswith(("pruned", "masked")) else "")
    cells.append(f"{100 * row['label_agreement']:.2f}" if "label_agreement" in row else "")
    found = row.get("accuracy", {})
    cells.append(f"{100 * found['miou']:.2f}" if found.get("miou") is not None else "")
    pairs = [found.get(name) for name in SETS]
    return [
        *cells,
        *("" if pair is None else f"{100 * pair['auprc']:.2f} / {100 * pair['fpr95']:.2f}" for pair in pairs),
    ]
