"""Runs that fail, and the files that they leave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_trees import values, write

torch = pytest.importorskip("torch")

from tiny_runs import (  # noqa: E402
    Killed,
    files_of_at_most,
    killed_at,
    run,
    same_weights,
    state,
    tiny_config,
    weights,
    write_frames,
)

from anomseg_ros.errors import ConfigError, DatasetError, TrainingError  # noqa: E402
from anomseg_ros.training import loop  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frames(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_non_finite_loss_error_names_step_and_frames(data: Path, tmp_path: Path, accumulate: int) -> None:
    config = tiny_config(
        tmp_path, data, run={"epochs": 20, "accumulate": accumulate}, optimizer={"kind": "sgd", "learning_rate": 1e30}
    )
    with pytest.raises(TrainingError, match=r"(the loss is (nan|inf)|weights are not finite) at step \d+, frames 00\d"):
        run(config, tmp_path / "out")


def before_step(monkeypatch: pytest.MonkeyPatch, at: int, what: Callable[[Any], None]) -> None:
    """Call `what` with the run before step `at`."""
    step = loop._Run._step

    def poison(self: Any, number: int, batches: Any) -> Any:
        if number == at:
            what(self)
        return step(self, number, batches)

    monkeypatch.setattr(loop._Run, "_step", poison)


@pytest.mark.slow
def test_run_resumes_from_the_last_state_after_a_nan(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path, data, run={"ema_decay": 0.9})

    def weight(run: Any) -> None:
        with torch.no_grad():
            run.network.classifier.weight[0, 0] = float("nan")

    with monkeypatch.context() as patched:
        before_step(patched, 7, weight)
        with pytest.raises(TrainingError, match=r"the loss is nan at step 8, frames 00\d, 00\d; the last saved state"):
            run(config, tmp_path / "out")
    kept = state(tmp_path / "out")
    assert kept["position"]["step"] == 6
    for part in ("network", "average"):
        assert all(torch.isfinite(value).all() for value in kept[part].values())
    assert run(config, tmp_path / "out").steps == 12
    run(config, tmp_path / "whole")
    assert same_weights(weights(tmp_path / "whole"), weights(tmp_path / "out"))


def test_non_finite_weights_are_not_saved(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of the step before a save is finite, but the weights after the step are not."""
    config = tiny_config(tmp_path, data)
    step = loop._Run._step

    def ruin(self: Any, number: int, batches: Any) -> Any:
        terms = step(self, number, batches)
        if number == 3:
            with torch.no_grad():
                self.network.classifier.bias[0] = float("inf")
        return terms

    monkeypatch.setattr(loop._Run, "_step", ruin)
    with pytest.raises(TrainingError, match=r"weights are not finite any more at step 4, frames 00\d"):
        run(config, tmp_path / "out")
    assert state(tmp_path / "out")["position"]["step"] == 2


@pytest.mark.slow
def test_full_disk_stops_the_run_and_keeps_the_old_state(data: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, data)
    with pytest.raises(Killed):
        run(config, tmp_path / "out", killed_at(3))
    before = (tmp_path / "out" / "state.pt").read_bytes()
    size = (tmp_path / "out" / "last.safetensors").stat().st_size + 50_000
    assert size < len(before)
    with files_of_at_most(size), pytest.raises(TrainingError, match=r"cannot save the run's state .*File too large"):
        run(config, tmp_path / "out")
    assert (tmp_path / "out" / "state.pt").read_bytes() == before
    assert not list((tmp_path / "out").glob("*.part"))
    assert run(config, tmp_path / "out").steps == 12


def test_run_of_another_number_of_processes_is_not_resumed(data: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, data)
    with pytest.raises(Killed):
        run(config, tmp_path / "out", killed_at(3))
    kept = state(tmp_path / "out")
    kept["position"]["processes"] = 2
    torch.save(kept, tmp_path / "out" / "state.pt")
    with pytest.raises(ConfigError, match="holds a run of 2 processes, not 1"):
        run(config, tmp_path / "out")


def test_unusable_training_data_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder of camvid was given; add --data"):
        run(tiny_config(tmp_path, ""), tmp_path / "out")
    with pytest.raises(DatasetError, match="is not a folder"):
        run(tiny_config(tmp_path, tmp_path / "nowhere"), tmp_path / "out")
    with pytest.raises(DatasetError, match="has 6 frames, 367 are published"):
        run(tiny_config(tmp_path, data, data={"allow_partial": False}), tmp_path / "out")
    with pytest.raises(DatasetError, match="no split 'trian'; known: train"):
        run(tiny_config(tmp_path, data, data={"train_split": "trian"}), tmp_path / "out")
    foreign = write_frames(tmp_path / "foreign")
    write(foreign / "trainannot" / "001.png", np.resize(values(0, 30), (32, 48)))
    with pytest.raises(DatasetError, match=r"unknown label values.*001\.png.*30"):
        run(tiny_config(tmp_path, foreign), tmp_path / "out")
    assert not (tmp_path / "out" / "state.pt").exists()


def test_missing_devices_are_refused(data: Path, tmp_path: Path) -> None:
    absent = ["tpu", "quantum"] if torch.cuda.is_available() else ["tpu", "quantum", "cuda"]
    for name in absent:
        with pytest.raises(ConfigError, match=f"run.accelerator={name} with run.devices=auto does not work here"):
            run(tiny_config(tmp_path, data, run={"accelerator": name}), tmp_path / "out")
