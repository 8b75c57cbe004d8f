"""Two bundles in turns: both, or none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from anomseg_ros.bench.measure import time_in_turns
from anomseg_ros.core.bundle import load_bundle, save_bundle
from anomseg_ros.errors import BackendError


@pytest.mark.slow
def test_two_bundles_take_turns_and_both_have_to_run(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle, other = load_bundle(tiny_bundle), Path(shutil.copytree(tiny_bundle, tmp_path / "other"))
    first, second = time_in_turns(bundle, load_bundle(other), 2, 1)
    assert (first.rounds, second.rounds) == (2, 2) and first.power is None
    assert second.speedup[first.title].median > 0
    (tmp_path / "model.onnx").write_bytes(b"\x08\x01 no graph")
    damaged = save_bundle(bundle.contract, {"model.onnx": tmp_path / "model.onnx"}, tmp_path / "damaged")
    with pytest.raises(BackendError, match=r"left out: .*damaged, onnxruntime, 1 thread, 64x128: .*cannot be loaded"):
        time_in_turns(bundle, damaged, 2, 1)
