"""The files that pip and colcon install from a copy of the sources in git, without internet."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

import anomseg_ros

ROOT = Path(__file__).resolve().parents[1]
CHANGED_BY_BUILDS = (".git", ".venv", "build", "install", "log", "*.egg-info", "__pycache__", ".*_cache", "demo_output")


def sources() -> list[Path]:
    """Return the tracked and untracked files without ignored ones; all files if this is not a git checkout."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True) if shutil.which("git") else None
    if listed is not None and listed.returncode == 0:
        return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    found: list[Path] = []
    for folder, folders, names in os.walk(ROOT):
        ignored = shutil.ignore_patterns(*CHANGED_BY_BUILDS)(folder, [*folders, *names])
        folders[:] = [name for name in folders if name not in ignored]
        found += [Path(folder, name) for name in names if name not in ignored]
    return found


def package_xml() -> ElementTree.Element:
    return ElementTree.parse(ROOT / "package.xml").getroot()


@pytest.fixture(scope="module")
def source_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("workspace") / "src" / "anomseg_ros"
    for path in sources():
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    return copy


@pytest.fixture(scope="module")
def pip_prefix(source_copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("pip")
    prefix = tmp_path_factory.mktemp("pip")
    arguments = [
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--no-warn-script-location",
        "--ignore-installed",  # without it, pip removes the developer's installation
        "--prefix",
        str(prefix),
    ]
    sdist = tmp_path_factory.mktemp("sdist")
    run([sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", str(sdist)], source_copy)
    (archive,) = sdist.glob("*.tar.gz")
    run([sys.executable, "-m", "pip", "install", *arguments, str(archive)])
    return prefix


@pytest.fixture(scope="module")
def colcon_prefix(source_copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("colcon")
    folders = ["--build-base", str(workspace / "build"), "--install-base", str(workspace / "install")]
    output = run([*colcon(workspace), "build", "--base-paths", str(source_copy), *folders], workspace)
    assert "doesn't explicitly install" not in output
    return workspace / "install" / "anomseg_ros"


def colcon(workspace: Path) -> list[str]:
    pytest.importorskip("colcon_core", reason="needs colcon-core: pip install '.[dev]'")
    pytest.importorskip("colcon_ros", reason="needs colcon-ros: pip install '.[dev]'")
    return [sys.executable, "-m", "colcon", "--log-base", str(workspace / "log")]


def run(command: list[str], folder: Path | None = None, **variables: Any) -> str:
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_version_name_and_licence_agree() -> None:
    xml = package_xml()
    assert xml.get("format") == "3"
    assert xml.findtext("name") == "anomseg_ros" and xml.findtext("version") == anomseg_ros.__version__
    assert xml.findtext("license") == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text() and "Version 2.0" in (ROOT / "LICENSE").read_text()
    assert xml.findtext("export/build_type") == "ament_python"
    assert re.fullmatch(r"[\w.+-]+@[\w-]+(\.[\w-]+)+", xml.find("maintainer").get("email"))


def test_imported_ros_packages_are_declared() -> None:
    declared = {element.text for element in package_xml() if element.tag.endswith("depend")}
    used = set()
    for path in [*(ROOT / "anomseg_ros").rglob("*.py"), *(ROOT / "launch").glob("*.py")]:
        used |= set(
            re.findall(
                r"^\s*(?:from|import) (\w+_msgs|\w+_interfaces|std_srvs|rclpy|launch|launch_ros)\b",
                path.read_text(),
                re.MULTILINE,
            )
        )
    assert {"rclpy", "sensor_msgs", "launch", "launch_ros"} <= used
    assert used <= declared


# Library of install_requires -> rosdep key (rosdep/python.yaml in ros/rosdistro).
ROSDEP_KEYS = {
    "Jinja2": "python3-jinja2",
    "Pillow": "python3-pil",
    "numpy": "python3-numpy",
    "opencv-python-headless": "python3-opencv",
    "onnxruntime": "python3-onnxruntime-pip",
    "PyYAML": "python3-yaml",
    "rich": "python3-rich",
    "rosbags": "python3-rosbags-pip",
}


def test_rosdep_keys_match_install_requires() -> None:
    declared = {element.text for element in package_xml() if element.tag == "depend"}
    setup = (ROOT / "setup.py").read_text()
    required = re.search(r"install_requires=\[(.*?)\]", setup, re.DOTALL)[1] + re.search(r"BAGS = \[(.*)\]", setup)[1]
    assert {ROSDEP_KEYS[name] for name in re.findall(r'"([\w-]+)[<>=]', required)} == {
        name for name in declared if name.startswith("python3-")
    }


def test_constraints_pin_only_torch() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) == 1 and re.fullmatch(r"torch==\d+\.\d+\.\d+", lines[0])


def test_installed_versions_satisfy_the_declared_ranges() -> None:
    requirements = pytest.importorskip("packaging.requirements")
    from importlib import metadata

    calls: dict[str, Any] = {}
    code = (ROOT / "setup.py").read_text().replace("from setuptools import find_packages, setup", "")
    exec(  # evaluate setup.py like pip and colcon, without building
        compile(code, "setup.py", "exec"),
        {
            "__file__": str(ROOT / "setup.py"),
            "find_packages": lambda **_: [],
            "setup": lambda **given: calls.update(given),
        },
    )
    checked = 0
    for text in [*calls["install_requires"], *(item for extra in calls["extras_require"].values() for item in extra)]:
        requirement = requirements.Requirement(text)
        assert len(requirement.specifier) > 0, f"{text} has no version range"
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            continue
        assert requirement.specifier.contains(installed, prereleases=True), f"{text}, but {installed} is installed"
        checked += 1
    assert checked >= 5


@pytest.mark.slow
@pytest.mark.parametrize("installer", ["pip", "colcon"])
def test_all_files_are_installed(installer: str, request: pytest.FixtureRequest) -> None:
    prefix: Path = request.getfixturevalue(f"{installer}_prefix")
    share = prefix / "share" / "anomseg_ros"
    detector = prefix / "lib" / "anomseg_ros" / "detector"
    assert os.access(detector, os.X_OK) and detector.read_text() == (ROOT / "scripts" / "detector").read_text()
    assert (share / "package.xml").read_text() == (ROOT / "package.xml").read_text()
    assert (prefix / "share/ament_index/resource_index/packages/anomseg_ros").is_file()
    for path in sources():
        relative = path.relative_to(ROOT)
        if relative.parts[0] in ("launch", "config", "demo", "models"):
            assert (share / relative).read_bytes() == path.read_bytes(), relative
        if relative.parts[0] == "anomseg_ros":
            assert len(list(prefix.glob(f"lib/python*/site-packages/{relative}"))) == 1, relative
    assert list(prefix.glob("lib/python*/site-packages/test*")) == []
    command = prefix / ("bin" if installer == "pip" else "lib/anomseg_ros") / "anomseg"
    assert os.access(command, os.X_OK)


@pytest.mark.slow
@pytest.mark.parametrize("installer", ["pip", "colcon"])
def test_installed_command_runs(installer: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    prefix: Path = request.getfixturevalue(f"{installer}_prefix")
    (packages,) = prefix.glob("lib/python*/site-packages")
    command = prefix / ("bin" if installer == "pip" else "lib/anomseg_ros") / "anomseg"
    output = run([sys.executable, str(command), "--version"], tmp_path, PYTHONPATH=str(packages))
    assert anomseg_ros.__version__ in output
    words = ["calibrate", "threshold", "enet-camvid", "--dataset", "camvid=absent"]
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    refused = subprocess.run(
        [sys.executable, str(command), *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    shipped = prefix / "share" / "anomseg_ros" / "models" / "enet-camvid"
    assert refused.returncode == 1 and f"{shipped} ships with the package and is not changed" in refused.stderr


def test_colcon_identifies_an_ament_python_package() -> None:
    pytest.importorskip("colcon_ros", reason="needs colcon-ros: pip install '.[dev]'")
    from colcon_core.package_descriptor import PackageDescriptor
    from colcon_ros.package_identification.ros import RosPackageIdentification

    package = PackageDescriptor(ROOT)
    RosPackageIdentification().identify(package)
    assert (package.type, package.name) == ("ros.ament_python", "anomseg_ros")


@pytest.mark.slow
def test_colcon_adds_the_package_to_the_ament_prefix_path(colcon_prefix: Path) -> None:
    # With a wrong package.xml, colcon treats the package as plain Python and adds no such hook.
    assert (colcon_prefix / "share" / "anomseg_ros" / "hook" / "ament_prefix_path.sh").is_file()
