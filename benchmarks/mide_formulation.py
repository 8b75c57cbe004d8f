"""MiDE-Net's graph against the same network computed as its paper's code does: upsample 128 channels, then classify.

Interleaved in one run, 512x1024, the same weights and threads: (a) our bundle's graph in ONNX Runtime, camera pixels to
labels and void score; (b) the paper's formulation in torch eager mode, float tensor to logits, without any score;
(c) our order of operations in torch eager mode, to tell the formulation's share of the gain from the runtime's.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import write_result

from anomseg_ros.backends import open_backend
from anomseg_ros.backends.options import BackendOptions
from anomseg_ros.core.bundle import Provenance
from anomseg_ros.export import ExportConfig, export_network, pixels_to_input
from anomseg_ros.networks import build_network

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
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        config = ExportConfig("mide_net", 20, 19, scores=("void",))
        bundle, _ = export_network(network, "mide_net", config, Path(folder) / "mide_net", Provenance())
        backend = open_backend("onnxruntime", bundle, BackendOptions(threads=args.threads))
        medians = interleaved_medians_ms(
            {
                "graph": lambda: backend.run(pixels, ["labels", "void"]),
                "paper_eager": lambda: network.classify_after_upsampling(images),
                "ours_eager": lambda: network(images),
            },
            args.rounds,
        )
    speedup = medians["paper_eager"] / medians["graph"]
    print({name: f"{value:.1f} ms" for name, value in medians.items()}, f"graph {speedup:.1f}x faster than the paper's")
    result = {"median_ms": medians, "speedup": speedup, "threads": args.threads, "size": f"{HEIGHT_PX}x{WIDTH_PX}"}
    print(write_result("mide_formulation", result))


def interleaved_medians_ms(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median time of each call, after one warm-up, the calls taking turns."""
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
