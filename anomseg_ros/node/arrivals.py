"""What arrives on the image topic: the type and topic to subscribe to, and frames that were sent but never arrived."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sensor_msgs.msg import CompressedImage, Image

CAMERA_TOPICS = RAW, COMPRESSED = "image", "image/compressed"
IMAGE_TYPES = frozenset({"sensor_msgs/msg/Image", COMPRESSED_TYPE := "sensor_msgs/msg/CompressedImage"})


def image_source(transport: str, types: Collection[str]) -> tuple[Any, str]:
    """Return the message type and topic to subscribe to: `image` if it only carries CompressedImage, else by transport.

    types: message type of each publisher on `image`, such as sensor_msgs/msg/Image.
    """
    if types and all(kind == COMPRESSED_TYPE for kind in types):
        return CompressedImage, RAW
    return (CompressedImage, COMPRESSED) if transport == "compressed" else (Image, RAW)


class SequenceGaps:
    """Gaps in the numbers that a publisher gives its messages, of one subscription.

    The queue of a subscription holds one frame: a newer one replaces it, which the middleware does not count as lost.
    """

    def __init__(self) -> None:
        self.has_one_publisher = True
        """The numbers of several publishers are mixed, and have no meaning together."""
        self._last: int | None = None

    def before(self, info: Any) -> int:
        """Return how many messages are missing before one. info: rclpy's of the message, None where it has none."""
        number = (info or {}).get("publication_sequence_number")
        last, self._last = self._last, number if self.has_one_publisher else None
        return max(0, number - last - 1) if number is not None and last is not None and self._last is not None else 0
