"""What a detector said while a bag was recorded, by the stamps of its frames: evaluated without running a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from anomseg_ros.bags.pixels import labels_from_message, scores_from_message
from anomseg_ros.bags.read import image_topics
from anomseg_ros.bags.stamped_topics import StampedTopics
from anomseg_ros.core.delivered import Delivered
from anomseg_ros.core.types import Outputs
from anomseg_ros.errors import BagError, FrameError

SCORE_TOPIC = "/detector/anomaly/score"
_SCORE_END, _LABELS_END = "anomaly/score", "labels"


@dataclass(frozen=True)
class Timeline:
    """When frames were shown and answered, by their stamps; times in nanoseconds, all of one clock."""

    shown_ns: Mapping[int, int]
    answered_ns: Mapping[int, int]


class RecordedOutputs:
    """The score maps (32FC1), and the labels (mono8) if there are any, that a bag holds. Close it after use."""

    def __init__(
        self, path: Path | str, score_name: str, score_topic: str = SCORE_TOPIC, labels_topic: str | None = None
    ) -> None:
        """Read the stamps of the outputs. score_name: what the scores are called in results.

        labels_topic: None takes `labels` beside `anomaly/score`, where it is there. Raises BagError for a topic that is
        not there, naming those that are.
        """
        self.path, self.score_name, self.score_topic = str(path), score_name, score_topic
        self._stamped = StampedTopics(path)
        try:
            bag = self._stamped.bag()
            if score_topic not in bag.topics:
                images = ", ".join(topic.topic for topic in image_topics(bag)) or "none"
                raise BagError(
                    f"bag {self.path!r} has no recorded scores on {score_topic!r}; its topics of images: {images}; "
                    "name one with --score-topic"
                )
            beside = score_topic.removesuffix(_SCORE_END) + _LABELS_END
            self.labels_topic = labels_topic or (beside if bag.counts.get(beside, 0) else None)
            self._stamped.index([name for name in (score_topic, self.labels_topic) if name is not None])
        except BaseException:
            self.close()
            raise

    @property
    def differences(self) -> tuple[Delivered, ...]:
        """What was delivered where the bag states something else."""
        return tuple(self._stamped.differences)

    @property
    def stamps_ns(self) -> frozenset[int]:
        """Stamps of the frames that have scores, and labels where those were recorded."""
        topics = [times.keys() for times in self._stamped.times.values()]
        return frozenset(topics[0]).intersection(*topics[1:])

    @property
    def recorded_ns(self) -> Mapping[int, int]:
        """Stamp -> when its scores were recorded, by the clock of the bag."""
        return self._stamped.times[self.score_topic]

    def outputs(self, stamp_ns: int) -> Outputs:
        """Return the outputs of one of `stamps_ns`, of the size they were recorded at. Raises BagError, FrameError."""
        messages = self._stamped.messages(stamp_ns)
        topic = self.score_topic
        try:
            scores = scores_from_message(messages[topic])
            topic = self.labels_topic or topic
            labels = None if self.labels_topic is None else labels_from_message(messages[topic])
        except FrameError as error:
            raise FrameError(f"{str(self._stamped.place(topic, stamp_ns))!r}: {error}") from None
        return Outputs(labels, {self.score_name: scores})

    def close(self) -> None:
        """Close the bag's files."""
        self._stamped.close()


@dataclass(frozen=True)
class RecordedSource:
    """Outputs in a bag, the arguments of RecordedOutputs. path: empty for the bag that is measured.

    timeline: when its frames were shown and answered, where the times in the bag do not tell.
    """

    path: str
    score_name: str
    score_topic: str = SCORE_TOPIC
    labels_topic: str | None = None
    timeline: Timeline | None = None

    def open(self) -> RecordedOutputs:
        """Open it and read its stamps. Raises BagError."""
        return RecordedOutputs(self.path, self.score_name, self.score_topic, self.labels_topic)
