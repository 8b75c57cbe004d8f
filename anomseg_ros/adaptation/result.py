"""The adapted bundle: checks before the work, and what is written after it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from anomseg_ros.adaptation.norms import require_norms
from anomseg_ros.adaptation.pictures import NAME as PICTURE_FILE
from anomseg_ros.adaptation.pictures import before_and_after
from anomseg_ros.adaptation.request import NORMS, AdaptRequest
from anomseg_ros.adaptation.work import GIVEN, Stage
from anomseg_ros.compression.reexport import export_config_of, load_float_network
from anomseg_ros.core.bundle import CHECKPOINT_FILE, Bundle, Contract, load_bundle, save_bundle
from anomseg_ros.core.progress import Progress
from anomseg_ros.core.schema import to_plain
from anomseg_ros.errors import ConfigError
from anomseg_ros.evaluation.calibrate import with_thresholds
from anomseg_ros.evaluation.drive_thresholds import calibrate_on_drive
from anomseg_ros.networks.network import SegmentationNetwork


def require_adaptable(request: AdaptRequest, checkpoint: Path) -> SegmentationNetwork:
    """Return the network of a bundle. Raises ConfigError and CheckpointError if it, or the teacher, cannot be used."""
    contract = request.bundle.contract
    network = load_float_network(request.bundle, checkpoint, "weights")
    export_config_of(contract)
    if network.fitted_scores:
        fitted = ", ".join(network.fitted_scores)
        raise ConfigError(
            f"bundle {contract.name!r} has scores that are fitted to its weights ({fitted}); export the checkpoint "
            "without them (`anomseg export --scores`), adapt that bundle, then fit them with `anomseg calibrate score`"
        )
    if NORMS in request.stages:
        require_norms(network)
    if request.teacher is not None:
        request.teacher.load()
    return network


def write_result(
    request: AdaptRequest, stages: Sequence[Stage], facts: Mapping[str, Any], progress: Progress
) -> Bundle:
    """Write the bundle of the last stage that was kept, with thresholds of the drive, and return it.

    Args:
        request: where it goes.
        stages: all stages, "given" first.
        facts: what decided the result, for the contract.
        progress: told of the frames that the thresholds come from.
    """
    chosen = [stage for stage in stages if stage.kept][-1]
    bundle = load_bundle(chosen.bundle)
    files = {name: bundle.directory / name for name in bundle.contract.files}
    finish = partial(_finished, request, stages, chosen, facts, progress)
    with tempfile.TemporaryDirectory(prefix="anomseg-") as folder:
        beside = [] if chosen.name == GIVEN else [_drawn(request, stages[0], chosen, Path(folder))]
        kept_checkpoint = bundle.directory / CHECKPOINT_FILE
        if CHECKPOINT_FILE not in files and kept_checkpoint.is_file():
            beside.append(kept_checkpoint)
        contract = replace(bundle.contract, name=request.output.resolve().name)
        return save_bundle(
            contract, files, request.output, overwrite=request.overwrite, beside=beside, finish=lambda new: finish(new)
        )


def _finished(
    request: AdaptRequest,
    stages: Sequence[Stage],
    chosen: Stage,
    facts: Mapping[str, Any],
    progress: Progress,
    bundle: Bundle,
) -> Contract:
    """Return the contract with thresholds of the drive, provenance and what was measured."""
    contract, given = bundle.contract, request.bundle.contract
    on_drive = request.drive_request(bundle, contract.score_names)
    found = calibrate_on_drive(on_drive, progress, None if chosen.name == GIVEN else request.split.thresholds)
    names = ", ".join(request.drive.input_names)
    calibrated_on = f"unlabelled drive {names} ({found.used} frames, {found.held_back} held back)"
    contract = with_thresholds(replace(contract, thresholds={}), found.changes, calibrated_on)
    adaptation = {
        "parent": {"name": given.name, "sha256": given.program_sha256},
        "chosen": chosen.name,
        **{key: facts[key] for key in ("frames", "drive", "level", "objects", "target_fpr", "seed")},
        "stages": [_plain(stage) for stage in stages],
    }
    provenance = replace(contract.provenance, command=request.command)
    if chosen.name != GIVEN:
        trained_on = f"{given.provenance.training_data or 'unknown'}; adapted to the unlabelled drive {names}"
        provenance = replace(provenance, training_data=trained_on)
    quality = given.quality if chosen.name == GIVEN else {}
    return replace(contract, provenance=provenance, quality=quality, adaptation=to_plain(adaptation))


def _plain(stage: Stage) -> dict[str, Any]:
    """Return a stage for the contract, without the place of its bundle."""
    plain: dict[str, Any] = to_plain(stage)
    del plain["bundle"]
    return plain


def _drawn(request: AdaptRequest, given: Stage, chosen: Stage, folder: Path) -> Path:
    """Write the picture of frames before and after, at equal detection; return its file."""
    sides = [(request.drive_request(load_bundle(one.bundle)), one.figures.threshold) for one in (given, chosen)]
    path = folder / PICTURE_FILE
    path.write_bytes(before_and_after(sides, request.split.held_back))
    return path
