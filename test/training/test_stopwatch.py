from __future__ import annotations

import time

import pytest

torch = pytest.importorskip("torch")

from anomseg_ros.errors import TrainingError  # noqa: E402
from anomseg_ros.training.loss_watch import LossWatch  # noqa: E402
from anomseg_ros.training.stopwatch import Stopwatch  # noqa: E402


def step(clock: Stopwatch, **parts: float) -> None:
    """Spend the given milliseconds on each part, then end the step."""
    for part, duration_ms in parts.items():
        with clock(part):
            time.sleep(duration_ms / 1e3)
    clock.lap()


def test_shares_of_waiting_and_overhead() -> None:
    clock = Stopwatch()
    for _ in range(3):
        step(clock, wait=20, forward=20, backward=40, update=20)
    shares = clock.shares()
    assert shares["waited"] == pytest.approx(0.2, abs=0.07)
    assert shares["overhead"] == pytest.approx(40 / 60, abs=0.25)


def test_validation_does_not_count_as_part_of_a_step() -> None:
    clock = Stopwatch()
    step(clock, forward=20, validate=100)
    assert clock.shares()["overhead"] < 0.5
    assert clock.waited() == pytest.approx(0, abs=0.01)


def test_times_before_a_reset_count_only_for_the_whole_run() -> None:
    clock = Stopwatch()
    assert clock.waited() is None
    step(clock, wait=40, forward=10)
    clock.reset()
    assert clock.seconds == {}
    step(clock, forward=50)
    assert clock.shares()["waited"] < 0.05
    waited = clock.waited()
    assert waited is not None and 0.25 < waited < 0.5


def test_failing_part_is_timed_and_raises() -> None:
    clock = Stopwatch()
    with pytest.raises(KeyError), clock("forward"):
        time.sleep(0.01)
        raise KeyError
    assert clock.seconds["forward"] >= 0.009


def test_non_finite_loss_error_names_its_batch() -> None:
    watch = LossWatch(every=1)
    watch.add(1, ("a", "b"), torch.tensor(3.0))
    with pytest.raises(TrainingError, match="the loss is nan at step 2, frames c, d; the last saved state is good"):
        watch.add(2, ("c", "d"), torch.tensor(float("nan")))


def test_error_names_the_first_of_several_non_finite_losses() -> None:
    watch = LossWatch(every=4)
    for number, loss in enumerate((1.0, float("inf"), float("nan"))):
        watch.add(number, (f"frame{number}",), torch.tensor(loss))
    with pytest.raises(TrainingError, match="the loss is inf at step 1, frames frame1;"):
        watch.check()


def test_weights_are_checked_on_request() -> None:
    watch = LossWatch(every=1)
    network = torch.nn.BatchNorm2d(3)
    watch.add(8, ("a",), torch.tensor(1.0))
    watch.check(network)
    network.get_buffer("running_var")[1] = float("nan")  # statistics are checked, too
    with pytest.raises(TrainingError, match="weights are not finite any more at step 8, frames a;"):
        watch.check(network)
