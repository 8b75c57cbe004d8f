"""What differs between the ROS 2 distributions that the node runs with: Humble (rclpy 3.3) and Jazzy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ModuleNotFoundError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

__all__ = ["SubscriptionEventCallbacks", "call_after_parameters_are_set", "with_message_info"]


def with_message_info(callback: Callable[[Any, Any], None]) -> Callable[..., None]:
    """Return a callback of a subscription that gets the message and its info; None where rclpy gives no info."""
    from rclpy.subscription import Subscription

    if hasattr(Subscription, "CallbackType"):
        return callback
    return lambda message: callback(message, None)


def call_after_parameters_are_set(node: Any, callback: Callable[[list[Any]], None]) -> None:
    """Call `callback` with the parameters whenever some have been set on the node."""
    if hasattr(node, "add_post_set_parameters_callback"):
        node.add_post_set_parameters_callback(callback)
        return
    # Humble has only callbacks from before the values change. It sets every parameter through this method.
    set_atomically = node._set_parameters_atomically

    def set_and_tell(parameters: list[Any], *arguments: Any, **options: Any) -> Any:
        result = set_atomically(parameters, *arguments, **options)
        if result.successful:
            callback(parameters)
        return result

    node._set_parameters_atomically = set_and_tell
