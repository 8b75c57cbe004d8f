"""Random access to the messages of a bag by header stamp, from several threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomseg_ros.bags.read import Bag, open_bag
from anomseg_ros.core.delivered import Delivered
from anomseg_ros.errors import BagError


class StampedTopics:
    """Topics of one bag, with an index from header stamp to message. Can be pickled; open files are not included."""

    def __init__(self, path: Path | str) -> None:
        """Store the path. The bag is opened on first use, which may raise BagError."""
        self.path = str(path)
        self.times: dict[str, dict[int, int]] = {}
        """Topic -> header stamp -> bag time, in nanoseconds and in order of bag time."""
        self.differences: list[Delivered] = []
        """Differences between the message counts that the bag states for indexed topics and the actual counts."""
        self._reset_readers()

    def bag(self) -> Bag:
        """Return this thread's own reader of the bag, since a reader has a single file position."""
        if not hasattr(self._local, "bag"):
            bag = open_bag(self.path, self.differences.append)
            self._local.bag = bag
            with self._lock:
                self._open_bags.append(bag)
        thread_bag: Bag = self._local.bag
        return thread_bag

    def index(self, topics: Sequence[str]) -> None:
        """Read the stamps of topics in one pass over the bag.

        Raises BagError for a missing topic (the message lists the available ones), duplicate stamps within a topic, or
        a damaged bag.
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
        """Return topic -> message with this stamp, for the indexed topics that have one. Raises BagError."""
        topics_by_time: dict[int, list[str]] = {}
        for topic, times in self.times.items():
            if stamp_ns in times:
                topics_by_time.setdefault(times[stamp_ns], []).append(topic)
        messages: dict[str, Any] = {}
        for time_ns, topics in topics_by_time.items():
            for record, record_stamp_ns, message in self.bag().read_stamped(topics, time_ns, time_ns + 1):
                if record_stamp_ns == stamp_ns:
                    messages[record.topic] = message
        return messages

    def place(self, topic: str, stamp_ns: int) -> Path:
        """Return the location of a message for error messages: bag, topic and stamp."""
        return Path(f"{self.path} {topic} at {seconds(stamp_ns)} s")

    def close(self) -> None:
        """Close the files of all threads; later calls open them again."""
        with self._lock:
            bags = list(self._open_bags)
            self._open_bags.clear()
            self._local = threading.local()
        for bag in bags:
            bag.close()

    def _reset_readers(self) -> None:
        self._local = threading.local()
        self._lock: threading.Lock = threading.Lock()
        self._open_bags: list[Bag] = []

    def __getstate__(self) -> dict[str, object]:
        """Return the picklable state, without open files."""
        return {"path": self.path, "times": self.times, "differences": self.differences}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Restore pickled state; no file is open afterwards."""
        self.__dict__.update(state)
        self._reset_readers()


def seconds(stamp_ns: int) -> str:
    """Return a stamp in seconds with nine decimals."""
    return f"{stamp_ns // 1_000_000_000}.{stamp_ns % 1_000_000_000:09d}"
