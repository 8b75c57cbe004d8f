"""Overhead of a training step beyond forward and backward, as a share of these.

Blocks of both kinds alternate in one run on the same batches: (a) the steps of `anomseg train`: waiting for frames that
worker processes augment, forward, loss, backward, clearing gradients, optimizer, averaged weights, loss check, progress
and log; (b) a bare loop: forward, loss and backward on batches in memory. The share is (median a - median b) /
median b. The first steps of each block (a) use batches that the workers prepared during (b), so they are not counted.
Validation and saving the state occur once in hundreds of steps and are excluded. Frames are those of CamVid if the
shared data folder has it, else synthetic ones.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import DATA, write_result

NETWORKS = ("enet", "erfnet")
PREFETCHED = 4  # batches that each worker prepares (torch's prefetch_factor in training/data.py)
HEIGHT_PX, WIDTH_PX, BATCH_SIZE = 288, 384, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="networks to measure")
    parser.add_argument("--rounds", type=int, default=4, help="alternating blocks of each kind")
    parser.add_argument("--block", type=int, default=6, help="counted steps per block")
    parser.add_argument("--threads", type=int, default=1, help="threads of the trainer; the workers take a core each")
    parser.add_argument("--workers", type=int, default=1, help="worker processes that augment")
    parser.add_argument("--precision", default="bf16-mixed", help="precision of forward and backward")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))  # before torch is imported
    results = {name: measure(name, args) for name in args.networks}
    for name, row in results.items():
        print(f"{name:>8}: forward and backward {row['forward_backward_ms']:.0f} ms, step {row['step_ms']:.0f} ms, "
              f"beyond {row['beyond_share']:.1%}, of it waiting for frames {row['waited_share']:.1%}")  # fmt: skip
    settings = {"height_px": HEIGHT_PX, "width_px": WIDTH_PX, "batch_size": BATCH_SIZE, "frames": frames_source()[0]}
    settings |= {"threads": args.threads, "workers": args.workers, "precision": args.precision}
    print(write_result("train_step", {**settings, "by_network": results}))


def frames_source() -> tuple[str, str]:
    """Return name and path of the dataset: CamVid, or synthetic frames if it is missing."""
    return ("camvid", str(DATA / "CamVid")) if (DATA / "CamVid").is_dir() else ("synthetic", "0:24")


def measure(network: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one network."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(network, args, Path(folder))
        bare, whole, waited = [], [], []
        for _ in range(args.rounds):
            for _ in range(PREFETCHED * args.workers + 1):
                trainer.step()
            steps = [trainer.step() for _ in range(args.block)]
            whole += [step_ms for step_ms, *_ in steps]
            waited += [wait_ms for _, wait_ms, _ in steps]
            bare += [trainer.forward_backward(batch) for *_, batch in steps]
        trainer.run.journal.close()
    bare_ms, step_ms = statistics.median(bare), statistics.median(whole)
    return {
        "forward_backward_ms": bare_ms,
        "step_ms": step_ms,
        "beyond_share": (step_ms - bare_ms) / bare_ms,
        "waited_share": statistics.median(waited) / bare_ms,
    }


class Trainer:
    """A training run that is executed step by step."""

    def __init__(self, network: str, args: argparse.Namespace, folder: Path) -> None:
        from anomseg_ros.training import loop
        from anomseg_ros.training.data import training_batches
        from anomseg_ros.training.processes import start_processes
        from anomseg_ros.training.start import set_training_mode

        config = configuration(network, args)
        fabric = start_processes(config.run)
        self.run = loop._prepare(config, folder, loop.Sources(), fabric, lambda now: None)
        self.run.restore()
        set_training_mode(self.run.network)
        self.done, self.last = 0, None
        self.batches = self._remember_last(
            training_batches(self.run.frames, config, self.run.plan, self.run.void_class, 0, 0)
        )

    def _remember_last(self, batches: Iterator[Any]) -> Iterator[Any]:
        for self.last in batches:
            yield self.last

    def step(self) -> tuple[float, float, Any]:
        """Run one step like the trainer. Returns its duration, the wait for frames (both ms), and its batch."""
        run = self.run
        before = run.clock.seconds["wait"]
        started = time.perf_counter()
        terms = run._step(self.done, self.batches)
        self.done += 1
        run.position = type(run.position)(step=self.done, seconds=run.position.seconds + run.clock.lap())
        run._progress(terms["total"])
        waited = run.clock.seconds["wait"] - before
        run.journal.step(self.done, terms, run.optimizer.param_groups[0]["lr"], run.clock)
        return (time.perf_counter() - started) * 1e3, waited * 1e3, self.last

    def forward_backward(self, batch: Any) -> float:
        """Return the time of forward, loss and backward alone, milliseconds."""
        run = self.run
        started = time.perf_counter()
        terms = run.trainee(batch.images, batch.target, [], 0)
        run.fabric.backward(terms["total"])
        elapsed_ms = (time.perf_counter() - started) * 1e3
        run.optimizer.zero_grad(set_to_none=True)
        return elapsed_ms


def configuration(network: str, args: argparse.Namespace) -> Any:
    """Return a configuration similar to the shipped ones for CamVid."""
    from anomseg_ros.training.config import parse_config

    dataset, path = frames_source()
    data = {"dataset": dataset, "path": path, "height_px": 360, "width_px": 480, "allow_partial": True}
    if dataset == "synthetic":
        data |= {"train_split": "", "validation_split": ""}
    augment = {"crop_height_px": HEIGHT_PX, "crop_width_px": WIDTH_PX, "scale": [0.75, 1.75], "gain": [0.7, 1.3]}
    augment |= {"gamma": [0.75, 1.3], "tint": 0.07, "blur_sigma_px": 1.0, "noise_sigma": 6.0}
    run = {"epochs": 100, "batch_size": BATCH_SIZE, "precision": args.precision, "ema_decay": 0.998}
    run |= {"threads": args.threads, "accelerator": "cpu"}
    plain = {"name": f"{network}-step", "network": {"name": network}, "data": {**data, "workers": args.workers}}
    plain |= {"augment": augment, "run": run, "loss": {"class_weights_c": 1.1}}
    return parse_config(plain, "benchmark")


if __name__ == "__main__":
    main()
