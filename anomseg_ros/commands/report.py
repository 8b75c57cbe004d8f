"""`anomseg report`: the page of an evaluation that was saved as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anomseg_ros.commands import options
from anomseg_ros.evaluation.report import write_report
from anomseg_ros.evaluation.results import load_evaluation


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page, print its path and return 0."""
    parser = options.parser("report", "Make the self-contained HTML page of an evaluation's JSON (without overlays).")
    parser.add_argument("evaluation", type=Path, metavar="JSON", help="what `anomseg evaluate --json` wrote")
    parser.add_argument("--html", type=Path, metavar="FILE", help="where to write; by default beside the JSON")
    args = parser.parse_args(argv)
    path: Path = args.html if args.html is not None else args.evaluation.with_suffix(".html")
    write_report(load_evaluation(args.evaluation), path)
    print(path)
    return 0
