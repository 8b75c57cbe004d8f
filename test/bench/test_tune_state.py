"""What a tune keeps: rounds by weights and engine, so that a killed one measures only what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from anomseg_ros.bench.candidates import candidates_of
from anomseg_ros.bench.results import Accuracy
from anomseg_ros.bench.tune_state import TuneState, accuracy_key, candidate_key, label_agreement, measure_missing
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.datasets.synthetic import SyntheticSequence
from anomseg_ros.errors import ConfigError


def test_only_missing_rounds_are_measured(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    one, two = candidates_of([tiny_bundle], ["onnxruntime"], [1, 2])
    state = TuneState(path, {"a": 1})
    measure_missing([one], [], 4, state)
    first = list(state.times(one))
    again = TuneState(path, {"a": 1})
    told: list[tuple[str, int]] = []
    actual, warnings = measure_missing([one, two], [], 6, again, lambda what, done, total: told.append((what, done)))
    assert again.times(one)[:4] == first and len(again.times(one)) == len(again.times(two)) == 6
    # Four rounds of what is behind alone, then two of both.
    assert [done for what, done in told if what == "rounds"] == [1, 2, 3, 4, 1, 2]
    assert actual == dict.fromkeys((one.title, two.title), "onnxruntime:cpu") and warnings == []
    assert measure_missing([one, two], [], 6, TuneState(path, {"a": 1})) == ({}, [])


def test_other_settings_begin_anew(tiny_bundle: Path, tmp_path: Path) -> None:
    (candidate,) = candidates_of([tiny_bundle], ["onnxruntime"], [1])
    state = TuneState(tmp_path / "s.json", {"frames": [[4, 5]], "pair": (1, 2)})
    state.add_round([candidate], [12.5])
    state.add_accuracy(candidate, Accuracy(0.5, "auprc", "d", "s"))
    same = TuneState(tmp_path / "s.json", {"frames": [[4, 5]], "pair": (1, 2)})
    assert same.times(candidate) == [12.5] and same.accuracy(candidate) == Accuracy(0.5, "auprc", "d", "s")
    other = TuneState(tmp_path / "s.json", {"frames": [[4, 6]], "pair": (1, 2)})
    assert other.times(candidate) == [] and other.accuracy(candidate) is None


def test_what_is_no_state_is_refused(tmp_path: Path) -> None:
    for content in ("{", "[]", json.dumps({"settings": 1})):
        (tmp_path / "s.json").write_text(content)
        with pytest.raises(ConfigError, match="begin anew"):
            TuneState(tmp_path / "s.json", {})


def test_keys_follow_the_weights_not_the_folder(tiny_bundle: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(tiny_bundle, tmp_path / "moved"))
    (here,), (there,) = (candidates_of([folder], ["onnxruntime"], [1]) for folder in (tiny_bundle, moved))
    assert candidate_key(here) == candidate_key(there)
    other = candidates_of([find_bundle("enet-synthetic")], ["onnxruntime"], [1])[0]
    assert candidate_key(here) != candidate_key(other)
    two = candidates_of([tiny_bundle], ["onnxruntime"], [2])[0]
    assert candidate_key(here) != candidate_key(two) and accuracy_key(here) == accuracy_key(two)


def test_a_bundle_agrees_with_itself_and_not_with_another(tiny_bundle: Path) -> None:
    frames = [frame.image for frame in SyntheticSequence(1).frames(2)]
    own = candidates_of([tiny_bundle], ["onnxruntime"], [1])[0]
    other = candidates_of([find_bundle("enet-synthetic")], ["onnxruntime"], [1])[0]
    source = load_bundle(tiny_bundle)
    assert label_agreement(source, own, frames).value == 1.0
    assert label_agreement(source, other, frames).value < 0.5
