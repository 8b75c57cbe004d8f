"""Run work in this process, in several processes or on a Ray cluster, with the same results in any order.

The part of a worker that dies (killed, out of memory, machine lost) is run again. Only results that were returned
count, so none is lost or counted twice. An error that the work raises is not retried.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, TypeVar

from anomseg_ros.errors import BackendError, ConfigError

Task = TypeVar("Task")
Done = TypeVar("Done")

MAX_DEATHS = 3
"""Deaths in a row, without a result between them, after which the work is taken to be the cause."""

MAX_LANES = 4
"""Each lane holds a network and its activations in memory."""

LOCAL_RAY = "local"


@dataclass(frozen=True)
class Workers:
    """count: processes, 1 for this one. ray: address of a Ray cluster, `local` for one on this machine, or None."""

    count: int = 1
    ray: str | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if self.count < 1:
            raise ConfigError(f"workers is {self.count!r}; expected at least 1")

    @property
    def here(self) -> bool:
        """Whether everything runs in this process."""
        return self.count == 1 and self.ray is None

    @property
    def lanes(self) -> int:
        """Frames that one worker has in inference at a time."""
        return min(MAX_LANES, available_cores()) if self.here else 1

    @property
    def threads(self) -> int:
        """Threads for each network so that all networks together use the cores once."""
        return max(1, available_cores() // (self.lanes if self.here else self.count))


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_parts(work: Callable[[Task], Done], tasks: Sequence[Task], workers: Workers) -> Iterator[Done]:
    """Yield the result of `work` on every task once, in the order in which they finish.

    `work` must be importable by name, tasks and results must pickle. Raises what `work` raises, and BackendError where
    workers die MAX_DEATHS times in a row.
    """
    if workers.ray is not None:
        return _over_ray(work, tasks, workers)
    if workers.count > 1:
        return _over_processes(work, tasks, workers.count)
    return map(work, tasks)


def _over_processes(work: Callable[[Task], Done], tasks: Sequence[Task], count: int) -> Iterator[Done]:
    remaining = dict(enumerate(tasks))
    deaths = 0
    while remaining:
        # Not forked: threads of inference engines do not survive a fork.
        pool = ProcessPoolExecutor(min(count, len(remaining)), mp_context=get_context("spawn"))
        try:
            futures = {pool.submit(work, task): number for number, task in remaining.items()}
            for future in as_completed(futures):
                done = future.result()
                del remaining[futures[future]]
                deaths = 0
                yield done
        except BrokenProcessPool as error:
            deaths += 1
            if deaths >= MAX_DEATHS:
                raise BackendError(_too_many_deaths(len(remaining))) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _over_ray(work: Callable[[Task], Done], tasks: Sequence[Task], workers: Workers) -> Iterator[Done]:
    import ray

    _join_ray(workers)
    remote = ray.remote(num_cpus=workers.threads, max_retries=MAX_DEATHS - 1)(work)
    pending = [remote.remote(task) for task in tasks]
    try:
        while pending:
            (ready, *_), pending = ray.wait(pending, num_returns=1)
            yield _ray_result(ready, len(pending) + 1)
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)


def _join_ray(workers: Workers) -> None:
    import ray

    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if workers.ray == LOCAL_RAY:
        ray.init(address="local", num_cpus=max(workers.count, available_cores()), include_dashboard=False, **quiet)
        return
    try:
        ray.init(address=workers.ray, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise BackendError(
            f"no Ray cluster answers at {workers.ray!r} ({' '.join(str(error).split())[:200]}); start one with `ray "
            f"start --head`, or give --ray {LOCAL_RAY} for this machine alone"
        ) from error


def _ray_result(reference: Any, unfinished: int) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise (cause if isinstance(cause, Exception) else error) from None
    except ray.exceptions.WorkerCrashedError as error:
        raise BackendError(_too_many_deaths(unfinished)) from error


def _too_many_deaths(parts: int) -> str:
    return (
        f"workers died {MAX_DEATHS} times in a row with {parts} part(s) left, as when memory runs out; give fewer "
        "--workers. What is finished is kept: the same command goes on from there"
    )
