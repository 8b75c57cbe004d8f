from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

torch = pytest.importorskip("torch")

from tiny_runs import tiny_plain, write_config  # noqa: E402

from anomseg_ros.errors import ConfigError  # noqa: E402
from anomseg_ros.outliers.mixture import ObjectsConfig  # noqa: E402
from anomseg_ros.training.config import config_text, load_config, parse_config  # noqa: E402
from anomseg_ros.training.segmentation_loss import LossConfig  # noqa: E402


def test_saved_configuration_reads_back_unchanged(tmp_path: Path) -> None:
    path = write_config(
        tmp_path / "a.yaml",
        "7:4",
        network={"options": {}, "initial": {"checkpoint": "a.pt", "part": "features"}, "std": [0.25, 0.5, 1]},
        loss={"class_weights_c": 1.02, "entropy_weight": 1},
        data={"cut_paste": {"probability": 0.5, "paste": {"objects": [1, 2]}}, "void": "both"},
        run={"ema_decay": 0.999, "devices": "2"},
    )
    config = load_config(path, ["name='1e5'"])
    assert config.name == "1e5"
    (tmp_path / "saved.yaml").write_text(config_text(config))
    assert load_config(tmp_path / "saved.yaml") == config
    assert "betas" in config_text(config)  # the defaults are saved, too


def test_changes_are_read_as_yaml(tmp_path: Path) -> None:
    path = write_config(tmp_path / "a.yaml", "x")
    changes = ["run.epochs=3", "optimizer.learning_rate=1e-3", "loss.class_weights_c=1.1", "augment.scale=[0.5, 2]"]
    config = load_config(path, [*changes, "data.path=7:4", "run.devices=2", "schedule.kind=cosine"])
    assert isinstance(config.loss, LossConfig)
    assert (config.run.epochs, config.optimizer.learning_rate, config.loss.class_weights_c) == (3, 0.001, 1.1)
    assert config.augment.scale == (0.5, 2.0)
    assert (config.data.path, config.run.devices, config.schedule.kind) == ("7:4", "2", "cosine")
    assert load_config(path, ["loss.class_weights_c=null"]).loss == LossConfig(class_weights_c=None)


def test_object_sources_can_be_a_list_and_changed_by_index(tmp_path: Path) -> None:
    sources = [{"source": "procedural"}, {"source": "a", "weight": 2, "part": "train", "erode_share": 0.05}]
    path = write_config(tmp_path / "a.yaml", "x", data={"cut_paste": {"probability": 0.5, "objects": sources}})
    config = load_config(path, ["data.cut_paste.objects.1.source=/b/c", "data.cut_paste.objects.0.weight=3"])
    assert config.data.cut_paste.sources == (ObjectsConfig(weight=3.0), ObjectsConfig("/b/c", 2.0, "train", 0.05))
    (tmp_path / "saved.yaml").write_text(config_text(config))
    assert load_config(tmp_path / "saved.yaml") == config
    assert load_config(path, ["data.cut_paste.objects=/d"]).data.cut_paste.sources == (ObjectsConfig("/d"),)
    for change, message in (
        ("data.cut_paste.objects.2.source=a", "'2' is no position in a list of 2; the first is 0"),
        ("data.cut_paste.objects.x=a", "'x' is no position in a list of 2"),
        ("data.cut_paste.objects.1.part=test", "part of 'a' 'test'; known: "),
        ("data.cut_paste.objects.1.wieght=2", "unknown key 'wieght'; did you mean 'weight'"),
        ("data.cut_paste.objects=[]", r"cut_paste.objects is \(\); give `procedural`"),
        ("data.cut_paste.objects=''", "cut_paste.objects is ''; give `procedural`"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(path, [change])


def test_number_in_exponent_form_without_a_point_is_a_float(tmp_path: Path) -> None:
    text = yaml.safe_dump(tiny_plain("x")).replace("learning_rate: 0.005", "learning_rate: 5e-3")
    assert "5e-3" in text
    (tmp_path / "a.yaml").write_text(text)
    assert load_config(tmp_path / "a.yaml").optimizer.learning_rate == 0.005


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["run.epocs=3"], r"--set run.epocs=3: run: unknown key 'epocs'; did you mean 'epochs'\?"),
        (["netwrok.name=enet"], r"unknown key 'netwrok'; did you mean 'network'\?"),
        (["data.cut_paste.paste.max_shares=1"], "did you mean 'max_share'"),
        (["run.epochs"], "not of the form key=value"),
        (["name.of.it=3"], "'name' is a value, not a group"),
        (["run.epochs=[1"], "the value is not YAML"),
        (["run.epochs=2.5"], "epochs: expected int, got 2.5"),
    ],
)
def test_invalid_changes_are_refused(tmp_path: Path, changes: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write_config(tmp_path / "a.yaml", "x"), changes)


def test_unknown_key_error_names_the_file_and_the_closest_key(tmp_path: Path) -> None:
    path = write_config(tmp_path / "mine.yaml", "x", optimizer={"learning_rat": 1.0})
    with pytest.raises(ConfigError, match=r"mine.yaml: optimizer: unknown key 'learning_rat'; did you mean 'learning_"):
        load_config(path)


@pytest.mark.parametrize("content", ["- 1\n", "", "a: [1\n"])
def test_files_that_are_not_a_configuration_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"a\.yaml"):
        load_config(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_config(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("group", "values", "message"),
    [
        ("run", {"epochs": 0}, "run.epochs is 0"),
        ("run", {"precision": "16"}, "unknown run.precision '16'"),
        ("run", {"ema_decay": 1.0}, "run.ema_decay is 1.0"),
        ("run", {"seed": -1}, "run.seed is -1"),
        ("run", {"early_stop": -1}, "run.early_stop is -1"),
        ("optimizer", {"kind": "adma"}, "unknown optimizer.kind 'adma'; known: adam"),
        ("optimizer", {"learning_rate": float("nan")}, "optimizer.learning_rate is nan"),
        ("optimizer", {"gradient_clip": 0.0}, "optimizer.gradient_clip is 0.0"),
        ("schedule", {"kind": "polly"}, "unknown schedule.kind 'polly'; known: poly"),
        ("schedule", {"warmup_steps": -1}, "schedule.warmup_steps is -1"),
        ("data", {"void": "outlier"}, "unknown data.void 'outlier'; known: outliers"),
        ("data", {"void": "outliers"}, "no frame has any"),
        ("data", {"workers": -1}, "data.workers is -1"),
        ("data", {"cut_paste": {"probability": 2.0}}, "cut_paste.probability is 2.0"),
        ("loss", {"energy_weight": 0.1}, "no frame has any"),
        ("loss", {"distillation_weight": 1.0}, "there is no teacher"),
        ("network", {"initial": {}}, "either checkpoint"),
        ("network", {"trained": "classifier"}, "would freeze random weights"),
        ("teachers", [{"network": "enet"}], "either checkpoint"),
    ],
)
def test_invalid_values_are_refused(group: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(tiny_plain("x", **{group: values}), "here")
