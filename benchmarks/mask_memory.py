"""Peak memory of a mask network's graph at 1024x1024: labels and one score, in strips and as a whole frame.

    python mask_memory.py

exports an EoMT of one block with 64 channels, 100 queries and 20 classes, so that the head dominates, and runs each
form in a process of its own, twice, in ONNX Runtime with two threads.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import write_result

SIDE_PX, SCORE = 1024, "mask_void"


def main() -> None:
    """Print and write the peak of each form."""
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        for target in ("cpu", "gpu"):
            export(target, Path(folder) / target)
            words = [sys.executable, __file__, str(Path(folder) / target / "model.onnx")]
            peaks[target] = float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    print(write_result("mask_memory", {"side_px": SIDE_PX, "peak_mb": peaks}))


def export(target: str, folder: Path) -> None:
    """Write the graph for a target."""
    import torch

    from anomseg_ros.export import ExportConfig, write_graph
    from anomseg_ros.networks.eomt import EoMT

    torch.manual_seed(0)
    network = EoMT(20, width=64, depth=1, query_blocks=1, queries=100, grid=(64, 64)).eval()
    folder.mkdir()
    config = ExportConfig("memory", 20, 19, height_px=SIDE_PX, width_px=SIDE_PX, scores=(SCORE,), target=target)
    write_graph(network, config, folder)


def run(graph: str) -> float:
    """Return the peak memory of this process in MB after two runs of a graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(graph, options)
    pixels = np.random.default_rng(0).integers(0, 256, (1, SIDE_PX, SIDE_PX, 3), np.uint8)
    for _ in range(2):
        session.run(["labels", SCORE], {session.get_inputs()[0].name: pixels})
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(run(sys.argv[1]))
    else:
        main()
