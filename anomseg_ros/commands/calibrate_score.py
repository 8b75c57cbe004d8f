"""`anomseg calibrate score`: fit scores that have their own tensors on training frames, and export the bundle again."""

from __future__ import annotations

import argparse
import math
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from anomseg_ros.commands import options
from anomseg_ros.commands.progress_lines import ProgressLines
from anomseg_ros.compression.pruned_bundle import find_checkpoint
from anomseg_ros.compression.reexport import export_again, export_config_of, load_float_network
from anomseg_ros.core.bundle import CHECKPOINT_FILE, Bundle, Contract, load_bundle, sha256_of
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.datasets import open_named
from anomseg_ros.datasets.check import check
from anomseg_ros.deploy import fit_scores
from anomseg_ros.errors import ConfigError
from anomseg_ros.export import contract_of
from anomseg_ros.networks.checkpoints import save_checkpoint
from anomseg_ros.networks.network import SegmentationNetwork
from anomseg_ros.scores import fitted_names, start_fits


def main(argv: Sequence[str] | None = None) -> int:
    """Fit, then write the bundle with the scores in its graph and their tensors in its checkpoint; return 0."""
    args = argument_parser().parse_args(argv)
    if args.max_frames < 0:
        raise ConfigError(f"--max-frames {args.max_frames}: expected a number of frames, 0 for all")
    bundle = load_bundle(find_bundle(args.bundle))
    options.check_changed_bundle(args, bundle)
    fits = start_fits(args.score, bundle.contract.known_count, options_of(args.set))
    network = load_float_network(bundle, find_checkpoint(args.checkpoint, bundle), "score")
    dataset = open_named(args.dataset)
    check(dataset).require(args.allow_partial)
    count = min(args.max_frames or len(dataset), len(dataset))
    indices = np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist()
    with ProgressLines() as lines:
        fitted_scores = fit_scores(network, bundle.contract, fits, dataset, indices, lines)
    network.fitted_scores.update(fitted_scores)
    command = shlex.join(["anomseg", "calibrate", "score", *(argv or [])])
    new_bundle = write_fitted_bundle(bundle, network, args.score, command, args.output, args.overwrite)
    Console().print(
        f"{new_bundle.contract.name}: {', '.join(args.score)} fitted on {count} frames of {dataset.name}; written to "
        f"{new_bundle.directory}; run anomseg calibrate threshold to add their thresholds",
        soft_wrap=True,
        highlight=False,
    )
    return 0


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg calibrate score`."""
    parser = options.parser(
        "calibrate score",
        "Fit scores on frames that the network was trained on, and export the bundle again with them. The tensors are "
        "stored in the bundle's checkpoint.",
        {"--frames": "--max-frames"},
    )
    parser.add_argument("bundle", help="float bundle: directory or name of a shipped bundle")
    score_help = f"scores, comma separated, from {', '.join(fitted_names())}"
    parser.add_argument("--score", type=options.names, required=True, help=score_help)
    parser.add_argument("--dataset", required=True, metavar="NAME=PATH[:SPLIT]", help="training frames")
    frames_help = "largest number of frames to fit on, evenly spread; 0 = all"
    parser.add_argument("--max-frames", type=int, default=200, help=frames_help)
    set_help = "option of a fit, such as clusters=6; docs/scores.md lists them"
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help=set_help)
    parser.add_argument("--checkpoint", type=Path, help=options.CHECKPOINT_HELP)
    options.add_changed_bundle(parser)
    parser.add_argument("--allow-partial", action="store_true", help=options.ALLOW_PARTIAL_HELP)
    return parser


def options_of(texts: Sequence[str]) -> dict[str, float]:
    """Return name -> value of NAME=VALUE texts. Raises ConfigError for a text of another form."""
    options = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            options[name] = float(value)
        except ValueError:
            raise ConfigError(f"--set {text!r}: expected NAME=VALUE with a number, such as clusters=6") from None
        if not math.isfinite(options[name]):
            raise ConfigError(f"--set {text!r}: expected a finite number")
    return options


def write_fitted_bundle(
    bundle: Bundle,
    network: SegmentationNetwork,
    names: Sequence[str],
    command: str,
    output: Path | None,
    overwrite: bool,
) -> Bundle:
    """Write the bundle with additional fitted scores in its graph and checkpoint; return it.

    Args:
        bundle: the bundle to export again.
        network: its network with the fitted scores.
        names: names of the fitted scores; they follow the bundle's scores.
        command: command line for the provenance.
        output: directory of the copy; None changes the bundle itself.
        overwrite: replace an existing bundle at `output`.
    """
    config = export_config_of(bundle.contract, tuple(dict.fromkeys((*bundle.contract.score_names, *names))))
    with tempfile.TemporaryDirectory(prefix="anomseg-") as folder:
        checkpoint = Path(folder) / CHECKPOINT_FILE
        save_checkpoint(checkpoint, network, network.checkpoint_metadata)
        digest = sha256_of(checkpoint)

        def change(contract: Contract) -> Contract:
            commands = "; ".join(filter(None, [contract.provenance.command, command]))
            provenance = replace(
                contract.provenance, source_checkpoint=CHECKPOINT_FILE, source_sha256=digest, command=commands
            )
            outputs = contract_of(contract.network, config, provenance, network.fitted_scores).outputs
            return replace(without_scores(contract, names), outputs=outputs, provenance=provenance)

        files = {CHECKPOINT_FILE: checkpoint}
        return export_again(bundle, network, config, change, output, files=files, overwrite=overwrite)


def without_scores(contract: Contract, names: Sequence[str]) -> Contract:
    """Return the contract without thresholds and quality figures of some scores."""
    thresholds = {score: table for score, table in contract.thresholds.items() if score not in names}
    quality = {
        key: figures
        for key, figures in contract.quality.items()
        if not (isinstance(figures, Mapping) and figures.get("score") in names)
    }
    return replace(contract, thresholds=thresholds, quality=quality)
