"""Which paths are bags. Needs no library, so that programs without bags can ask."""

from __future__ import annotations

from pathlib import Path

BAG_SUFFIXES = (".mcap", ".db3", ".bag")

HOW_TO_MAKE = "`anomseg bag write --images PATH --output BAG` makes a bag of a folder of images or a video"


def is_bag(path: Path) -> bool:
    """Return whether a path is a bag by its name or, of a folder, by what is in it."""
    if path.is_dir():
        return (path / "metadata.yaml").is_file() or any(file.suffix in BAG_SUFFIXES[:2] for file in path.iterdir())
    return path.suffix in BAG_SUFFIXES
