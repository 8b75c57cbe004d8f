"""What works on this machine, and what to do about what does not: `anomseg doctor`. One file for each area.

A check is a function that yields findings; CHECKS lists them in the order in which a person mends what they find.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator

from anomseg_ros.doctor.finding import PROBLEM, Finding
from anomseg_ros.errors import describe_os_error

CHECKS = {
    "package": "anomseg_ros.doctor.packages:check_packages",
    "models": "anomseg_ros.doctor.inference:check_models",
    "backends": "anomseg_ros.doctor.inference:check_backends",
    "ROS 2": "anomseg_ros.doctor.ros:check_ros",
    "cameras": "anomseg_ros.doctor.cameras:check_cameras",
}
"""Area -> its check."""


SLOW = {
    "backends": "a self-test frame is run on each backend, which takes seconds",
    "ROS 2": "an image is sent from node to node, then image topics are awaited for seconds",
}
"""Area whose check may take seconds -> what it does meanwhile."""


def examine(starting: Callable[[str], None] = lambda _: None) -> Iterator[Finding]:
    """Yield the findings of every area as they are made. A check that fails is a finding; the others go on.

    starting: called with each area before its check begins.
    """
    for area, place in CHECKS.items():
        module, _, name = place.partition(":")
        starting(area)
        try:
            for finding in getattr(importlib.import_module(module), name)():
                yield finding.of(area)
        except Exception as error:  # an unforeseen fault of a library or driver is what this command is for
            text = describe_os_error(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            yield Finding("check", PROBLEM, f"stopped: {text}", "report this, with the output above").of(area)
