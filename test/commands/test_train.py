from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from dataset_trees import write

torch = pytest.importorskip("torch")

from tiny_runs import command, run, same_weights, state, tiny_config, write_config, write_frames  # noqa: E402

from anomseg_ros import cli  # noqa: E402
from anomseg_ros.commands import train  # noqa: E402
from anomseg_ros.errors import AnomsegError, ConfigError, DatasetError  # noqa: E402
from anomseg_ros.networks import build_network  # noqa: E402
from anomseg_ros.networks.checkpoints import load_checkpoint, save_checkpoint  # noqa: E402
from anomseg_ros.training.config import DeployConfig, load_config  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frames(tmp_path_factory.mktemp("data"))


@pytest.fixture
def config(data: Path, tmp_path: Path) -> Path:
    return write_config(tmp_path / "tiny.yaml", data, run={"epochs": 2})


def arguments(config: Path, *more: str) -> list[str]:
    return [str(config), "--output", str(config.parent / "out"), "--no-bundle", *more]


def test_trains_checkpoint_from_configuration_and_dataset(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(tmp_path / "tiny.yaml", "", run={"epochs": 2})
    assert train.main(arguments(path, "--data", str(data), "--set", "run.epochs=1")) == 0
    printed = capsys.readouterr()
    assert "best.safetensors: mIoU" in printed.out and "after 3 steps" in printed.out
    assert "tiny: train loss" in printed.err and "left" in printed.err
    load_checkpoint(tmp_path / "out" / "best.safetensors", "mide_net", 11)


def test_existing_run_needs_resume_or_overwrite(config: Path) -> None:
    assert train.main(arguments(config)) == 0
    before = state(config.parent / "out")
    with pytest.raises(ConfigError, match="holds a run; continue it with --resume, or replace it with --overwrite"):
        train.main(arguments(config))
    assert train.main(arguments(config, "--resume")) == 0
    with pytest.raises(ConfigError, match=r"run.seed=0, not 1"):
        train.main(arguments(config, "--resume", "--set", "run.seed=1"))
    assert same_weights(before["network"], state(config.parent / "out")["network"])
    assert train.main(arguments(config, "--overwrite", "--set", "run.seed=1")) == 0
    assert not same_weights(before["network"], state(config.parent / "out")["network"])


def test_wrong_arguments_name_the_mistake(config: Path, tmp_path: Path) -> None:
    mistakes: list[tuple[list[str], type[AnomsegError], str]] = [
        (["--set", "run.epoch=3"], ConfigError, "unknown key 'epoch'; did you mean 'epochs'"),
        (["--set", "network.name=midenet"], ConfigError, "unknown network 'midenet'; known: mide_net"),
        (["--data", str(tmp_path / "nowhere")], DatasetError, "is not a folder"),
        (["--set", "data.allow_partial=false"], DatasetError, "has 6 frames, 367 are published"),
    ]
    for words, error, message in mistakes:
        with pytest.raises(error, match=message):
            train.main(arguments(config, *words))
    with pytest.raises(
        ConfigError, match=r"'enet-camvit' is neither a file nor a shipped configuration; did you mean 'enet-camvid"
    ):
        train.main(["enet-camvit"])
    broken = write_config(tmp_path / "broken.yaml", "x", optimiser={"kind": "sgd"})
    with pytest.raises(ConfigError, match=r"broken\.yaml: unknown key 'optimiser'; did you mean 'optimizer'"):
        train.main([str(broken)])


def test_licence_of_a_recipe_for_another_dataset_is_not_taken(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(tmp_path / "tiny.yaml", data, deploy={"licence": "CamVid's"}, run={"epochs": 1})
    same = train._with_licence_of_the_frames(load_config(path), path)
    assert same.deploy.licence == "CamVid's" and not capsys.readouterr().out
    other = train._with_licence_of_the_frames(load_config(path, ["data.dataset=folder"]), path)
    assert other.deploy.licence == DeployConfig().licence
    assert "note: tiny states the licence of camvid, not of folder; give --set deploy" in capsys.readouterr().out
    given = load_config(path, ["data.dataset=folder", "deploy.licence=ours"])
    assert train._with_licence_of_the_frames(given, path) is given


def test_initial_run_is_trained_first(data: Path, tmp_path: Path) -> None:
    first = write_config(tmp_path / "first.yaml", data, name="first", run={"epochs": 1})
    second = write_config(tmp_path / "tiny.yaml", data, network={"initial": {"config": str(first)}}, run={"epochs": 1})
    assert train.main(arguments(second)) == 0
    inner = tmp_path / "out" / "initial"
    assert load_checkpoint(inner / "best.safetensors", "mide_net", 11).checkpoint_metadata["run"] == "first"
    before = (inner / "state.pt").read_bytes()
    assert train.main(arguments(second, "--overwrite")) == 0  # the first is finished, and taken
    assert (inner / "state.pt").read_bytes() == before


def test_command_error_is_one_line(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", *arguments(config, "--set", "optimizer.kind=adma")]) == 1
    error = capsys.readouterr().err.strip()
    assert "unknown optimizer.kind 'adma'; known: adam" in error and "\n" not in error


def wait_for(path: Path, process: subprocess.Popen[str], at_least: int, limit_s: float = 120) -> None:
    """Return as soon as a run has logged a step."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until and process.poll() is None:
        lines = path.read_text().splitlines() if path.is_file() else []
        if any(json.loads(line)["step"] >= at_least for line in lines if line.endswith("}")):
            return
        time.sleep(0.002)
    raise AssertionError(f"the run ended or hung before it was killed: {process.communicate()}")


@pytest.mark.slow
def test_killed_run_resumes_to_identical_weights(data: Path, tmp_path: Path) -> None:
    """SIGKILL amid steps that are each saved; bit for bit on a processor with equal threads (here 1)."""
    changes = {
        "data": {"workers": 1, "cache": "disk"},
        "run": {"epochs": 20, "checkpoint_every": 1, "ema_decay": 0.95, "accumulate": 2, "batch_size": 1},
    }
    path = write_config(tmp_path / "tiny.yaml", data, **changes)
    steps = 20 * 6 // 2
    for at_least in (8, 25):
        process = command(arguments(path, "--resume"), tmp_path / "cache")
        wait_for(tmp_path / "out" / "log.jsonl", process, at_least)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        kept = state(tmp_path / "out")  # whole, whenever the kill came
        assert at_least - 1 <= kept["position"]["step"] < steps
    last = command(arguments(path, "--resume"), tmp_path / "cache")
    _, error = last.communicate()
    assert last.returncode == 0, error
    assert not list(tmp_path.rglob("*.part"))
    # In a process of its own as well: worker processes are forked off it, and this one holds every engine's threads.
    undisturbed = command([str(path), "--output", str(tmp_path / "whole"), "--no-bundle"], tmp_path / "cache")
    _, error = undisturbed.communicate()
    assert undisturbed.returncode == 0, error
    ours, theirs = state(tmp_path / "whole"), state(tmp_path / "out")
    assert theirs["position"]["step"] == steps
    assert same_weights(ours["network"], theirs["network"]) and same_weights(ours["average"], theirs["average"])
    for name in ("last.safetensors", "best.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m")


@pytest.mark.slow
def test_two_processes_match_one_process_and_only_first_prints(tmp_path: Path) -> None:
    """Two processes of 2 samples take the steps of one of 4: its gradients are the mean of theirs.

    Norms would see 2 frames, not 4, so they are frozen; every frame has as many labelled pixels, so that the mean of
    two means is the mean of all.
    """
    data = write_frames(tmp_path / "data")
    for labels in (data / "trainannot").iterdir():
        write(labels, np.repeat(np.arange(8, dtype=np.uint8), 4)[:, None] * np.ones((1, 48), np.uint8))
    torch.manual_seed(0)
    start = tmp_path / "start.safetensors"
    save_checkpoint(start, build_network("mide_net", 11), {})
    changes = {
        "network": {"initial": {"checkpoint": str(start)}, "trained": "classifier"},
        "optimizer": {"kind": "sgd", "learning_rate": 0.1},
        "augment": {"scale": [1.0, 1.0]},
        "data": {"cache": "disk"},
    }
    steps = {"epochs": 4, "batch_size": 2, "validate_every": 2}
    path = write_config(tmp_path / "tiny.yaml", data, **changes, run=steps)
    process = command(arguments(path), tmp_path / "cache", TORCHRUN)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert out.count("best.safetensors: mIoU") == 1 and "after 6 steps" in out
    kept = state(tmp_path / "out")
    assert (kept["position"]["step"], kept["position"]["processes"]) == (6, 2)
    assert [json.loads(line)["step"] for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()] == [3, 6]
    assert not list(tmp_path.rglob("*.part"))
    run(tiny_config(tmp_path, data, **changes, run={**steps, "batch_size": 4}), tmp_path / "one", initial=start)
    before, ours, theirs = (
        load_checkpoint(path, "mide_net", 11).state_dict()["classifier.weight"]
        for path in (start, tmp_path / "one" / "last.safetensors", tmp_path / "out" / "last.safetensors")
    )
    moved = (ours - before).abs().max()
    assert moved > 0.01
    assert (ours - theirs).abs().max() < 1e-4 * moved
    with pytest.raises(ConfigError, match="holds a run of 2 processes, not 1"):
        train.main(arguments(write_config(tmp_path / "tiny.yaml", data, **changes, run=steps), "--resume"))


@pytest.mark.slow
def test_bad_batch_in_one_process_ends_all_processes(data: Path, tmp_path: Path) -> None:
    path = write_config(
        tmp_path / "tiny.yaml", data, optimizer={"kind": "sgd", "learning_rate": 1e30}, run={"checkpoint_every": 1}
    )
    process = command(arguments(path), tmp_path / "cache", TORCHRUN)
    _, error = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "TrainingError" in error or "at step" in error
    if (tmp_path / "out" / "state.pt").exists():
        assert all(torch.isfinite(value).all() for value in state(tmp_path / "out")["network"].values())
