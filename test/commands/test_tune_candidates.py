"""What `anomseg tune` makes of a bundle: sizes, pruned networks and int8; what of it is refused, and found again."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import yaml
from pruning_place import make_place
from small_bundles import with_program
from tiny_runs import write_config, write_frames

from anomseg_ros.bench.figures import BenchReport, load_report
from anomseg_ros.cli import main
from anomseg_ros.core.bundle import CONTRACT_FILE, Bundle, load_bundle

FEW = ["--rounds", "7", "--threads", "1", "--no-memory", "--backend", "onnxruntime"]
NOTHING_FITS = ["--max-latency-ms", "0.0001"]
ANYTHING_FITS = ["--max-latency-ms", "60000"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, its checkpoint, twelve frames of a street, and a few frames in CamVid's layout."""
    return make_place(tmp_path_factory.mktemp("tune"))


def arguments(place: Path, output: Path, *more: str) -> list[str]:
    return ["tune", str(place / "whole"), *FEW, "--frames", str(place / "frames"), "--output", str(output), *more]


def pruning(place: Path) -> list[str]:
    return ["--checkpoint", str(place / "whole.safetensors"), "--prune", "0.5"]


def evidence(folder: Path) -> BenchReport:
    return load_report(folder / "evidence.json")


def made(state: Path) -> dict[str, Path]:
    return {path.parent.name: path.parent for path in state.glob("bundles/*/*/bundle.yaml")}


def stamps(state: Path) -> dict[str, int]:
    return {name: (path / CONTRACT_FILE).stat().st_mtime_ns for name, path in made(state).items()}


def names(report: BenchReport) -> list[str]:
    return [entry.title.partition(",")[0] for entry in report.entries]


def reasons(report: BenchReport) -> dict[str, str]:
    return {one["what"]: one["reason"] for one in report.settings["left_out"]}


WHOLE = ["whole", "whole-32x64", "whole-pruned50", "whole-32x64-pruned50"]


@pytest.mark.slow
def test_candidates_are_sizes_pruned_networks_and_their_int8(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in (place / "whole").iterdir()}
    words = arguments(place, tmp_path / "out", *pruning(place), "--size", "32x64")
    state = tmp_path / "out.tune"
    # A network with half of its channels, not trained again, is beyond what pruning may cost.
    assert main([*words, *NOTHING_FITS]) == 1
    assert "up to 8 candidates: 1 bundle(s) and 7 to be made" in capsys.readouterr().err
    report = evidence(state)
    assert names(report) == ["whole fp32", "whole-32x64 fp32", "whole int8", "whole-32x64 int8"]
    left = reasons(report)
    assert set(left) == {"whole-pruned50", "whole-32x64-pruned50"}
    assert "too far from its parent: " in left["whole-pruned50"] and "accept_drift" in left["whole-pruned50"]
    assert any("left out: whole-pruned50" in warning for warning in report.warnings)
    first = stamps(state)
    # Accepted, it is measured, with int8 of it; what is there is not made again.
    assert main([*words, *NOTHING_FITS, "--accept-drift"]) == 1
    report = evidence(state)
    assert names(report) == [f"{name} {precision}" for precision in ("fp32", "int8") for name in WHOLE]
    assert reasons(report) == {} and len(report.times_ms) == 7 and len(report.times_ms[0]) == 8
    assert first.items() <= stamps(state).items() and len(made(state)) == 7
    # Not accepted any more, it is out again, although it is there; so is its int8.
    assert main([*words, *ANYTHING_FITS]) == 0
    report = evidence(tmp_path / "out")
    assert len(report.entries) == 4 and set(reasons(report)) == set(left)
    assert "pruned" not in report.settings["chosen"]
    assert not state.exists() and before == {path: path.read_bytes() for path in (place / "whole").iterdir()}


@pytest.mark.slow
def test_pruned_network_is_chosen_when_only_it_is_fast_enough(place: Path, tmp_path: Path) -> None:
    words = arguments(place, tmp_path / "out", *pruning(place), "--no-quantize", "--accept-drift", "--size", "32x64")
    assert main([*words, *NOTHING_FITS]) == 1
    state = json.loads((tmp_path / "out.tune" / "state.json").read_text())
    # As if all but the small pruned one, which is measured last, were slow.
    for row in state["rounds"]:
        row.update(dict.fromkeys(list(row)[:3], 9000.0))
    (tmp_path / "out.tune" / "state.json").write_text(json.dumps(state))
    assert main([*words, "--max-latency-ms", "5000"]) == 0
    bundle = load_bundle(tmp_path / "out")
    assert bundle.contract.name == "whole-32x64-pruned50" and bundle.contract.input.height_px == 32
    # With its weights, from which it can be exported again, and all that was done and asked.
    assert set(bundle.contract.files) == {"model.onnx", "checkpoint.safetensors", "evidence.json", "evidence.svg"}
    assert bundle.contract.compression["settings"]["fraction"] == 0.5
    assert bundle.contract.compression["parent"]["name"] == "whole-32x64"
    assert bundle.contract.compression["tuned"]["candidates"] == 4


def doctor(bundle: Path, agreement: float) -> None:
    """Change the label agreement that a bundle says of itself."""
    contract = yaml.safe_load((bundle / CONTRACT_FILE).read_text())
    contract["compression"]["drift"]["label_agreement"] = agreement
    (bundle / CONTRACT_FILE).write_text(yaml.safe_dump(contract))


@pytest.mark.slow
def test_accepted_int8_bundle_is_checked_again(place: Path, tmp_path: Path) -> None:
    words = arguments(place, tmp_path / "out", *NOTHING_FITS)
    state = tmp_path / "out.tune"
    assert main([*words, "--accept-drift"]) == 1
    doctor(made(state)["whole-int8"], 0.9)
    first = stamps(state)
    assert main(words) == 1
    assert names(evidence(state)) == ["whole"]
    assert "labels agree in 90.00%" in reasons(evidence(state))["whole in int8"]
    assert main([*words, "--accept-drift"]) == 1
    assert names(evidence(state)) == ["whole fp32", "whole int8"]
    assert stamps(state) == first  # found, not made again


@pytest.mark.slow
def test_tune_interrupted_during_candidates_resumes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anomseg_ros.compression import quantize

    def killed(*_: object) -> Bundle:
        raise KeyboardInterrupt

    words = arguments(place, tmp_path / "out", *pruning(place), "--accept-drift")
    with monkeypatch.context() as patch:
        patch.setattr(quantize, "quantize_bundle", killed)
        with contextlib.suppress(KeyboardInterrupt):
            assert main([*words, *NOTHING_FITS]) != 0
    state = tmp_path / "out.tune"
    first = stamps(state)
    assert list(first) == ["whole-pruned50"]
    assert main([*words, *NOTHING_FITS]) == 1
    assert first.items() <= stamps(state).items()
    assert set(stamps(state)) == {"whole-pruned50", "whole-int8", "whole-pruned50-int8"}


@pytest.mark.slow
def test_pruned_candidate_is_fine_tuned(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = {"epochs": 1, "ema_decay": 0.5}
    recipe = write_config(tmp_path / "tune.yaml", "", run=run, optimizer={"kind": "adamw"})
    words = arguments(place, tmp_path / "out", *pruning(place), "--fine-tune", str(recipe), "--size", "32x64")
    words += ["--data", str(place / "camvid"), "--no-quantize", "--accept-drift"]
    assert main([*words, *NOTHING_FITS]) == 1
    folder = made(tmp_path / "out.tune")
    kept = [load_bundle(folder[name]).contract.compression["settings"]["fine_tune"] for name in WHOLE[2:]]
    # Trained once, for both sizes.
    assert kept[0]["steps"] == 3 and kept[0] == kept[1]
    assert [path.name for path in tmp_path.glob("out.tune/bundles/*/*.fine-tune")] == ["whole-pruned50.fine-tune"]
    assert main([*words, *ANYTHING_FITS]) == 0
    assert not (tmp_path / "out.tune").exists()


@pytest.mark.slow
def test_int8_candidate_needs_enough_frames(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for index in range(9):
        shutil.copy(place / "frames" / f"{index}.png", few)
    words = ["tune", str(place / "whole"), *FEW, "--frames", str(few), "--output", str(tmp_path / "out")]
    assert main([*words, "--quantize", *ANYTHING_FITS]) == 1
    assert "holds 9 frame(s); int8 needs at least 10" in capsys.readouterr().err
    assert not (tmp_path / "out.tune").exists()
    assert main([*words, *ANYTHING_FITS]) == 0
    report = evidence(tmp_path / "out")
    assert names(report) == ["whole"] and "holds 9 frame(s)" in reasons(report)["int8"]
    (few / "9.png").write_text("no picture")
    assert main([*words, "--overwrite", *ANYTHING_FITS]) == 1
    assert "9.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--prune", "0.5"], "`checkpoint`"),
        (["--prune", "30", "--checkpoint", "WEIGHTS"], "more than 0 and less than 1"),
        (["--prune", "0", "--checkpoint", "WEIGHTS"], "more than 0 and less than 1"),
        (["--prune", "0.5", "--checkpoint", "nowhere.pth"], "nowhere.pth does not exist"),
        (["--prune", "0.5", "--checkpoint", "FRAME"], "is not what bundle"),
        (["--size", "32x64", "--checkpoint", "FRAME"], "is not what bundle"),
        (["--fine-tune", "mide_net-camvid"], "for pruned networks"),
        (["--data", "."], "is for fine-tuning"),
        (["--prune", "0.5", "--checkpoint", "WEIGHTS", "--fine-tune", "mide_net-camvi"], "mide_net-camvid"),
    ],
)
def test_impossible_candidates_give_one_line_error_before_run(
    extra: list[str], said: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {"WEIGHTS": place / "whole.safetensors", "FRAME": place / "frames" / "0.png"}
    words = [str(known.get(word, word)) for word in extra]
    assert main(arguments(place, tmp_path / "out", *words, *ANYTHING_FITS)) == 1
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_int8_calibration_and_evaluation_frames_are_separate(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    camvid = write_frames(tmp_path / "camvid", validation_frames=12)
    words = ["tune", str(place / "whole"), *FEW, "--dataset", f"camvid={camvid}:val", "--allow-partial"]
    words += ["--frames", str(camvid / "val"), "--output", str(tmp_path / "out"), *ANYTHING_FITS]
    assert main([*words, "--quantize"]) == 1
    assert "frames to calibrate on" in capsys.readouterr().err
    assert main(words) == 0
    report = evidence(tmp_path / "out")
    assert names(report) == ["whole"] and "frames to calibrate on" in reasons(report)["int8"]


def test_pruning_without_frames_is_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tune", str(place / "whole"), *pruning(place), *ANYTHING_FITS, "--output", str(tmp_path / "out")]
    assert main(words) == 1
    assert "pruning needs `frames`" in capsys.readouterr().err


@pytest.mark.slow
def test_candidate_that_cannot_run_does_not_stop_others(tiny_bundle: Path, tmp_path: Path) -> None:
    both = with_program(tiny_bundle, tmp_path / "both", b"no program", keep_graph=True)
    words = ["tune", str(both), *ANYTHING_FITS, "--rounds", "7", "--no-memory", "--output", str(tmp_path / "out")]
    assert main([*words, "--backend", "onnxruntime", "torch"]) == 0
    report = evidence(tmp_path / "out")
    assert {entry.backend for entry in report.entries} == {"onnxruntime"}
    left = reasons(report)
    assert left and all(", torch, " in what for what in left) and all("model.pt2" in said for said in left.values())


def test_torch_backend_without_graph_support_makes_no_candidates(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*arguments(place, tmp_path / "out", *ANYTHING_FITS), "--backend", "torch"]
    assert main([*words, *pruning(place)]) == 1
    assert "which torch does not run; add onnxruntime or openvino" in capsys.readouterr().err
    assert main(words) == 1  # int8 that nobody asked for is not made either
    assert "none of the bundles can run on torch" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
