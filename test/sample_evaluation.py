"""A realistic evaluation for reports: curves of simulated scores, overlays of synthetic frames."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

from anomseg_ros.core.labels import CITYSCAPES, palette
from anomseg_ros.core.overlay import overlay
from anomseg_ros.evaluation.results import Components, Curves, Evaluation, FrameResult, Result
from anomseg_ros.scenes.sequence import SyntheticConfig, SyntheticSequence

HOSTILE = 'erfnet</script><img src=x onerror="alert(1)">'
DATASETS = {"road_anomaly_21": 12, "road_obstacle_21": 30}


@cache
def evaluation() -> Evaluation:
    """Return results of four bundles and scores on two datasets. One bundle name contains HTML."""
    models = [("mide_net", "void", 3.0), ("enet_int8", "void", 2.4), ("enet_int8", "msp", 1.2), (HOSTILE, "void", 1.8)]
    results = [
        result(bundle, dataset, score, quality, seed)
        for seed, (dataset, quality_step) in enumerate((("road_anomaly_21", 0.0), ("road_obstacle_21", 0.5)))
        for bundle, score, base in models
        for quality in (base + quality_step,)
    ]
    return Evaluation(
        format_version=1,
        results=tuple(results),
        created="2026-03-01T12:34:56+00:00",
        command="anomseg evaluate mide_net enet_int8 --dataset road_anomaly_21=/data/ra21 --score void,msp",
        machine={"cpu": "Example CPU 3000, 8 cores", "memory": "32 GiB", "os": "Linux 6.8"},
        versions={"anomseg_ros": "0.1.0", "numpy": "2.1.0", "onnxruntime": "1.20.0", "python": "3.11.7"},
    )


def result(bundle: str, dataset: str, score: str, quality: float, seed: int, anomaly_shift: float = 0.0) -> Result:
    """Return one result of simulated scores. A higher quality separates known and anomalous pixels better."""
    rng = np.random.default_rng([seed, len(bundle), len(score)])
    frames = [_frame(rng, index, quality + anomaly_shift) for index in range(DATASETS.get(dataset, 5))]
    known, anomaly = (np.concatenate(parts) for parts in zip(*(scores for _, scores in frames), strict=True))
    auprc, fpr95, auroc, curves, f1, threshold = measured(known, anomaly)
    return Result(
        bundle=bundle, dataset=dataset, score=score, protocol="seeds", frames=len(frames), frames_skipped=1,
        auprc=auprc, fpr95=fpr95, auroc=auroc, miou=0.5 + quality / 12 if dataset == "road_anomaly_21" else None,
        known_px=known.size, anomaly_px=anomaly.size, auprc_error=2e-7, best_f1=f1, best_f1_threshold=threshold,
        iou={info.name: float(value) for info, value in zip(CITYSCAPES, rng.uniform(0.2, 0.95, 19), strict=True)},
        components=Components(0.31, 0.22, 0.184, threshold), ece=0.043,
        inference_ms={"mean": 31.2, "p50": 30.1, "p95": 36.5, "p99": 41.0},
        network_ms={"mean": 27.9, "p50": 27.2, "p95": 31.8, "p99": 35.2},
        bundle_sha256="9f86d081884c7d659a2feaa0c55ad015", network="mide_net", precision="fp32",
        backend="onnxruntime:cpu",
        curves=curves, per_frame=tuple(frame for frame, _ in frames),
    )  # fmt: skip


def _frame(rng: np.random.Generator, index: int, quality: float) -> tuple[FrameResult, tuple[np.ndarray, np.ndarray]]:
    size = int(rng.integers(40, 400)) if index != 1 else 0
    known = 1 / (1 + np.exp(-rng.normal(-2.5, 1.2, 6000)))
    anomaly = 1 / (1 + np.exp(-rng.normal(-2.5 + quality * rng.uniform(0.3, 1.6), 1.3, size)))
    auprc, fpr95 = measured(known, anomaly)[:2] if size else (None, None)
    times = {"inference_ms": float(rng.gamma(30, 1)), "network_ms": float(rng.gamma(27, 1))}
    return FrameResult(f"validation_{index:04d}", 6000, size, auprc, fpr95, **times), (known, anomaly)


def measured(known: np.ndarray, anomaly: np.ndarray) -> tuple[float, float, float, Curves, float, float]:
    """Return AuPRC, FPR95, AUROC, curves, best F1 and its threshold of float scores."""
    order = np.argsort(-np.concatenate([known, anomaly]))
    scores = np.concatenate([known, anomaly])[order]
    hit = np.concatenate([np.zeros(known.size), np.ones(anomaly.size)])[order]
    true, false = np.cumsum(hit), np.cumsum(1 - hit)
    recall, precision, fpr = true / anomaly.size, true / (true + false), false / known.size
    auprc = float(np.sum(np.diff(recall, prepend=0) * precision))
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    edges = np.linspace(0, 1, 61)
    bins = np.digitize(scores, np.linspace(0, 1, 16)[1:-1], right=True)
    pixels, probability, outcome = (np.bincount(bins, weights, 15) for weights in (None, scores, hit))
    points = Curves(
        recall=tuple(recall.tolist()), precision=tuple(precision.tolist()), fpr=tuple(fpr.tolist()),
        tpr=tuple(recall.tolist()), histogram_edges=tuple(edges.tolist()),
        histogram_known=tuple(np.histogram(known, edges)[0].tolist()),
        histogram_anomaly=tuple(np.histogram(anomaly, edges)[0].tolist()),
        reliability_confidence=tuple((probability / np.maximum(pixels, 1)).tolist()),
        reliability_accuracy=tuple((outcome / np.maximum(pixels, 1)).tolist()),
        reliability_share=tuple((pixels / max(pixels.sum(), 1)).tolist()),
    )  # fmt: skip
    fpr95 = float(fpr[np.searchsorted(recall, 0.95)])
    return (
        auprc,
        fpr95,
        float(np.sum(np.diff(fpr, prepend=0) * recall)),
        points,
        float(f1.max()),
        float(scores[f1.argmax()]),
    )


@cache
def overlays() -> dict[tuple[str, str, str, str, str], bytes]:
    """Return JPEG overlays of synthetic frames for the results of `evaluation`."""
    frames = list(SyntheticSequence(7, SyntheticConfig(height_px=256, width_px=512)).frames(6))
    pictures = []
    for frame in frames:
        mask = np.where(frame.anomaly == 1, 255, 0).astype(np.uint8)
        drawn = overlay(frame.image, frame.labels, mask, palette(CITYSCAPES))
        done, data = cv2.imencode(".jpg", cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 70])
        assert done
        pictures.append(data.tobytes())
    return {
        (*one.key, frame.frame_id): pictures[index % len(pictures)]
        for one in evaluation().results
        for index, frame in enumerate(one.per_frame)
    }
