from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_trees import write

torch = pytest.importorskip("torch")

from tiny_runs import (  # noqa: E402
    Killed,
    killed_at,
    run,
    same_weights,
    state,
    tiny_config,
    weights,
    write_frames,
)

from anomseg_ros.networks import build_network  # noqa: E402
from anomseg_ros.networks.checkpoints import load_checkpoint, save_checkpoint  # noqa: E402
from anomseg_ros.training import loop  # noqa: E402
from anomseg_ros.training.status import TrainingStatus  # noqa: E402
from anomseg_ros.training.validation import validate  # noqa: E402

PASTING = {"probability": 0.5, "paste": {"min_area_px": 20, "feather_radius_px": 1.0}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frames(tmp_path_factory.mktemp("data"))


def steps(output: Path) -> list[dict[str, Any]]:
    """Return the log entries of training steps."""
    lines = (output / "log.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if "loss" in entry]


def test_run_writes_weights_state_log_and_configuration(data: Path, tmp_path: Path) -> None:
    seen: list[TrainingStatus] = []
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
def test_network_learns_the_frames(data: Path, tmp_path: Path, void: bool) -> None:
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
def test_random_labels_are_not_learnt(data: Path, tmp_path: Path) -> None:
    """A run on random labels does not reach the mIoU of the test above."""
    write_frames(tmp_path / "data")
    for number, path in enumerate(sorted((tmp_path / "data" / "trainannot").iterdir())):
        noise = np.random.default_rng(number).integers(0, 11, (32, 48), dtype=np.uint8)
        write(path, noise)
    config = tiny_config(tmp_path, tmp_path / "data", run={"epochs": 25, "validate_every": 25})
    miou = run(config, tmp_path / "out").miou
    assert miou is not None and miou < 0.3


RESUMED: dict[str, dict[str, Any]] = {
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


@pytest.mark.slow
@pytest.mark.parametrize("changes", RESUMED.values(), ids=list(RESUMED))
def test_resumed_run_ends_with_the_same_bits(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """On a CPU the results are equal bit for bit with the same number of threads (here 1)."""
    config = tiny_config(tmp_path, data, **changes)
    whole = run(config, tmp_path / "whole")
    stop = config.run.checkpoint_every * 2 - 1  # one step before the second save, so the last saved state is older
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


def test_finished_run_is_not_trained_again(data: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, data)
    first = run(config, tmp_path / "out")
    before = (tmp_path / "out" / "state.pt").read_bytes()
    seen: list[str] = []
    again = run(config, tmp_path / "out", lambda now: seen.append(now.stage))
    assert (again.miou, again.steps, again.waited) == (first.miou, first.steps, None)
    assert set(seen) == {"decode"}
    assert (tmp_path / "out" / "state.pt").read_bytes() == before


def test_different_seed_gives_different_weights(data: Path, tmp_path: Path) -> None:
    run(tiny_config(tmp_path, data), tmp_path / "a")
    run(tiny_config(tmp_path, data, run={"seed": 1}), tmp_path / "b")
    assert not same_weights(weights(tmp_path / "a"), weights(tmp_path / "b"))


def weights_after_one_step(data: Path, folder: Path, batch_size: int, accumulate: int, name: str) -> dict[str, Any]:
    """Return weights after one step of plain SGD on 4 samples, norms in evaluation mode."""
    torch.manual_seed(0)
    save_checkpoint(folder / "start.safetensors", build_network("mide_net", 11), {})
    config = tiny_config(
        folder,
        data,
        network={"initial": {"checkpoint": str(folder / "start.safetensors")}, "trained": "classifier"},
        optimizer={"kind": "sgd", "learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0},
        run={"epochs": 1, "batch_size": batch_size, "accumulate": accumulate},
        # Complete frames without void, so that each batch has the same number of counted pixels.
        augment={"crop_height_px": 16, "crop_width_px": 48, "scale": [1, 1]},
    )
    run(config, folder / name, initial=folder / "start.safetensors")
    return weights(folder / name)


def test_accumulated_gradients_equal_those_of_a_large_batch(tmp_path: Path) -> None:
    tree = write_frames(tmp_path / "data", train_frames=4)
    for path in (tree / "trainannot").iterdir():
        write(path, np.repeat(np.arange(8, dtype=np.uint8), 4)[:, None] * np.ones((1, 48), np.uint8))
    large, small = (weights_after_one_step(tree, tmp_path, *sizes, name=f"{sizes}") for sizes in ((4, 1), (2, 2)))
    start = load_checkpoint(tmp_path / "start.safetensors", "mide_net", 11).state_dict()
    moved = (large["classifier.weight"] - start["classifier.weight"]).abs().max()
    assert moved > 1e-4
    apart = (large["classifier.weight"] - small["classifier.weight"]).abs().max()
    assert apart < 1e-4 * moved


@pytest.mark.slow
@pytest.mark.parametrize("ema", [None, 0.9])
def test_frozen_parts_are_unchanged(data: Path, tmp_path: Path, ema: float | None) -> None:
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
def test_compiled_run_can_be_resumed_without_compilation(data: Path, tmp_path: Path) -> None:
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
def test_auxiliary_heads_learn_only_with_a_weight(data: Path, tmp_path: Path, auxiliary_weight: float) -> None:
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


def test_student_follows_the_teacher_which_does_not_change(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(4)
    teacher = build_network("mide_net", 11)
    with torch.no_grad():
        teacher.get_parameter("classifier.bias")[5] = 50.0  # a teacher that always predicts class 5
    save_checkpoint(tmp_path / "teacher.safetensors", teacher, {})
    before = (tmp_path / "teacher.safetensors").read_bytes()
    config = tiny_config(
        tmp_path,
        data,
        teachers=[{"network": "mide_net", "checkpoint": "given"}],
        loss={"distillation_weight": 20.0},
        run={"epochs": 8},
    )
    run(config, tmp_path / "out", teachers=(tmp_path / "teacher.safetensors",))
    assert (tmp_path / "teacher.safetensors").read_bytes() == before
    student = load_checkpoint(tmp_path / "out" / "last.safetensors", "mide_net", 11)
    with torch.no_grad():
        followed = (student(torch.rand(1, 3, 32, 48)).argmax(1) == 5).float().mean()
    assert followed > 0.8
    assert steps(tmp_path / "out")[0]["loss"]["distillation"] > 0


def test_early_stop_ends_after_the_given_number_of_worse_validations(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([0.3, 0.5, 0.4, 0.5, 0.45, 0.2, 0.1])

    def scripted(*arguments: Any) -> Any:
        return replace(validate(*arguments), miou=next(found))

    monkeypatch.setattr(loop, "validate", scripted)
    config = tiny_config(tmp_path, data, run={"early_stop": 3, "epochs": 30, "validate_every": 1})
    result = run(config, tmp_path / "out")
    assert (result.steps, result.miou) == (5 * 3, 0.5)  # 3 steps per epoch; an equal value is not better
    assert state(tmp_path / "out")["position"]["best_step"] == 6
    assert load_checkpoint(result.checkpoint, "mide_net", 11).checkpoint_metadata["step"] == 6
    assert run(config, tmp_path / "out").steps == 15  # it does not continue


@pytest.mark.slow
def test_synthetic_frames_need_no_folder(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path,
        "5:2",
        data={
            "dataset": "synthetic",
            "validation_path": "6:2",
            "train_split": "",
            "validation_split": "",
            "void": "outliers",
        },
        run={"epochs": 1},
    )
    result = run(config, tmp_path / "out")
    assert (result.steps, result.num_classes, result.void_class) == (1, 20, 19)


@pytest.mark.slow
def test_real_frames_are_learnt(shared_data: Path, tmp_path: Path) -> None:
    """MiDE-Net learns to distinguish sky, road and trees from 60 frames of CamVid in 150 steps."""
    import os

    for split, count in (("train", 60), ("val", 12)):
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
