"""Fixtures shared by the whole suite."""

from __future__ import annotations

import os
import sys

# Set before numpy and torch are imported. Their thread pools use busy waiting, which makes tests of small tensors ten
# times slower on a busy machine. ONNX Runtime has a separate pool.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# For tests that import onnxruntime before the package, which also sets it; see anomseg_ros/__init__.py.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import once_per_run
import pytest
import setuptools  # noqa: F401

from anomseg_ros.replay.process import free_domain_id

# setuptools replaces the distutils of the standard library. It is imported first, because torch's compiler fails if a
# test has imported the original one before.

if TYPE_CHECKING:
    from anomseg_ros.core.bundle import Bundle

# For tests that start ROS without choosing a domain. Each process of each test run has its own domain.
os.environ["ROS_DOMAIN_ID"] = str(free_domain_id())

SHARED_MEMORY = Path("/dev/shm")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # xdist's processes inherit the folder
        once_per_run.begin()


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        once_per_run.end()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Print the exit status of a process of xdist that died, a negative one is a signal: xdist does not say it."""
    if error:
        print(f"\n{node.gateway.id} ended with status {node.gateway._io.popen.wait(10)}", file=sys.stderr)


def pytest_sessionstart() -> None:
    """Remove the shared memory of nodes killed in earlier runs, 64 MiB each, before it fills the memory."""
    remove_stale_segments()


def pytest_runtest_setup() -> None:
    """Give torch one thread again: its backend sets the number of the process, and sums differ with it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


def pytest_sessionfinish() -> None:
    """Remove the shared memory of nodes killed in this run."""
    remove_stale_segments()


def remove_stale_segments() -> None:
    """Remove segments of Fast DDS that no process maps."""
    segments = {path.name for path in SHARED_MEMORY.glob("fastrtps_*")}
    in_use = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            in_use |= {
                line.rpartition("/")[2].strip() for line in maps.read_text().splitlines() if "/fastrtps_" in line
            }
    for name in segments:
        if not any(name.startswith(used) for used in in_use):
            with suppress(OSError):
                (SHARED_MEMORY / name).unlink()


ROOT = Path(__file__).resolve().parents[1]


def pytest_report_header() -> str:
    import cv2
    import numpy

    return f"numpy {numpy.__version__}, OpenCV {cv2.__version__}"  # `make noble` uses older versions


def _shared(variable: str, default: str) -> Path:
    folder = Path(os.environ.get(variable, ROOT.parent / "shared" / default))
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; point {variable} at the shared {default} folder")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real benchmark frames: RoadAnomaly21, RoadObstacle21, fs_static, CamVid."""
    return _shared("ANOMSEG_DATA", "data")


@pytest.fixture(scope="session")
def shared_weights() -> Path:
    """Folder of published checkpoints."""
    return _shared("ANOMSEG_WEIGHTS", "weights")


@pytest.fixture(scope="session")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle that predicts classes from colours (painted_frames.py)."""
    from painted_frames import painted_bundle

    return painted_bundle(tmp_path_factory.mktemp("bundles") / "painted")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a small bundle with every score: MiDE-Net with seeded random weights, 64x128, class 19 is void."""
    from fitted_networks import write_fitted_bundle

    return once_per_run.copy_of("tiny", write_fitted_bundle, tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def no_transport_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the settings of the Fast DDS transport, and restore them after the test."""
    from anomseg_ros.node import transport

    # setenv first, so that variables set by the tested function are also restored.
    for name in (transport.PROFILE_VARIABLE, "FASTDDS_BUILTIN_TRANSPORTS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prefix that ament finds, with the package's share folder and an executable detector."""
    # The folder `launch` of this repository is importable as a namespace package, so importing the name is no proof.
    pytest.importorskip("launch.actions", reason="launch is not on PyPI: source a ROS installation")
    pytest.importorskip("launch_ros.actions", reason="launch_ros is not on PyPI: source a ROS installation")
    for folder, target in (("share/anomseg_ros", ROOT), ("lib/anomseg_ros/detector", ROOT / "scripts" / "detector")):
        (tmp_path / folder).parent.mkdir(parents=True)
        (tmp_path / folder).symlink_to(target)
    marker = tmp_path / "share/ament_index/resource_index/packages/anomseg_ros"
    marker.parent.mkdir(parents=True)
    marker.touch()
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"{tmp_path}{os.pathsep}{os.environ.get('AMENT_PREFIX_PATH', '')}")
    return tmp_path
