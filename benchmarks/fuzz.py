"""Fuzzing: hostile inputs for everything that reads external data. Only declared errors may result from them.

`--target NAME …` selects targets of fuzzing/targets.py, or `node`, the live node over ROS 2; the default is all. Each
target runs in separate processes under supervision. Faults are: other exceptions, inputs that do not return, excessive
memory, files written elsewhere, and processes that die. Inputs are numbered, and an input depends only on seed, target
and number: `--only NUMBER` repeats one with its traceback. The result goes to benchmarks/results/fuzz.json; --resume
continues from there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import RESULTS, write_result
from fuzzing.inputs import Fault, Tally, generator_of
from fuzzing.targets import TARGETS, open_target
from fuzzing.workers import run_target
from rich.progress import Progress

NODE = "node"
RESULT = "fuzz"
SAVE_S = 20.0
SHOWN_FAULTS = 20
BUNDLE_SIZE = (32, 64)


def main() -> int:
    args = _parser().parse_args()
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    chosen = args.target or [*TARGETS, NODE]
    names = [name for name in chosen if name != NODE]
    if args.only is not None and len(names) != 1:
        raise SystemExit("--only repeats one input of one target: give --target with its name")
    with tempfile.TemporaryDirectory() as folder:
        bundle = small_bundle(Path(folder) / "bundle")
        if args.only is not None:
            return repeat(names[0], args.seed, args.only, Path(folder), bundle)
        record = Record(args.seed, args.resume)
        until = time.monotonic() + args.seconds if args.seconds else float("inf")
        share_s = args.seconds / len(chosen) if args.seconds else float("inf")
        for name in names:
            fuzz_target(name, args.count, bundle, record, min(until, time.monotonic() + share_s))
        if NODE in chosen:
            from fuzzing.live_node import fuzz_node

            record.add(NODE, fuzz_node(bundle, args.seed, record.done(NODE), args.node_count, until))
    print(record.save())
    return 1 if record.faulty else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", nargs="+", choices=[*TARGETS, NODE], metavar="NAME", help="default: all")
    parser.add_argument("--seed", type=int, default=0, help="seed of all inputs (default: 0)")
    parser.add_argument("--count", type=int, default=10_000, help="inputs per target (default: 10000)")
    parser.add_argument("--node-count", type=int, default=10_000, help="messages to the live node (default: 10000)")
    parser.add_argument("--seconds", type=float, help="total time, shared by the targets (default: no limit)")
    parser.add_argument("--resume", action="store_true", help="continue from the existing result, with its seed")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="repeat one input of one target in this process")
    return parser


class Record:
    """Results so far, in the form of benchmarks/results/fuzz.json."""

    def __init__(self, seed: int, resume: bool) -> None:
        path = RESULTS / f"{RESULT}.json"
        earlier = json.loads(path.read_text(encoding="utf-8")) if resume and path.is_file() else {}
        self.seed: int = earlier.get("seed", seed)
        self.targets: dict[str, dict[str, Any]] = earlier.get("targets", {})
        if self.seed != seed:
            raise SystemExit(f"{path} has seed {self.seed}, not {seed}: give --seed {self.seed}, or omit --resume")

    def done(self, name: str) -> int:
        """Return the number of inputs that a target has processed."""
        return int(self.targets.get(name, {}).get("inputs", 0))

    def add(self, name: str, found: Mapping[str, Any]) -> None:
        """Add counts and faults to those of a target; replace its other values."""
        entry = self.targets.setdefault(name, {})
        for key, value in found.items():
            adds = isinstance(value, (int, list)) and not isinstance(value, bool)
            entry[key] = entry[key] + value if adds and key in entry else value

    @property
    def faulty(self) -> list[str]:
        """The targets with faults."""
        return [name for name, entry in self.targets.items() if entry.get("faults")]

    def save(self) -> Path:
        """Write the result; return its path."""
        inputs = sum(entry["inputs"] for entry in self.targets.values())
        return write_result(RESULT, {"seed": self.seed, "inputs": inputs, "targets": self.targets})


def fuzz_target(name: str, count: int, bundle: Path, record: Record, until: float) -> None:
    """Run a target until it has processed `count` inputs, including earlier runs. Save the results regularly."""
    first = record.done(name)
    earlier = dict(record.targets.get(name, {}))
    saved = time.monotonic()
    with Progress() as progress:
        task = progress.add_task(name, total=count, completed=first)

        def on_progress(tally: Tally) -> None:
            nonlocal saved
            progress.update(task, completed=first + tally.inputs)
            if time.monotonic() - saved > SAVE_S:
                saved = time.monotonic()
                store(tally)
                record.save()

        def store(tally: Tally) -> None:
            record.targets[name] = dict(earlier)
            record.add(name, tally_to_entry(name, record.seed, tally))

        tally = run_target(name, record.seed, first, count, bundle, on_progress, until)
        store(tally)
    for fault in summary(tally.faults)[:SHOWN_FAULTS]:
        print(f"{name} {fault}")
    record.save()


def tally_to_entry(name: str, seed: int, tally: Tally) -> dict[str, Any]:
    """Return a tally in the form of the result, with the command that repeats each fault."""
    command = f"python benchmarks/fuzz.py --target {name} --seed {seed} --only"
    faults = [{**asdict(fault), "command": f"{command} {fault.index}"} for fault in tally.faults]
    return {"inputs": tally.inputs, "accepted": tally.accepted, "refused": tally.refused, "faults": faults}


def summary(faults: Sequence[Fault]) -> list[str]:
    """Return one line per kind and place of faults, with the number of faults and the first input."""
    kinds: dict[tuple[str, str], list[Fault]] = {}
    for fault in faults:
        kinds.setdefault((fault.error.split(":")[0], fault.where), []).append(fault)
    return [
        f"{len(same)} × {same[0].error} ({where}), first input {same[0].index}" for (_, where), same in kinds.items()
    ]


def repeat(name: str, seed: int, index: int, folder: Path, bundle: Path) -> int:
    """Run one input in this process and print its traceback. Return 1 if it is a fault."""
    place = folder / "inputs"
    place.mkdir()
    target = open_target(TARGETS[name], place, bundle)
    case = target.make(generator_of(seed, name, index))
    print(f"{name} {index}: {case!r:.2000}")
    try:
        target.check(case)
        print("accepted")
    except target.refusals as error:
        print(f"refused: {error}")
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def small_bundle(folder: Path) -> Path:
    """Export MiDE-Net with seeded random weights and a tiny input size; return the bundle's folder."""
    import torch

    from anomseg_ros.core.bundle import Provenance
    from anomseg_ros.export import ExportConfig, export_network
    from anomseg_ros.networks import build_network

    torch.manual_seed(0)
    height, width = BUNDLE_SIZE
    scores = ("void", "max_logit", "msp")
    config = ExportConfig("tiny", 20, 19, height_px=height, width_px=width, scores=scores)
    return export_network(build_network("mide_net", 20).eval(), "mide_net", config, folder, Provenance())[0].directory


if __name__ == "__main__":
    sys.exit(main())
