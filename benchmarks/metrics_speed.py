"""Time and memory of our pixel metrics compared with scikit-learn on the same data.

Both get the same float32 scores, with at least a million distinct values, and uint8 labels. They run one after the
other in the same process and compute average precision and FPR at 95 % recall. Ours also computes AUROC, best F1 and
error bounds, and gets the scores frame by frame, as in an evaluation. Memory is the peak resident size beyond the size
with the input loaded; each implementation is measured in a separate process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import write_result

from anomseg_ros.metrics.pixel_curves import PixelCurves

FRAME = (1024, 2048)
MIB = 2**20


def main() -> None:
    options = parse_arguments()
    if options.only:
        print(json.dumps(measure_one(options.only, options.pixels)))
        return
    result = compare(options.pixels, options.rounds)
    print(json.dumps(result, indent=2))
    print("written to", write_result("metrics_speed", result))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pixels", type=int, default=50_000_000, help="number of scores")
    parser.add_argument("--rounds", type=int, default=3, help="runs of our metrics; the result is their median")
    parser.add_argument("--only", choices=("ours", "ours_float16", "sklearn"), help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(pixels: int, rounds: int) -> dict[str, Any]:
    scores, labels = random_pixels(pixels)
    ours_s = sorted(timed(read_ours, scores, labels)[1] for _ in range(rounds))
    half = scores.astype(np.float16)
    ours_float16_s = sorted(timed(read_ours, half, labels)[1] for _ in range(rounds))
    sklearn, sklearn_s = timed(read_sklearn, scores, labels)
    ours = read_ours(scores, labels)
    return {
        "pixels": pixels,
        "distinct_scores": int(np.unique(scores).size),
        "ours_s": ours_s[len(ours_s) // 2],
        "ours_float16_s": ours_float16_s[len(ours_float16_s) // 2],
        "sklearn_s": sklearn_s,
        "times_faster": sklearn_s / ours_s[len(ours_s) // 2],
        "ours": ours,
        "sklearn": sklearn,
        "auprc_difference": abs(ours["auprc"] - sklearn["auprc"]),
        "fpr95_difference": abs(ours["fpr95"] - sklearn["fpr95"]),
        "peak_beyond_input_mib": {
            name: peak_in_own_process(name, pixels) for name in ("ours", "ours_float16", "sklearn")
        },
    }


def random_pixels(pixels: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Return scores, float32 (N,) in (0, 1), and labels, uint8 (N,): 5 % anomaly, 5 % ignored.

    Most scores are near 0, like those of a void probability.
    """
    generator = np.random.default_rng(0)
    scores = np.empty(pixels, np.float32)
    labels = np.empty(pixels, np.uint8)
    for start in range(0, pixels, MIB):  # in parts, so that generating the data does not set the memory peak
        part = slice(start, min(start + MIB, pixels))
        size = part.stop - part.start
        kind = generator.random(size, np.float32)
        labels[part] = np.where(kind < 0.05, 1, np.where(kind > 0.95, 255, 0))
        logits = generator.normal(-4, 2, size).astype(np.float32) + 2.5 * (labels[part] == 1)
        scores[part] = 1 / (1 + np.exp(-logits))
    return scores, labels


def read_ours(scores: npt.NDArray[np.floating], labels: npt.NDArray[np.uint8]) -> dict[str, float]:
    curves = PixelCurves()
    size = FRAME[0] * FRAME[1]
    for start in range(0, scores.size, size):
        curves.add(scores[None, start : start + size], labels[None, start : start + size])
    curve = curves.curve()
    average_precision, auroc = curve.average_precision(), curve.auroc()
    fpr95 = curve.fpr_at_recall(rule="interpolated")
    return {
        "auprc": average_precision.value,
        "auprc_bound": average_precision.bound,
        "fpr95": fpr95.value,
        "fpr95_bound": fpr95.bound,
        "auroc": auroc.value,
        "auroc_bound": auroc.bound,
        "best_f1": curve.best_f1().value,
    }


def read_sklearn(scores: npt.NDArray[np.floating], labels: npt.NDArray[np.uint8]) -> dict[str, float]:
    from sklearn.metrics import average_precision_score, roc_curve

    counted = labels <= 1
    truth, values = labels[counted], scores[counted]
    auprc = average_precision_score(truth, values)
    fpr, tpr, _ = roc_curve(truth, values)
    return {"auprc": float(auprc), "fpr95": float(np.interp(0.95, tpr, fpr))}


def timed(function: Any, *arguments: Any) -> tuple[Any, float]:
    started = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - started


def peak_in_own_process(name: str, pixels: int) -> float:
    command = [sys.executable, str(Path(__file__).resolve()), "--pixels", str(pixels), "--only", name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return round(float(json.loads(done.stdout)["peak_beyond_input_mib"]), 1)


def measure_one(name: str, pixels: int) -> dict[str, float]:
    scores, labels = random_pixels(pixels)
    read_sklearn(scores[:1000], labels[:1000])  # import scikit-learn before the measurement
    values = scores.astype(np.float16) if name == "ours_float16" else scores
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current resident size
    before = status_kib("VmRSS")
    (read_sklearn if name == "sklearn" else read_ours)(values, labels)
    return {"peak_beyond_input_mib": (status_kib("VmHWM") - before) / 1024}


def status_kib(field: str) -> int:
    """Return VmRSS (current resident size) or VmHWM (its peak) of this process, KiB (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main()
