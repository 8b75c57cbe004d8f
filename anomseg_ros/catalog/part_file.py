"""The file that a download grows in, beside its target: it survives breaks and never mixes two versions of a file."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from anomseg_ros.catalog.http import DownloadError
from anomseg_ros.core.schema import from_plain
from anomseg_ros.errors import ConfigError


@dataclass(frozen=True)
class Version:
    """Which file the bytes so far belong to. etag: a strong one only; total_bytes: None where it is not said."""

    url: str
    etag: str | None = None
    last_modified: str | None = None
    total_bytes: int | None = None

    @property
    def validator(self) -> str | None:
        """What If-Range needs to continue the same file and nothing else."""
        return self.etag or self.last_modified


class PartFile:
    """`<target>.part` and, in `<target>.part.json`, its Version. A context manager: one process at a time."""

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
            # O_NOFOLLOW: a link in the folder must not lead the bytes elsewhere.
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.size == 0:
            self.discard()
        self._close()

    def restart(self, version: Version) -> None:
        """Forget the bytes so far; those to come belong to `version`."""
        os.ftruncate(self._handle, 0)
        self.size, self.version = 0, version
        self._write(self._note, json.dumps(asdict(version), indent=1).encode())

    def append(self, data: bytes) -> None:
        """Add bytes at the end. Raises DownloadError for a full disk; what is there stays."""
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

    def keep(self) -> None:
        """Give the complete file its name."""
        os.fsync(self._handle)
        os.replace(self.path, self.target)
        self._note.unlink(missing_ok=True)

    def _read_note(self) -> Version | None:
        # A note that is damaged or missing makes the bytes worthless, but harmless: they are fetched again.
        try:
            data: Any = json.loads(self._note.read_text(encoding="utf-8"))
            return from_plain(Version, data, str(self._note))
        except (OSError, ValueError, ConfigError):
            return None

    def _write(self, path: Path, data: bytes) -> None:
        try:
            path.write_bytes(data)
        except OSError as error:
            raise self._no_room(path, error) from error

    def _no_room(self, path: Path, error: OSError) -> DownloadError:
        return DownloadError(
            f"{path} cannot be written: {error.strerror}; {self.size} bytes are kept in {self.path}: make room and run "
            "the same command again to continue"
        )

    def _close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
