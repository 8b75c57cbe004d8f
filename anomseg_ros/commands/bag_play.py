"""`anomseg bag play`: publish a bag's messages through ROS 2, without `ros2 bag`."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

if TYPE_CHECKING:
    from rclpy.node import Node

    from anomseg_ros.node.bag_player import PlayOptions, PlayReport

# The rate of `ros2 bag play --clock`.
DEFAULT_CLOCK_HZ = 40.0


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of the command."""
    made = argparse.ArgumentParser(
        prog="anomseg bag play",
        description="Publish a bag (MCAP or sqlite3) through ROS 2 with the stamps and bytes it was recorded with.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("file", type=Path, metavar="FILE", help="bag directory, .mcap file or .db3 file")
    made.add_argument("--rate", type=float, default=1.0, metavar="X", help="speed; 1 is the bag's own")
    made.add_argument("--loop", action="store_true", help="begin again at the end, until Ctrl-C")
    made.add_argument(
        "--clock",
        type=float,
        nargs="?",
        const=DEFAULT_CLOCK_HZ,
        default=0.0,
        metavar="HZ",
        help=f"publish the bag's time on /clock, for nodes with use_sim_time; {DEFAULT_CLOCK_HZ:g} Hz if not stated",
    )
    made.add_argument(
        "--topics", nargs="+", metavar="TOPIC", help="play only these (default: all)", default=argparse.SUPPRESS
    )
    made.add_argument(
        "--remap",
        nargs="+",
        metavar="OLD:=NEW",
        type=_remapping,
        help="publish topic OLD as NEW (default: under its own name)",
        default=argparse.SUPPRESS,
    )
    made.add_argument(
        "--wait", type=float, default=2.0, metavar="SECONDS", help="how long to wait for a first subscriber"
    )
    made.add_argument(
        "--reliability",
        choices=("reliable", "best_effort"),
        default="reliable",
        help="QoS of the publishers; best_effort never repeats a lost frame, and reliable subscribers cannot hear it",
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, also when Ctrl-C ended it. Raises BagError."""
    options = parser().parse_args(argv)
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    from anomseg_ros.node.bag_player import PlayOptions
    from anomseg_ros.node.transport import use_large_shared_memory

    play = PlayOptions(
        rate=options.rate,
        loop=options.loop,
        clock_hz=options.clock,
        topics=getattr(options, "topics", None),
        remap=dict(getattr(options, "remap", [])),
        wait_s=options.wait,
        reliability=options.reliability,
    )
    use_large_shared_memory()
    # rclpy's own handlers would shut the context down under a publisher that is at work.
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    try:
        node: Any = rclpy.create_node("anomseg_bag_player")  # rclpy is annotated only in part
        with _stop_on_signal() as stop:
            report = _play(node, options.file, play, stop)
        node.destroy_node()
    finally:
        rclpy.shutdown()
    _print_report(report)
    return 0


def _play(node: Node, path: Path, options: PlayOptions, stop: threading.Event) -> PlayReport:
    from anomseg_ros.node.bag_player import BagPlayer, PlayProgress

    console = Console(stderr=True)
    columns = (TextColumn("[bold]playing"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[time]}"))
    with BagPlayer(node, path, options) as player, Progress(*columns, console=console) as bar:
        for topic, reason in player.skipped.items():
            bar.console.print(f"not played: {topic}, {reason}")
        task = bar.add_task("play", total=player.total, time="")

        def show(progress: PlayProgress) -> None:
            nth = f" (pass {progress.passes})" if options.loop else ""
            bar.update(
                task, completed=progress.published, time=f"{progress.bag_time_s:.1f}/{progress.duration_s:.1f} s{nth}"
            )

        report = player.play(stop, show)
        if not report.found_subscriber and not report.stopped:
            bar.console.print(f"nobody subscribed within {options.wait_s:g} s; played anyway")
    return report


def _print_report(report: PlayReport) -> None:
    for topic, count in sorted(report.counts.items()):
        print(f"{topic}: {count} messages")
    if report.stopped:
        print("stopped before the end")


@contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set."""
    stop = threading.Event()

    def handler(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def _remapping(text: str) -> tuple[str, str]:
    old, found, new = text.partition(":=")
    if not (old and found and new):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected OLD:=NEW, such as /camera/image:=/image")
    return old, new
