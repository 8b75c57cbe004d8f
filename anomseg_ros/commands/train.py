"""`anomseg train`: train a network from a configuration and a dataset; write a checkpoint and a bundle."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from anomseg_ros.commands import options
from anomseg_ros.commands.progress_lines import ProgressLines, duration
from anomseg_ros.core.bundle import Bundle, Provenance
from anomseg_ros.core.progress import Progress
from anomseg_ros.datasets.dataset import Dataset, licence_of
from anomseg_ros.deploy import Deployment, deploy
from anomseg_ros.export import ExportConfig
from anomseg_ros.training.chain import CONFIG_FOLDER, find_config, train_chain
from anomseg_ros.training.config import DeployConfig, TrainConfig, load_config, read_plain
from anomseg_ros.training.folder import clear_folder
from anomseg_ros.training.loop import Result, open_sets
from anomseg_ros.training.processes import end_processes


def main(argv: Sequence[str]) -> int:
    """Run the configuration's training, after those that it builds on; then make the bundle. Return 0."""
    args = argument_parser().parse_args(argv)
    changes = [*args.set, *([f"data.path={args.data}"] if args.data else [])]
    config = _with_licence_of_the_frames(load_config(find_config(args.config), changes), find_config(args.config))
    output = args.output or Path("runs") / config.name
    if args.overwrite:
        clear_folder(output)
    with ProgressLines() as lines:
        result = train_chain(config, output, changes, args.resume or args.overwrite, lines.training)
        end_processes()
        if result.is_first_process and not args.no_bundle:
            command = shlex.join(["anomseg", "train", args.config, *(f"--set={change}" for change in args.set)])
            bundle = make_bundle(config, result, output / "bundle", command, lines)
    if result.is_first_process:
        print(f"{result.checkpoint}: mIoU {_percent(result.miou)} after {result.steps} steps, {_time_text(result)}")
        if not args.no_bundle:
            print(f"{bundle.directory}: {_verdict(result)}: temperature {bundle.contract.temperature:g}")
    return 0


def make_bundle(config: TrainConfig, result: Result, output: Path, command: str, progress: Progress) -> Bundle:
    """Export the trained network with temperature, thresholds and quality from the validation frames.

    Args:
        config: configuration of the training.
        result: its result.
        output: directory of the bundle; an existing bundle is replaced.
        command: command line for the provenance.
        progress: called after each frame.
    """
    data, settings = config.data, config.deploy
    training_set, held_out = open_sets(data)
    export = ExportConfig(
        name=config.name,
        num_classes=result.num_classes,
        void_class=result.void_class,
        label_set=str(held_out.label_set),
        known_classes=held_out.classes,
        height_px=settings.height_px or data.height_px,
        width_px=settings.width_px or data.width_px,
        scores=settings.scores,
    )
    training_data = _training_data_text(config, training_set, result)
    licence = _licence(config, training_set, result)
    provenance = Provenance(training_data=training_data, licence=licence, command=command)
    rates = settings.target_fprs if settings.calibrate else ()
    deployment = Deployment(config.network.name, result.checkpoint, export, provenance, rates)
    return deploy(deployment, held_out, output, progress)


def _with_licence_of_the_frames(config: TrainConfig, file: Path) -> TrainConfig:
    """Return a configuration without the licence that its file states for another dataset."""
    plain = read_plain(file)
    stated, dataset = (plain.get(group, {}).get(key) for group, key in (("deploy", "licence"), ("data", "dataset")))
    if dataset == config.data.dataset or stated != config.deploy.licence:
        return config
    print(
        f"note: {file.stem} states the licence of {dataset}, not of {config.data.dataset}; give --set deploy.licence=…"
    )
    return replace(config, deploy=replace(config.deploy, licence=DeployConfig().licence))


def _licence(config: TrainConfig, training_set: Dataset, result: Result) -> str:
    stated, own = config.deploy.licence, licence_of(training_set)
    if result.doubts.foreign:
        stated = f"unknown: the frames do not look like those of {training_set.name}; state their terms"
    if own:
        stated = f"frames: {own}" if stated == DeployConfig().licence else f"{stated}; frames: {own}"
    return stated


def _verdict(result: Result) -> str:
    reasons = result.doubts.sentences
    return f"written, not ready to deploy ({'; '.join(reasons)})" if reasons else "ready to deploy"


def _training_data_text(config: TrainConfig, training_set: Dataset, result: Result) -> str:
    text = f"{training_set.name} {training_set.split} ({len(training_set)} frames)"
    cut_paste = config.data.cut_paste
    if cut_paste.probability:
        names = ", ".join(Path(objects.source).name for objects in cut_paste.sources)
        text += f", outliers pasted into {cut_paste.probability:.0%} of them: {names} objects"
    return "; ".join([text, *result.doubts.sentences])


def _percent(share: float | None) -> str:
    return "not measured" if share is None else f"{share:.2%}"


def _time_text(result: Result) -> str:
    waiting = "" if result.waited is None else f", {result.waited:.1%} of it waiting for frames"
    return f"{duration(result.seconds)}{waiting}"


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg train`."""
    parser = options.parser(
        "train",
        "Train a network from a configuration, and write its checkpoint and bundle. An interrupted run can be resumed.",
    )
    parser.add_argument("config", help=f"YAML file, or the name of a shipped configuration ({CONFIG_FOLDER})")
    parser.add_argument("--data", help="folder of the configuration's dataset (data.path)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting, such as run.epochs=3"
    )
    parser.add_argument("--output", type=options.output_folder, help="folder of the run (default: runs/NAME)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output, if there is one")
    parser.add_argument("--overwrite", action="store_true", help="replace a run in --output")
    parser.add_argument("--no-bundle", action="store_true", help="write only the checkpoint")
    return parser


if __name__ == "__main__":  # for torchrun, which starts modules
    from anomseg_ros.cli import main as cli

    sys.exit(cli(["train", *sys.argv[1:]]))
