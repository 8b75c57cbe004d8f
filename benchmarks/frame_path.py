"""Overhead of the node's frame path beyond the network, as a share of the network's own time.

Interleaved in one run: (a) the network alone, float32 tensor to logits, in ONNX Runtime; (b) the complete frame path of
the node: message to array, resize, cast, network, argmax, score, mask, messages, publication to a subscriber in another
process. The share is (median b - median a) / median a. The weights are random, which does not change the time.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from common import write_result

from anomseg_ros.backends import open_detector
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.backends.onnxruntime import session_options
from anomseg_ros.core.bundle import Bundle, Provenance
from anomseg_ros.export import ExportConfig, export_network
from anomseg_ros.networks import build_network
from anomseg_ros.node.transport import use_large_shared_memory
from anomseg_ros.replay.process import free_domain_id

HEIGHT_PX, WIDTH_PX = 512, 1024
FRAME_SIZES = {"512x1024": (512, 1024), "720x1280": (720, 1280), "1080x1920": (1080, 1920)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--network", default="erfnet", help="network to export")
    parser.add_argument("--score", default="void", help="score to publish")
    parser.add_argument("--rounds", type=int, default=31, help="interleaved measurements of each kind")
    parser.add_argument("--threads", type=int, default=0, help="threads of ONNX Runtime; 0 = one per core")
    args = parser.parse_args()
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    use_large_shared_memory()
    with tempfile.TemporaryDirectory() as folder:
        bundle, network_only = export_both(args.network, args.score, Path(folder))
        results = measure(bundle, network_only, args)
    for name, row in results.items():
        print(f"{name:>10}: network {row['network_ms']:.1f} ms, frame path {row['frame_path_ms']:.1f} ms, "
              f"beyond the network {row['beyond_share']:.1%}")  # fmt: skip
    print(write_result("frame_path", {"network": args.network, "score": args.score, "by_frame_size": results}))


def export_both(name: str, score: str, folder: Path) -> tuple[Bundle, Path]:
    """Export the bundle and, to an ONNX file, the network alone from float tensor to logits."""
    torch.manual_seed(0)
    network = build_network(name, 20).eval()
    config = ExportConfig(name, 20, 19, height_px=HEIGHT_PX, width_px=WIDTH_PX, scores=(score,))
    bundle, _ = export_network(network, name, config, folder / name, Provenance())
    path = folder / "network.onnx"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        images = torch.zeros((1, 3, HEIGHT_PX, WIDTH_PX))
        torch.onnx.export(network, (images,), str(path), dynamo=True, verbose=False, input_names=["images"])
    return bundle, path


def measure(bundle: Bundle, network_only: Path, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return frame size -> times in ms and the overhead as a fraction."""
    import rclpy

    domain = free_domain_id()
    listener = multiprocessing.get_context("spawn").Process(target=listen, args=(domain,), daemon=True)
    listener.start()
    rclpy.init(args=[], domain_id=domain)
    node = rclpy.create_node("frame_path")
    publish = FramePath(node, bundle, args.threads)
    session = ort.InferenceSession(str(network_only), session_options(BackendOptions(threads=args.threads), bundle))
    images = np.random.default_rng(0).random((1, 3, HEIGHT_PX, WIDTH_PX), dtype=np.float32)
    messages = {name: frame_message(*size) for name, size in FRAME_SIZES.items()}
    alone: dict[str, list[float]] = {name: [] for name in messages}
    whole: dict[str, list[float]] = {name: [] for name in messages}
    for round_ in range(args.rounds + 2):  # the frame sizes take turns: the machine's speed drifts within minutes
        for name, message in messages.items():
            times = timed(lambda: session.run(None, {"images": images})), timed(lambda m=message: publish(m))
            if round_ >= 2:  # the first two rounds warm up
                alone[name].append(times[0])
                whole[name].append(times[1])
    results = {}
    for name in messages:
        network_ms, path_ms = statistics.median(alone[name]), statistics.median(whole[name])
        share = (path_ms - network_ms) / network_ms
        results[name] = {"network_ms": network_ms, "frame_path_ms": path_ms, "beyond_share": share}
    node.destroy_node()
    rclpy.try_shutdown()
    listener.terminate()
    return results


class FramePath:
    """The node's pipeline with its publishers of labels, score and mask."""

    def __init__(self, node: Any, bundle: Bundle, threads: int) -> None:
        from sensor_msgs.msg import Image

        from anomseg_ros.node import pipeline
        from anomseg_ros.node.detector_node import OUTPUT_QOS
        from anomseg_ros.node.parameters import PARAMETERS, live_parameters

        live = live_parameters({parameter.name: parameter.default for parameter in PARAMETERS})
        detector = open_detector(bundle, options=BackendOptions(threads=threads))
        self.pipeline = pipeline.FramePipeline(detector, pipeline.resolve(live, bundle))
        topics = (pipeline.LABELS, pipeline.SCORE, pipeline.MASK)
        self.publishers = {topic: node.create_publisher(Image, topic, OUTPUT_QOS) for topic in topics}
        while not all(publisher.get_subscription_count() for publisher in self.publishers.values()):
            time.sleep(0.05)

    def __call__(self, message: Any) -> None:
        for topic, output in self.pipeline.process(message, self.publishers).messages.items():
            self.publishers[topic].publish(output)


def listen(domain: int) -> None:
    """Subscribe to the outputs from another process, as a planner does."""
    import rclpy
    from rclpy.executors import ExternalShutdownException
    from sensor_msgs.msg import Image

    from anomseg_ros.node.detector_node import OUTPUT_QOS

    rclpy.init(args=[], domain_id=domain)
    node = rclpy.create_node("listener")
    for topic in ("labels", "anomaly/score", "anomaly/mask"):
        node.create_subscription(Image, f"/frame_path/{topic}", lambda message: None, OUTPUT_QOS)
    with contextlib.suppress(ExternalShutdownException):  # the benchmark has ended
        rclpy.spin(node)


def frame_message(height_px: int, width_px: int) -> Any:
    """Return an rgb8 Image message with random pixels."""
    from std_msgs.msg import Header

    from anomseg_ros.node.conversions import image_from_array

    pixels = np.random.default_rng(1).integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)
    return image_from_array(pixels, "rgb8", Header(frame_id="camera"))


def timed(call: Any) -> float:
    """Return the duration of a call, milliseconds."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


if __name__ == "__main__":
    main()
