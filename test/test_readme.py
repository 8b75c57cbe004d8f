"""All commands and programs in README.md and docs/*.md are run or checked, and all link targets exist."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from anomseg_ros.backends.tensorrt_library import MODULES, load_library
from anomseg_ros.cli import main as anomseg
from anomseg_ros.errors import BackendError
from anomseg_ros.replay.process import free_domain_id, local_environment

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "models").glob("*/README.md"))]
BIN = Path(sys.executable).parent
IN_PROCESS = ("bench", "compress", "datasets", "evaluate", "export", "prune", "quantize", "run", "train", "tune")
"""Commands that run in the process of the tests. A process of its own takes up to four seconds to import torch."""


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.strip().splitlines() if line]


README_COMMANDS = commands(ROOT / "README.md")


def test_readme_starts_with_make_demo_and_make_test() -> None:
    assert README_COMMANDS[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_link_targets_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if not target.startswith(("http:", "https:", "#")):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_has_no_placeholders(page: Path) -> None:
    prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
    assert not re.findall(r"\b[A-Z]+_[A-Z0-9_]+\b|TODO|FIXME|XXX", prose)


@pytest.mark.parametrize("target", ["demo", "test", "lint"])
def test_make_target_creates_its_environment(target: str, tmp_path: Path) -> None:
    for name in ("Makefile", "setup.py", "setup.cfg", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(["make", "-n", target, "BAG=drive.mcap"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "-m venv .venv" in done.stdout and "pip install" in done.stdout
    assert ("anomseg demo drive.mcap" in done.stdout) == (target == "demo")
    assert ("offline" in done.stdout) == (target != "demo")  # only tests need torch


def test_make_demo_and_make_test_share_an_environment(tmp_path: Path) -> None:
    for name in ("Makefile", "setup.py", "setup.cfg", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    pip = "import sys; from pathlib import Path; Path('pip.log').open('a').write(sys.argv[-1] + chr(10))"
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name, text in {"python": f'exec {sys.executable} -c "{pip}" "$@"', "anomseg": "true"}.items():
        (tmp_path / ".venv" / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / ".venv" / "bin" / name).chmod(0o755)
    stamp = ".venv/.installed"
    for target in ("demo", "demo", stamp, stamp, "demo"):
        subprocess.run(["make", target], cwd=tmp_path, check=True, capture_output=True)
    run_time, whole = (tmp_path / "pip.log").read_text().split()
    assert run_time == ".[ros]" and whole.startswith(".[ros,offline,") and whole.endswith(",dev]")


def test_pip_extras_exist() -> None:
    setup = (ROOT / "setup.py").read_text()
    for extra in re.findall(r"pip install '\.\[(\w+)\]'", "\n".join(README_COMMANDS)):
        assert f'"{extra}": ' in setup


def test_launch_arguments_exist() -> None:
    launches = [line for line in README_COMMANDS if line.startswith("ros2 launch")]
    assert launches
    declared = {
        node.args[0].value
        for path in (ROOT / "launch").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)
    }
    text = "".join(path.read_text() for path in (ROOT / "launch").glob("*.py"))
    for line in launches:
        _, _, package, file, *arguments = line.split()
        assert package == "anomseg_ros" and (ROOT / "launch" / file).is_file()
        for argument in arguments:
            name = argument.split(":=")[0]
            assert name in declared or f'"{name}"' in text


def test_parameters_in_commands_exist() -> None:
    from anomseg_ros.node.parameters import PARAMETERS

    for line in README_COMMANDS:
        if line.startswith("ros2 param set"):
            name = line.split()[4]
            assert any(parameter.name == name and parameter.live for parameter in PARAMETERS)


HANDLED_ELSEWHERE = (
    "make ",
    "pip install",
    "colcon build",
    "rosdep install",
    "ros2 ",
)  # checked above and in test_packaging.py


@pytest.fixture(scope="module")
def command_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints and frames that the commands use."""
    import cv2
    import torch
    from label_exports import cvat_drive
    from published_keys import davidtvs_enet, eromera_erfnet
    from small_bundles import small_network

    from anomseg_ros.networks.checkpoints import save_checkpoint
    from anomseg_ros.scenes.sequence import SyntheticSequence

    folder = tmp_path_factory.mktemp("readme")
    save_checkpoint(folder / "mide_net.safetensors", small_network("mide_net"), {})
    for name, shapes in (("erfnet", eromera_erfnet(20)), ("enet", davidtvs_enet(20))):
        torch.save({key: fresh_weight(key, shape) for key, shape in shapes.items()}, folder / f"{name}.pth")
    cvat_drive(folder / "cvat_export", 6, (128, 256))
    (folder / "frames").mkdir()
    for frame in SyntheticSequence(1_000_001).frames(6):
        cv2.imwrite(str(folder / "frames" / f"{frame.index}.png"), cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR))
    return folder


@pytest.fixture()
def fresh_command_folder(command_folder: Path, tmp_path: Path) -> Path:
    """A copy of command_folder for one page, because commands of different pages may write the same files."""
    return Path(shutil.copytree(command_folder, tmp_path / "place"))


def fresh_weight(key: str, shape: tuple[int, ...]) -> object:
    """Return a random value like those of an untrained network."""
    import torch

    generator = torch.Generator().manual_seed(len(key))
    if len(shape) == 4:
        return torch.randn(shape, generator=generator) * (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
    return torch.full(shape, 0.0 if key.endswith(("bias", "mean")) else 1.0)


def status_of(words: list[str]) -> int | str | None:
    try:
        return anomseg(words)
    except SystemExit as end:  # --help
        return end.code


@pytest.fixture()
def run_line(fresh_command_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Returns a function that runs one line of a page in the folder, and asserts that it succeeds."""
    monkeypatch.chdir(fresh_command_folder)
    for name, value in local_environment(free_domain_id()).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")

    def run(line: str) -> None:
        words = shlex.split(line)
        if words[0] == "anomseg" and words[1] in IN_PROCESS:
            assert status_of(words[1:]) == 0, line
            return
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"

    return run


@pytest.mark.slow
def test_readme_commands_run_in_order(fresh_command_folder: Path, run_line: Callable[[str], None]) -> None:
    lines = [line for line in README_COMMANDS if not line.startswith(HANDLED_ELSEWHERE)]
    assert len(lines) >= 7
    for line in lines:
        if line.startswith("anomseg node"):
            run_until(line, " on onnxruntime", fresh_command_folder, dict(os.environ))
        else:
            run_line(line)
    assert (fresh_command_folder / "results" / "0_overlay.png").is_file()
    assert (fresh_command_folder / "drive_demo" / "index.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_other_pages_run(page: Path, run_line: Callable[[str], None]) -> None:
    for line in commands(page):
        if not (line.startswith(HANDLED_ELSEWHERE) or (line.startswith("anomseg build") and not can_run(line))):
            run_line(line)


@pytest.mark.slow
def test_programs_of_the_page_for_python_run(
    fresh_command_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(fresh_command_folder)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), {})
        assert capsys.readouterr().out


def can_run(build: str) -> bool:
    """Return whether an `anomseg build` needs no GPU, and what it needs is installed."""
    try:
        return "--check" in build and bool(load_library(parse_only=True))
    except BackendError:
        return False


def test_builds_are_spelled_as_the_program_wants_them(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line for page in PAGES for line in commands(page) if line.startswith("anomseg build")]
    assert lines
    for name in (name for names in MODULES.values() for name in names):
        monkeypatch.setitem(sys.modules, name, None)
    for line in lines:
        _, command, _, *options = line.split()
        assert anomseg([command, str(tiny_bundle), *options]) == 1
        wanted = "has no model.pt2" if "--backend torch" in line else "TensorRT is not installed"
        assert wanted in capsys.readouterr().err


def run_until(line: str, text: str, folder: Path, environment: dict[str, str]) -> None:
    """Start a command that runs until it is stopped, wait for `text` in its output, and stop it."""
    log = folder / "command.log"
    with log.open("w") as stream:
        process = subprocess.Popen(shlex.split(line), cwd=folder, env=environment, stdout=stream, stderr=stream)
    deadline = time.monotonic() + 60
    while text not in log.read_text() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0, log.read_text()
    assert text in log.read_text()
