"""`anomseg report`: write the HTML page of an evaluation from its JSON file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from anomseg_ros.commands import options
from anomseg_ros.commands.result_files import print_differences
from anomseg_ros.evaluation.report import write_report
from anomseg_ros.evaluation.results import load_evaluation, stated_frames


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg report`."""
    parser = options.parser(
        "report", "Write the HTML page of an evaluation from its JSON, as one self-contained file without overlays."
    )
    parser.add_argument("evaluation", type=Path, metavar="JSON", help="file of `anomseg evaluate --json`")
    html_help = "file to write (default: the name of the JSON with the suffix .html)"
    parser.add_argument("--html", type=options.output_file, metavar="FILE", help=html_help)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and print its path; return 0, or 1 if the JSON has fewer frames than it states."""
    args = argument_parser().parse_args(argv)
    path: Path = args.html if args.html is not None else args.evaluation.with_suffix(".html")
    evaluation = load_evaluation(args.evaluation)
    write_report(evaluation, path)
    print(path)
    return print_differences(stated_frames(evaluation, str(args.evaluation)))
