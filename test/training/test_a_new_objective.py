"""A new objective needs only one file and one line in the table, also with adapters and stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from objective_contract import Case, ObjectiveContract  # noqa: E402
from tiny_runs import Killed, killed_at, run, same_weights, state, weights, write_config, write_frames  # noqa: E402

from anomseg_ros import cli  # noqa: E402
from anomseg_ros.errors import ConfigError  # noqa: E402
from anomseg_ros.networks import build_network  # noqa: E402
from anomseg_ros.training.config import load_config  # noqa: E402
from anomseg_ros.training.objectives import OBJECTIVES  # noqa: E402

STEPS = 12
RATE = 5e-3


@pytest.fixture(autouse=True)
def registered_objectives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "staged", "staged_objective:StagedObjective")
    monkeypatch.setitem(OBJECTIVES, "matching", "matching_objective:MatchingObjective")


class TestNewObjectives(ObjectiveContract):
    @pytest.fixture(params=[Case("staged"), Case("matching", network="eomt", void=True)], ids=str)
    def case(self, request: pytest.FixtureRequest) -> Case:
        found: Case = request.param
        return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frames(tmp_path_factory.mktemp("data"))


@pytest.fixture
def config(data: Path, tmp_path: Path) -> Path:
    changes = {"run": {"ema_decay": 0.9}, "schedule": {"kind": "constant"}, "loss": {"rank": 3}}
    return write_config(tmp_path / "tiny.yaml", data, objective="staged", **changes)


def train(config: Path, output: Path, *more: str) -> int:
    return cli.main(["train", str(config), "--output", str(output), "--no-bundle", *more])


def rates(output: Path) -> list[float]:
    """Return the rates of the groups at the last step of a state."""
    return [group["lr"] for group in state(output)["optimizer"]["param_groups"]]


def test_new_objective_trains_and_saves_a_plain_checkpoint(config: Path, tmp_path: Path) -> None:
    assert train(config, tmp_path / "out") == 0
    trained, kept = weights(tmp_path / "out"), state(tmp_path / "out")
    torch.manual_seed(0)
    fresh = build_network("mide_net", 11).state_dict()
    assert trained.keys() == fresh.keys(), "the adapter is merged"
    changed = {key.split(".")[0] for key, value in fresh.items() if not torch.equal(value, trained[key])}
    assert changed == {"stage2", "classifier"}
    adapter = {key: value for key, value in kept["average"].items() if key.startswith("classifier.")}
    assert adapter["classifier.down.weight"].shape[0] == 3, "the option is used"
    update = adapter["classifier.up.weight"].flatten(1) @ adapter["classifier.down.weight"].flatten(1)
    merged = adapter["classifier.layer.weight"] + update.reshape(adapter["classifier.layer.weight"].shape)
    assert torch.allclose(trained["classifier.weight"], merged) and update.abs().max() > 1e-4
    assert torch.equal(trained["classifier.bias"], fresh["classifier.bias"])
    assert kept["objective"]["centres"].abs().max() > 1e-3
    entry = json.loads((tmp_path / "out" / "log.jsonl").read_text().splitlines()[-2])
    assert set(entry["loss"]) == {"classification", "distance", "total"}


@pytest.mark.slow
def test_killed_run_resumes_to_the_same_bits(config: Path, tmp_path: Path) -> None:
    assert train(config, tmp_path / "whole") == 0
    with pytest.raises(Killed):
        run(load_config(config), tmp_path / "killed", killed_at(5))
    assert rates(tmp_path / "killed") == pytest.approx([RATE * (1 - 3 / STEPS), RATE * 3 / 4])
    assert train(config, tmp_path / "killed", "--resume") == 0
    assert rates(tmp_path / "killed") == pytest.approx([RATE * (1 - 11 / STEPS), RATE])
    ours, theirs = state(tmp_path / "whole"), state(tmp_path / "killed")
    for part in ("network", "average", "objective"):
        assert same_weights(ours[part], theirs[part]), part
    first, second = ((tmp_path / name / "last.safetensors").read_bytes() for name in ("whole", "killed"))
    assert first == second


def test_masking_depends_on_the_step() -> None:
    objective, network = Case("staged").start()
    images = torch.rand(1, 3, 64, 96)
    early, late, last = (objective.ask(network.eval(), images, step).prediction.pixel_logits() for step in (0, 9, 10))
    assert not torch.equal(early, late) and torch.equal(last, network(images))


def test_matching_objective_learns_with_layer_rates(data: Path, tmp_path: Path) -> None:
    changes = {"network": {"name": "eomt", "options": {"width": 64, "depth": 2, "query_blocks": 1, "queries": 12}}}
    path = write_config(
        tmp_path / "tiny.yaml", data, objective="matching", **changes, schedule={"kind": "constant"}, run={"epochs": 8}
    )
    losses: list[float] = []
    run(load_config(path), tmp_path / "out", lambda now: losses.append(now.loss) if now.stage == "train" else None)
    assert sum(losses[-6:]) < 0.7 * sum(losses[:6])
    assert rates(tmp_path / "out") == pytest.approx([RATE, RATE * 0.25, RATE * 0.5])
    with pytest.raises(ConfigError, match="matching needs masks, which mide_net has not"):
        run(load_config(path, ["network={name: mide_net}"]), tmp_path / "other")


def test_run_of_another_objective_is_not_resumed(config: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(load_config(config), tmp_path / "out", killed_at(3))
    with pytest.raises(ConfigError, match="holds a run with objective='staged', not 'segmentation'"):
        run(load_config(config, ["objective=segmentation", "loss={}"]), tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("loss.rnak=2", "loss: unknown key 'rnak'; did you mean 'rank'"),
        ("loss.kind=focal", "loss: unknown key 'kind'"),
        ("loss.rank=two", "loss: rank: expected int, got 'two'"),
        ("loss.feature=stage9", "unknown feature 'stage9'; known: encoder"),
    ],
)
def test_invalid_option_error_names_it(config: Path, tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(load_config(config, [change]), tmp_path / "out")
