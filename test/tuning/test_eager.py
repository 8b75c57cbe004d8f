"""A checkpoint in torch eager mode as a candidate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from anomseg_ros.bench.candidates import EAGER, candidates_of, open_runner
from anomseg_ros.export import ExportConfig, export_checkpoint
from anomseg_ros.networks import build_network
from anomseg_ros.networks.checkpoints import save_checkpoint
from anomseg_ros.tuning.bench import EAGER_RUNNER


@pytest.mark.slow
def test_eager_runner_uses_the_checkpoint_and_its_threads(tmp_path: Path) -> None:
    checkpoint = tmp_path / "c.safetensors"
    save_checkpoint(checkpoint, build_network("mide_net", 20).eval(), {})
    config = ExportConfig("small", 20, 19, height_px=64, width_px=96)
    bundle, _ = export_checkpoint("mide_net", checkpoint, config, tmp_path / "small")
    (candidate,) = candidates_of([bundle.directory], ["onnxruntime"], [1])
    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            eager = replace(candidate, backend=EAGER, threads=threads, checkpoint=str(checkpoint), runner=EAGER_RUNNER)
            runner = open_runner(eager)
            runner(np.zeros((20, 30, 3), np.uint8))
            assert torch.get_num_threads() == threads and "eager" in runner.actual
            runner.close()
        assert eager.program == checkpoint
    finally:
        torch.set_num_threads(before)
