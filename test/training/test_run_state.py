from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tiny_runs import files_of_at_most, same_weights  # noqa: E402

from anomseg_ros.core.staging import part_ending  # noqa: E402
from anomseg_ros.errors import CheckpointError, TrainingError  # noqa: E402
from anomseg_ros.networks import build_network  # noqa: E402
from anomseg_ros.training.run_state import Average, Position, load_state, save_state  # noqa: E402

HERE = Position(step=7, seconds=1.5, best_miou=0.25, best_step=5, worse=1)


def network(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_network("mide_net", 3)


def optimizer(of: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(of.parameters(), 1e-3)


def optimizer_after_a_step(of: torch.nn.Module) -> torch.optim.Optimizer:
    """Return an optimizer after one step, which has moments."""
    made = optimizer(of)
    of(torch.rand(1, 3, 16, 16)).sum().backward()
    made.step()
    return made


def test_saved_state_is_loaded_completely(tmp_path: Path) -> None:
    ours, average = network(0), network(1)
    made = optimizer_after_a_step(ours)
    save_state(tmp_path, {"network": ours, "average": average}, made, HERE, {"scale": 8.0})
    other, other_average, precision = network(2), network(3), {}  # type: ignore[var-annotated]
    others, other_optimizer = {"network": other, "average": other_average}, optimizer(other)
    assert load_state(tmp_path, others, other_optimizer, precision.update) == HERE
    assert same_weights(ours.state_dict(), other.state_dict())
    assert same_weights(average.state_dict(), other_average.state_dict())
    mine, theirs = made.state_dict()["state"], other_optimizer.state_dict()["state"]
    assert all(same_weights(mine[index], theirs[index]) for index in mine) and mine.keys() == theirs.keys()
    assert precision == {"scale": 8.0}
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_state_of_an_older_version_loads(tmp_path: Path) -> None:
    ours = network(0)
    position = {"step": 3, "seconds": 1.0, "best_miou": None, "best_step": 0, "worse": 0}
    content = {"network": ours.state_dict(), "average": None, "optimizer": optimizer_after_a_step(ours).state_dict()}
    torch.save({**content, "position": position}, tmp_path / "state.pt")
    other = network(1)
    assert load_state(tmp_path, {"network": other, "objective": torch.nn.Identity()}, optimizer(other)) == Position(
        step=3, seconds=1.0, processes=1
    )


@pytest.mark.parametrize("kept", [0, 5000])
def test_damaged_state_error_names_the_file(tmp_path: Path, kept: int) -> None:
    ours = network(0)
    save_state(tmp_path, {"network": ours}, optimizer(ours), HERE)
    path = tmp_path / "state.pt"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"state\.pt is damaged .*--overwrite") as caught:
        load_state(tmp_path, {"network": ours}, optimizer(ours))
    assert "\n" not in str(caught.value)


def test_state_of_another_run_is_refused(tmp_path: Path) -> None:
    ours = network(0)
    save_state(tmp_path, {"network": ours}, optimizer(ours), HERE)
    with pytest.raises(CheckpointError, match="no state of this run"):
        load_state(tmp_path, {"network": ours, "average": network(1)}, optimizer(ours))  # no average was kept
    other = build_network("mide_net", 4)
    with pytest.raises(CheckpointError, match="no state of this run") as caught:
        load_state(tmp_path, {"network": other}, optimizer(other))
    assert "\n" not in str(caught.value)


def test_full_disk_keeps_the_old_state(tmp_path: Path) -> None:
    ours = network(0)
    save_state(tmp_path, {"network": ours}, optimizer(ours), Position(step=1))
    with files_of_at_most(50_000), pytest.raises(TrainingError) as caught:
        save_state(tmp_path, {"network": ours}, optimizer(ours), Position(step=2))
    assert "cannot save the run's state" in str(caught.value) and "File too large" in str(caught.value)
    assert "the last saved state is whole" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    other = network(1)
    assert load_state(tmp_path, {"network": other}, optimizer(other)).step == 1


def test_full_disk_error_states_the_reason(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    ours = network(0)
    (tmp_path / f".state.pt{part_ending()}").symlink_to("/dev/full")
    with pytest.raises(TrainingError, match="the disk is full; the last saved state is whole"):
        save_state(tmp_path, {"network": ours}, optimizer(ours), HERE)
    assert not list(tmp_path.iterdir())


def test_average_equals_its_formula() -> None:
    ours, average = network(0), network(1)
    update = Average(ours, average, 0.9)
    before = {key: value.clone() for key, value in average.state_dict().items()}
    for step, decay in ((0, 0.1), (8, 0.5), (1000, 0.9)):  # (1 + t) / (10 + t), at most 0.9
        update.update(step)
        for key, value in average.state_dict().items():
            current = ours.state_dict()[key]
            expected = decay * before[key] + (1 - decay) * current if value.is_floating_point() else current
            assert torch.allclose(value, expected, atol=1e-6), key
        before = {key: value.clone() for key, value in average.state_dict().items()}


def test_average_of_constant_weights_is_exact() -> None:
    ours = network(0)
    average = network(0)
    update = Average(ours, average, 0.99)
    for step in range(20):
        update.update(step)
    assert same_weights(ours.state_dict(), average.state_dict())
