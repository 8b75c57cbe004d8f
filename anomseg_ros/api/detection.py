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
from anomseg_ros.core.preprocess import resized_scores
from anomseg_ros.core.resources import ROAD_BUNDLE, find_bundle
from anomseg_ros.core.road_region import limited_scores
from anomseg_ros.core.types import Mask, Outputs, RgbImage
from anomseg_ros.errors import ConfigError
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
            ConfigError: `outputs` lacks the score, or the bundle has no threshold for it and none is given.
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

        Raises ConfigError if `outputs` has no labels.
        """
        if outputs.labels is None:
            raise ConfigError("the outputs hold no labels; ask detect for them")
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
            frame: the frame of `outputs`, for its size.
            outputs: of `detect`.
            score: None for the default score.
            legend: add the colour bar below, with the bundle's thresholds.
            threshold: of the mask, marked on the bar.

        Raises:
            ConfigError: `outputs` lacks the score.
        """
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
    return FrameSource([Path(each) for each in inputs])
