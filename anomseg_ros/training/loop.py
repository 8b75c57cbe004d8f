"""One training run on Lightning Fabric: batches in, averaged weights out, resumable at any moment.

    output/config.yaml          everything that decides the run
    output/state.pt             what --resume goes on from
    output/last.safetensors     the (averaged) weights after the last saved step; best.safetensors: at the best mIoU
    output/log.jsonl, tensorboard/    what happened

The order of frames, their augmentation and dropout follow from the seed and the step alone. So a resumed run on a
processor repeats an uninterrupted one bit for bit, with the same number of threads.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from anomseg_ros.core.labels import ClassInfo
from anomseg_ros.datasets import open_dataset
from anomseg_ros.datasets.base import Dataset
from anomseg_ros.errors import ConfigError
from anomseg_ros.networks.base import AuxiliarySegmentationNetwork, SegmentationNetwork
from anomseg_ros.networks.checkpoints import load_checkpoint, save_checkpoint
from anomseg_ros.training.config import DataConfig, TrainConfig
from anomseg_ros.training.data import Batch, Plan, class_shares, training_batches
from anomseg_ros.training.folder import claim_folder, keep_result, kept_frames_folder
from anomseg_ros.training.frame_cache import Frames, cached_frames
from anomseg_ros.training.journal import Journal
from anomseg_ros.training.loss_watch import LossWatch
from anomseg_ros.training.processes import start_processes
from anomseg_ros.training.schedule import learning_rate, make_optimizer, set_learning_rate
from anomseg_ros.training.segmentation_loss import SegmentationLoss
from anomseg_ros.training.start import set_training_mode, start_network
from anomseg_ros.training.state import STATE_FILE, Average, Position, load_state, save_state
from anomseg_ros.training.stopwatch import Stopwatch
from anomseg_ros.training.validation import validate


@dataclass(frozen=True)
class Progress:
    """How far one stage ("decode", "train", "validate") is. seconds_left: of the whole run, None while unknown."""

    stage: str
    done: int
    total: int
    loss: float | None = None
    miou: float | None = None
    seconds_left: float | None = None


Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Sources:
    """Checkpoint files that a run builds on; see InitialConfig and TeacherConfig. teachers: in the order there."""

    initial: Path | None = None
    teachers: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Result:
    """A finished run. checkpoint: the best averaged weights, or the last ones where nothing was validated.

    waited: share of the time that the trainer waited for frames, None where there was nothing left to do.
    """

    checkpoint: Path
    miou: float | None
    steps: int
    seconds: float
    void_class: int | None
    num_classes: int
    waited: float | None = None
    is_first_process: bool = True


def train(config: TrainConfig, output: Path, sources: Sources, report: Report, resume: bool = True) -> Result:
    """Train by `config` into the folder `output`; return the result.

    With `resume`, goes on from the folder's last state. Raises ConfigError where the folder holds another
    configuration's run, DatasetError for frames that cannot be trained on, and TrainingError where the loss is not
    finite any more or the disk is full; the last good state stays.
    """
    fabric = start_processes(config.run)
    if not fabric.is_global_zero:
        report = _say_nothing
    claim_folder(output, config, resume)
    run = _prepare(config, output, sources, fabric, report)
    try:
        run.restore()
        run.go_on(report)
    finally:
        run.journal.close()
    result = run.result()
    if result.is_first_process and result.waited is not None:  # a run that was finished before has kept its own
        keep_result(output, {**asdict(result), "checkpoint": result.checkpoint.name})
    return result


def _say_nothing(_: Progress) -> None:
    pass


def classes_of(dataset: Dataset) -> tuple[ClassInfo, ...]:
    """Return the classes that a dataset's labels know; ConfigError where it has no class labels."""
    if dataset.classes is None:
        raise ConfigError(f"{dataset.name} has no class labels to train on; choose one with, such as camvid")
    return dataset.classes


def open_sets(data: DataConfig) -> tuple[Dataset, Dataset]:
    """Return the training and the validation frames; nothing is read yet. Raises ConfigError and DatasetError."""
    if not data.path and data.dataset != "synthetic":  # which needs no files
        raise ConfigError(f"no folder of {data.dataset} was given; add --data FOLDER (or --set data.path=FOLDER)")
    return (
        open_dataset(data.dataset, data.path, data.train_split or None),
        open_dataset(data.dataset, data.validation_path or data.path, data.validation_split or None),
    )


def _prepare(config: TrainConfig, output: Path, sources: Sources, fabric: Fabric, report: Report) -> _Run:
    """Open the frames and build everything that the steps need."""
    train_set, validation_set = open_sets(config.data)
    frames = _decoded(config, train_set, fabric, report)
    validation = _decoded(config, validation_set, fabric, report)
    known = len(frames.classes)
    void_class = None if config.data.void == "none" else known
    outputs = known + (void_class is not None)
    network = start_network(config.network, outputs, config.run.seed, sources.initial, known)
    teachers = [
        load_checkpoint(path, teacher.network, teacher.num_classes or outputs)
        for teacher, path in zip(config.teachers, sources.teachers, strict=True)
    ]
    return _Run(config, output, fabric, network, frames, validation, void_class, teachers)


def _decoded(config: TrainConfig, dataset: Dataset, fabric: Fabric, report: Report) -> Frames:
    folder = kept_frames_folder() if config.data.cache == "disk" else None
    size_px = (config.data.height_px, config.data.width_px)
    with fabric.rank_zero_first():  # one process decodes, the others read what it kept
        return cached_frames(
            dataset,
            classes_of(dataset),
            size_px,
            folder,
            config.data.allow_partial,
            lambda done, total: report(Progress("decode", done, total)),
        )


class _Trainee(nn.Module):
    """The network as the step runs it: pixels in, logits of all heads out. One module, so that it can be wrapped."""

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        self.network = network
        # Heads that nothing is learnt in only take time, and DDP waits in vain for their gradients.
        self.with_auxiliary = any(parameter.requires_grad for parameter in network.auxiliary_heads.parameters())

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """pixels: uint8 (B, H, W, 3)."""
        images = pixels.permute(0, 3, 1, 2).to(torch.float32) / 255.0
        if self.with_auxiliary and isinstance(self.network, AuxiliarySegmentationNetwork):
            return self.network.forward_with_auxiliary(images)
        return (self.network(images),)


class _Run:
    """Everything that one run holds while it goes on."""

    def __init__(
        self,
        config: TrainConfig,
        output: Path,
        fabric: Fabric,
        network: SegmentationNetwork,
        frames: Frames,
        validation: Frames,
        void_class: int | None,
        teachers: Sequence[SegmentationNetwork],
    ) -> None:
        self.config, self.output, self.fabric = config, output, fabric
        self.frames, self.validation, self.void_class = frames, validation, void_class
        run = config.run
        self.plan = Plan(len(frames), run.seed, run.batch_size, run.accumulate, fabric.world_size, run.epochs)
        if run.channels_last:
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if fabric.world_size > 1 and run.sync_batch_norm and fabric.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        if not config.loss.auxiliary_weight:
            network.auxiliary_heads.requires_grad_(False)
        self.network = network
        trainee: nn.Module = _Trainee(network)
        self.averaged: SegmentationNetwork = copy.deepcopy(network).eval() if run.ema_decay else network
        optimizer = make_optimizer(config.optimizer, network, run.precision)
        if run.compile:
            trainee = torch.compile(trainee)  # type: ignore[assignment]
        self.trainee, self.optimizer = fabric.setup(trainee, optimizer)
        self.averaged = self.averaged.to(fabric.device)
        self.average = Average(network, self.averaged, run.ema_decay) if run.ema_decay else None
        self.teachers = [teacher.to(fabric.device).eval() for teacher in teachers]
        # Of pasted objects the teachers see nothing, so that their own void output would be wrong there.
        pastes = config.data.cut_paste.probability > 0
        self.taught = len(frames.classes) if pastes or void_class is None else void_class + 1
        shares = class_shares(frames, config, void_class)
        self.loss = SegmentationLoss(config.loss, shares, void_class).to(fabric.device)
        self.position = Position(processes=fabric.world_size, source_layout=network.source_layout)
        self.last_loss: float | None = None
        self.watch = LossWatch(every=1 if fabric.device.type == "cpu" else 10)
        self.clock = Stopwatch(fabric.device)
        self.journal = Journal(output if fabric.is_global_zero else None)

    def restore(self) -> None:
        """Take up the folder's last state, where there is one."""
        if (self.output / STATE_FILE).is_file():
            kept, precision = self.averaged if self.average else None, self.fabric.strategy.precision
            self.position = load_state(
                self.output, self.network, kept, self.optimizer.optimizer, precision.load_state_dict
            )
            if self.position.processes != self.fabric.world_size:
                raise ConfigError(
                    f"{self.output} holds a run of {self.position.processes} processes, not {self.fabric.world_size}: "
                    "its steps took other frames; start as many, or replace the run with --overwrite"
                )
            # What the weights came from when the run began; the machine may be offline now.
            self.network.source_layout = self.averaged.source_layout = self.position.source_layout
        self.journal.go_on_from(self.position.step)

    def go_on(self, report: Report) -> None:
        """Run the steps that are left."""
        if self._stopped_early():
            return
        batches = self._batches()
        set_training_mode(self.network, self.config.network.frozen_norms)
        for step in range(self.position.step, self.plan.steps):
            terms = self._step(step, batches)
            done = step + 1
            self.position = replace(self.position, step=done, seconds=self.position.seconds + self.clock.lap())
            report(self._progress(terms["total"]))
            self.journal.step(done, terms, self.optimizer.param_groups[0]["lr"], self.clock)
            last = done == self.plan.steps
            if last or self._ends_validation_interval(done):
                self._validate(report)
            if last or done % self.config.run.checkpoint_every == 0:
                self._save()
            if self._stopped_early():
                self._save()
                break

    def _batches(self) -> Iterator[Batch]:
        return training_batches(
            self.frames, self.config, self.plan, self.void_class, self.position.step, self.fabric.global_rank
        )

    def _step(self, step: int, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """Run one optimizer step over `accumulate` batches; return its last batch's loss terms."""
        run, config = self.config.run, self.config.optimizer
        # Dropout follows from seed, step and process alone, so that a resumed run repeats an uninterrupted one.
        torch.manual_seed((run.seed * 1_000_003 + step) * self.plan.processes + self.fabric.global_rank)
        set_learning_rate(
            self.optimizer.optimizer, learning_rate(self.config.schedule, config.learning_rate, step, self.plan)
        )
        for part in range(run.accumulate):
            with self.clock("wait"):
                batch = next(batches)
            with self.fabric.no_backward_sync(self.trainee, enabled=part < run.accumulate - 1):
                terms = self._forward_backward(batch, run.accumulate)
            self.watch.add(step + 1, batch.names, terms["total"])
        with self.clock("update"):
            if config.gradient_clip is not None:
                # Not finite: float16's scaling skips the step and goes on; elsewhere the next loss says so.
                self.fabric.clip_gradients(
                    self.trainee, self.optimizer, max_norm=config.gradient_clip, error_if_nonfinite=False
                )
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if self.average is not None:
                self.average.update(step)
        return terms

    def _forward_backward(self, batch: Batch, accumulate: int) -> dict[str, Tensor]:
        with self.clock("move"):
            pixels = batch.images.to(self.fabric.device, non_blocking=True)
            target = batch.target.to(self.fabric.device, non_blocking=True)
        with self.clock("forward"):
            logits = self.trainee(pixels)
            terms: dict[str, Tensor] = self.loss(logits, target, self._teachers_logits(batch))
        with self.clock("backward"):
            self.fabric.backward(terms["total"] / accumulate)
        return {name: value.detach() for name, value in terms.items()}

    def _teachers_logits(self, batch: Batch) -> list[Tensor]:
        """Return each teacher's logits of the frames before anything was pasted into them."""
        if batch.clean is None:
            return []
        pixels = batch.clean.to(self.fabric.device, non_blocking=True)
        images = pixels.permute(0, 3, 1, 2).to(torch.float32) / 255.0
        with torch.no_grad(), self.fabric.autocast():
            return [teacher(images)[:, : self.taught] for teacher in self.teachers]

    def _ends_validation_interval(self, done: int) -> bool:
        """Whether `validate_every` further epochs ended with this step."""
        every = self.config.run.validate_every
        return self.plan.epoch_of(done) // every > self.plan.epoch_of(done - 1) // every

    def _validate(self, report: Report) -> None:
        self.watch.check(self.network)
        self.fabric.barrier()  # every process' losses are good, or the run ends here
        if self.fabric.is_global_zero:
            self.averaged.eval()
            with self.clock("validate"):
                found = validate(self.averaged, self.validation, self.void_class, self.fabric, report_to(report))
            set_training_mode(self.network, self.config.network.frozen_norms)
            better = self.position.best_miou is None or found.miou > self.position.best_miou
            if better:
                self._keep_weights("best", found.miou)
            self.position = replace(
                self.position,
                best_miou=found.miou if better else self.position.best_miou,
                best_step=self.position.step if better else self.position.best_step,
                worse=0 if better else self.position.worse + 1,
            )
            self.journal.validation(self.position.step, found, self.validation.classes)
        self.position = self.fabric.broadcast(self.position)

    def _save(self) -> None:
        self.watch.check(self.network)
        self.fabric.barrier()  # every process' losses are good, or nothing is kept
        if self.fabric.is_global_zero:
            self.journal.flush()
            # The state comes last: a run that is killed before it does all of this again.
            self._keep_weights("last", None)
            kept, precision = self.averaged if self.average else None, self.fabric.strategy.precision.state_dict()
            save_state(self.output, self.network, kept, self.optimizer.optimizer, self.position, precision)
        self.fabric.barrier()

    def _keep_weights(self, name: str, miou: float | None) -> None:
        metadata = {"run": self.config.name, "step": self.position.step, "steps": self.plan.steps, "miou": miou}
        metadata |= {"num_classes": self.averaged.num_classes, "void_class": self.void_class}
        save_checkpoint(self.output / f"{name}.safetensors", self.averaged, metadata)

    def _stopped_early(self) -> bool:
        patience = self.config.run.early_stop
        return bool(patience) and self.position.worse >= patience

    def _progress(self, loss: Tensor) -> Progress:
        position = self.position
        # Reading a loss makes the processor wait for a GPU.
        if loss.device.type == "cpu" or position.step % self.watch.every == 0 or self.last_loss is None:
            self.last_loss = float(loss)
        left = position.seconds / position.step * (self.plan.steps - position.step)
        return Progress("train", position.step, self.plan.steps, self.last_loss, position.best_miou, left)

    def result(self) -> Result:
        """Return what the run gave."""
        best = self.output / "best.safetensors"
        position = self.position
        return Result(
            checkpoint=best if best.is_file() else self.output / "last.safetensors",
            miou=position.best_miou,
            steps=position.step,
            seconds=position.seconds,
            void_class=self.void_class,
            num_classes=self.averaged.num_classes,
            waited=self.clock.waited(),
            is_first_process=self.fabric.is_global_zero,
        )


def report_to(report: Report) -> Callable[[int, int], None]:
    """Return a progress callback of validation."""
    return lambda done, total: report(Progress("validate", done, total))
