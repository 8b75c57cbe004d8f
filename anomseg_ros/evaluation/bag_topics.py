"""Messages of a bag by the stamps of their headers, at random and from several threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomseg_ros.bags.read import Bag, open_bag
from anomseg_ros.errors import BagError


class StampedTopics:
    """Topics of one bag. Every message is found by its stamp; pickles without its open files."""

    def __init__(self, path: Path | str) -> None:
        """Take a bag. Raises BagError when it is first opened."""
        self.path = str(path)
        self.times: dict[str, dict[int, int]] = {}
        """Topic -> header stamp -> bag time, in nanoseconds and in order of bag time."""
        self._open_nothing()

    def bag(self) -> Bag:
        """Return the bag, opened for this thread: a reader has one position in its file."""
        if not hasattr(self._local, "bag"):
            bag = open_bag(self.path)
            self._local.bag = bag
            with self._lock:
                self._opened.append(bag)
        opened: Bag = self._local.bag
        return opened

    def index(self, topics: Sequence[str]) -> None:
        """Read the stamps of topics, all in one pass over the bag.

        Raises BagError for a topic that is not there (those that are are named), a stamp that a topic has twice, or a
        damaged bag.
        """
        for topic in topics:
            self.bag().require_topic(topic)
        times: dict[str, dict[int, int]] = {topic: {} for topic in topics}
        for record, stamp_ns, _ in self.bag().read_stamped(list(topics)):
            if stamp_ns in times[record.topic]:
                raise BagError(
                    f"bag {self.path!r}: two messages of {record.topic!r} have the stamp {seconds(stamp_ns)} s, so "
                    "frames cannot be matched; was it played in a loop while recording?"
                )
            times[record.topic][stamp_ns] = record.time_ns
        self.times |= times

    def messages(self, stamp_ns: int) -> dict[str, Any]:
        """Return topic -> message of this stamp, of the indexed topics that have one. Raises BagError."""
        by_time: dict[int, list[str]] = {}
        for topic, times in self.times.items():
            if stamp_ns in times:
                by_time.setdefault(times[stamp_ns], []).append(topic)
        found: dict[str, Any] = {}
        for time_ns, topics in by_time.items():
            for record, stamp, message in self.bag().read_stamped(topics, time_ns, time_ns + 1):
                if stamp == stamp_ns:
                    found[record.topic] = message
        return found

    def place(self, topic: str, stamp_ns: int) -> Path:
        """Return what names a message in errors: bag, topic and stamp."""
        return Path(f"{self.path} {topic} at {seconds(stamp_ns)} s")

    def close(self) -> None:
        """Close the files, in whichever threads they were opened; what comes later opens them again."""
        with self._lock:
            opened = list(self._opened)
            self._opened.clear()
            self._local = threading.local()
        for bag in opened:
            bag.close()

    def _open_nothing(self) -> None:
        self._local = threading.local()
        self._lock: threading.Lock = threading.Lock()
        self._opened: list[Bag] = []

    def __getstate__(self) -> dict[str, object]:
        """Leave the open files behind when this goes to another process."""
        return {"path": self.path, "times": self.times}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Take over what another process sent."""
        self.__dict__.update(state)
        self._open_nothing()


def seconds(stamp_ns: int) -> str:
    """Return a stamp in seconds with all its digits."""
    return f"{stamp_ns // 1_000_000_000}.{stamp_ns % 1_000_000_000:09d}"
