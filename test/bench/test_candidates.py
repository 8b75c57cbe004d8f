"""Candidates of bundles, backends and threads, and their runners."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from anomseg_ros.bench.candidate_runs import Engine
from anomseg_ros.bench.candidates import (
    candidates_of,
    core_count,
    known_backends,
    left_out,
    open_runner,
    thread_warnings,
)
from anomseg_ros.bench.measure import Extras, entry_of
from anomseg_ros.bench.peak_memory import measure_memory
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.errors import BackendError, BundleError, ConfigError


def test_candidates_are_all_bundles_with_all_numbers_of_threads(tiny_bundle: Path) -> None:
    found = candidates_of([tiny_bundle, find_bundle("enet-synthetic")], ["onnxruntime"], [1, 2])
    assert [(one.name, one.threads) for one in found] == [
        ("tiny", 1),
        ("tiny", 2),
        ("enet-synthetic", 1),
        ("enet-synthetic", 2),
    ]
    assert found[0].title == "tiny, onnxruntime, 1 thread, 64x128"
    assert found[0].score == "void" and found[0].program == tiny_bundle / "model.onnx"


def test_backend_without_its_file_is_omitted(tiny_bundle: Path) -> None:
    assert candidates_of([tiny_bundle], ["torch"], [1]) == []
    assert left_out([tiny_bundle], ["onnxruntime"]) == []
    (said,) = left_out([tiny_bundle], ["onnxruntime", "torch"])
    assert "has no model.pt2" in said


def test_provider_applies_to_the_backend_that_has_it(tiny_bundle: Path) -> None:
    both = ["onnxruntime", "torch"]
    (found,) = candidates_of([tiny_bundle], both, [1], provider="eager")
    assert (found.backend, found.provider) == ("onnxruntime", "cpu")
    assert "onnxruntime has no provider 'eager': it is measured on cpu" in left_out([tiny_bundle], both, "eager")
    with pytest.raises(ConfigError, match=r"provider of onnxruntime: 'eager'; known: .*cuda"):
        candidates_of([tiny_bundle], ["onnxruntime"], [1], provider="eager")


def test_bundles_of_the_same_name_get_their_paths(tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "copy")
    names = [one.name for one in candidates_of([tiny_bundle, tmp_path / "copy"], ["onnxruntime"], [1])]
    assert names == [str(tiny_bundle), str(tmp_path / "copy")]
    with pytest.raises(ConfigError, match="given twice"):
        candidates_of([tiny_bundle, tiny_bundle], ["onnxruntime"], [1])


def test_unknown_score_and_missing_bundle_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="known: void"):
        candidates_of([tiny_bundle], ["onnxruntime"], [1], score="vod")
    with pytest.raises(BundleError, match=r"bundle\.yaml"):
        candidates_of([tmp_path], ["onnxruntime"], [1])


def test_more_threads_than_cores_give_a_warning() -> None:
    cores = core_count()
    assert thread_warnings([0, 1, cores]) == ()
    (warning,) = thread_warnings([cores + 1])
    assert f"{cores + 1} threads on {cores} core" in warning


def test_unknown_backend_error_lists_the_known_ones() -> None:
    assert known_backends(["openvino", "onnxruntime"]) == ("openvino", "onnxruntime")
    with pytest.raises(ConfigError, match="unknown backend 'onxruntime'; known: onnxruntime"):
        known_backends(["onxruntime"])


def test_runner_accepts_frames_of_any_size(tiny_bundle: Path) -> None:
    (candidate,) = candidates_of([tiny_bundle], ["onnxruntime"], [1])
    runner = open_runner(candidate)
    runner(np.zeros((30, 50, 3), np.uint8))
    assert runner.actual == "onnxruntime:cpu"
    runner.close()


@pytest.mark.slow
def test_memory_is_measured_in_a_separate_process(tiny_bundle: Path) -> None:
    (tiny,) = candidates_of([tiny_bundle], ["onnxruntime"], [1])
    held = np.ones(200 * 2**20, np.uint8)  # resident in this process only
    small = measure_memory(tiny)
    (large,) = candidates_of([find_bundle("enet-synthetic")], ["onnxruntime"], [1])
    more = measure_memory(large)
    assert held.size and small is not None and more is not None
    assert 30 < small < 200 and more > small + 20


def test_error_of_the_memory_process_is_raised(tiny_bundle: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(tiny_bundle, tmp_path / "broken"))
    (candidate,) = candidates_of([broken], ["onnxruntime"], [1])
    (broken / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendError, match="is a text of 8 bytes"):
        measure_memory(candidate)


def test_failed_memory_measurement_keeps_the_times(tiny_bundle: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(tiny_bundle, tmp_path / "broken"))
    (candidate,) = candidates_of([broken], ["onnxruntime"], [1])
    (broken / "model.onnx").write_bytes(b"no graph")
    entry = entry_of(
        candidate, Engine("onnxruntime:cpu", "onnxruntime:cpu"), {candidate.title: [1.0, 3.0, 2.0]}, Extras()
    )
    assert entry.latency_ms["p50"] == 2.0 and entry.peak_memory_mib is None
    assert "memory was not measured" in entry.notes[0] and "is a text of 8 bytes" in entry.notes[0]
