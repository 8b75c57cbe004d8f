"""A page of a drive's frames, worst first, on which a person strikes out those that show something strange."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import cv2
import numpy as np

from anomseg_ros.core.labels import UNLABELLED, palette
from anomseg_ros.core.overlay import anomaly_mask, overlay
from anomseg_ros.core.preprocess import resized_labels
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.datasets.dataset import VOID
from anomseg_ros.evaluation.calibrate import ThresholdChange
from anomseg_ros.evaluation.drive_thresholds import DriveFrame, DriveRequest, DriveThresholds, drive_frames
from anomseg_ros.evaluation.pictures import jpeg
from anomseg_ros.evaluation.report_page import asset, render
from anomseg_ros.evaluation.report_style import STYLE

MAX_THUMBNAILS = 200
WIDTH_PX = 400


@dataclass(frozen=True)
class Thumbnail:
    """A frame on the page, for a stretch of the drive of which it has most pixels above the threshold.

    stretch: names of the stretch's frames. share: of the pixels that count, above the threshold. jpeg: an overlay.
    """

    name: str
    stretch: tuple[str, ...]
    share: float
    jpeg: bytes

    @property
    def source(self) -> str:
        """The picture as a data URL."""
        return "data:image/jpeg;base64," + base64.b64encode(self.jpeg).decode("ascii")


def drive_page(request: DriveRequest, found: DriveThresholds, progress: Progress = no_progress) -> str:
    """Return the page. Its frames are detected once more, with the first score. Raises the package's errors."""
    score = request.scores[0]
    change = next(one for one in found.changes if (one.score, one.target_fpr) == (score, request.shown_rate))
    stretches = worst_of_stretches(found.tails, len(request.drive))
    thumbnails = []
    for done, frame in enumerate(drive_frames(replace(request, scores=(score,)), sorted(stretches)), start=1):
        names = tuple(map(request.drive.frame_id, stretches[frame.index]))
        thumbnails.append(_thumbnail(frame, names, change))
        progress("page", done, len(stretches))
    thumbnails.sort(key=lambda one: one.share, reverse=True)
    return render(
        "drive.html",
        f"{request.bundle.contract.name}: frames of the drive",
        style=STYLE + asset("drive.css"),
        script=asset("drive.js"),
        change=change,
        thumbnails=thumbnails,
        frames=len(request.drive),
    )


def worst_of_stretches(tails: Mapping[int, float], count: int) -> dict[int, Sequence[int]]:
    """Return the frame with the highest value of `tails` of each stretch of the drive -> the stretch's frames.

    A drive has at most MAX_THUMBNAILS stretches, of equal length; a short one has a stretch per frame.
    """
    number = min(count, MAX_THUMBNAILS)
    edges = [round(count * index / number) for index in range(number + 1)]
    stretches = (range(*pair) for pair in pairwise(edges))
    return {max(stretch, key=tails.__getitem__): stretch for stretch in stretches}


def _thumbnail(frame: DriveFrame, stretch: tuple[str, ...], change: ThresholdChange) -> Thumbnail:
    mask = anomaly_mask(frame.scores(change.score), change.threshold)
    mask[frame.counted == VOID] = 0
    counted_px = int(np.count_nonzero(frame.counted != VOID))
    share = int(np.count_nonzero(mask)) / counted_px if counted_px else 0.0
    height = max(1, round(WIDTH_PX * frame.image.shape[0] / frame.image.shape[1]))
    small = np.asarray(cv2.resize(frame.image, (WIDTH_PX, height), interpolation=cv2.INTER_AREA), np.uint8)
    unlabelled = np.full((height, WIDTH_PX), UNLABELLED, np.uint8)
    canvas = overlay(small, unlabelled, resized_labels(mask, height, WIDTH_PX), palette(()))
    return Thumbnail(frame.name, stretch, share, jpeg(canvas))
