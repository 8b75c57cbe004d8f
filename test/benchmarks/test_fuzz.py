"""Every fuzzing target passes some seconds of inputs from a fixed seed; the supervision detects every kind of fault."""

from __future__ import annotations

import time
from pathlib import Path

import fuzz_faults
import pytest
from fuzzing import workers
from fuzzing.inputs import Tally, run_inputs
from fuzzing.targets import TARGETS, open_target

SEED = 1
INPUTS = {"image": 300, "compressed_image": 600, "camera_info": 300, "parameters": 200}
FEWER = 40
"""Number of inputs of a target that writes a file for each."""
LIMIT_S = 3.0


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_inputs_raise_only_declared_errors(name: str, tiny_bundle: Path, tmp_path: Path) -> None:
    if name == "parameters":
        pytest.importorskip("rclpy", reason="needs ROS 2")
    target = open_target(TARGETS[name], tmp_path, tiny_bundle)
    try:
        tally = run_inputs(target, name, SEED, INPUTS.get(name, FEWER), until=time.monotonic() + LIMIT_S)
    finally:
        target.close()
    assert not tally.faults
    assert tally.inputs > 0
    if name in ("image", "compressed_image"):
        assert tally.accepted > 10 and tally.refused > 10, "inputs are all good or all bad"


def test_input_depends_only_on_seed_target_and_number(tmp_path: Path, tiny_bundle: Path) -> None:
    from fuzzing.inputs import generator_of

    target = open_target(TARGETS["bundle"], tmp_path, tiny_bundle)
    one, again, other = (target.make(generator_of(seed, "bundle", 17)) for seed in (3, 3, 4))
    assert one == again != other


@pytest.mark.slow
def test_every_kind_of_fault_is_recorded_and_fuzzing_continues(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(workers, "KILL_AFTER_S", 4.0)
    progress: list[int] = []
    job = workers.Job("faults", fuzz_faults.ENTRY, 0, 0, 9, tmp_path)
    tally = workers.run_job(job, lambda tally: progress.append(tally.inputs), time.monotonic() + 120)
    errors = {fault.index: fault.error.split(":")[0] for fault in tally.faults}
    assert errors == {
        2: "KeyError",
        3: "WrittenOutside",
        4: "MemoryGrowth",
        5: "InputTimeout",
        6: "the process killed",
        7: "the process ended with status -9",
    }
    assert (tally.accepted, tally.refused, tally.inputs) == (2, 1, 9) and progress == sorted(progress)


def test_record_resumes_with_the_counts_of_a_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import common
    import fuzz

    for module in (common, fuzz):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    record = fuzz.Record(5, resume=False)
    record.add("image", fuzz.tally_to_entry("image", 5, Tally(accepted=3, refused=4)))
    record.save()
    again = fuzz.Record(5, resume=True)
    assert again.done("image") == 7 and again.done("bundle") == 0
    again.add("image", fuzz.tally_to_entry("image", 5, Tally(accepted=1)))
    assert again.targets["image"]["inputs"] == 8 and not again.faulty
    with pytest.raises(SystemExit, match="has seed 5, not 6"):
        fuzz.Record(6, resume=True)


@pytest.mark.slow
def test_live_node_answers_every_valid_frame(tiny_bundle: Path) -> None:
    pytest.importorskip("rclpy", reason="needs ROS 2")
    from fuzzing.live_node import fuzz_node

    found = fuzz_node(tiny_bundle, SEED, 0, 60, time.monotonic() + 60, kinds=["image"])
    assert found["faults"] == [] and found["inputs"] == 60
    assert found["image_answered"] == found["image_good"] == 10
    assert found["image_neighbour_answered"] == found["image_node_neighbour_published"] == 10
    assert found["image_node_received"] >= 60 - found["image_damaged_bytes"]
