"""Train the shipped demonstration network on synthetic scenes, and measure it on scenes and anomalies it never saw.

    python -m anomseg_ros.training.synthetic_recipe --output runs/enet-synthetic --steps 2000

The network has 20 outputs: the 19 classes of Cityscapes and, as class 19, void: the anomalies of TRAIN_KINDS. Loss:
cross-entropy with ENet's class weights 1 / ln(1.02 + p) (Paszke et al., arXiv 1606.02147, section 5.1); Adam with a
polynomial schedule, power 0.9. The measurement uses other seeds, once with TRAIN_KINDS and once with HELD_OUT_KINDS.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from anomseg_ros.datasets.synthetic import HELD_OUT_KINDS, TRAIN_KINDS, SyntheticConfig
from anomseg_ros.errors import AnomsegError, CheckpointError, ConfigError
from anomseg_ros.networks import build_network, network_class
from anomseg_ros.networks.base import SegmentationNetwork
from anomseg_ros.networks.checkpoints import load_checkpoint, save_checkpoint
from anomseg_ros.training.synthetic_frames import IGNORED, VOID, FrameSet, draw_batch, render_frames

NUM_CLASSES = VOID + 1
TRAIN_SEED, HELD_OUT_SEED = 0, 1_000_000
POLY_POWER = 0.9
ANOMALY_SIZE_M = (0.35, 2.0)


@dataclass(frozen=True)
class Recipe:
    """Every choice of one training run; `sequences` x `frames_per_sequence` frames are rendered once and augmented."""

    network_name: str = "enet"
    steps: int = 2000
    batch_size: int = 4
    height_px: int = 256
    width_px: int = 512
    seed: int = 0
    threads: int = 1
    learning_rate: float = 1.5e-3
    weight_decay: float = 2e-4
    sequences: int = 400
    frames_per_sequence: int = 4
    measured_sequences: int = 40
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        """Reject counts below one. Raises ConfigError."""
        for name, value in asdict(self).items():
            if name not in ("network_name", "seed", "weight_decay") and value <= 0:
                raise ConfigError(f"{name} is {value!r}; give a number above 0")


@dataclass(frozen=True)
class Progress:
    """How far one stage (render, train, measure) is; `loss` is the last step's, while training."""

    stage: str
    done: int
    total: int
    loss: float | None = None


Report = Callable[[Progress], None]


def train(recipe: Recipe, output: Path, report: Report, resume: bool = True) -> Path:
    """Train and measure by `recipe`; return the checkpoint `output/<network>-synthetic.safetensors`.

    Leaves metrics.json, recipe.json and log.jsonl beside it. With `resume`, goes on from the last state in `output`
    and ends with the same weights as an uninterrupted run. Raises ConfigError where `output` holds another recipe's
    run, and AnomsegError when the loss is no longer finite.
    """
    network_class(recipe.network_name)  # an unknown name fails now, not after the rendering
    torch.set_num_threads(recipe.threads)
    output.mkdir(parents=True, exist_ok=True)
    _keep_recipe(recipe, output, resume)
    frames = _training_frames(recipe, output, report)
    network, optimizer, step = _start(recipe, output, resume)
    _run_steps(recipe, output, frames, network, optimizer, step, report)
    metrics = {
        "held_out_kinds": measure(recipe, output, network, HELD_OUT_KINDS, report),
        "train_kinds": measure(recipe, output, network, TRAIN_KINDS, report),
    }
    _write_text(output / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    final = output / f"{recipe.network_name}-synthetic.safetensors"
    save_checkpoint(final, network, {"recipe": asdict(recipe), "metrics": metrics, "void_class": VOID})
    return final


def _keep_recipe(recipe: Recipe, output: Path, resume: bool) -> None:
    path = output / "recipe.json"
    text = json.dumps(asdict(recipe), indent=2) + "\n"
    if resume and path.is_file() and path.read_text() != text:
        raise ConfigError(f"{output} holds a run of another recipe (see {path}); choose another folder or --no-resume")
    _write_text(path, text)


def _write_text(path: Path, text: str) -> None:
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    beside.write_text(text)
    os.replace(beside, path)


def _training_frames(recipe: Recipe, output: Path, report: Report) -> FrameSet:
    return _frames(recipe, output, TRAIN_KINDS, TRAIN_SEED, recipe.sequences, "render", report)


def _frames(
    recipe: Recipe, output: Path, kinds: tuple[str, ...], first_seed: int, sequences: int, stage: str, report: Report
) -> FrameSet:
    # Rendered at twice the size and reduced, as camera frames are before they reach the network.
    config = SyntheticConfig(
        height_px=2 * recipe.height_px,
        width_px=2 * recipe.width_px,
        anomaly_probability=1.0,
        anomaly_kinds=kinds,
        anomaly_size_m=ANOMALY_SIZE_M,
    )
    return render_frames(
        output / "frames",
        config,
        range(first_seed, first_seed + sequences),
        recipe.frames_per_sequence,
        recipe.height_px,
        recipe.width_px,
        lambda done, total: report(Progress(stage, done, total)),
    )


def _start(recipe: Recipe, output: Path, resume: bool) -> tuple[SegmentationNetwork, torch.optim.Adam, int]:
    """Return network, optimizer and the number of steps done, from the last state in `output` or afresh."""
    torch.manual_seed(recipe.seed)
    network = build_network(recipe.network_name, NUM_CLASSES)
    latest = output / "latest.json"
    state: dict[str, Any] | None = None
    step = 0
    if resume and latest.is_file():
        step = int(json.loads(latest.read_text())["step"])
        network = load_checkpoint(_weights_file(output, step), recipe.network_name, NUM_CLASSES)
        try:
            state = torch.load(_optimizer_file(output, step), weights_only=True)
        except Exception as error:  # a damaged file can fail in any way
            raise CheckpointError(f"{_optimizer_file(output, step)} is damaged ({error}); use --no-resume") from error
    optimizer = torch.optim.Adam(network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    if state is not None:
        optimizer.load_state_dict(state)
    return network, optimizer, step


def _weights_file(output: Path, step: int) -> Path:
    return output / f"weights-{step:06d}.safetensors"


def _optimizer_file(output: Path, step: int) -> Path:
    return output / f"optimizer-{step:06d}.pt"


def _save_state(output: Path, network: SegmentationNetwork, optimizer: torch.optim.Adam, step: int) -> None:
    """Write both files, then point to them, then remove the older ones: a kill at any moment leaves a whole state."""
    save_checkpoint(_weights_file(output, step), network, {"step": step})
    beside = output / f"optimizer.{os.getpid()}.part"
    torch.save(optimizer.state_dict(), beside)
    os.replace(beside, _optimizer_file(output, step))
    _write_text(output / "latest.json", json.dumps({"step": step}) + "\n")
    for old in [*output.glob("weights-*.safetensors"), *output.glob("optimizer-*.pt")]:
        if old not in (_weights_file(output, step), _optimizer_file(output, step)):
            old.unlink()


def class_weights(targets: npt.NDArray[np.uint8]) -> Tensor:
    """Return (20,) float32 weights 1 / ln(1.02 + p) of the classes' shares p among the pixels not ignored."""
    counts = np.bincount(targets.ravel(), minlength=256)[:NUM_CLASSES].astype(np.float64)
    return torch.from_numpy((1.0 / np.log(1.02 + counts / max(counts.sum(), 1.0))).astype(np.float32))


def _run_steps(
    recipe: Recipe,
    output: Path,
    frames: FrameSet,
    network: SegmentationNetwork,
    optimizer: torch.optim.Adam,
    first_step: int,
    report: Report,
) -> None:
    weights = class_weights(frames.targets)
    network.train()
    started = time.monotonic()
    for step in range(first_step, recipe.steps):
        # Batch and dropout follow from seed and step alone, so that a resumed run repeats an uninterrupted one.
        torch.manual_seed(recipe.seed * 1_000_003 + step)
        images, targets = draw_batch(frames, recipe.batch_size, np.random.default_rng([recipe.seed, step]))
        rate = recipe.learning_rate * (1.0 - step / recipe.steps) ** POLY_POWER
        loss = _step(network, optimizer, rate, to_input(images), torch.from_numpy(targets).long(), weights, step)
        done = step + 1
        if done % 10 == 0 or done == recipe.steps:
            entry = {"step": done, "loss": loss, "learning_rate": rate, "seconds": round(time.monotonic() - started, 1)}
            with (output / "log.jsonl").open("a") as log:
                log.write(json.dumps(entry) + "\n")
        if done % recipe.checkpoint_every == 0 or done == recipe.steps:
            _save_state(output, network, optimizer, done)
        report(Progress("train", done, recipe.steps, loss))
    network.eval()


def _step(
    network: SegmentationNetwork,
    optimizer: torch.optim.Adam,
    rate: float,
    images: Tensor,
    targets: Tensor,
    weights: Tensor,
    step: int,
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = F.cross_entropy(network(images), targets, weights, ignore_index=IGNORED)
    value = float(loss.detach())
    if not np.isfinite(value):
        raise AnomsegError(f"the loss is {value} at step {step}; lower the learning rate ({rate:g}) and start again")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    optimizer.step()
    return value


def to_input(images: npt.NDArray[np.uint8]) -> Tensor:
    """Return (N, 3, H, W) float32 in 0..1 of images (N, H, W, 3) uint8."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255.0).contiguous()


@torch.no_grad()
def measure(
    recipe: Recipe, output: Path, network: SegmentationNetwork, kinds: tuple[str, ...], report: Report
) -> dict[str, Any]:
    """Return pixel accuracy, mean IoU and the void score's AP and FPR95 on held-out seeds with anomalies of `kinds`."""
    frames = _frames(recipe, output, kinds, HELD_OUT_SEED, recipe.measured_sequences, "render held-out", report)
    network.eval()
    confusion = np.zeros((NUM_CLASSES, NUM_CLASSES), np.int64)
    scores, truths = [], []
    for i, (image, target) in enumerate(zip(frames.images, frames.targets, strict=True)):
        logits = network(to_input(image[None]))[0]
        valid = target != IGNORED
        predicted = logits.argmax(0).numpy()[valid]
        pairs = target[valid].astype(np.int64) * NUM_CLASSES + predicted
        confusion += np.bincount(pairs, minlength=NUM_CLASSES**2).reshape(NUM_CLASSES, NUM_CLASSES)
        scores.append(F.softmax(logits, dim=0)[VOID].numpy()[valid])
        truths.append(target[valid] == VOID)
        report(Progress("measure", i + 1, len(frames.images)))
    ap, fpr95 = ranking_quality(np.concatenate(scores), np.concatenate(truths))
    return {
        "kinds": list(kinds),
        "frames": len(frames.images),
        **_class_quality(confusion),
        "void_ap": ap,
        "void_fpr95": fpr95,
    }


def _class_quality(confusion: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Return accuracy over the pixels of known classes, and IoU of the classes that occur (rows are the truth)."""
    known = confusion[:VOID]
    hits = np.diag(confusion)[:VOID]
    unions = known.sum(axis=1) + confusion[:, :VOID].sum(axis=0) - hits
    occurs = known.sum(axis=1) > 0
    ious = {str(c): round(float(hits[c] / unions[c]), 4) for c in np.flatnonzero(occurs)}
    return {
        "pixel_accuracy": float(hits.sum() / max(int(known.sum()), 1)),
        "miou": float(np.mean(list(ious.values()))) if ious else float("nan"),
        "classes_present": int(occurs.sum()),
        "iou_by_train_id": ious,
    }


def ranking_quality(scores: npt.NDArray[np.float32], anomalous: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Return average precision and the false positive rate at the first threshold with 95 % of the anomalies found.

    Exact, equal scores taken together; pooled over all pixels. (nan, nan) where either kind of pixel is missing.
    """
    positives = int(anomalous.sum())
    if positives == 0 or positives == len(anomalous):
        return float("nan"), float("nan")
    order = np.argsort(-scores, kind="stable")
    ranked, found = scores[order], np.cumsum(anomalous[order])
    last_of_tie = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    hits, taken = found[last_of_tie], last_of_tie + 1
    recall, precision = hits / positives, hits / taken
    ap = float(np.sum(np.diff(recall, prepend=0.0) * precision))
    first = int(np.argmax(recall >= 0.95))
    return ap, float((taken[first] - hits[first]) / (len(anomalous) - positives))


def main(arguments: list[str] | None = None) -> int:
    """Run the recipe from the command line; return the exit status."""
    options = _parser().parse_args(arguments)
    output, resume = options.output, not options.no_resume
    chosen = {k: v for k, v in vars(options).items() if k not in ("output", "no_resume")}
    try:
        with _Display() as display:
            final = train(Recipe(**chosen), output, display.show, resume)
    except AnomsegError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"{final}\n{(output / 'metrics.json').read_text()}")
    return 0


def _parser() -> argparse.ArgumentParser:
    defaults = Recipe()
    parser = argparse.ArgumentParser(
        prog="python -m anomseg_ros.training.synthetic_recipe",
        description="Train the demonstration network on synthetic road scenes; resumes a run it finds in --output.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the run: frames, states, results")
    parser.add_argument("--no-resume", action="store_true", help="start afresh, whatever is in --output")
    parser.add_argument("--network", dest="network_name", default=defaults.network_name, help="network to train")
    helps = {
        "steps": "optimizer steps",
        "batch_size": "frames a step",
        "height_px": "input height",
        "width_px": "input width",
        "seed": "seed of weights, batches and dropout",
        "threads": "CPU threads",
        "learning_rate": "Adam's first rate",
        "weight_decay": "Adam's L2 penalty",
        "sequences": "sequences rendered for training",
        "frames_per_sequence": "frames of each",
        "measured_sequences": "sequences per measurement",
        "checkpoint_every": "steps between saved states",
    }
    for name, text in helps.items():
        value = getattr(defaults, name)
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value, help=text)
    return parser


class _Display:
    """Progress on a terminal as bars, in a log file as a line now and then."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self.console = Console()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.bars = Bars(*columns, console=self.console, disable=not self.console.is_terminal)
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> _Display:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def show(self, now: Progress) -> None:
        """Show one report."""
        loss = "" if now.loss is None else f" loss {now.loss:.3f}"
        if self.console.is_terminal:
            if now.stage not in self.tasks:
                self.tasks[now.stage] = self.bars.add_task(now.stage, total=now.total)
            self.bars.update(self.tasks[now.stage], completed=now.done, total=now.total, description=now.stage + loss)
        elif now.done % 20 == 0 or now.done == now.total:
            self.console.print(f"{time.strftime('%H:%M:%S')} {now.stage} {now.done}/{now.total}{loss}")


if __name__ == "__main__":
    sys.exit(main())
