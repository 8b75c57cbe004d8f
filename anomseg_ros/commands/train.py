"""`anomseg train`: a configuration and a dataset to a checkpoint and a bundle."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from anomseg_ros.commands import options
from anomseg_ros.core.bundle import Bundle, Provenance
from anomseg_ros.core.resources import share_directories, share_file
from anomseg_ros.datasets.base import Dataset
from anomseg_ros.deploy import Deployment, deploy
from anomseg_ros.errors import ConfigError, closest_first
from anomseg_ros.export import ExportConfig
from anomseg_ros.training.config import InitialConfig, TeacherConfig, TrainConfig, load_config
from anomseg_ros.training.folder import clear_folder
from anomseg_ros.training.loop import Progress, Result, Sources, open_sets, train

CONFIG_FOLDER = "config/train"
CARRIED_OVER = ("data.path", "data.cache", "data.workers", "run.accelerator", "run.devices", "run.nodes", "run.threads")


def main(argv: Sequence[str]) -> int:
    """Train by the configuration, and first those that it builds on; then make the bundle."""
    args = _parser().parse_args(argv)
    changes = [*args.set, *([f"data.path={args.data}"] if args.data else [])]
    config = load_config(find_config(args.config), changes)
    output = args.output or Path("runs") / config.name
    if args.overwrite:
        clear_folder(output)
    with Display() as display:
        result = train_with_sources(config, output, changes, args.resume or args.overwrite, display)
        if result.is_first_process and not args.no_bundle:
            command = shlex.join(["anomseg", "train", args.config, *(f"--set={change}" for change in args.set)])
            bundle = make_bundle(config, result, output / "bundle", command, display)
    if result.is_first_process:
        print(f"{result.checkpoint}: mIoU {_percent(result.miou)} after {result.steps} steps, {_spent(result)}")
        if not args.no_bundle:
            print(f"{bundle.directory}: ready to deploy: temperature {bundle.contract.temperature:g}")
    return 0


def train_with_sources(
    config: TrainConfig, output: Path, changes: Sequence[str], resume: bool, display: Display
) -> Result:
    """Train the runs that `config` builds on, then its own. Each keeps its folder; finished ones are taken."""
    # Only where the data is and what it runs on carries over: every configuration keeps its own recipe.
    kept = [change for change in changes if change.startswith(CARRIED_OVER)]

    def source(of: InitialConfig | TeacherConfig, folder: str) -> Path:
        if of.checkpoint is not None:
            path = Path(of.checkpoint).expanduser()
            return path if path.is_file() else share_file(of.checkpoint)
        path = find_config(str(of.config))
        same_data = load_config(path).data.dataset == config.data.dataset
        carried = [change for change in kept if same_data or not change.startswith("data.path")]
        return train_with_sources(load_config(path, carried), output / folder, carried, True, display).checkpoint

    initial = config.network.initial
    sources = Sources(
        None if initial is None else source(initial, "initial"),
        tuple(source(each, f"teacher-{number}") for number, each in enumerate(config.teachers, 1)),
    )
    display.run = config.name
    return train(config, output, sources, display.show, resume)


def make_bundle(config: TrainConfig, result: Result, output: Path, command: str, display: Display) -> Bundle:
    """Learn temperature and thresholds on the validation frames, export, measure; return the bundle."""
    data, wanted = config.data, config.deploy
    trained_on, held_out = open_sets(data)
    export = ExportConfig(
        name=config.name,
        num_classes=result.num_classes,
        void_class=result.void_class,
        label_set=str(held_out.label_set),
        height_px=wanted.height_px or data.height_px,
        width_px=wanted.width_px or data.width_px,
        scores=wanted.scores,
    )
    provenance = Provenance(training_data=_described(config, trained_on), licence=wanted.licence, command=command)
    rates = wanted.target_fprs if wanted.calibrate else ()
    deployment = Deployment(config.network.name, result.checkpoint, export, provenance, rates)
    return deploy(deployment, held_out, output, display.measuring)


def _described(config: TrainConfig, trained_on: Dataset) -> str:
    text = f"{trained_on.name} {trained_on.split} ({len(trained_on)} frames)"
    pasted = config.data.cut_paste
    if pasted.probability:
        names = ", ".join(Path(objects.source).name for objects in pasted.sources)
        text += f", outliers pasted into {pasted.probability:.0%} of them: {names} objects"
    return text


def find_config(name_or_path: str) -> Path:
    """Return the file of a configuration given by path or by the name of a shipped one. Raises ConfigError."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    shipped = shipped_configs()
    if name_or_path in shipped:
        return shipped[name_or_path]
    known = ", ".join(closest_first(name_or_path, shipped))
    raise ConfigError(f"{name_or_path!r} is neither a file nor a shipped configuration; shipped: {known}")


def shipped_configs() -> dict[str, Path]:
    """Return name -> file of the training configurations that ship with the package."""
    found: dict[str, Path] = {}
    for folder in share_directories():
        for path in sorted((folder / CONFIG_FOLDER).glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def _percent(share: float | None) -> str:
    return "not measured" if share is None else f"{share:.2%}"


class Display:
    """Progress with time left on a terminal as bars, in a log file as a line now and then."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bars = Bars(*columns, console=self.console, disable=not self.console.is_terminal)
        self.tasks: dict[str, TaskID] = {}
        self.run = ""
        self._last_line = 0.0

    def __enter__(self) -> Display:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def measuring(self, what: str, done: int, total: int) -> None:
        """Show how far the work after training is."""
        self.show(Progress(what, done, total))

    def show(self, now: Progress) -> None:
        """Show one report."""
        text = f"{self.run}: {now.stage}"
        if now.loss is not None:
            text += f" loss {now.loss:.3f}"
        if now.miou is not None:
            text += f", best mIoU {now.miou:.1%}"
        if now.seconds_left is not None:
            text += f", {_duration(now.seconds_left)} left"
        if self.console.is_terminal:
            if now.stage not in self.tasks:
                self.tasks[now.stage] = self.bars.add_task(now.stage)
            self.bars.update(self.tasks[now.stage], completed=now.done, total=now.total, description=text)
        elif now.stage != "decode" and (now.done == now.total or time.monotonic() - self._last_line > 10):
            self._last_line = time.monotonic()
            self.console.print(f"{time.strftime('%H:%M:%S')} {text} {now.done}/{now.total}", soft_wrap=True)


def _spent(result: Result) -> str:
    waited = "" if result.waited is None else f", {result.waited:.1%} of it waiting for frames"
    return f"{_duration(result.seconds)}{waited}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def _parser() -> argparse.ArgumentParser:
    parser = options.parser(
        "train", "Train a network by a configuration, resumable at any moment, and make its checkpoint and bundle."
    )
    parser.add_argument("config", help=f"YAML file, or the name of a shipped configuration ({CONFIG_FOLDER})")
    parser.add_argument("--data", help="folder of the configuration's dataset (data.path)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting, such as run.epochs=3"
    )
    parser.add_argument("--output", type=Path, help="folder of the run (default: runs/NAME)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output, if there is one")
    parser.add_argument("--overwrite", action="store_true", help="replace a run in --output")
    parser.add_argument("--no-bundle", action="store_true", help="stop after the checkpoint")
    return parser


if __name__ == "__main__":  # for torchrun, which starts modules
    from anomseg_ros.cli import main as cli

    sys.exit(cli(["train", *sys.argv[1:]]))
