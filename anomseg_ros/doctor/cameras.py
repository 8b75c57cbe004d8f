"""Cameras of the machine: video devices that V4L2 offers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from anomseg_ros.doctor.finding import ABSENT, OK, PROBLEM, Finding

DEVICES = Path("/dev")
NAMES = Path("/sys/class/video4linux")


def check_cameras() -> Iterator[Finding]:
    """Yield each video device: its name, and whether this user may read it."""
    devices = sorted(DEVICES.glob("video*"), key=lambda device: (len(device.name), device.name))
    if not devices:
        yield Finding("V4L2", ABSENT, "no /dev/video*: no USB or CSI camera is connected, or its driver is not loaded")
    for device in devices:
        name = _name(device)
        if os.access(device, os.R_OK | os.W_OK, effective_ids=True):
            yield Finding(device.name, OK, f"{name}, readable")
        else:
            remedy = "sudo usermod -aG video $USER, then log in again; in a container: --device"
            yield Finding(device.name, PROBLEM, f"{name}, this user may not open {device}", remedy)


def _name(device: Path) -> str:
    try:
        return (NAMES / device.name / "name").read_text(encoding="utf-8", errors="replace").strip() or device.name
    except OSError:
        return device.name
