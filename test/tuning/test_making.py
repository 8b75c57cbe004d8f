"""Making the bundles of a tune: frames for comparison, usable backends, and refused requests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import fake_tensorrt_runtime
import numpy as np
import pytest
from pruning_place import make_place
from small_bundles import with_program

from anomseg_ros.compression.calibration_frames import draw_split, read_split
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.errors import AnomsegError
from anomseg_ros.tuning.choice import TuneGoal
from anomseg_ros.tuning.making import Maker, check_making, usable_backends
from anomseg_ros.tuning.request import TuneRequest


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, its checkpoint, and twelve frames of a street."""
    return make_place(tmp_path_factory.mktemp("making"))


def request_of(place: Path, **given: Any) -> TuneRequest:
    return TuneRequest(place / "whole", TuneGoal(max_latency_ms=9), place / "out", **given)


@pytest.mark.slow
def test_frames_for_comparison_are_not_calibration_frames(place: Path) -> None:
    frames = Maker(request_of(place, frames=place / "frames")).unseen_frames()
    split = read_split(draw_split([str(place / "frames")], 16, 16))
    assert len(frames) == len(split.held_out) == 3
    assert not any(np.array_equal(one, other) for one in frames for other in split.calibration)
    assert Maker(request_of(place, frames=place / "frames", quantize=False)).unseen_frames() == []


@pytest.mark.slow
def test_total_counts_all_bundles_to_make(place: Path) -> None:
    weights = place / "whole.safetensors"
    asked = request_of(
        place, checkpoint=weights, sizes=((32, 64), (64, 128)), prune=(0.5, 0.5), frames=place / "frames"
    )
    # One other size, one pruned share at both sizes, and int8 of these and of the source. Its own size exists already.
    assert Maker(asked).total == 1 + 2 + 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sizes": ((32, 64),)}, "need the `checkpoint`"),
        ({"checkpoint": Path("x.pth")}, "is for other sizes and for pruning"),
        ({"quantize": True}, "int8 needs `frames`"),
        ({"fine_tune": "enet-camvid"}, "for pruned networks"),
        ({"data": "."}, "is for fine-tuning"),
        ({"prune": (0.5,)}, "pruning needs `frames`"),
        ({"prune": (2.0,)}, "less than 1"),
        ({"quantize": True, "backends": ("torch",)}, "which torch does not run"),
    ],
)
def test_impossible_requests_are_refused(given: dict[str, Any], said: str, place: Path) -> None:
    with pytest.raises(AnomsegError, match=said):
        check_making(request_of(place, **given), load_bundle(place / "whole"))


def test_usable_backends_can_run_the_bundles(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    usable, missing = usable_backends([tiny_bundle], False)
    assert usable == ("onnxruntime", "openvino") and [each.what for each in missing] == ["backend tensorrt"]
    both = with_program(tiny_bundle, tmp_path / "both", b"no program", keep_graph=True)
    assert usable_backends([tiny_bundle, both], False)[0] == ("onnxruntime", "openvino", "torch")
    alone = with_program(tiny_bundle, tmp_path / "alone", b"no program", keep_graph=False)
    assert usable_backends([alone], False) == (("torch",), [])
    assert usable_backends([alone], True)[0] == ("onnxruntime", "openvino", "torch")


def test_missing_backend_is_reported(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("openvino", "tensorrt"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "anomseg_ros.backends.openvino", raising=False)
    found, missing = usable_backends([tiny_bundle], False)
    assert found == ("onnxruntime",) and [each.what for each in missing] == ["backend openvino", "backend tensorrt"]
    assert all("pip install" in each.reason for each in missing)


def test_tensorrt_without_a_gpu_is_named(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_tensorrt_runtime.install(monkeypatch)
    assert "tensorrt" in usable_backends([tiny_bundle], False)[0]
    fake.cudart.fail["cudaGetDeviceCount"] = 35
    found, missing = usable_backends([tiny_bundle], False)
    assert "tensorrt" not in found and "cudaErrorInsufficientDriver" in missing[-1].reason
