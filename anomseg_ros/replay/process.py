"""Start the detector node as a process in its own ROS domain, for the demo, replays and tests."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from anomseg_ros.errors import AnomsegError

HIGHEST_DOMAIN = 100
KILLED = -9


class NodeProcessError(AnomsegError):
    """The node's process did not start, or ended by itself; the message has the end of its log."""


_domain_locks: dict[int, socket.socket] = {}
"""Domain that this process has reserved -> socket that prevents other processes from reserving it."""


def free_domain_id() -> int:
    """Return a ROS domain id whose discovery port is unused on this machine (DDSI-RTPS 2.5, 9.6.2.3).

    The domain is reserved until this process ends, since a node takes some time until it opens the port.
    """
    for offset in range(HIGHEST_DOMAIN):
        domain = 1 + (os.getpid() + offset) % HIGHEST_DOMAIN
        if _is_unused(domain) and _reserve(domain):
            return domain
    raise NodeProcessError(f"all ROS domains 1 to {HIGHEST_DOMAIN} are in use on this machine")


def _is_unused(domain: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("127.0.0.1", 7400 + 250 * domain + 10))
        except OSError:
            return False
    return True


def _reserve(domain: int) -> bool:
    if domain not in _domain_locks:
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            # An abstract name, unix(7): it leaves no file, and the kernel frees it when the process ends.
            lock.bind(f"\0anomseg_ros/domain/{domain}")
        except OSError as error:
            lock.close()
            # On systems without abstract names, only the port indicates whether the domain is in use.
            return error.errno != errno.EADDRINUSE
        _domain_locks[domain] = lock
    return True


def local_environment(domain: int) -> dict[str, str]:
    """Return this process's environment with a ROS domain that is invisible to other machines."""
    return {**os.environ, "ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}


class NodeProcess:
    """`anomseg node ARGUMENTS…` in a ROS domain, with its output in a log file; a context manager."""

    def __init__(self, domain: int, log: Path, arguments: Sequence[str], *, own_session: bool = True) -> None:
        """Start the process.

        Args:
            domain: ROS domain id.
            log: file for its output.
            arguments: arguments of `anomseg node`.
            own_session: start the node in a new session, so that Ctrl-C in the terminal reaches only the caller, which
                then stops the node.
        """
        self.log_path = log
        command = [sys.executable, "-m", "anomseg_ros.cli", "node", *arguments]
        environment = {**local_environment(domain), "RCUTILS_COLORIZED_OUTPUT": "0", "PYTHONUNBUFFERED": "1"}
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                command, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=own_session
            )

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def log(self) -> str:
        """The node's output so far."""
        return self.log_path.read_text(errors="replace")

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self.process.poll() is None

    def require_running(self) -> None:
        """Raise NodeProcessError with the end of the log if the process has ended."""
        if not self.running:
            lines = self.log.strip().splitlines()[-5:]
            raise NodeProcessError(f"the node ended with status {self.process.returncode}: {' | '.join(lines)}")

    def wait_for_log(self, text: str, timeout_s: float = 60.0) -> None:
        """Wait until the log contains `text`. Raises NodeProcessError if the node ends or takes longer."""
        wait_until(lambda: text in self.log or not self.running, timeout_s)
        if text not in self.log:
            self.require_running()
            raise NodeProcessError(f"{text!r} did not appear in the node's log within {timeout_s:g} s:\n{self.log}")

    def stop(self, signum: int = signal.SIGINT, timeout_s: float = 30.0) -> int:
        """Send a signal and return the exit status; a node that does not end in time is killed (status -9)."""
        if self.running:
            self.process.send_signal(signum)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return KILLED


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Poll a condition; return whether it became true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()
