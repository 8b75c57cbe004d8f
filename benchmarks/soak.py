"""Many frames through the real node over real ROS 2, watching its memory: it must stay flat.

The node runs as a process of its own; frames of changing content are published as fast as it takes them. Resident
memory is read from /proc after every --every frames; growth is the median of the last fifth of the readings against
that of the second fifth (the first is warm-up).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import write_result
from rich.progress import Progress

from anomseg_ros.node.process import NodeProcess, free_domain_id
from anomseg_ros.node.transport import use_large_shared_memory

TOPIC = "/camera/image"
OUTPUTS = ("labels", "anomaly/score", "anomaly/mask", "overlay")
PATTERNS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--bundle", default="enet-synthetic", help="bundle directory or shipped name")
    parser.add_argument("--frames", type=int, default=10_000, help="frames to process")
    parser.add_argument("--every", type=int, default=100, help="frames between two readings of memory")
    parser.add_argument("--size", default="512x1024", help="height x width of the frames")
    args = parser.parse_args()
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    use_large_shared_memory()
    result = soak(args)
    print({key: value for key, value in result.items() if key != "resident_mib"})
    print(write_result("soak", result))


def soak(args: argparse.Namespace) -> dict[str, Any]:
    """Return the readings and their growth."""
    domain = free_domain_id()
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--bundle", args.bundle, "--image-topic", TOPIC]
        with NodeProcess(domain, Path(folder) / "node.log", arguments) as node:
            node.wait_for_log(" on ")
            started = time.monotonic()
            resident, published = feed(node, domain, args)
    fifth = max(len(resident) // 5, 1)
    before, after = statistics.median(resident[fifth : 2 * fifth]), statistics.median(resident[-fifth:])
    return {
        "bundle": Path(args.bundle).name,
        "frames": published,
        "size": args.size,
        "minutes": (time.monotonic() - started) / 60,
        "resident_mib_before": before,
        "resident_mib_after": after,
        "growth_mib": after - before,
        "growth_share": after / before - 1,
        "resident_mib": resident,
    }


def feed(node: NodeProcess, domain: int, args: argparse.Namespace) -> tuple[list[float], int]:
    """Publish a frame whenever the last one has been answered; return the memory readings and the count."""
    import rclpy
    from sensor_msgs.msg import Image
    from std_msgs.msg import Header

    from anomseg_ros.node.conversions import image_from_array
    from anomseg_ros.node.detector_node import OUTPUT_QOS

    rclpy.init(args=[], domain_id=domain)
    client = rclpy.create_node("soak")
    answered = [0]
    for name in OUTPUTS:
        count = name == "labels"
        callback = (lambda message: answered.__setitem__(0, answered[0] + 1)) if count else (lambda message: None)
        client.create_subscription(Image, f"/detector/{name}", callback, OUTPUT_QOS)
    publisher = client.create_publisher(Image, TOPIC, OUTPUT_QOS)
    height, width = map(int, args.size.split("x"))
    patterns = np.random.default_rng(0).integers(0, 256, (PATTERNS, height, width, 3), dtype=np.uint8)
    while not publisher.get_subscription_count():
        rclpy.spin_once(client, timeout_sec=0.1)
    resident = []
    with Progress() as progress:
        task = progress.add_task("soak", total=args.frames)
        while answered[0] < args.frames:
            node.require_running()
            before, deadline = answered[0], time.monotonic() + 5.0
            header = Header(stamp=client.get_clock().now().to_msg(), frame_id="camera")
            publisher.publish(image_from_array(patterns[before % PATTERNS], "rgb8", header))
            while answered[0] == before and time.monotonic() < deadline:
                rclpy.spin_once(client, timeout_sec=0.2)
            if answered[0] % args.every == 0:
                resident.append(resident_mib(node.process.pid))
                progress.update(task, completed=answered[0])
    client.destroy_node()
    rclpy.try_shutdown()
    return resident, answered[0]


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process, MiB (Linux)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
