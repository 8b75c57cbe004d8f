"""`anomseg share`: where the files that ship with the package are, for use in scripts and launch files."""

from __future__ import annotations

import argparse

from anomseg_ros.core.resources import share_directories, share_file, shipped_bundles


def main(argv: list[str]) -> int:
    """Print the path of one shipped file, or what ships."""
    parser = argparse.ArgumentParser(
        prog="anomseg share", description="Print where a file that ships with anomseg_ros is."
    )
    parser.add_argument("file", nargs="?", help="such as config/fastdds.xml (default: list what there is)")
    args = parser.parse_args(argv)
    if args.file:
        print(share_file(args.file))
        return 0
    for folder in share_directories():
        print(folder)
    for name, path in shipped_bundles().items():
        print(f"bundle {name}: {path}")
    return 0
