"""Common corruptions of frames, to measure a detector in bad weather and with bad cameras.

They are those of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations" (ICLR 2019): 15 kinds and 4 more, each at five severities. As in Michaelis et al. ("Benchmarking
Robustness in Object Detection", 2019), they apply to driving frames at their own size. The package imagecorruptions
computes them. This module makes them repeatable: every frame, kind and severity has its own seed.

Use them for measuring only. Training on them would invalidate the measurement; datasets/weather.py is for training.
"""

from __future__ import annotations

import hashlib
import importlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any, cast

import numpy as np

from anomseg_ros.core.types import RgbImage
from anomseg_ros.datasets.dataset import Dataset, LabelledFrame
from anomseg_ros.datasets.wrapped import WrappedDataset
from anomseg_ros.errors import ConfigError, DatasetError, unknown_name

GROUPS: dict[str, tuple[str, ...]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    "extra": ("speckle_noise", "gaussian_blur", "spatter", "saturate"),
}
"""The paper's groups; `extra` has the four kinds that the paper uses for validation."""

KINDS = tuple(kind for kinds in GROUPS.values() for kind in kinds)
COLLECTIONS = {**GROUPS, "common": tuple(kind for kind in KINDS if kind not in GROUPS["extra"]), "all": KINDS}
"""Name -> kinds. common: the paper's 15."""

SEVERITIES = (1, 2, 3, 4, 5)

LIBRARY = "imagecorruptions-imaug"
REQUIREMENT = f"{LIBRARY}>=1.1.5,<2"
"""The maintained fork; imagecorruptions (1.1.2, 2020) fails with today's NumPy and scikit-image."""

_LEAST_SIDE_PX = 32
_SEED_ARGUMENT = ("impulse_noise", "glass_blur")
"""Kinds whose random numbers do not come from NumPy's global generator."""

_GLOBAL_STATE = threading.Lock()


@dataclass(frozen=True)
class Corruption:
    """One kind at one severity, 1 to 5."""

    kind: str
    severity: int

    def __post_init__(self) -> None:
        """Raise ConfigError for an unknown kind or severity."""
        if self.kind not in KINDS:
            raise ConfigError(unknown_name("corruption", self.kind, KINDS))
        if self.severity not in SEVERITIES:
            raise ConfigError(f"severity is {self.severity!r}; expected one of {', '.join(map(str, SEVERITIES))}")

    def __str__(self) -> str:
        """Return, for example, `fog 3`."""
        return f"{self.kind} {self.severity}"


def corruptions_of(names: Sequence[str], severities: Sequence[int]) -> tuple[Corruption, ...]:
    """Return every kind of `names` at every severity, kinds in the paper's order. Raises ConfigError.

    names: kinds, groups (`weather`), `common` for the paper's 15, or `all`.
    """
    for name in names:
        if name not in COLLECTIONS and name not in KINDS:
            raise ConfigError(unknown_name("corruption", name, (*KINDS, *COLLECTIONS)))
    wanted = {kind for name in names for kind in COLLECTIONS.get(name, (name,))}
    return tuple(Corruption(kind, severity) for kind in KINDS if kind in wanted for severity in sorted(set(severities)))


def library_version() -> str:
    """Return the version of the package. Raises DatasetError with the install command where it is missing."""
    try:
        importlib.import_module("imagecorruptions")
        return metadata.version(LIBRARY)
    except (ImportError, metadata.PackageNotFoundError) as error:
        # Its opencv-python would overwrite opencv-python-headless and needs a display library.
        raise DatasetError(
            f"corruptions need the package {LIBRARY} ({error}): pip install 'anomseg_ros[corruptions]', then pip "
            f"install --no-deps '{REQUIREMENT}'; without --no-deps it would put another OpenCV over this one"
        ) from error


def corrupted(image: RgbImage, corruption: Corruption, seed: int) -> RgbImage:
    """Return a corrupted copy of an image, uint8 (H, W, 3) RGB of 32 pixels or more each way.

    The same seed (0 to 2**32 - 1) gives the same result in any thread and process. Raises DatasetError for smaller
    images and where the library is missing.
    """
    if min(image.shape[:2]) < _LEAST_SIDE_PX:
        raise DatasetError(
            f"an image of {image.shape[1]}x{image.shape[0]} is too small for {corruption}; expected at least "
            f"{_LEAST_SIDE_PX}x{_LEAST_SIDE_PX}"
        )
    library = _library()
    options = {"seed": seed} if corruption.kind in _SEED_ARGUMENT else {}
    # The library draws from NumPy's global generator, which all threads share.
    with _GLOBAL_STATE:
        state = np.random.get_state()
        try:
            np.random.seed(seed)
            changed = library.corrupt(
                np.ascontiguousarray(image), corruption.severity, corruption_name=corruption.kind, **options
            )
        finally:
            np.random.set_state(state)
    return np.asarray(changed, np.uint8)


def corrupt_dataset(dataset: Dataset, corruption: Corruption) -> Dataset:
    """Return the same dataset with every image corrupted and unchanged labels and masks."""
    return cast(Dataset, _CorruptedFrames(dataset, corruption))


class _CorruptedFrames(WrappedDataset):
    def __init__(self, dataset: Dataset, corruption: Corruption) -> None:
        super().__init__(dataset)
        self._corruption = corruption

    def __reduce__(self) -> tuple[Any, ...]:
        return _CorruptedFrames, (self._dataset, self._corruption)

    def load(self, index: int) -> LabelledFrame:
        """Return one frame with its image corrupted; see Dataset.load."""
        frame = self._dataset.load(index)
        return replace(frame, image=corrupted(frame.image, self._corruption, _seed(frame.id, self._corruption)))


def _seed(frame_id: str, corruption: Corruption) -> int:
    digest = hashlib.sha256(f"{frame_id}\0{corruption}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:4], "little")


def _library() -> Any:
    library_version()
    inner = importlib.import_module("imagecorruptions.corruptions")
    # It prints a message for enlarged images that are a pixel short, which it handles.
    inner.print = lambda *values: None  # type: ignore[attr-defined]
    return importlib.import_module("imagecorruptions")
