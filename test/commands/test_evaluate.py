"""`anomseg evaluate`, `anomseg calibrate` and the page of `anomseg papers`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from flat_dataset import write_flat_dataset

from anomseg_ros.cli import main
from anomseg_ros.commands.papers import MODELS, rows_of
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.evaluation.results import Result, load_evaluation

TIMES = ("inference_ms", "network_ms", "wall_ms")


def figures(path: Path) -> list[dict[str, Any]]:
    """Return the results without clock readings."""
    results = json.loads(path.read_text())["results"]
    for result in results:
        for row in (result, *result["per_frame"]):
            for name in TIMES:
                row.pop(name, None)
    return results


def test_writes_table_json_and_html(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = write_flat_dataset(tmp_path / "flat")
    arguments = ["evaluate", str(tiny_bundle), "--dataset", dataset, "--allow-partial", "--score", "void,msp"]
    files = ["--json", str(tmp_path / "e.json"), "--html", str(tmp_path / "e.html")]
    assert main([*arguments, *files]) == 0
    evaluation = load_evaluation(tmp_path / "e.json")
    assert [result.score for result in evaluation.results] == ["void", "msp"]
    assert evaluation.command.startswith("anomseg evaluate") and evaluation.machine["cores"]
    assert evaluation.settings["datasets"]["road_anomaly_21"]["frames"] == 6
    out = capsys.readouterr().out
    assert "protocol seeds" in out and f"{100 * (evaluation.results[0].auprc or 0):.2f}" in out
    assert (tmp_path / "e.html").read_text().count("data:image/jpeg") >= 5
    assert not (tmp_path / "e.state").exists()


def test_corruptions_are_printed_and_written_separately(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("imagecorruptions", reason="needs anomseg_ros[corruptions]")
    dataset = write_flat_dataset(tmp_path / "flat")
    arguments = ["evaluate", str(tiny_bundle), "--dataset", dataset, "--allow-partial", "--score", "void,msp"]
    arguments += ["--corrupt", "pixelate,contrast", "--severity", "1,4-5", "--json", str(tmp_path / "e.json")]
    assert main([*arguments, "--html", str(tmp_path / "e.html")]) == 0
    evaluation = load_evaluation(tmp_path / "e.json")
    assert (
        [result.score for result in evaluation.results] == ["void", "msp"] == [r.score for r in evaluation.robustness]
    )
    void = evaluation.robustness[0]
    kinds = ("contrast", "pixelate")
    assert [(c.kind, c.severity) for c in void.corruptions] == [(kind, n) for kind in kinds for n in (1, 4, 5)]
    assert void.clean.auprc == evaluation.results[0].auprc and evaluation.versions["imagecorruptions-imaug"]
    out = capsys.readouterr().out
    assert "…" not in out and "ratio of the mean to clean" in out and ", void (seeds): AuPRC by severity" in out
    for value in (void.mean.auprc, *(cell.figures.fpr95 for cell in void.corruptions)):
        assert f"{100 * (value or 0):.2f}" in out
    assert "Under corruptions" in (tmp_path / "e.html").read_text() and not (tmp_path / "e.state").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--corrupt", "fogg"], "unknown corruption 'fogg'; known: fog"),
        (["--corrupt", ","], "has no names"),
        (["--severity", "3"], "give --corrupt"),
        (["--corrupt", "fog", "--severity", "6"], "from 1 to 5"),
        (["--corrupt", "fog", "--severity", "4-2"], "from 1 to 5"),
        (["--corrupt", "fog", "--severity", "1,,x"], "from 1 to 5"),
        (["--corrupt", "fog", "--severity", ""], "from 1 to 5"),
    ],
)
def test_wrong_corruption_options_are_refused(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "bundle", "--dataset", "synthetic=4:3", *options]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_killed_run_resumes_with_same_result(workers: str, tiny_bundle: Path, tmp_path: Path) -> None:
    dataset = write_flat_dataset(tmp_path / "flat", frames=12, height_px=320, width_px=640)
    command = ["evaluate", str(tiny_bundle), "--dataset", dataset, "--allow-partial", "--protocol", "fishyscapes"]
    command += ["--workers", workers, "--save-every", "0", "--json"]
    whole, resumed = tmp_path / "whole.json", tmp_path / "resumed.json"
    started = subprocess.Popen(
        [sys.executable, "-m", "anomseg_ros.cli", *command, str(resumed)],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    whole_snapshots = "resumed.state/*/0???????"  # not those with .part
    while not list(tmp_path.glob(whole_snapshots)) and time.monotonic() < deadline:
        assert started.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    assert not resumed.exists()
    snapshot = max(tmp_path.glob(whole_snapshots))
    assert 0 < len(json.loads((snapshot / "rows.json").read_text())["done"]) < 12
    assert main([*command, str(resumed)]) == 0
    assert main([*command, str(whole)]) == 0
    assert figures(resumed) == figures(whole)


@pytest.mark.slow
def test_checkpoint_is_evaluated_without_bundle(tmp_path: Path) -> None:
    from anomseg_ros.networks import build_network
    from anomseg_ros.networks.checkpoints import save_checkpoint

    checkpoint = tmp_path / "c.safetensors"
    save_checkpoint(checkpoint, build_network("mide_net", 19).eval(), {})
    dataset = write_flat_dataset(tmp_path / "flat", frames=3)
    arguments = ["--network", "mide_net", "--num-classes", "19", "--size", "64x128", "--score", "msp"]
    arguments += ["--dataset", dataset, "--allow-partial", "--json", str(tmp_path / "e.json")]
    assert main(["evaluate", "--checkpoint", str(checkpoint), *arguments]) == 0
    assert load_evaluation(tmp_path / "e.json").results[0].network == "mide_net"


def test_wrong_arguments_give_one_line_error(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = write_flat_dataset(tmp_path / "flat")
    assert main(["evaluate", str(tiny_bundle), "--dataset", dataset]) == 1
    assert "6 frames found, 10 published" in capsys.readouterr().err
    assert main(["evaluate", str(tiny_bundle)]) == 1
    assert "--dataset NAME=PATH" in capsys.readouterr().err
    for given, form in (("/data", "road_anomaly_21"), ("camvid", "camvid")):
        assert main(["evaluate", "enet-synthetic", "--data", given]) == 1
        error = capsys.readouterr().err
        assert f"--dataset '{given}' is neither NAME=PATH nor a bundle" in error and f"--dataset {form}=FOLDER" in error
    assert main(["evaluate", str(tiny_bundle), "--dataset", dataset, "--allow-partial", "--score", "vod"]) == 1
    assert "known: void" in capsys.readouterr().err


def test_calibrate_threshold_writes_table(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = write_flat_dataset(tmp_path / "flat")
    arguments = [str(tiny_bundle), "--dataset", dataset, "--allow-partial", "--score", "void"]
    arguments += ["--target-fpr", "0.01,0.05", "--output", str(tmp_path / "out")]
    assert main(["calibrate", "threshold", *arguments]) == 0
    table = load_bundle(tmp_path / "out").contract.thresholds["void"]
    assert set(table.by_target_fpr) == {0.01, 0.05} and "road_anomaly_21" in table.calibrated_on
    assert table.by_target_fpr[0.01] > table.by_target_fpr[0.05]
    assert "0.05" in capsys.readouterr().out
    assert load_bundle(tiny_bundle).contract.thresholds == {}


@pytest.mark.slow
def test_calibrate_temperature_drops_tables_of_affected_scores(
    shared_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, bundle = shared_weights / "midenet_distilled.pth", tmp_path / "bundle"
    export = ["--network", "mide_net", "--num-classes", "20", "--void-class", "19", "--size", "128x256"]
    assert main(["export", "--checkpoint", str(checkpoint), *export, "--output", str(bundle)]) == 0
    data = ["--dataset", "synthetic=3:2", "--score", "void,max_logit"]
    assert main(["calibrate", "threshold", str(bundle), *data]) == 0
    fit = ["calibrate", "temperature", str(bundle), "--checkpoint", str(checkpoint), *data[:2]]
    assert main([*fit, "--output", str(tmp_path / "out")]) == 0
    fitted = load_bundle(tmp_path / "out").contract
    said = capsys.readouterr().out
    assert fitted.temperature > 1.05  # on drawings, a network of real roads is far too sure
    assert f"temperature 1 -> {fitted.temperature:.4f}" in said and "thresholds of void depended" in said
    assert set(fitted.thresholds) == {"max_logit"}
    other = shared_weights / "erfnet_void20_dequantized.safetensors"
    assert main([*fit[:4], str(other), *fit[5:]]) == 1


def test_rows_compare_with_reproduced_values() -> None:
    known = MODELS["erfnet"].reproduced["fs_static"]
    result = Result("erfnet", "fs_static", "void", "seeds", 20, known[0] / 100 + 1e-4, known[1] / 100 + 1e-3, 0.5, None)
    auprc, fpr95 = rows_of([result])
    assert auprc.is_within_tolerance and auprc.difference == pytest.approx(0.01)
    assert not fpr95.is_within_tolerance
