"""`anomseg calibrate temperature`: learn T of softmax(z / T) on labelled frames and export the checkpoint with it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from anomseg_ros.commands import options
from anomseg_ros.commands.evaluate import ProgressLines
from anomseg_ros.compression.reexport import export_config_of, require_same_checkpoint
from anomseg_ros.core.bundle import Bundle, Contract, Provenance, load_bundle, save_bundle
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.datasets import open_named
from anomseg_ros.datasets.base import Dataset
from anomseg_ros.datasets.check import check
from anomseg_ros.deploy import fit_temperature
from anomseg_ros.errors import DatasetError
from anomseg_ros.export import ExportConfig, export_network
from anomseg_ros.metrics.calibration import FittedTemperature
from anomseg_ros.networks.base import SegmentationNetwork
from anomseg_ros.networks.checkpoints import load_checkpoint

TEMPERATURE_FREE = ("max_logit",)
"""Scores that the temperature does not enter: their thresholds stay true."""


def main(argv: Sequence[str] | None = None) -> int:
    """Fit, print before and after, and write the bundle; returns 0."""
    parser = options.parser(
        "calibrate temperature",
        "Learn the temperature of least NLL (Guo et al. 2017) on labelled frames and export the bundle again with it.",
    )
    parser.add_argument("bundle", help="bundle that was exported from the checkpoint")
    parser.add_argument("--checkpoint", required=True, type=Path, help="that checkpoint: a bundle holds no logits")
    parser.add_argument("--dataset", required=True, metavar="NAME=PATH", help="frames with semantic labels")
    parser.add_argument("--stride", type=int, default=4, help="use every n-th row and column")
    parser.add_argument("--output", type=Path, help="where to write the bundle (default: where it is)")
    parser.add_argument("--allow-partial", action="store_true", help="accept fewer or more frames than published")
    args = parser.parse_args(argv)

    bundle = load_bundle(find_bundle(args.bundle))
    config = export_config_of(bundle.contract)
    network = _load_same(bundle, args.checkpoint, config)
    dataset = _open_labelled(args.dataset, config, args.allow_partial)
    with ProgressLines() as lines:
        fitted = fit_temperature(network, bundle.contract, dataset, args.stride, lines)
    command = shlex.join(["anomseg", "calibrate", "temperature", *(argv or [])])
    written = _export(bundle, network, replace(config, temperature=fitted.temperature), args.output, command)
    _print(bundle.contract, written, fitted)
    return 0


def _load_same(bundle: Bundle, checkpoint: Path, config: ExportConfig) -> SegmentationNetwork:
    require_same_checkpoint(bundle, checkpoint)
    return load_checkpoint(checkpoint, bundle.contract.network, config.num_classes)


def _open_labelled(text: str, config: ExportConfig, allow_partial: bool) -> Dataset:
    dataset = open_named(text)
    if dataset.classes is None:
        raise DatasetError(f"{dataset.name} in {dataset.path!r} has no semantic labels; a temperature needs them")
    if dataset.label_set != config.label_set:
        raise DatasetError(
            f"{dataset.name} in {dataset.path!r} has the classes of {dataset.label_set!r}, the bundle those of "
            f"{config.label_set!r}; fit the temperature on frames labelled with the bundle's classes"
        )
    check(dataset).require(allow_partial)
    return dataset


def _export(
    bundle: Bundle, network: SegmentationNetwork, config: ExportConfig, output: Path | None, command: str
) -> Bundle:
    provenance: Provenance = replace(bundle.contract.provenance, command=command)
    target = output or bundle.directory
    kept = {score: table for score, table in bundle.contract.thresholds.items() if score in TEMPERATURE_FREE}
    exported, _ = export_network(network, bundle.contract.network, config, target, provenance, overwrite=True)
    contract = replace(exported.contract, thresholds=kept)
    return save_bundle(contract, {name: target / name for name in contract.files}, target, overwrite=True)


def _print(before: Contract, written: Bundle, fitted: FittedTemperature) -> None:
    console = Console()
    changed = f"{written.contract.name}: temperature {before.temperature:g} -> {fitted.temperature:.4f}"
    nll = f"NLL {fitted.nll_before:.4f} at 1 -> {fitted.nll:.4f} nats per pixel over {fitted.pixels} pixels"
    console.print(f"{changed}; {nll}; written to {written.directory}", soft_wrap=True, highlight=False)
    for score in _lost(before, written):
        console.print(f"the thresholds of {score} depended on the temperature: run anomseg calibrate threshold again")


def _lost(before: Contract, written: Bundle) -> Iterator[str]:
    return (score for score in before.thresholds if score not in written.contract.thresholds)
