"""Turn a trained checkpoint into a bundle for deployment, with temperature, thresholds and measured quality.

All of these use the same held-out frames. The temperature and each threshold are single numbers, so a hundred frames do
not overfit them. mIoU does not depend on them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from anomseg_ros.core.bundle import Bundle, Contract, Provenance, check_target, sha256_of
from anomseg_ros.core.labels import same_classes
from anomseg_ros.core.preprocess import resized_labels, tensor_from_frame
from anomseg_ros.core.progress import Progress
from anomseg_ros.core.types import RgbImage
from anomseg_ros.datasets.dataset import Dataset
from anomseg_ros.errors import DatasetError, MetricError
from anomseg_ros.evaluation.calibrate import measure_scores, threshold_changes, with_thresholds
from anomseg_ros.evaluation.evaluate import Request, evaluate
from anomseg_ros.export import ExportConfig, contract_of, export_network
from anomseg_ros.metrics.reliability import FittedTemperature, TemperatureFit
from anomseg_ros.networks.checkpoints import load_checkpoint
from anomseg_ros.networks.network import FittedScore, SegmentationNetwork, pixels_to_input
from anomseg_ros.networks.prediction import Prediction
from anomseg_ros.scores import find_score
from anomseg_ros.scores.score import FeatureMaps, Fit, Given

NATIVE_PROTOCOL = "fishyscapes"
"""The evaluation protocol that uses frames and labels at their own size."""

FIT_STRIDE_PX = 4
"""Step between the rows and columns that the temperature is fitted on."""


@dataclass(frozen=True)
class Deployment:
    """A checkpoint and the bundle to make of it. target_fprs: false-positive rates to calibrate thresholds for."""

    network: str
    checkpoint: Path
    export: ExportConfig
    provenance: Provenance
    target_fprs: tuple[float, ...]


def deploy(deployment: Deployment, held_out: Dataset, output: Path, progress: Progress) -> Bundle:
    """Write the bundle of a checkpoint with temperature, thresholds and quality; replace an existing bundle.

    Args:
        deployment: the checkpoint and the settings of the bundle.
        held_out: labelled frames, for fitting and measuring.
        output: directory of the bundle.
        progress: called after each frame.

    Raises:
        DatasetError: the frames have other classes than the network.
        CheckpointError, ExportError: see export_network.
    """
    check_target(output, overwrite=True)
    _check_classes(held_out, deployment.export)
    network = load_checkpoint(deployment.checkpoint, deployment.network, deployment.export.num_classes)
    provenance = replace(
        deployment.provenance,
        source_checkpoint=deployment.checkpoint.name,
        source_sha256=sha256_of(deployment.checkpoint),
    )
    contract = contract_of(deployment.network, deployment.export, provenance)
    temperature = _fit_temperature_or_1(network, contract, held_out, progress)
    config = replace(deployment.export, temperature=temperature)

    def final_contract(exported: Bundle) -> Contract:
        contract = exported.contract
        if deployment.target_fprs:
            contract = _with_thresholds(exported, held_out, deployment.target_fprs, progress)
        quality = {f"{held_out.name} {held_out.split}": measure_quality(exported, held_out, progress)}
        return replace(contract, quality=quality)

    bundle, _ = export_network(
        network, deployment.network, config, output, provenance, overwrite=True, finish=final_contract
    )
    return bundle


def _fit_temperature_or_1(
    network: SegmentationNetwork, contract: Contract, held_out: Dataset, progress: Progress
) -> float:
    """Return the temperature of least NLL, or 1.0 if all pixels are classified correctly and it does not exist."""
    try:
        fit = fit_temperature(network, contract, held_out, FIT_STRIDE_PX, progress)
    except MetricError:
        return 1.0
    return round(fit.temperature, 4)


def fit_temperature(
    network: SegmentationNetwork, contract: Contract, dataset: Dataset, stride_px: int, progress: Progress
) -> FittedTemperature:
    """Return the temperature of least NLL of the known classes' logits.

    Args:
        network: the network, in evaluation mode.
        contract: contract of the bundle.
        dataset: labelled frames; labels are resized (nearest) to the network's size.
        stride_px: step between the rows and columns that are used.
        progress: called after each frame.

    Raises:
        MetricError: no such temperature exists, for example because all pixels are classified correctly.
    """
    fit = TemperatureFit()
    for index in range(len(dataset)):
        frame = dataset.load(index)
        assert frame.labels is not None
        _, logits = _predict(network, contract, frame.image)
        fit.add(logits, resized_labels(frame.labels, *logits.shape[1:]), stride_px)
        progress(f"temperature on {dataset.name}", index + 1, len(dataset))
    return fit.fit()


def fit_scores(
    network: SegmentationNetwork,
    contract: Contract,
    fits: Mapping[str, Fit],
    dataset: Dataset,
    indices: Sequence[int],
    progress: Progress,
) -> dict[str, FittedScore]:
    """Fit the tensors of scores on training frames, without labels; return score name -> fitted score.

    Args:
        network: the network, in evaluation mode.
        contract: contract of the bundle with the scores.
        fits: score name -> unfinished fit; see scores.start_fits.
        dataset: training frames.
        indices: indices of the frames to use.
        progress: called after each frame.

    Raises:
        ConfigError: there are too few frames for a fit.
    """
    chosen = {name: find_score(name).choose_features(network.feature_names) for name in fits}
    needed = tuple({feature for names in chosen.values() for feature in names})
    for done, index in enumerate(indices, start=1):
        prediction, logits = _predict(network, contract, dataset.load(index).image, needed)
        for name, fit in fits.items():
            maps = tuple(prediction.features[feature][0].numpy() for feature in chosen[name])
            fit.add(Given(logits, features=FeatureMaps(maps, prediction.padded_px)))
        progress(f"scores on {dataset.name}", done, len(indices))
    facts = {"dataset": dataset.name, "split": dataset.split, "frames": len(indices)}
    return {name: FittedScore(fit.tensors(), {**facts, **fit.options}) for name, fit in fits.items()}


def _predict(
    network: SegmentationNetwork, contract: Contract, image: RgbImage, features: Sequence[str] = ()
) -> tuple[Prediction, npt.NDArray[np.float32]]:
    """Return the prediction for a frame and the logits of the known classes, float32 (C, H, W)."""
    known_outputs = [index for index in range(len(contract.classes)) if index != contract.void_class]
    tensor = torch.from_numpy(tensor_from_frame(image, contract.input).copy())
    with torch.inference_mode():
        prediction = network.predict(pixels_to_input(tensor), features)
        return prediction, prediction.pixel_logits()[0, known_outputs].numpy()


def _with_thresholds(bundle: Bundle, held_out: Dataset, rates: tuple[float, ...], progress: Progress) -> Contract:
    def report(what: str, done: int, total: int | None) -> None:
        progress(f"thresholds on {what}", done, total)

    curves = measure_scores(bundle, [held_out], bundle.contract.score_names, progress=report)
    calibrated_on = f"{held_out.name} {held_out.split} ({len(held_out)} frames)"
    return with_thresholds(bundle.contract, threshold_changes(bundle, curves, rates), calibrated_on)


def measure_quality(bundle: Bundle, held_out: Dataset, progress: Progress) -> Mapping[str, Any]:
    """Return mIoU and IoU per class, measured like `anomseg evaluate` at the frames' own size."""

    def report(what: str, done: int, total: int | None) -> None:
        progress(f"mIoU: {what}", done, total)

    request = Request(
        (bundle.directory,), (held_out,), protocols=(NATIVE_PROTOCOL,), require_miou=True, allow_partial=True
    )
    outcome = evaluate(request, report)
    if not outcome.results:
        raise DatasetError(f"nothing could be measured on {held_out.name}: {'; '.join(outcome.errors)}")
    result = outcome.results[0]
    iou = {name: round(value, 4) for name, value in (result.iou or {}).items() if not math.isnan(value)}
    miou = None if result.miou is None else round(result.miou, 4)
    return {"frames": len(held_out), "protocol": NATIVE_PROTOCOL, "miou": miou, "iou": iou}


def _check_classes(held_out: Dataset, export: ExportConfig) -> None:
    if not same_classes(held_out.classes, export.known()):
        raise DatasetError(
            f"{held_out.name} has the classes of {held_out.label_set!r}, the network those of {export.label_set!r}; "
            "calibrate on frames that are labelled with the network's classes"
        )
