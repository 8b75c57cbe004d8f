"""Every command of README.md and docs/*.md is run or checked; every link leads somewhere."""

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
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "models").glob("*/README.md"))]
BIN = Path(sys.executable).parent


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.strip().splitlines() if line]


README_COMMANDS = commands(ROOT / "README.md")


def test_the_only_set_up_comes_first() -> None:
    assert README_COMMANDS[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if not target.startswith(("http:", "https:", "#")):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_nothing_is_left_to_be_filled_in(page: Path) -> None:
    prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
    assert not re.findall(r"\b[A-Z]+_[A-Z0-9_]+\b|TODO|FIXME|XXX", prose)


@pytest.mark.parametrize("target", ["demo", "test", "lint"])
def test_make_targets_exist_and_make_their_own_environment(target: str, tmp_path: Path) -> None:
    for name in ("Makefile", "setup.py", "setup.cfg", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(["make", "-n", target, "BAG=drive.mcap"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "-m venv .venv" in done.stdout and "pip install" in done.stdout
    assert ("anomseg demo drive.mcap" in done.stdout) == (target == "demo")
    assert ("offline" in done.stdout) == (target != "demo")  # torch is a matter of tests


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


def test_parameters_that_are_set_exist() -> None:
    from anomseg_ros.node.parameters import PARAMETERS

    for line in README_COMMANDS:
        if line.startswith("ros2 param set"):
            name = line.split()[4]
            assert any(parameter.name == name and parameter.live for parameter in PARAMETERS)


HANDLED_ELSEWHERE = ("make ", "pip install", "colcon build", "ros2 ")  # above, and in test_packaging.py


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the commands name: a checkpoint and some frames."""
    import cv2
    import torch
    from published_keys import davidtvs_enet, eromera_erfnet

    from anomseg_ros.datasets.synthetic import SyntheticSequence

    folder = tmp_path_factory.mktemp("readme")
    for name, shapes in (("erfnet", eromera_erfnet(20)), ("enet", davidtvs_enet(20))):
        torch.save({key: fresh_weight(key, shape) for key, shape in shapes.items()}, folder / f"{name}.pth")
    (folder / "frames").mkdir()
    for frame in SyntheticSequence(1_000_001).frames(6):
        cv2.imwrite(str(folder / "frames" / f"{frame.index}.png"), cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR))
    return folder


@pytest.fixture()
def fresh_workplace(workplace: Path, tmp_path: Path) -> Path:
    """A copy of it for one page, whose commands may make what another page's make as well."""
    return Path(shutil.copytree(workplace, tmp_path / "place"))


def fresh_weight(key: str, shape: tuple[int, ...]) -> object:
    """Return a value such as a network has before training."""
    import torch

    generator = torch.Generator().manual_seed(len(key))
    if len(shape) == 4:
        return torch.randn(shape, generator=generator) * (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
    return torch.full(shape, 0.0 if key.endswith(("bias", "mean")) else 1.0)


@pytest.mark.slow
def test_commands_run_in_order(fresh_workplace: Path) -> None:
    workplace = fresh_workplace
    lines = [line for line in README_COMMANDS if not line.startswith(HANDLED_ELSEWHERE)]
    assert len(lines) >= 7
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "ROS_DOMAIN_ID": "61"}
    environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    for line in lines:
        if line.startswith("anomseg node"):
            run_until(line, " on onnxruntime", workplace, environment)
            continue
        done = subprocess.run(["bash", "-c", line], cwd=workplace, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    assert (workplace / "results" / "0_overlay.png").is_file()
    assert (workplace / "drive_demo" / "index.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_the_other_pages(page: Path, fresh_workplace: Path) -> None:
    workplace = fresh_workplace
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    for line in commands(page):
        if line.startswith(HANDLED_ELSEWHERE):
            continue
        done = subprocess.run(["bash", "-c", line], cwd=workplace, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def run_until(line: str, text: str, folder: Path, environment: dict[str, str]) -> None:
    """Start a command that runs until it is told to stop, wait for its sign of life, and stop it."""
    log = folder / "command.log"
    with log.open("w") as stream:
        process = subprocess.Popen(shlex.split(line), cwd=folder, env=environment, stdout=stream, stderr=stream)
    deadline = time.monotonic() + 60
    while text not in log.read_text() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0, log.read_text()
    assert text in log.read_text()
