"""Runs that build on others: a configuration names the runs to train first, each in its own folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from anomseg_ros.core.resources import find_yaml, share_file
from anomseg_ros.training.config import InitialConfig, TeacherConfig, TrainConfig, load_config
from anomseg_ros.training.loop import Result, Sources, TrainingStatus, train

CONFIG_FOLDER = "config/train"
CARRIED_OVER = ("data.path", "data.cache", "data.workers", "run.accelerator", "run.devices", "run.nodes", "run.threads")

ReportRun = Callable[[str, TrainingStatus], None]
"""Called with the name of the run and its progress."""


def no_report(run: str, now: TrainingStatus) -> None:
    """Report nothing."""


def train_chain(config: TrainConfig, output: Path, changes: Sequence[str], resume: bool, report: ReportRun) -> Result:
    """Train the runs that `config` builds on, then its own. Finished runs are reused.

    Args:
        config: the last run of the chain.
        output: folder of that run; the other runs get folders in it.
        changes: `key=value` as given for `config`. Only CARRIED_OVER, the data's place and the machine, reach the
            other runs.
        resume: whether the last run continues from the state in its folder; the others always do.
        report: receives the progress of each run.
    """
    carried_over = [change for change in changes if change.startswith(CARRIED_OVER)]

    def checkpoint_of(source: InitialConfig | TeacherConfig, folder: str) -> Path:
        if source.checkpoint is not None:
            path = Path(source.checkpoint).expanduser()
            return path if path.is_file() else share_file(source.checkpoint)
        path = find_config(str(source.config))
        same_data = load_config(path).data.dataset == config.data.dataset
        carried = [change for change in carried_over if same_data or not change.startswith("data.path")]
        return train_chain(load_config(path, carried), output / folder, carried, True, report).checkpoint

    initial = config.network.initial
    sources = Sources(
        None if initial is None else checkpoint_of(initial, "initial"),
        tuple(checkpoint_of(teacher, f"teacher-{number}") for number, teacher in enumerate(config.teachers, 1)),
    )
    return train(config, output, sources, partial(report, config.name), resume)


def find_config(name_or_path: str) -> Path:
    """Return the file of a configuration, given by its path or a shipped one's name. Raises ConfigError."""
    return find_yaml(name_or_path, CONFIG_FOLDER, "configuration")
