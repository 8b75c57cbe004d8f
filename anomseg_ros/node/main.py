"""Entry point of `anomseg node` and of the ROS executable `detector`. SIGINT, also twice, and SIGTERM give status 0."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from anomseg_ros.node.stop_signals import end_process, hold_stop_signals


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg node`."""
    from anomseg_ros.node.life import argument_parser

    return argument_parser()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node and end the process: status 0, or 1 if it could not start or ended without a signal."""
    hold_stop_signals()
    # Imported after the call: ROS, OpenCV and the engines start threads, which must not receive the signals.
    from anomseg_ros.node.life import run

    end_process(run(argv))
