"""`anomseg doctor`: what works on this machine, and what to do about what does not."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from anomseg_ros.commands import options
from anomseg_ros.core.output_files import write_file
from anomseg_ros.doctor import SLOW, examine
from anomseg_ros.doctor.finding import ABSENT, OK, PROBLEM, Finding

STYLES = {OK: "green", ABSENT: "yellow", PROBLEM: "bold red"}


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg doctor`."""
    parser = options.parser(
        "doctor",
        "Examine this installation: libraries, shipped models, every backend on a self-test frame, ROS 2 with its "
        "shared memory, image topics and cameras. What is optional and not there is called absent; a problem is what "
        "is there and does not work, and makes the exit status 1.",
    )
    parser.add_argument("--json", type=options.output_file, help="JSON file for the findings")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings as they are made; return 0 if nothing is a problem, else 1."""
    args = argument_parser().parse_args(argv)
    console = Console()
    findings: list[Finding] = []
    for finding in examine(lambda area: _print_start(console, area)):
        _print(console, finding)
        findings.append(finding)
    problems = sum(finding.state == PROBLEM for finding in findings)
    console.print(f"\n{_count(problems)}", style=STYLES[PROBLEM if problems else OK], highlight=False)
    if args.json:
        write_file(args.json, json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    return 1 if problems else 0


def _print_start(console: Console, area: str) -> None:
    console.print(f"\n{area}", style="bold", highlight=False)
    if area in SLOW:
        console.print(f"  {SLOW[area]} …", style="dim", highlight=False)


def _print(console: Console, finding: Finding) -> None:
    line = Text(f"  {finding.state:8}", STYLES[finding.state])
    line.append(f"{finding.name}: {finding.text}", "default")
    console.print(line, soft_wrap=True)
    if finding.remedy:
        console.print(f"          -> {finding.remedy}", soft_wrap=True, highlight=False, markup=False)


def _count(problems: int) -> str:
    if not problems:
        return "no problems"
    return f"{problems} problem{'s' if problems > 1 else ''}; what to do is below each"
