"""Training runs of a few seconds: MiDE-Net on a few small frames in the layout of CamVid."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from dataset_trees import write

from anomseg_ros.networks.checkpoints import load_checkpoint
from anomseg_ros.training.config import TrainConfig, load_config
from anomseg_ros.training.loop import Result, Sources, train
from anomseg_ros.training.status import TrainingStatus

ROOT = Path(__file__).resolve().parents[1]
HEIGHT_PX, WIDTH_PX = 32, 48


def write_frames(
    root: Path, train_frames: int = 6, validation_frames: int = 3, size: tuple[int, int] = (32, 48)
) -> Path:
    """Write frames that are easy to learn: noisy bands of sky, building and road and a car in different colours."""
    for split, count in (("train", train_frames), ("val", validation_frames)):
        for number in range(count):
            image, labels = _frame(number + (100 if split == "val" else 0), size)
            write(root / split / f"{number:03d}.png", image)
            write(root / f"{split}annot" / f"{number:03d}.png", labels)
    return root


def weights(output: Path, name: str = "last", network: str = "mide_net", classes: int = 11) -> dict[str, Any]:
    """Return the state of a network saved by a run."""
    found: dict[str, Any] = load_checkpoint(output / f"{name}.safetensors", network, classes).state_dict()
    return found


def _frame(seed: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    height, width = size
    labels = np.zeros((height, width), np.uint8)
    labels[height // 4 + rng.integers(0, 4) :] = 1
    labels[height // 2 + rng.integers(0, 4) :] = 3
    left = int(rng.integers(0, width - 12))
    labels[height // 2 : height // 2 + 8, left : left + 12] = 8
    labels[-2:] = 11  # CamVid's void
    colors = np.zeros((12, 3), np.float64)
    colors[[0, 1, 3, 8, 11]] = (200, 220, 250), (150, 60, 40), (90, 90, 90), (20, 40, 220), (0, 0, 0)
    image = np.clip(colors[labels] + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)
    return cv2.GaussianBlur(image, (0, 0), 0.6), labels


def tiny_plain(data: Path | str, /, **changes: Any) -> dict[str, Any]:
    """Return a configuration as a mapping; changes: group=dict of keys."""
    plain: dict[str, Any] = {
        "name": "tiny",
        "network": {"name": "mide_net"},
        "data": {
            "dataset": "camvid",
            "path": str(data),
            "height_px": HEIGHT_PX,
            "width_px": WIDTH_PX,
            "allow_partial": True,
            "workers": 0,
            "cache": "memory",
        },
        "augment": {"crop_height_px": 32, "crop_width_px": 32, "scale": [0.8, 1.4], "gain": [0.8, 1.2]},
        "optimizer": {"learning_rate": 5e-3},
        "run": {"epochs": 4, "batch_size": 2, "checkpoint_every": 2, "accelerator": "cpu", "threads": 1},
    }
    for group, values in changes.items():
        if isinstance(values, Mapping):
            plain[group] = {**plain.get(group, {}), **values}
        else:
            plain[group] = values
    return plain


def write_config(path: Path, data: Path | str, /, **changes: Any) -> Path:
    """Write a tiny configuration to a YAML file."""
    path.write_text(yaml.safe_dump(tiny_plain(data, **changes)), encoding="utf-8")
    return path


def tiny_config(folder: Path, data: Path | str, /, **changes: Any) -> TrainConfig:
    """Return a tiny configuration, read from a file like a real one."""
    return load_config(write_config(folder / "tiny.yaml", data, **changes))


def run(config: TrainConfig, output: Path, report: Any = None, resume: bool = True, **sources: Any) -> Result:
    """Train in this process."""
    return train(config, output, Sources(**sources), report or (lambda _: None), resume)


class Killed(Exception):
    """Raised in a report instead of killing the process."""


def killed_at(step: int) -> Any:
    """Return a report that ends the run after a step, before the step is saved."""

    def report(now: TrainingStatus) -> None:
        if now.stage == "train" and now.done == step:
            raise Killed

    return report


def state(output: Path) -> dict[str, Any]:
    """Return the saved state of a run."""
    content: dict[str, Any] = torch.load(output / "state.pt", weights_only=True)
    return content


def same_weights(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Return whether two state dicts are equal bit for bit."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Limit the size of files to `size` bytes, to simulate a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def command(
    arguments: Sequence[str], cache: Path, launcher: Sequence[str] = (sys.executable, "-m"), **more: Any
) -> subprocess.Popen[str]:
    """Start `anomseg train` in a separate process with one thread and decoded frames in `cache`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(cache), "COLUMNS": "200"}
    words = [*launcher, "anomseg_ros.commands.train", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, cwd=ROOT, env=environment, **pipes, **more)  # type: ignore[call-overload, no-any-return]
