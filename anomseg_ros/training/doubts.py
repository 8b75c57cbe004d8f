"""What speaks against trusting a run: frames of another dataset than stated, too few frames, or the same ones twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from anomseg_ros.datasets.check import few_classes
from anomseg_ros.datasets.dataset import Dataset
from anomseg_ros.errors import DatasetError
from anomseg_ros.training.frame_cache import Frames

FEW_TRAINING, FEW_VALIDATION = 50, 10
"""Fewer frames than these are enough to try, not to deploy."""

_STRIDE_PX = 8
"""Step between the rows and columns of a frame that its digest is of."""


def require_other_frames(training: Frames, validation: Frames) -> None:
    """Raise DatasetError where training and validation share a frame, under whatever name."""
    names = dict(zip(_digests(training), training.ids, strict=True))
    shared = [
        (names[digest], id_)
        for digest, id_ in zip(_digests(validation), validation.ids, strict=True)
        if digest in names
    ]
    if shared:
        ours, theirs = shared[0]
        raise DatasetError(
            f"{len(shared)} of {len(validation)} validation frames are training frames, too (the first: {theirs!r} is "
            f"{ours!r}); what is measured on them says nothing. Give other ones: data.validation_path, "
            "data.validation_split, or splits in classes.yaml"
        )


@dataclass(frozen=True)
class Doubts:
    """sentences: why frames may not be what the dataset's name says, or are too few to trust the result. foreign:
    whether they do not look like the published dataset: other in number, with few of its classes."""

    sentences: tuple[str, ...] = ()
    foreign: bool = False


def find_doubts(train_set: Dataset, training: Frames, validation: Frames) -> Doubts:
    """Return what speaks against trusting a run on these frames."""
    published = train_set.published_count
    other_count = published is not None and published != len(training)
    foreign = other_count and bool(_few_classes(train_set, training))
    return Doubts(tuple(_doubts(train_set, training, validation)), foreign)


def _doubts(train_set: Dataset, training: Frames, validation: Frames) -> Iterator[str]:
    published = train_set.published_count
    if published is not None and published != len(training):
        yield f"{len(training)} training frames, {published} are published of {train_set.name} {train_set.split}"
    if text := _few_classes(train_set, training):
        yield text
    counts = (("training", len(training), FEW_TRAINING), ("validation", len(validation), FEW_VALIDATION))
    few = [f"{count} {kind} frames" for kind, count, least in counts if count < least]
    if few:
        yield (
            f"{' and '.join(few)} are too few to trust the figures: label more, and fit thresholds on a drive with "
            "`anomseg calibrate threshold --frames`"
        )


def _few_classes(train_set: Dataset, training: Frames) -> str:
    shown = {int(value) for value in np.flatnonzero(training.counts)}
    return few_classes(train_set, training.classes, shown)


def _digests(frames: Frames) -> Iterator[bytes]:
    """Yield a digest of each frame's pixels; one pixel in 64 is enough, and keeps most of a large file unread."""
    for image in frames.images:
        yield hashlib.blake2b(image[::_STRIDE_PX, ::_STRIDE_PX].tobytes(), digest_size=16).digest()
