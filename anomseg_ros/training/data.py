"""Batches for the trainer: which frame comes when follows from seed and step alone, so that any run can be repeated."""

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
from anomseg_ros.datasets.cut_paste import OUTLIER, paste_objects
from anomseg_ros.datasets.outlier_mixture import open_objects
from anomseg_ros.datasets.outlier_objects import ObjectSource
from anomseg_ros.datasets.paste_places import draw_horizon
from anomseg_ros.datasets.transforms import AugmentConfig, augment
from anomseg_ros.errors import AnomsegError
from anomseg_ros.training.config import CutPasteConfig, TrainConfig
from anomseg_ros.training.frame_cache import Frames

OTHER_FRAMES = 2
"""Frames that pasted objects may take parts of."""

PADDED = 253
"""Label of what augmentation puts beside a shrunken frame: never the void class, which real pixels make up."""

PASTED_SHARE = 0.05
"""Share of a frame that pasted objects cover on average, as measured with PasteConfig's defaults."""


@dataclass(frozen=True)
class Batch:
    """images: uint8 (B, H, W, 3) RGB. target: int64 (B, H, W), classes, 252 known without a class, 254 outlier, 255
    ignored. names: B ids. clean: the images before anything was pasted into them, where there is a teacher to see them.
    """

    images: Tensor
    target: Tensor
    names: tuple[str, ...]
    clean: Tensor | None = None

    def pin_memory(self) -> Batch:
        """Return a copy that goes to a GPU while the processor works on; DataLoader asks for it."""
        clean = None if self.clean is None else self.clean.pin_memory()
        return Batch(self.images.pin_memory(), self.target.pin_memory(), self.names, clean)


@dataclass(frozen=True)
class Plan:
    """Which samples each step takes: one endless row of epochs, each a fresh permutation of all frames."""

    frames: int
    seed: int
    batch_size: int
    accumulate: int
    processes: int
    epochs: int

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
        """Yield (position in the row, frame) for every batch of one process, from a step on."""
        start = first_step * self.step_samples
        order, epoch = np.empty(0, np.int64), -1
        for batch in range((self.steps - first_step) * self.accumulate):
            at = start + (batch * self.processes + process) * self.batch_size
            chosen = []
            for position in range(at, at + self.batch_size):
                if position // self.frames != epoch:
                    epoch = position // self.frames
                    order = np.random.default_rng([self.seed, 1, epoch]).permutation(self.frames)
                chosen.append((position, int(order[position % self.frames])))
            yield chosen


class _Batches(Sampler[list[tuple[int, int]]]):
    """The plan's batches, as torch's DataLoader wants them."""

    def __init__(self, plan: Plan, first_step: int, process: int) -> None:
        self.plan, self.first_step, self.process = plan, first_step, process

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self.plan.batches(self.first_step, self.process)

    def __len__(self) -> int:
        return (self.plan.steps - self.first_step) * self.plan.accumulate


Sample = tuple[Tensor, Tensor, str, "Tensor | None"]


class TrainingSamples(Dataset["Sample | AnomsegError"]):
    """Augmented samples by (position, frame): images uint8 (H, W, 3), targets uint8 (H, W), names, clean images.

    An error is returned rather than raised: what a worker process raises arrives with its traceback for a message.
    """

    def __init__(self, frames: Frames, config: TrainConfig, void_class: int | None) -> None:
        self.frames = frames
        self.config: AugmentConfig = config.augment
        self.cut_paste: CutPasteConfig = config.data.cut_paste
        self.objects: ObjectSource | None = objects_of(self.cut_paste)
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
        # A crop need not show the road's end, its frame does.
        on_road = self.objects is not None and config.placement == "road"
        horizon_px = draw_horizon(truth, classes, config, rng) if on_road else None

        def paste(image: RgbImage, labels: LabelImage, horizon_px: float) -> tuple[RgbImage, LabelImage]:
            nonlocal clean
            clean = torch.from_numpy(image) if self.for_teachers else None  # pasting copies
            if self.objects is None or rng.random() >= self.cut_paste.probability:
                return image, labels
            chosen = [int(i) for i in rng.integers(0, len(self.frames), OTHER_FRAMES)]
            others, other_labels = ([pixels[i] for i in chosen] for pixels in (self.frames.images, self.frames.labels))
            return paste_objects(image, labels, self.objects, rng, config, others, classes, horizon_px, other_labels)

        image, labels = augment(frame, truth, self.config, rng, PADDED, paste, horizon_px)
        target = np.asarray(cv2.LUT(labels, self.table), np.uint8)
        return torch.from_numpy(image), torch.from_numpy(target), self.frames.ids[index], clean


def objects_of(config: CutPasteConfig) -> ObjectSource | None:
    """Return the source of outlier objects that a configuration asks for, None where it asks for none."""
    if config.probability == 0:
        return None
    return open_objects(config.sources)


def target_table(void: str, void_class: int | None) -> npt.NDArray[np.uint8]:
    """Return uint8 (256,): label value -> target value, for config.VOID_SOURCES.

    Outliers that are not the void class stay outliers: classification ignores them, the outlier terms do not.
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

    Pixels of pasted outliers are not in the frames: the void class gets what one object of the middle size on the
    configured share of frames would cover.
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
    """Yield the batches of one process from a step on, made `config.data.workers` processes ahead of the trainer."""
    samples = TrainingSamples(frames, config, void_class)
    workers = config.data.workers
    loader = DataLoader(
        samples,
        batch_sampler=_Batches(plan, first_step, process),
        num_workers=workers,
        collate_fn=_collate,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_one_thread,
        # Without its own, the loader draws from the generator of dropout, once wherever a run is started or resumed.
        generator=torch.Generator(),
        pin_memory=config.run.accelerator != "cpu" and torch.cuda.is_available(),
    )
    for batch in loader:
        if isinstance(batch, AnomsegError):
            raise batch
        yield batch


def _one_thread(_: int) -> None:
    # The workers are the parallelism; OpenCV's own threads would take cores from the trainer.
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
