"""Ways to make one score of several and to smooth it, on frames and objects held out from training.

    python score_variants.py cut_paste=DIR

DIR is a folder of `anomseg datasets cut-paste`; outlier_losses.py makes one of our own held-out frames and objects. The
network runs once on every frame, each variant is computed from the same scores, and AuPRC and FPR95 are those of all
pixels of all frames. The figures go into score_variants.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from common import write_result

from anomseg_ros.backends import open_detector
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.core.types import Outputs, ScoreMap
from anomseg_ros.datasets import open_named
from anomseg_ros.datasets.dataset import ANOMALY, KNOWN
from anomseg_ros.evaluation.frame_figures import frame_auprc_fpr95
from anomseg_ros.metrics.protocols import protocol
from anomseg_ros.scores import sml

TABLE = Path(__file__).resolve().parent / "score_variants.md"
SCORES = ("void", "max_entropy", "max_logit")
SMALLEST = 1e-9
PROTOCOL = protocol("fishyscapes")

Variant = Callable[[Outputs], npt.NDArray[np.generic]]


def log_odds(outputs: Outputs) -> ScoreMap:
    """Return the logarithm of the odds of the void class."""
    void = np.clip(outputs.scores["void"], SMALLEST, 1 - SMALLEST)
    return np.asarray(np.log(void / (1 - void)), np.float32)


def smoothed(score: ScoreMap, sigma_px: float) -> ScoreMap:
    """Return a score after a Gaussian filter."""
    return np.asarray(cv2.GaussianBlur(score, (0, 0), sigma_px), np.float32)


VARIANTS: Mapping[str, Variant] = {
    "`void`": lambda outputs: outputs.scores["void"],
    "`max_entropy`": lambda outputs: outputs.scores["max_entropy"],
    "`max_logit`": lambda outputs: outputs.scores["max_logit"],
    "`void` times `max_entropy`": lambda outputs: outputs.scores["void"] * outputs.scores["max_entropy"],
    "log odds of void + `max_entropy`": lambda outputs: log_odds(outputs) + outputs.scores["max_entropy"],
    "log odds of void + 2 `max_entropy`": lambda outputs: log_odds(outputs) + 2 * outputs.scores["max_entropy"],
    "log odds of void + 0.2 `max_logit`": lambda outputs: log_odds(outputs) + 0.2 * outputs.scores["max_logit"],
    "`void`, smoothed by 2 px": lambda outputs: smoothed(outputs.scores["void"], 2),
    "`void`, smoothed by 4 px": lambda outputs: smoothed(outputs.scores["void"], 4),
    "log odds of void, smoothed by 2 px": lambda outputs: smoothed(log_odds(outputs), 2),
    "log odds of void, smoothed by 4 px": lambda outputs: smoothed(log_odds(outputs), 4),
    "`void`, closed by 9 px": lambda outputs: cv2.morphologyEx(
        outputs.scores["void"], cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8)
    ),
    "`void` without class boundaries": lambda outputs: sml.without_boundaries(outputs.scores["void"], outputs.labels),
    "`void` as SML treats its score": lambda outputs: sml.smoothed(
        sml.without_boundaries(outputs.scores["void"], outputs.labels)
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", metavar="cut_paste=DIR", help="frames with pasted objects")
    parser.add_argument("--bundle", default="bisenet_lite-world")
    parser.add_argument("--backend", default="onnxruntime")
    args = parser.parse_args()
    rows, frames = measure(args.bundle, args.dataset, args.backend)
    print(write_result("score_variants", {"bundle": args.bundle, "frames": frames, "rows": rows}))
    TABLE.write_text(page(args.bundle, frames, rows), encoding="utf-8")


def measure(bundle: str, name: str, backend: str) -> tuple[dict[str, dict[str, float | None]], int]:
    """Return variant -> AuPRC and FPR95, and the number of frames."""
    detector, dataset = open_detector(load_bundle(find_bundle(bundle)), backend), open_named(name)
    values: dict[str, list[npt.NDArray[np.float32]]] = {variant: [] for variant in VARIANTS}
    truth = []
    for index in range(len(dataset)):
        frame = dataset.load(index)
        outputs = detector.detect(frame.image, SCORES, source_size=True)
        marks = np.asarray(frame.anomaly)
        counted = (marks == ANOMALY) | (marks == KNOWN)
        truth.append(marks[counted])
        for variant, compute in VARIANTS.items():
            values[variant].append(np.asarray(compute(outputs), np.float32)[counted])
    labels = np.concatenate(truth)
    rows: dict[str, dict[str, float | None]] = {}
    for variant in VARIANTS:
        pooled = np.concatenate(values.pop(variant))
        auprc, fpr95 = frame_auprc_fpr95(pooled, labels, PROTOCOL.fpr_rule)
        rows[variant] = {"auprc": auprc, "fpr95": fpr95}
    return rows, len(dataset)


def page(bundle: str, frames: int, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the figures in Markdown."""
    lines = [
        "# Variants of the score",
        "",
        f"{bundle} on {frames} frames held out from training, with objects that were not in training. AuPRC and FPR95",
        "in per cent, at the frames' own size. Written by `python score_variants.py cut_paste=DIR`.",
        "",
        "| score | AuPRC | FPR95 |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {100 * row['auprc']:.2f} | {100 * row['fpr95']:.2f} |" for name, row in rows.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
