from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from anomseg_ros.errors import AnomsegError, CheckpointError, ConfigError, DatasetError  # noqa: E402
from anomseg_ros.networks.checkpoints import load_checkpoint  # noqa: E402
from anomseg_ros.training import synthetic_recipe  # noqa: E402
from anomseg_ros.training.synthetic_frames import FrameSet, augment, draw_batch  # noqa: E402
from anomseg_ros.training.synthetic_recipe import Progress, Recipe, class_weights, main, ranking_quality, train  # noqa: E402

TINY = Recipe(
    network_name="mide_net",
    steps=4,
    batch_size=2,
    height_px=32,
    width_px=64,
    sequences=3,
    frames_per_sequence=2,
    measured_sequences=2,
    checkpoint_every=2,
)


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Progress]]:
    folder = tmp_path_factory.mktemp("run")
    seen: list[Progress] = []
    train(TINY, folder, seen.append)
    return folder, seen


def test_training_leaves_a_loadable_checkpoint_and_its_measurement(finished: tuple[Path, list[Progress]]) -> None:
    folder, seen = finished
    network = load_checkpoint(folder / "mide_net-synthetic.safetensors", "mide_net", 20)
    assert network(torch.rand(1, 3, 32, 64)).shape == (1, 20, 32, 64)
    metrics = json.loads((folder / "metrics.json").read_text())
    for part in metrics.values():
        assert part["frames"] == 4
        assert all(0.0 <= part[key] <= 1.0 for key in ("pixel_accuracy", "miou", "void_ap", "void_fpr95"))
    assert not set(metrics["held_out_kinds"]["kinds"]) & set(metrics["train_kinds"]["kinds"])
    assert network.checkpoint_metadata["metrics"] == metrics
    assert [p.done for p in seen if p.stage == "train"] == [1, 2, 3, 4]
    assert not list(folder.rglob("*.part"))


def test_a_killed_run_goes_on_and_ends_with_the_same_weights(
    finished: tuple[Path, list[Progress]], tmp_path: Path
) -> None:
    def kill(now: Progress) -> None:
        if now.stage == "train" and now.done == 3:
            raise Killed

    with pytest.raises(Killed):
        train(TINY, tmp_path, kill)
    steps: list[int] = []
    final = train(TINY, tmp_path, lambda now: steps.append(now.done) if now.stage == "train" else None)
    assert steps == [3, 4]
    whole = load_checkpoint(finished[0] / final.name, "mide_net", 20).state_dict()
    resumed = load_checkpoint(final, "mide_net", 20).state_dict()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert len(list(tmp_path.glob("weights-*"))) == len(list(tmp_path.glob("optimizer-*"))) == 1


def test_another_recipe_does_not_go_on_with_a_run(finished: tuple[Path, list[Progress]]) -> None:
    with pytest.raises(ConfigError, match="another recipe"):
        train(Recipe(network_name="mide_net", steps=5), finished[0], lambda _: None)


def test_a_damaged_state_is_named(finished: tuple[Path, list[Progress]], tmp_path: Path) -> None:
    for path in finished[0].rglob("*"):
        if path.is_file():
            copy = tmp_path / path.relative_to(finished[0])
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
    (tmp_path / "optimizer-000004.pt").write_bytes(b"cut short")
    with pytest.raises(CheckpointError, match="optimizer-000004"):
        train(TINY, tmp_path, lambda _: None)
    next((tmp_path / "frames").glob("*.npz")).write_bytes(b"cut short")
    with pytest.raises(DatasetError, match="delete it"):
        train(TINY, tmp_path, lambda _: None)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(AnomsegError, match=r"the loss is (nan|inf) at step"):
        train(Recipe(**{**vars(TINY), "learning_rate": 1e30, "steps": 40}), tmp_path, lambda _: None)


def test_the_loss_falls(tmp_path: Path) -> None:
    losses: list[float] = []
    recipe = Recipe(**{**vars(TINY), "steps": 40, "learning_rate": 5e-3})
    train(recipe, tmp_path, lambda now: losses.append(now.loss) if now.loss is not None else None)
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:4])


def test_an_unknown_network_or_a_count_of_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown network 'ennet'"):
        train(Recipe(network_name="ennet"), tmp_path, lambda _: None)
    with pytest.raises(ConfigError, match="steps is 0"):
        Recipe(steps=0)


def test_class_weights_are_those_of_the_paper() -> None:
    targets = np.array([[0, 0, 0, 19, 255, 255]], np.uint8)
    weights = class_weights(targets)
    assert weights.shape == (20,)
    assert float(weights[0]) == pytest.approx(1 / np.log(1.02 + 0.75), rel=1e-6)
    assert float(weights[19]) == pytest.approx(1 / np.log(1.02 + 0.25), rel=1e-6)
    assert float(weights[5]) == pytest.approx(1 / np.log(1.02), rel=1e-6)


def test_augmentation_keeps_sizes_and_moves_image_and_target_together() -> None:
    target = np.zeros((40, 80), np.uint8)
    target[10:30, 50:70] = 7
    image = np.repeat((target * 30)[..., None], 3, axis=2)
    rng = np.random.default_rng(0)
    for _ in range(30):
        new_image, new_target = augment(image, target, rng)
        assert new_image.shape == image.shape
        assert new_target.shape == target.shape
        assert set(np.unique(new_target)) <= {0, 7}
        bright = new_image.astype(int).sum(axis=2) > 3 * 70
        assert (bright == (new_target == 7)).mean() > 0.93


def test_batches_follow_from_their_seed() -> None:
    rng = np.random.default_rng(1)
    frames = FrameSet(rng.integers(0, 256, (5, 32, 64, 3), np.uint8), rng.integers(0, 20, (5, 32, 64), np.uint8))
    first, second, third = (draw_batch(frames, 3, np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
    assert not np.array_equal(first[0], third[0])


def test_ranking_quality_with_and_without_ties() -> None:
    ap, fpr95 = ranking_quality(np.array([0.9, 0.8, 0.7, 0.6], np.float32), np.array([True, False, True, False]))
    assert ap == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert fpr95 == pytest.approx(0.5)
    # 20 positives and 20 negatives in groups of equal scores: the first threshold with 95 % recall lets 3/4 through.
    scores = np.concatenate([np.repeat([0.9, 0.8, 0.7, 0.6], 5), np.repeat([0.85, 0.65, 0.6, 0.1], 5)])
    truth = np.arange(40) < 20
    _, fpr95 = ranking_quality(scores.astype(np.float32), truth)
    assert fpr95 == pytest.approx(0.75)
    ap, _ = ranking_quality(np.zeros(10, np.float32), np.arange(10) < 3)
    assert ap == pytest.approx(0.3)
    assert np.isnan(ranking_quality(np.zeros(3, np.float32), np.zeros(3, bool))).all()


def test_class_quality_counts_void_predictions_as_misses() -> None:
    confusion = np.zeros((20, 20), np.int64)
    confusion[0, 0], confusion[0, 19], confusion[1, 0], confusion[19, 0] = 6, 2, 2, 5
    quality = synthetic_recipe._class_quality(confusion)
    assert quality["pixel_accuracy"] == pytest.approx(0.6)
    assert quality["iou_by_train_id"] == {"0": pytest.approx(6 / 15), "1": 0.0}
    assert quality["classes_present"] == 2


def test_the_command_reports_an_error_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path), "--network", "ennet"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
