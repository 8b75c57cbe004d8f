"""Work spread over processes and Ray: the same results, and a worker's death loses and doubles nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from worker_jobs import die_always, die_once, refuse, square

from anomseg_ros.errors import BackendError, ConfigError, MetricError
from anomseg_ros.evaluation.workers import LOCAL_RAY, Workers, run_parts


def test_processes_give_what_one_gives() -> None:
    assert sorted(run_parts(square, range(5), Workers(2))) == list(run_parts(square, range(5), Workers()))


def test_a_killed_worker_loses_and_doubles_nothing(tmp_path: Path) -> None:
    tasks = [(number, str(tmp_path / "died")) for number in range(6)]
    assert sorted(run_parts(die_once, tasks, Workers(2))) == list(range(6))
    assert (tmp_path / "died").exists()


def test_work_that_always_kills_its_worker_ends() -> None:
    with pytest.raises(BackendError, match="died 3 times in a row with 2 part"):
        list(run_parts(die_always, [1, 2], Workers(2)))


def test_an_error_comes_through_as_it_is() -> None:
    with pytest.raises(MetricError, match="frame 3 is wrong"):
        list(run_parts(refuse, [3], Workers(2)))


def test_no_workers_is_an_error() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        Workers(0)


@pytest.mark.slow
def test_ray_survives_a_killed_worker_and_passes_errors_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # where Ray's workers find worker_jobs
    try:
        tasks = [(number, str(tmp_path / "died")) for number in range(4)]
        assert sorted(run_parts(die_once, tasks, Workers(2, LOCAL_RAY))) == list(range(4))
        with pytest.raises(MetricError, match="frame 3 is wrong"):
            list(run_parts(refuse, [3], Workers(2, LOCAL_RAY)))
    finally:
        ray.shutdown()
