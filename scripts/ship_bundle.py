#!/usr/bin/env python3
"""Turn two trained runs, with and without outlier exposure, into models/NAME: bundle, checkpoint, pictures, model card.

anomseg train erfnet-camvid-void --data ../shared/data/CamVid
R=runs/erfnet-camvid-void; python scripts/ship_bundle.py erfnet-camvid $R $R/initial --data ../shared/data

The card's figures come from the files of the runs and from measuring both bundles; only its judgements are kept from
the card that is there (everything from the heading "What it is good for" on).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from anomseg_ros.backends import open_detector
from anomseg_ros.core.bundle import Bundle, load_bundle, save_bundle
from anomseg_ros.core.overlay import panel, score_range
from anomseg_ros.datasets.synthetic import SyntheticConfig, SyntheticSequence
from anomseg_ros.evaluation.evaluate import Request, evaluate
from anomseg_ros.evaluation.machine import describe_machine
from anomseg_ros.evaluation.results import Result

MODELS = Path(__file__).resolve().parents[1] / "models"
SETS = {
    "RoadAnomaly21": "road_anomaly_21",
    "RoadObstacle21": "road_obstacle_21",
    "fs_static": "fs_static",
}
OPINIONS = "## What it is good for"
SCENES = ((3_000_004, 30), (3_000_011, 55))
"""Synthetic frames of the picture: pictures of the benchmarks belong to their authors."""

PICTURE_NOTE = """Generated scenes, since pictures of the datasets belong to their authors. With their drawn trees and
walls they are foreign to a network that was trained for camera frames, and it says so.
"""

COLORS = ((200, 60, 30), (120, 120, 120))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of the shipped bundle")
    parser.add_argument("run", type=Path, help="folder of the run with outlier exposure")
    parser.add_argument("base", type=Path, help="folder of the run without; it needs its bundle, too")
    parser.add_argument("--data", type=Path, required=True, help="folder of RoadAnomaly21, RoadObstacle21, fs_static")
    args = parser.parse_args()
    card = MODELS / args.name / "README.md"
    opinions = card.read_text().partition(OPINIONS)[2] if card.is_file() else "\n\nTo be written.\n"
    base, run = load_bundle(args.base / "bundle"), load_bundle(args.run / "bundle")
    without, with_outliers = measure(base, args.data), measure(run, args.data)
    bundle = ship(args.name, run, args.run / "best.safetensors", with_outliers)
    draw_curves(bundle.directory / "curves.png", with_outliers, without, bundle.contract.score_names[0])
    draw_scenes(bundle.directory / "scenes.jpg", bundle)
    text = card_text(bundle, base, args.run, args.base, with_outliers, without)
    card.write_text(text + OPINIONS + opinions)
    print(card.read_text())


def measure(bundle: Bundle, data: Path) -> list[Result]:
    """Return every score on every set, protocol `seeds`."""
    datasets = tuple(f"{name}={data / folder}" for folder, name in SETS.items())
    outcome = evaluate(Request((bundle.directory,), datasets))
    if outcome.errors:
        raise SystemExit("\n".join(outcome.errors))
    return list(outcome.results)


def ship(name: str, source: Bundle, checkpoint: Path, results: list[Result]) -> Bundle:
    """Write models/NAME with the anomaly figures of its default score beside its mIoU."""
    score = source.contract.score_names[0]
    anomaly = {
        one.dataset: {"protocol": one.protocol, "score": score, "auprc": r4(one.auprc), "fpr95": r4(one.fpr95)}
        for one in results
        if one.score == score
    }
    contract = dataclasses.replace(source.contract, name=name, quality={**source.contract.quality, **anomaly})
    files = {file: source.directory / file for file in contract.files}
    bundle = save_bundle(contract, files, MODELS / name, overwrite=True)
    shutil.copyfile(checkpoint, bundle.directory / "checkpoint.safetensors")
    return bundle


def r4(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def draw_curves(path: Path, ours: list[Result], base: list[Result], score: str) -> None:
    """Draw precision over recall, with and without outlier exposure, one square per set."""
    squares = []
    for name in SETS.values():
        square = np.full((360, 360, 3), 255, np.uint8)
        cv2.rectangle(square, (40, 30), (340, 330), (200, 200, 200), 1)
        for color, results, chosen in ((COLORS[1], base, best_score(base, name)), (COLORS[0], ours, score)):
            result = next(one for one in results if one.dataset == name and one.score == chosen)
            recall, precision = np.array(result.curves.recall), np.array(result.curves.precision)
            points = np.stack([40 + 300 * recall, 330 - 300 * precision], 1).astype(np.int32)
            cv2.polylines(square, [points], False, color, 2, cv2.LINE_AA)
        cv2.putText(square, f"{name}: precision / recall", (40, 20), 0, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
        squares.append(square)
    legend = np.full((34, 1080, 3), 255, np.uint8)
    texts = (f"with outlier exposure, {score}", "without, its best score")
    for x, color, text in zip((40, 420), COLORS, texts, strict=True):
        cv2.line(legend, (x, 14), (x + 30, 14), color, 3)
        cv2.putText(legend, text, (x + 40, 19), 0, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    cv2.imwrite(str(path), np.vstack([np.hstack(squares), legend])[:, :, ::-1])


def best_score(results: list[Result], dataset: str) -> str:
    measured = [one for one in results if one.dataset == dataset]
    return max(measured, key=lambda one: one.auprc or 0.0).score


def draw_scenes(path: Path, bundle: Bundle) -> None:
    """Draw what the bundle says of synthetic scenes."""
    detector, contract = open_detector(bundle), bundle.contract
    score = contract.score_names[0]
    tiles = []
    for seed, index in SCENES:
        image = SyntheticSequence(seed, SyntheticConfig(anomaly_probability=1.0)).frame(index).image
        outputs = detector.detect(image)
        threshold = bundle.threshold(score, 0.01).value
        mask = np.where(outputs.scores[score] > threshold, 255, 0).astype(np.uint8)
        drawn = score_range(score, len(contract.classes))
        tiles.append(panel(image, outputs.labels, outputs.scores[score], mask, contract.classes, drawn, score))
    picture = np.vstack([cv2.resize(tile, (1024, 512), interpolation=cv2.INTER_AREA) for tile in tiles])
    cv2.imwrite(str(path), picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])


def card_text(
    bundle: Bundle, base: Bundle, run: Path, base_run: Path, ours: list[Result], without: list[Result]
) -> str:
    """Return the measured part of the model card."""
    contract, score = bundle.contract, bundle.contract.score_names[0]
    spec = contract.input
    base_s = seconds_of(base_run)
    times = [f"{seconds / 60:.0f} minutes" for seconds in (base_s, seconds_of(run) - base_s)]
    rates = ", ".join(f"{rate:g}" for rate in contract.thresholds[score].by_target_fpr)
    rows = [
        f"| network | {contract.network}, {len(contract.classes)} outputs: {class_names(contract)} |",
        f"| input | {spec.width_px}x{spec.height_px}, RGB; frames of any size and shape are stretched to it |",
        f"| scores | `{score}` (default), {', '.join(f'`{name}`' for name in contract.score_names[1:])} |",
        f"| temperature | {contract.temperature:g}, learned on CamVid val |",
        f"| thresholds | for target_fpr {rates}, on CamVid val |",
        f"| training data | {contract.provenance.training_data} |",
        f"| terms | {contract.provenance.licence} |",
        f"| recipe, in config/train | {', '.join(run_names(base_run))}, then {run_names(run)[-1]} |",
        f"| time | {times[0]} without outliers, then {times[1]} with them, on {machine()} |",
    ]
    parts = [
        f"# {contract.name}\n",
        "![what it says of two synthetic scenes: input, labels, score, mask](scenes.jpg)\n",
        PICTURE_NOTE,
        "| | |\n|---|---|\n" + "\n".join(rows) + "\n",
        "## Semantic quality: CamVid val, 101 frames at their own size (480x360)\n",
        iou_table(bundle, base),
        "## Anomalies: AuPRC / FPR95 in per cent, protocol `seeds`\n",
        anomaly_table(ours, without),
        "![precision over recall on the three sets](curves.png)\n",
        "Made by `scripts/ship_bundle.py`; any of it again:\n",
        f"```text\nanomseg evaluate {contract.name} --dataset camvid=FOLDER:val --protocol fishyscapes\n"
        f"anomseg evaluate {contract.name} --dataset road_anomaly_21=FOLDER road_obstacle_21=FOLDER \\\n"
        "    fs_static=FOLDER\n```\n\n",
    ]
    return "\n".join(parts)


def class_names(contract: Any) -> str:
    return ", ".join(info.name for info in contract.classes)


def run_names(run: Path) -> list[str]:
    """Return what was trained, the runs that `run` builds on first; generated scenes are only named."""
    import yaml

    config = yaml.safe_load((run / "config.yaml").read_text())
    own = f"`{config['name']}` (seed {config['run']['seed']}, {config['run']['epochs']} epochs)"
    initial = config["network"].get("initial") or {}
    if initial.get("part") == "features":
        first = initial.get("config") or str(Path(initial.get("checkpoint", "")).parent.name)
        return [f"features of `{first}` (generated scenes)", own]
    return [*run_names(run / "initial"), own] if (run / "initial").is_dir() else [own]


def seconds_of(run: Path) -> float:
    """Return how long a run took, with those on camera frames that it builds on."""
    import yaml

    initial = yaml.safe_load((run / "config.yaml").read_text())["network"].get("initial") or {}
    before = seconds_of(run / "initial") if initial.get("part") == "all" and (run / "initial").is_dir() else 0.0
    return before + float(json.loads((run / "result.json").read_text())["seconds"])


def machine() -> str:
    found = describe_machine()
    return f"{found['cores']} cores of {found['cpu']}, shared with other work"


def iou_table(bundle: Bundle, base: Bundle) -> str:
    ours, other = (one.contract.quality["camvid val"] for one in (bundle, base))
    names = list(ours["iou"])
    head = "| | mIoU | " + " | ".join(names) + " |\n|---|---|" + "---|" * len(names)
    rows = [
        " | ".join([f"| {title}", f"**{100 * q['miou']:.1f}**", *(f"{100 * q['iou'][n]:.0f}" for n in names)]) + " |"
        for title, q in (("this bundle", ours), ("before outlier exposure", other))
    ]
    return "\n".join([head, *rows]) + "\n"


def anomaly_table(ours: list[Result], without: list[Result]) -> str:
    head = "| score | " + " | ".join(SETS) + " |\n|---|" + "---|" * len(SETS)
    rows = [
        f"| {score}, {title} | " + " | ".join(figures(results, score, name) for name in SETS.values()) + " |"
        for results, title in ((ours, "with outlier exposure"), (without, "without"))
        for score in dict.fromkeys(one.score for one in results)
    ]
    return "\n".join([head, *rows]) + "\n"


def figures(results: list[Result], score: str, dataset: str) -> str:
    found = next(one for one in results if one.score == score and one.dataset == dataset)
    return f"{100 * (found.auprc or 0):.2f} / {100 * (found.fpr95 or 0):.2f}"


if __name__ == "__main__":
    main()
