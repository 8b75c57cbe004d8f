"""Adapt a bundle to the road of an unlabelled drive: the cheapest stage first, each kept only if it makes it better.

    given --bn--> norms follow the drive --self--> trained on the drive's own labels, objects pasted as void --> output

Each stage is judged on a third of the drive, which is held back (judge.py). A fifth of the rest is for the thresholds,
and stages learn from what remains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from anomseg_ros.adaptation.agreement import label_agreement, labelled_miou
from anomseg_ros.adaptation.input_frames import AtInputSize, InputFrames, decoded, first_frames, known_classes, spread
from anomseg_ros.adaptation.judge import count_alarms, see_objects, wanted_objects
from anomseg_ros.adaptation.norms import adapt_norms
from anomseg_ros.adaptation.pasted_drive import pasted_drive
from anomseg_ros.adaptation.request import NORMS, SELF, AdaptRequest
from anomseg_ros.adaptation.result import require_adaptable, write_result
from anomseg_ros.adaptation.self_labels import SelfLabelled, Summary, label_drive
from anomseg_ros.adaptation.self_training import VALIDATION_FRAMES, Round, self_train
from anomseg_ros.adaptation.work import GIVEN, Stage, WorkFolder
from anomseg_ros.compression.reexport import export_config_of
from anomseg_ros.core.bundle import CHECKPOINT_FILE, Bundle, load_bundle, sha256_of
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.datasets.dataset import Dataset
from anomseg_ros.evaluation.drive_thresholds import calibrate_on_drive
from anomseg_ros.export import export_network
from anomseg_ros.networks.checkpoints import load_checkpoint, save_checkpoint
from anomseg_ros.networks.network import SegmentationNetwork
from anomseg_ros.training.frame_cache import Frames
from anomseg_ros.training.status import Report

LEAST_AGREEMENT = 0.8
"""A stage that changes more of the classes that the given bundle is confident of is not kept: it forgets them."""

OBJECT_SEED = 1_000_003
"""Added to the seed for the objects that stages are judged with."""


@dataclass(frozen=True)
class Adapted:
    """The written bundle, the stages in their order ("given" first), and the name of the one that it holds."""

    bundle: Bundle
    stages: tuple[Stage, ...]
    chosen: str

    @property
    def is_better(self) -> bool:
        """Whether a stage made the bundle better on the frames held back."""
        return self.chosen != GIVEN


@dataclass(frozen=True)
class Reports:
    """Who is told the progress: of counted work, of training, and of each stage that is done."""

    progress: Progress = no_progress
    training: Report = lambda _: None
    stage: Callable[[Stage], None] = lambda _: None


def adapt(request: AdaptRequest, reports: Reports | None = None) -> Adapted:
    """Adapt a bundle, write the best one with thresholds of the drive, and return it; a killed call continues.

    If no stage makes it better, the given bundle is written with these thresholds.

    Raises:
        ConfigError, CheckpointError, BundleError, MetricError: the request cannot work; before any frame is read.
        TrainingError: training failed. What is done stays in the work folder.
    """
    run = _Run(request, request.check(), reports or Reports())
    stages = [run.given()]
    for name in run.names():
        stages.append(run.stage(name, best_of(stages)))
    result = write_result(request, stages, run.facts, run.reports.progress)
    run.work.remove()
    return Adapted(result, tuple(stages), best_of(stages).name)


def best_of(stages: Sequence[Stage]) -> Stage:
    """Return the last stage that was kept."""
    return [stage for stage in stages if stage.kept][-1]


class _Run:
    """The stages of a request."""

    def __init__(self, request: AdaptRequest, checkpoint: Path, reports: Reports) -> None:
        self.request, self.checkpoint, self.reports = request, checkpoint, reports
        self.network = require_adaptable(request, checkpoint)
        self.facts = request.facts(checkpoint)
        self.work = WorkFolder(request.work, self.facts, request.overwrite)
        self.split = request.split
        self.wanted: int | None = None

    def names(self) -> list[str]:
        """Return the names of the stages after "given"."""
        rounds = [f"{SELF}-{number}" for number in range(1, self.request.level.rounds + 1)]
        return [name for stage in self.request.stages for name in (rounds if stage == SELF else [stage])]

    def given(self) -> Stage:
        """Judge the bundle as it is."""
        done = self.work.done(GIVEN)
        if done is None:
            done = self.work.finish(self.judged(GIVEN, self.request.bundle, None, {}))
        self.wanted = done.figures.detected
        self.reports.stage(done)
        return done

    def stage(self, name: str, best: Stage) -> Stage:
        """Make a stage from the best one so far and judge it, unless that is done."""
        done = self.work.done(name)
        if done is None:
            network, facts = self.norms(best) if name == NORMS else self.self_trained(name, best)
            bundle = self.exported(name, network)
            done = self.work.finish(self.judged(name, bundle, best, facts))
        self.reports.stage(done)
        return done

    def norms(self, best: Stage) -> tuple[SegmentationNetwork, dict[str, Any]]:
        """Return the best network with norms that follow the drive."""
        config, spec = self.request.level.norms, self.request.bundle.contract.input
        frames = InputFrames(self.request.drive, self.split.adapted, spec)
        network = adapt_norms(self.load(best), frames, config, self.request.seed, self.reports.progress)
        return network, {"kept_statistics": round(config.kept, 4), "size_px": [spec.height_px, spec.width_px]}

    def self_trained(self, name: str, best: Stage) -> tuple[SegmentationNetwork, dict[str, Any]]:
        """Return the network trained on the labels that the best one gives to the drive."""
        request, place, network = self.request, self.work.place(name), self.load(best)
        frames, summary = self.labelled(place / "labels", best, network)
        round_seed = request.seed + int(name.rpartition("-")[2])
        weights, contract = self.weights(best), request.bundle.contract
        task = Round(contract, weights, network, request.objects, request.teacher, round_seed, request.threads)
        few = first_frames(frames, VALIDATION_FRAMES)
        result = self_train(task, request.level.training, frames, few, place / "run", self.reports.training)
        trained = load_checkpoint(result.checkpoint, network.name, network.num_classes)
        shares = {key: getattr(summary, key) for key in ("labelled", "uncertain", "unused", "disagreeing")}
        return trained, {"labels": shares, "steps": result.steps, "frames": len(frames)}

    def labelled(self, folder: Path, best: Stage, network: SegmentationNetwork) -> tuple[Frames, Summary]:
        """Return the frames to train on: those of the drive with the network's labels, and the labelled ones."""
        request, level, contract = self.request, self.request.level, self.request.bundle.contract
        indices = spread(self.split.adapted, level.frames)
        networks = [network, *([request.teacher.load()] if request.teacher else [])]
        on_drive = request.drive_request(load_bundle(best.bundle))
        threshold, progress = best.drive_threshold, self.reports.progress
        summary = label_drive(on_drive, threshold, indices, networks, level.labels, folder, progress)
        known = known_classes(contract)
        sets = [cast(Dataset, SelfLabelled(folder, request.drive, indices, contract.input, known, summary.limits))]
        if request.labels is not None:
            own, _ = request.labelled_frames
            sets.append(cast(Dataset, AtInputSize(request.labels, own, contract.input)))
        return decoded(sets, contract, progress), summary

    def exported(self, name: str, network: SegmentationNetwork) -> Bundle:
        """Write the bundle of a stage's network, with its checkpoint."""
        place, contract = self.work.place(name), self.request.bundle.contract
        checkpoint = place / CHECKPOINT_FILE
        save_checkpoint(checkpoint, network, {**self.network.checkpoint_metadata, "adapted": name})
        provenance = replace(
            contract.provenance, source_checkpoint=CHECKPOINT_FILE, source_sha256=sha256_of(checkpoint)
        )
        config = export_config_of(contract)
        self.reports.progress("export", 0, 1)
        bundle, _ = export_network(
            network.eval(),
            contract.network,
            config,
            place / "bundle",
            provenance,
            overwrite=True,
            files={CHECKPOINT_FILE: checkpoint},
        )
        self.reports.progress("export", 1, 1)
        return bundle

    def judged(self, name: str, bundle: Bundle, best: Stage | None, facts: Mapping[str, Any]) -> Stage:
        """Measure a stage's bundle on the frames held back; it is kept if it is better than the best one before."""
        request, progress, held_back = self.request, self.reports.progress, self.split.held_back
        on_drive = request.drive_request(bundle)
        found = calibrate_on_drive(on_drive, progress, None if best is None else self.split.thresholds)
        (rate,) = found.rates
        pasted = pasted_drive(request.drive, request.objects, request.seed + OBJECT_SEED)
        seen = see_objects(on_drive, pasted, held_back, progress)
        wanted = self.wanted or wanted_objects(seen, rate.change.threshold)
        checked = found.checked[on_drive.scores[0]]
        figures = count_alarms(on_drive, held_back, checked, seen, wanted, progress)
        agreement, miou = 1.0, None
        if best is not None:
            agreement = label_agreement(request.bundle, bundle, request.drive, held_back, on_drive.options)
        if request.labels is not None:
            miou = labelled_miou(bundle, request.labels, request.labelled_frames[1], on_drive.options)
        kept = best is None or (figures.is_better_than(best.figures) and agreement >= LEAST_AGREEMENT)
        place, threshold = str(bundle.directory), rate.change.threshold
        return Stage(name, place, threshold, rate.fpr, figures, round(agreement, 4), miou, kept, facts)

    def weights(self, stage: Stage) -> Path:
        """Return the checkpoint of a stage."""
        return self.checkpoint if stage.name == GIVEN else self.work.place(stage.name) / CHECKPOINT_FILE

    def load(self, stage: Stage) -> SegmentationNetwork:
        """Return the network of a stage."""
        contract = self.request.bundle.contract
        return load_checkpoint(self.weights(stage), contract.network, len(contract.classes))
