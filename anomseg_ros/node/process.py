"""The detector node as a process of its own, in a ROS domain of its own: what the demo, replays and tests start."""

from __future__ import annotations

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
    """The node's process did not start, or ended by itself; the message holds the end of its log."""


def free_domain_id() -> int:
    """Return a ROS domain id whose discovery port nobody on this machine uses (DDSI-RTPS 2.5, 9.6.2.3)."""
    start = os.getpid()
    for offset in range(HIGHEST_DOMAIN):
        domain = 1 + (start + offset) % HIGHEST_DOMAIN
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("127.0.0.1", 7400 + 250 * domain + 10))
            except OSError:
                continue
        return domain
    raise NodeProcessError(f"all ROS domains 1 to {HIGHEST_DOMAIN} are in use on this machine")


def local_environment(domain: int) -> dict[str, str]:
    """Return this process's environment with a ROS domain that other machines do not see."""
    return {**os.environ, "ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}


class NodeProcess:
    """`anomseg node ARGUMENTS…` in ROS domain `domain`, its output collected in the file `log`. A context manager."""

    def __init__(self, domain: int, log: Path, arguments: Sequence[str]) -> None:
        self.log_path = log
        command = [sys.executable, "-m", "anomseg_ros.cli", "node", *arguments]
        environment = {**local_environment(domain), "RCUTILS_COLORIZED_OUTPUT": "0", "PYTHONUNBUFFERED": "1"}
        with log.open("w") as stream:
            # A session of its own: Ctrl-C in the terminal stops the caller, who then stops the node in order.
            self.process = subprocess.Popen(
                command, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
            )

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def log(self) -> str:
        """Everything the node has written so far."""
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
        """Wait until the log holds `text`. Raises NodeProcessError if the node ends or takes longer."""
        wait_until(lambda: text in self.log or not self.running, timeout_s)
        if text not in self.log:
            self.require_running()
            raise NodeProcessError(f"{text!r} did not appear in the node's log within {timeout_s:g} s:\n{self.log}")

    def stop(self, signum: int = signal.SIGINT, timeout_s: float = 30.0) -> int:
        """Send a signal and return the exit status; a node that does not obey in time is killed (status -9)."""
        if self.running:
            self.process.send_signal(signum)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return KILLED


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Poll a condition; return whether it came true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()
