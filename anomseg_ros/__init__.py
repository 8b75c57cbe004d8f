"""Road-anomaly detection for ROS 2: camera frames in, semantic labels and calibrated anomaly maps out."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anomseg_ros.api.detection import Detector, read_frames
    from anomseg_ros.api.offline import evaluate, export_checkpoint
    from anomseg_ros.core.types import Outputs
    from anomseg_ros.errors import AnomsegError
    from anomseg_ros.evaluation.results import Result

__all__ = ["AnomsegError", "Detector", "Outputs", "Result", "evaluate", "export_checkpoint", "read_frames"]
__version__ = "0.1.0"

# The package uses no network unless asked. From version 1.29, importing onnxruntime starts a telemetry thread, which
# writes a database in the user's home and can crash the process. Ray also reports its use. Users can enable both by
# setting these variables.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# OpenCV allocates the size in an image header before it reads the data, by default up to 2^30 pixels. It reads this
# variable on import.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**26))


PUBLIC = {
    "AnomsegError": "anomseg_ros.errors",
    "Detector": "anomseg_ros.api.detection",
    "Outputs": "anomseg_ros.core.types",
    "Result": "anomseg_ros.evaluation.results",
    "evaluate": "anomseg_ros.api.offline",
    "export_checkpoint": "anomseg_ros.api.offline",
    "read_frames": "anomseg_ros.api.detection",
}
"""Public name -> its module. These names keep their arguments and meaning within a minor version (docs/python.md)."""


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: a command or node needs only part of the package."""
    if name in PUBLIC:
        return getattr(importlib.import_module(PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
