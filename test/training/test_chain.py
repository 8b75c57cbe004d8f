"""Runs that build on others: what any of them lacks is noticed before the first one begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomseg_ros.errors import ConfigError, DatasetError
from anomseg_ros.training import chain
from anomseg_ros.training.chain import train_chain
from anomseg_ros.training.config import TrainConfig, load_config

BASE = """
name: base
network: {name: mide_net}
data: {dataset: synthetic, path: "7:2", validation_path: "9:1", train_split: "", validation_split: "",
  height_px: 32, width_px: 64, void: none}
run: {epochs: 1, batch_size: 2, threads: 1}
augment: {crop_height_px: 32, crop_width_px: 64}
"""
LAST = """
name: last
network: {name: mide_net, initial: {config: BASE}}
data: {dataset: synthetic, path: "7:2", validation_path: "9:1", train_split: "", validation_split: "",
  height_px: 32, width_px: 64, void: none}
run: {epochs: 1, batch_size: 2, threads: 1}
augment: {crop_height_px: 32, crop_width_px: 64}
"""


TEACHER = "teachers: [{network: enet, checkpoint: nothing.pth}]\nloss: {distillation_weight: 1}"


def chain_of(folder: Path, base: str = "", last: str = "") -> TrainConfig:
    """Return the last of two runs, each with lines more than BASE and LAST."""
    (folder / "base.yaml").write_text(BASE + base)
    (folder / "last.yaml").write_text(LAST.replace("BASE", str(folder / "base.yaml")) + last)
    return load_config(folder / "last.yaml")


@pytest.mark.parametrize(
    ("base", "last", "changes", "error", "message"),
    [
        ("", "", ["data.dataset=camvid", "data.path=nowhere"], DatasetError, "nowhere"),
        ("", "", ["data.cut_paste.objects=nowhere", "data.cut_paste.probability=0.5"], ConfigError, "last.*'nowhere'"),
        (TEACHER, "", [], ConfigError, "nothing.pth"),
        ("", TEACHER, [], ConfigError, "nothing.pth"),
        ("", TEACHER.replace("checkpoint: nothing.pth", "config: enet-camvi"), [], ConfigError, "enet-camvid"),
    ],
)
def test_missing_input_of_any_run_is_noticed_before_the_first_one(
    base: str,
    last: str,
    changes: list[str],
    error: type[Exception],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[str] = []
    monkeypatch.setattr(chain, "train", lambda config, *_: started.append(config.name))
    chain_of(tmp_path, base, last)
    config = load_config(tmp_path / "last.yaml", changes)
    with pytest.raises(error, match=message):
        train_chain(config, tmp_path / "out", changes, False, chain.no_report)
    assert not started and not (tmp_path / "out").exists()


def test_runs_of_a_chain_follow_each_other_in_folders_of_their_own(tmp_path: Path) -> None:
    config = chain_of(tmp_path)
    told: list[str] = []
    result = train_chain(config, tmp_path / "out", [], False, lambda run, status: told.append(run))
    assert list(dict.fromkeys(told)) == ["base", "last"]
    assert result.checkpoint.parent == tmp_path / "out"
    assert (tmp_path / "out" / "initial" / "best.safetensors").is_file()
