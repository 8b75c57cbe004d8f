"""The folder of a run, which belongs to one configuration, and the folder of decoded frames."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anomseg_ros.core.schema import to_plain
from anomseg_ros.core.staging import replace_text
from anomseg_ros.errors import ConfigError, TrainingError
from anomseg_ros.training.config import TrainConfig, config_text, parse_config, read_plain
from anomseg_ros.training.processes import is_first_process
from anomseg_ros.training.run_state import STATE_FILE

CONFIG_FILE = "config.yaml"
RESULT_FILE = "result.json"
_RUN_FILES = (
    STATE_FILE,
    CONFIG_FILE,
    "last.safetensors",
    "best.safetensors",
    "log.jsonl",
    "tensorboard",
    RESULT_FILE,
)
# Settings that may change when a run is resumed: paths and speed, not results.
_MAY_DIFFER = (
    "workers",
    "path",
    "validation_path",
    "cache",
    "threads",
    "accelerator",
    "devices",
    "nodes",
    "compile",
    "checkpoint_every",
)


@contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder, which is made if needed, until the block or the process ends.

    Of several processes of a run only the first does anything. Raises ConfigError if another run writes to the folder;
    TrainingError if it cannot be made.
    """
    if not is_first_process():
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise TrainingError(f"cannot write to {folder}: {error}; choose another --output") from error
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)  # also releases the lock


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"another run is writing to {folder}; wait until it ends, stop it, or choose another --output"
        ) from None
    except OSError:
        pass  # a network file system without locks


def claim_folder(folder: Path, config: TrainConfig, resume: bool) -> None:
    """Save the configuration in the folder, after checking that the folder holds no other run.

    Of several processes only the first writes. Raises ConfigError if the folder holds a run and `resume` is not set, or
    a run of another configuration; TrainingError if it cannot be written.
    """
    config_file = folder / CONFIG_FILE
    if (folder / STATE_FILE).is_file():
        if not resume:
            raise ConfigError(f"{folder} holds a run; continue it with --resume, or replace it with --overwrite")
        if config_file.is_file():
            _refuse_another(config, _saved_config(config_file), folder)
    if not is_first_process():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*.part"):  # of a killed process
            leftover.unlink()
        replace_text(config_file, config_text(config))
    except OSError as error:
        raise TrainingError(f"cannot write to {folder}: {error}; choose another --output") from error


def keep_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Write the result of a finished run to result.json. Raises TrainingError."""
    try:
        replace_text(folder / RESULT_FILE, json.dumps(result, indent=2) + "\n")
    except OSError as error:
        raise TrainingError(f"cannot write to {folder}: {error}; free space and continue with --resume") from error


def clear_folder(folder: Path) -> None:
    """Remove a run from a folder; other files in it stay. Of several processes only the first does anything.

    Raises ConfigError if another run writes to the folder.
    """
    if not is_first_process() or not folder.is_dir():
        return
    with held_folder(folder):
        try:
            for name in _RUN_FILES:
                path = folder / name
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise TrainingError(f"cannot remove the run in {folder}: {error}; choose another --output") from error


def kept_frames_folder() -> Path:
    """Return the folder of decoded frames of all runs: $XDG_CACHE_HOME/anomseg_ros/frames."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "anomseg_ros" / "frames"


def _refuse_another(config: TrainConfig, saved: TrainConfig, folder: Path) -> None:
    ours, theirs = _decisive(config), _decisive(saved)
    differing = [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]
    if differing:
        # Another objective has other options, so the setting with the fewest levels explains most.
        key = min(differing, key=lambda key: (key.count("."), key))
        raise ConfigError(
            f"{folder} holds a run with {key}={theirs.get(key)}, not {ours.get(key)} ({len(differing)} settings "
            "differ); choose another --output, replace the run with --overwrite, or delete that folder"
        )


def _saved_config(path: Path) -> TrainConfig:
    """Return a folder's configuration with default settings of deployment, which may change."""
    plain = read_plain(path)
    plain.pop("deploy", None)
    return parse_config(plain, str(path))


def _decisive(config: TrainConfig) -> dict[str, str]:
    """Return dotted key -> value of every setting that decides the result."""
    flat: dict[str, str] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), item)
        elif prefix.rpartition(".")[2] not in _MAY_DIFFER and not prefix.startswith("deploy"):
            flat[prefix] = repr(value)

    walk("", to_plain(config))
    return flat
