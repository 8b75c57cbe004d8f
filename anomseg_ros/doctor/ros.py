"""ROS 2: the installation, a frame through its middleware and shared memory, and the image topics that are there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

from anomseg_ros.doctor.finding import ABSENT, OK, PROBLEM, Finding
from anomseg_ros.node.transport import SHARED_MEMORY_BYTES

MIB = 2**20
SHARED_MEMORY = "/dev/shm"


def check_ros() -> Iterator[Finding]:
    """Yield the ROS 2 installation and what it can do. Without one, only that it is absent."""
    try:
        from anomseg_ros.node.self_test import image_topics, middleware, round_trip_ms
    except ModuleNotFoundError as error:
        remedy = "source your ROS installation, or pip install 'anomseg_ros[ros]'"
        yield Finding("installation", ABSENT, f"no module named {error.name!r}: the node cannot run, files can", remedy)
        return
    yield _shared_memory()
    yield Finding("middleware", OK, middleware())
    took_ms = round_trip_ms()
    if took_ms is None:
        yield Finding(
            "messages",
            PROBLEM,
            "an image published to this computer did not arrive",
            "check RMW_IMPLEMENTATION, FASTRTPS_DEFAULT_PROFILES_FILE, a firewall, and docs/troubleshooting.md",
        )
        return
    yield Finding("messages", OK, f"an image of 512x1024 arrived after {took_ms:.1f} ms")
    topics = image_topics()
    domain = os.environ.get("ROS_DOMAIN_ID", "0")
    if topics:
        yield Finding("image topics", OK, f"in ROS_DOMAIN_ID {domain}: {', '.join(topics)}")
    else:
        remedy = "start the camera's driver; it needs the same ROS_DOMAIN_ID and discovery range"
        yield Finding("image topics", ABSENT, f"nobody publishes images in ROS_DOMAIN_ID {domain}", remedy)


def _shared_memory() -> Finding:
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        free = 0
    text = f"{free // MIB} MiB free in {SHARED_MEMORY}, {SHARED_MEMORY_BYTES // MIB} MiB are needed"
    if free < SHARED_MEMORY_BYTES:
        remedy = "free some, or start the container with --shm-size 512m; without it most large frames are lost"
        return Finding("shared memory", PROBLEM, text, remedy)
    return Finding("shared memory", OK, text)
