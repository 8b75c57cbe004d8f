"""Benchmarks and tunes from Python: requests return reports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anomseg_ros.bench.rounds import Stop
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.errors import AnomsegError
from anomseg_ros.tuning.bench import BenchRequest, bench
from anomseg_ros.tuning.choice import TuneGoal
from anomseg_ros.tuning.request import TuneRequest
from anomseg_ros.tuning.tune import tune


class Messages:
    """Collects all messages."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, what: str, done: int, total: int | None) -> None:
        assert total is not None and done <= total

    def tell(self, text: str) -> None:
        self.texts.append(text)

    def training(self, run: str, now: Any) -> None:
        raise AssertionError("nothing is trained")


@pytest.mark.slow
def test_bench_report_records_its_settings(tiny_bundle: Path) -> None:
    request = BenchRequest((tiny_bundle,), threads=(1,), stop=Stop(rounds=3), memory=False, command="mine")
    report = bench(request)
    (entry,) = report.entries
    assert entry.name == "tiny" and entry.rounds == 3 and (entry.parameters or 0) > 0
    assert report.command == "mine" and report.settings["rounds"] == 3
    with pytest.raises(AnomsegError, match="give the checkpoint"):
        bench(replace(request, sizes=((32, 64),)))


@pytest.mark.slow
def test_tune_chooses_a_bundle_or_names_the_nearest(tiny_bundle: Path, tmp_path: Path) -> None:
    request = TuneRequest(
        tiny_bundle, TuneGoal(1e-4), tmp_path / "out", backends=("onnxruntime",), threads=(1,), rounds=7, memory=False
    )
    notes = Messages()
    missed = tune(request, notes)
    assert missed.bundle is None and missed.chosen is None and "the nearest is tiny" in missed.nearest
    assert (request.state_folder / "evidence.svg").is_file() and not request.output.exists()
    assert notes.texts[1] == "1 candidates, 7 rounds in which they take turns"
    found = tune(replace(request, goal=TuneGoal(60000)), notes)
    assert found.bundle is not None and found.chosen is not None and found.nearest == ""
    assert load_bundle(tmp_path / "out") == found.bundle and not request.state_folder.exists()
    assert found.report.times_ms == missed.report.times_ms  # taken from the state, not measured again
