"""The state of a tune: rounds of all candidates, by weights and engine, and the files it may delete."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from power_sensors import places, write_ina3221

from anomseg_ros.bench.candidate_runs import Engine
from anomseg_ros.bench.candidates import candidates_of
from anomseg_ros.bench.figures import Accuracy
from anomseg_ros.bench.power import Power, PowerRequest
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.errors import ConfigError
from anomseg_ros.scenes.sequence import SyntheticSequence
from anomseg_ros.tuning.tune_state import (
    TuneState,
    accuracy_key,
    candidate_key,
    label_agreement,
    measure_together,
)

SETTINGS = {"a": 1}


def measured_rounds(told: list[tuple[str, int]]) -> list[int]:
    return [done for what, done in told if what == "rounds"]


@pytest.mark.slow
def test_only_missing_rounds_are_measured(tiny_bundle: Path, tmp_path: Path) -> None:
    both = candidates_of([tiny_bundle], ["onnxruntime"], [1, 2])
    state = TuneState(tmp_path, SETTINGS)
    assert measure_together(both, [], 4, state) == (both, [])
    first = state.rounds_of(both)
    told: list[tuple[str, int]] = []
    again = TuneState(tmp_path, SETTINGS)
    measure_together(both, [], 6, again, lambda what, done, total: told.append((what, done)))
    assert again.rounds_of(both)[:4] == first and len(again.rounds_of(both)) == 6
    assert measured_rounds(told) == [1, 2]
    told.clear()
    whole = TuneState(tmp_path, SETTINGS)
    measure_together(both, [], 6, whole, lambda what, done, total: told.append((what, done)))
    assert told == [] and whole.rounds_of(both) == again.rounds_of(both)
    # The engine is the one that was measured, not the one in the name.
    assert whole.engines(both) == [Engine("onnxruntime:cpu", "onnxruntime:cpu")] * 2


@pytest.mark.slow
def test_additional_candidate_is_measured_in_new_rounds_with_all(tiny_bundle: Path, tmp_path: Path) -> None:
    one, two = candidates_of([tiny_bundle], ["onnxruntime"], [1, 2])
    state = TuneState(tmp_path, SETTINGS)
    for _ in range(9):
        state.add_round([one], [123456.0])  # as if the machine had been suspended
    told: list[tuple[str, int]] = []
    measure_together([one, two], [], 7, state, lambda what, done, total: told.append((what, done)))
    rounds = state.rounds_of([one, two])
    assert measured_rounds(told) == [1, 2, 3, 4, 5, 6, 7] and len(rounds) == 7
    assert all(0 < time_ms < 123456 for row in rounds for time_ms in row)
    # The rounds of one alone are kept for a run without the other.
    assert len(state.rounds_of([one])) == 16 and state.rounds_of([one])[0] == [123456.0]
    assert [row[::-1] for row in rounds] == state.rounds_of([two, one])


@pytest.mark.slow
def test_times_of_another_engine_are_discarded(tiny_bundle: Path, tmp_path: Path) -> None:
    one, two = candidates_of([tiny_bundle], ["onnxruntime"], [1, 2])
    state = TuneState(tmp_path, SETTINGS)
    state.set_engine(one, Engine("onnxruntime:cpu", "onnxruntime:else"))
    state.set_engine(two, Engine("onnxruntime:cpu", "onnxruntime:cpu"))
    state.add_accuracy(one, Accuracy(0.5, "auprc", "d", "s"))
    for _ in range(5):
        state.add_round([one, two], [123456.0, 123456.0])
    again = TuneState(tmp_path, SETTINGS)
    assert again.engine(one) == Engine("onnxruntime:cpu", "onnxruntime:else")
    measure_together([one, two], [], 7, again)
    assert len(again.rounds_of([one, two])) == 7 and again.engine(one) == Engine("onnxruntime:cpu", "onnxruntime:cpu")
    assert again.accuracy(one) is None
    assert all(time_ms < 123456 for row in again.rounds_of([one, two]) for time_ms in row)


def test_times_of_an_engine_that_was_built_again_are_discarded(tiny_bundle: Path, tmp_path: Path) -> None:
    (one,) = candidates_of([tiny_bundle], ["tensorrt"], [1])
    state = TuneState(tmp_path, SETTINGS)
    first = Engine("tensorrt:gpu", "tensorrt:gpu", {"engine_key": "a"}, {"compute": 2.0}, Power(9.0))
    state.set_engine(one, first)
    state.add_round([one], [5.0])
    state.set_engine(one, Engine("tensorrt:gpu", "tensorrt:gpu", {"engine_key": "a"}))
    assert state.engine(one) == first and state.rounds_of([one]) == [[5.0]]  # a run that goes on
    state.set_engine(one, Engine("tensorrt:gpu", "tensorrt:gpu", {"engine_key": "b"}))
    assert state.rounds_of([one]) == [] and state.engines([one])[0].power is None


def test_power_is_measured_once_and_without_other_rounds(tiny_bundle: Path, tmp_path: Path) -> None:
    write_ina3221(tmp_path, "1-0040", {"VDD_IN": (5000, 2000)})
    power, folder = PowerRequest(0.2, 0.0, places(tmp_path)), tmp_path / "state"
    frames = [np.zeros((64, 128, 3), np.uint8)]
    candidates = candidates_of([tiny_bundle], ["onnxruntime"], [1])
    measure_together(candidates, frames, 4, TuneState(folder, SETTINGS))
    state = TuneState(folder, SETTINGS)
    rounds, told = state.rounds_of(candidates), list[tuple[str, int]]()
    measure_together(candidates, frames, 4, state, lambda what, done, total: told.append((what, done)), power)
    assert measured_rounds(told) == [] and ("power", 1) in told
    again = TuneState(folder, SETTINGS)
    (engine,) = again.engines(candidates)
    assert engine.power is not None and engine.power.mean_power_w == 10.0 and again.rounds_of(candidates) == rounds
    told.clear()
    measure_together(candidates, frames, 4, again, lambda what, done, total: told.append((what, done)), power)
    assert told == [] and again.engines(candidates) == [engine]


def test_state_of_an_earlier_version_is_read(tiny_bundle: Path, tmp_path: Path) -> None:
    (one,) = candidates_of([tiny_bundle], ["onnxruntime"], [1])
    state = TuneState(tmp_path, SETTINGS)
    state.set_engine(one, Engine("onnxruntime:cpu", "onnxruntime:cpu"))
    state.add_round([one], [5.0])
    plain = json.loads((tmp_path / "state.json").read_text())
    plain["engines"] = {key: {"requested": "a", "actual": "b"} for key in plain["engines"]}
    (tmp_path / "state.json").write_text(json.dumps(plain))
    assert TuneState(tmp_path, SETTINGS).engine(one) == Engine("a", "b")


@pytest.mark.slow
def test_failing_candidate_is_omitted_with_the_reason(tiny_bundle: Path, tmp_path: Path) -> None:
    one, two = candidates_of([tiny_bundle], ["onnxruntime"], [1, 2])
    broken = replace(two, provider="nosuch")
    state = TuneState(tmp_path, SETTINGS)
    usable, (failed,) = measure_together([one, broken], [], 4, state)
    assert usable == [one] and failed.what == broken.title and "nosuch" in failed.reason
    first = state.rounds_of([one])
    assert len(first) == 4
    # It is tried again, but the other candidate is not measured again.
    usable, (failed,) = measure_together([one, broken], [], 4, TuneState(tmp_path, SETTINGS))
    assert usable == [one] and TuneState(tmp_path, SETTINGS).rounds_of([one]) == first


def test_other_settings_start_a_new_state(tiny_bundle: Path, tmp_path: Path) -> None:
    (candidate,) = candidates_of([tiny_bundle], ["onnxruntime"], [1])
    state = TuneState(tmp_path, {"frames": [[4, 5]], "pair": (1, 2)})
    state.set_engine(candidate, Engine("a", "b"))
    state.add_round([candidate], [12.5])
    state.add_accuracy(candidate, Accuracy(0.5, "auprc", "d", "s"))
    same = TuneState(tmp_path, {"frames": [[4, 5]], "pair": (1, 2)})
    assert same.rounds_of([candidate]) == [[12.5]] and same.accuracy(candidate) == Accuracy(0.5, "auprc", "d", "s")
    other = TuneState(tmp_path, {"frames": [[4, 6]], "pair": (1, 2)})
    assert other.rounds_of([candidate]) == [] and other.accuracy(candidate) is None and other.engine(candidate) is None


def test_foreign_state_is_refused(tmp_path: Path) -> None:
    for content in ("{", "[]", json.dumps({"settings": 1}), json.dumps({"kind": "state of something else"})):
        (tmp_path / "state.json").write_text(content)
        with pytest.raises(ConfigError, match="begin anew"):
            TuneState(tmp_path, {})
    (tmp_path / "state.json").rename(tmp_path / "mine.json")
    with pytest.raises(ConfigError, match="is not the folder of a tune"):
        TuneState(tmp_path, {})
    with pytest.raises(ConfigError, match="is not the folder of a tune"):
        TuneState(tmp_path / "mine.json", {})


def test_only_claimed_files_are_removed(tmp_path: Path) -> None:
    folder, outside = tmp_path / "state", tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("")
    state = TuneState(folder, SETTINGS)
    for name in ("bundles/a", "bundles/b"):
        state.claim(name).mkdir(parents=True)
    (state.claim("bundles/b") / "model.onnx").write_text("")
    state.claim("evidence.json").write_text("")
    state.claim("never made")
    state.claim("elsewhere").symlink_to(outside)
    (folder / "bundles" / "mine").write_text("")
    with pytest.raises(ConfigError, match="was not made by this tune"):
        state.claim("bundles/mine")
    # A later run removes the files of earlier runs, also with other settings.
    TuneState(folder, {"a": 2}).remove()
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} - {"state/elsewhere"}
    assert left == {"state", "state/bundles", "state/bundles/mine", "outside", "outside/mine"}


def test_folder_without_other_files_is_removed(tmp_path: Path) -> None:
    state = TuneState(tmp_path / "state", SETTINGS)
    state.claim("bundles/a").mkdir(parents=True)
    state.remove()
    assert list(tmp_path.iterdir()) == []


def test_keys_depend_on_weights_not_on_folders(tiny_bundle: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(tiny_bundle, tmp_path / "moved"))
    (here,), (there,) = (candidates_of([folder], ["onnxruntime"], [1]) for folder in (tiny_bundle, moved))
    assert candidate_key(here) == candidate_key(there)
    other = candidates_of([find_bundle("enet-synthetic")], ["onnxruntime"], [1])[0]
    assert candidate_key(here) != candidate_key(other)
    two = candidates_of([tiny_bundle], ["onnxruntime"], [2])[0]
    assert candidate_key(here) != candidate_key(two) and accuracy_key(here) == accuracy_key(two)


@pytest.mark.slow
def test_label_agreement_is_1_only_with_itself(tiny_bundle: Path) -> None:
    frames = [frame.image for frame in SyntheticSequence(1).frames(2)]
    own = candidates_of([tiny_bundle], ["onnxruntime"], [1])[0]
    other = candidates_of([find_bundle("enet-synthetic")], ["onnxruntime"], [1])[0]
    source = load_bundle(tiny_bundle)
    assert label_agreement(source, own, frames).value == 1.0
    assert label_agreement(source, other, frames).value < 0.5
