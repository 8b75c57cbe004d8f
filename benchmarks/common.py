"""What all benchmarks share: the machine's description, and results kept as JSON in benchmarks/results."""

from __future__ import annotations

import datetime
import json
import os
import sys
from pathlib import Path
from typing import Any

from anomseg_ros.evaluation.machine import describe_machine, package_versions

RESULTS = Path(__file__).resolve().parent / "results"


def machine_description() -> dict[str, Any]:
    """Return the processor, cores, memory, system, Python and package versions; no host names, users or paths."""
    return {**describe_machine(), "packages": package_versions()}


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Write benchmarks/results/NAME.json: the result with the machine, the command and the date; return its path."""
    arguments = [Path(part).name if os.path.isabs(part) else part for part in sys.argv[1:]]
    document = {
        "benchmark": name,
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments]),
        "machine": machine_description(),
        **result,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    part = path.with_suffix(".json.part")
    part.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    part.replace(path)
    return path
