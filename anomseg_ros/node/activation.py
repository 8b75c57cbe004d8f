"""The state of a node between activate and deactivate, and a decorator that logs why a lifecycle transition failed."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn

from anomseg_ros.errors import AnomsegError
from anomseg_ros.node.health import Health
from anomseg_ros.node.mailbox import Mailbox, Turns
from anomseg_ros.node.pipeline import FramePipeline, error_reason

WORKER_STOP_S = 2.0
"""How long the node waits for the worker to finish its current frame when it stops."""

TimedMessage = tuple[Any, float]
"""An image message and its arrival time by time.monotonic(), seconds."""


class Activation:
    """The mailbox, frame counts and worker thread of one activation.

    A worker that is still stuck when the node stops is abandoned: it keeps this object and its engine for itself and
    publishes nothing more.
    """

    def __init__(
        self, work: Callable[[Activation], None], pipeline: FramePipeline, health: Health, turns: Turns
    ) -> None:
        """Start the worker.

        Args:
            work: called with this activation in the worker thread; processes frames until the mailbox is closed.
            pipeline: turns a frame into messages.
            health: counts the frames of this activation only.
            turns: shared by all cameras that use the same engine.
        """
        self.mailbox: Mailbox[TimedMessage] = Mailbox(turns)
        self.pipeline = pipeline
        self.health = health
        self.abandoned = False
        self._work = work
        self._worker = threading.Thread(target=self._run, name="detector", daemon=True)
        self._worker.start()

    def _run(self) -> None:
        try:
            self._work(self)
        finally:  # even if this worker fails, the other cameras must get their turns
            self.mailbox.release()

    def stop(self) -> bool:
        """Let the worker finish its current frame; return whether it did so within WORKER_STOP_S."""
        if self.mailbox.close():
            self.health.dropped()
        self._worker.join(WORKER_STOP_S)
        self.abandoned = self._worker.is_alive()
        return not self.abandoned


Transition = Callable[[Any, LifecycleState], TransitionCallbackReturn]
"""A transition method of a lifecycle node, such as on_cleanup."""


def logs_failure(transition: Transition) -> Transition:
    """Decorate a transition to log its exception; rclpy only turns an exception into a state and logs nothing."""

    @functools.wraps(transition)
    def logged_transition(node: Any, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(node, state)
        except Exception as error:
            node.get_logger().error(f"cannot {transition.__name__.removeprefix('on_')}: {error_reason(error)}")
            expected = isinstance(error, AnomsegError)
            return TransitionCallbackReturn.FAILURE if expected else TransitionCallbackReturn.ERROR

    return logged_transition
