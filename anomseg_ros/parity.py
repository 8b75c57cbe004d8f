"""Compare a bundle's programs with the torch network and with the reference scores, pixel by pixel."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch

from anomseg_ros.backends import open_backend
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.core.bundle import LABELS_OUTPUT, PROGRAM_FILES, TORCH_FILE, Bundle, Contract
from anomseg_ros.core.detector import Backend
from anomseg_ros.core.preprocess import tensor_from_frame
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import ExportError
from anomseg_ros.networks.network import SegmentationNetwork, pixels_to_input
from anomseg_ros.networks.prediction import Prediction
from anomseg_ros.networks.score_head import ScoreHead, checked_fitted, features_of
from anomseg_ros.scores import find_score, reference_score
from anomseg_ros.scores.score import FeatureMaps

# In float32, a sum depends on the order of its terms. The measured differences are about 1e-6 of the logits.
RELATIVE_TOLERANCE = 5e-5
TYPICAL_LOGIT = 20.0
# Max-unpooling puts a value at the position of a maximum. Among pixels that are equal up to rounding, this position is
# arbitrary, so a few outputs differ: at most 0.24 % in ENet on real frames, and on noise 0.011 % in the published ENet,
# 0.3 % in those that were adapted to a drive. A wrong graph differs in most of the pixels.
UNPOOLING_SHARE = 0.005
# Scores of clusters jump where a feature is nearly as far from two centres.
JUMPING_SHARE = 0.01


@dataclass(frozen=True)
class Parity:
    """The largest difference between a bundle's programs and the network on `frames` frames.

    label_disagreement: share of labels that differ.
    """

    frames: int
    max_score_difference: float
    label_disagreement: float


def check_parity(bundle: Bundle, network: SegmentationNetwork, frames: Sequence[RgbImage]) -> Parity:
    """Compare each of the bundle's programs with the torch network and the reference scores on frames of any size.

    A score may differ by 1e-3, or by 5e-5 of the largest logit if that is more, times its steepness. One that jumps may
    differ more in JUMPING_SHARE of the pixels, and is left out of the largest difference. A label may differ only where
    the two largest logits are that close. Networks with max-unpooling may differ more in UNPOOLING_SHARE of the pixels.
    Raises ExportError with the output and the frame.
    """
    backends = _open_programs(bundle)
    features = ScoreHead(network, bundle.contract.score_names, bundle.contract.void_class, 1.0).features
    max_difference, different_labels, pixels = 0.0, dict.fromkeys(backends, 0), 0
    ignored_share = UNPOOLING_SHARE if network.max_unpooling else 0.0
    for index, frame in enumerate(frames):
        tensor = tensor_from_frame(frame, bundle.contract.input)
        with torch.inference_mode():
            prediction = network.predict(pixels_to_input(torch.from_numpy(tensor.copy())), features)
        frame_parity = _FrameParity(bundle.contract, network, prediction, index, ignored_share)
        for program, backend in backends.items():
            labels, *scores = backend.run(tensor, [LABELS_OUTPUT, *bundle.contract.score_names])
            different_labels[program] += frame_parity.check_labels(np.asarray(labels[0]))
            for name, score in zip(bundle.contract.score_names, scores, strict=True):
                max_difference = max(max_difference, frame_parity.check_score(name, np.asarray(score[0])))
        pixels += tensor.shape[1] * tensor.shape[2]
    for backend in backends.values():
        backend.close()
    return Parity(len(frames), max_difference, max(different_labels.values()) / pixels)


def _open_programs(bundle: Bundle) -> dict[str, Backend]:
    """Return program file -> backend that runs it on the CPU, without compiling it."""
    options = {TORCH_FILE: BackendOptions(provider="eager")}
    return {
        program: open_backend(name, bundle, options.get(program))
        for program, name in PROGRAM_FILES.items()
        if program in bundle.contract.files
    }


@dataclass(frozen=True)
class _FrameParity:
    """Compares the outputs for one frame with those of the torch network.

    frame: index for messages. ignored_share: share of the pixels that may be outside the tolerance.
    """

    contract: Contract
    network: SegmentationNetwork
    prediction: Prediction
    frame: int
    ignored_share: float

    @functools.cached_property
    def logits(self) -> npt.NDArray[np.float32]:
        """Logits (C, H, W) of all classes."""
        return self.prediction.pixel_logits()[0].numpy()

    def check_labels(self, labels: npt.NDArray[np.generic]) -> int:
        """Return how many labels differ. Raises ExportError if labels differ where logits are not nearly equal."""
        train_ids = np.array([info.train_id for info in self.contract.classes], np.uint8)
        is_different = labels != train_ids[self.logits.argmax(axis=0)]
        second, first = np.partition(self.logits, -2, axis=0)[-2:]
        is_wrong = is_different & (first - second > self._tolerance())
        self._require_few(is_wrong, LABELS_OUTPUT, "differ from the torch network")
        return int(is_different.sum())

    def check_score(self, name: str, score: npt.NDArray[np.generic]) -> float:
        """Return the largest difference from the reference score. Raises ExportError if it is too large."""
        contract, formula = self.contract, find_score(name)
        fitted = checked_fitted(self.network, formula, contract.known_count)
        maps = features_of(self.prediction, formula.choose_features(self.network.feature_names))
        features = FeatureMaps(tuple(one[0].numpy() for one in maps.maps), maps.padded_px)
        evidence = self.prediction.pixel_evidence()[0].numpy() if formula.needs_evidence else None
        values = (contract.void_class, contract.temperature, fitted, features, evidence)
        reference = reference_score(name, self.logits, *values)
        difference = np.abs(np.asarray(score, np.float32) - reference)
        if formula.label_reach_px:
            difference[self._near_ties(formula.label_reach_px)] = 0.0
        max_difference = float(np.nan_to_num(difference, nan=np.inf).max())
        allowed = self._tolerance() * formula.steepness(fitted)
        fault = f"differ from the reference by up to {max_difference:.3g}"
        self._require_few(~(difference <= allowed), f"score {name!r}", fault, JUMPING_SHARE if formula.jumps else 0.0)
        return 0.0 if formula.jumps else max_difference

    def _near_ties(self, reach_px: int) -> npt.NDArray[np.bool_]:
        """Return bool (H, W): pixels within reach_px of a pixel whose two largest known logits are nearly equal."""
        void = self.contract.void_class
        known_logits = self.logits if void is None else np.delete(self.logits, void, axis=0)
        second, first = np.partition(known_logits, -2, axis=0)[-2:]
        ties = (first - second <= self._tolerance()).astype(np.uint8)
        return cv2.dilate(ties, np.ones((2 * reach_px + 1,) * 2, np.uint8)) > 0

    def _require_few(self, is_wrong: npt.NDArray[np.bool_], output: str, fault: str, share: float = 0.0) -> None:
        if is_wrong.mean() > max(share, self.ignored_share):
            raise ExportError(
                f"bundle {self.contract.name!r}: frame {self.frame}: {int(is_wrong.sum())} of {is_wrong.size} pixels "
                f"of {output} {fault} (allowed {self._tolerance():.3g}); the exported graph is wrong, nothing was "
                "written"
            )

    def _tolerance(self) -> float:
        return RELATIVE_TOLERANCE * max(TYPICAL_LOGIT, float(np.abs(self.logits).max()))
