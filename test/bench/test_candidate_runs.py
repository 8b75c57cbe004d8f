"""What is known of an engine after a run, and which measurements belong to the same engine."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anomseg_ros.bench.candidate_runs import Engine, LeftOut, engine_of, open_each, require_some, run_together
from anomseg_ros.bench.candidates import Candidate, candidates_of, thread_numbers
from anomseg_ros.bench.power import PowerMeter, PowerRequest
from anomseg_ros.bench.rounds import WARM_UP_RUNS, Stop
from anomseg_ros.core.progress import no_progress
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import ConfigError

FRAME = np.zeros((2, 2, 3), np.uint8)


class StagedRunner:
    """Its stages take as many milliseconds as it has run."""

    requested = actual = "tensorrt:gpu"

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, frame: RgbImage) -> None:
        self.runs += 1

    def facts(self) -> dict[str, str]:
        return {"engine_key": "abc", "compute_ms": f"{self.runs:.3f}"}

    def stages_ms(self) -> dict[str, float]:
        return {"upload": 0.5, "compute": float(self.runs)}

    def close(self) -> None:
        """Nothing to release."""


def test_stages_are_medians_over_the_rounds() -> None:
    candidate = Candidate("tiny", "/nowhere", "tensorrt", 0, "void", 64, 128, "fp16")
    meter = PowerMeter(PowerRequest(0))
    rows, (engine,) = run_together({candidate: StagedRunner()}, [[FRAME]], Stop(5), meter)
    assert len(rows) == 5
    assert engine.stages_ms == {"upload": 0.5, "compute": WARM_UP_RUNS + 3.0}
    assert engine.facts == {"engine_key": "abc"} and engine.power is None
    rows, (engine,) = run_together({candidate: StagedRunner()}, [[FRAME]], None, meter)
    assert rows == [] and engine == engine_of(StagedRunner()) == Engine("tensorrt:gpu", "tensorrt:gpu", engine.facts)


def test_another_engine_is_not_the_same() -> None:
    engine = Engine("tensorrt:gpu", "tensorrt:gpu", {"engine_key": "a", "gpu": "Orin", "device_memory_mib": "9"})
    assert engine.is_same(replace(engine, facts={**engine.facts, "device_memory_mib": "8"}, stages_ms={"upload": 1.0}))
    for changed in ({"engine_key": "b"}, {"gpu": "Thor"}):
        assert not engine.is_same(replace(engine, facts={**engine.facts, **changed}))
    assert not engine.is_same(replace(engine, actual="onnxruntime:cpu"))


def test_failed_candidates_have_reasons_and_the_others_run(tiny_bundle: Path) -> None:
    (one,) = candidates_of([tiny_bundle], ["onnxruntime"], [1])
    broken = replace(one, bundle="/nowhere")
    with ExitStack() as stack:
        runners, (failed,) = open_each([broken, one], [[FRAME], [FRAME]], stack, no_progress)
        assert list(runners) == [one]
    assert failed.what == broken.title and "/nowhere" in failed.reason
    require_some([one], [failed])
    with pytest.raises(ConfigError, match=r"none of 2 candidate\(s\) can run: a: b; c: d"):
        require_some([], [LeftOut("a", "b"), LeftOut("c", "d")])


def test_engines_without_threads_are_one_candidate(tiny_bundle: Path) -> None:
    found = candidates_of([tiny_bundle], ["tensorrt", "onnxruntime"], [1, 2])
    assert [(one.backend, one.threads) for one in found] == [("tensorrt", 0), ("onnxruntime", 1), ("onnxruntime", 2)]
    assert found[0].title == "tiny, tensorrt, 64x128" and thread_numbers("openvino", (1, 2)) == (1, 2)
    assert [one.is_on_nvidia_gpu for one in found] == [True, False, False]
    assert replace(found[1], provider="cuda").is_on_nvidia_gpu
