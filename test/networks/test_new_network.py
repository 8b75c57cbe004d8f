"""A new network needs only one file and one line in the table."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from flat_dataset import write_flat_dataset

from anomseg_ros.backends import open_detector
from anomseg_ros.cli import main
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.evaluation.results import load_evaluation
from anomseg_ros.networks import NETWORKS, build_network
from anomseg_ros.networks.checkpoints import save_checkpoint

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architecture.md"


@pytest.mark.slow
def test_new_network_is_exported_and_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (one_file,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "throwaway_network.py").write_text(one_file)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(NETWORKS, "throwaway", "throwaway_network:Throwaway")
    checkpoint, bundle = tmp_path / "weights.safetensors", tmp_path / "bundle"
    save_checkpoint(checkpoint, build_network("throwaway", 20), {})
    words = ["--network", "throwaway", "--checkpoint", str(checkpoint), "--num-classes", "20", "--void-class", "19"]
    assert main(["export", *words, "--size", "50x70", "--output", str(bundle)]) == 0
    outputs = open_detector(load_bundle(bundle)).detect(np.zeros((100, 200, 3), np.uint8))
    assert outputs.labels is not None and outputs.labels.shape == (50, 70)
    dataset = write_flat_dataset(tmp_path / "flat")
    words = [str(bundle), "--dataset", dataset, "--allow-partial", "--score", "void,msp"]
    assert main(["evaluate", *words, "--json", str(tmp_path / "e.json")]) == 0
    results = load_evaluation(tmp_path / "e.json").results
    assert [(result.network, result.score, result.frames) for result in results] == [
        ("throwaway", "void", 5),
        ("throwaway", "msp", 5),
    ]
    assert all(0 < (result.auprc or 0) < 1 for result in results)
