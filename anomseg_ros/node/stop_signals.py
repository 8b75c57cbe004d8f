"""SIGINT and SIGTERM as requests: the kernel holds them until the process asks for them.

A Python signal handler is not enough. It does not exist while the modules load, nor after the interpreter has restored
the default action at its end, so that a second signal at such a time, from Ctrl-C or `ros2 launch`, would kill the
process.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

STOP_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM})


def hold_stop_signals() -> None:
    """Block SIGINT and SIGTERM in this thread and in all threads that it starts afterwards."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def stop_was_requested(within_s: float) -> bool:
    """Return whether a stop signal is held or arrives within `within_s` seconds. Reports each signal once."""
    return signal.sigtimedwait(STOP_SIGNALS, within_s) is not None


def end_process(status: int) -> NoReturn:
    """End the process with a status.

    Finalises Python, so that Fast DDS removes its shared memory. While another thread runs, finalising could unload a
    library that it uses, so the process then removes the shared memory itself and exits at once.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if threading.active_count() > 1:
        _remove_shared_memory()
        os._exit(status)
    sys.exit(status)


def _remove_shared_memory() -> None:
    """Remove the shared-memory segments (64 MiB each) of the Fast DDS participants of this process.

    A participant holds open the lock file of its own segment only. Processes that have mapped a segment can use it
    after its removal.
    """
    for descriptor in Path("/proc/self/fd").glob("*"):
        with suppress(OSError):
            lock = descriptor.readlink()
            if lock.parent == Path("/dev/shm") and lock.name.startswith("fastrtps_") and "port" not in lock.name:
                lock.with_name(lock.name.removesuffix("_el")).unlink()
                lock.unlink()
