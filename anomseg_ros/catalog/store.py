"""Where downloaded checkpoints are, and how it is known that they are still what they were."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from anomseg_ros.catalog.download import SIZE_LIMIT_BYTES, Progress, download
from anomseg_ros.catalog.entries import CatalogEntry
from anomseg_ros.catalog.http import DownloadError, HttpRules
from anomseg_ros.core.bundle import sha256_of
from anomseg_ros.core.schema import from_plain
from anomseg_ros.errors import CheckpointError, ConfigError

FOLDER_VARIABLE = "ANOMSEG_CHECKPOINTS"


@dataclass(frozen=True)
class Record:
    """What was downloaded, beside it as `<file>.fetched.json`; licence: the one that was accepted."""

    name: str
    url: str
    size_bytes: int
    sha256: str
    fetched: str
    licence: str


@dataclass(frozen=True)
class Fetched:
    """A checkpoint on this machine. checked_against: what it was compared with, in words; new: just downloaded."""

    path: Path
    sha256: str
    checked_against: str
    new: bool


def checkpoint_folder() -> Path:
    """Return the folder that downloads go to: $ANOMSEG_CHECKPOINTS, else the user's data folder (XDG)."""
    given = os.environ.get(FOLDER_VARIABLE)
    if given:
        return Path(given)
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "anomseg_ros" / "checkpoints"


def record_path(checkpoint: Path) -> Path:
    """Return where the record of a downloaded file is."""
    return checkpoint.with_name(f"{checkpoint.name}.fetched.json")


def read_record(checkpoint: Path) -> Record | None:
    """Return what was recorded when the file was downloaded, None without a record. Raises CheckpointError."""
    path = record_path(checkpoint)
    if not path.is_file():
        return None
    try:
        return from_plain(Record, json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError, ConfigError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}); delete it and {checkpoint.name}, and fetch again"
        ) from error


def verify(checkpoint: Path, entry: CatalogEntry | None = None) -> Fetched:
    """Compare a file with the digest of the catalog and with the one recorded when it was downloaded.

    Raises CheckpointError: missing, changed, or nothing to compare with.
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
    progress: Progress = lambda done, total: None,
) -> Fetched:
    """Bring a published checkpoint into `folder` and record its digest; only verify it where it is there already.

    Raises DownloadError or CheckpointError. Whether its licence is accepted is the caller's affair.
    """
    target = folder / entry.file
    if target.exists():
        return verify(target, entry)
    against: list[str] = []
    before = read_record(target)

    def check_and_record(part: Path) -> None:
        digest = sha256_of(part)
        try:
            against.extend(_compare(part, digest, entry, before))
        except CheckpointError as error:
            raise DownloadError(f"{entry.url}: {error}; the download was removed") from error
        # Before the file has its name: a kill in between must not leave a file that nothing vouches for.
        _write_record(target, _record(entry, part.stat().st_size, digest))

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
    """Return the id that git gives the content of a file."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _compare(path: Path, digest: str, entry: CatalogEntry | None, record: Record | None) -> list[str]:
    """Return what the file was compared with; raise CheckpointError where it differs."""
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


def _record(entry: CatalogEntry, size_bytes: int, digest: str) -> Record:
    today = datetime.now(timezone.utc).date().isoformat()
    return Record(entry.name, entry.url, size_bytes, digest, today, entry.licence.name)


def _write_record(target: Path, record: Record) -> None:
    path = record_path(target)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise DownloadError(f"{path} cannot be written: {error.strerror}; make room and fetch again") from error
