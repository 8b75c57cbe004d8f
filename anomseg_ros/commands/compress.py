"""`anomseg compress`: prune, fine-tune and quantize with one recipe."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

from anomseg_ros.commands import options
from anomseg_ros.commands.drift_options import ALLOW_FEW_HELP, bounds_of, guard_of, print_compressed, refusal_shown
from anomseg_ros.commands.progress_lines import ProgressLines
from anomseg_ros.commands.prune import add_common_options, check_rounds, print_pruned
from anomseg_ros.compression.compress import COMMAND, CompressRequest, CompressStep, compress
from anomseg_ros.compression.recipe import RECIPE_FOLDER, find_recipe, load_recipe
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.core.resources import find_bundle


def main(argv: Sequence[str]) -> int:
    """Run the steps of a recipe and compare each result with the previous one; return 0."""
    args = argument_parser().parse_args(argv)
    check_rounds(args.rounds)
    request = options.request_of(
        CompressRequest,
        args,
        recipe=load_recipe(find_recipe(args.recipe)),
        bundle=load_bundle(find_bundle(args.bundle)),
        guard=guard_of(args),
        bounds=bounds_of(args),
        command=COMMAND + shlex.join(argv),
    )
    with refusal_shown("before", "after"), ProgressLines() as lines:
        for step in compress(request, lines, lines.training):
            _print_step(step, args, lines)
    return 0


def _print_step(step: CompressStep, args: argparse.Namespace, lines: ProgressLines) -> None:
    if step.pruning is None:
        print_compressed(step.bundle, "float", "int8")
    else:
        print_pruned(step.bundle, step.parent, step.pruning, args.rounds, args.threads, lines)


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg compress`."""
    parser = options.parser(
        "compress",
        "Prune, fine-tune and quantize with a recipe. If the recipe both prunes and quantizes, the pruned float bundle "
        "is also written, as OUTPUT-float.",
    )
    parser.add_argument("recipe", help=f"YAML file, or the name of a shipped recipe ({RECIPE_FOLDER})")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the fine-tuning"
    )
    parser.add_argument("--allow-few", action="store_true", help=ALLOW_FEW_HELP)
    add_common_options(parser, limits=None)
    return parser
