"""Atomic replacement of files and folders: new content is written beside its target, then put in place in one step.

A killed process leaves its temporary file, whose name holds machine and process id. The next process removes it.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable
from pathlib import Path

from anomseg_ros.errors import BundleError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Constants of linux/fcntl.h and linux/fs.h for renameat2(2)."""
_CANNOT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
"""Error codes of kernels and file systems that cannot exchange two names, such as NFS."""
_REPLACED = ".replaced"
NAME_MAX_BYTES = 255
"""NAME_MAX of every common file system of Linux."""


def part_ending() -> str:
    """Return the suffix of this process's temporary files, which holds machine and process id."""
    return f".{socket.gethostname()}.{os.getpid()}.part"


def part_beside(path: Path) -> Path:
    """Return the name that this process writes under what is to be called `path`; never too long where that is not."""
    ending = part_ending()
    start = os.fsencode(path.name)[: NAME_MAX_BYTES - len(os.fsencode(ending)) - 1]
    return path.with_name(f".{os.fsdecode(start)}{ending}")


def remove_leftovers(folder: Path, prefix: str) -> None:
    """Remove from a folder the temporary files, named `prefix` + part_ending, of dead processes of this machine."""
    for path in folder.glob(f"{glob.escape(prefix)}*.{socket.gethostname()}.*.part"):
        try:
            os.kill(int(path.name.split(".")[-2]), 0)
        except ProcessLookupError:
            remove(path)
        except (PermissionError, ValueError):  # another user's live process; a name of another form
            continue


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Give a file new text, see replace_bytes."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes | memoryview) -> None:
    """Give a file new content in one step. Raises OSError, and leaves the old content, where that fails."""
    remove_leftovers(path.parent, f".{path.name}")
    beside = part_beside(path)
    try:
        beside.write_bytes(content)
        if path.exists():
            shutil.copymode(path, beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def staging_folder(target: Path) -> Path:
    """Make an empty folder beside `target` for its replacement; the caller removes it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target.parent, f".{target.name}.")
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=part_ending(), dir=target.parent))
    staging.chmod(target.stat().st_mode & 0o7777 if target.is_dir() else 0o755)
    return staging


def put_in_place(staging: Path, target: Path) -> None:
    """Rename the folder `staging` to `target`; an existing `target` is renamed to `staging`.

    This is one step where the file system can exchange two names, and two steps elsewhere. A process that is killed
    between the two leaves the old folder under a temporary name, see cut_off. Raises OSError and changes nothing where
    neither way works.
    """
    if not target.exists():
        staging.rename(target)
    elif not _exchanged(staging, target):
        aside = staging.with_name(f"{staging.name}{_REPLACED}")
        target.rename(aside)
        try:
            staging.rename(target)
        except OSError:
            aside.rename(target)
            raise
        aside.rename(staging)


def cut_off(target: Path) -> Path | None:
    """Return the old folder of a process that was killed between the two steps of put_in_place."""
    return next(iter(target.parent.glob(f".{glob.escape(target.name)}.*{_REPLACED}")), None)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange the names of two folders in one step; return whether the system can."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(other))


def carry(paths: Iterable[Path], folder: Path, *, link: bool) -> None:
    """Copy files and folders into another folder under their own names; symbolic links stay links.

    link: make hard links where the file system allows it, which takes no time or space. Use it only where the old
    names go away, since a change of one file changes both.
    """
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, folder / path.name, symlinks=True, copy_function=_linked if link else shutil.copy2)
        elif link:
            _linked(path, folder / path.name)
        else:
            shutil.copy2(path, folder / path.name, follow_symlinks=False)


def _linked(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def check_writable(folder: Path) -> None:
    """Raise BundleError where this process cannot put anything into a folder."""
    if not folder.is_dir():
        raise BundleError(f"cannot write below {folder}: it is a file; choose another output")
    effective = os.access in os.supports_effective_ids
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=effective):
        raise BundleError(f"cannot write to {folder}: permission denied; choose another output")
