"""Work in several processes and with Ray gives the same results. A killed worker loses and duplicates nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from worker_jobs import die_always, die_once, refuse, square

from anomseg_ros.errors import BackendError, ConfigError, MetricError
from anomseg_ros.evaluation.workers import LOCAL_RAY, Workers, run_parts


def test_processes_give_the_results_of_one_process() -> None:
    assert sorted(run_parts(square, range(5), Workers(2))) == list(run_parts(square, range(5), Workers()))


def test_killed_worker_loses_and_duplicates_nothing(tmp_path: Path) -> None:
    tasks = [(number, str(tmp_path / "died")) for number in range(6)]
    assert sorted(run_parts(die_once, tasks, Workers(2))) == list(range(6))
    assert (tmp_path / "died").exists()


def test_task_that_always_kills_its_worker_is_given_up() -> None:
    with pytest.raises(BackendError, match="died 3 times in a row with 2 part"):
        list(run_parts(die_always, [1, 2], Workers(2)))


def test_error_of_a_worker_is_raised_unchanged() -> None:
    with pytest.raises(MetricError, match="frame 3 is wrong"):
        list(run_parts(refuse, [3], Workers(2)))


def test_zero_workers_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        Workers(0)


@pytest.mark.slow
def test_ray_survives_a_killed_worker_and_raises_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # where Ray's workers find worker_jobs
    try:
        tasks = [(number, str(tmp_path / "died")) for number in range(4)]
        assert sorted(run_parts(die_once, tasks, Workers(2, LOCAL_RAY))) == list(range(4))
        with pytest.raises(MetricError, match="frame 3 is wrong"):
            list(run_parts(refuse, [3], Workers(2, LOCAL_RAY)))
    finally:
        ray.shutdown()
