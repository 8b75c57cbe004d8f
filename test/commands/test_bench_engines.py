"""`anomseg bench` and `tune` with engines of a GPU: what they say of themselves, and what cannot run, with fakes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2
import fake_tensorrt_runtime
import onnxruntime as ort
import pytest
from fake_cudart import Gpu
from fake_tensorrt_runtime import COMPUTE_MS, FakeRuntime
from power_sensors import nvidia_smi, places, repeated, write_ina3221, write_program
from rich.console import Console

from anomseg_ros import cli
from anomseg_ros.bench.figures import BenchReport, Entry, load_report
from anomseg_ros.bench.power import PowerRequest
from anomseg_ros.bench.rounds import Stop
from anomseg_ros.commands.bench_output import print_report
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.scenes.sequence import SyntheticSequence
from anomseg_ros.tuning.bench import BenchRequest, bench

BRIEF = ("--no-memory", "--power-seconds", "0", "--rounds", "7", "--threads", "1")


@pytest.fixture()
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRuntime:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("COLUMNS", "200")
    return fake_tensorrt_runtime.install(monkeypatch)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two frames: the least that engines are checked on."""
    folder = tmp_path_factory.mktemp("frames")
    for number, frame in enumerate(SyntheticSequence(3).frames(2)):
        assert cv2.imwrite(str(folder / f"{number}.png"), frame.image[:, :, ::-1])
    return folder


def report_of(tmp_path: Path, frames: Path, *words: str) -> BenchReport:
    files = ["--frames", str(frames), "--json", str(tmp_path / "b.json")]
    assert cli.main(["bench", *words, *BRIEF, *files]) == 0
    return load_report(tmp_path / "b.json")


@pytest.mark.slow
def test_an_engine_says_what_it_is(
    fake: FakeRuntime, tiny_bundle: Path, tmp_path: Path, frames: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = (str(tiny_bundle), "--backend", "onnxruntime", "tensorrt", "--build-engine")
    report = report_of(tmp_path, frames, *both)
    plain, engine = report.entries
    assert engine.title == "tiny, tensorrt, 64x128" and engine.actual == "tensorrt:gpu"
    (key,) = {path.parent.name for path in (tmp_path / "xdg").rglob("engine.plan")}
    said = engine.engine
    assert said["engine_key"] == key[:12] and said["gpu"].startswith("Fake Orin (compute 8.7")
    assert said["engine_precision"] == "fp32" and float(said["device_memory_mib"]) > 0
    assert said["tensorrt"] == "10.3.0" and said["cuda_graph"] == "yes"
    assert set(engine.stages_ms) == {"upload", "compute", "download"}
    assert engine.stages_ms["compute"] == pytest.approx(COMPUTE_MS, abs=0.5)
    assert (dict(plain.engine), dict(plain.stages_ms), plain.power) == ({}, {}, None)
    assert report.settings["left_out"] == []
    told = capsys.readouterr()
    assert key[:12] in told.out and "upload" in told.out and "building the engine" in told.err
    # One engine, that of the labels and the default score, which is there the next time.
    assert len(fake.module.builds) == 1
    assert report_of(tmp_path, frames, *both).entries[1].engine["engine_key"] == key[:12]
    assert len(fake.module.builds) == 1


def test_an_engine_is_built_before_anything_is_loaded_or_timed(
    fake: FakeRuntime, tiny_bundle: Path, frames: Path
) -> None:
    steps: list[str] = []
    request = BenchRequest(
        (tiny_bundle,),
        backends=("tensorrt",),
        build_engine=True,
        frames=frames,
        stop=Stop(3),
        memory=False,
        power=PowerRequest(0),
    )
    bench(request, lambda what, done, total: steps.append(what))
    built = [index for index, what in enumerate(steps) if "building the engine" in what]
    assert built and max(built) < steps.index("loading") < steps.index("warm-up") < steps.index("rounds")


def test_a_missing_engine_is_left_out_with_the_remedy(
    fake: FakeRuntime, tiny_bundle: Path, tmp_path: Path, frames: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = report_of(tmp_path, frames, str(tiny_bundle), "--backend", "tensorrt", "onnxruntime")
    assert [entry.backend for entry in report.entries] == ["onnxruntime"] and len(report.times_ms[0]) == 1
    (out,) = report.settings["left_out"]
    assert out["what"] == "tiny, tensorrt, 64x128" and f"`anomseg build {tiny_bundle}`" in out["reason"]
    assert "warning: left out: tiny, tensorrt" in capsys.readouterr().out and fake.module.builds == []
    words = ["bench", str(tiny_bundle), "--backend", "tensorrt", "--frames", str(frames), *BRIEF]
    assert cli.main(words) == 1
    error = capsys.readouterr().err
    assert "none of 1 candidate(s) can run: tiny, tensorrt, 64x128" in error and "anomseg build" in error


@pytest.mark.parametrize("words", [(), ("--build-engine",), ("--provider", "gpu")])
def test_without_a_gpu_the_reason_is_given(
    fake: FakeRuntime, tiny_bundle: Path, tmp_path: Path, frames: Path, words: tuple[str, ...]
) -> None:
    fake.cudart.fail["cudaGetDeviceCount"] = 100
    report = report_of(tmp_path, frames, str(tiny_bundle), "--backend", "onnxruntime", "tensorrt", *words)
    assert [entry.backend for entry in report.entries] == ["onnxruntime"]
    assert "cudaErrorNoDevice (100)" in report.settings["left_out"][0]["reason"]


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="this ONNX Runtime knows GPUs")
def test_a_provider_that_is_not_here_is_no_candidate(
    tiny_bundle: Path, frames: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", str(tiny_bundle), "--provider", "cuda", "--frames", str(frames), *BRIEF]) == 1
    assert "onnxruntime:cuda was asked for, onnxruntime:cpu is in use: this computer" in capsys.readouterr().err


def test_an_engine_that_is_too_far_off_is_left_out(fake: FakeRuntime, tiny_bundle: Path, frames: Path) -> None:
    fake.noise = 1e3
    request = BenchRequest(
        (tiny_bundle,),
        backends=("onnxruntime", "tensorrt"),
        build_engine=True,
        frames=frames,
        stop=Stop(1),
        memory=False,
        power=PowerRequest(0),
    )
    report = bench(request)
    assert [entry.backend for entry in report.entries] == ["onnxruntime"]
    (out,) = report.settings["left_out"]  # type: ignore[misc]
    assert (
        "its engine could not be built: " in out["reason"] and "does not compute what the bundle does" in out["reason"]
    )
    assert any(text.startswith("left out: tiny, tensorrt") for text in report.warnings)


def test_power_is_in_the_report(
    fake: FakeRuntime, tiny_bundle: Path, tmp_path: Path, frames: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_program(tmp_path, "nvidia-smi", nvidia_smi(repeated("61.5")))
    write_ina3221(tmp_path, "1-0040", {"VDD_IN": (5000, 3000)})
    request = BenchRequest(
        (tiny_bundle,),
        backends=("onnxruntime", "tensorrt"),
        threads=(1,),
        build_engine=True,
        frames=frames,
        stop=Stop(2),
        memory=False,
        power=PowerRequest(0.25, 0.0, places(tmp_path)),
    )
    report = bench(request)
    found = {entry.backend: entry.power for entry in report.entries}
    assert found["onnxruntime"] is not None and found["onnxruntime"].mean_power_w == pytest.approx(15.0)
    assert found["tensorrt"] is not None and found["tensorrt"].mean_power_w == pytest.approx(61.5)
    print_report(Console(), report)
    told = capsys.readouterr().out
    assert "15.00 W (VDD_IN)" in told and "61.50 W (board of NVIDIA Test 1)" in told and "mJ" in told


def test_reports_of_earlier_versions_are_read(tiny_bundle: Path, tmp_path: Path, frames: Path) -> None:
    report_of(tmp_path, frames, str(tiny_bundle))
    data: dict[str, Any] = json.loads((tmp_path / "b.json").read_text())
    for name in ("engine", "stages_ms", "power"):
        del data["entries"][0][name]
    (tmp_path / "old.json").write_text(json.dumps(data))
    (entry,) = load_report(tmp_path / "old.json").entries
    assert isinstance(entry, Entry) and (entry.power, dict(entry.engine)) == (None, {})


@pytest.mark.slow
def test_tune_chooses_an_engine(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, tmp_path: Path, frames: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    fake = fake_tensorrt_runtime.install(monkeypatch, Gpu(integrated=True))
    words = ["tune", str(tiny_bundle), "--backend", "tensorrt", "--frames", str(frames), "--no-quantize", *BRIEF]
    words += ["--output", str(tmp_path / "out"), "--max-latency-ms", "60000", "--power-seconds", "0.2"]
    program = write_program(tmp_path, "nvidia-smi", nvidia_smi(repeated("61.5")))
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    assert cli.main(words) == 1 and fake.module.builds == []
    assert cli.main([*words, "--build-engine"]) == 0
    tuned = load_bundle(tmp_path / "out").contract.compression["tuned"]
    assert tuned["backend"] == "tensorrt" and len(tuned["engine"]["engine_key"]) == 12
    assert tuned["power"]["mean_power_w"] > 0 and tuned["power"]["energy_per_frame_mj"] > 0
    (entry,) = load_report(tmp_path / "out" / "evidence.json").entries
    assert entry.threads == 0 and set(entry.stages_ms) == {"upload", "compute", "download"}
