"""Measured part of a model card, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from anomseg_ros.core.bundle import Bundle
from anomseg_ros.evaluation.machine import describe_machine
from anomseg_ros.evaluation.results import AtThreshold, Result

HEADINGS = {
    "road_anomaly_21": "RoadAnomaly21",
    "road_obstacle_21": "RoadObstacle21",
    "fs_static": "fs_static",
    "fs_lost_found": "FS Lost&Found",
    "road_anomaly": "RoadAnomaly",
    "camvid": "CamVid val",
    "cityscapes": "Cityscapes, Aachen",
}
PICTURE_NOTE = """The scenes are generated, because the pictures of the datasets belong to their authors. A network
trained on camera frames does not know their drawn trees and walls and marks them as anomalous.
"""


@dataclass(frozen=True)
class MeasuredBundle:
    """A bundle and its results.

    seeds: every score on the anomaly sets, protocol `seeds`; native: the default score on these and on the labelled
    sets, at the frames' own size.
    """

    bundle: Bundle
    seeds: tuple[Result, ...]
    native: tuple[Result, ...]

    @property
    def score(self) -> str:
        """Default score."""
        return self.bundle.contract.score_names[0]

    @property
    def sets(self) -> list[str]:
        """Anomaly sets with results."""
        return list(dict.fromkeys(one.dataset for one in self.seeds))

    def result(self, dataset: str, score: str) -> Result:
        """Return the result of a score on an anomaly set."""
        return next(one for one in self.seeds if (one.dataset, one.score) == (dataset, score))

    def semantic(self, dataset: str) -> Result | None:
        """Return the result with the mIoU on a labelled set, None if there is none."""
        return next((one for one in self.native if one.dataset == dataset and one.miou is not None), None)

    def at_threshold(self, dataset: str) -> AtThreshold | None:
        """Return the rates at the shipped threshold on a set, None if the score has no threshold."""
        return next((one.at_threshold for one in self.native if one.dataset == dataset), None)


Titled = Sequence[tuple[str, MeasuredBundle]]


def card_text(
    ours: MeasuredBundle, int8: MeasuredBundle | None, base: MeasuredBundle | None, run: Path, base_run: Path | None
) -> str:
    """Return the measured part of the model card."""
    others = [("in 8 bits", int8), ("before outlier exposure", base)]
    titled = [("this bundle", ours), *((title, one) for title, one in others if one is not None)]
    parts = [
        f"# {ours.bundle.contract.name}\n",
        "![outputs for two synthetic scenes: input, labels, score, mask](scenes.jpg)\n",
        PICTURE_NOTE,
        "| | |\n|---|---|\n" + "\n".join(fact_rows(ours, run, base_run)) + "\n",
        *semantic_parts(titled),
        "## Anomalies: AuPRC / FPR95 in per cent, protocol `seeds`\n",
        anomaly_table(titled),
        "![precision over recall on the anomaly sets](curves.png)\n",
        *threshold_parts(titled),
        "Written by `scripts/ship_bundle.py`. To repeat the measurements:\n",
        commands(ours),
    ]
    return "\n".join(parts)


def int8_text(int8: MeasuredBundle, parent: MeasuredBundle, name: str) -> str:
    """Return the card of the 8-bit bundle, which refers to the parent's card for the rest."""
    compression = int8.bundle.contract.compression
    titled = [("this bundle", int8), ("in float", parent)]
    parts = [
        f"# {int8.bundle.contract.name}\n",
        f"[{name}](../{name}/README.md) in 8 bits: {compression['method']}. The training, data, terms and limits "
        "described there also apply here.\n",
        *semantic_parts(titled),
        "## Anomalies: AuPRC / FPR95 in per cent, protocol `seeds`\n",
        anomaly_table(titled),
        *threshold_parts(titled),
        "Written by `scripts/ship_bundle.py`. To repeat the measurements:\n",
        commands(int8),
    ]
    return "\n".join(parts)


def fact_rows(ours: MeasuredBundle, run: Path, base_run: Path | None) -> list[str]:
    """Return the rows of network, input, scores, data, terms, recipe and time."""
    contract = ours.bundle.contract
    spec = contract.input
    held_out = next(iter(contract.quality), "nothing")
    tables = contract.thresholds.get(ours.score)
    rates = "none" if tables is None else f"for target_fpr {', '.join(f'{r:g}' for r in tables.by_target_fpr)}"
    learned = "" if contract.temperature == 1 else f", learned on {held_out}"
    names = ", ".join(info.name for info in contract.classes)
    rows = {
        "network": f"{contract.network}, {len(contract.classes)} outputs: {names}",
        "input": f"{spec.width_px}x{spec.height_px}, RGB; frames of any size and shape are stretched to it",
        "scores": ", ".join([f"`{ours.score}` (default)", *(f"`{name}`" for name in contract.score_names[1:])]),
        "temperature": f"{contract.temperature:g}{learned}",
        "thresholds": rates if tables is None else f"{rates}, on {tables.calibrated_on}",
        "training data": contract.provenance.training_data or "not stated",
        "terms": contract.provenance.licence or "not stated",
        "recipe, in config/train": recipe(run, base_run),
    }
    spent = training_time(run, base_run)
    if spent:
        rows["time"] = f"{spent}, on {machine()}"
    return [f"| {name} | {text} |" for name, text in rows.items()]


def recipe(run: Path, base_run: Path | None) -> str:
    """Return the names of the training runs in order."""
    if base_run is None:
        return ", then ".join(run_names(run))
    return f"{', '.join(run_names(base_run))}, then {run_names(run)[-1]}"


def run_names(run: Path) -> list[str]:
    """Return the names of the runs that `run` builds on, then its own. Runs on generated scenes get a short note."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    own = f"`{config['name']}` (seed {config['run']['seed']}, {config['run']['epochs']} epochs)"
    initial = config["network"].get("initial") or {}
    if initial.get("part") == "features":
        first = initial.get("config") or str(Path(initial.get("checkpoint", "")).parent.name)
        return [f"features of `{first}` (generated scenes)", own]
    return [*run_names(run / "initial"), own] if (run / "initial").is_dir() else [own]


def training_time(run: Path, base_run: Path | None) -> str:
    """Return the duration of the training as text, empty if a run has no result."""
    whole = training_seconds(run)
    if whole is None:
        return ""
    if base_run is None:
        return f"{whole / 60:.0f} minutes"
    before = training_seconds(base_run) or 0.0
    return f"{before / 60:.0f} minutes without outliers, then {(whole - before) / 60:.0f} minutes with them"


def training_seconds(run: Path) -> float | None:
    """Return the duration of a run and of the runs on camera frames it builds on; None if it has no result."""
    if not (run / "result.json").is_file():
        return None
    initial = yaml.safe_load((run / "config.yaml").read_text())["network"].get("initial") or {}
    builds_on = initial.get("part") == "all" and (run / "initial").is_dir()
    before = (training_seconds(run / "initial") or 0.0) if builds_on else 0.0
    return before + float(json.loads((run / "result.json").read_text())["seconds"])


def machine() -> str:
    found = describe_machine()
    return f"{found['cores']} cores of {found['cpu']}, shared with other work"


def semantic_parts(titled: Titled) -> list[str]:
    """Return heading and table of each labelled set for which the first detector has an mIoU."""
    parts = []
    for dataset in ("camvid", "cityscapes"):
        found = titled[0][1].semantic(dataset)
        if found is None:
            continue
        mapped = f"; {found.notes[0]}" if found.notes else ""
        parts += [
            f"## Semantic quality: {HEADINGS[dataset]}, {at_own_size(found.frames)}{mapped}\n",
            iou_table(titled, dataset),
        ]
    return parts


def iou_table(titled: Titled, dataset: str) -> str:
    results = [(title, found) for title, one in titled if (found := one.semantic(dataset)) is not None]
    names = list(dict.fromkeys(name for _, result in results for name in result.iou or {}))
    head = "| | mIoU | " + " | ".join(names) + " |\n|---|---|" + "---|" * len(names)
    rows = []
    for title, result in results:
        iou = result.iou or {}
        cells = [f"{100 * iou[name]:.0f}" if name in iou else "" for name in names]
        rows.append(" | ".join([f"| {title}", f"**{100 * (result.miou or 0):.1f}**", *cells]) + " |")
    return "\n".join([head, *rows]) + "\n"


def anomaly_table(titled: Titled) -> str:
    sets = titled[0][1].sets
    head = "| score | " + " | ".join(HEADINGS[name] for name in sets) + " |\n|---|" + "---|" * len(sets)
    rows = [
        f"| {score}, {title} | " + " | ".join(figures(one.result(name, score)) for name in sets) + " |"
        for title, one in titled
        for score in dict.fromkeys(result.score for result in one.seeds)
    ]
    return "\n".join([head, *rows]) + "\n"


def figures(result: Result) -> str:
    return f"{100 * (result.auprc or 0):.2f} / {100 * (result.fpr95 or 0):.2f}"


def threshold_parts(titled: Titled) -> list[str]:
    """Return heading and table of the rates at the shipped threshold; empty if no detector has one."""
    sets = list(dict.fromkeys(one.dataset for _, detector in titled for one in detector.native))
    rows = []
    for title, detector in titled:
        found = [detector.at_threshold(name) for name in sets]
        if any(one is not None for one in found):
            rows.append(f"| {detector.score}, {title} | " + " | ".join(map(rates, found)) + " |")
    if not rows:
        return []
    head = "| score | " + " | ".join(HEADINGS[name] for name in sets) + " |\n|---|" + "---|" * len(sets)
    heading = "## Rates at the threshold for 1 %: known pixels above it / anomalous pixels above it, per cent\n"
    return [heading, "\n".join([head, *rows]) + "\n"]


def rates(found: AtThreshold | None) -> str:
    shares = [] if found is None else [share for share in (found.fpr, found.tpr) if share is not None]
    return " / ".join(f"{100 * share:.2f}" for share in shares)


def commands(detector: MeasuredBundle) -> str:
    name = detector.bundle.contract.name
    lines = [f"anomseg evaluate {name} --dataset camvid=FOLDER:val --protocol fishyscapes"]
    if detector.semantic("cityscapes") is not None:
        lines.append(f"anomseg evaluate {name} --dataset cityscapes=FOLDER --protocol fishyscapes --allow-partial")
    sets = " ".join(f"{dataset}=FOLDER" for dataset in detector.sets)
    lines.append(f"anomseg evaluate {name} --protocol seeds fishyscapes --dataset \\\n    {sets}")
    return "```text\n" + "\n".join(lines) + "\n```\n\n"


def best_score(detector: MeasuredBundle, dataset: str) -> str:
    """Return the score with the highest AuPRC on a set."""
    own = [one for one in detector.seeds if one.dataset == dataset]
    best: Any = max(own, key=lambda one: one.auprc or 0.0)
    return str(best.score)


def at_own_size(frames: int) -> str:
    """Return a number of frames that are measured at their own size, in words."""
    return "1 frame at its own size" if frames == 1 else f"{frames} frames at their own size"
