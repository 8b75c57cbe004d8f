"""Speed of MiDE-Net's graph compared with the formulation in its paper's code: upsample 128 channels, then classify.

Interleaved in one run, 512x1024, with the same weights and threads: (a) our bundle's graph in ONNX Runtime, camera
pixels to labels and void score; (b) the paper's formulation in torch eager mode, float tensor to logits, without a
score; (c) our order of operations in torch eager mode, to separate the gain of the formulation from that of the
runtime; (d) the graph with 30 % of the channels removed and all layers in int8, made by `anomseg compress`. The weights
are random, so only the times are meaningful.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import write_result
from torch import Tensor

from anomseg_ros.backends import open_backend
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.core.bundle import Bundle, Provenance, load_bundle
from anomseg_ros.export import ExportConfig, export_network
from anomseg_ros.networks import build_network
from anomseg_ros.networks.checkpoints import save_checkpoint
from anomseg_ros.networks.network import SegmentationNetwork, pixels_to_input

HEIGHT_PX, WIDTH_PX = 512, 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="interleaved measurements of each kind")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch and of ONNX Runtime")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    network = build_network("mide_net", 20).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (1, HEIGHT_PX, WIDTH_PX, 3), dtype=np.uint8)
    images = pixels_to_input(torch.from_numpy(pixels))
    with tempfile.TemporaryDirectory() as folder:
        config = ExportConfig("mide_net", 20, 19, scores=("void",))
        bundle, _ = export_network(network, "mide_net", config, Path(folder) / "mide_net", Provenance())
        options = BackendOptions(threads=args.threads)
        backend = open_backend("onnxruntime", bundle, options)
        quantized = pruned_and_quantized(network, bundle, Path(folder))
        small, small_openvino = (open_backend(name, quantized, options) for name in ("onnxruntime", "openvino"))
        with torch.inference_mode():
            calls = {
                "graph": lambda: backend.run(pixels, ["labels", "void"]),
                "pruned_int8": lambda: small.run(pixels, ["labels", "void"]),
                "pruned_int8_openvino": lambda: small_openvino.run(pixels, ["labels", "void"]),
                "paper_eager": lambda: classify_after_upsampling(network, images),
                "ours_eager": lambda: network(images),
            }
            medians = interleaved_medians_ms(calls, args.rounds)
    faster = {name: medians["paper_eager"] / medians[name] for name in medians if "eager" not in name}
    print({name: f"{value:.1f} ms" for name, value in medians.items()}, "times as fast as the paper's order:", faster)
    result = {"median_ms": medians, "speedup": faster, "threads": args.threads, "size": f"{HEIGHT_PX}x{WIDTH_PX}"}
    print(write_result("mide_formulation", result))


def classify_after_upsampling(network: SegmentationNetwork, images: Tensor) -> Tensor:
    """Return logits (N, C, H, W) of images (N, 3, H, W) in the order of the paper: upsample, then classify."""
    features = F.interpolate(network.encode(images)["encoder"], scale_factor=8, mode="bilinear", align_corners=False)
    logits: Tensor = network.classifier_layer(features)
    return logits


def pruned_and_quantized(network: SegmentationNetwork, bundle: Bundle, folder: Path) -> Bundle:
    """Return the bundle with 30 % of its channels removed, in int8."""
    checkpoint, output, recipe = folder / "mide_net.safetensors", folder / "small", folder / "recipe.yaml"
    save_checkpoint(checkpoint, network, {})
    recipe.write_text("name: small\nprune: {method: structured, fraction: 0.3}\nquantize: {keep_float: none}\n")
    words = ["compress", str(recipe), str(bundle.directory), "--checkpoint", str(checkpoint), "--rounds", "0"]
    words += ["--frames", "synthetic=3:24", "--output", str(output), "--accept-drift"]
    # In a separate process, because its allocations would change how torch reuses memory, and thus the times of torch.
    subprocess.run([sys.executable, "-m", "anomseg_ros.cli", *words], check=True)
    return load_bundle(output)


def interleaved_medians_ms(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return name -> median time of each call, milliseconds. The calls take turns; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if round_:
                times[name].append((time.perf_counter() - started) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
