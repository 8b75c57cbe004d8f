from __future__ import annotations

import json
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
    write_frames,
)

from anomseg_ros.errors import CheckpointError, ConfigError, DatasetError, TrainingError  # noqa: E402
from anomseg_ros.networks import build_network  # noqa: E402
from anomseg_ros.networks.checkpoints import load_checkpoint, save_checkpoint  # noqa: E402
from anomseg_ros.training import loop  # noqa: E402
from anomseg_ros.training.loop import Progress  # noqa: E402

PASTING = {"probability": 0.5, "paste": {"min_area_px": 20, "feather_radius_px": 1.0}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frames(tmp_path_factory.mktemp("data"))


def weights(output: Path, name: str = "last", network: str = "mide_net", classes: int = 11) -> dict[str, Any]:
    found: dict[str, Any] = load_checkpoint(output / f"{name}.safetensors", network, classes).state_dict()
    return found


def steps(output: Path) -> list[dict[str, Any]]:
    """Return the log's entries of steps."""
    lines = (output / "log.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if "loss" in entry]


def test_a_run_leaves_weights_state_log_and_configuration(data: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    result = run(tiny_config(tmp_path, data), tmp_path / "out", seen.append)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("best.safetensors", "config.yaml", "last.safetensors", "log.jsonl", "result.json", "state.pt", "tensorboard")
    }
    assert (result.checkpoint.name, result.steps, result.num_classes) == ("best.safetensors", 12, 11)
    assert result.miou is not None and result.void_class is None and result.is_first_process
    assert result.waited is not None and 0 < result.waited < 1
    assert [now.done for now in seen if now.stage == "train"] == list(range(1, 13))
    assert {now.stage for now in seen} == {"decode", "train", "validate"}
    kept = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (kept["checkpoint"], kept["miou"], kept["steps"]) == ("best.safetensors", result.miou, 12)
    left = [now.seconds_left for now in seen if now.stage == "train"]
    assert left[-1] == 0 and all(seconds is not None for seconds in left)
    metadata = load_checkpoint(result.checkpoint, "mide_net", 11).checkpoint_metadata
    assert metadata["run"] == "tiny" and metadata["miou"] == result.miou
    assert same_weights(weights(tmp_path / "out"), state(tmp_path / "out")["network"])


@pytest.mark.slow
@pytest.mark.parametrize("void", [False, True])
def test_a_network_learns_the_frames(data: Path, tmp_path: Path, void: bool) -> None:
    losses: list[float] = []
    changes: dict[str, Any] = {"data": {"void": "outliers", "cut_paste": PASTING}} if void else {}
    config = tiny_config(
        tmp_path, data, run={"epochs": 25, "validate_every": 25}, loss={"class_weights_c": 1.1}, **changes
    )
    result = run(config, tmp_path / "out", lambda now: losses.append(now.loss) if now.stage == "train" else None)
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5])
    assert result.miou is not None and result.miou > 0.5
    assert (result.void_class, result.num_classes) == ((11, 12) if void else (None, 11))


@pytest.mark.slow
def test_shuffled_labels_are_not_learnt(data: Path, tmp_path: Path) -> None:
    """The figure of the test above is not one that any run reaches."""
    write_frames(tmp_path / "data")
    for number, path in enumerate(sorted((tmp_path / "data" / "trainannot").iterdir())):
        noise = np.random.default_rng(number).integers(0, 11, (32, 48), dtype=np.uint8)
        write(path, noise)
    config = tiny_config(tmp_path, tmp_path / "data", run={"epochs": 25, "validate_every": 25})
    miou = run(config, tmp_path / "out").miou
    assert miou is not None and miou < 0.3


RESUMED: dict[str, dict[str, Any]] = {
    "plain": {},
    "mid-epoch, accumulated, averaged": {
        "run": {"accumulate": 2, "batch_size": 2, "ema_decay": 0.9, "epochs": 8, "checkpoint_every": 3}
    },
    "sgd, pasted, workers, bfloat16": {
        "optimizer": {"kind": "sgd", "learning_rate": 0.01, "gradient_clip": 1.0},
        "data": {"cut_paste": PASTING, "workers": 1, "void": "both"},
        "run": {"precision": "bf16-mixed"},
        "schedule": {"kind": "cosine", "warmup_steps": 3},
    },
    "dropout": {"network": {"name": "enet"}, "run": {"epochs": 2, "ema_decay": 0.9, "checkpoint_every": 2}},
}


@pytest.mark.parametrize("changes", RESUMED.values(), ids=list(RESUMED))
def test_a_resumed_run_ends_with_the_same_bits(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Bit for bit on a processor, the number of threads being equal (here 1)."""
    config = tiny_config(tmp_path, data, **changes)
    whole = run(config, tmp_path / "whole")
    stop = config.run.checkpoint_every * 2 - 1  # one step after nothing, one before a save: the last state is older
    assert stop < whole.steps and stop % config.run.checkpoint_every
    with pytest.raises(Killed):
        run(config, tmp_path / "killed", killed_at(stop))
    done: list[int] = []
    resumed = run(config, tmp_path / "killed", lambda now: done.append(now.done) if now.stage == "train" else None)
    assert done[0] == config.run.checkpoint_every + 1
    ours, theirs = state(tmp_path / "whole"), state(tmp_path / "killed")
    assert same_weights(ours["network"], theirs["network"])
    if config.run.ema_decay:
        assert same_weights(ours["average"], theirs["average"])
        assert not same_weights(ours["average"], ours["network"])
    assert (tmp_path / "whole" / "last.safetensors").read_bytes() == (
        tmp_path / "killed" / "last.safetensors"
    ).read_bytes()
    assert resumed.miou == whole.miou
    keep = ("step", "loss", "learning_rate")
    first, second = ([{key: entry[key] for key in keep} for entry in steps(tmp_path / n)] for n in ("whole", "killed"))
    assert first == second


def test_a_finished_run_is_taken_as_it_is(data: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, data)
    first = run(config, tmp_path / "out")
    before = (tmp_path / "out" / "state.pt").read_bytes()
    seen: list[str] = []
    again = run(config, tmp_path / "out", lambda now: seen.append(now.stage))
    assert (again.miou, again.steps, again.waited) == (first.miou, first.steps, None)
    assert set(seen) == {"decode"}
    assert (tmp_path / "out" / "state.pt").read_bytes() == before


def test_another_seed_is_another_run(data: Path, tmp_path: Path) -> None:
    run(tiny_config(tmp_path, data), tmp_path / "a")
    run(tiny_config(tmp_path, data, run={"seed": 1}), tmp_path / "b")
    assert not same_weights(weights(tmp_path / "a"), weights(tmp_path / "b"))


def gradients(data: Path, folder: Path, batch_size: int, accumulate: int, name: str) -> dict[str, Any]:
    """Return weights after one step of plain SGD on 4 samples, norms in evaluation mode."""
    torch.manual_seed(0)
    save_checkpoint(folder / "start.safetensors", build_network("mide_net", 11), {})
    config = tiny_config(
        folder,
        data,
        network={"initial": {"checkpoint": str(folder / "start.safetensors")}, "trained": "classifier"},
        optimizer={"kind": "sgd", "learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0},
        run={"epochs": 1, "batch_size": batch_size, "accumulate": accumulate},
        # Frames without void, whole: each batch's mean is over as many pixels.
        augment={"crop_height_px": 16, "crop_width_px": 48, "scale": [1, 1]},
    )
    run(config, folder / name, initial=folder / "start.safetensors")
    return weights(folder / name)


def test_accumulated_gradients_are_those_of_the_large_batch(tmp_path: Path) -> None:
    tree = write_frames(tmp_path / "data", train_frames=4)
    for path in (tree / "trainannot").iterdir():
        write(path, np.repeat(np.arange(8, dtype=np.uint8), 4)[:, None] * np.ones((1, 48), np.uint8))
    large, small = (gradients(tree, tmp_path, *sizes, name=f"{sizes}") for sizes in ((4, 1), (2, 2)))
    start = load_checkpoint(tmp_path / "start.safetensors", "mide_net", 11).state_dict()
    moved = (large["classifier.weight"] - start["classifier.weight"]).abs().max()
    assert moved > 1e-4
    apart = (large["classifier.weight"] - small["classifier.weight"]).abs().max()
    assert apart < 1e-4 * moved


@pytest.mark.slow
@pytest.mark.parametrize("ema", [None, 0.9])
def test_frozen_parts_stay_bit_for_bit(data: Path, tmp_path: Path, ema: float | None) -> None:
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "start.safetensors", build_network("enet", 11), {})
    config = tiny_config(
        tmp_path,
        data,
        network={"name": "enet", "initial": {"checkpoint": "given"}, "trained": "classifier"},
        data={"void": "outliers", "cut_paste": PASTING},
        run={"epochs": 2, "ema_decay": ema, "validate_every": 1},
    )
    run(config, tmp_path / "out", initial=tmp_path / "start.safetensors")
    before = load_checkpoint(tmp_path / "start.safetensors", "enet", 11).state_dict()
    after = weights(tmp_path / "out", network="enet", classes=12)
    changed = {
        key for key, value in before.items() if value.shape != after[key].shape or not torch.equal(value, after[key])
    }
    assert changed and all(key.startswith("classifier.") for key in changed)


@pytest.mark.slow
def test_a_compiled_run_saves_the_same_keys_and_can_be_continued_without(data: Path, tmp_path: Path) -> None:
    compiled = tiny_config(tmp_path, data, run={"compile": True, "epochs": 2, "ema_decay": 0.9})
    with pytest.raises(Killed):
        run(compiled, tmp_path / "out", killed_at(5))
    plain = tiny_config(tmp_path, data, run={"epochs": 2, "ema_decay": 0.9})
    assert run(plain, tmp_path / "out").steps == 6
    run(plain, tmp_path / "plain")
    ours, theirs = weights(tmp_path / "plain"), weights(tmp_path / "out")
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[key].float(), theirs[key].float(), atol=0.05) for key in ours)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_mixed_precision_with_clipping_learns(data: Path, tmp_path: Path, precision: str) -> None:
    config = tiny_config(tmp_path, data, run={"precision": precision}, optimizer={"gradient_clip": 1.0})
    losses: list[float] = []
    run(config, tmp_path / "out", lambda now: losses.append(now.loss) if now.stage == "train" else None)
    assert losses[-1] < 0.6 * losses[0]
    assert all(value.dtype in (torch.float32, torch.int64) for value in weights(tmp_path / "out").values())


@pytest.mark.slow
@pytest.mark.parametrize("auxiliary_weight", [0.0, 1.0])
def test_auxiliary_heads_learn_where_they_count(data: Path, tmp_path: Path, auxiliary_weight: float) -> None:
    config = tiny_config(
        tmp_path,
        data,
        network={"name": "bisenet_v1"},
        loss={"kind": "ohem", "auxiliary_weight": auxiliary_weight},
        run={"epochs": 1},
    )
    run(config, tmp_path / "out")
    after = weights(tmp_path / "out", network="bisenet_v1")
    torch.manual_seed(0)
    fresh = build_network("bisenet_v1", 11).state_dict()
    heads = [key for key in fresh if key.startswith("auxiliary_heads.") and key.endswith("weight")]
    assert heads
    assert any(not torch.equal(fresh[key], after[key]) for key in heads) == bool(auxiliary_weight)


def test_a_teacher_is_followed_and_does_not_change(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(4)
    teacher = build_network("mide_net", 11)
    with torch.no_grad():
        teacher.get_parameter("classifier.bias")[5] = 50.0  # a teacher who only knows class 5
    save_checkpoint(tmp_path / "teacher.safetensors", teacher, {})
    before = (tmp_path / "teacher.safetensors").read_bytes()
    config = tiny_config(
        tmp_path,
        data,
        teacher={"network": "mide_net", "checkpoint": "given"},
        loss={"distillation_weight": 20.0},
        run={"epochs": 8},
    )
    run(config, tmp_path / "out", teacher=tmp_path / "teacher.safetensors")
    assert (tmp_path / "teacher.safetensors").read_bytes() == before
    student = load_checkpoint(tmp_path / "out" / "last.safetensors", "mide_net", 11)
    with torch.no_grad():
        followed = (student(torch.rand(1, 3, 32, 48)).argmax(1) == 5).float().mean()
    assert followed > 0.8
    assert steps(tmp_path / "out")[0]["loss"]["distillation"] > 0


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_not_finite_names_step_and_frames(data: Path, tmp_path: Path, accumulate: int) -> None:
    config = tiny_config(
        tmp_path, data, run={"epochs": 20, "accumulate": accumulate}, optimizer={"kind": "sgd", "learning_rate": 1e30}
    )
    with pytest.raises(TrainingError, match=r"(the loss is (nan|inf)|weights are not finite) at step \d+, frames 00\d"):
        run(config, tmp_path / "out")


def poisoned(monkeypatch: pytest.MonkeyPatch, at: int, what: Callable[[Any], None]) -> None:
    """Do something to the run before a step is taken."""
    step = loop._Run._step

    def poison(self: Any, number: int, batches: Any) -> Any:
        if number == at:
            what(self)
        return step(self, number, batches)

    monkeypatch.setattr(loop._Run, "_step", poison)


def test_after_a_nan_the_last_state_is_whole_and_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path, data, run={"ema_decay": 0.9})

    def weight(run: Any) -> None:
        with torch.no_grad():
            run.network.classifier.weight[0, 0] = float("nan")

    with monkeypatch.context() as patched:
        poisoned(patched, 7, weight)
        with pytest.raises(TrainingError, match=r"the loss is nan at step 8, frames 00\d, 00\d; the last saved state"):
            run(config, tmp_path / "out")
    kept = state(tmp_path / "out")
    assert kept["position"]["step"] == 6
    for part in ("network", "average"):
        assert all(torch.isfinite(value).all() for value in kept[part].values())
    assert run(config, tmp_path / "out").steps == 12
    run(config, tmp_path / "whole")
    assert same_weights(weights(tmp_path / "whole"), weights(tmp_path / "out"))


def test_weights_that_a_step_ruined_are_not_kept(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of the step before a save is finite, but what the step made of the weights is not."""
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


def test_a_full_disk_stops_the_run_and_leaves_the_old_state(data: Path, tmp_path: Path) -> None:
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


def test_a_disk_that_takes_no_log_is_an_error_of_one_line(data: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, data)
    with files_of_at_most(100), pytest.raises(TrainingError):
        run(config, tmp_path / "out")


def test_early_stop_ends_after_as_many_worse_validations(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([0.3, 0.5, 0.4, 0.5, 0.45, 0.2, 0.1])
    validate = loop.validate

    def scripted(*arguments: Any) -> Any:
        return loop.replace(validate(*arguments), miou=next(found))

    monkeypatch.setattr(loop, "validate", scripted)
    config = tiny_config(tmp_path, data, run={"early_stop": 3, "epochs": 30, "validate_every": 1})
    result = run(config, tmp_path / "out")
    assert (result.steps, result.miou) == (5 * 3, 0.5)  # 3 steps an epoch; equal is not better
    assert state(tmp_path / "out")["position"]["best_step"] == 6
    assert load_checkpoint(result.checkpoint, "mide_net", 11).checkpoint_metadata["step"] == 6
    assert run(config, tmp_path / "out").steps == 15  # and it stays ended


def test_synthetic_frames_need_no_folder(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path,
        "5:2",
        data={"dataset": "synthetic", "train_split": "", "validation_split": "", "void": "outliers"},
        run={"epochs": 1},
    )
    result = run(config, tmp_path / "out")
    assert (result.steps, result.num_classes, result.void_class) == (1, 20, 19)


def test_another_configuration_does_not_go_on_with_a_run(data: Path, tmp_path: Path) -> None:
    run(tiny_config(tmp_path, data, run={"epochs": 1}), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"holds a run with optimizer.learning_rate=0.005, not 0.1 \(1 settings"):
        run(tiny_config(tmp_path, data, run={"epochs": 1}, optimizer={"learning_rate": 0.1}), tmp_path / "out")
    with pytest.raises(ConfigError, match="holds a run; continue it with --resume, or replace it with --overwrite"):
        run(tiny_config(tmp_path, data, run={"epochs": 1}), tmp_path / "out", resume=False)


def test_another_number_of_processes_does_not_go_on_with_a_run(data: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, data)
    with pytest.raises(Killed):
        run(config, tmp_path / "out", killed_at(3))
    kept = state(tmp_path / "out")
    kept["position"]["processes"] = 2
    torch.save(kept, tmp_path / "out" / "state.pt")
    with pytest.raises(ConfigError, match="holds a run of 2 processes, not 1"):
        run(config, tmp_path / "out")


def test_a_damaged_state_is_not_gone_on_from(data: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, data, run={"epochs": 1})
    run(config, tmp_path / "out")
    path = tmp_path / "out" / "state.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="is damaged"):
        run(config, tmp_path / "out")


def test_data_that_cannot_be_trained_on(data: Path, tmp_path: Path) -> None:
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


def test_devices_that_are_not_there(data: Path, tmp_path: Path) -> None:
    absent = ["tpu", "quantum"] if torch.cuda.is_available() else ["tpu", "quantum", "cuda"]
    for name in absent:
        with pytest.raises(ConfigError, match=f"run.accelerator={name} with run.devices=auto does not work here"):
            run(tiny_config(tmp_path, data, run={"accelerator": name}), tmp_path / "out")


@pytest.mark.slow
def test_real_frames_are_learnt(shared_data: Path, tmp_path: Path) -> None:
    """24 of CamVid's frames, 60 steps of MiDE-Net: sky, road and trees are told apart."""
    import os

    for split, count in (("train", 24), ("val", 6)):
        for folder in (split, f"{split}annot"):
            (tmp_path / "camvid" / folder).mkdir(parents=True)
            for path in sorted((shared_data / "CamVid" / folder).iterdir())[: count * 3 : 3]:
                os.symlink(path, tmp_path / "camvid" / folder / path.name)
    config = tiny_config(
        tmp_path,
        tmp_path / "camvid",
        data={"height_px": 90, "width_px": 120},
        augment={"crop_height_px": 80, "crop_width_px": 104},
        run={"epochs": 10, "batch_size": 4, "validate_every": 10},
    )
    losses: list[float] = []
    result = run(config, tmp_path / "out", lambda now: losses.append(now.loss) if now.stage == "train" else None)
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    assert result.miou is not None and result.miou > 0.2
