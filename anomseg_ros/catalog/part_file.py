"""The file of an unfinished download. It survives interruptions and never mixes two versions of a file."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anomseg_ros.catalog.http import DownloadError
from anomseg_ros.core.schema import from_plain
from anomseg_ros.core.untrusted_text import parse_json
from anomseg_ros.errors import ConfigError


@dataclass(frozen=True)
class Version:
    """The version of the file on the server. etag: only a strong one. total_bytes: None if unknown."""

    url: str
    etag: str | None = None
    last_modified: str | None = None
    total_bytes: int | None = None

    @property
    def validator(self) -> str | None:
        """The value of If-Range that continues this version only."""
        return self.etag or self.last_modified


class PartFile:
    """`<target>.part`, with its Version in `<target>.part.json`. A context manager that locks out other processes."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self.size = 0
        self.version: Version | None = None
        self._note = target.with_name(f"{target.name}.part.json")
        self._handle = -1

    def __enter__(self) -> PartFile:
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            # O_NOFOLLOW: a link in the folder must not redirect the bytes.
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._close()
            raise DownloadError(f"{self.path} is being written by another fetch; wait for it to end") from error
        except OSError as error:
            self._close()
            raise DownloadError(
                f"{self.path} cannot be written: {error.strerror}; choose another folder with --output"
            ) from error
        self.size = os.lseek(self._handle, 0, os.SEEK_END)
        self.version = self._read_note()
        return self

    def __exit__(self, *_: object) -> None:
        if self.size == 0:
            self.discard()
        self._close()

    def restart(self, version: Version) -> None:
        """Discard the bytes and start with `version`."""
        os.ftruncate(self._handle, 0)
        self.size, self.version = 0, version
        try:
            self._note.write_text(json.dumps(asdict(version), indent=1), encoding="utf-8")
        except OSError as error:
            raise self._no_room(self._note, error) from error

    def append(self, data: bytes) -> None:
        """Append bytes. Raises DownloadError if the disk is full; earlier bytes stay."""
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(self._handle, view, self.size)
                self.size += written
                view = view[written:]
        except OSError as error:
            raise self._no_room(self.path, error) from error

    def discard(self) -> None:
        """Remove the bytes and their note."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def finish(self) -> None:
        """Give the complete file its name."""
        os.fsync(self._handle)
        os.replace(self.path, self.target)
        self._note.unlink(missing_ok=True)

    def _read_note(self) -> Version | None:
        # Without a readable note the bytes are downloaded again.
        try:
            data: Any = parse_json(self._note.read_text(encoding="utf-8"))
            return from_plain(Version, data, str(self._note))
        except (OSError, ValueError, ConfigError):
            return None

    def _no_room(self, path: Path, error: OSError) -> DownloadError:
        return DownloadError(
            f"{path} cannot be written: {error.strerror}; {self.size} bytes are kept in {self.path}: make room and run "
            "the same command again to continue"
        )

    def _close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
