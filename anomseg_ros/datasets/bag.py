"""A bag as a dataset, every labelled frame in the order of stamps, or every frame. Needs no ROS installation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from anomseg_ros.bags.pixels import frame_from_message, labels_from_message
from anomseg_ros.bags.read import Bag, camera_topic, open_bag
from anomseg_ros.bags.stamped_topics import StampedTopics, seconds
from anomseg_ros.bags.write import ANOMALY_TRUTH, LABELS_TRUTH, namespace_of
from anomseg_ros.core.class_table import find_label_set
from anomseg_ros.core.delivered import Delivered
from anomseg_ros.core.ego_mask import ego_mask_of_frame
from anomseg_ros.core.labels import UNLABELLED, ClassInfo, label_set
from anomseg_ros.core.problems import FrameProblem
from anomseg_ros.core.types import LabelImage, Mask
from anomseg_ros.core.untrusted_text import parse_json
from anomseg_ros.datasets.dataset import ANOMALY, KNOWN, VOID, LabelledFrame
from anomseg_ros.errors import BagError, ConfigError, FrameError

DATASET_FACT, LABEL_SET_FACT, CLASSES_FACT = "anomseg_dataset", "anomseg_label_set", "anomseg_classes"
"""Keys of Bag.facts: the dataset that the bag was written from, and the meaning of its semantic labels."""


class BagDataset:
    """The frames of a bag's camera topic that have ground truth with the same stamp, in the order of stamps.

    known: all frames, without ground truth; every pixel is known.

    Implements Dataset (dataset.py): several threads may call load(), and the dataset can be pickled for other
    processes. `unmatched` holds one sentence per topic whose messages have no counterpart with the same stamp.
    `differences` lists the topics whose stated number of messages differs from the number read. Leaving the context
    closes the files.
    """

    split, layout = "", "bag"
    published_count: int | None = None
    problems: tuple[FrameProblem, ...] = ()

    def __init__(
        self,
        path: Path | str,
        *,
        topic: str | None = None,
        anomaly_topic: str | None = None,
        labels_topic: str | None = None,
        label_set_name: str | None = None,
        known: bool = False,
        ego_mask: Mask | None = None,
    ) -> None:
        """Read the stamps of a bag's images and ground truth; no image is decoded yet.

        Args:
            path: the bag, a folder or a file.
            topic: images; None for the only colour topic.
            anomaly_topic: ground truth of anomalies; None for ground_truth/anomaly in the namespace of the images, if
                the bag has it.
            labels_topic: semantic ground truth; None for ground_truth/labels in the namespace of the images, if the bag
                has it.
            label_set_name: label set of the semantic ground truth; None for the one stated in the bag.
            known: whether every pixel of every frame is known; ground truth is not read.
            ego_mask: uint8 (H, W) of the frames' aspect ratio, non-zero on the own vehicle, which is 255 in all frames.

        Raises:
            BagError: not a bag, truncated, a topic that is missing (the message lists the topics of the bag), no ground
                truth, no common stamp, or a stamp that occurs twice in a topic.
        """
        self.path, self.name = str(path), Path(path).stem
        """Name of the dataset that the bag was written from, which selects the metrics' rules; else the file name."""
        self.prefix = ""
        """Prefix of the frame ids, to distinguish the frames of several bags."""
        self._ego_mask, self._stamped = ego_mask, StampedTopics(path)
        try:
            bag = self._stamped.bag()
            self.image_topic = camera_topic(bag) if topic is None else topic
            bag.require_topic(self.image_topic)
            truth = (None, None) if known else _truth_topics(bag, self.image_topic, anomaly_topic, labels_topic)
            self.known, (self.anomaly_topic, self.labels_topic) = known, truth
            self.name = bag.facts.get(DATASET_FACT, self.name)
            self.label_set, self.classes = _classes_of(bag, label_set_name)
            named = (self.image_topic, self.anomaly_topic, self.labels_topic)
            self._stamped.index([name for name in named if name is not None])
        except BaseException:
            self.close()
            raise
        self.has_anomalies = known or self.anomaly_topic is not None
        truth_topic = self.image_topic if known else self.anomaly_topic or self.labels_topic or ""
        self.stamps_ns, self.unmatched = self._match_stamps(truth_topic)

    @property
    def differences(self) -> tuple[Delivered, ...]:
        """Topics whose stated number of messages differs from the number read."""
        return tuple(self._stamped.differences)

    def __len__(self) -> int:
        """Return the number of frames that have ground truth."""
        return len(self.stamps_ns)

    def __enter__(self) -> BagDataset:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def recorded_ns(self) -> Mapping[int, int]:
        """Stamp of every image -> time at which it was recorded, nanoseconds of the recorder's clock."""
        return self._stamped.times[self.image_topic]

    def close(self) -> None:
        """Close the bag's files; a later load() opens them again."""
        self._stamped.close()

    def frame_id(self, index: int) -> str:
        """Return the prefix followed by the stamp in seconds, for example 12.300000000."""
        return self.prefix + seconds(self.stamps_ns[index])

    def origin(self, index: int) -> str:
        """Return the bag, the topic and the stamp of a frame; see Dataset.origin."""
        return f"{Path(self.path).resolve()} {self.image_topic} {seconds(self.stamps_ns[index])}"

    def load(self, index: int) -> LabelledFrame:
        """Read one frame and its ground truth.

        Raises:
            FrameProblem: an image that cannot be decoded, or ground truth of another size or with unknown values. The
                message names bag, topic and stamp.
            FrameError: an image of another aspect ratio than the ego mask.
            BagError: the bag is damaged.
        """
        stamp_ns = self.stamps_ns[index]
        messages = self._stamped.messages(stamp_ns)
        if self.image_topic not in messages:
            raise BagError(
                f"bag {self.path!r}: the image at {seconds(stamp_ns)} s is missing; the file was changed after opening"
            )
        image = self._decode(frame_from_message, self.image_topic, stamp_ns, messages)
        if self.known:
            known = np.full(image.shape[:2], KNOWN, np.uint8)
            return LabelledFrame(self.frame_id(index), image, None, self._without_vehicle(known))
        anomaly = self._load_truth(self.anomaly_topic, stamp_ns, messages, image.shape[:2])
        labels = self._load_truth(self.labels_topic, stamp_ns, messages, image.shape[:2])
        if anomaly is not None and self.anomaly_topic is not None:
            self._require_anomaly_values(anomaly, stamp_ns)
        return LabelledFrame(self.frame_id(index), image, self._without_vehicle(labels), self._without_vehicle(anomaly))

    def _without_vehicle(self, truth: LabelImage | None) -> LabelImage | None:
        """Return ground truth, of either kind, that is 255 on the own vehicle."""
        if self._ego_mask is None or truth is None:
            return truth
        return np.where(ego_mask_of_frame(self._ego_mask, *truth.shape) > 0, np.uint8(VOID), truth)

    def _match_stamps(self, truth_topic: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
        images, truth = self._stamped.times[self.image_topic], self._stamped.times[truth_topic]
        common = tuple(sorted(images.keys() & truth.keys()))
        if not common:
            raise BagError(
                f"bag {self.path!r}: no image of {self.image_topic!r} has ground truth: its {len(images)} stamps begin "
                f"at {_first_stamp(images)}, the {len(truth)} of {truth_topic!r} at {_first_stamp(truth)}; give both "
                "the same stamp"
            )
        without = [stamp_ns for stamp_ns in images if stamp_ns not in truth]
        alone = [stamp_ns for stamp_ns in truth if stamp_ns not in images]
        notes = []
        if without:
            notes.append(
                f"{len(without)} of {len(images)} images have no message with the same stamp on {truth_topic!r} and "
                f"are not evaluated; the first at {seconds(without[0])} s"
            )
        if alone:
            notes.append(
                f"{len(alone)} of {len(truth)} messages of {truth_topic!r} have no image with the same stamp; the "
                f"first at {seconds(alone[0])} s"
            )
        return common, tuple(notes)

    def _load_truth(
        self, topic: str | None, stamp_ns: int, messages: Mapping[str, Any], size: tuple[int, ...]
    ) -> LabelImage | None:
        if topic is None:
            return None
        if topic not in messages:  # this frame has only the other kind of ground truth
            return np.full(size, UNLABELLED, np.uint8)
        truth = self._decode(labels_from_message, topic, stamp_ns, messages)
        if truth.shape != size:
            sizes = f"{truth.shape[1]}x{truth.shape[0]}, its image {size[1]}x{size[0]}"
            raise FrameProblem("labels of another size", self._stamped.place(topic, stamp_ns), sizes)
        return truth

    def _decode(self, decode: Any, topic: str, stamp_ns: int, messages: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
        try:
            pixels: npt.NDArray[np.uint8] = decode(messages[topic])
        except FrameError as error:
            raise FrameProblem("unreadable", self._stamped.place(topic, stamp_ns), str(error)) from None
        return pixels

    def _require_anomaly_values(self, anomaly: npt.NDArray[np.uint8], stamp_ns: int) -> None:
        unknown = sorted(set(np.unique(anomaly).tolist()) - {KNOWN, ANOMALY, VOID})
        if unknown:
            detail = f"{', '.join(map(str, unknown[:8]))}; expected 0 known, 1 anomaly, 255 ignored"
            raise FrameProblem("unknown label values", self._stamped.place(self.anomaly_topic or "", stamp_ns), detail)


def has_ground_truth(path: Path | str, topic: str | None = None) -> bool:
    """Return whether a bag has ground truth in the namespace of its images. Raises BagError."""
    with open_bag(path) as bag:
        namespace = namespace_of(camera_topic(bag) if topic is None else topic)
        return any(bag.counts.get(f"{namespace}/{name}", 0) for name in (ANOMALY_TRUTH, LABELS_TRUTH))


def classes_to_fact(classes: tuple[ClassInfo, ...]) -> str:
    """Return classes as JSON, the value of CLASSES_FACT."""
    return json.dumps([[info.name, list(info.color), info.train_id] for info in classes])


def _classes_of(bag: Bag, name: str | None) -> tuple[str | None, tuple[ClassInfo, ...] | None]:
    """Return name and classes of the label set `name`, or of the label set stated in the bag if it is None."""
    if name is not None:
        return find_label_set(name)
    stated, listed = bag.facts.get(LABEL_SET_FACT), bag.facts.get(CLASSES_FACT)
    if listed is None:
        return stated, None if stated is None else label_set(stated)
    try:
        rows = parse_json(listed)
        classes = tuple(ClassInfo(str(n), (int(r), int(g), int(b)), int(train_id)) for n, (r, g, b), train_id in rows)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"bag {str(bag.path)!r}: its {CLASSES_FACT} cannot be read ({error}); give --label-set"
        ) from None
    return stated, classes


def _truth_topics(
    bag: Bag, image_topic: str, anomaly_topic: str | None, labels_topic: str | None
) -> tuple[str | None, str | None]:
    for given in (anomaly_topic, labels_topic):
        if given is not None:
            bag.require_topic(given)
    namespace = namespace_of(image_topic)
    expected = (f"{namespace}/{ANOMALY_TRUTH}", f"{namespace}/{LABELS_TRUTH}")
    available = [name if bag.counts.get(name, 0) else None for name in expected]
    found = (anomaly_topic or available[0], labels_topic or available[1])
    if found == (None, None):
        raise BagError(
            f"bag {str(bag.path)!r} has no ground truth: neither {expected[0]!r} nor {expected[1]!r}; it has "
            f"{', '.join(bag.topics) or 'no topics'}. `anomseg bag write --dataset` writes it; or give its topics"
        )
    return found


def _first_stamp(times: Mapping[int, int]) -> str:
    return f"{seconds(next(iter(times)))} s" if times else "none"
