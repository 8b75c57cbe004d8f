"""`anomseg bench`: real runs of small bundles, to the table, JSON and the picture."""

from __future__ import annotations

import shutil
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch
from chromium import NAMES
from flat_dataset import write_flat_dataset

from anomseg_ros.bench.figures import load_report
from anomseg_ros.cli import main
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.export import ExportConfig, export_checkpoint
from anomseg_ros.networks import build_network
from anomseg_ros.networks.checkpoints import save_checkpoint

FEW = ["--rounds", "5", "--no-memory", "--power-seconds", "0"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small bundle and its checkpoint."""
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(1)
    save_checkpoint(folder / "own.safetensors", build_network("mide_net", 20).eval(), {})
    config = ExportConfig("own", 20, 19, height_px=64, width_px=128)
    bundle, _ = export_checkpoint("mide_net", folder / "own.safetensors", config, folder / "own")
    return bundle.directory, folder / "own.safetensors"


@pytest.mark.slow
def test_writes_table_json_and_plot(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--json", str(tmp_path / "b.json"), "--plot", str(tmp_path / "b.svg")]
    assert main(["bench", str(tiny_bundle), "enet-synthetic", "--threads", "1", "--rounds", "9", *files]) == 0
    report = load_report(tmp_path / "b.json")
    tiny, enet = report.entries
    assert len(report.times_ms) == 9 and all(len(row) == 2 for row in report.times_ms)
    assert tiny.latency_ms["p50"] == pytest.approx(np.median([row[0] for row in report.times_ms]))
    assert tiny.latency_ms["p50"] <= tiny.latency_ms["p95"] <= tiny.latency_ms["p99"]
    assert tiny.frames_per_second == pytest.approx(1e3 / tiny.latency_ms["p50"])
    # A network of 40 times the work is slower on any machine.
    ratio = enet.speedup[tiny.title]
    assert ratio.low <= ratio.median <= ratio.high < 0.5 and tiny.speedup == {}
    assert (enet.multiply_adds or 0) > 40 * (tiny.multiply_adds or 0) > 0
    assert tiny.file_bytes == (tiny_bundle / "model.onnx").stat().st_size
    assert 30 < (tiny.peak_memory_mib or 0) < (enet.peak_memory_mib or 0)
    assert report.machine["cores"] and report.versions["onnxruntime"] and report.command.startswith("anomseg bench")
    out = capsys.readouterr().out
    assert tiny.title in out and enet.title in out and "frames/s" in out
    drawn = {group.get("data-entry") for group in ElementTree.parse(tmp_path / "b.svg").iter()} - {None}
    assert drawn == {tiny.title, enet.title}


@pytest.mark.slow
def test_checkpoint_gives_torch_entry_and_other_sizes(exported: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, checkpoint = exported
    words = ["bench", str(bundle), "--torch-checkpoint", f"own={checkpoint}", "--size", "32x64", "--threads", "1", *FEW]
    before = torch.get_num_threads()
    try:
        assert main([*words, "--json", str(tmp_path / "b.json")]) == 0
    finally:
        torch.set_num_threads(before)
    entries = {entry.title: entry for entry in load_report(tmp_path / "b.json").entries}
    assert [title.split(", ", 1)[1] for title in entries] == [
        "torch eager, 1 thread, 64x128",
        "torch eager, 1 thread, 32x64",
        "onnxruntime, 1 thread, 64x128",
        "onnxruntime, 1 thread, 32x64",
    ]
    for title, entry in entries.items():
        if "onnxruntime" in title:
            own = title.replace("onnxruntime", "torch eager")
            assert entry.own_eager == own and entry.speedup[own].median > 0
    eager = next(iter(entries.values()))
    assert eager.own_eager is None and eager.file_bytes == checkpoint.stat().st_size


@pytest.mark.slow
def test_plot_shows_accuracy_of_evaluation(tiny_bundle: Path, tmp_path: Path) -> None:
    dataset = write_flat_dataset(tmp_path / "flat")
    words = ["evaluate", str(tiny_bundle), "--dataset", dataset, "--allow-partial", "--json", str(tmp_path / "e.json")]
    assert main(words) == 0
    files = [
        "--json",
        str(tmp_path / "b.json"),
        "--plot",
        str(tmp_path / "b.svg"),
        "--accuracy",
        str(tmp_path / "e.json"),
    ]
    assert main(["bench", str(tiny_bundle), "enet-synthetic", "--threads", "1", "--published", *FEW, *files]) == 0
    tiny, enet = load_report(tmp_path / "b.json").entries
    assert tiny.accuracy is not None and tiny.accuracy.dataset == "road_anomaly_21" and enet.accuracy is None
    text = (tmp_path / "b.svg").read_text()
    assert "AuPRC on road_anomaly_21" in text and text.count("data-published") == 27
    assert main(["bench", str(tiny_bundle), "--metric", "miou", "--threads", "1", *FEW, *files[:2]]) == 0
    assert load_report(tmp_path / "b.json").entries[0].accuracy is None


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, NAMES)), reason="no Chromium is installed")
def test_png_plot_is_rendered_by_chromium(tiny_bundle: Path, tmp_path: Path) -> None:
    words = ["bench", str(tiny_bundle), "--threads", "1", *FEW, "--plot", str(tmp_path / "b.png")]
    assert main(words) == 0
    picture = cv2.imread(str(tmp_path / "b.png"))
    assert picture is not None and picture.shape[1] == 2 * 880 and picture.std() > 5


def test_frames_option_reads_folder(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    cv2.imwrite(str(frames / "0.png"), np.zeros((40, 60, 3), np.uint8))
    words = ["bench", str(tiny_bundle), "--frames", str(frames), "--threads", "1", *FEW]
    assert main(words) == 0
    (frames / "1.png").write_bytes((frames / "0.png").read_bytes()[:50])
    assert main(words) == 1
    assert "1.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["nowhere"], "neither a bundle directory nor a shipped bundle"),
        (["--backend", "onxruntime"], "known: onnxruntime"),
        (["--threads", "one"], "whole number"),
        (["--rounds", "0"], "at least 1"),
        (["--frames", "nowhere"], "is not a folder"),
        (["--size", "32x64"], "give the checkpoint"),
        (["--torch-checkpoint", "other=x.pth"], "with the name of a bundle"),
        (["--torch-checkpoint", "tiny=x.pth"], "does not exist"),
        (["--accuracy", "nowhere.json"], "is not an evaluation"),
    ],
)
def test_wrong_arguments_give_one_line_error(
    extra: list[str], said: str, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A bundle is the last word: options of several values would take it.
    words = (
        ["bench", *extra[:1], str(tiny_bundle)]
        if not extra[0].startswith("--")
        else ["bench", str(tiny_bundle), *extra]
    )
    assert main([*words, "--no-memory"] if "--rounds" in words else [*words, *FEW]) == 1
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err


def test_unknown_plot_suffix_is_refused_before_run(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["bench", str(tiny_bundle), *FEW, "--plot", str(tmp_path / "b.gif"), "--json", str(tmp_path / "b.json")])
        == 1
    )
    assert "must end in .svg or .png" in capsys.readouterr().err
    assert not (tmp_path / "b.json").exists()


def test_wrong_size_is_refused(tiny_bundle: Path) -> None:
    for text in ("512", "0x64", "axb", "64x"):
        with pytest.raises(SystemExit):
            main(["bench", str(tiny_bundle), "--size", text])


@pytest.mark.slow
def test_more_threads_than_cores_gives_warning(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(tiny_bundle), "--threads", "200", *FEW]) == 0
    assert "200 threads on" in capsys.readouterr().out
    assert load_bundle(tiny_bundle).contract.name == "tiny"
