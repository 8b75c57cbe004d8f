"""The checkpoint of a bundle again: as a torch graph, or as a bundle of another input size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from anomseg_ros.core.bundle import Bundle, Contract, sha256_of
from anomseg_ros.core.labels import LABEL_SETS
from anomseg_ros.errors import CheckpointError, ConfigError
from anomseg_ros.export import ExportConfig, export_network
from anomseg_ros.networks.checkpoints import load_checkpoint


def export_config_of(contract: Contract, scores: Sequence[str] | None = None) -> ExportConfig:
    """Return the export configuration that gives a bundle with this contract. Raises ConfigError for own classes."""
    known = {info for index, info in enumerate(contract.classes) if index != contract.void_class}
    fitting = [name for name, classes in LABEL_SETS.items() if set(classes) == known]
    if not fitting:
        raise ConfigError(
            f"bundle {contract.name!r} has classes of no known label set ({', '.join(LABEL_SETS)}); its checkpoint can "
            "only be exported where it came from"
        )
    return ExportConfig(
        name=contract.name,
        num_classes=len(contract.classes),
        void_class=contract.void_class,
        label_set=fitting[0],
        height_px=contract.input.height_px,
        width_px=contract.input.width_px,
        resize=contract.input.resize,
        scores=tuple(contract.score_names if scores is None else scores),
        temperature=contract.temperature,
        channel_order=contract.input.channel_order,
    )


def require_same_checkpoint(bundle: Bundle, checkpoint: Path) -> None:
    """Raise CheckpointError where the bundle was exported from another file, or a file that is not there."""
    if not checkpoint.is_file():
        raise CheckpointError(f"{checkpoint} does not exist; give the checkpoint that {bundle.contract.name!r} is from")
    expected = bundle.contract.provenance.source_sha256
    if expected is not None and sha256_of(checkpoint) != expected:
        raise CheckpointError(
            f"{checkpoint} is not what bundle {bundle.contract.name!r} was exported from "
            f"({bundle.contract.provenance.source_checkpoint}, sha256 {expected[:12]}…); give that file"
        )


def export_at_size(
    bundle: Bundle, checkpoint: Path, height_px: int, width_px: int, output: Path, *, overwrite: bool = True
) -> Bundle:
    """Write the bundle that the same checkpoint gives at another input size; `bundle` itself is not touched.

    Thresholds and measured quality are left out: they hold at one size. Raises CheckpointError, ExportError.
    """
    require_same_checkpoint(bundle, checkpoint)
    contract = bundle.contract
    network = load_checkpoint(checkpoint, contract.network, len(contract.classes))
    name = f"{contract.name}-{height_px}x{width_px}"
    config = replace(export_config_of(contract), name=name, height_px=height_px, width_px=width_px)
    exported, _ = export_network(network, contract.network, config, output, contract.provenance, overwrite=overwrite)
    return exported
