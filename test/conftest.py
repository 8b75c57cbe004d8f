"""Fixtures shared by the whole suite."""

from __future__ import annotations

import os

# Before numpy and torch are imported. Their thread pools spin while they wait, which on a busy machine makes a test of
# small tensors ten times slower; tests are about results, and ONNX Runtime has a pool of its own.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# For tests that import onnxruntime before the package, which sets it; see anomseg_ros/__init__.py.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import setuptools  # noqa: F401

# setuptools puts its own distutils in place of the standard library's, and torch's compiler refuses to work where a
# test has imported that one before.

if TYPE_CHECKING:
    from anomseg_ros.core.bundle import Bundle

ROOT = Path(__file__).resolve().parents[1]


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
    """The bundle that reads classes off colours (painted_frames.py)."""
    from painted_frames import painted_bundle

    return painted_bundle(tmp_path_factory.mktemp("bundles") / "painted")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a small bundle with every score: MiDE-Net with seeded random weights, 64x128, class 19 is void."""
    import torch

    from anomseg_ros.core.bundle import Provenance
    from anomseg_ros.core.scores import SCORE_NAMES
    from anomseg_ros.export import ExportConfig, export_network
    from anomseg_ros.networks import build_network

    torch.manual_seed(0)
    network = build_network("mide_net", 20).eval()
    scores = ("void", *(name for name in SCORE_NAMES if name != "void"))
    config = ExportConfig("tiny", 20, 19, height_px=64, width_px=128, scores=scores, temperature=1.5)
    bundle, _ = export_network(network, "mide_net", config, tmp_path_factory.mktemp("bundles") / "tiny", Provenance())
    return bundle.directory
