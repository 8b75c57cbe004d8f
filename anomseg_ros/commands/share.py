"""`anomseg share`: print the paths of files that ship with the package, for scripts and launch files."""

from __future__ import annotations

import argparse

from anomseg_ros.commands import options
from anomseg_ros.core.resources import share_directories, share_file, shipped_bundles


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg share`."""
    parser = options.parser("share", "Print the path of a file that ships with anomseg_ros.")
    file_help = "file, such as config/fastdds.xml (default: list the folders and bundles)"
    parser.add_argument("file", nargs="?", help=file_help)
    return parser


def main(argv: list[str]) -> int:
    """Print the path of a shipped file or, without one, the shipped folders and bundles; return 0."""
    args = argument_parser().parse_args(argv)
    if args.file:
        print(share_file(args.file))
        return 0
    for folder in share_directories():
        print(folder)
    for name, path in shipped_bundles().items():
        print(f"bundle {name}: {path}")
    return 0
