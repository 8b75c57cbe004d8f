"""The folder of downloaded checkpoints, and the digests that tell whether they changed."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from anomseg_ros.catalog.download import SIZE_LIMIT_BYTES, download
from anomseg_ros.catalog.entries import CatalogEntry
from anomseg_ros.catalog.http import DownloadError, HttpRules
from anomseg_ros.core.bundle import sha256_of
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.schema import from_plain
from anomseg_ros.core.staging import replace_text
from anomseg_ros.core.untrusted_text import parse_json
from anomseg_ros.errors import CheckpointError, ConfigError

FOLDER_VARIABLE = "ANOMSEG_CHECKPOINTS"


@dataclass(frozen=True)
class Record:
    """The record of a download, in `<file>.fetched.json` beside it. licence: the accepted one."""

    name: str
    url: str
    size_bytes: int
    sha256: str
    fetched: str
    licence: str


@dataclass(frozen=True)
class Fetched:
    """A checkpoint on this machine. checked_against: the compared digests, in words. new: just downloaded."""

    path: Path
    sha256: str
    checked_against: str
    new: bool


def checkpoint_folder() -> Path:
    """Return the folder of downloads: $ANOMSEG_CHECKPOINTS, else one in the user's data folder (XDG)."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        return Path(folder)
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "anomseg_ros" / "checkpoints"


def record_path(checkpoint: Path) -> Path:
    """Return the path of a downloaded file's record."""
    return checkpoint.with_name(f"{checkpoint.name}.fetched.json")


def read_record(checkpoint: Path) -> Record | None:
    """Return the record of a downloaded file, None without one. Raises CheckpointError if it is damaged."""
    path = record_path(checkpoint)
    if not path.is_file():
        return None
    try:
        return from_plain(Record, parse_json(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError, ConfigError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}); delete it and {checkpoint.name}, and fetch again"
        ) from error


def verify(checkpoint: Path, entry: CatalogEntry | None = None) -> Fetched:
    """Compare a file with the digests of the catalog and of its record.

    Raises CheckpointError if the file is missing or changed, or if there is no digest to compare with.
    """
    if not checkpoint.is_file():
        raise CheckpointError(f"{checkpoint} is not there; `anomseg models fetch` downloads it")
    digest = sha256_of(checkpoint)
    record = read_record(checkpoint)
    against = _compare(checkpoint, digest, entry, record)
    if not against:
        raise CheckpointError(
            f"{checkpoint} has sha256 {digest}, and there is nothing to compare it with: no digest is published and "
            f"{record_path(checkpoint).name} is missing; delete it and fetch it again"
        )
    return Fetched(checkpoint, digest, " and ".join(against), new=False)


def fetch(
    entry: CatalogEntry,
    folder: Path,
    *,
    limit_bytes: int = SIZE_LIMIT_BYTES,
    rules: HttpRules | None = None,
    progress: Progress = no_progress,
) -> Fetched:
    """Download a published checkpoint and record its digest. A file that is there already is only verified.

    The caller asks for acceptance of the licence.

    Args:
        entry: the checkpoint.
        folder: place of the file.
        limit_bytes: largest size if the entry has none.
        rules, progress: see `download`.

    Raises:
        DownloadError: the download failed, or the file is the wrong one.
        CheckpointError: a file that is there already is the wrong one.
    """
    target, against = folder / entry.file, list[str]()
    if target.exists():
        return verify(target, entry)
    before = read_record(target)

    def check_and_record(part: Path) -> None:
        digest = sha256_of(part)
        try:
            against.extend(_compare(part, digest, entry, before))
        except CheckpointError as error:
            raise DownloadError(f"{entry.url}: {error}; the download was removed") from error
        # Before the file gets its name: a kill in between must not leave a file without a record.
        _write_record(target, entry, part.stat().st_size, digest)

    download(
        entry.url,
        target,
        check_and_record,
        size_bytes=entry.size_bytes,
        limit_bytes=limit_bytes,
        checkable=bool(entry.sha256 or entry.git_blob_sha1 or before),
        rules=rules,
        progress=progress,
    )
    record = read_record(target)
    assert record is not None  # written by check_and_record
    return Fetched(target, record.sha256, " and ".join(against), new=True)


def git_blob_sha1_of(path: Path) -> str:
    """Return git's id of a file's content."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _compare(path: Path, digest: str, entry: CatalogEntry | None, record: Record | None) -> list[str]:
    """Return the digests that the file was compared with; raise CheckpointError if one differs."""
    against = []
    if entry and entry.sha256:
        _require_equal(path, "sha256", "the catalog", entry.sha256, digest)
        against.append("the sha256 of the catalog")
    if entry and entry.git_blob_sha1:
        _require_equal(path, "git blob id", "the catalog", entry.git_blob_sha1, git_blob_sha1_of(path))
        against.append("the git blob id of the catalog")
    if record:
        _require_equal(path, "sha256", f"its record of {record.fetched}", record.sha256, digest)
        against.append(f"the sha256 recorded when it was fetched on {record.fetched}")
    return against


def _require_equal(path: Path, kind: str, source: str, expected: str, actual: str) -> None:
    if actual != expected:
        raise CheckpointError(
            f"{path} is not the expected file: {source} says {kind} {expected}, got {actual}: changed, damaged or "
            "replaced; where you trust the new one, delete the file and its .fetched.json and fetch again"
        )


def _write_record(target: Path, entry: CatalogEntry, size_bytes: int, digest: str) -> None:
    path, today = record_path(target), datetime.now(timezone.utc).date().isoformat()
    record = Record(entry.name, entry.url, size_bytes, digest, today, entry.licence.name)
    try:
        replace_text(path, json.dumps(asdict(record), indent=2) + "\n")
    except OSError as error:
        raise DownloadError(f"{path} cannot be written: {error.strerror}; make room and fetch again") from error
