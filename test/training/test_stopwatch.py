from __future__ import annotations

import time

import pytest

torch = pytest.importorskip("torch")

from anomseg_ros.errors import TrainingError  # noqa: E402
from anomseg_ros.training.loss_watch import LossWatch  # noqa: E402
from anomseg_ros.training.stopwatch import Stopwatch  # noqa: E402


def step(clock: Stopwatch, **parts: float) -> None:
    """Spend milliseconds on parts, and end the step."""
    for part, duration_ms in parts.items():
        with clock(part):
            time.sleep(duration_ms / 1e3)
    clock.lap()


def stopwatch() -> Stopwatch:
    return Stopwatch(torch.device("cpu"))


def test_shares_of_waiting_and_of_what_is_beyond_forward_and_backward() -> None:
    clock = stopwatch()
    for _ in range(3):
        step(clock, wait=20, forward=20, backward=40, update=20)
    shares = clock.shares()
    assert shares["waited"] == pytest.approx(0.2, abs=0.07)
    assert shares["overhead"] == pytest.approx(40 / 60, abs=0.25)
    assert clock.steps == 3


def test_validation_is_no_part_of_a_step() -> None:
    clock = stopwatch()
    step(clock, forward=20, validate=100)
    assert clock.shares()["overhead"] < 0.5
    assert clock.waited() == pytest.approx(0, abs=0.01)


def test_what_was_before_a_reset_counts_for_the_whole_run_only() -> None:
    clock = stopwatch()
    assert clock.waited() is None
    step(clock, wait=40, forward=10)
    clock.reset()
    assert clock.seconds == {} and clock.steps == 0
    step(clock, forward=50)
    assert clock.shares()["waited"] < 0.05
    waited = clock.waited()
    assert waited is not None and 0.25 < waited < 0.5


def test_a_part_that_fails_is_timed_and_fails() -> None:
    clock = stopwatch()
    with pytest.raises(KeyError), clock("forward"):
        time.sleep(0.01)
        raise KeyError
    assert clock.seconds["forward"] >= 0.009


def test_a_good_loss_passes_and_a_bad_one_names_its_batch() -> None:
    watch = LossWatch(every=1)
    watch.add(1, ("a", "b"), torch.tensor(3.0))
    with pytest.raises(TrainingError, match="the loss is nan at step 2, frames c, d; the last saved state is good"):
        watch.add(2, ("c", "d"), torch.tensor(float("nan")))


def test_the_first_of_several_bad_losses_is_named() -> None:
    watch = LossWatch(every=4)
    for number, loss in enumerate((1.0, float("inf"), float("nan"))):
        watch.add(number, (f"frame{number}",), torch.tensor(loss))
    with pytest.raises(TrainingError, match="the loss is inf at step 1, frames frame1;"):
        watch.check()


def test_weights_are_looked_at_when_asked() -> None:
    watch = LossWatch(every=1)
    network = torch.nn.BatchNorm2d(3)
    watch.add(8, ("a",), torch.tensor(1.0))
    watch.check(network)
    network.get_buffer("running_var")[1] = float("nan")  # statistics count as well
    with pytest.raises(TrainingError, match="weights are not finite any more at step 8, frames a;"):
        watch.check(network)
