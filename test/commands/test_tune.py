"""`anomseg tune`: the right choice among bundles that differ for real, the evidence, and going on after a kill."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import cv2
import pytest
import torch
from flat_dataset import write_flat_dataset
from small_bundles import small_bundle

from anomseg_ros.bench.candidates import core_count
from anomseg_ros.bench.figures import load_report
from anomseg_ros.cli import main
from anomseg_ros.core.bundle import Contract, load_bundle
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.export import ExportConfig, export_checkpoint
from anomseg_ros.networks import build_network
from anomseg_ros.networks.checkpoints import save_checkpoint
from anomseg_ros.scenes.sequence import SyntheticSequence

pytestmark = pytest.mark.slow

BRIEF = ["--rounds", "7", "--threads", "1", "--no-memory", "--power-seconds", "0"]
FEW = [*BRIEF, "--backend", "onnxruntime"]
DRAWN = ["--dataset", "synthetic=3:2", "--score", "void"]


def tuned(contract: Contract) -> dict[str, object]:
    found: dict[str, object] = contract.compression["tuned"]
    return found


def test_generous_latency_limit_selects_most_accurate(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    words = ["tune", str(tiny_bundle), "--candidates", "enet-synthetic", "--max-latency-ms", "60000", *DRAWN, *FEW]
    assert main([*words, "--output", str(output)]) == 0
    bundle = load_bundle(output)
    # The tiny one has random weights.
    assert bundle.contract.name == "enet-synthetic"
    assert set(bundle.contract.files) == {"model.onnx", "evidence.json", "evidence.svg"}
    assert (output / "model.onnx").read_bytes() == (find_bundle("enet-synthetic") / "model.onnx").read_bytes()
    report = load_report(output / "evidence.json")
    by_name = {entry.name: entry for entry in report.entries}
    assert by_name["enet-synthetic"].accuracy.value > by_name["tiny"].accuracy.value
    assert report.settings["chosen"] == by_name["enet-synthetic"].title
    said = tuned(bundle.contract)
    assert said["asked"] == "the most accurate with a p95 of at most 60000 ms"
    assert said["threads"] == 1 and said["backend"] == "onnxruntime" and said["machine"]["cores"]  # type: ignore[index]
    assert bundle.contract.quality["synthetic"]["protocol"] == "seeds"
    assert "chosen" in {ring.get("class") for ring in ElementTree.parse(output / "evidence.svg").iter()}
    assert "run it on onnxruntime with 1 thread" in capsys.readouterr().out
    assert not (tmp_path / "out.tune").exists()


def test_short_latency_limit_selects_fastest(tiny_bundle: Path, tmp_path: Path) -> None:
    times = tmp_path / "b.json"
    assert main(["bench", str(tiny_bundle), "enet-synthetic", *FEW, "--json", str(times)]) == 0
    tiny, enet = load_report(times).entries
    # Between the two: the fast one is many times as fast, whatever the machine does meanwhile.
    limit_ms = (tiny.latency_ms["p50"] * enet.latency_ms["p50"]) ** 0.5
    words = ["tune", "enet-synthetic", "--candidates", str(tiny_bundle), "--max-latency-ms", f"{limit_ms:.3f}"]
    assert main([*words, "--percentile", "50", *DRAWN, *FEW, "--output", str(tmp_path / "out")]) == 0
    assert load_bundle(tmp_path / "out").contract.name == "tiny"
    by_name = {entry.name: entry for entry in load_report(tmp_path / "out" / "evidence.json").entries}
    assert by_name["enet-synthetic"].accuracy is None  # too slow to be worth an evaluation


@pytest.mark.slow
def test_accuracy_limit_selects_fastest_above_it(tiny_bundle: Path, tmp_path: Path) -> None:
    dataset = write_flat_dataset(tmp_path / "flat", frames=3)
    words = ["tune", "enet-synthetic", "--candidates", str(tiny_bundle), "--min-auprc", "0.0001", "--score", "void"]
    words += ["--dataset", dataset, "--allow-partial", *FEW]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    bundle = load_bundle(tmp_path / "out")
    assert bundle.contract.name == "tiny" and 0 < bundle.contract.quality["road_anomaly_21"]["auprc"] < 1


@pytest.mark.slow
def test_without_dataset_accuracy_is_agreement_with_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    words = ["tune", str(tiny_bundle), "--candidates", "enet-synthetic", "--max-latency-ms", "60000", *FEW]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    bundle = load_bundle(tmp_path / "out")
    assert bundle.contract.name == "tiny" and tuned(bundle.contract)["accuracy"]["value"] == 1.0  # type: ignore[index]


@pytest.mark.slow
def test_no_fitting_candidate_names_nearest_and_keeps_state(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tune", "enet-synthetic", "--candidates", str(tiny_bundle), *FEW, "--output", str(tmp_path / "out")]
    assert main([*words, "--max-latency-ms", "0.001"]) == 1
    err = capsys.readouterr().err
    assert "no candidate has a p95 of at most 0.001 ms: the nearest is tiny" in err and "--max-latency-ms" in err
    assert not (tmp_path / "out").exists()
    kept = tmp_path / "out.tune"
    assert load_report(kept / "evidence.json").settings["chosen"] is None
    before = json.loads((kept / "state.json").read_text())["rounds"]
    # Another goal: nothing is timed again.
    assert main([*words, "--max-latency-ms", "60000"]) == 0
    report = load_report(tmp_path / "out" / "evidence.json")
    assert report.times_ms == tuple(tuple(row.values()) for row in before)


@pytest.mark.slow
def test_size_candidates_are_exported_from_checkpoint(tmp_path: Path) -> None:
    checkpoint = tmp_path / "own.safetensors"
    torch.manual_seed(1)
    save_checkpoint(checkpoint, build_network("mide_net", 20).eval(), {})
    config = ExportConfig("own", 20, 19, height_px=256, width_px=512)
    export_checkpoint("mide_net", checkpoint, config, tmp_path / "own")
    words = ["tune", str(tmp_path / "own"), "--checkpoint", str(checkpoint), "--size", "32x64", "512x1024"]
    # Sizes far apart: on a busy machine the p95 of few rounds is off by twenty milliseconds.
    words += ["--min-auprc", "0.000001", *DRAWN, *FEW, "--output", str(tmp_path / "out")]
    assert main(words) == 0
    contract = load_bundle(tmp_path / "out").contract
    assert (contract.input.height_px, contract.input.width_px) == (32, 64)
    assert len(load_report(tmp_path / "out" / "evidence.json").entries) == 3


@pytest.mark.slow
def test_quantize_option_adds_measured_int8_candidate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    bundle = small_bundle("mide_net", tmp_path).directory
    words = ["tune", str(bundle), "--quantize", "--frames", str(frames), *FEW, "--output", str(tmp_path / "out")]
    words.append("--accept-drift")
    for number in range(12):
        if number == 9:
            assert main([*words, "--max-latency-ms", "60000"]) == 1
            assert "holds 9 frame(s); int8 needs at least 10" in capsys.readouterr().err
        image = SyntheticSequence(50 + number // 4).frame(40 * (number % 4)).image
        cv2.imwrite(str(frames / f"{number}.png"), image[:, :, ::-1])
    written = set()
    for _ in range(2):
        assert main([*words, "--max-latency-ms", "0.001"]) == 1
        assert "no candidate has a p95" in capsys.readouterr().err
        (made,) = (tmp_path / "out.tune" / "bundles").glob("*/mide_net-int8")
        written.add((made / "model.onnx").stat().st_mtime_ns)
    assert len(written) == 1  # found again, not made again
    assert main([*words, "--max-latency-ms", "60000"]) == 0
    assert load_bundle(tmp_path / "out").contract.precision == "fp32"  # nothing agrees better with itself
    own, int8 = load_report(tmp_path / "out" / "evidence.json").entries
    assert (own.name, int8.name, int8.precision) == ("mide_net fp32", "mide_net int8", "int8")
    assert own.accuracy is not None and int8.accuracy is not None
    assert 0.8 < int8.accuracy.value < own.accuracy.value == 1.0
    assert int8.multiply_adds == pytest.approx(own.multiply_adds, rel=0.1)


SENTINEL_MS = 123456.0


@pytest.mark.slow
def test_killed_tune_resumes(tiny_bundle: Path, tmp_path: Path) -> None:
    words = ["tune", "enet-synthetic", "--candidates", str(tiny_bundle), "--max-latency-ms", "60000", "--no-memory"]
    words += ["--backend", "onnxruntime", "--percentile", "50", "--rounds", "60", "--threads", "1"]
    words += ["--output", str(tmp_path / "out")]
    started = subprocess.Popen(
        [sys.executable, "-m", "anomseg_ros.cli", *words],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    state = tmp_path / "out.tune" / "state.json"
    deadline = time.monotonic() + 60
    while not (state.is_file() and json.loads(state.read_text())["rounds"]) and time.monotonic() < deadline:
        assert started.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    assert not (tmp_path / "out").exists()
    kept = json.loads(state.read_text())
    assert 0 < len(kept["rounds"]) < 60 and all(len(row) == 2 for row in kept["rounds"])
    # Times that nobody would measure show that they are taken from there.
    kept["rounds"][0] = dict.fromkeys(kept["rounds"][0], SENTINEL_MS)
    state.write_text(json.dumps(kept))
    assert main(words) == 0
    report = load_report(tmp_path / "out" / "evidence.json")
    assert [entry.rounds for entry in report.entries] == [60, 60] and len(report.times_ms) == 60
    assert report.times_ms[: len(kept["rounds"])] == tuple(tuple(row.values()) for row in kept["rounds"])
    assert [entry.latency_ms["max"] for entry in report.entries] == [SENTINEL_MS, SENTINEL_MS]


def test_added_candidate_is_measured_with_all_others(tiny_bundle: Path, tmp_path: Path) -> None:
    words = ["tune", str(tiny_bundle), *FEW, "--output", str(tmp_path / "out")]
    assert main([*words, "--max-latency-ms", "0.0001"]) == 1
    state = tmp_path / "out.tune" / "state.json"
    kept = json.loads(state.read_text())
    kept["rounds"] = [dict.fromkeys(row, SENTINEL_MS) for row in kept["rounds"]]
    state.write_text(json.dumps(kept))
    assert main([*words, "--max-latency-ms", "60000", "--candidates", "enet-synthetic"]) == 0
    report = load_report(tmp_path / "out" / "evidence.json")
    tiny, enet = report.entries
    # Not with times of another run, in which the machine may have been another: one of that run would be 123 s.
    assert len(report.times_ms) == 7 and tiny.latency_ms["max"] < 60_000
    assert 0 < enet.speedup[tiny.title].median < 1


def test_engine_other_than_requested_is_reported(tiny_bundle: Path, tmp_path: Path) -> None:
    words = ["tune", str(tiny_bundle), *FEW, "--output", str(tmp_path / "out")]
    assert main([*words, "--max-latency-ms", "0.0001"]) == 1
    state = tmp_path / "out.tune" / "state.json"
    kept = json.loads(state.read_text())
    (engine,) = kept["engines"].values()
    assert engine == {"requested": "onnxruntime:cpu", "actual": "onnxruntime:cpu", "facts": {}, "stages_ms": {}}
    engine["requested"] = "onnxruntime:cuda"
    state.write_text(json.dumps(kept))
    assert main([*words, "--max-latency-ms", "60000"]) == 0
    report = load_report(tmp_path / "out" / "evidence.json")
    assert report.entries[0].actual == "onnxruntime:cpu"
    assert any("onnxruntime:cuda was asked for, onnxruntime:cpu is in use" in text for text in report.warnings)


def test_default_measures_every_engine_and_thread_count(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tune", str(tiny_bundle), "--max-latency-ms", "60000", "--output", str(tmp_path / "out")]
    assert main([*words, "--rounds", "7", "--no-memory"]) == 0
    engines = ["onnxruntime", *(["openvino"] if importlib.util.find_spec("openvino") else [])]
    threads = [1, 0] if core_count() > 1 else [1]
    report = load_report(tmp_path / "out" / "evidence.json")
    found = [(entry.backend, entry.threads) for entry in report.entries]
    assert found == [(engine, number) for engine in engines for number in threads]
    assert [entry.actual for entry in report.entries] == [f"{engine}:cpu" for engine in engines for _ in threads]
    assert f"{len(found)} candidates, 7 rounds" in capsys.readouterr().err
    assert not (tmp_path / "out.tune").exists()


def everything_in(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_state_folder_with_other_files_is_refused(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "models"
    shutil.copytree(tiny_bundle, mine / "tiny")
    words = ["tune", str(tiny_bundle), "--max-latency-ms", "60000", *FEW, "--output", str(tmp_path / "out")]
    before = everything_in(tmp_path)
    assert main([*words, "--state", str(mine)]) == 1
    assert "is not the folder of a tune" in capsys.readouterr().err
    (mine / "state.json").write_text('{"progress": 3}')
    assert main([*words, "--state", str(mine)]) == 1
    assert "is not the state of a tune" in capsys.readouterr().err
    (mine / "state.json").unlink()
    assert everything_in(tmp_path) == before


def test_foreign_files_in_state_folder_are_kept(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    words = ["tune", str(tiny_bundle), *FEW, "--output", str(tmp_path / "out"), "--state", str(folder)]
    assert main([*words, "--max-latency-ms", "0.0001"]) == 1
    shutil.copytree(tiny_bundle, folder / "bundles" / "mine")
    (folder / "notes.txt").write_text("mine")
    assert main([*words, "--max-latency-ms", "60000"]) == 0
    assert {path.name for path in folder.iterdir()} == {"bundles", "notes.txt"}
    assert everything_in(folder / "bundles" / "mine").keys() == {
        folder / "bundles" / "mine" / path.name for path in tiny_bundle.iterdir()
    }


@pytest.mark.parametrize("which", ["bundle", "candidate", "output"])
def test_inputs_and_output_inside_state_folder_are_refused(
    which: str, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = tmp_path / "state" / "tiny"
    words = ["--max-latency-ms", "60000", *FEW, "--state", str(tmp_path / "state")]
    if which != "output":
        shutil.copytree(tiny_bundle, inside)
    bundle = inside if which == "bundle" else tiny_bundle
    output = inside if which == "output" else tmp_path / "out"
    more = ["--candidates", str(inside)] if which == "candidate" else []
    assert main(["tune", str(bundle), *words, "--output", str(output), *more]) == 1
    assert "lies in" in capsys.readouterr().err


@pytest.mark.parametrize("which", ["bundle", "output"])
def test_state_folder_inside_bundle_is_refused(
    which: str, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    before = everything_in(tmp_path)
    words = ["tune", str(bundle), "--max-latency-ms", "60000", *FEW, "--output", str(tmp_path / "output")]
    assert main([*words, "--state", str(tmp_path / which / "state")]) == 1
    assert "lies in the bundle" in capsys.readouterr().err
    assert everything_in(tmp_path) == before


def test_identical_graphs_are_one_candidate(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_bundle, tmp_path / "copy")
    words = ["tune", str(tiny_bundle), "--max-latency-ms", "60000", *FEW, "--output", str(tmp_path / "out")]
    assert main([*words, "--candidates", str(copy)]) == 0
    report = load_report(tmp_path / "out" / "evidence.json")
    assert len(report.entries) == 1
    (left,) = report.settings["left_out"]
    assert "it is the same as" in left["reason"]


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ([], "not neither"),
        (["--max-latency-ms", "9", "--min-auprc", "0.1"], "not both"),
        (["--max-latency-ms", "0"], "above 0"),
        (["--max-latency-ms", "-3"], "above 0"),
        (["--min-auprc", "0.1"], "give a dataset"),
        (["--max-latency-ms", "9", "--dataset", "nosuch=x"], "unknown dataset"),
        (["--max-latency-ms", "9", "--candidates", "nowhere"], "neither a bundle directory nor a shipped bundle"),
        (["--max-latency-ms", "9", "--size", "32x64"], "need the `checkpoint`"),
        (["--max-latency-ms", "9", "--quantize"], "int8 needs `frames`"),
        (["--max-latency-ms", "9", "--checkpoint", "x.pth"], "for other sizes and for pruning; give some"),
        (["--max-latency-ms", "9", "--frames", "nowhere"], "is not a folder"),
        (["--max-latency-ms", "9", "--rounds", "2"], "at least 7"),
        (["--max-latency-ms", "9", "--backend", "torch2"], "known: "),
        (["--max-latency-ms", "9", "--metric", "miou"], "give a dataset"),
    ],
)
def test_wrong_arguments_give_one_line_error_before_run(
    extra: list[str], said: str, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", str(tiny_bundle), *extra, "--output", str(tmp_path / "out")]) == 1
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_min_auprc_with_dataset_without_anomalies_is_refused(
    tiny_bundle: Path, tmp_path: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    camvid = f"camvid={shared_data / 'CamVid'}"
    words = ["tune", str(tiny_bundle), "--min-auprc", "0.1", "--dataset", camvid, "--output", str(tmp_path / "out")]
    assert main(words) == 1
    assert "no anomaly masks" in capsys.readouterr().err


def test_source_and_existing_output_are_kept(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tune", str(tiny_bundle), "--max-latency-ms", "60000", *FEW]
    assert main([*words, "--output", str(tiny_bundle), "--overwrite"]) == 1
    assert "is the bundle itself" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    assert main([*words, "--output", str(tmp_path / "mine")]) == 1
    assert main([*words, "--output", str(tmp_path / "mine"), "--overwrite"]) == 1
    assert "not a bundle" in capsys.readouterr().err
