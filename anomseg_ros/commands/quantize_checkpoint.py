"""What `anomseg quantize` does with a checkpoint: fine-tuning for int8, and the program for PyTorch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from anomseg_ros.commands import options
from anomseg_ros.compression.calibration import Calibration
from anomseg_ros.compression.qat import FineTuneConfig, Progress, fine_tune
from anomseg_ros.compression.quantize_onnx import AUTO, NONE, QuantizeConfig
from anomseg_ros.compression.quantize_torch import CALIBRATIONS, TorchQuantizeConfig, quantize_torch, save_program
from anomseg_ros.compression.reexport import export_config_of, require_same_checkpoint
from anomseg_ros.core.bundle import GRAPH_FILE, TORCH_FILE, Bundle, Contract, Provenance, sha256_of
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import CompressionError, ConfigError
from anomseg_ros.export import export_network
from anomseg_ros.networks.base import SegmentationNetwork
from anomseg_ros.networks.checkpoints import load_checkpoint, save_checkpoint

CHECKPOINT_FILE = "checkpoint.safetensors"
"""The fine-tuned weights, kept in the bundle: it could not be made again without them."""


def check_options(args: argparse.Namespace, parent: Bundle) -> None:
    """Refuse options that do not go together, a missing checkpoint or another one's. Raises ConfigError and others."""
    if args.fine_tune < 0:
        raise ConfigError(f"--fine-tune {args.fine_tune}: expected a number of steps, 0 for none")
    if args.checkpoint is None:
        asking = "--backend torch" if args.backend == "torch" else "--fine-tune"
        raise ConfigError(f"{asking} needs the weights in torch: give --checkpoint FILE, what {args.bundle} is from")
    require_same_checkpoint(parent, args.checkpoint)
    if args.backend == "torch":
        _refuse_options_of_onnx(args)


def fine_tuned(args: argparse.Namespace, parent: Bundle, tensors: Sequence[RgbImage], progress: Progress) -> Any:
    """Return the network of the checkpoint, fine-tuned where that was asked for, and the settings of that."""
    contract = parent.contract
    network = load_checkpoint(args.checkpoint, contract.network, len(contract.classes))
    if not args.fine_tune:
        return network, {}
    config = FineTuneConfig(steps=args.fine_tune, learning_rate=args.learning_rate, seed=args.seed)
    made = fine_tune(network, tensors, config, progress)
    losses = {"loss_before": float(f"{made.loss_before:.4g}"), "loss_after": float(f"{made.loss_after:.4g}")}
    return made.network, {"fine_tuning": {**asdict(config), **losses}}


def write_checkpoint(
    network: SegmentationNetwork, parent: Bundle, settings: dict[str, Any], folder: Path
) -> tuple[Path, Provenance]:
    """Write the fine-tuned weights; return the file, and the provenance of a bundle that is from it."""
    path = folder / CHECKPOINT_FILE
    save_checkpoint(path, network, {**network.checkpoint_metadata, "fine_tuning": settings["fine_tuning"]})
    provenance = parent.contract.provenance
    return path, replace(provenance, source_checkpoint=CHECKPOINT_FILE, source_sha256=sha256_of(path))


def export_float_graph(network: SegmentationNetwork, contract: Contract, provenance: Provenance, folder: Path) -> Path:
    """Return the float ONNX graph of a network, with the inputs and outputs of a contract."""
    made, _ = export_network(network, contract.network, export_config_of(contract), folder / "float", provenance)
    return made.require_program(GRAPH_FILE)


def write_program(
    args: argparse.Namespace,
    network: SegmentationNetwork,
    contract: Contract,
    tensors: Sequence[RgbImage],
    folder: Path,
    progress: Progress,
) -> tuple[Path, str, dict[str, Any]]:
    """Quantize for PyTorch; return the program's file, the method in words and its settings."""
    kept = () if args.keep_float in (AUTO, NONE) else options.names(args.keep_float)
    config = TorchQuantizeConfig(args.torch_method, args.calibration, kept)
    if contract.input.channel_order != "rgb":
        raise CompressionError(f"bundle {contract.name!r} takes {contract.input.channel_order}, only rgb is exported")
    made = quantize_torch(network, export_config_of(contract), tensors, config, progress)
    path = save_program(made.program, folder / TORCH_FILE)
    layers = f"{len(made.float_layers)} of {made.layers} layers in float"
    method = f"int8 static, torch {args.torch_method}, {args.calibration}, {layers}"
    return path, method, {**asdict(config), "float_layers": list(made.float_layers)}


def _refuse_options_of_onnx(args: argparse.Namespace) -> None:
    defaults = QuantizeConfig()
    given = {
        "--target": args.target != defaults.target,
        "--percentile": args.percentile != Calibration().percentile,
        "--no-equalize": args.no_equalize,
        "--no-compensate": args.no_compensate,
        f"--calibration {args.calibration}": args.calibration not in CALIBRATIONS,
    }
    wrong = [name for name, was_given in given.items() if was_given]
    if wrong:
        raise ConfigError(f"{', '.join(wrong)}: only for --backend onnxruntime; leave it out for torch")
