"""Detection from Python: `Detector.load(bundle).detect(frame)`, and the frames of files to run it on."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np

from anomseg_ros.backends import open_requested_backend
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.core import detector as core_detector
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.core.frames import FrameSource
from anomseg_ros.core.labels import palette
from anomseg_ros.core.overlay import anomaly_mask, overlay
from anomseg_ros.core.picture_legend import with_class_legend, with_score_bar
from anomseg_ros.core.preprocess import check_frame, resized_scores
from anomseg_ros.core.resources import ROAD_BUNDLE, find_bundle
from anomseg_ros.core.road_region import limited_scores
from anomseg_ros.core.types import Mask, Outputs, RgbImage
from anomseg_ros.errors import ConfigError, FrameError
from anomseg_ros.scores import find_score, scale_of, threshold_of


class Detector(core_detector.Detector):
    """A bundle on a backend, with the pictures that are made of its outputs. A context manager: it closes the backend.

    `detect(frame)` returns the labels and scores of a frame, see `core.detector.Detector.detect`.
    """

    @classmethod
    def load(
        cls,
        bundle: str | Path = ROAD_BUNDLE,
        *,
        backend: str = "onnxruntime",
        provider: str = "cpu",
        device: int = 0,
        threads: int = 0,
    ) -> Detector:
        """Return the detector of a bundle.

        Args:
            bundle: name of a shipped bundle, or directory of a bundle.
            backend: onnxruntime, openvino, tensorrt or torch.
            provider: where the backend runs, such as cpu, gpu or cuda.
            device: index of the GPU.
            threads: processor threads for one frame, 0 for one per core.

        Raises:
            BundleError: there is no such bundle, or its files are damaged.
            ConfigError: there is no such backend or provider.
            BackendError: the backend is not installed, or cannot run the bundle.
        """
        loaded = load_bundle(find_bundle(bundle))
        options = BackendOptions(provider=provider, device=device, threads=threads)
        return cls(loaded, open_requested_backend(backend, loaded, options))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; the index in this tuple is the value of a pixel in `Outputs.labels`."""
        return tuple(each.name for each in self.bundle.contract.classes)

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of the anomaly scores, the default score first."""
        return tuple(self.bundle.contract.score_names)

    def threshold(self, score: str | None = None, target_fpr: float = 0.01) -> float | None:
        """Return the score above which a pixel is an anomaly, None if the bundle has none for this score.

        score: None for the default score. target_fpr: share of known pixels that may be above the threshold, on the
        frames that the bundle was calibrated with; on other roads the share differs.

        Raises ConfigError for an unknown score, or if every calibrated rate is above `target_fpr`.
        """
        found = threshold_of(self.bundle, self._score(score), target_fpr)
        return None if found is None else found.value

    def mask(
        self,
        outputs: Outputs,
        score: str | None = None,
        *,
        threshold: float | None = None,
        target_fpr: float = 0.01,
    ) -> Mask:
        """Return uint8 (H, W), 255 where a score is above the threshold; within the road where `outputs` has a region.

        Args:
            outputs: of `detect`.
            score: None for the default score.
            threshold: None for that of the bundle.
            target_fpr: see `threshold`.

        Raises:
            ConfigError: `outputs` is not of `detect` or lacks the score, or the bundle has no threshold for it and none
                is given.
        """
        name = self._given_score(outputs, score)
        above = self.threshold(name, target_fpr) if threshold is None else threshold
        if above is None:
            raise ConfigError(
                f"bundle {self.bundle.contract.name!r} has no threshold for the score {name!r}: give threshold=, or "
                "find one with `anomseg calibrate threshold`"
            )
        return anomaly_mask(limited_scores(outputs.scores[name], outputs.region, -np.inf), above)

    def overlay(self, frame: RgbImage, outputs: Outputs, mask: Mask | None = None, *, legend: bool = False) -> RgbImage:
        """Return the uint8 (H, W, 3) RGB frame tinted by class, with the anomalies of `mask` hatched and outlined.

        Components of `mask` that are too small to be seen are not drawn. legend: add the names of the classes below.

        mask: of `mask`, in the size of the outputs or of the frame.

        Raises FrameError for a frame that is not the one of `outputs`, ConfigError for a mask of another size, and if
        `outputs` is not of `detect` or has no labels.
        """
        _check_pair(frame, outputs)
        if outputs.labels is None:
            raise ConfigError("the outputs hold no labels; ask detect for them")
        if mask is not None:
            _check_mask(mask, (outputs.labels.shape, frame.shape[:2]))
        classes = self.bundle.contract.classes
        picture = overlay(frame, outputs.labels, mask, palette(classes))
        return with_class_legend(picture, classes, anomalies=mask is not None) if legend else picture

    def score_picture(
        self,
        frame: RgbImage,
        outputs: Outputs,
        score: str | None = None,
        *,
        legend: bool = False,
        threshold: float | None = None,
    ) -> RgbImage:
        """Return the uint8 (H, W, 3) RGB colours of a score in the size of the frame, dark where nothing is unusual.

        Args:
            frame: the frame of `outputs`.
            outputs: of `detect`.
            score: None for the default score.
            legend: add the colour bar below, with the bundle's thresholds.
            threshold: of the mask, marked on the bar.

        Raises:
            FrameError: the frame is not the one of `outputs`.
            ConfigError: `outputs` is not of `detect` or lacks the score.
        """
        _check_pair(frame, outputs)
        name = self._given_score(outputs, score)
        values = limited_scores(outputs.scores[name], outputs.region, find_score(name).lowest)
        scale = scale_of(self.bundle.contract, name)
        picture = scale.colored(resized_scores(values, *frame.shape[:2]))
        return with_score_bar(picture, scale, name, threshold) if legend else picture

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _given_score(self, outputs: Outputs, score: str | None) -> str:
        _check_outputs(outputs)
        name = self._score(score)
        if name not in outputs.scores:
            raise ConfigError(f"the outputs hold no score {name!r}, only {sorted(outputs.scores)}; ask detect for it")
        return name

    def _score(self, name: str | None) -> str:
        return self.score_names[0] if name is None else self.bundle.check_score(name)


def read_frames(*inputs: str | Path) -> FrameSource:
    """Return the frames of images, folders of images and videos: an iterable of (name, uint8 (H, W, 3) RGB).

    Raises FrameError, also while iterating, for a file that does not exist or is damaged.
    """
    for each in inputs:
        if not isinstance(each, str | Path):
            raise FrameError(f"read_frames takes paths of images, folders and videos, got {type(each).__name__}")
    return FrameSource([Path(each) for each in inputs])


def _check_outputs(outputs: Outputs) -> None:
    if not isinstance(outputs, Outputs):
        raise ConfigError(
            f"expected the outputs of `detect`, got {type(outputs).__name__}; call `outputs = detector.detect(frame)` "
            "first"
        )


def _check_pair(frame: RgbImage, outputs: Outputs) -> None:
    """Raise FrameError unless `frame` has the size of the frame that `outputs` are of."""
    check_frame(frame)
    _check_outputs(outputs)
    if outputs.frame_size not in (None, frame.shape[:2]):
        raise FrameError(
            f"the frame is {frame.shape[:2]}, the outputs are of a frame of {outputs.frame_size} (height, width); give "
            "the frame that `detect` was given"
        )


def _check_mask(mask: Mask, sizes: tuple[tuple[int, ...], ...]) -> None:
    if not isinstance(mask, np.ndarray) or mask.dtype != np.uint8 or mask.shape not in sizes:
        got = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        expected = " or ".join(dict.fromkeys(map(str, sizes)))
        raise ConfigError(f"a mask must be a uint8 array of {expected}, got {got}; give that of `detector.mask`")
