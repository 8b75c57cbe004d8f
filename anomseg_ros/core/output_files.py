"""Files that commands write: whole or not there, refused before long work where they cannot be, and never lost after.

A name that belongs to no ordinary file, such as /dev/stdout or a pipe, is written to as it is.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.staging import NAME_MAX_BYTES, part_beside, remove_leftovers
from anomseg_ros.errors import OutputError, describe_os_error


def check_output_file(path: Path) -> None:
    """Raise OutputError where no file of this name can be written; its folder need not exist yet."""
    with _refused(path):
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not _is_special(target):
            _require_writable(target)


def check_output_folder(path: Path) -> None:
    """Raise OutputError where no folder of this name can be made, or nothing can be put into the one that is there."""
    with _refused(path):
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        _require_writable(target / "file")


def make_output_folder(path: Path) -> None:
    """Make a folder and those above it, if they are not there. Raises OutputError."""
    with _refused(path):
        path.mkdir(parents=True, exist_ok=True)


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file and make its folder: beside its place, then renamed. Text becomes UTF-8.

    Raises OutputError; what had the name before is then still there.
    """
    data = content.encode("utf-8", errors="backslashreplace") if isinstance(content, str) else content
    with _refused(path):
        target = Path(os.path.realpath(path))
        if _is_special(target):
            target.write_bytes(data)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        part = part_beside(target)
        try:
            part.write_bytes(data)
            os.replace(part, target)
        except BaseException:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise


def write_results(path: Path, content: bytes | str) -> None:
    """Write what took long to compute. Where that fails it goes to the temporary folder, and OutputError says where."""
    with suppress(OSError):
        remove_leftovers(path.parent, f".{path.name}")
    try:
        write_file(path, content)
    except OutputError as error:
        raise OutputError(f"{error}. {_saved_elsewhere(path, content)}") from error


def write_image(path: Path, pixels: npt.NDArray[np.uint8], options: list[int] | None = None) -> None:
    """Write uint8 (H, W), or (H, W, 3) RGB, in the format of the path's ending. Raises OutputError.

    options: of cv2.imencode. OpenCV only encodes: its own writing of files answers False where the disk is full, and
    crashes at names that are not UTF-8.
    """
    encoded, data = cv2.imencode(path.suffix, pixels if pixels.ndim == 2 else pixels[..., ::-1], options or [])
    if not encoded:
        raise OutputError(f"{str(path)!r}: OpenCV cannot encode an image of shape {pixels.shape} so")
    write_file(path, data.tobytes())


def _saved_elsewhere(path: Path, content: bytes | str) -> str:
    try:
        spare = Path(tempfile.mkdtemp(prefix="anomseg-")) / (path.name[-40:] or "results")
        write_file(spare, content)
    except (OSError, OutputError):
        return "The results are in no file: the temporary folder cannot be written either"
    return f"The results are in {str(spare)!r}"


def _is_special(target: Path) -> bool:
    """Whether a name is taken by a device or a pipe, which must not be replaced by a file."""
    return target.exists() and not target.is_file() and not target.is_dir()


def _require_writable(target: Path) -> None:
    """Raise OSError unless a file can be put at `target`, whose folders may have to be made."""
    folder = target.parent
    while not os.path.lexists(folder):
        if len(os.fsencode(folder.name)) > NAME_MAX_BYTES:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        folder = folder.parent
    if len(os.fsencode(target.name)) > NAME_MAX_BYTES:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    # Permissions alone do not say it: a file system may be read-only, or take no files, for root as well.
    tempfile.TemporaryFile(dir=folder).close()


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {describe_os_error(error, path)}") from error
