"""One-slot mailboxes between the thread that receives frames and the thread that processes them.

A new frame replaces the waiting one, and cameras that share an engine take turns.
"""

from __future__ import annotations

import threading
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Turns:
    """The turns of the mailboxes of one engine. The next turn goes to the mailbox whose taker has waited longest.

    Each of n cameras that always have a frame waiting gets every n-th turn, regardless of its rate.

    changed: protects all fields, and is notified of every change. takers: mailboxes in take(), longest wait first.
    holder: the mailbox that has the turn.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.takers: list[Mailbox[Any]] = []
        self.holder: Mailbox[Any] | None = None

    def next(self) -> Mailbox[Any] | None:
        """Return the mailbox that gets the next turn; None while a mailbox has the turn, or if all are empty."""
        if self.holder is not None:
            return None
        return next((mailbox for mailbox in self.takers if mailbox.full), None)


class Mailbox(Generic[T]):
    """Holds at most one item; a new item replaces the one that waits."""

    def __init__(self, turns: Turns | None = None) -> None:
        """turns: shared by the mailboxes that take turns; None for a mailbox that does not wait for others."""
        self._turns = turns or Turns()
        self._item: T | None = None
        self._closed = False

    @property
    def full(self) -> bool:
        """Whether an item waits."""
        return self._item is not None

    def put(self, item: T) -> bool:
        """Put an item; return whether an item was dropped: the waiting one or, after close(), the new one."""
        with self._turns.changed:
            dropped = self._closed or self.full
            if not self._closed:
                self._item = item
                self._turns.changed.notify_all()
            return dropped

    def take(self) -> T | None:
        """Wait for the turn and an item, and return the item; None once the mailbox is closed.

        The turn lasts until the next call of take() or release().
        """
        turns = self._turns
        with turns.changed:
            self.release()
            turns.takers.append(self)
            turns.changed.wait_for(lambda: self._closed or turns.next() is self)
            turns.takers.remove(self)
            item, self._item = self._item, None
            turns.holder = turns.holder if item is None else self
            return item

    def release(self) -> None:
        """End the turn, if this mailbox has it."""
        with self._turns.changed:
            if self._turns.holder is self:
                self._turns.holder = None
                self._turns.changed.notify_all()

    def close(self) -> bool:
        """Make take() return None from now on; return whether a waiting item was dropped. Does not end the turn."""
        with self._turns.changed:
            dropped = self.full
            self._item = None
            self._closed = True
            self._turns.changed.notify_all()
            return dropped
