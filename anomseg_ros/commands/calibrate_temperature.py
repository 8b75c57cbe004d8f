"""`anomseg calibrate temperature`: learn T of softmax(z / T) on labelled frames and export the checkpoint with it."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from anomseg_ros.commands import options
from anomseg_ros.commands.evaluate import ProgressLines
from anomseg_ros.compression.reexport import export_config_of, require_same_checkpoint
from anomseg_ros.core.bundle import GRAPH_FILE, TORCH_FILE, Bundle, Contract, change_bundle, load_bundle
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.core.scores import SCORES
from anomseg_ros.datasets import open_named
from anomseg_ros.datasets.base import Dataset
from anomseg_ros.datasets.check import check
from anomseg_ros.deploy import fit_temperature
from anomseg_ros.errors import CompressionError, DatasetError
from anomseg_ros.export import ExportConfig, check_parity, random_frames, write_graph
from anomseg_ros.metrics.calibration import FittedTemperature
from anomseg_ros.networks.base import SegmentationNetwork
from anomseg_ros.networks.checkpoints import load_checkpoint

COMMAND = ("anomseg", "calibrate", "temperature")
TEMPERATURE_FREE = tuple(name for name, score in SCORES.items() if not score.uses_temperature)
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
    options.add_changed_bundle(parser)
    parser.add_argument("--allow-partial", action="store_true", help="accept fewer or more frames than published")
    args = parser.parse_args(argv)

    bundle = load_bundle(find_bundle(args.bundle))
    options.check_changed_bundle(args, bundle)
    _require_float(bundle)
    config = export_config_of(bundle.contract)
    network = _load_same(bundle, args.checkpoint, config)
    dataset = _open_labelled(args.dataset, config, args.allow_partial)
    with ProgressLines() as lines:
        fitted = fit_temperature(network, bundle.contract, dataset, args.stride, lines)
    config = replace(config, temperature=fitted.temperature)
    change = partial(_changed, temperature=fitted.temperature, command=shlex.join([*COMMAND, *(argv or [])]))
    written = _write(bundle, network, config, change, args.output, args.overwrite)
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


def _require_float(bundle: Bundle) -> None:
    """Refuse bundles whose program is not what the checkpoint gives: it would be replaced by the float graph."""
    contract = bundle.contract
    if contract.precision != "fp32":
        raise CompressionError(
            f"bundle {contract.name!r} is {contract.precision}, the checkpoint's graph is not; fit the temperature of "
            "the float bundle that it was made from, then quantize that"
        )
    if TORCH_FILE in contract.files:
        raise CompressionError(
            f"bundle {contract.name!r} has a {TORCH_FILE}, which holds the temperature as well; fit the temperature of "
            "the float bundle that it was made from, then make that file again"
        )


def _write(
    bundle: Bundle,
    network: SegmentationNetwork,
    config: ExportConfig,
    change: Callable[[Contract], Contract],
    output: Path | None,
    overwrite: bool,
) -> Bundle:
    def checked(exported: Bundle) -> Contract:
        check_parity(exported, network, random_frames(config))
        return exported.contract

    with tempfile.TemporaryDirectory(prefix="anomseg-") as folder:
        files = {GRAPH_FILE: write_graph(network, config, Path(folder))}
        return change_bundle(bundle, change, output, files=files, overwrite=overwrite, finish=checked)


def _changed(before: Contract, temperature: float, command: str) -> Contract:
    """Return the contract with another temperature, without what was measured of scores that it enters."""
    thresholds = {score: table for score, table in before.thresholds.items() if score in TEMPERATURE_FREE}
    quality = {
        name: figures
        for name, figures in before.quality.items()
        if not isinstance(figures, Mapping) or figures.get("score", TEMPERATURE_FREE[0]) in TEMPERATURE_FREE
    }
    made = [part for part in (before.provenance.command or "").split("; ") if not part.startswith(" ".join(COMMAND))]
    provenance = replace(before.provenance, command="; ".join([*filter(None, made), command]))
    return replace(before, temperature=temperature, thresholds=thresholds, quality=quality, provenance=provenance)


def _print(before: Contract, written: Bundle, fitted: FittedTemperature) -> None:
    console = Console()
    changed = f"{written.contract.name}: temperature {before.temperature:g} -> {fitted.temperature:.4f}"
    nll = f"NLL {fitted.nll_before:.4f} at 1 -> {fitted.nll:.4f} nats per pixel over {fitted.pixels} pixels"
    console.print(f"{changed}; {nll}; written to {written.directory}", soft_wrap=True, highlight=False)
    for score in _lost(before, written):
        console.print(f"the thresholds of {score} depended on the temperature: run anomseg calibrate threshold again")
    for name in before.quality.keys() - written.contract.quality.keys():
        console.print(f"the quality on {name} depended on the temperature and is left out: run anomseg evaluate again")


def _lost(before: Contract, written: Bundle) -> Iterator[str]:
    return (score for score in before.thresholds if score not in written.contract.thresholds)
