"""A one-slot mailbox between the thread that receives frames and the one that processes them: the newest frame wins."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Holds at most one item. Putting a second one drops the first, which is counted, never the new one."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._item: T | None = None
        self._closed = False
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """Items that were replaced, or left behind at close, before anybody took them."""
        return self._dropped

    def put(self, item: T) -> None:
        """Put an item, replacing one that is still waiting. After close(), the item is dropped."""
        with self._condition:
            self._dropped += self._closed or self._item is not None
            if not self._closed:
                self._item = item
                self._condition.notify()

    def take(self) -> T | None:
        """Wait for an item and take it; None once the mailbox is closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._item is not None or self._closed)
            item, self._item = self._item, None
            return item

    def close(self) -> None:
        """Wake the taker for good; an item still waiting is dropped."""
        with self._condition:
            self._dropped += self._item is not None
            self._item = None
            self._closed = True
            self._condition.notify_all()
