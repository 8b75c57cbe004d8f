"""The table of JetPack releases against the package's limits, the container files, the service and docs/jetson.md."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import fake_tensorrt
import pytest
import yaml

from anomseg_ros.backends.tensorrt_library import JETPACK, load_library
from anomseg_ros.errors import BackendError
from anomseg_ros.node.transport import SHARED_MEMORY_BYTES

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "config"
PAGE = ROOT / "docs" / "jetson.md"
RELEASES: list[dict[str, Any]] = yaml.safe_load((CONFIG / "jetson.yaml").read_text())["releases"]
RAN_HERE = [release for release in RELEASES if release["verdict"] != "refused"]
CONTAINERS = sorted({release["container"] for release in RAN_HERE})
REFUSED, OLDEST, SUPPORTED = "refused", "oldest supported", "supported"
COLUMNS = ("JetPack", "L4T", "Ubuntu", "Python", "ROS 2", "CUDA", "TensorRT", "boards", "verdict", "")


def version(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def names(release: dict[str, Any]) -> str:
    return str(release["jetpack"])


def supported_python() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the oldest Python of setup.py, and the first one that is too new."""
    oldest, too_new = re.search(r'python_requires=">=([\d.]+),<([\d.]+)"', (ROOT / "setup.py").read_text()).groups()
    return version(oldest), version(too_new)


def takes(monkeypatch: pytest.MonkeyPatch, tensorrt: str) -> bool:
    fake_tensorrt.install(monkeypatch, tensorrt)
    try:
        load_library()
    except BackendError:
        return False
    return True


def table() -> str:
    """Return the rows as docs/jetson.md prints them."""
    rows: list[tuple[str, ...]] = [COLUMNS]
    for one in RELEASES:
        lists = {name: ", ".join(one[name]) for name in ("l4t", "tensorrt", "boards")}
        head = (one["jetpack"], lists["l4t"], one["ubuntu"], one["python"], one["ros"].capitalize(), one["cuda"])
        rows.append((*head, lists["tensorrt"], lists["boards"], one["verdict"], one["why"]))
    lines = [f"| {' | '.join(cells)} |".replace("  ", " ") for cells in rows]
    return "\n".join([lines[0], "|" + "---|" * len(COLUMNS), *lines[1:]])


@pytest.mark.filterwarnings("error")  # that TensorRT is newer than what this package was tried with
@pytest.mark.parametrize("release", RELEASES, ids=names)
def test_verdict_is_what_the_package_does(release: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    oldest, too_new = supported_python()
    fits = oldest <= version(release["python"]) < too_new
    taken = [takes(monkeypatch, tensorrt) for tensorrt in release["tensorrt"]]
    assert taken and len(set(taken)) == 1
    assert (release["verdict"] != REFUSED) == (fits and taken[0])
    assert ("Python is older" in release["why"]) == (not fits)
    assert ("older than 10" in release["why"]) == (not taken[0])
    assert release["sources"]


def test_one_release_is_the_oldest_and_the_messages_agree() -> None:
    (oldest,) = [release for release in RELEASES if release["verdict"] == OLDEST]
    assert RAN_HERE[0] is oldest and {release["verdict"] for release in RAN_HERE[1:]} == {SUPPORTED}
    assert [version(one["jetpack"]) for one in RELEASES] == sorted(version(one["jetpack"]) for one in RELEASES)
    assert [version(one["l4t"][0]) for one in RELEASES] == sorted(version(one["l4t"][0]) for one in RELEASES)
    first, newest_of_it = oldest["jetpack"].split(", ")
    brings = ".".join(oldest["tensorrt"][0].split(".")[:2])
    assert f"JetPack {first} and later bring {brings} or newer" in JETPACK
    assert f"flash JetPack {newest_of_it} or 7" in JETPACK and f"'tensorrt>={brings},<12'" in JETPACK
    assert f"JetPack {first} is the oldest that fits" in (ROOT / "docs" / "gpu.md").read_text()


def test_why_names_the_opset_of_the_graphs() -> None:
    opset = re.search(r"^OPSET = (\d+)$", (ROOT / "anomseg_ros" / "export.py").read_text(), re.MULTILINE)[1]
    for release in RELEASES:
        assert release["verdict"] != REFUSED or f"the graphs have {opset}" in release["why"]


def test_distributions_are_those_of_the_package() -> None:
    distributions = {release["ros"] for release in RAN_HERE}
    profile = (CONFIG / "fastdds.xml").read_text()
    assert all(ros.capitalize() in profile and ros.capitalize() in PAGE.read_text() for ros in distributions)
    assert set(re.findall(r'"ros-([a-z]+)-rclpy', (ROOT / "setup.py").read_text())) <= distributions
    for ros, ubuntu, python in {(one["ros"], one["ubuntu"], one["python"]) for one in RAN_HERE}:
        # REP 2000: the Ubuntu that a distribution is for, and its Python.
        assert {"humble": ("22.04", "3.10"), "jazzy": ("24.04", "3.12")}[ros] == (ubuntu, python)


def test_page_prints_the_table() -> None:
    assert table() in PAGE.read_text()


def read_container(name: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return instruction -> arguments, the last ones of each, and ARG -> default."""
    text = (CONFIG / "container" / name).read_text().replace("\\\n", " ")
    lines = re.findall(r"^([A-Z]+) (.*)$", text, re.MULTILINE)
    return dict(lines), dict(word.split("=") for key, word in lines if key == "ARG")


def test_every_container_file_is_in_the_table() -> None:
    assert sorted(path.name for path in (CONFIG / "container").glob("Dockerfile.*")) == CONTAINERS


@pytest.mark.parametrize("name", CONTAINERS)
def test_container_has_the_versions_of_the_table(name: str) -> None:
    settings, arguments = read_container(name)
    releases = [release for release in RELEASES if release.get("container") == name]
    (ros,) = {release["ros"] for release in releases}
    assert settings["FROM"] == f"ros:{ros}-ros-base" and f"/opt/ros/{ros}/setup.bash" in settings["ENTRYPOINT"]
    (release,) = [release for release in releases if arguments["L4T"] in release["l4t"]]
    assert arguments["CUDA"] == release["cuda"].replace(".", "-")
    text = (CONFIG / "container" / name).read_text()
    heading = text.split("\nFROM")[0]
    assert all(number in heading for number in (*release["jetpack"].split(", "), release["python"], ros.capitalize()))
    assert ".".join(release["tensorrt"][0].split(".")[:2]) in heading
    for other in releases:
        assert other is release or all(word in text for word in (*other["l4t"], other["cuda"].replace(".", "-")))


@pytest.mark.parametrize("name", CONTAINERS)
def test_container_is_unprivileged_and_uses_tensorrt_of_the_system(name: str) -> None:
    settings, _ = read_container(name)
    text = (CONFIG / "container" / name).read_text()
    assert settings["USER"] == "anomseg" and settings["STOPSIGNAL"] == "SIGINT" and "--uid 1000" in text
    assert "python3 -m venv --system-site-packages" in text and "python3-libnvinfer" in text
    assert "NVIDIA_VISIBLE_DEVICES=all" in text and "XDG_CACHE_HOME=/cache" in text and "sudo" not in text
    extra = re.search(r"/source\[(\w+)\]", text)[1]
    assert f'"{extra}": ' in (ROOT / "setup.py").read_text()


@pytest.mark.parametrize("name", CONTAINERS)
def test_entrypoint_becomes_the_program_with_its_arguments(name: str, tmp_path: Path) -> None:
    settings, _ = read_container(name)
    program = tmp_path / "anomseg"
    program.write_text('#!/bin/sh\necho "$ROS $$" "$@"\n')
    program.chmod(0o755)
    setup = tmp_path / "setup.bash"
    setup.write_text("export ROS=sourced\n")
    words = [
        re.sub(r"/opt/ros/\w+/setup.bash", str(setup), word)
        for word in [*ast.literal_eval(settings["ENTRYPOINT"]), "build", "a folder", "--workspace", "64"]
    ]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
    told = process.communicate(timeout=30)[0]
    # The program has replaced the shell, so signals reach it.
    assert process.returncode == 0 and told == f"sourced {process.pid} build a folder --workspace 64\n"
    assert ast.literal_eval(settings["CMD"])[0] == "node"


def test_service_adds_only_what_a_jetson_needs() -> None:
    lines = (CONFIG / "systemd" / "jetson.conf").read_text().splitlines()
    settings = [line.split("=", 1) for line in lines if "=" in line and not line.startswith("#")]
    names_set = [name for name, _ in settings]
    allowed = {"ExecStart", "PrivateDevices", "SupplementaryGroups", "CacheDirectory", "CacheDirectoryMode"}
    assert set(names_set) == {*allowed, "Environment"} and names_set.count("ExecStart") == 2
    values = dict(settings)
    assert values["CacheDirectoryMode"] == "0700" and "XDG_CACHE_HOME=/var/cache/anomseg" in values["Environment"]
    unit = (CONFIG / "systemd" / "anomseg-detector.service").read_text()
    shell, option, script = shlex.split(values["ExecStart"])
    assert (shell, option) == ("/bin/bash", "-c") and script.startswith("source /opt/ros/*/setup.bash && exec ")
    assert re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE)[1] == script.split(" && exec ")[1]


def test_page_names_files_and_sizes_that_exist() -> None:
    text = PAGE.read_text()
    paths = [word for word in re.findall(r"[\w./-]+", text) if word.startswith("config/")]
    assert len(paths) >= 6 and all((ROOT / path).exists() for path in paths)
    assert f"{SHARED_MEMORY_BYTES // 2**20} MiB" in text
    arguments = dict(re.findall(r"--build-arg (\w+)=(\S+)", text))
    (release,) = [one for one in RELEASES if arguments["L4T"] in one["l4t"]]
    assert arguments["CUDA"] == release["cuda"].replace(".", "-")
    cudart = {f"cuda-cudart-{one['cuda'].replace('.', '-')}" for one in RAN_HERE}
    assert cudart == set(re.findall(r"cuda-cudart-[\d-]+\d", text))
