"""The output of `anomseg tune`: the chosen bundle with the goal and the measurements."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from anomseg_ros.bench.figures import BenchReport, Entry, save_report
from anomseg_ros.bench.picture_files import write_picture
from anomseg_ros.core.bundle import Bundle, Contract, change_bundle
from anomseg_ros.core.schema import to_plain
from anomseg_ros.tuning.choice import TuneGoal

PROTOCOL = "seeds"
"""Protocol of the accuracies."""

EVIDENCE = ("evidence.json", "evidence.svg")


def write_evidence(report: BenchReport, svg: str, files: Mapping[str, Path]) -> None:
    """Write the report and the picture. files: name of EVIDENCE -> path."""
    save_report(report, files["evidence.json"])
    write_picture(svg, files["evidence.svg"])


def write_tuned(
    bundle: Bundle, goal: TuneGoal, chosen: Entry, report: BenchReport, svg: str, output: Path, overwrite: bool
) -> Bundle:
    """Write the chosen bundle with all files of its folder and the evidence.

    Args:
        bundle: the chosen one.
        goal: of the tune.
        chosen: its measurements.
        report: of all candidates.
        svg: the picture.
        output: directory of the new bundle.
        overwrite: whether to replace a bundle there.
    """
    with tempfile.TemporaryDirectory(prefix="anomseg-") as folder:
        evidence = {name: Path(folder) / name for name in EVIDENCE}
        write_evidence(report, svg, evidence)
        change = partial(tuned_contract, goal=goal, chosen=chosen, report=report)
        return change_bundle(bundle, change, output, files=evidence, overwrite=overwrite)


def tuned_contract(contract: Contract, goal: TuneGoal, chosen: Entry, report: BenchReport) -> Contract:
    """Return the contract with goal and measurements under `compression: tuned`, and with the measured quality."""
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
    if chosen.engine:
        tuned["engine"] = dict(chosen.engine)
    if chosen.power is not None and chosen.power.mean_power_w is not None:
        tuned["power"] = to_plain(chosen.power)
    quality = dict(contract.quality)
    if chosen.accuracy.metric != "label_agreement":
        figures = {chosen.accuracy.metric: round(chosen.accuracy.value, 6), "protocol": PROTOCOL, "score": chosen.score}
        quality[chosen.accuracy.dataset] = figures
    return replace(contract, quality=quality, compression={**contract.compression, "tuned": tuned})
