"""`anomseg compress`: prune, fine-tune and quantize by one recipe."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from anomseg_ros.commands import options, quantize
from anomseg_ros.commands.drift_options import given_bounds
from anomseg_ros.commands.fine_tune import FineTune
from anomseg_ros.commands.prune import add_common_options, check_output, print_pruned, prune_bundle
from anomseg_ros.compression.frames import draw_split
from anomseg_ros.compression.prune import PruneConfig
from anomseg_ros.compression.pruned_bundle import is_pruned_from
from anomseg_ros.compression.recipe import QuantizeStep, Recipe, load_recipe
from anomseg_ros.core.bundle import Bundle, load_bundle
from anomseg_ros.core.resources import find_bundle, share_directories
from anomseg_ros.errors import BundleError, ConfigError, closest_first

RECIPE_FOLDER = "config/compress"
COMMAND = "anomseg compress "
"""What the command lines in the provenance of bundles begin with."""


def main(argv: Sequence[str]) -> int:
    """Run the steps of a recipe, each against what the one before it made; returns 0."""
    args = _parser().parse_args(argv)
    recipe = load_recipe(find_recipe(args.recipe))
    original = parent = load_bundle(find_bundle(args.bundle))
    check_output(args, original, args.output)
    if recipe.quantize is not None:
        quantize.require_float(original)
        _check_frames(args, recipe.quantize)
    if recipe.prune is not None:
        parent = _pruned(args, recipe, recipe.prune, original, COMMAND + shlex.join(argv))
    if recipe.quantize is None:
        return 0
    words = _quantize_arguments(args, recipe.quantize, parent.directory)
    return quantize.main(words, None if parent is original else original)


def _pruned(args: argparse.Namespace, recipe: Recipe, config: PruneConfig, original: Bundle, command: str) -> Bundle:
    """Return what the first step makes, tell of it; one that an ended run of this recipe left is replaced."""
    output, step = args.output, recipe.fine_tune
    tuning = None if step is None else FineTune(step.config, (*step.set, *args.set))
    if recipe.quantize is not None:
        output = pruned_folder(args.output)
        overwrite = args.overwrite or _is_ours(output, original, config, tuning)
        args = argparse.Namespace(**{**vars(args), "overwrite": overwrite})
    check_output(args, original, output)
    pruned = prune_bundle(args, original, config, tuning, output, command)
    print_pruned(pruned, original, config, args)
    return pruned


def _is_ours(output: Path, original: Bundle, config: PruneConfig, tuning: FineTune | None) -> bool:
    """Return whether a bundle is what this command would make anew: one by hand may have been trained for days."""
    try:
        bundle = load_bundle(output)
    except BundleError:
        return False
    command = bundle.contract.provenance.command or ""
    if not command.startswith(COMMAND) or "; anomseg calibrate" in command:  # calibrated since
        return False
    kept = bundle.contract.compression.get("settings", {}).get("fine_tune")
    same = kept is None if tuning is None else kept is not None and kept["set"] == list(tuning.set)
    return same and is_pruned_from(bundle, original, config)


def _check_frames(args: argparse.Namespace, step: QuantizeStep) -> None:
    """Refuse frames that int8 cannot be calibrated on before the hours that come first."""
    draw_split(
        args.frames,
        step.calibration_frames,
        args.held_out_frames,
        seed=args.seed,
        allow_few=args.allow_few,
        measured=args.dataset,
    )


def pruned_folder(output: Path) -> Path:
    """Return where the pruned float bundle goes that a quantized one is made from."""
    return output.with_name(f"{output.name}-float")


def find_recipe(name_or_path: str) -> Path:
    """Return the file of a recipe given by path or by the name of a shipped one. Raises ConfigError."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if name_or_path in shipped:
        return shipped[name_or_path]
    known = ", ".join(closest_first(name_or_path, shipped))
    raise ConfigError(f"{name_or_path!r} is neither a file nor a shipped recipe; shipped: {known}")


def shipped_recipes() -> dict[str, Path]:
    """Return name -> file of the recipes that ship with the package."""
    found: dict[str, Path] = {}
    for folder in share_directories():
        for path in sorted((folder / RECIPE_FOLDER).glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def _quantize_arguments(args: argparse.Namespace, step: QuantizeStep, bundle: Path) -> list[str]:
    """Return the command line of the second step; bounds that were not given are those of `anomseg quantize`."""
    words = [str(bundle), f"--output={args.output}", *step.arguments(), *given_bounds(args)]
    words += [f"--held-out-frames={args.held_out_frames}", f"--seed={args.seed}", f"--threads={args.threads}"]
    flags = ("overwrite", "accept_drift", "allow_partial", "allow_few")
    words += [f"--{name.replace('_', '-')}" for name in flags if getattr(args, name)]
    words += ["--frames", *args.frames]
    return words + (["--dataset", *args.dataset] if args.dataset else [])


def _parser() -> argparse.ArgumentParser:
    parser = options.parser(
        "compress",
        "Prune, fine-tune and quantize by a recipe. With both pruning and quantization, the pruned float bundle is "
        "kept beside the output, as OUTPUT-float.",
    )
    parser.add_argument("recipe", help=f"YAML file, or the name of a shipped recipe ({RECIPE_FOLDER})")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the fine-tuning"
    )
    parser.add_argument("--allow-few", action="store_true", help="calibrate int8 on fewer frames than hold")
    add_common_options(parser, limits=None)
    return parser
