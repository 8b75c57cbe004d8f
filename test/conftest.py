"""Fixtures shared by the whole suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
