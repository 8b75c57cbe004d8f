"""`anomseg compress`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pruning_place import arguments, make_place

from anomseg_ros.cli import main
from anomseg_ros.core.bundle import GRAPH_FILE, load_bundle, sha256_of
from anomseg_ros.node.diagnostics import drift_values

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("compress"))


def write_recipe(path: Path, **steps: object) -> str:
    path.write_text(yaml.safe_dump({"name": "tiny", **steps}), encoding="utf-8")
    return str(path)


def test_recipe_prunes_then_quantizes(place: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", prune={"fraction": 0.25}, quantize={"keep_float": "none"})
    measured = ["--dataset", f"camvid={place / 'camvid'}", "--allow-partial", "--accept-drift"]
    words = ["compress", recipe, *arguments(place, tmp_path / "out", "--rounds", "0", "--allow-few", *measured)]
    assert main(words) == 0
    small, middle = load_bundle(tmp_path / "out"), load_bundle(tmp_path / "out-float")
    assert small.contract.precision == "int8" and middle.contract.precision == "fp32"
    both, first = small.contract.compression, middle.contract.compression
    assert both["parent"]["sha256"] == sha256_of(middle.graph_path)
    assert first["parent"]["sha256"] == both["original"]["sha256"] == sha256_of(place / "whole" / GRAPH_FILE)
    # Nothing of the first step is forgotten: what was done, what it cost, and what both cost together.
    assert both["method"].startswith(first["method"]) and both["method"] != first["method"]
    assert both["parent"]["compression"] == first
    whole = both["original"]["drift"]
    assert whole["scores"].keys() == both["drift"]["scores"].keys() and whole["scores"] != both["drift"]["scores"]
    miou = [drift["datasets"]["camvid"]["miou"] for drift in (first["drift"], both["drift"], whole)]
    assert miou[2] == [miou[0][0], miou[1][1]]
    shown = drift_values(both)
    assert shown["original_drift_label_agreement"] == f"{whole['label_agreement']:.4f}"
    assert shown["parent_drift_miou_camvid"] == f"{miou[0][0]:.4f} -> {miou[0][1]:.4f}"


def test_failed_run_resumes_from_its_pruned_bundle(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second step fails; the float bundle that it leaves is no obstacle to the same pruning, but to another."""
    words = [*arguments(place, tmp_path / "out", "--rounds", "0", "--allow-few", "--accept-drift")]

    def compress(fraction: float, keep_float: str) -> int:
        steps = {"prune": {"fraction": fraction}, "quantize": {"keep_float": keep_float}}
        return main(["compress", write_recipe(tmp_path / "r.yaml", **steps), *words])

    assert compress(0.25, "no_such_layer") == 1
    assert "no layer 'no_such_layer'" in capsys.readouterr().err
    assert load_bundle(tmp_path / "out-float").contract.precision == "fp32"
    assert compress(0.5, "none") == 1
    assert "out-float" in capsys.readouterr().err
    assert compress(0.25, "none") == 0
    assert load_bundle(tmp_path / "out").contract.precision == "int8"


def test_manually_pruned_bundle_is_not_replaced(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_hand = arguments(place, tmp_path / "out-float", "--rounds", "0", "--fraction", "0.25", "--accept-drift")
    assert main(["prune", *by_hand]) == 0
    recipe = write_recipe(tmp_path / "r.yaml", prune={"fraction": 0.25}, quantize={"keep_float": "none"})
    assert main(["compress", recipe, *arguments(place, tmp_path / "out", "--allow-few", "--accept-drift")]) == 1
    assert "out-float" in capsys.readouterr().err


def test_drift_options_apply_to_int8_step(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", quantize={"keep_float": "none"})
    words = ["compress", recipe, *arguments(place, tmp_path / "out", "--allow-few")]
    assert main([*words, "--rank-correlation", "1"]) == 1
    assert "(at least 1)" in capsys.readouterr().err
    assert main([*words, "--label-agreement", "0.1", "--rank-correlation", "0"]) == 0
    bounds = load_bundle(tmp_path / "out").contract.compression["drift"]["tolerance"]
    assert (bounds["label_agreement"], bounds["rank_correlation"], bounds["miou_points"]) == (0.1, 0.0, 1.0)


def test_frames_are_checked_before_any_step(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", prune={"fraction": 0.25}, quantize={"calibration_frames": 4})
    assert main(["compress", recipe, *arguments(place, tmp_path / "out", "--accept-drift")]) == 1
    assert "--allow-few" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.yaml"]


def test_int8_bundle_is_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", quantize={"keep_float": "none"})
    words = arguments(place, tmp_path / "out", "--allow-few", "--accept-drift")
    assert main(["compress", recipe, *words]) == 0
    again = arguments(place, tmp_path / "again", "--allow-few", "--accept-drift")[1:]
    for steps in ({"quantize": {}}, {"prune": {"fraction": 0.25}, "quantize": {}}):
        recipe = write_recipe(tmp_path / "r.yaml", **steps)
        assert main(["compress", recipe, str(tmp_path / "out"), *again]) == 1
        assert "int8 already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ({}, "prune, quantize or both"),
        ({"prune": {"fraction": 3}}, "more than 0 and less than 1"),
        ({"prune": {"fration": 0.3}}, "did you mean 'fraction'"),
        ({"quantize": {"calibration": "mean"}}, "quantize.calibration"),
        ({"quantize": {"percentile": 3.0}}, "step quantize: `percentile` 3"),
        ({"quantize": {"calibration_frames": -5}}, "quantize.calibration_frames -5"),
        ({"fine_tune": {"config": "enet-camvid"}, "quantize": {}}, "comes after prune"),
    ],
)
def test_wrong_recipe_is_an_error(
    steps: dict[str, object], words: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", **steps)
    assert main(["compress", recipe, *arguments(place, tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert main(["compress", "no-such-recipe", *arguments(place, tmp_path / "out")]) == 1
    assert "shipped recipe" in capsys.readouterr().err
