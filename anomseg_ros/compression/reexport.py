"""Export the checkpoint of a bundle again: with fitted scores or a temperature, at another size, or for a GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from anomseg_ros.core.bundle import GPU, TORCH_FILE, Bundle, Contract, change_bundle, sha256_of
from anomseg_ros.core.labels import LABEL_SETS, known_classes, same_classes
from anomseg_ros.errors import CheckpointError, CompressionError
from anomseg_ros.export import ExportConfig, export_network, random_frames, write_programs
from anomseg_ros.networks.checkpoints import load_checkpoint
from anomseg_ros.networks.network import SegmentationNetwork
from anomseg_ros.parity import check_parity


def export_config_of(contract: Contract, scores: Sequence[str] | None = None) -> ExportConfig:
    """Return the export configuration of a bundle with this contract, whose classes may be anyone's own."""
    classes = known_classes(contract.classes, contract.void_class)
    published = [name for name, label_set in LABEL_SETS.items() if same_classes(label_set, classes)]
    return ExportConfig(
        name=contract.name,
        num_classes=len(contract.classes),
        void_class=contract.void_class,
        label_set=published[0] if published else f"of {contract.name}",
        known_classes=classes,
        height_px=contract.input.height_px,
        width_px=contract.input.width_px,
        resize=contract.input.resize,
        scores=tuple(contract.score_names if scores is None else scores),
        temperature=contract.temperature,
        channel_order=contract.input.channel_order,
        target=contract.target,
        torch_program=contract.precision == "fp32" and TORCH_FILE in contract.files,
    )


def require_same_checkpoint(bundle: Bundle, checkpoint: Path) -> None:
    """Raise CheckpointError where the file does not exist or the bundle was exported from another file."""
    if not checkpoint.is_file():
        raise CheckpointError(f"{checkpoint} does not exist; give the checkpoint that {bundle.contract.name!r} is from")
    expected = bundle.contract.provenance.source_sha256
    if expected is not None and sha256_of(checkpoint) != expected:
        raise CheckpointError(
            f"{checkpoint} is not what bundle {bundle.contract.name!r} was exported from "
            f"({bundle.contract.provenance.source_checkpoint}, sha256 {expected[:12]}…); give that file"
        )


def load_float_network(bundle: Bundle, checkpoint: Path, what: str) -> SegmentationNetwork:
    """Return the network that a bundle was exported from; `what` names the thing to fit, for messages.

    Raises CheckpointError for another file, CompressionError for a bundle that is not float, whose programs the
    checkpoint's would replace.
    """
    contract = bundle.contract
    if contract.precision != "fp32":
        raise CompressionError(
            f"bundle {contract.name!r} is {contract.precision}, the checkpoint's graph is not; fit the {what} of "
            "the float bundle that it was made from, then quantize that"
        )
    require_same_checkpoint(bundle, checkpoint)
    return load_checkpoint(checkpoint, contract.network, len(contract.classes))


def export_again(
    bundle: Bundle,
    network: SegmentationNetwork,
    config: ExportConfig,
    change: Callable[[Contract], Contract],
    output: Path | None,
    *,
    files: Mapping[str, Path] | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle with the programs that a network gives and a changed contract, checked before it is in place.

    Args:
        bundle: what is changed.
        network: of the bundle, perhaps with further fitted scores.
        config: how to export it.
        change: see change_bundle.
        output: where the changed copy goes; None changes the bundle itself.
        files: name -> source of further files to replace or add.
        overwrite: replace a bundle at `output`.

    Raises:
        ExportError: the graph does not compute what the network does.
        BundleError: see change_bundle. Nothing is changed after an error.
    """

    def checked(exported: Bundle) -> Contract:
        check_parity(exported, network, random_frames(config))
        return exported.contract

    with tempfile.TemporaryDirectory(prefix="anomseg-") as folder:
        written = {**write_programs(network, config, Path(folder)), **(files or {})}
        return change_bundle(bundle, change, output, files=written, overwrite=overwrite, finish=checked)


def export_at_size(bundle: Bundle, checkpoint: Path, height_px: int, width_px: int, output: Path) -> Bundle:
    """Write the bundle of the same checkpoint at another input size, over an older one; `bundle` does not change.

    Thresholds and measured quality are left out: they are valid for one size. Raises CheckpointError, ExportError.
    """
    require_same_checkpoint(bundle, checkpoint)
    contract = bundle.contract
    network = load_checkpoint(checkpoint, contract.network, len(contract.classes))
    name = f"{contract.name}-{height_px}x{width_px}"
    config = replace(export_config_of(contract), name=name, height_px=height_px, width_px=width_px)
    exported, _ = export_network(network, contract.network, config, output, contract.provenance, overwrite=True)
    return exported


def export_for_gpu(bundle: Bundle, checkpoint: Path, output: Path, *, overwrite: bool = False) -> Bundle:
    """Write a float bundle with a graph in the form for GPUs; thresholds, temperature and quality are kept.

    Raises CheckpointError for another file than the bundle was exported from, CompressionError for a bundle that is not
    float, ExportError, BundleError.
    """
    network = load_float_network(bundle, checkpoint, "form for GPUs")
    config = replace(export_config_of(bundle.contract), target=GPU)
    return export_again(
        bundle, network, config, lambda contract: replace(contract, target=GPU), output, overwrite=overwrite
    )
