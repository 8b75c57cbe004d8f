"""The folder of a run: whose it is, and where decoded frames are kept."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from anomseg_ros.errors import ConfigError, TrainingError
from anomseg_ros.training.config import TrainConfig, config_text, load_config
from anomseg_ros.training.state import STATE_FILE

CONFIG_FILE = "config.yaml"
_RUN_FILES = (STATE_FILE, CONFIG_FILE, "last.safetensors", "best.safetensors", "log.jsonl", "tensorboard", "result.json")
# What may differ between a run and its continuation: where things are and how fast, not what is computed.
_MAY_DIFFER = ("workers", "path", "cache", "threads", "accelerator", "devices", "compile", "checkpoint_every")


def claim_folder(folder: Path, config: TrainConfig, resume: bool) -> None:
    """Make the folder this configuration's, and save the configuration in it.

    Raises ConfigError where it holds a run and `resume` is not set, or a run of another configuration.
    """
    kept = folder / CONFIG_FILE
    if kept.is_file() and (folder / STATE_FILE).is_file():
        if not resume:
            raise ConfigError(f"{folder} holds a run; continue it with --resume, or replace it with --overwrite")
        _refuse_another(config, load_config(kept), folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / f"{CONFIG_FILE}.{os.getpid()}.part"
        beside.write_text(config_text(config), encoding="utf-8")
        os.replace(beside, kept)
    except OSError as error:
        raise TrainingError(f"cannot write to {folder}: {error}; choose another --output") from error


def clear_folder(folder: Path) -> None:
    """Remove a run from a folder; other files in it stay."""
    for name in _RUN_FILES:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def kept_frames_folder() -> Path:
    """Return where decoded frames are kept for all runs: $XDG_CACHE_HOME/anomseg_ros/frames."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "anomseg_ros" / "frames"


def _refuse_another(config: TrainConfig, kept: TrainConfig, folder: Path) -> None:
    ours, theirs = _decisive(config), _decisive(kept)
    differing = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    if differing:
        key = differing[0]
        raise ConfigError(
            f"{folder} holds a run with {key}={theirs.get(key)}, not {ours.get(key)} ({len(differing)} settings "
            "differ); choose another --output, or replace the run with --overwrite"
        )


def _decisive(config: TrainConfig) -> dict[str, str]:
    """Return dotted key -> value of every setting that decides the result."""
    from anomseg_ros.core.schema import to_plain

    flat: dict[str, str] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), item)
        elif prefix.rpartition(".")[2] not in _MAY_DIFFER and not prefix.startswith("deploy"):
            flat[prefix] = repr(value)

    walk("", to_plain(config))
    return flat
