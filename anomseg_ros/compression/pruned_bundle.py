"""Turn a bundle and its checkpoint into a pruned bundle: export it, measure the drift and the savings."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from anomseg_ros.compression.calibration_frames import drawn_frames
from anomseg_ros.compression.cost import graph_cost
from anomseg_ros.compression.drift import Guard, Tolerance, compressed_contract, measure_drift, require
from anomseg_ros.compression.fine_tune import FineTune, fine_tune
from anomseg_ros.compression.prune import UNSTRUCTURED, PruneConfig, checkpoint_metadata, estimated_time_ratio, prune
from anomseg_ros.compression.reexport import export_config_of, require_same_checkpoint
from anomseg_ros.compression.step_request import StepRequest
from anomseg_ros.core.bundle import CHECKPOINT_FILE, Bundle, Contract, sha256_of
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.types import Cost, RgbImage
from anomseg_ros.errors import CheckpointError, CompressionError, ExportError
from anomseg_ros.export import export_network
from anomseg_ros.networks.checkpoints import load_checkpoint, save_checkpoint
from anomseg_ros.networks.network import SegmentationNetwork
from anomseg_ros.parity import check_parity
from anomseg_ros.training.chain import ReportRun, no_report

ESTIMATE = "estimate, not measured: multiply-adds with weights other than 0 / all multiply-adds"
REMEDY = "prune less, fine-tune longer or on more frames (`fine_tune`), allow more (`label_agreement` …)"

PRUNED_TOLERANCE = Tolerance(
    label_agreement=0.9, rank_correlation=0.8, auprc_points=3.0, fpr95_points=5.0, miou_points=3.0
)
"""What pruning may cost. An int8 graph is its parent with rounding. A pruned and fine-tuned network is another network
for the same task: its borders and the ranks of its scores within a class differ. The figures on labelled frames decide;
this project allows 3 points of mIoU for a network that lost 30 % of its channels."""


@dataclass(frozen=True, kw_only=True)
class PruneRequest(StepRequest):
    """How to prune.

    checkpoint: None for the one in the bundle. fine_tune: None for no training. command: the command line for the
    bundle's provenance.
    """

    guard: Guard = field(default_factory=lambda: Guard(PRUNED_TOLERANCE))
    config: PruneConfig = field(default_factory=PruneConfig)
    fine_tune: FineTune | None = None
    command: str | None = None


def prune_bundle(request: PruneRequest, progress: Progress = no_progress, report: ReportRun = no_report) -> Bundle:
    """Return the written bundle. A killed fine-tuning continues in the folder beside it.

    Raises CompressionError, and writes nothing, if the bundle is too far from its parent. Also raises CheckpointError,
    ConfigError and the errors of training and export.
    """
    request.check()
    contract = request.bundle.contract
    size_px = (contract.input.height_px, contract.input.width_px)
    network = load_parent_network(request.bundle, find_checkpoint(request.checkpoint, request.bundle))
    frames = drawn_frames(request.frames, request.held_out_frames, seed=request.seed, progress=progress)
    pruned = prune(network, request.config, size_px)
    settings: dict[str, Any] = {}
    if request.fine_tune is not None:
        run = request.output.with_name(f"{request.output.name}.fine-tune")
        pruned, settings = fine_tune(pruned, request.config, contract, request.fine_tune, run, report)
    return write_pruned_bundle(request, pruned, frames, settings, progress)


def find_checkpoint(given: Path | None, parent: Bundle) -> Path:
    """Return the given checkpoint, or the one in the bundle's folder. Raises CheckpointError if there is none."""
    path = given or parent.directory / CHECKPOINT_FILE
    if not path.is_file():
        where = f"{path} does not exist" if given else f"{parent.directory} holds no {CHECKPOINT_FILE}"
        raise CheckpointError(f"{where}; give the `checkpoint` that {parent.contract.name!r} was exported from")
    return path


def load_parent_network(parent: Bundle, checkpoint: Path) -> SegmentationNetwork:
    """Return the network that a float bundle was exported from.

    Raises CompressionError for an int8 bundle and CheckpointError for another checkpoint than the bundle's. If the
    bundle states no digest, the outputs are compared.
    """
    contract = parent.contract
    if contract.precision != "fp32":
        raise CompressionError(
            f"bundle {contract.name!r} is {contract.precision}; prune the float bundle that it was made from, then "
            "quantize what comes out"
        )
    require_same_checkpoint(parent, checkpoint)
    network = load_checkpoint(checkpoint, contract.network, len(contract.classes))
    if contract.provenance.source_sha256 is None:
        size = (contract.input.height_px, contract.input.width_px, 3)
        noise = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
        try:
            check_parity(parent, network, [noise])
        except ExportError as error:
            raise CheckpointError(
                f"{checkpoint} is not what bundle {contract.name!r} was exported from: {error}; give that file"
            ) from error
    return network


def write_pruned_bundle(
    request: PruneRequest,
    network: SegmentationNetwork,
    frames: Sequence[RgbImage],
    settings: Mapping[str, Any],
    progress: Progress = no_progress,
) -> Bundle:
    """Export a pruned network, compare it with its parent, and write the bundle with its checkpoint.

    Args:
        request: how it was pruned, and where it goes.
        network: the pruned and fine-tuned network.
        frames: held-out frames, uint8 (H, W, 3) RGB of any size.
        settings: further settings for the contract.
        progress: called after each frame.

    Raises:
        CompressionError: the bundle is too far from its parent. Nothing is written.
        ExportError: the graph is wrong. Nothing is written.
    """
    parent, config, guard = request.bundle, request.config, request.guard
    with tempfile.TemporaryDirectory(prefix="anomseg-") as folder:
        checkpoint = Path(folder) / CHECKPOINT_FILE
        save_checkpoint(checkpoint, network, {**network.checkpoint_metadata, **checkpoint_metadata(config)})
        source = {"source_checkpoint": CHECKPOINT_FILE, "source_sha256": sha256_of(checkpoint)}
        provenance = replace(parent.contract.provenance, **source, command=request.command)
        export = replace(export_config_of(parent.contract), name=request.output.resolve().name)

        def guarded(exported: Bundle) -> Contract:
            drift = measure_drift(parent, exported, frames, guard, progress=progress)
            drift = require(drift, guard.accept_drift, REMEDY)
            all_settings = {**_method_settings(config), **_savings(config, parent, exported), **settings}
            contract = compressed_contract(parent, parent.contract.precision, config.words(), all_settings, drift)
            return replace(contract, name=export.name, provenance=provenance)

        bundle, _ = export_network(
            network,
            parent.contract.network,
            export,
            request.output,
            provenance,
            overwrite=request.overwrite,
            files={CHECKPOINT_FILE: checkpoint},
            finish=guarded,
        )
        return bundle


def is_pruned_from(bundle: Bundle, parent: Bundle, config: PruneConfig) -> bool:
    """Return whether a bundle was made from this parent with this configuration."""
    compression = bundle.contract.compression
    settings = compression.get("settings", {})
    same = all(settings.get(name) == value for name, value in _method_settings(config).items())
    return same and compression.get("parent", {}).get("sha256") == parent.contract.program_sha256


def _method_settings(config: PruneConfig) -> dict[str, Any]:
    """Return the settings that the method uses."""
    unused = {"structured": ("scope",), "unstructured": ("of", "round_to"), "masked": ("of", "round_to", "scope")}
    return {name: value for name, value in asdict(config).items() if name not in unused[config.method]}


def _savings(config: PruneConfig, parent: Bundle, draft: Bundle) -> dict[str, Any]:
    before, after = graph_cost(parent.graph_path), graph_cost(draft.graph_path)
    savings: dict[str, Any] = {"cost": {"before": asdict(before), "after": asdict(after)}}
    if config.method == UNSTRUCTURED:
        savings["estimated_time_ratio"] = {"value": round(estimated_time_ratio(before, after), 4), "is": ESTIMATE}
    return savings


def savings_of(bundle: Bundle) -> tuple[Cost, Cost]:
    """Return the cost before and after pruning from a pruned bundle's contract."""
    cost = bundle.contract.compression["settings"]["cost"]
    return Cost(**cost["before"]), Cost(**cost["after"])
