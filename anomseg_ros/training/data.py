"""Batches for the trainer. Seed and step alone decide which frames a batch has, so that runs can be repeated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from anomseg_ros.core.labels import UNLABELLED
from anomseg_ros.core.types import LabelImage, RgbImage
from anomseg_ros.datasets.transforms import AugmentConfig, augment
from anomseg_ros.errors import AnomsegError
from anomseg_ros.outliers.cut_paste import OUTLIER, paste_objects
from anomseg_ros.outliers.mixture import open_objects
from anomseg_ros.outliers.places import draw_horizon
from anomseg_ros.training.config import CutPasteConfig, TrainConfig
from anomseg_ros.training.frame_cache import Frames

OTHER_FRAMES = 2
"""Further frames per sample, for objects that are cut out of frames."""

PADDED = 253
"""Label of the padding beside a shrunken frame; padding is never the void class."""

PASTED_SHARE = 0.05
"""Mean share of a frame that pasted objects cover, measured with PasteConfig's defaults."""


@dataclass(frozen=True)
class Batch:
    """Augmented frames and their targets."""

    images: Tensor  # uint8 (B, H, W, 3), RGB
    target: Tensor  # int64 (B, H, W): classes, 252 known without a class, 254 outlier, 255 ignored
    names: tuple[str, ...]  # ids of the B frames
    clean: Tensor | None = None  # the images without pasted objects, for teachers; None without teachers

    def pin_memory(self) -> Batch:
        """Return a copy in pinned memory, which DataLoader asks for: it is copied to a GPU in the background."""
        clean = None if self.clean is None else self.clean.pin_memory()
        return Batch(self.images.pin_memory(), self.target.pin_memory(), self.names, clean)


@dataclass(frozen=True, eq=False)
class Plan:
    """The samples of each step: an endless row of epochs, each a new permutation of all frames."""

    frames: int  # samples of an epoch
    seed: int
    batch_size: int
    accumulate: int
    processes: int
    epochs: int
    repeats: npt.NDArray[np.int64] | None = None  # int64 (frames,): the frame of each sample, if frames repeat

    @property
    def step_samples(self) -> int:
        """Samples of one optimizer step over all processes."""
        return self.batch_size * self.accumulate * self.processes

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return -(-self.epochs * self.frames // self.step_samples)

    def epoch_of(self, step: int) -> int:
        """Return the epoch (from 0) that a step's first sample belongs to."""
        return step * self.step_samples // self.frames

    def batches(self, first_step: int, process: int) -> Iterator[list[tuple[int, int]]]:
        """Yield the (position in the row, frame) pairs of each batch of one process, from a step on."""
        start = first_step * self.step_samples
        order, epoch = np.empty(0, np.int64), -1
        for batch in range((self.steps - first_step) * self.accumulate):
            at = start + (batch * self.processes + process) * self.batch_size
            chosen = []
            for position in range(at, at + self.batch_size):
                if position // self.frames != epoch:
                    epoch = position // self.frames
                    order = np.random.default_rng([self.seed, 1, epoch]).permutation(self.frames)
                    order = order if self.repeats is None else self.repeats[order]
                chosen.append((position, int(order[position % self.frames])))
            yield chosen


class _Batches(Sampler[list[tuple[int, int]]]):
    """The plan's batches, for torch's DataLoader."""

    def __init__(self, plan: Plan, first_step: int, process: int) -> None:
        self.plan, self.first_step, self.process = plan, first_step, process

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self.plan.batches(self.first_step, self.process)

    def __len__(self) -> int:
        return (self.plan.steps - self.first_step) * self.plan.accumulate


Sample = tuple[Tensor, Tensor, str, "Tensor | None"]


class TrainingSamples(Dataset["Sample | AnomsegError"]):
    """Augmented samples by (position, frame): images uint8 (H, W, 3), targets uint8 (H, W), names, clean images.

    Errors are returned, not raised: the message of an error that a worker process raises holds its traceback.
    """

    def __init__(self, frames: Frames, config: TrainConfig, void_class: int | None) -> None:
        self.frames = frames
        self.config: AugmentConfig = config.augment
        self.cut_paste: CutPasteConfig = config.data.cut_paste
        self.objects = open_objects(self.cut_paste.sources) if self.cut_paste.probability else None
        self.seed = config.run.seed
        self.table = target_table(config.data.void, void_class)
        self.for_teachers = bool(config.teachers)

    def __getitem__(self, key: tuple[int, int]) -> Sample | AnomsegError:
        """Return image, target, name and clean image; the same key gives the same sample in any process."""
        try:
            return self._sample(*key)
        except AnomsegError as error:
            return error

    def _sample(self, position: int, index: int) -> Sample:
        rng = np.random.default_rng([self.seed, 2, position])
        frame, truth, config = self.frames.images[index], self.frames.labels[index], self.cut_paste.paste
        classes, clean = self.frames.classes, None
        # A crop may not show the road's end, so it is drawn for the frame.
        on_road = self.objects is not None and config.placement == "road"
        horizon_px = draw_horizon(truth, classes, config, rng) if on_road else None

        def paste(image: RgbImage, labels: LabelImage, horizon_px: float) -> tuple[RgbImage, LabelImage]:
            nonlocal clean
            clean = torch.from_numpy(image) if self.for_teachers else None  # pasting copies the image
            if self.objects is None or rng.random() >= self.cut_paste.probability:
                return image, labels
            if bool((labels == OUTLIER).any()):  # the crop has outliers of its own
                return image, labels
            chosen = [int(i) for i in rng.integers(0, len(self.frames), OTHER_FRAMES)]
            others, other_labels = ([pixels[i] for i in chosen] for pixels in (self.frames.images, self.frames.labels))
            return paste_objects(image, labels, self.objects, rng, config, others, classes, horizon_px, other_labels)

        image, labels = augment(frame, truth, self.config, rng, PADDED, paste, horizon_px)
        target = np.asarray(cv2.LUT(labels, self.table), np.uint8)
        return torch.from_numpy(image), torch.from_numpy(target), self.frames.ids[index], clean


def target_table(void: str, void_class: int | None) -> npt.NDArray[np.uint8]:
    """Return uint8 (256,): label value -> target value, for one of config.VOID_SOURCES.

    Outliers that are not the void class stay outliers, which classification ignores and the outlier terms use.
    """
    table = np.arange(256, dtype=np.uint8)
    table[PADDED] = UNLABELLED
    if void_class is not None and void in ("outliers", "both"):
        table[OUTLIER] = void_class
    if void_class is not None and void in ("unlabelled", "both"):
        table[UNLABELLED] = void_class
    return table


def class_shares(frames: Frames, config: TrainConfig, void_class: int | None) -> npt.NDArray[np.float64]:
    """Return the share of each class (C,) among the counted pixels of the training frames.

    The frames do not hold pasted outliers yet. The void class gets the share that objects of middle size would cover on
    the configured share of frames.
    """
    known = len(frames.classes)
    counts = frames.counts[:known].astype(np.float64)
    if void_class is not None:
        void = config.data.void
        pasted = config.data.cut_paste.probability * PASTED_SHARE * counts.sum()
        outliers = frames.counts[OUTLIER] + pasted if void in ("outliers", "both") else 0.0
        unlabelled = frames.counts[UNLABELLED] if void in ("unlabelled", "both") else 0.0
        counts = np.append(counts, outliers + unlabelled)
    shares: npt.NDArray[np.float64] = counts / max(float(counts.sum()), 1.0)
    return shares


def training_batches(
    frames: Frames, config: TrainConfig, plan: Plan, void_class: int | None, first_step: int, process: int
) -> Iterator[Batch]:
    """Yield the batches of one process from a step on; `config.data.workers` processes make them in advance."""
    samples = TrainingSamples(frames, config, void_class)
    workers = config.data.workers
    loader = DataLoader(
        samples,
        batch_sampler=_Batches(plan, first_step, process),
        num_workers=workers,
        collate_fn=_collate,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_one_thread,
        # Otherwise the loader draws from dropout's generator each time a run is started or resumed.
        generator=torch.Generator(),
        pin_memory=config.run.accelerator != "cpu" and torch.cuda.is_available(),
    )
    for batch in loader:
        if isinstance(batch, AnomsegError):
            raise batch
        yield batch


def _one_thread(_: int) -> None:
    # Workers run in parallel already; threads of theirs would take cores from the trainer.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _collate(samples: list[Sample | AnomsegError]) -> Batch | AnomsegError:
    for sample in samples:
        if isinstance(sample, AnomsegError):
            return sample
    good = [sample for sample in samples if not isinstance(sample, AnomsegError)]
    images, targets, names, clean = zip(*good, strict=True)
    stacked = None if clean[0] is None else torch.stack(clean)
    return Batch(torch.stack(images), torch.stack(targets).long(), names, stacked)
