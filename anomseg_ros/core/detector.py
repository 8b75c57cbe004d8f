"""The detector: one bundle on one backend. Node, files, bags and evaluation all call this, so they cannot differ."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from anomseg_ros.core.bundle import LABELS_OUTPUT, Bundle
from anomseg_ros.core.preprocess import resized_labels, resized_scores, tensor_from_frame
from anomseg_ros.core.road_region import RoadRegion
from anomseg_ros.core.types import Mask, Outputs, RgbImage
from anomseg_ros.errors import BackendError


class Backend(Protocol):
    """An engine that runs a bundle's graph.

    `requested` and `actual` name the engine and provider asked for and really in use, such as `onnxruntime:cpu`.
    """

    @property
    def requested(self) -> str: ...

    @property
    def actual(self) -> str: ...

    def run(self, tensor: RgbImage, outputs: Sequence[str]) -> list[npt.NDArray[np.generic]]:
        """Run the graph on a uint8 (1, H, W, 3) tensor; return the named outputs, (1, H, W) each, in that order.

        Only what those outputs need is computed, where the engine can. Raises BackendError.
        """
        ...

    def close(self) -> None:
        """Release the engine's memory."""
        ...


def backend_facts(backend: Backend) -> dict[str, str]:
    """Return what a backend says of itself for diagnostics, in words: its `facts()`, where it has that method."""
    facts: dict[str, str] = getattr(backend, "facts", dict)()
    return facts


def backend_stages_ms(backend: Backend) -> dict[str, float]:
    """Return how long the stages of a backend's last frame took, milliseconds: its `stages_ms()`, where it has that."""
    stages: dict[str, float] = getattr(backend, "stages_ms", dict)()
    return stages


class Detector:
    """Labels and anomaly scores of camera frames."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle = bundle
        self.backend = backend
        self._closed = False

    def detect(
        self,
        frame: RgbImage,
        scores: str | Iterable[str] | None = None,
        *,
        labels: bool = True,
        source_size: bool = False,
        road: RoadRegion | None = None,
    ) -> Outputs:
        """Return labels and scores of a uint8 (H, W, 3) RGB frame, and the region of the road where `road` is given.

        scores: names to compute, or one name; None means all the bundle has. Outputs have the bundle's input size, or
        the frame's with `source_size`. Raises FrameError for an unusable frame, ConfigError for an unknown score,
        BackendError, also after `close`.
        """
        if self._closed:
            raise BackendError(
                f"the detector of bundle {self.bundle.contract.name!r} is closed; detect before `close`, and inside "
                "the `with` block, or load it again"
            )
        scores = (scores,) if isinstance(scores, str) else scores
        names = self.bundle.contract.score_names if scores is None else tuple(map(self.bundle.check_score, scores))
        tensor = tensor_from_frame(frame, self.bundle.contract.input)
        wanted = [LABELS_OUTPUT, *names] if labels or road is not None else [*names]
        started = time.perf_counter()
        arrays = dict(zip(wanted, self.backend.run(tensor, wanted), strict=True)) if wanted else {}
        network_ms = (time.perf_counter() - started) * 1e3
        region = None if road is None else road.find(np.asarray(arrays[LABELS_OUTPUT][0], np.uint8))
        if not labels:
            arrays.pop(LABELS_OUTPUT, None)
        return _outputs(arrays, region, network_ms, (frame.shape[0], frame.shape[1]), source_size)

    def warm_up(self, scores: Iterable[str] | None = None, *, labels: bool = True) -> None:
        """Run one grey frame, so that the first camera frame does not pay for allocation; arguments as in detect."""
        spec = self.bundle.contract.input
        self.detect(np.full((spec.height_px, spec.width_px, 3), 128, np.uint8), scores, labels=labels)

    def close(self) -> None:
        """Release the backend; `detect` raises BackendError afterwards."""
        self._closed = True
        self.backend.close()


def _outputs(
    arrays: dict[str, npt.NDArray[np.generic]],
    region: Mask | None,
    network_ms: float,
    frame_size: tuple[int, int],
    source_size: bool,
) -> Outputs:
    labels = arrays.pop(LABELS_OUTPUT, None)
    label_image = None if labels is None else np.asarray(labels[0], np.uint8)
    score_maps = {name: np.asarray(array[0], np.float32) for name, array in arrays.items()}
    if source_size:
        height, width = frame_size
        label_image = None if label_image is None else resized_labels(label_image, height, width)
        score_maps = {name: resized_scores(scores, height, width) for name, scores in score_maps.items()}
        region = None if region is None else resized_labels(region, height, width)
    return Outputs(label_image, score_maps, network_ms, region, frame_size)
