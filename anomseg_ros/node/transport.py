"""Configure Fast DDS for camera frames, which are too large for its default shared-memory segment."""

from __future__ import annotations

import os
import shutil

from anomseg_ros.core.resources import share_file
from anomseg_ros.errors import ConfigError

PROFILE_VARIABLE = "FASTRTPS_DEFAULT_PROFILES_FILE"
SHARED_MEMORY_BYTES = 3 * 72 * 2**20
"""Free space that /dev/shm must have: segments of config/fastdds.xml for a player, a node and a listener."""


def use_large_shared_memory() -> bool:
    """Select config/fastdds.xml for ROS contexts that this process creates later; return whether it was selected.

    Without this profile a best-effort subscriber in another process loses most frames of 512x1024 pixels. The function
    changes nothing if the user has selected a transport, or if /dev/shm is too small, as in a container.
    """
    if PROFILE_VARIABLE in os.environ or "FASTDDS_BUILTIN_TRANSPORTS" in os.environ:
        return False
    try:
        profile = share_file("config/fastdds.xml")
        if shutil.disk_usage("/dev/shm").free < SHARED_MEMORY_BYTES:
            return False
    except (ConfigError, OSError):
        return False
    os.environ[PROFILE_VARIABLE] = str(profile)
    return True
