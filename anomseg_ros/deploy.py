"""A trained checkpoint to a bundle that is ready to deploy: temperature, export, thresholds, measured quality.

Everything is learned and measured on the same held-out frames. The temperature is one number and a threshold one more
per rate, so that a hundred frames do not overfit them; mIoU does not depend on either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from anomseg_ros.core.bundle import Bundle, Contract, Provenance, check_target, sha256_of
from anomseg_ros.core.preprocess import resized_labels, tensor_from_frame
from anomseg_ros.datasets.base import Dataset
from anomseg_ros.errors import DatasetError, MetricError
from anomseg_ros.evaluation.calibrate import measure_scores, threshold_changes, with_thresholds
from anomseg_ros.evaluation.evaluate import Request, evaluate
from anomseg_ros.export import ExportConfig, contract_of, export_network, pixels_to_input
from anomseg_ros.metrics.calibration import FittedTemperature, TemperatureFit
from anomseg_ros.networks.base import SegmentationNetwork
from anomseg_ros.networks.checkpoints import load_checkpoint

NATIVE_PROTOCOL = "fishyscapes"
"""Frames and labels at their own size."""

FIT_STRIDE_PX = 4
"""Every n-th row and column is enough to learn one number from."""

Progress = Callable[[str, int, int], None]
"""Called with (what, frames done, frames in all)."""


@dataclass(frozen=True)
class Deployment:
    """What to make of a checkpoint. target_fprs: false-positive rates to find thresholds for; empty for none."""

    network: str
    checkpoint: Path
    export: ExportConfig
    provenance: Provenance
    target_fprs: tuple[float, ...]


def deploy(wanted: Deployment, held_out: Dataset, output: Path, progress: Progress, overwrite: bool = True) -> Bundle:
    """Write the bundle of a checkpoint, once, with what held-out labelled frames teach; return it.

    Raises DatasetError for frames without the network's classes, CheckpointError and ExportError as export does.
    """
    check_target(output, overwrite)
    _check_classes(held_out, wanted.export)
    network = load_checkpoint(wanted.checkpoint, wanted.network, wanted.export.num_classes)
    provenance = replace(
        wanted.provenance, source_checkpoint=wanted.checkpoint.name, source_sha256=sha256_of(wanted.checkpoint)
    )
    planned = contract_of(wanted.network, wanted.export, provenance)
    temperature = learned_temperature(network, planned, held_out, progress)
    export = replace(wanted.export, temperature=temperature)

    def measured(exported: Bundle) -> Contract:
        contract = exported.contract
        if wanted.target_fprs:
            contract = _with_thresholds(exported, held_out, wanted.target_fprs, progress)
        quality = {f"{held_out.name} {held_out.split}": measured_quality(exported, held_out, progress)}
        return replace(contract, quality=quality)

    bundle, _ = export_network(
        network, wanted.network, export, output, provenance, overwrite=overwrite, finish=measured
    )
    return bundle


def learned_temperature(
    network: SegmentationNetwork, contract: Contract, held_out: Dataset, progress: Progress
) -> float:
    """Return the temperature of least NLL, 1.0 where the frames do not say: every one is classified rightly."""
    try:
        fitted = fit_temperature(network, contract, held_out, FIT_STRIDE_PX, progress)
    except MetricError:
        return 1.0
    return round(fitted.temperature, 4)


def fit_temperature(
    network: SegmentationNetwork, contract: Contract, dataset: Dataset, stride_px: int, progress: Progress
) -> FittedTemperature:
    """Return the temperature of least NLL of the known classes' logits, labels nearest to the network's size."""
    fit = TemperatureFit()
    known = [index for index in range(len(contract.classes)) if index != contract.void_class]
    for index in range(len(dataset)):
        frame = dataset.load(index)
        assert frame.labels is not None
        tensor = tensor_from_frame(frame.image, contract.input)
        with torch.inference_mode():
            logits = network(pixels_to_input(torch.from_numpy(tensor.copy())))[0, known].numpy()
        fit.add(logits, resized_labels(frame.labels, *logits.shape[1:]), stride_px)
        progress(f"temperature on {dataset.name}", index + 1, len(dataset))
    return fit.fit()


def _with_thresholds(bundle: Bundle, held_out: Dataset, rates: tuple[float, ...], progress: Progress) -> Contract:
    def report(what: str, done: int, total: int) -> None:
        progress(f"thresholds on {what}", done, total)

    curves = measure_scores(bundle, [held_out], bundle.contract.score_names, progress=report)
    named = f"{held_out.name} {held_out.split} ({len(held_out)} frames)"
    return with_thresholds(bundle.contract, threshold_changes(bundle, curves, rates), named)


def measured_quality(bundle: Bundle, held_out: Dataset, progress: Progress) -> Mapping[str, Any]:
    """Return mIoU, pixel accuracy and IoU per class as `anomseg evaluate` measures them at the frames' own size."""

    def report(what: str, done: int, total: int) -> None:
        progress(f"mIoU: {what}", done, total)

    request = Request(
        (bundle.directory,), (held_out,), protocols=(NATIVE_PROTOCOL,), require_miou=True, allow_partial=True
    )
    outcome = evaluate(request, report)
    if not outcome.results:
        raise DatasetError(f"nothing could be measured on {held_out.name}: {'; '.join(outcome.errors)}")
    result = outcome.results[0]
    iou = {name: round(value, 4) for name, value in (result.iou or {}).items() if not math.isnan(value)}
    return {"frames": len(held_out), "protocol": NATIVE_PROTOCOL, "miou": _rounded(result.miou), "iou": iou}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _check_classes(held_out: Dataset, export: ExportConfig) -> None:
    if held_out.label_set != export.label_set:
        raise DatasetError(
            f"{held_out.name} has the classes of {held_out.label_set!r}, the network those of {export.label_set!r}; "
            "calibrate on frames labelled with the network's classes"
        )
