"""Runs that build on others: a configuration names the runs to train first, each in its own folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from anomseg_ros.core.resources import find_yaml, share_file
from anomseg_ros.errors import ConfigError
from anomseg_ros.outliers.mixture import PROCEDURAL
from anomseg_ros.training.config import InitialConfig, TeacherConfig, TrainConfig, load_config
from anomseg_ros.training.loop import Result, Sources, open_sets, train
from anomseg_ros.training.status import TrainingStatus

CONFIG_FOLDER = "config/train"
CARRIED_OVER = ("data.path", "data.cache", "data.workers", "run.accelerator", "run.devices", "run.nodes", "run.threads")

ReportRun = Callable[[str, TrainingStatus], None]
"""Called with the name of the run and its progress."""


def no_report(run: str, now: TrainingStatus) -> None:
    """Report nothing."""


def train_chain(config: TrainConfig, output: Path, changes: Sequence[str], resume: bool, report: ReportRun) -> Result:
    """Train the runs that `config` builds on, then its own. Finished runs are reused.

    The files that any of the runs needs are sought before the first one begins.

    Args:
        config: the last run of the chain.
        output: folder of that run; the other runs get folders in it.
        changes: `key=value` as given for `config`. Only CARRIED_OVER, the data's place and the machine, reach the
            other runs.
        resume: whether the last run continues from the state in its folder; the others always do.
        report: receives the progress of each run.
    """
    carried_over = [change for change in changes if change.startswith(CARRIED_OVER)]
    _check_chain(config, carried_over)
    return _train_chain(config, output, carried_over, resume, report)


def _check_chain(config: TrainConfig, carried_over: Sequence[str]) -> None:
    """Raise ConfigError or DatasetError for a missing dataset, folder of objects or checkpoint of any run."""
    for run in (config, *_earlier_runs(config, carried_over)):
        open_sets(run.data)
        for source in _built_on(run):
            if source.checkpoint is not None:
                _checkpoint_file(source.checkpoint)
        for objects in run.data.cut_paste.sources if run.data.cut_paste.probability else ():
            if objects.source != PROCEDURAL and not Path(objects.source).expanduser().is_dir():
                raise ConfigError(
                    f"{run.name}: the folder of objects {objects.source!r} does not exist; set data.cut_paste.objects"
                )


def _earlier_runs(config: TrainConfig, carried_over: Sequence[str]) -> Iterator[TrainConfig]:
    for source in _built_on(config):
        if source.checkpoint is None:
            earlier = _earlier_run(config, source, carried_over)
            yield earlier
            yield from _earlier_runs(earlier, carried_over)


def _train_chain(
    config: TrainConfig, output: Path, carried_over: Sequence[str], resume: bool, report: ReportRun
) -> Result:
    def checkpoint_of(source: InitialConfig | TeacherConfig, folder: str) -> Path:
        if source.checkpoint is not None:
            return _checkpoint_file(source.checkpoint)
        earlier = _earlier_run(config, source, carried_over)
        return _train_chain(earlier, output / folder, carried_over, True, report).checkpoint

    initial = config.network.initial
    sources = Sources(
        None if initial is None else checkpoint_of(initial, "initial"),
        tuple(checkpoint_of(teacher, f"teacher-{number}") for number, teacher in enumerate(config.teachers, 1)),
    )
    return train(config, output, sources, partial(report, config.name), resume)


def _built_on(config: TrainConfig) -> tuple[InitialConfig | TeacherConfig, ...]:
    initial = config.network.initial
    return (*(() if initial is None else (initial,)), *config.teachers)


def _earlier_run(
    config: TrainConfig, source: InitialConfig | TeacherConfig, carried_over: Sequence[str]
) -> TrainConfig:
    """Return the run that `config` builds on; it gets the same folder of data if it uses the same dataset."""
    path = find_config(str(source.config))
    same_data = load_config(path).data.dataset == config.data.dataset
    return load_config(path, [change for change in carried_over if same_data or not change.startswith("data.path")])


def _checkpoint_file(name: str) -> Path:
    path = Path(name).expanduser()
    return path if path.is_file() else share_file(name)


def find_config(name_or_path: str) -> Path:
    """Return the file of a configuration, given by its path or a shipped one's name. Raises ConfigError."""
    return find_yaml(name_or_path, CONFIG_FOLDER, "configuration")
