"""Labels of a drive's frames by the network that is adapted, and by a larger teacher where there is one.

A pixel's probabilities are averaged over views (scales, mirrored or not) and teachers. It gets

    the likeliest class   where the confidence is within the top share of its class, or above a limit. The share per
                          class keeps rare classes; rule and numbers: FDA, Yang and Soatto, CVPR 2020, arXiv 2004.05498
    252                   known, class uncertain: elsewhere, and where the frame beside it in time disagrees
    255                   not used: the own vehicle, and pixels above the threshold of the drive, which may be strange

The frame beside it is warped by dense optical flow (DIS, Kroeger et al., ECCV 2016, from OpenCV), since the parallax
of a street fits no homography. Pixels whose grey differs after warping have no vote: the flow is wrong there, or
something is hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from anomseg_ros.core.bundle import InputSpec
from anomseg_ros.core.labels import KNOWN_UNCERTAIN, UNLABELLED, ClassInfo
from anomseg_ros.core.pixel_files import read_label
from anomseg_ros.core.preprocess import resized_labels, tensor_from_frame
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.staging import replace_bytes
from anomseg_ros.core.types import LabelImage, RgbImage
from anomseg_ros.datasets.dataset import VOID, LabelledFrame
from anomseg_ros.datasets.unlabelled_drive import UnlabelledDrive
from anomseg_ros.evaluation.drive_thresholds import DriveRequest, drive_frames
from anomseg_ros.networks.network import SegmentationNetwork, pixels_to_input

STRANGE = UNLABELLED
"""Label of pixels that no loss uses."""

MAX_COLOUR_DIFFERENCE = 20
"""Grey levels of 255 by which a warped pixel may differ, to have a vote."""


@dataclass(frozen=True)
class SelfLabelConfig:
    """How frames are labelled.

    scales, flip: views, as factors of the bundle's input size, and whether mirrored as well. share: of each class's
    pixels that keep it, the most confident ones. sure: a confidence above which a pixel always keeps its class.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = True
    share: float = 0.66
    sure: float = 0.9


@dataclass(frozen=True)
class Summary:
    """Shares of all pixels: with a class, uncertain, not used; and of those with a neighbour, that it disagrees with.

    limits: per class, the confidence above which a pixel keeps it.
    """

    labelled: float
    uncertain: float
    unused: float
    disagreeing: float
    limits: tuple[float, ...]


class SelfLabelled:
    """Frames of a drive at the bundle's size with their labels; implements Dataset (datasets/dataset.py).

    Images have the channel order of the bundle's input.
    """

    name, split, layout = "drive", "", "self-labelled"
    has_anomalies = False
    published_count: int | None = None
    problems = ()

    def __init__(
        self,
        folder: Path,
        drive: UnlabelledDrive,
        indices: Sequence[int],
        spec: InputSpec,
        classes: tuple[ClassInfo, ...],
        limits: Sequence[float],
    ) -> None:
        self.folder, self.path, self.classes, self.label_set = folder, str(folder), classes, None
        self._drive, self._indices, self._spec = drive, tuple(indices), spec
        self._limits = np.asarray(limits, np.float32)

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self._indices)

    def frame_id(self, index: int) -> str:
        """Return the name of a frame."""
        return self._drive.frame_id(self._indices[index])

    def origin(self, index: int) -> str:
        """Return the place of a frame; see Dataset.origin."""
        return self._drive.origin(self._indices[index])

    def load(self, index: int) -> LabelledFrame:
        """Return one frame; a class less confident than its limit is uncertain. Raises the package's errors."""
        frame = self._indices[index]
        image = tensor_from_frame(self._drive.load(frame).image, self._spec)[0]
        labels, confidence = (read_label(_file(self.folder, what, frame)) for what in ("labels", "confidence"))
        return LabelledFrame(self.frame_id(index), image, kept_labels(labels, confidence, self._limits), None)


def label_drive(
    request: DriveRequest,
    threshold: float,
    indices: Sequence[int],
    networks: Sequence[SegmentationNetwork],
    config: SelfLabelConfig,
    folder: Path,
    progress: Progress = no_progress,
) -> Summary:
    """Write the labels of frames into a folder, frame by frame; frames that are there already are not labelled again.

    Args:
        request: bundle, drive and the score that says what is strange.
        threshold: of that score.
        indices: frames of the drive.
        networks: the bundle's network first, then teachers; only its known classes are used.
        config: how to label.
        folder: place of the labels.
        progress: called after each frame.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = request.bundle.contract.known_count
    left = [index for index in indices if not _file(folder, "confidence", index).is_file()]
    progress("labels", len(indices) - len(left), len(indices))
    for done, frame in enumerate(drive_frames(request, left), start=len(indices) - len(left) + 1):
        image = tensor_from_frame(frame.image, request.bundle.contract.input)[0]
        labels, confidence = _classes_of(_probabilities(networks, image, config, known))
        strange = frame.outputs.scores[request.scores[0]] > threshold
        unused = strange | (resized_labels(frame.counted, *labels.shape) == VOID)
        disagrees = _disagrees(request, frame.index, networks[:1], image, labels, known)
        labels[disagrees] = KNOWN_UNCERTAIN
        labels[unused] = STRANGE
        _write(folder, "labels", frame.index, labels)
        _write(folder, "disagrees", frame.index, disagrees.astype(np.uint8))
        _write(folder, "confidence", frame.index, np.rint(255 * confidence).astype(np.uint8))
        progress("labels", done, len(indices))
    return _summary(folder, indices, known, config)


def kept_labels(labels: LabelImage, confidence: npt.NDArray[np.uint8], limits: npt.NDArray[np.float32]) -> LabelImage:
    """Return labels in which classes less confident than their limit are uncertain.

    labels, confidence (times 255): uint8 (H, W). limits: float32 (C,), from 0 to 1.
    """
    table = np.zeros(256, np.float32)
    table[: len(limits)] = 255 * limits
    kept: LabelImage = labels.copy()
    kept[(labels < len(limits)) & (confidence < np.floor(table)[labels])] = KNOWN_UNCERTAIN
    return kept


def class_limits(counts: npt.NDArray[np.int64], share: float, sure: float) -> tuple[float, ...]:
    """Return, per class, the confidence that its most confident `share` of pixels has, and `sure` at most.

    counts: int64 (C, 256), pixels of a class by 255 times their confidence.
    """
    limits = []
    for row in counts:
        above = np.cumsum(row[::-1])[::-1]  # pixels of at least this confidence
        wanted = share * row.sum()
        level = int(np.flatnonzero(above >= wanted)[-1]) if row.sum() else 255
        limits.append(min(level / 255, sure))
    return tuple(limits)


def _summary(folder: Path, indices: Sequence[int], known: int, config: SelfLabelConfig) -> Summary:
    """Return the limits of the classes over all frames, and what the labels are with them."""
    counts, disagreeing = np.zeros((known, 256), np.int64), []
    for labels, confidence, disagrees in _written(folder, indices):
        has_class = labels < known
        flat = labels[has_class].astype(np.int64) * 256 + confidence[has_class]
        counts += np.bincount(flat, minlength=known * 256).reshape(known, 256)
        disagreeing.append(float(disagrees.mean()))
    limits = class_limits(counts, config.share, config.sure)
    shares = []
    for labels, confidence, _ in _written(folder, indices):
        kept = kept_labels(labels, confidence, np.asarray(limits, np.float32))
        shares.append(((kept < known).mean(), (kept == KNOWN_UNCERTAIN).mean(), (kept == STRANGE).mean()))
    labelled, uncertain, unused, disagree = (
        round(float(one), 4) for one in (*np.mean(shares, axis=0), np.mean(disagreeing))
    )
    return Summary(labelled, uncertain, unused, disagree, limits)


@torch.inference_mode()
def _probabilities(
    networks: Sequence[SegmentationNetwork], image: RgbImage, config: SelfLabelConfig, known: int
) -> npt.NDArray[np.float32]:
    """Return float32 (C, H, W), the mean over views and networks of the probability of each known class."""
    size_px = image.shape[:2]
    pixels = pixels_to_input(torch.from_numpy(np.ascontiguousarray(image))[None])
    views = [view for scale in config.scales for view in _views(pixels, scale, config.flip)]
    total = torch.zeros((known, *size_px))
    for network in networks:
        for view, mirrored in views:
            logits = network.predict(view).pixel_logits()[:, :known]
            if logits.shape[2:] != size_px:
                logits = F.interpolate(logits, size_px, mode="bilinear", align_corners=False)
            found = logits.softmax(1)[0]
            total += found.flip(2) if mirrored else found
    return np.asarray((total / (len(networks) * len(views))).numpy(), np.float32)


def _views(pixels: torch.Tensor, scale: float, flip: bool) -> Iterator[tuple[torch.Tensor, bool]]:
    height, width = (max(1, round(scale * side)) for side in pixels.shape[2:])
    scaled = pixels
    if (height, width) != pixels.shape[2:]:
        scaled = F.interpolate(pixels, (height, width), mode="bilinear", align_corners=False, antialias=True)
    yield scaled, False
    if flip:
        yield scaled.flip(3), True


def _classes_of(probabilities: npt.NDArray[np.float32]) -> tuple[LabelImage, npt.NDArray[np.float32]]:
    return probabilities.argmax(0).astype(np.uint8), probabilities.max(0)


def _disagrees(
    request: DriveRequest,
    index: int,
    networks: Sequence[SegmentationNetwork],
    image: RgbImage,
    labels: LabelImage,
    known: int,
) -> npt.NDArray[np.bool_]:
    """Return bool (H, W): where the frame beside it in time has another class. False without such a frame."""
    drive = request.drive
    if drive.follows(index):
        other = index - 1
    elif index + 1 < len(drive) and drive.follows(index + 1):
        other = index + 1
    else:
        return np.zeros(labels.shape, np.bool_)
    beside = tensor_from_frame(drive.load(other).image, request.bundle.contract.input)[0]
    beside_labels, _ = _classes_of(_probabilities(networks, beside, SelfLabelConfig(flip=False), known))
    return disagreement(image, labels, beside, beside_labels)


def disagreement(
    image: RgbImage, labels: LabelImage, beside: RgbImage, beside_labels: LabelImage
) -> npt.NDArray[np.bool_]:
    """Return bool (H, W): where a frame and the one beside it in time have different classes for the same thing.

    Images uint8 (H, W, 3), labels uint8 (H, W).
    """
    grey, grey_beside = (cv2.cvtColor(one, cv2.COLOR_RGB2GRAY) for one in (image, beside))
    flow = np.zeros((*labels.shape, 2), np.float32)
    flow = np.asarray(cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST).calc(grey, grey_beside, flow))
    rows, columns = np.indices(labels.shape, np.float32)
    place = (columns + flow[..., 0], rows + flow[..., 1])
    outside = (place[0] < 0) | (place[1] < 0) | (place[0] > labels.shape[1] - 1) | (place[1] > labels.shape[0] - 1)
    warped = cv2.remap(grey_beside, *place, cv2.INTER_LINEAR)
    seen = cv2.remap(beside_labels, *place, cv2.INTER_NEAREST)
    votes = ~outside & (cv2.absdiff(grey, warped) <= MAX_COLOUR_DIFFERENCE)
    return np.asarray(votes & (seen != labels))


def _written(folder: Path, indices: Sequence[int]) -> Iterator[tuple[npt.NDArray[np.uint8], ...]]:
    for index in indices:
        yield tuple(read_label(_file(folder, what, index)) for what in ("labels", "confidence", "disagrees"))


def _file(folder: Path, what: str, index: int) -> Path:
    return folder / f"{index:06d}_{what}.png"


def _write(folder: Path, what: str, index: int, pixels: npt.NDArray[np.uint8]) -> None:
    encoded, content = cv2.imencode(".png", pixels)
    assert encoded
    replace_bytes(_file(folder, what, index), content.tobytes())
