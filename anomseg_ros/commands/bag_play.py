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

from anomseg_ros.commands import options
from anomseg_ros.commands.result_files import print_differences

if TYPE_CHECKING:
    from rclpy.node import Node

    from anomseg_ros.replay.player import PlayOptions, PlayReport

DEFAULT_CLOCK_HZ = 40.0  # as of `ros2 bag play --clock`


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg bag play`."""
    parser = options.parser(
        "bag play", "Publish a bag (MCAP or sqlite3) through ROS 2 with its recorded stamps and bytes."
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="bag directory, .mcap file or .db3 file")
    parser.add_argument("--rate", type=options.number, default=1.0, metavar="X", help="speed; 1 is the bag's own speed")
    parser.add_argument("--loop", action="store_true", help="start again at the end, until Ctrl-C")
    parser.add_argument(
        "--clock",
        type=options.number,
        nargs="?",
        const=DEFAULT_CLOCK_HZ,
        default=0.0,
        metavar="HZ",
        help=f"publish the bag's time on /clock, for nodes with use_sim_time; without HZ at {DEFAULT_CLOCK_HZ:g} Hz",
    )
    parser.add_argument("--topics", nargs="+", metavar="TOPIC", help="topics to play (default: all)")
    parser.add_argument(
        "--remap",
        nargs="+",
        metavar="OLD:=NEW",
        type=_remapping,
        default=[],
        help="publish topic OLD as NEW (default: the recorded name)",
    )
    parser.add_argument(
        "--wait", type=options.number, default=2.0, metavar="SECONDS", help="longest wait for a first subscriber"
    )
    needs_help = "play nothing, and end with status 1, if no subscriber appears within --wait"
    parser.add_argument("--needs-subscriber", action="store_true", help=needs_help)
    parser.add_argument(
        "--reliability",
        choices=("reliable", "best_effort"),
        default="reliable",
        help="QoS of the publishers; with best_effort, lost messages are not sent again, and reliable subscribers "
        "receive nothing",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Play the bag; return 0, also after Ctrl-C, or 1 if messages are missing. Raises BagError."""
    args = argument_parser().parse_args(argv)
    # From here to the end, so that a signal while ROS starts or stops does not end the command by an exception.
    with _stop_on_signal() as stop:
        report = _report(args, stop)
        _print_report(report)
        return print_differences(report.differences)


def _report(args: argparse.Namespace, stop: threading.Event) -> PlayReport:
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    from anomseg_ros.node.transport import use_large_shared_memory
    from anomseg_ros.replay.player import PlayOptions

    play_options = PlayOptions(
        rate=args.rate,
        loop=args.loop,
        clock_hz=args.clock,
        topics=args.topics,
        remap=dict(args.remap),
        wait_s=args.wait,
        needs_subscriber=args.needs_subscriber,
        reliability=args.reliability,
    )
    use_large_shared_memory()
    # rclpy's own signal handlers would shut down the context while a publisher uses it.
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    try:
        node: Any = rclpy.create_node("anomseg_bag_player")  # rclpy is annotated only in part
        report = _play(node, args.file, play_options, stop)
        node.destroy_node()
        return report
    finally:
        rclpy.shutdown()


def _play(node: Node, path: Path, play_options: PlayOptions, stop: threading.Event) -> PlayReport:
    from anomseg_ros.replay.player import BagPlayer, PlayProgress

    console = Console(stderr=True)
    columns = (TextColumn("[bold]playing"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[time]}"))
    with BagPlayer(node, path, play_options) as player, Progress(*columns, console=console) as bar:
        for topic, reason in player.skipped.items():
            bar.console.print(f"not played: {topic}, {reason}")
        task = bar.add_task("play", total=player.total, time="")

        def show(progress: PlayProgress) -> None:
            number = f" (pass {progress.passes})" if play_options.loop else ""
            elapsed = f"{progress.bag_time_s:.1f}/{progress.duration_s:.1f} s{number}"
            bar.update(task, completed=progress.published, time=elapsed)

        report = player.play(stop, show)
        if not report.had_subscriber and not report.stopped:
            bar.console.print(f"no subscriber appeared within {play_options.wait_s:g} s; the bag was played anyway")
    return report


def _print_report(report: PlayReport) -> None:
    for topic, count in sorted(report.counts.items()):
        print(f"{topic}: {count} messages")
    if report.stopped:
        print("stopped before the end")


@contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """Yield an event that SIGINT and SIGTERM set."""
    stop = threading.Event()

    def handler(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler_before in previous.items():
            signal.signal(number, handler_before)


def _remapping(text: str) -> tuple[str, str]:
    old, separator, new = text.partition(":=")
    if not (old and separator and new):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected OLD:=NEW, such as /camera/image:=/image")
    return old, new
