"""The tables of compression.py as Markdown: our rows, then the papers'."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from anomseg_ros.bench.published import PublishedPoint, published_points

SETS = {"road_anomaly_21": "RoadAnomaly21", "road_obstacle_21": "RoadObstacle21", "fs_static": "fs_static"}
"""Name of a set -> its folder in ANOMSEG_DATA."""
PUBLISHED_PLACES = (0, 1, 3)
"""Where a published row has the sets of SETS."""

INTRODUCTION = """# What compressing costs and gains

Written by `benchmarks/compression.py`; do not edit.

Ours: protocol `seeds`, per cent, AuPRC / FPR95 of the score named with each table. Times as fast: as the network's own
checkpoint, not pruned, in torch eager float32 on as many threads, median of one interleaved run with its 95 % interval.
Labels: share of pixels labelled as by the float graph, on all frames of the three sets. Engines: ONNX Runtime where
none is named.

- N% pruned: single weights zero, in a dense graph, whose time stays the float graph's. The estimate is the papers' way
  of counting, the share of multiply-adds left, and not a measured time.
- 30% masked: filters zero, the papers' L2 variant; its time stays the float graph's as well.
- 30% removed: channels that are gone. Not fine-tuned where the network was trained on Cityscapes, which is not here.

Theirs: speeds relative to their unpruned float network, estimated in PTQ, on other machines (docs/bench.md); mIoU on
Cityscapes, which is not measured here. The published ERFNet checkpoint was int8 before: a third of its weights are 0 as
they come, so that pruning that share changes nothing.
"""


def as_markdown(networks: Mapping[str, Any], papers: Mapping[str, str]) -> str:
    """Return one table per network: ours, then the papers'. papers: network -> how the papers call it."""
    published = published_points()
    text = INTRODUCTION
    order = list(papers)
    for key in sorted(networks, key=lambda name: (order.index(networks[name]["network"]), name)):
        network = networks[key]
        paper = papers[network["network"]]
        here = network["weights"] == "trained on CamVid"
        title = f"{paper}, trained here on CamVid" if here else paper
        theirs = [p for p in published if p.label == paper or p.label.startswith(f"{paper},")]
        size = f"{network['size']}, {network['threads']} threads"
        lines = ["", f"## {title}", "", f"{size}, score {network['score']}.{note(network)}", ""]
        lines += table(network, [] if here else theirs, paper)
        text += "\n".join(lines) + "\n"
    return text


def note(network: Mapping[str, Any]) -> str:
    """Return what has to be known of a network's rows."""
    if network["weights"] == "random":
        return " Random weights, so times only; quantized whole, as nothing can be said of the labels."
    if network["weights"] == "trained on CamVid":
        return " mIoU on CamVid's validation frames. The anomaly scores are those of a network that saw no outliers."
    return ""


def table(network: Mapping[str, Any], theirs: Iterable[PublishedPoint], paper: str) -> list[str]:
    """Return the rows of a network."""
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
    """Return the cells of a row of ours, behind its name."""
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
