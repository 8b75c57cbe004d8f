"""`anomseg calibrate temperature`: fit T of softmax(z / T) on labelled frames, and export the bundle again."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from anomseg_ros.commands import options
from anomseg_ros.commands.calibrate_score import without_scores
from anomseg_ros.commands.progress_lines import ProgressLines
from anomseg_ros.compression.reexport import export_again, export_config_of, load_float_network
from anomseg_ros.core.bundle import Bundle, Contract, load_bundle
from anomseg_ros.core.labels import same_classes
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.datasets import open_named
from anomseg_ros.datasets.check import check
from anomseg_ros.datasets.dataset import Dataset
from anomseg_ros.deploy import fit_temperature
from anomseg_ros.errors import DatasetError
from anomseg_ros.export import ExportConfig
from anomseg_ros.metrics.reliability import FittedTemperature
from anomseg_ros.scores import SCORES, find_score

COMMAND = ("anomseg", "calibrate", "temperature")


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg calibrate temperature`."""
    parser = options.parser(
        "calibrate temperature",
        "Fit the temperature of least NLL (Guo et al. 2017) on labelled frames, and export the bundle again with it.",
    )
    parser.add_argument("bundle", help="bundle that was exported from the checkpoint")
    checkpoint_help = "file that the bundle was exported from; its graph outputs no logits"
    parser.add_argument("--checkpoint", required=True, type=Path, help=checkpoint_help)
    parser.add_argument("--dataset", required=True, metavar="NAME=PATH", help="frames with semantic labels")
    parser.add_argument("--stride", type=int, default=4, help="use every n-th row and column")
    options.add_changed_bundle(parser)
    parser.add_argument("--allow-partial", action="store_true", help=options.ALLOW_PARTIAL_HELP)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Fit, write the bundle, and print the old and new values; return 0."""
    args = argument_parser().parse_args(argv)
    bundle = load_bundle(find_bundle(args.bundle))
    options.check_changed_bundle(args, bundle)
    network = load_float_network(bundle, args.checkpoint, "temperature")
    config = export_config_of(bundle.contract)
    dataset = _open_labelled(args.dataset, config, args.allow_partial)
    with ProgressLines() as lines:
        fit = fit_temperature(network, bundle.contract, dataset, args.stride, lines)
    config = replace(config, temperature=fit.temperature)
    change = partial(_with_temperature, temperature=fit.temperature, command=shlex.join([*COMMAND, *(argv or [])]))
    new_bundle = export_again(bundle, network, config, change, args.output, overwrite=args.overwrite)
    _print(bundle.contract, new_bundle, fit)
    return 0


def _open_labelled(text: str, config: ExportConfig, allow_partial: bool) -> Dataset:
    dataset = open_named(text)
    if dataset.classes is None:
        raise DatasetError(f"{dataset.name} in {dataset.path!r} has no semantic labels, which the temperature needs")
    if not same_classes(dataset.classes, config.known()):
        raise DatasetError(
            f"{dataset.name} in {dataset.path!r} has the classes of {dataset.label_set!r}, the bundle those of "
            f"{config.label_set!r}; fit the temperature on frames that are labelled with the bundle's classes"
        )
    check(dataset).require(allow_partial)
    return dataset


def _with_temperature(contract: Contract, temperature: float, command: str) -> Contract:
    """Return the contract with another temperature, without thresholds and quality of scores that depend on it."""
    contract = without_scores(contract, [name for name in SCORES if find_score(name).uses_temperature])
    commands = (contract.provenance.command or "").split("; ")
    other_commands = [part for part in commands if part and not part.startswith(" ".join(COMMAND))]
    provenance = replace(contract.provenance, command="; ".join([*other_commands, command]))
    return replace(contract, temperature=temperature, provenance=provenance)


def _print(before: Contract, new_bundle: Bundle, fit: FittedTemperature) -> None:
    console = Console()
    after = new_bundle.contract
    change = f"{after.name}: temperature {before.temperature:g} -> {fit.temperature:.4f}"
    nll = f"NLL {fit.nll_before:.4f} at 1 -> {fit.nll:.4f} nats per pixel over {fit.pixels} pixels"
    console.print(f"{change}; {nll}; written to {new_bundle.directory}", soft_wrap=True, highlight=False)
    for score in before.thresholds:
        if score not in after.thresholds:
            console.print(f"the thresholds of {score} depended on the temperature: run anomseg calibrate threshold")
    for name in before.quality.keys() - after.quality.keys():
        console.print(f"the quality on {name} depended on the temperature and was removed: run anomseg evaluate")
