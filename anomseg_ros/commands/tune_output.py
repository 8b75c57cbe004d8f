"""What `anomseg tune` writes: the chosen bundle, with what was asked and measured."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from anomseg_ros.bench.choice import TuneGoal
from anomseg_ros.bench.results import BenchReport, Entry, save_report
from anomseg_ros.commands.bench_output import write_picture
from anomseg_ros.core.bundle import Bundle, Contract, change_bundle

PROTOCOL = "seeds"
"""Of the evaluations that accuracies come from."""

EVIDENCE = ("evidence.json", "evidence.svg")


def write_evidence(report: BenchReport, svg: str, files: Mapping[str, Path]) -> None:
    """Write the report and the picture; files: name of EVIDENCE -> path."""
    save_report(report, files["evidence.json"])
    write_picture(svg, files["evidence.svg"])


def write_tuned(
    bundle: Bundle, goal: TuneGoal, chosen: Entry, report: BenchReport, svg: str, output: Path, overwrite: bool
) -> Bundle:
    """Write the chosen bundle, with all that lies in its folder, and the evidence."""
    with tempfile.TemporaryDirectory(prefix="anomseg-") as folder:
        evidence = {name: Path(folder) / name for name in EVIDENCE}
        write_evidence(report, svg, evidence)
        change = partial(tuned_contract, goal=goal, chosen=chosen, report=report)
        return change_bundle(bundle, change, output, files=evidence, overwrite=overwrite)


def tuned_contract(contract: Contract, goal: TuneGoal, chosen: Entry, report: BenchReport) -> Contract:
    """Return the contract with what was asked and measured, under `compression: tuned`, and the measured quality."""
    assert chosen.accuracy is not None
    tuned = {
        "asked": goal.words,
        "backend": chosen.backend,
        "actual": chosen.actual,
        "threads": chosen.threads,
        "latency_ms": {name: round(value, 3) for name, value in chosen.latency_ms.items()},
        "rounds": chosen.rounds,
        "accuracy": {**asdict(chosen.accuracy), "value": round(chosen.accuracy.value, 6)},
        "candidates": len(report.entries),
        "machine": dict(report.machine),
        "created": report.created,
    }
    quality = dict(contract.quality)
    if chosen.accuracy.metric != "label_agreement":
        figures = {chosen.accuracy.metric: round(chosen.accuracy.value, 6), "protocol": PROTOCOL, "score": chosen.score}
        quality[chosen.accuracy.dataset] = figures
    return replace(contract, quality=quality, compression={**contract.compression, "tuned": tuned})


def print_choice(console: Console, written: Bundle, chosen: Entry, goal: TuneGoal) -> None:
    """Print what was chosen, where it is and how to run it."""
    assert chosen.accuracy is not None
    threads = "all threads (0)" if chosen.threads == 0 else f"{chosen.threads} thread(s)"
    console.print(
        f"{goal.words}: {chosen.title}, {goal.latency} {chosen.latency_ms[goal.latency]:.1f} ms, "
        f"{chosen.accuracy.metric} {100 * chosen.accuracy.value:.2f} %; written to {written.directory}; "
        f"run it on {chosen.backend} with {threads}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
