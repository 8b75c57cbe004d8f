"""Label frames by the agreement of teachers (pseudo-labels: Lee, ICML workshops 2013), averaged over their views.

The class of a pixel has the largest mean probability over all teachers and views (scales, mirrored or not), among the
classes that the frame's own labels allow. The confidence is that probability. Where own labels allow several classes,
it is the probability among these.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.labels import CITYSCAPES, KNOWN_UNCERTAIN, UNLABELLED
from anomseg_ros.core.types import LabelImage, RgbImage
from anomseg_ros.datasets.pseudo_label_sources import FREE, Unlabelled
from anomseg_ros.errors import ConfigError

CLASSES = len(CITYSCAPES)

Probabilities = npt.NDArray[np.float32]
"""float32 (19, H, W): probability of each of Cityscapes' classes. The rest up to 1 belongs to no class."""

_TINY = np.float32(1e-9)
"""Added to the probabilities of allowed classes, so that one of them is chosen even if the teachers exclude all."""


@dataclass(frozen=True)
class TeacherInfo:
    """A teacher. name: of its network or bundle. sha256: of its file. runs_on: the engine and its version."""

    name: str
    sha256: str
    runs_on: str


class Teacher(Protocol):
    """Gives class probabilities of frames."""

    info: TeacherInfo

    def look(
        self, image: RgbImage, size_px: tuple[int, int], scales: tuple[float, ...], flip: bool
    ) -> Iterator[Probabilities]:
        """Yield the probabilities at size_px (height, width) of a frame, uint8 (H, W, 3) RGB, for each view.

        Args:
            image: the frame.
            size_px: of the probabilities.
            scales: of the views, as factors of size_px.
            flip: add mirrored views.
        """
        ...


@dataclass(frozen=True)
class LabelConfig:
    """How frames are labelled.

    size_px: (height, width) of the written frames, None for each frame's own size. scales, flip: views that each
    teacher gets. confidence: a pixel with a lower confidence is uncertain. own_confidence: the same where own labels
    allow only some classes, among which a wrong one is less harmful; None for `confidence`.
    """

    size_px: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    confidence: float = 0.5
    own_confidence: float | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for values out of range."""
        for name in ("confidence", "own_confidence"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name} is {value!r}; expected 0 to 1")
        if not self.scales or min(self.scales) <= 0 or max(self.scales) > 4:
            raise ConfigError(f"scales are {self.scales!r}; expected at least one, each above 0 and at most 4")
        if self.size_px is not None and min(self.size_px) < 1:
            raise ConfigError(f"size is {self.size_px!r}; expected height and width above 0")


@dataclass(frozen=True, eq=False)
class Labelled:
    """A labelled frame: image uint8 (H, W, 3) RGB, and uint8 (H, W) each.

    labels: train ids, 252 known but class uncertain, 255 unlabelled. confidence: 255 times the probability of the
    class, also for uncertain pixels. agreement: 255 times the share of views with the same class. Both are 0 where no
    class is possible.
    """

    image: RgbImage
    labels: LabelImage
    confidence: npt.NDArray[np.uint8]
    agreement: npt.NDArray[np.uint8]


def label_frame(frame: Unlabelled, teachers: tuple[Teacher, ...], config: LabelConfig, *, known: bool) -> Labelled:
    """Return a frame's labels. Teachers are used only if some pixel has more than one possible class.

    Args:
        frame: what to label.
        teachers: at least one.
        config: how to label.
        known: the frame shows known classes only, so uncertain pixels are 252. Otherwise they are 255, except where own
            labels allow some classes.
    """
    size_px = config.size_px or (frame.image.shape[0], frame.image.shape[1])
    image, codes = resized(frame.image, size_px), _resized_codes(frame.codes, size_px)
    choices = frame.choices.sum(axis=1)
    asked, possible = np.asarray(choices > 1)[codes], np.asarray(choices > 0)[codes]
    allowed = np.ascontiguousarray(frame.choices[codes].transpose(2, 0, 1))
    chosen, confidence = allowed.argmax(axis=0).astype(np.uint8), np.ones(size_px, np.float32)
    agreement = confidence
    if asked.any():
        looks = [teacher.look(frame.image, size_px, config.scales, config.flip) for teacher in teachers]
        chosen, confidence, agreement = _vote(itertools.chain(*looks), allowed, codes != FREE)
    labels = chosen.copy()
    own_confidence = config.confidence if config.own_confidence is None else config.own_confidence
    uncertain = confidence < np.where(codes != FREE, own_confidence, config.confidence)
    labels[uncertain] = np.where((codes != FREE) | known, KNOWN_UNCERTAIN, UNLABELLED)[uncertain]
    labels[~possible] = UNLABELLED
    return Labelled(image, labels, _as_byte(confidence * possible), _as_byte(agreement * possible))


def _vote(
    views: Iterator[Probabilities], allowed: npt.NDArray[np.bool_], own: npt.NDArray[np.bool_]
) -> tuple[LabelImage, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return class, confidence and agreement (H, W). allowed: bool (19, H, W). own: own labels exclude some."""
    total = np.zeros(allowed.shape, np.float32)
    seen: list[LabelImage] = []
    for view in views:
        possible = (view + _TINY) * allowed
        seen.append(possible.argmax(axis=0).astype(np.uint8))
        total += possible
    chosen = total.argmax(axis=0).astype(np.uint8)
    best = np.take_along_axis(total, chosen[np.newaxis].astype(np.intp), axis=0)[0]
    whole = np.where(own, total.sum(axis=0), np.float32(len(seen)))
    confidence = np.minimum(best / np.maximum(whole, _TINY), 1)
    agreement = np.mean([one == chosen for one in seen], axis=0, dtype=np.float32)
    return chosen, confidence.astype(np.float32), np.asarray(agreement)


def resized(image: RgbImage, size_px: tuple[int, int]) -> RgbImage:
    """Return a picture of (height, width), averaged if it shrinks, bilinear if it grows."""
    if image.shape[:2] == size_px:
        return image
    smooth = cv2.INTER_AREA if size_px[0] < image.shape[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size_px[::-1], interpolation=smooth), np.uint8)


def _resized_codes(codes: npt.NDArray[np.uint8], size_px: tuple[int, int]) -> npt.NDArray[np.uint8]:
    if codes.shape == size_px:
        return codes
    return np.asarray(cv2.resize(codes, size_px[::-1], interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)


def view_size(size_px: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return (height, width) of a view.

    It need not have the frame's shape. ESPNetv2 labels CamVid's validation frames, 480x360, better at 512x1024
    (accuracy .918) than at as many pixels of their own shape (.883), at scales 0.5 and 1 with mirrored views.
    """
    return max(1, round(size_px[0] * scale)), max(1, round(size_px[1] * scale))


def _as_byte(share: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    return np.asarray(np.rint(share * 255), np.uint8)
