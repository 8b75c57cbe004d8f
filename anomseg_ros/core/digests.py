"""Digests of a bundle's files, and the check that the files have them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from anomseg_ros.core.file_kinds import foreign_file
from anomseg_ros.errors import BundleError


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_digests(files: Mapping[str, str], directory: Path, contract: Path) -> None:
    """Raise BundleError unless every file (name -> SHA-256) is a plain file of the directory and as its digest says.

    contract: the file that lists them, for errors.
    """
    for name, expected in files.items():
        path = directory / name
        if path.name != name or path.is_symlink():
            raise BundleError(f"{contract}: file {name!r} must be a plain file inside the bundle")
        if not path.is_file():
            raise BundleError(f"{path} is missing; copy the whole bundle again")
        actual = sha256_of(path)
        if actual == expected:
            continue
        kind = foreign_file(path, "the file of the bundle")
        if kind is not None:
            raise BundleError(f"{path} {kind}")
        raise BundleError(
            f"{path} does not match its digest (sha256 {actual[:12]}…, {contract.name} says {expected[:12]}…): "
            "it was changed or damaged; copy or export the bundle again"
        )
