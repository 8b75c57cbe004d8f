"""Kinds of problems with the files of a dataset, and the remedy for each."""

from __future__ import annotations

from pathlib import Path

from anomseg_ros.errors import DatasetError

REMEDIES = {
    "image without labels": "unpack the labels again, or move the images that have none elsewhere",
    "labels without an image": "unpack the images again; both archives must be of the same release",
    "same name twice": "keep one of the files; frames are matched by their names",
    "unreadable": "the file is damaged or cut short: unpack or download it again",
    "labels of another size": "labels must have the size of their image; do not resize either",
    "unknown label values": (
        "these may be the labels of another dataset, or colours (`anomseg datasets import colors` reads those); values "
        "of your own go into classes.yaml; see docs/datasets.md"
    ),
    "no base image": "its picture is of Lost and Found or Cityscapes: put that leftImg8bit folder beside this one",
}


class FrameProblem(DatasetError):
    """One file that cannot be used. kind: a key of REMEDIES; file: its path; detail: what was found, may be empty."""

    def __init__(self, kind: str, file: Path, detail: str = "") -> None:
        """Compose the message: kind, file, detail and remedy."""
        self.kind, self.file, self.detail = kind, file, detail
        super().__init__(f"{kind}: {str(file)!r}{f' ({detail})' if detail else ''}; {REMEDIES[kind]}")

    def __reduce__(self) -> tuple[type[FrameProblem], tuple[str, Path, str]]:
        """Make the error picklable, so that worker processes can raise it."""
        return FrameProblem, (self.kind, self.file, self.detail)
