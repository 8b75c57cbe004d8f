"""One training run on Lightning Fabric, which can be killed and resumed at any moment.

    output/config.yaml          the whole configuration
    output/state.pt             the state that --resume continues from
    output/last.safetensors     the (averaged) weights after the last saved step; best.safetensors: at the best mIoU
    output/log.jsonl, tensorboard/    the log

Seed and step alone decide the order of frames, augmentation and dropout. So a resumed run on a processor gives the same
bits as an uninterrupted one with the same number of threads.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from anomseg_ros.core.labels import ClassInfo, same_classes
from anomseg_ros.datasets import open_dataset
from anomseg_ros.datasets.dataset import Dataset, notes_of
from anomseg_ros.errors import ConfigError
from anomseg_ros.networks.checkpoints import load_checkpoint, save_checkpoint
from anomseg_ros.networks.network import SegmentationNetwork
from anomseg_ros.training.config import DataConfig, TrainConfig
from anomseg_ros.training.data import Batch, Plan, class_shares, training_batches
from anomseg_ros.training.doubts import Doubts, find_doubts, require_other_frames
from anomseg_ros.training.folder import claim_folder, held_folder, keep_result, kept_frames_folder
from anomseg_ros.training.frame_cache import Frames, cached_frames
from anomseg_ros.training.journal import Journal
from anomseg_ros.training.loss_watch import LossWatch
from anomseg_ros.training.objectives import Objective, Task, objective_class
from anomseg_ros.training.processes import start_processes
from anomseg_ros.training.repeats import repeated_frames
from anomseg_ros.training.run_state import STATE_FILE, Average, Position, load_state, save_state
from anomseg_ros.training.schedule import learning_rate, make_optimizer, set_learning_rates
from anomseg_ros.training.start import set_training_mode, start_network
from anomseg_ros.training.status import Report, TrainingStatus, report_to
from anomseg_ros.training.stopwatch import Stopwatch
from anomseg_ros.training.validation import validate

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sources:
    """Checkpoint files that a run builds on; see InitialConfig and TeacherConfig."""

    initial: Path | None = None
    teachers: tuple[Path, ...] = ()
    frames: tuple[Frames, Frames] | None = None  # to train and to validate on, where they are decoded already


@dataclass(frozen=True)
class Result:
    """The result of a finished run."""

    checkpoint: Path  # the best (averaged) weights, or the last ones if nothing was validated
    miou: float | None
    steps: int
    seconds: float
    void_class: int | None
    num_classes: int
    waited: float | None = None  # share of the time that the trainer waited for frames, None if no step was left to do
    is_first_process: bool = True
    doubts: Doubts = field(default_factory=Doubts)


def train(config: TrainConfig, output: Path, sources: Sources, report: Report, resume: bool = True) -> Result:
    """Train by `config` and return the result.

    Args:
        config: the run.
        output: the run's folder.
        sources: checkpoints that the run builds on.
        report: receives the progress.
        resume: whether to continue from the folder's last state.

    Raises:
        ConfigError: the folder holds a run of another configuration, or another run writes to it.
        DatasetError: the frames cannot be trained on.
        TrainingError: the loss is not finite, or the disk is full. The last good state stays.
    """
    fabric = start_processes(config.run)
    report = report if fabric.is_global_zero else (lambda _: None)
    with held_folder(output):
        claim_folder(output, config, resume)
        run = _prepare(config, output, sources, fabric, report)
        try:
            run.restore()
            run.go_on(report)
        finally:
            run.journal.close()
        result = run.result()
        if result.is_first_process and result.waited is not None:  # not a run that was finished before
            keep_result(output, {**asdict(result), "checkpoint": result.checkpoint.name})
        return result


def classes_of(dataset: Dataset) -> tuple[ClassInfo, ...]:
    """Return a dataset's classes. Raises ConfigError if it has no class labels."""
    if dataset.classes is None:
        raise ConfigError(f"{dataset.name} has no class labels to train on; choose one with, such as camvid")
    return dataset.classes


def open_sets(data: DataConfig) -> tuple[Dataset, Dataset]:
    """Return the training and the validation frames, not read yet. Raises ConfigError and DatasetError."""
    if not data.path and data.dataset != "synthetic":  # synthetic frames need no files
        raise ConfigError(f"no folder of {data.dataset} was given; add --data FOLDER (or --set data.path=FOLDER)")
    train_set = open_dataset(data.dataset, data.path, data.train_split or None)
    validation_set = open_dataset(data.dataset, data.validation_path or data.path, data.validation_split or None)
    if not same_classes(classes_of(train_set), classes_of(validation_set)):
        raise ConfigError(
            f"{train_set.path!r} and {validation_set.path!r} have different classes; give both the same ones, in "
            "one order"
        )
    return train_set, validation_set


def _checked_frames(config: TrainConfig, fabric: Fabric, report: Report) -> tuple[Frames, Frames, Doubts]:
    """Return the configuration's training and validation frames; what is doubtful of them is told."""
    train_set, validation_set = open_sets(config.data)
    frames, validation = (_decoded(config, one, fabric, report) for one in (train_set, validation_set))
    require_other_frames(frames, validation)
    doubts = find_doubts(train_set, frames, validation)
    if fabric.is_global_zero:
        for text in (*notes_of(validation_set), *doubts.sentences):
            _log.warning("%s: %s", config.name, text)
    return frames, validation, doubts


def _prepare(config: TrainConfig, output: Path, sources: Sources, fabric: Fabric, report: Report) -> _Run:
    """Open the frames and build networks and teachers."""
    if sources.frames is None:
        frames, validation, doubts = _checked_frames(config, fabric, report)
    else:
        (frames, validation), doubts = sources.frames, Doubts()
    known = len(frames.classes)
    void_class = None if config.data.void == "none" else known
    outputs = known + (void_class is not None)
    network = start_network(config.network, outputs, config.run.seed, sources.initial, known)
    teachers = [
        load_checkpoint(path, teacher.network, teacher.num_classes or outputs)
        for teacher, path in zip(config.teachers, sources.teachers, strict=True)
    ]
    return _Run(config, output, fabric, network, frames, validation, void_class, teachers, doubts)


def _decoded(config: TrainConfig, dataset: Dataset, fabric: Fabric, report: Report) -> Frames:
    folder = kept_frames_folder() if config.data.cache == "disk" else None
    size_px = (config.data.height_px, config.data.width_px)
    with fabric.rank_zero_first():  # one process decodes, the others read its files
        partial = config.data.allow_partial
        return cached_frames(dataset, classes_of(dataset), size_px, folder, partial, report_to(report))


class _Trainee(nn.Module):
    """Network and objective as one module, which Fabric can wrap."""

    def __init__(self, network: SegmentationNetwork, objective: Objective, compiled: bool) -> None:
        super().__init__()
        self.network, self.objective = network, objective
        self.ask = torch.compile(objective.ask) if compiled else objective.ask

    def forward(self, pixels: Tensor, target: Tensor, teachers: Sequence[Tensor], step: int) -> dict[str, Tensor]:
        """Return the terms of the loss for uint8 (B, H, W, 3) pixels. Other arguments: see Objective.loss."""
        images = pixels.permute(0, 3, 1, 2).to(torch.float32) / 255.0
        return self.objective.loss(self.ask(self.network, images, step), target, teachers, step)


class _Run:
    """The objects of a run and its steps."""

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
        doubts: Doubts,
    ) -> None:
        self.config, self.output, self.fabric, self.doubts = config, output, fabric, doubts
        self.frames, self.validation, self.void_class = frames, validation, void_class
        run = config.run
        repeats = repeated_frames(frames, config.data.repeat_below)
        samples = (run.batch_size, run.accumulate, fabric.world_size)
        self.plan = Plan(len(repeats), run.seed, *samples, run.epochs, repeats)
        task = Task(class_shares(frames, config, void_class), void_class, self.plan.steps)
        self.objective = objective_class(config.objective)(config.loss, task)
        self.objective.prepare(network)
        if run.channels_last:
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if fabric.world_size > 1 and run.sync_batch_norm and fabric.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        self.network = network
        self.averaged: SegmentationNetwork = copy.deepcopy(network).eval() if run.ema_decay else network
        self.groups = self.objective.groups(network, config.optimizer)
        optimizer = make_optimizer(config.optimizer, self.groups, run.precision)
        self.trainee, self.optimizer = fabric.setup(_Trainee(network, self.objective, run.compile), optimizer)
        self.averaged = self.averaged.to(fabric.device)
        self.average = Average(network, self.averaged, run.ema_decay) if run.ema_decay else None
        self.teachers = [teacher.to(fabric.device).eval() for teacher in teachers]
        # The void output of a teacher that sees no pasted objects does not fit frames with them.
        hidden = config.data.cut_paste.probability > 0 and not self.objective.needs.teachers_see_outliers
        self.taught = len(frames.classes) if hidden or void_class is None else void_class + 1
        self.position = Position(processes=fabric.world_size, source_layout=network.source_layout)
        self.last_loss: float | None = None
        self.watch = LossWatch(every=1 if fabric.device.type == "cpu" else 10)
        self.clock = Stopwatch()
        self.journal = Journal(output if fabric.is_global_zero else None)

    def restore(self) -> None:
        """Load the folder's last state, if there is one."""
        if (self.output / STATE_FILE).is_file():
            load_precision = self.fabric.strategy.precision.load_state_dict
            self.position = load_state(self.output, self._modules(), self.optimizer.optimizer, load_precision)
            if self.position.processes != self.fabric.world_size:
                raise ConfigError(
                    f"{self.output} holds a run of {self.position.processes} processes, not {self.fabric.world_size}: "
                    "its steps took other frames; start as many, or replace the run with --overwrite"
                )
            # The source of the weights at the start of the run; the machine may be offline now.
            self.network.source_layout = self.averaged.source_layout = self.position.source_layout
        self.journal.go_on_from(self.position.step)

    def go_on(self, report: Report) -> None:
        """Run the remaining steps."""
        if self._stopped_early():
            return
        start, process = self.position.step, self.fabric.global_rank
        batches = training_batches(self.frames, self.config, self.plan, self.void_class, start, process)
        set_training_mode(self.network, self.config.network.frozen_norms)
        if self.config.run.compile and start < self.plan.steps:  # the first step does it, and says nothing
            report(TrainingStatus("compile", 0, None))
        for step in range(start, self.plan.steps):
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

    def _step(self, step: int, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """Run one optimizer step over `accumulate` batches; return the loss terms of the last batch."""
        run, config = self.config.run, self.config.optimizer
        # Seed, step and process alone decide dropout, so that a resumed run repeats an uninterrupted one.
        torch.manual_seed((run.seed * 1_000_003 + step) * self.plan.processes + self.fabric.global_rank)
        rate = learning_rate(self.config.schedule, config.learning_rate, step, self.plan)
        set_learning_rates(self.optimizer.optimizer, self.groups, rate, step)
        for part in range(run.accumulate):
            with self.clock("wait"):
                batch = next(batches)
            with self.fabric.no_backward_sync(self.trainee, enabled=part < run.accumulate - 1):
                terms = self._forward_backward(batch, step)
            self.watch.add(step + 1, batch.names, terms["total"])
        with self.clock("update"):
            if config.gradient_clip is not None:
                # If it is not finite, float16's scaling skips the step; elsewhere the next loss is not finite.
                self.fabric.clip_gradients(
                    self.trainee, self.optimizer, max_norm=config.gradient_clip, error_if_nonfinite=False
                )
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if self.average is not None:
                self.average.update(step)
        return terms

    def _forward_backward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        with self.clock("move"):
            pixels = batch.images.to(self.fabric.device, non_blocking=True)
            target = batch.target.to(self.fabric.device, non_blocking=True)
        with self.clock("forward"):
            terms: dict[str, Tensor] = self.trainee(pixels, target, self._teachers_logits(batch), step)
        with self.clock("backward"):
            self.fabric.backward(terms["total"] / self.config.run.accumulate)
        return {name: value.detach() for name, value in terms.items()}

    def _teachers_logits(self, batch: Batch) -> list[Tensor]:
        """Return each teacher's logits of the frames, without pasted objects unless it is to see them."""
        if batch.clean is None:
            return []
        shown = batch.images if self.objective.needs.teachers_see_outliers else batch.clean
        pixels = shown.to(self.fabric.device, non_blocking=True)
        images = pixels.permute(0, 3, 1, 2).to(torch.float32) / 255.0
        with torch.no_grad(), self.fabric.autocast():
            return [teacher.predict(images).pixel_logits()[:, : self.taught] for teacher in self.teachers]

    def _ends_validation_interval(self, done: int) -> bool:
        """Return whether `validate_every` further epochs ended with this step."""
        every = self.config.run.validate_every
        return self.plan.epoch_of(done) // every > self.plan.epoch_of(done - 1) // every

    def _validate(self, report: Report) -> None:
        self.watch.check(self.network)
        self.fabric.barrier()  # the losses of all processes are finite
        if self.fabric.is_global_zero:
            self.averaged.eval()
            with self.clock("validate"):
                result = validate(self.averaged, self.validation, self.void_class, self.fabric, report_to(report))
            set_training_mode(self.network, self.config.network.frozen_norms)
            better = self.position.best_miou is None or result.miou > self.position.best_miou
            if better:
                self._save_weights("best", result.miou)
            self.position = replace(
                self.position,
                best_miou=result.miou if better else self.position.best_miou,
                best_step=self.position.step if better else self.position.best_step,
                worse=0 if better else self.position.worse + 1,
            )
            self.journal.validation(self.position.step, result, self.validation.classes)
        self.position = self.fabric.broadcast(self.position)

    def _save(self) -> None:
        self.watch.check(self.network)
        self.fabric.barrier()  # the losses of all processes are finite
        if self.fabric.is_global_zero:
            self.journal.flush()
            # The state comes last, so a run that is killed before it repeats all of this.
            self._save_weights("last", None)
            precision = self.fabric.strategy.precision.state_dict()
            save_state(self.output, self._modules(), self.optimizer.optimizer, self.position, precision)
        self.fabric.barrier()

    def _modules(self) -> dict[str, nn.Module]:
        """Return the modules of the state by name."""
        modules: dict[str, nn.Module] = {"network": self.network, "objective": self.objective}
        return {**modules, "average": self.averaged} if self.average else modules

    def _save_weights(self, name: str, miou: float | None) -> None:
        metadata = {"run": self.config.name, "step": self.position.step, "steps": self.plan.steps, "miou": miou}
        metadata |= {"num_classes": self.averaged.num_classes, "void_class": self.void_class}
        checkpoint = self.output / f"{name}.safetensors"
        save_checkpoint(checkpoint, self.objective.merged(self.averaged), metadata)
        self.objective.save_beside(checkpoint, self.averaged, metadata)

    def _stopped_early(self) -> bool:
        patience = self.config.run.early_stop
        return bool(patience) and self.position.worse >= patience

    def _progress(self, loss: Tensor) -> TrainingStatus:
        position = self.position
        # Reading a loss makes the processor wait for a GPU.
        if loss.device.type == "cpu" or position.step % self.watch.every == 0 or self.last_loss is None:
            self.last_loss = float(loss)
        left = position.seconds / position.step * (self.plan.steps - position.step)
        return TrainingStatus("train", position.step, self.plan.steps, self.last_loss, position.best_miou, left)

    def result(self) -> Result:
        """Return the run's result."""
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
            doubts=self.doubts,
        )
