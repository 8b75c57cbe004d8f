"""How camera frames cross from process to process: Fast DDS's default shared-memory segment is too small for them."""

from __future__ import annotations

import os
import shutil

from anomseg_ros.core.resources import share_file
from anomseg_ros.errors import ConfigError

PROFILE_VARIABLE = "FASTRTPS_DEFAULT_PROFILES_FILE"
# Segments of config/fastdds.xml for a player, a node and a listener.
SHARED_MEMORY_BYTES = 3 * 72 * 2**20


def use_large_shared_memory() -> bool:
    """Let ROS contexts that this process creates from now on send through config/fastdds.xml; return whether they do.

    Without it a best-effort subscriber in another process loses most frames of 512x1024 pixels. A transport that the
    user has chosen stays, and so does the default where /dev/shm is too small, as in a container.
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
