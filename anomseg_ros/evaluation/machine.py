"""The machine and the package versions that can change a measured number; no host or user names."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from anomseg_ros import __version__

PACKAGES = (
    "numpy",
    "opencv-python-headless",
    "onnxruntime",
    "openvino",
    "torch",
    "scikit-learn",
    "rosbags",
    "ros-rclpy",
    "ros-fastrtps",
    "ray",
    "imagecorruptions-imaug",
)


def describe_machine() -> dict[str, Any]:
    """Return processor, cores, memory, system and Python version."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "python": platform.python_version(),
    }


def package_versions() -> dict[str, str]:
    """Return the versions of this package and of the installed packages that it measures with."""
    found = {"anomseg_ros": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    models = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return models[0] if models else platform.processor() or "unknown"


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None
