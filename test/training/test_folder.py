from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

torch = pytest.importorskip("torch")

from tiny_runs import files_of_at_most, tiny_config  # noqa: E402

from anomseg_ros.errors import ConfigError, TrainingError  # noqa: E402
from anomseg_ros.training.config import TrainConfig, load_config  # noqa: E402
from anomseg_ros.training.folder import (  # noqa: E402
    claim_folder,
    clear_folder,
    held_folder,
    keep_result,
    kept_frames_folder,
)
from anomseg_ros.training.loop import Sources, train  # noqa: E402


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return tiny_config(tmp_path, "somewhere")


def folder_with_run(folder: Path, config: TrainConfig) -> Path:
    """Return a folder with a run and its state."""
    claim_folder(folder, config, resume=False)
    (folder / "state.pt").write_bytes(b"state")
    return folder


def test_claimed_folder_contains_the_complete_configuration(tmp_path: Path, config: TrainConfig) -> None:
    claim_folder(tmp_path / "a" / "b", config, resume=False)
    assert load_config(tmp_path / "a" / "b" / "config.yaml") == config
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["config.yaml"]


def test_existing_run_is_not_replaced_without_permission(tmp_path: Path, config: TrainConfig) -> None:
    folder = folder_with_run(tmp_path / "a", config)
    with pytest.raises(ConfigError, match="holds a run; continue it with --resume, or replace it with --overwrite"):
        claim_folder(folder, config, resume=False)
    claim_folder(folder, config, resume=True)
    (folder / "config.yaml").unlink()  # a state without configuration also counts as a run
    with pytest.raises(ConfigError, match="holds a run"):
        claim_folder(folder, config, resume=False)


HOLDER = """
import sys
from pathlib import Path
from anomseg_ros.training.folder import held_folder
with held_folder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_folder_of_a_run_that_still_goes_on_is_refused(tmp_path: Path, config: TrainConfig) -> None:
    folder = folder_with_run(tmp_path / "a", config)
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        for writes in (lambda: train(config, folder, Sources(), lambda _: None), lambda: clear_folder(folder)):
            with pytest.raises(ConfigError, match=r"another run is writing to .*a; wait until it ends, stop it"):
                writes()
        assert (folder / "state.pt").is_file()
        other.kill()
    with held_folder(folder):  # the kernel has released the lock of the killed process
        pass
    clear_folder(folder)
    assert not (folder / "state.pt").exists()


@pytest.mark.parametrize(
    ("group", "key", "value", "message"),
    [
        ("optimizer", "learning_rate", 0.1, "optimizer.learning_rate=0.005, not 0.1"),
        ("run", "seed", 5, "run.seed=0, not 5"),
        ("run", "ema_decay", 0.9, "run.ema_decay=None, not 0.9"),
        ("augment", "flip", 0.25, "augment.flip=0.5, not 0.25"),
    ],
)
def test_resuming_with_another_configuration_names_the_key(
    tmp_path: Path, config: TrainConfig, group: str, key: str, value: object, message: str
) -> None:
    folder = folder_with_run(tmp_path / "a", config)
    with pytest.raises(ConfigError, match=message):
        claim_folder(folder, tiny_config(tmp_path, "somewhere", **{group: {key: value}}), resume=True)
    assert load_config(folder / "config.yaml") == config


def test_resuming_may_change_paths_and_speed_settings(tmp_path: Path, config: TrainConfig) -> None:
    folder = folder_with_run(tmp_path / "a", config)
    other = tiny_config(
        tmp_path,
        "elsewhere",
        data={"workers": 3, "cache": "disk"},
        run={"threads": 2, "compile": True, "checkpoint_every": 9, "devices": "3"},
        deploy={"scores": ["msp"]},
    )
    claim_folder(folder, other, resume=True)
    assert load_config(folder / "config.yaml") == other


def test_resuming_ignores_unknown_deploy_settings(tmp_path: Path, config: TrainConfig) -> None:
    folder = folder_with_run(tmp_path / "a", config)
    plain = yaml.safe_load((folder / "config.yaml").read_text())
    plain["deploy"] = {"of_an_older_version": 1}
    (folder / "config.yaml").write_text(yaml.safe_dump(plain))
    claim_folder(folder, config, resume=True)


def test_partial_files_of_a_killed_run_are_removed(tmp_path: Path, config: TrainConfig) -> None:
    folder = folder_with_run(tmp_path / "a", config)
    for name in ("state.pt.12.part", "last.safetensors.12.part"):
        (folder / name).write_bytes(b"half")
    claim_folder(folder, config, resume=True)
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "state.pt"}


def test_clearing_removes_only_the_files_of_the_run(tmp_path: Path, config: TrainConfig) -> None:
    folder = folder_with_run(tmp_path / "a", config)
    (folder / "notes.txt").write_text("mine")
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard" / "events").write_bytes(b"")
    clear_folder(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    clear_folder(tmp_path / "absent")


def test_only_the_first_process_writes(tmp_path: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_with_run(tmp_path / "a", config)
    monkeypatch.setenv("RANK", "1")
    clear_folder(folder)
    assert (folder / "state.pt").is_file()
    claim_folder(tmp_path / "b", config, resume=False)
    assert not (tmp_path / "b").exists()
    monkeypatch.delenv("RANK")
    monkeypatch.setenv("LOCAL_RANK", "1")  # set by processes that Fabric starts
    clear_folder(folder)
    assert (folder / "state.pt").is_file()


def test_unwritable_output_is_refused(tmp_path: Path, config: TrainConfig) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"cannot write to .*file.*; choose another --output"):
        claim_folder(tmp_path / "file" / "run", config, resume=False)
    if os.geteuid() != 0:  # root may write everywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(TrainingError, match="choose another --output"):
            claim_folder(tmp_path / "locked" / "run", config, resume=False)


def test_full_disk_keeps_the_old_files(tmp_path: Path, config: TrainConfig) -> None:
    folder = folder_with_run(tmp_path / "a", config)
    keep_result(folder, {"miou": 0.5})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with files_of_at_most(10):
        with pytest.raises(TrainingError, match=r"cannot write to .* continue with --resume"):
            keep_result(folder, {"miou": 0.7})
        with pytest.raises(TrainingError, match="cannot write to"):
            claim_folder(folder, config, resume=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_decoded_frames_are_stored_in_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kept_frames_folder() == tmp_path / "anomseg_ros" / "frames"
