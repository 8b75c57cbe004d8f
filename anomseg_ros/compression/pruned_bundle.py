"""A bundle and its checkpoint to a pruned bundle: export, drift against the parent, and what was saved."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from anomseg_ros.backends.options import BackendOptions
from anomseg_ros.bench.candidates import candidates_of
from anomseg_ros.bench.measure import Extras, measure
from anomseg_ros.bench.results import Entry
from anomseg_ros.bench.rounds import Stop
from anomseg_ros.compression.cost import Cost, graph_cost
from anomseg_ros.compression.drift import Progress, Tolerance, compressed_contract, measure_drift, require
from anomseg_ros.compression.prune import UNSTRUCTURED, PruneConfig, checkpoint_metadata, estimated_time_ratio
from anomseg_ros.compression.reexport import export_config_of, require_same_checkpoint
from anomseg_ros.core.bundle import Bundle, Contract, Provenance, sha256_of
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import CheckpointError, CompressionError, ExportError
from anomseg_ros.export import check_parity, export_network
from anomseg_ros.networks.base import SegmentationNetwork
from anomseg_ros.networks.checkpoints import load_checkpoint, save_checkpoint

CHECKPOINT_FILE = "checkpoint.safetensors"
ESTIMATE = "estimate, not measured: multiply-adds with weights other than 0 / all multiply-adds"
REMEDY = "prune less, fine-tune longer or on more frames (--fine-tune), allow more (--label-agreement, --max-miou …)"

PRUNED_TOLERANCE = Tolerance(
    label_agreement=0.9, rank_correlation=0.8, auprc_points=3.0, fpr95_points=5.0, miou_points=3.0
)
"""What pruning may cost. An int8 graph is its parent with rounding; a pruned and fine-tuned network is another network
for the same task, whose borders lie elsewhere and whose scores rank pixels of one class otherwise. What counts is what
is measured on labelled frames; this project allows 3 points of mIoU for a network that lost 30 % of its channels."""


@dataclass(frozen=True)
class Guard:
    """What the drift is measured on, and how much is allowed. frames: uint8 (H, W, 3) RGB of any size."""

    frames: Sequence[RgbImage]
    datasets: Sequence[str] = ()
    tolerance: Tolerance = PRUNED_TOLERANCE
    allow_partial: bool = False
    accept: bool = False


def load_parent_network(parent: Bundle, checkpoint: Path) -> SegmentationNetwork:
    """Return the network that a float bundle was exported from.

    Raises CompressionError for an int8 bundle, CheckpointError for a file that is not the bundle's: by its digest or,
    for a bundle that names none, by what it computes.
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
    parent: Bundle,
    network: SegmentationNetwork,
    config: PruneConfig,
    guard: Guard,
    provenance: Provenance,
    output: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    threads: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> Bundle:
    """Export a pruned network, compare it with its parent, and write the bundle with its checkpoint.

    settings: what is kept beside the pruning's own. Raises CompressionError, and writes nothing, where too much was
    lost; ExportError where the graph is wrong.
    """
    with tempfile.TemporaryDirectory(prefix="anomseg-") as folder:
        checkpoint = Path(folder) / CHECKPOINT_FILE
        save_checkpoint(checkpoint, network, {**network.checkpoint_metadata, **checkpoint_metadata(config)})
        provenance = replace(provenance, source_checkpoint=CHECKPOINT_FILE, source_sha256=sha256_of(checkpoint))
        export = replace(export_config_of(parent.contract), name=output.resolve().name)

        def guarded(exported: Bundle) -> Contract:
            drift = measure_drift(
                parent,
                exported,
                guard.frames,
                guard.datasets,
                guard.tolerance,
                allow_partial=guard.allow_partial,
                options=BackendOptions(threads=threads),
                progress=progress,
            )
            found = require(drift, guard.accept, REMEDY)
            kept = {**_own_settings(config), **_savings(config, parent, exported), **(settings or {})}
            contract = compressed_contract(parent, parent.contract.precision, config.words(), kept, found)
            return replace(contract, name=export.name, provenance=provenance)

        bundle, _ = export_network(
            network,
            parent.contract.network,
            export,
            output,
            provenance,
            overwrite=overwrite,
            files={CHECKPOINT_FILE: checkpoint},
            finish=guarded,
        )
        return bundle


def time_against_parent(
    parent: Bundle, child: Bundle, rounds: int, threads: int, progress: Progress
) -> tuple[Entry, Entry]:
    """Return the times of both, measured in turns in ONNX Runtime; the child's speedup is against the parent."""
    candidates = candidates_of([parent.directory, child.directory], ["onnxruntime"], [threads])
    measured = measure(candidates, (), Stop(rounds=rounds), Extras(memory=False, cost_of=graph_cost), progress)
    before, after = measured.entries
    return before, after


def is_pruned_from(bundle: Bundle, parent: Bundle, config: PruneConfig) -> bool:
    """Return whether a bundle was made from this parent by this configuration."""
    compression = bundle.contract.compression
    settings = compression.get("settings", {})
    same = all(settings.get(name) == value for name, value in _own_settings(config).items())
    return same and compression.get("parent", {}).get("sha256") == parent.contract.program_sha256


def _own_settings(config: PruneConfig) -> dict[str, Any]:
    """Return the settings that the method reads."""
    plain = asdict(config)
    unused = {"structured": ("scope",), "unstructured": ("of", "round_to"), "masked": ("of", "round_to", "scope")}
    return {name: value for name, value in plain.items() if name not in unused[config.method]}


def _savings(config: PruneConfig, parent: Bundle, draft: Bundle) -> dict[str, Any]:
    before, after = graph_cost(parent.graph_path), graph_cost(draft.graph_path)
    found: dict[str, Any] = {"cost": {"before": asdict(before), "after": asdict(after)}}
    if config.method == UNSTRUCTURED:
        found["estimated_time_ratio"] = {"value": round(estimated_time_ratio(before, after), 4), "is": ESTIMATE}
    return found


def savings_of(bundle: Bundle) -> tuple[Cost, Cost]:
    """Return the cost before and after that a pruned bundle's contract holds."""
    cost = bundle.contract.compression["settings"]["cost"]
    return Cost(**cost["before"]), Cost(**cost["after"])
