"""Latency of the detector node end to end over ROS 2: from the stamp of a camera frame to the mask in a listener.

There are three processes, as on a vehicle: a camera that stamps and publishes rgb8 frames (sensor-data QoS),
`anomseg node`, and this process, which listens to ~/anomaly/mask and to the diagnostics. All use config/fastdds.xml, as
`anomseg node` does. Mode `rate` publishes at a fixed rate and counts the frames that the node drops. Mode `answered`
publishes the next frame as soon as the mask of the previous one arrives. The age of a mask is the time from the stamp
to its arrival, by the system's clock. The node's own times cover its last minute, which may include the warm-up.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from common import camera_frames, parse_size, write_result
from rich.progress import Progress

from anomseg_ros.backends import BACKENDS
from anomseg_ros.bench.statistics import percentiles
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.node.transport import use_large_shared_memory
from anomseg_ros.replay.process import NodeProcess, free_domain_id

TOPIC, MASK = "/camera/image", "/detector/anomaly/mask"
PATTERNS = 14
WARM_UP_FRAMES = 20
MODES = ("rate", "answered")
ANSWER_TIMEOUT_S = 5.0
DRAIN_S = 10.0
DISCOVERY_S = 60.0
NODE_TIMES = ("latency_ms", "processing_ms", "network_ms")
COUNTS = ("received", "published", "dropped", "bad", "lost")


@dataclass(frozen=True)
class Setting:
    """One run. rate_hz: of the camera, None: as fast as answered; frames: measured ones, after the warm-up."""

    bundle: str
    backend: str
    threads: int
    rate_hz: float | None
    frames: int
    size: tuple[int, int]
    threshold: float | None = None

    @property
    def title(self) -> str:
        """Text of the progress bar."""
        mode = "as fast as answered" if self.rate_hz is None else f"{self.rate_hz:g} Hz"
        return f"{Path(self.bundle).name}, {self.backend}, {mode}"


@dataclass
class Received:
    """What the listener received: (stamp, arrival) of each mask, nanoseconds, and the node's latest diagnostics."""

    masks_ns: list[tuple[int, int]] = field(default_factory=list)
    diagnostics: dict[str, str] = field(default_factory=dict)
    reports: int = 0

    def count(self, name: str) -> int:
        """Return a frame count of the node, 0 before its first report."""
        return int(self.diagnostics.get(name, 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", nargs="+", default=["enet-camvid"], help="bundles (default: enet-camvid)")
    parser.add_argument("--backend", nargs="+", default=["onnxruntime"], choices=sorted(BACKENDS), help="engines")
    parser.add_argument("--threads", type=int, default=0, help="threads of the engine; 0 = one per core (default: 0)")
    parser.add_argument("--mode", nargs="+", default=list(MODES), choices=MODES, help="when to publish frames")
    parser.add_argument("--rate", type=float, default=20.0, help="frames per second in mode rate (default: 20)")
    parser.add_argument("--frames", type=int, default=2000, help="frames measured per run (default: 2000)")
    parser.add_argument(
        "--size", type=parse_size, default=(720, 1280), metavar="HxW", help="frames (default: 720x1280)"
    )
    parser.add_argument("--threshold", type=float, help="threshold of the mask, for bundles without a calibrated one")
    args = parser.parse_args()
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    profile = use_large_shared_memory()
    runs = []
    for bundle, backend, mode in product(args.bundle, args.backend, args.mode):
        rate_hz = args.rate if mode == "rate" else None
        setting = Setting(bundle, backend, args.threads, rate_hz, args.frames, args.size, args.threshold)
        runs.append(measure(setting))
        print(run_line(runs[-1]), flush=True)
    print(write_result("node_latency", {"fastdds_profile": profile, "size": args.size, "runs": runs}))


def measure(setting: Setting) -> dict[str, Any]:
    """Return the figures of one run of the three processes."""
    directory = find_bundle(setting.bundle)
    contract = load_bundle(directory).contract
    arguments = ["--bundle", str(directory), "--backend", setting.backend, "--threads", str(setting.threads)]
    arguments += ["--image-topic", TOPIC]
    if setting.threshold is not None:
        arguments += ["--threshold", str(setting.threshold)]
    elif contract.score_names[0] not in contract.thresholds:
        raise SystemExit(f"{setting.bundle}: no threshold of {contract.score_names[0]}, so no mask; give --threshold")
    domain = free_domain_id()
    with tempfile.TemporaryDirectory() as folder, NodeProcess(domain, Path(folder) / "node.log", arguments) as node:
        node.wait_for_log(" on ")
        sent_ns, received = publish_and_listen(setting, domain, node)
    return {
        "bundle": contract.name,
        "precision": contract.precision,
        "backend": setting.backend,
        "threads": setting.threads,
        "mode": "answered" if setting.rate_hz is None else "rate",
        "rate_hz": setting.rate_hz,
        **figures(sent_ns, received),
    }


def publish_and_listen(setting: Setting, domain: int, node: NodeProcess) -> tuple[list[int], Received]:
    """Start the camera, listen to its end, and return the stamps (ns) of the published frames and what was received."""
    import rclpy
    from diagnostic_msgs.msg import DiagnosticArray
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import Image

    spawn = multiprocessing.get_context("spawn")
    answers, (ours, theirs) = spawn.Semaphore(1), spawn.Pipe(duplex=False)
    camera = spawn.Process(target=run_camera, args=(setting, domain, answers, theirs), daemon=True)
    received, sent_ns = Received(), None

    def on_mask(message: Image) -> None:
        arrived_ns = time.time_ns()
        stamp = message.header.stamp
        received.masks_ns.append((stamp.sec * 1_000_000_000 + stamp.nanosec, arrived_ns))
        answers.release()

    def on_diagnostics(report: DiagnosticArray) -> None:
        received.reports += 1
        for status in report.status:
            if status.name.endswith("frames"):
                received.diagnostics = {pair.key: pair.value for pair in status.values}

    rclpy.init(args=[], domain_id=domain)
    listener = rclpy.create_node("listener")
    qos = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
    listener.create_subscription(Image, MASK, on_mask, qos)
    listener.create_subscription(DiagnosticArray, "/diagnostics", on_diagnostics, 10)
    while not listener.count_publishers(MASK):
        rclpy.spin_once(listener, timeout_sec=0.1)
        node.require_running()
    camera.start()
    with Progress() as progress:
        task = progress.add_task(setting.title, total=WARM_UP_FRAMES + setting.frames)
        while sent_ns is None:
            rclpy.spin_once(listener, timeout_sec=0.2)
            progress.update(task, completed=len(received.masks_ns))
            node.require_running()
            if ours.poll():
                sent_ns = ours.recv()
            elif not camera.is_alive():
                raise SystemExit("the camera's process ended before all frames were published")
        progress.update(task, completed=WARM_UP_FRAMES + setting.frames)
    drain(listener, received)
    listener.destroy_node()
    rclpy.try_shutdown()
    camera.join()
    return sent_ns, received


def drain(listener: Any, received: Received) -> None:
    """Listen until the node has reported that all frames are processed, and their masks have arrived."""
    import rclpy

    fresh, deadline = received.reports + 2, time.monotonic() + DRAIN_S
    while time.monotonic() < deadline:
        frames, published, dropped, bad, _ = map(received.count, COUNTS)
        if received.reports >= fresh and frames == published + dropped + bad and len(received.masks_ns) >= published:
            return
        rclpy.spin_once(listener, timeout_sec=0.1)


def run_camera(setting: Setting, domain: int, answers: Any, result: Any) -> None:
    """Publish the frames, at the fixed rate or when answered. Send their stamps, nanoseconds, through `result`."""
    import rclpy
    from builtin_interfaces.msg import Time
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image
    from std_msgs.msg import Header

    from anomseg_ros.node.conversions import image_from_array

    images, _ = camera_frames(PATTERNS, *setting.size)
    messages = [image_from_array(image, "rgb8", Header(frame_id="camera")) for image in images]
    rclpy.init(args=[], domain_id=domain)
    node = rclpy.create_node("camera")
    publisher = node.create_publisher(Image, TOPIC, qos_profile_sensor_data)
    deadline = time.monotonic() + DISCOVERY_S
    while not publisher.get_subscription_count() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)  # the node may match a little later, and best effort does not repeat frames
    sent_ns, started = [], time.monotonic()
    for number in range(WARM_UP_FRAMES + setting.frames):
        if setting.rate_hz is None:
            answers.acquire(timeout=ANSWER_TIMEOUT_S)
        else:
            time.sleep(max(0.0, started + number / setting.rate_hz - time.monotonic()))
        message = messages[number % len(messages)]
        stamp_ns = time.time_ns()
        message.header.stamp = Time(sec=stamp_ns // 1_000_000_000, nanosec=stamp_ns % 1_000_000_000)
        publisher.publish(message)
        sent_ns.append(stamp_ns)
    result.send(sent_ns)
    time.sleep(1.0)  # the last frames are still in transit
    node.destroy_node()
    rclpy.try_shutdown()


def figures(sent_ns: list[int], received: Received) -> dict[str, Any]:
    """Return counts, rates and ages of the frames after the warm-up, and the node's own times."""
    measured = set(sent_ns[WARM_UP_FRAMES:])
    answered = [(stamp, arrived) for stamp, arrived in received.masks_ns if stamp in measured]
    if len(answered) < 2:
        raise SystemExit(f"only {len(answered)} of {len(measured)} frames were answered: nothing to measure")
    seconds = (answered[-1][1] - answered[0][1]) / 1e9
    sent_s = (sent_ns[-1] - sent_ns[WARM_UP_FRAMES]) / 1e9
    ages_ms = percentiles([(arrived - stamp) / 1e6 for stamp, arrived in answered])
    own = {
        name: {f"p{p}": float(received.diagnostics[f"{name}_p{p}"]) for p in (50, 95, 99)}
        for name in NODE_TIMES
        if f"{name}_p50" in received.diagnostics
    }
    return {
        "sent": len(measured),
        "answered": len(answered),
        "dropped": len(measured) - len(answered),
        "sent_hz": (len(measured) - 1) / sent_s,
        "frames_per_second": (len(answered) - 1) / seconds,
        "stamp_to_mask_ms": ages_ms,
        "node": {"counts": {name: received.count(name) for name in COUNTS}, **own},
    }


def run_line(run: dict[str, Any]) -> str:
    """Return the figures of a run in one line."""
    mode = "as fast as answered" if run["rate_hz"] is None else f"at {run['rate_hz']:g} Hz"
    ages, own = run["stamp_to_mask_ms"], run["node"].get("latency_ms", {})
    times = ", ".join(f"{name} {ages[name]:.1f}" for name in ("p50", "p95", "p99"))
    node = ", ".join(f"{name} {value:.1f}" for name, value in own.items())
    return (
        f"{run['bundle']} ({run['precision']}), {run['backend']}, {mode}: {run['answered']} of {run['sent']} answered, "
        f"{run['frames_per_second']:.1f} frames/s; stamp to mask received {times} ms; node's stamp to publish {node} ms"
    )


if __name__ == "__main__":
    main()
