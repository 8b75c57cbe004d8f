"""Recorded drives: MCAP and sqlite3 bags whose storage or metadata is damaged."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import yaml

from anomseg_ros.bags.pixels import frame_from_message
from anomseg_ros.bags.read import image_topics, open_bag, read_images
from anomseg_ros.bags.stamped_topics import StampedTopics
from anomseg_ros.bags.write import BagWriter
from anomseg_ros.errors import BagError, FrameError
from fuzzing.bundles import HOSTILE_TEXTS, alias_bomb
from fuzzing.odd_values import changed_plain, damaged
from fuzzing.targets import Target

METADATA = "metadata.yaml"


class Case(NamedTuple):
    """The bytes of a bag's files; metadata: None for a storage file on its own."""

    storage: bytes
    metadata: bytes | None


class Bags(Target):
    """What both storages share."""

    refusals = (BagError, FrameError)
    storage = ""

    def __init__(self, folder: Path, bundle: Path) -> None:
        """Write the valid bag."""
        super().__init__(folder, bundle)
        self.bag = folder / "bag"
        frame = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        labels = np.zeros((6, 8), np.uint8)
        with BagWriter(self.bag, storage=self.storage) as writer:
            for number in range(3):
                writer.write_frame(1_000_000_000 + 100_000_000 * number, frame, labels=labels)
        self.file = next(path for path in self.bag.iterdir() if path.name != METADATA)
        self.content, self.metadata = self.file.read_bytes(), (self.bag / METADATA).read_bytes()
        self.plain = yaml.safe_load(self.metadata)

    def make(self, rng: Random) -> Case:
        """Return a bag whose storage or metadata is changed."""
        kind = rng.random()
        if kind < 0.4:
            return Case(damaged(rng, self.content), self.metadata)
        if kind < 0.7:
            return Case(damaged(rng, self.content), None)
        if kind < 0.9:
            text = yaml.safe_dump(changed_plain(rng, self.plain), allow_unicode=True)
            return Case(self.content, text.encode("utf-8", "replace"))
        if kind < 0.98:
            return Case(self.content, damaged(rng, self.metadata))
        texts = (*HOSTILE_TEXTS, alias_bomb("rosbag2_bagfile_information"))
        return Case(self.content, rng.choice(texts).encode())

    def check(self, case: Case) -> None:
        """What can be opened tells its topics, and its images and stamps are read to the end."""
        shutil.rmtree(self.bag)
        self.bag.mkdir()
        self.file.write_bytes(case.storage)
        if case.metadata is not None:
            (self.bag / METADATA).write_bytes(case.metadata)
        path = self.bag if case.metadata is not None else self.file
        with open_bag(path) as bag:
            topics = image_topics(bag)
            assert all(bag.counts[topic.topic] == topic.message_count for topic in topics)
            assert isinstance(bag.facts, dict) and isinstance(bag.end_ns - bag.start_ns, int)
            for topic in topics:
                for record in read_images(bag, topic.topic):
                    frame_from_message(record.message)
        stamped = StampedTopics(path)
        try:
            stamped.index([topic.topic for topic in topics])
        finally:
            stamped.close()


class McapBags(Bags):
    """MCAP."""

    storage = "mcap"


class Sqlite3Bags(Bags):
    """sqlite3."""

    storage = "sqlite3"
