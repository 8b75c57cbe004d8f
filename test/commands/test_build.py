"""`anomseg build`: what it prints, and that it only keeps what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import fake_tensorrt
import pytest
from fake_machine import FakeMachine

from anomseg_ros import cli
from anomseg_ros.backends.tensorrt_library import MODULES
from anomseg_ros.commands import build
from anomseg_ros.core.bundle import load_bundle, save_bundle

FRAMES = ("--frames", "synthetic=1000105:2")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeMachine:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    fake_tensorrt.install(monkeypatch)
    machine = FakeMachine()
    monkeypatch.setattr(build, "ThisMachine", lambda device: machine)
    return machine


def test_it_builds_both_engines_and_says_why(
    machine: FakeMachine, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["build", str(tiny_bundle), *FRAMES]) == 0
    told = capsys.readouterr()
    cache = tmp_path / "xdg" / "anomseg_ros" / "tensorrt"
    assert "TensorRT 10.3.0: engines of tiny on Orin" in told.out and f"in {cache}" in told.out
    assert "labels that agree" in told.out and told.out.count("100.00%") == 2 and "GPU" in told.out
    assert f"labels: there is no engine yet in {cache}" in told.err
    assert len(list(cache.glob("*/engine.plan"))) == 2
    assert cli.main(["build", str(tiny_bundle), *FRAMES]) == 0
    assert len(machine.builds) == 2 and "no engine" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_dry_run_builds_nothing(
    machine: FakeMachine, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["build", str(tiny_bundle), "--output", str(tmp_path / "cache"), *FRAMES]
    assert cli.main([*words, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert f"TensorRT 10.3.0 on Orin, cache {tmp_path / 'cache'}" in told and told.count("would be built: ") == 2
    assert "engines are checked on 2 frame(s) of synthetic=1000105:2" in told
    assert machine.builds == [] and not (tmp_path / "cache").exists()
    assert cli.main([*words, "--outputs", "labels"]) == 0
    capsys.readouterr()
    assert cli.main([*words, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("labels (") and lines[1].endswith(") is in the cache")
    assert "all (" in lines[2] and "outputs is " in lines[2]
    assert cli.main([*words, "--dry-run", "--workspace", "64"]) == 0
    assert "workspace_bytes is 67108864, there None" in capsys.readouterr().out


def test_a_dry_run_refuses_frames_that_are_not_there(
    machine: FakeMachine, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["build", str(tiny_bundle), "--dry-run", "--frames", "/nowhere"]) == 1
    assert "/nowhere" in capsys.readouterr().err and machine.builds == []


@pytest.mark.slow
def test_the_faster_form_of_argmax_is_told_with_both_times(
    machine: FakeMachine, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["build", str(tiny_bundle), "--outputs", "labels", *FRAMES]
    assert cli.main(words) == 0
    assert "compare" not in capsys.readouterr().out
    assert cli.main([*words, "--argmax", "fastest"]) == 0
    told = capsys.readouterr()
    assert "was built without a choice between the forms of argmax" in told.err
    assert re.search(r"(argmax|compare) \(argmax [\d.]+ ms, compare [\d.]+ ms\)", told.out)
    assert len(machine.builds) == 3  # one, then both forms


def test_a_check_writes_nothing(
    machine: FakeMachine, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["build", str(tiny_bundle), "--check"]) == 0
    told = capsys.readouterr().out
    assert "TensorRT 10.3.0 parses and builds tiny (fp32); nothing was written" in told
    assert "labels that agree" not in told and not (tmp_path / "xdg").exists()


@pytest.mark.slow
def test_layers_that_a_dla_leaves_are_listed(
    machine: FakeMachine, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["build", str(tiny_bundle), "--outputs", "labels", *FRAMES]
    assert cli.main([*words, "--dla", "1"]) == 0
    told = capsys.readouterr().out
    (line,) = [line for line in told.splitlines() if line.startswith("labels: layers that stay on the GPU: ")]
    assert "cast" in line and "convolution" not in line and "DLA" in told
    assert cli.main([*words, "--dry-run"]) == 0  # that of the GPU is another one
    assert "would be built: " in capsys.readouterr().out
    machine.library.module.faults.dla_cores = 0
    assert cli.main([*words, "--dla", "0"]) == 1
    assert "there is no DLA core 0" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--workspace", "0"], ["--workspace", "-5"]])
def test_a_workspace_of_nothing(
    machine: FakeMachine, tiny_bundle: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["build", str(tiny_bundle), *words]) == 1
    assert f"--workspace {words[1]}: expected MiB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--workspace", "9" * 21], "expected MiB, 1 to 1048576"),
        (["--device", "-1"], "--device -1: expected the number of a GPU, 0 to 63"),
        (["--device", "99"], "--device 99: expected the number of a GPU, 0 to 63"),
        (["--check", "--workspace", "9" * 21], "expected MiB, 1 to 1048576"),
        (["--check", "--device", "0"], "leave out --device"),
        (["--check", "--frames", "/nonexistent"], "leave out --frames"),
        (["--check", "--output", "cache"], "leave out --output"),
    ],
)
def test_options_that_cannot_be_meant(
    machine: FakeMachine,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["build", str(tiny_bundle), *words]) == 1
    assert told in capsys.readouterr().err and machine.builds == []


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_a_graph_in_the_form_for_a_cpu_is_told(
    machine: FakeMachine, tiny_bundle: Path, tmp_path: Path, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = load_bundle(tiny_bundle)
    files = {name: bundle.directory / name for name in bundle.contract.files}
    saved = save_bundle(replace(bundle.contract, target=target), files, tmp_path / "bundle")
    assert cli.main(["build", str(saved.directory), "--check"]) == 0
    assert ("has the form for a CPU" in capsys.readouterr().err) == (target == "cpu")


def test_the_gpu_is_released(machine: FakeMachine, tiny_bundle: Path) -> None:
    assert cli.main(["build", str(tiny_bundle), "--dry-run"]) == 0
    assert machine.closed == 1
    assert cli.main(["build", str(tiny_bundle), "--frames", "/nowhere"]) == 1
    assert machine.closed == 2


def test_an_engine_that_is_too_far_off(
    machine: FakeMachine, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.change = lambda name, array: array // 2
    assert cli.main(["build", str(tiny_bundle), "--output", str(tmp_path / "cache"), *FRAMES]) == 1
    assert "does not compute what the bundle does" in capsys.readouterr().err
    assert list((tmp_path / "cache").glob("*/engine.plan")) == []


@pytest.mark.parametrize("words", [[], ["--dry-run"], ["--check"]])
def test_without_tensorrt_it_says_what_to_install(
    tiny_bundle: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for names in MODULES.values():
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)
    assert cli.main(["build", str(tiny_bundle), *words]) == 1
    error = capsys.readouterr().err
    assert "TensorRT is not installed" in error and ("tensorrt-check" in error) == (words == ["--check"])


@pytest.mark.slow
def test_it_needs_no_torch(tiny_bundle: Path) -> None:
    code = "import sys; sys.modules.update(torch=None, onnx=None); from anomseg_ros import cli; sys.exit(cli.main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "build", str(tiny_bundle), "--check"], capture_output=True, text=True
    )
    assert "offline" not in done.stderr and "Traceback" not in done.stderr
    assert done.returncode == 0 or "TensorRT is not installed" in done.stderr
