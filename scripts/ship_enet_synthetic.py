#!/usr/bin/env python3
"""Turn the checkpoint of training/synthetic_recipe.py into models/enet-synthetic: export, calibrate, write the card.

python -m anomseg_ros.training.synthetic_recipe --output work/enet-synthetic --steps 3000 --sequences 420
python scripts/ship_enet_synthetic.py work/enet-synthetic
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from rich.progress import track

from anomseg_ros.backends import open_detector
from anomseg_ros.core.bundle import GRAPH_FILE, Bundle, Provenance, ThresholdTable, save_bundle
from anomseg_ros.core.preprocess import resized_labels
from anomseg_ros.datasets.synthetic import TRAIN_KINDS, SyntheticConfig, SyntheticSequence
from anomseg_ros.export import ExportConfig, export_checkpoint
from anomseg_ros.metrics.calibration import threshold_at_fpr
from anomseg_ros.metrics.pixel_curves import PixelCurves

NAME = "enet-synthetic"
MODELS = Path(__file__).resolve().parents[1] / "models"
TARGETS = (0.001, 0.005, 0.01, 0.02, 0.05)
# Beyond the seeds of the training frames and of the measurement on held-out ones.
CALIBRATION_SEEDS = range(2_000_000, 2_000_040)
CALIBRATION_FRAMES = (0, 25, 50)
CALIBRATED_ON = "120 synthetic frames, seeds 2000000 to 2000039"
TRAINED_ON = "synthetic road scenes of anomseg_ros.datasets.synthetic"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("training", type=Path, help="output folder of the recipe")
    training = parser.parse_args().training
    recipe = json.loads((training / "recipe.json").read_text())
    metrics = json.loads((training / "metrics.json").read_text())
    card = MODELS / NAME / "README.md"
    kept_card = card.read_text() if card.is_file() else ""
    bundle = export(training / f"{NAME}.safetensors", recipe)
    bundle = calibrate(bundle, metrics)
    card.write_text(kept_card)
    print(json.dumps({"recipe": recipe, "metrics": metrics}, indent=2))
    print({score: dict(table.by_target_fpr) for score, table in bundle.contract.thresholds.items()})


def export(checkpoint: Path, recipe: dict[str, Any]) -> Bundle:
    """Export the checkpoint at the size it was trained at."""
    size = {"height_px": recipe["height_px"], "width_px": recipe["width_px"]}
    bundle, parity = export_checkpoint(
        "enet", checkpoint, ExportConfig(NAME, 20, 19, **size), MODELS / NAME, overwrite=True
    )
    print(parity)
    return bundle


def calibrate(bundle: Bundle, metrics: dict[str, Any]) -> Bundle:
    """Write thresholds, measured quality and provenance into the contract."""
    detector = open_detector(bundle)
    scores = bundle.contract.score_names
    curves = {score: PixelCurves() for score in scores}
    spec = bundle.contract.input
    config = SyntheticConfig(anomaly_probability=1.0, anomaly_kinds=TRAIN_KINDS)
    for seed in track(CALIBRATION_SEEDS, description="calibrating"):
        sequence = SyntheticSequence(seed, config)
        for index in CALIBRATION_FRAMES:
            frame = sequence.frame(index)
            outputs = detector.detect(frame.image)
            truth = resized_labels(frame.anomaly, spec.height_px, spec.width_px)
            for score in scores:
                curves[score].add(outputs.scores[score], truth)
    tables = {
        score: ThresholdTable(
            CALIBRATED_ON, {target: threshold_at_fpr(curves[score], target).threshold for target in TARGETS}
        )
        for score in scores
    }
    provenance = Provenance(
        bundle.contract.provenance.source_checkpoint,
        bundle.contract.provenance.source_sha256,
        training_data=TRAINED_ON,
        licence="Apache-2.0; trained by this project on scenes that it generates itself",
        command="python -m anomseg_ros.training.synthetic_recipe; python scripts/ship_enet_synthetic.py",
    )
    contract = dataclasses.replace(bundle.contract, thresholds=tables, provenance=provenance, quality=metrics)
    return save_bundle(contract, {GRAPH_FILE: bundle.graph_path}, bundle.directory, overwrite=True)


if __name__ == "__main__":
    main()
