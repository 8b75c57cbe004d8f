"""`anomseg prune`: a smaller bundle of a float one, fine-tuned where asked for, and what that cost and saved."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from anomseg_ros.bench.results import Entry
from anomseg_ros.commands import options
from anomseg_ros.commands.drift_options import add_guard, drift_rows, print_outcome, tolerance
from anomseg_ros.commands.evaluate import ProgressLines
from anomseg_ros.commands.fine_tune import FineTune, fine_tune
from anomseg_ros.compression.drift import Tolerance
from anomseg_ros.compression.frames import drawn_frames
from anomseg_ros.compression.prune import METHODS, SCOPES, UNSTRUCTURED, PruneConfig, estimated_time_ratio, prune
from anomseg_ros.compression.pruned_bundle import (
    CHECKPOINT_FILE,
    ESTIMATE,
    PRUNED_TOLERANCE,
    Guard,
    load_parent_network,
    savings_of,
    time_against_parent,
    write_pruned_bundle,
)
from anomseg_ros.compression.structured import OF
from anomseg_ros.core.bundle import Bundle, check_target, load_bundle
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.errors import CheckpointError, ConfigError

FRAMES_HELP = "what the camera sees, to measure the drift on: folders of images, or datasets as NAME=PATH"
GUARD_TEXT = (
    "What the bundle may lose against its parent; beyond it nothing is written. More than quantizing may: a pruned and "
    "fine-tuned network is another network for the same task, not a rounded one. Give --dataset to hold it to points "
    "of AuPRC, FPR95 and mIoU, which are what counts."
)


def main(argv: Sequence[str]) -> int:
    """Prune, fine-tune, measure, and write the bundle if it is close enough to its parent; returns 0."""
    parser = _parser()
    args = parser.parse_args(argv)
    config = PruneConfig(args.method, args.fraction, args.of, args.round_to, args.scope)
    tuning = None if args.fine_tune is None else FineTune(args.fine_tune, tuple(args.set))
    parent = load_bundle(find_bundle(args.bundle))
    check_output(args, parent, args.output)
    if tuning is None and (args.set or args.data):
        raise ConfigError("--set and --data are for fine-tuning; give --fine-tune CONFIG as well")
    bundle = prune_bundle(args, parent, config, tuning, args.output, shlex.join(["anomseg", "prune", *argv]))
    print_pruned(bundle, parent, config, args)
    return 0


def prune_bundle(
    args: argparse.Namespace,
    parent: Bundle,
    config: PruneConfig,
    tuning: FineTune | None,
    output: Path,
    command: str,
) -> Bundle:
    """Return the written bundle. args: those of add_common_options."""
    limits = tolerance(args, PRUNED_TOLERANCE)
    contract = parent.contract
    size_px = (contract.input.height_px, contract.input.width_px)
    network = load_parent_network(parent, find_checkpoint(args.checkpoint, parent))
    with ProgressLines() as lines:
        frames = drawn_frames(args.frames, args.held_out_frames, seed=args.seed, progress=lines)
    pruned = prune(network, config, size_px)
    settings: dict[str, object] = {}
    provenance = replace(contract.provenance, command=command)
    if tuning is not None:
        pruned, settings = fine_tune(pruned, config, contract, tuning, args.data, run_folder(output))
    with ProgressLines() as lines:
        return write_pruned_bundle(
            parent,
            pruned,
            config,
            Guard(frames, args.dataset, limits, args.allow_partial, args.accept_drift),
            provenance,
            output,
            settings=settings,
            overwrite=args.overwrite,
            threads=args.threads,
            progress=lines,
        )


def run_folder(output: Path) -> Path:
    """Return where the fine-tuning run of a bundle is: beside it, so that a killed one goes on."""
    return output.with_name(f"{output.name}.fine-tune")


def find_checkpoint(given: Path | None, parent: Bundle) -> Path:
    """Return the checkpoint given, or the one that lies in the bundle's folder. Raises CheckpointError."""
    path = given or parent.directory / CHECKPOINT_FILE
    if not path.is_file():
        where = f"{path} does not exist" if given else f"{parent.directory} holds no {CHECKPOINT_FILE}"
        raise CheckpointError(f"{where}; give --checkpoint, the file that {parent.contract.name!r} was exported from")
    return path


def check_output(args: argparse.Namespace, parent: Bundle, output: Path) -> None:
    """Refuse what cannot work before anything is computed."""
    if output.resolve() == parent.directory.resolve():
        raise ConfigError(f"--output {str(output)!r} is the bundle itself, which is never changed; name another")
    if args.rounds < 0:
        raise ConfigError(f"--rounds {args.rounds}: expected 0 (no timing) or more")
    tolerance(args)
    check_target(output, args.overwrite)


def add_common_options(parser: argparse.ArgumentParser, limits: Tolerance | None = PRUNED_TOLERANCE) -> None:
    """Add what `prune` and `compress` share. limits: of the drift guard, None: those of each step."""
    parser.add_argument("bundle", help="float bundle: directory, or name of a shipped one")
    parser.add_argument(
        "--checkpoint", type=Path, help=f"file that the bundle was exported from (default: its own {CHECKPOINT_FILE})"
    )
    parser.add_argument("--frames", nargs="+", required=True, metavar="FOLDER|NAME=PATH", help=FRAMES_HELP)
    parser.add_argument("--output", type=Path, required=True, help="directory of the new bundle")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    parser.add_argument("--data", help="folder of the fine-tuning configuration's dataset (data.path)")
    parser.add_argument("--held-out-frames", type=int, default=16, help="frames to measure on, at most")
    parser.add_argument("--seed", type=int, default=0, help="which frames are drawn")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of timing against the parent, 0 for none")
    parser.add_argument("--threads", type=int, default=0, help="processor threads for measuring; 0 = one per core")
    add_guard(parser, limits, GUARD_TEXT)


def _parser() -> argparse.ArgumentParser:
    defaults = PruneConfig()
    parser = options.parser(
        "prune",
        "Remove channels of a network, or zero its weights, fine-tune it where asked for, compare the new bundle with "
        "its parent, and write it only if it is close enough.",
    )
    method_help = (
        "structured: channels of least L2 norm are removed, with all that they are coupled with; unstructured: single "
        "weights of least L1 norm become 0; masked: filters of least L2 norm become 0. The latter two save no time"
    )
    parser.add_argument("--method", choices=METHODS, default=defaults.method, help=method_help)
    parser.add_argument("--fraction", type=float, default=defaults.fraction, help="how much, more than 0, less than 1")
    of_help = "structured: what the fraction is a share of: each layer's channels, or all multiply-adds"
    parser.add_argument("--of", choices=OF, default=defaults.of, help=of_help)
    round_help = "structured: widths become multiples of it, which kernels work on; 1 for the exact fraction"
    parser.add_argument("--round-to", type=int, default=defaults.round_to, help=round_help)
    scope_help = "unstructured: the smallest weights of all layers together, or of each layer"
    parser.add_argument("--scope", choices=SCOPES, default=defaults.scope, help=scope_help)
    tune_help = "training configuration to fine-tune by: YAML file or name of a shipped one (default: no fine-tuning)"
    parser.add_argument("--fine-tune", metavar="CONFIG", help=tune_help)
    set_help = "change a setting of the fine-tuning, such as run.epochs=10"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=set_help)
    add_common_options(parser)
    return parser


def print_pruned(bundle: Bundle, parent: Bundle, config: PruneConfig, args: argparse.Namespace) -> None:
    """Print what was saved, what it cost and, with rounds, how much faster it is."""
    before, after = savings_of(bundle)
    table = Table(title=f"{bundle.contract.name}: {config.words()}", title_justify="left")
    for heading in ("measure", "before", "after"):
        table.add_column(heading, justify="left" if heading == "measure" else "right")
    table.add_row("parameters", f"{before.parameters:,}", f"{after.parameters:,}")
    table.add_row("parameters other than 0", f"{before.nonzero_parameters:,}", f"{after.nonzero_parameters:,}")
    table.add_row("multiply-adds", f"{before.multiply_adds / 1e9:.3f} G", f"{after.multiply_adds / 1e9:.3f} G")
    effective = [f"{cost.effective_multiply_adds / 1e9:.3f} G" for cost in (before, after)]
    table.add_row("effective multiply-adds (without zeros)", *effective)
    if args.rounds:
        with ProgressLines() as lines:
            _add_times(table, time_against_parent(parent, bundle, args.rounds, args.threads, lines))
    if config.method == UNSTRUCTURED:
        table.add_row("time, ESTIMATE as papers give it", "100 %", f"{100 * estimated_time_ratio(before, after):.1f} %")
        table.caption = f"The estimate is an {ESTIMATE}. Dense kernels save nothing."
    for row in drift_rows(bundle.contract.compression["drift"]):
        table.add_row(*row)
    print_outcome(bundle, table)


def _add_times(table: Table, entries: tuple[Entry, Entry]) -> None:
    before, after = entries
    table.add_row("time, measured: p50", *(f"{entry.latency_ms['p50']:.1f} ms" for entry in entries))
    ratio = after.speedup[before.title]
    speed = f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
    table.add_row("times as fast, measured in turns", "1", speed)
