"""The cache of engines: an engine is found again by everything that it depends on, and a miss says what differs.

<root>/<digest of the key>/engine.plan   the engine as TensorRT serialized it, or the package of AOTInductor
<root>/<digest of the key>/engine.json   the fields of the key, the plan's SHA-256, and what was measured

A plan is a program: loading it runs what it contains. So only folders and files are used that nobody but their owner,
this user, can write. An engine is written beside its place and renamed, so a killed process leaves none.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.staging import part_beside, put_in_place, remove, remove_leftovers, staging_folder
from anomseg_ros.errors import BackendError, describe_os_error

CODE_VERSION = 1
"""Raise it where this package builds or runs engines in another way, so that older engines are built anew."""

PLAN_FILE = "engine.plan"
FACTS_FILE = "engine.json"
FOLDER_MODE, FILE_MODE = 0o700, 0o600
MOST_FACTS_BYTES = 1 << 20
POLL_S = 0.2
REPORT_S = 1.0
LONGEST_WAIT_S = 3600.0
"""For another process's build, seconds. The longest builds, int8 on small Jetsons, take some tens of minutes."""


class Hardware(Protocol):
    """What a key takes of the GPU or processor that runs an engine."""

    @property
    def name(self) -> str: ...
    @property
    def compute_capability(self) -> str: ...
    @property
    def multiprocessors(self) -> int: ...
    @property
    def integrated(self) -> bool: ...


@dataclass(frozen=True)
class EngineKey:
    """Everything that an engine depends on.

    gpu_name: the processor's name where that runs the engine. tf32: layers of float32 may round their inputs to 10 bits
    of fraction. workspace_bytes: None for the library's own.
    """

    program_sha256: str
    outputs: tuple[str, ...]
    library: str
    version: str
    gpu_name: str
    compute_capability: str
    multiprocessors: int
    integrated: bool
    architecture: str
    dla_core: int | None = None
    tf32: bool = False
    workspace_bytes: int | None = None
    backend_version: int = CODE_VERSION

    @property
    def fields(self) -> dict[str, Any]:
        """The fields in the types of JSON."""
        return {**asdict(self), "outputs": list(self.outputs)}

    @property
    def digest(self) -> str:
        """SHA-256 of the fields as canonical JSON."""
        return _digest(self.fields)

    @property
    def gpu_slug(self) -> str:
        """Library, version and kind of GPU as part of a file name."""
        parts = self.library, self.version, self.gpu_name, self.compute_capability, str(self.multiprocessors)
        return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(parts))


@dataclass(frozen=True)
class Found:
    """An engine of the cache. plan: its bytes, which have been checked; read them from here, not from the path."""

    plan_path: Path
    facts: Mapping[str, Any]
    plan: bytes


@dataclass(frozen=True)
class Miss:
    """No engine. reason: what differs from the nearest one, in words."""

    reason: str


class EngineCache:
    """A folder of engines that several processes share."""

    def __init__(self, root: Path | None = None) -> None:
        """root: the folder, made where it is not there; None: $XDG_CACHE_HOME/anomseg_ros/tensorrt."""
        self.root = Path(os.path.realpath(root or default_root()))

    def find(self, key: EngineKey, any_of: Collection[str] = ()) -> Found | Miss:
        """Return the engine of a key, or why there is none.

        any_of: fields that may differ, such as "workspace_bytes" for a process that does not build. An engine that is
        damaged, or that was never checked, is none. Raises BackendError where another user could have written it.
        """
        if not self.root.is_dir():
            return Miss(f"there is no engine yet in {self.root}")
        _require_own(self.root)
        others = self._entries()
        differing = {digest: _differing(key.fields, fields) for digest, fields in others.items()}
        fitting = [digest for digest, names in differing.items() if set(names) <= set(any_of)]
        own = [key.digest] if (self.root / key.digest).is_dir() else []
        misses = []
        for digest in dict.fromkeys((*own, *fitting)):
            found = self._read(digest)
            if isinstance(found, Found):
                return found
            misses.append(found)
        if misses:
            return misses[0]
        if not differing:
            return Miss(f"there is no engine yet in {self.root}")
        nearest = min(differing, key=lambda digest: (len(differing[digest]), digest))
        changes = [
            f"{name} is {_short(key.fields.get(name))}, there {_short(others[nearest].get(name))}"
            for name in differing[nearest]
        ]
        return Miss(f"the nearest engine, {nearest[:12]}, differs: {'; '.join(changes)}")

    def store(self, key: EngineKey, plan: bytes, facts: Mapping[str, Any]) -> Path:
        """Put an engine into the cache, in place of one that is there; return the path of the plan.

        facts: values of JSON for engine.json, beside the key and the plan's digest. `check`, what was measured of the
        engine, has to be among them for the engine to be found. Raises BackendError.
        """
        contents = {**facts, "key": key.fields, "plan_sha256": hashlib.sha256(plan).hexdigest()}
        with self._writing():
            target = self.root / key.digest
            staging = staging_folder(target)
            try:
                staging.chmod(FOLDER_MODE)
                _write(staging / PLAN_FILE, plan)
                _write(staging / FACTS_FILE, json.dumps(contents, indent=1).encode())
                put_in_place(staging, target)
            finally:
                remove(staging)
        return target / PLAN_FILE

    def discard(self, key: EngineKey) -> None:
        """Remove an engine, if it is there; its folder goes in one step. Raises BackendError."""
        folder = self.root / key.digest
        with self._writing():
            if folder.is_dir():
                aside = part_beside(folder)
                folder.rename(aside)
                remove(aside)

    @contextmanager
    def lock(self, key: EngineKey, wait_s: float = LONGEST_WAIT_S, progress: Progress = no_progress) -> Iterator[None]:
        """Hold the lock of the key's kind of GPU: two builds at once would spoil each other's timings.

        A killed process's lock is free. progress: called each second of waiting; an error from it ends the wait.
        Raises BackendError where another process holds the lock for longer than wait_s.
        """
        with self._writing():
            descriptor = os.open(self.root / f"{key.gpu_slug}.lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, FILE_MODE)
        try:
            _lock(descriptor, wait_s, self.root, progress)
            yield
        finally:
            os.close(descriptor)

    def read_timings(self, key: EngineKey) -> bytes:
        """Return the timing cache of the key's library and kind of GPU; empty where there is none."""
        path = self.timings_path(key)
        return _read_own(path) if path.is_file() else b""

    def write_timings(self, key: EngineKey, timings: bytes) -> None:
        """Replace the timing cache; hold the lock. Raises BackendError."""
        with self._writing():
            part = self.root / f".{key.gpu_slug}.timing.part"
            part.unlink(missing_ok=True)
            _write(part, timings)
            os.replace(part, self.timings_path(key))

    def timings_path(self, key: EngineKey) -> Path:
        """Return the path of the timing cache."""
        return self.root / f"{key.gpu_slug}.timing"

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Make the folder, with a word on what the system refuses."""
        try:
            self.root.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            _require_own(self.root)
            remove_leftovers(self.root, ".")
            yield
        except OSError as error:
            raise BackendError(f"cannot write to the cache of engines {describe_os_error(error, self.root)}") from error

    def _entries(self) -> dict[str, dict[str, Any]]:
        """Return digest -> fields of the key of all engines that can be read."""
        entries = {}
        for path in sorted(self.root.glob(f"[0-9a-f]*/{FACTS_FILE}")):  # not those that are being written
            try:
                entries[path.parent.name] = _facts(path)["key"]
            except (BackendError, OSError, ValueError):
                continue  # of another user, or damaged: not found by itself either
        return entries

    def _read(self, digest: str) -> Found | Miss:
        folder = self.root / digest
        _require_own(folder)
        try:
            facts, plan = _facts(folder / FACTS_FILE), _read_own(folder / PLAN_FILE)
        except (OSError, ValueError) as error:
            return Miss(f"the engine {digest[:12]} is damaged: {error}")
        if _digest(facts["key"]) != digest:
            return Miss(f"the engine {digest[:12]} is damaged: the key in {FACTS_FILE} is that of another")
        if hashlib.sha256(plan).hexdigest() != facts.get("plan_sha256"):
            return Miss(f"the engine {digest[:12]} is damaged: {PLAN_FILE} does not match its digest")
        if not isinstance(facts.get("check"), dict) or not facts["check"]:
            return Miss(f"the engine {digest[:12]} was never compared with its bundle: {FACTS_FILE} has no check")
        return Found(folder / PLAN_FILE, facts, plan)


def private_folder(path: Path) -> Path:
    """Make a folder that only this user can use, unless it is there; return it. Raises BackendError."""
    try:
        path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise BackendError(f"cannot write to the cache of engines {describe_os_error(error, path)}") from error
    _require_own(path)
    return path


def default_root(library: str = "tensorrt") -> Path:
    """Return the folder of a library's engines unless another is chosen."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "anomseg_ros" / library


def _facts(path: Path) -> dict[str, Any]:
    """Return what engine.json holds. Raises ValueError where it is none."""
    facts = json.loads(_read_own(path, MOST_FACTS_BYTES))
    if not isinstance(facts, dict) or not isinstance(facts.get("key"), dict):
        raise ValueError(f"{path.name} holds no key")
    return facts


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _differing(mine: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [name for name in {**mine, **other} if mine.get(name) != other.get(name)]


def _short(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{text[:12]}…" if re.fullmatch(r"[0-9a-f]{64}", text) else text


def _lock(descriptor: int, wait_s: float, root: Path, progress: Progress) -> None:
    started, reports = time.monotonic(), 0
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            waited_s = time.monotonic() - started
            if waited_s > wait_s:
                raise BackendError(
                    f"another process has been building an engine in {root} for more than {wait_s:g} s; wait for it, "
                    "or end it"
                ) from error
            if waited_s >= reports * REPORT_S:
                progress("waiting for another process that builds an engine, s", int(waited_s), int(wait_s))
                reports += 1
            time.sleep(POLL_S)
        else:
            return


def _require_own(path: Path) -> None:
    _check_owner(path, os.lstat(path), stat.S_ISDIR)


def _check_owner(path: Path, status: os.stat_result, is_kind: Any) -> None:
    """Raise BackendError unless a path is of this kind and nobody but this user can write it."""
    if not is_kind(status.st_mode):
        raise BackendError(f"{path} in the cache of engines is a link or another kind of file; remove it")
    if status.st_uid != os.geteuid():
        raise BackendError(
            f"{path} belongs to user {status.st_uid}, not to {os.geteuid()}: an engine is a program, and one of "
            "another user is not run; build in a cache of your own (XDG_CACHE_HOME)"
        )
    if status.st_mode & 0o022:
        raise BackendError(
            f"{path} can be written by others (mode {stat.S_IMODE(status.st_mode):03o}): an engine is a program; if "
            "you trust it, chmod go-w, otherwise remove it and build again"
        )


def _read_own(path: Path, most_bytes: int = -1) -> bytes:
    """Return a file's content, checked to be this user's on the open file itself."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise BackendError(f"{path} in the cache of engines is a link; remove it") from error
        raise
    with os.fdopen(descriptor, "rb") as stream:
        _check_owner(path, os.fstat(descriptor), stat.S_ISREG)
        return stream.read(most_bytes)


def _write(path: Path, content: bytes) -> None:
    """Write a new file that only this user can read, and have the system put it on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(descriptor)
