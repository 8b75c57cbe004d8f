"""`anomseg demo`: a bag goes through the real node under real ROS 2; pictures, counts and latencies come out."""

from __future__ import annotations

import argparse
import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from anomseg_ros.bags.read import camera_topic, open_bag, read_images
from anomseg_ros.bags.write import BagWriter, PinholeCamera
from anomseg_ros.commands import options
from anomseg_ros.commands.demo_page import write_page
from anomseg_ros.core.bundle import Bundle, load_bundle
from anomseg_ros.core.overlay import panel, score_range
from anomseg_ros.core.resources import ROAD_BUNDLE, SYNTHETIC_BUNDLE, find_bundle
from anomseg_ros.datasets.synthetic import SyntheticConfig, SyntheticSequence

if TYPE_CHECKING:
    from anomseg_ros.node.recorder import OutputRecorder

# Beyond the seeds of the shipped bundle's training frames.
SYNTHETIC_SEED = 1_000_105
ANOMALY_SIZE_M = (0.4, 2.0)
SYNTHETIC_FOLDER = "synthetic_bag"
CLOCK_HZ = 100.0
DRAIN_S = 10.0

console = Console()


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured. Latencies in milliseconds by percentile; see node.health for the counts."""

    bag: str
    bundle: str
    backend: str
    frames_in: int
    published: int
    dropped: int
    lost: int
    bad: int
    latency_ms: dict[str, float]
    processing_ms: dict[str, float]


def main(argv: list[str]) -> int:
    """Parse the arguments, make or take a bag, play it through the node, and write the page."""
    args = _parser().parse_args(argv)
    bundle = load_bundle(find_bundle(args.bundle or default_bundle(args.bag)))
    args.output.mkdir(parents=True, exist_ok=True)
    bag = args.bag or write_synthetic_bag(args.output / SYNTHETIC_FOLDER, args.frames, args.seed)
    result, recorder = play_through_node(bag, bundle, args)
    pictures = write_panels(bag, args.topic, recorder, bundle, args.output)
    (args.output / "result.json").write_text(json.dumps(asdict(result), indent=2) + "\n")
    page = write_page(args.output / "index.html", result, pictures, recorder.values("detector"))
    _print_result(result)
    console.print(f"{len(pictures)} pictures; open {page}", soft_wrap=True)
    return 0 if result.published else 1


def default_bundle(bag: Path | None) -> str:
    """Return the shipped bundle for a bag, or for the synthetic drive (None)."""
    return SYNTHETIC_BUNDLE if bag is None else ROAD_BUNDLE


def _parser() -> argparse.ArgumentParser:
    parser = options.parser(
        "demo", "Play a bag (default: a synthetic drive) through the node and write a page of pictures."
    )
    parser.add_argument(
        "bag", nargs="?", type=Path, help="MCAP or sqlite3 bag with a camera topic (default: synthetic)"
    )
    defaults = f"{ROAD_BUNDLE} for a bag, {SYNTHETIC_BUNDLE} for the synthetic drive"
    parser.add_argument("--bundle", help=f"bundle directory or name of a shipped bundle (default: {defaults})")
    parser.add_argument("--topic", help="camera topic of the bag (default: its only one)")
    parser.add_argument("--rate", type=float, default=1.0, help="speed of the replay")
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for pictures and page")
    parser.add_argument("--pictures", type=int, default=12, help="about how many pictures to make")
    parser.add_argument("--frames", type=int, default=100, help="length of the synthetic drive, frames at 10 Hz")
    parser.add_argument("--seed", type=int, default=SYNTHETIC_SEED, help="which synthetic drive")
    parser.add_argument("--threads", type=int, default=0, help="processor threads of the node; 0 = one per core")
    return parser


def write_synthetic_bag(output: Path, frames: int, seed: int) -> Path:
    """Write a synthetic drive with labels and camera_info as an MCAP bag and return its directory."""
    sequence = SyntheticSequence(seed, SyntheticConfig(anomaly_probability=1.0, anomaly_size_m=ANOMALY_SIZE_M))
    lens = sequence.camera
    camera = PinholeCamera(lens.width_px, lens.height_px, lens.fx, lens.fy, lens.cx, lens.cy)
    with options.progress_bar() as progress, BagWriter(output, overwrite=True) as bag:
        for frame in progress.track(sequence.frames(frames), total=frames, description="drawing a synthetic drive"):
            bag.write_frame(round(frame.time_s * 1e9) + 1_000_000_000, frame.image, camera, frame.labels, frame.anomaly)
    return output


def play_through_node(bag: Path, bundle: Bundle, args: argparse.Namespace) -> tuple[DemoResult, OutputRecorder]:
    """Start the node in its own ROS domain, play the bag into it and listen to what it publishes."""
    import rclpy

    from anomseg_ros.node.bag_player import BagPlayer, PlayOptions
    from anomseg_ros.node.process import NodeProcess, free_domain_id
    from anomseg_ros.node.recorder import OutputRecorder
    from anomseg_ros.node.transport import use_large_shared_memory

    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    use_large_shared_memory()
    with open_bag(bag) as opened:
        topic = args.topic or camera_topic(opened)
        duration_ns, frames = opened.end_ns - opened.start_ns, opened.counts[topic]
    domain = free_domain_id()
    rclpy.init(args=[], domain_id=domain)
    node = rclpy.create_node("demo")
    recorder = OutputRecorder(node, duration_ns // max(args.pictures, 1))
    try:
        with NodeProcess(domain, args.output / "node.log", _node_arguments(bundle, topic, args.threads)) as process:
            process.wait_for_log(" on ")
            play = PlayOptions(rate=args.rate, clock_hz=CLOCK_HZ, topics=_topics(bag, topic), wait_s=30.0)
            with BagPlayer(node, bag, play) as player:
                _play(player, node, recorder, frames)
            process.require_running()
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return _result(bag, bundle, frames, recorder), recorder


def _node_arguments(bundle: Bundle, topic: str, threads: int) -> list[str]:
    image_topic = topic.removesuffix("/compressed")
    transport = "raw" if image_topic == topic else "compressed"
    where = ["--bundle", str(bundle.directory.resolve()), "--image-topic", image_topic, "--image-transport", transport]
    return [*where, "--threads", str(threads), "--use-sim-time"]


def _topics(bag: Path, topic: str) -> list[str]:
    with open_bag(bag) as opened:
        beside = topic.removesuffix("/compressed").rsplit("/", 1)[0] + "/camera_info"
        return [topic, *([beside] if beside in opened.topics else [])]


def _play(player, node, recorder: OutputRecorder, frames: int) -> None:  # type: ignore[no-untyped-def]  # rclpy is lazy
    """Play in a thread while this one listens; then wait until the node has answered for every frame it received."""
    from rclpy.executors import SingleThreadedExecutor

    executor = SingleThreadedExecutor()
    executor.add_node(node)
    thread = threading.Thread(target=player.play, daemon=True)
    thread.start()
    with options.progress_bar() as progress:
        task = progress.add_task("", total=frames)
        while thread.is_alive():
            executor.spin_once(timeout_sec=0.05)
            _show(progress, task, recorder)
        settled = recorder.reports + 2
        waited = 0
        while recorder.reports < settled and waited < DRAIN_S / 0.05:
            executor.spin_once(timeout_sec=0.05)
            _show(progress, task, recorder)
            waited += 1
    executor.shutdown()


def _show(progress: Progress, task: object, recorder: OutputRecorder) -> None:
    counts = recorder.values("frames")
    received, dropped = int(counts.get("received", 0)), int(counts.get("dropped", 0))
    text = f"in {received}  out {counts.get('published', 0)}  dropped {dropped}"
    progress.update(task, completed=received, description=text)  # type: ignore[arg-type]


def _result(bag: Path, bundle: Bundle, frames: int, recorder: OutputRecorder) -> DemoResult:
    values = recorder.values("frames")
    received, published, dropped, bad = (int(values.get(key, 0)) for key in ("received", "published", "dropped", "bad"))
    percentiles = {
        kind: {f"p{p}": float(values[f"{kind}_p{p}"]) for p in (50, 95, 99) if f"{kind}_p{p}" in values}
        for kind in ("latency_ms", "processing_ms")
    }
    return DemoResult(
        bag=bag.name,
        bundle=bundle.contract.name,
        backend=recorder.values("detector").get("backend", "unknown"),
        frames_in=frames,
        published=published,
        dropped=dropped,
        lost=frames - received,
        bad=bad,
        **percentiles,
    )


def write_panels(bag: Path, topic: str | None, recorder: OutputRecorder, bundle: Bundle, output: Path) -> list[Path]:
    """Write one picture (input | labels | heat map | mask) per kept frame; return the files in order."""
    from anomseg_ros.node.pipeline import frame_of
    from anomseg_ros.node.recorder import LABELS, MASK, SCORE

    for old in output.glob("frame_*.png"):
        old.unlink()
    kept = {outputs.stamp_ns: outputs.arrays for outputs in recorder.complete}
    score = recorder.values("detector").get("score", bundle.contract.score_names[0])
    known = len(bundle.contract.classes) - (bundle.contract.void_class is not None)
    pictures: list[Path] = []
    with open_bag(bag) as opened:
        for record in read_images(opened, topic):
            arrays = kept.get(record.stamp_ns)
            if arrays is None:
                continue
            tiles = (frame_of(record.message), arrays[LABELS], arrays[SCORE], arrays[MASK])
            picture = panel(*tiles, bundle.contract.classes, score_range(score, known), score)
            pictures.append(output / f"frame_{len(pictures):03d}.png")
            cv2.imwrite(str(pictures[-1]), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    return pictures


def _print_result(result: DemoResult) -> None:
    table = Table(title=f"{result.bag} through {result.bundle} on {result.backend}")
    for column in ("frames in", "out", "dropped", "lost", "bad", "latency, ms", "p50", "p95", "p99"):
        table.add_column(column, justify="right")
    counts = [str(count) for count in (result.frames_in, result.published, result.dropped, result.lost, result.bad)]
    for name, values in (("stamp to output", result.latency_ms), ("arrival to output", result.processing_ms)):
        table.add_row(*counts, name, *(f"{values[key]:.1f}" if key in values else "-" for key in ("p50", "p95", "p99")))
        counts = [""] * 5
    console.print(table)
