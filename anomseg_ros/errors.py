"""The errors of this package. Each message says what was given, what was expected and what to do."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable

_REMEDIES = {
    errno.ENOSPC: "make room or choose another place",
    errno.EDQUOT: "make room or choose another place",
    errno.EFBIG: "choose a place that accepts larger files, or raise the limit (ulimit -f)",
    errno.EACCES: "change its permissions or choose another place",
    errno.EPERM: "change its permissions or choose another place",
    errno.EROFS: "choose a place that is writable",
    errno.EISDIR: "it is a folder where a file is expected; give the path of a file",
    errno.ENOTDIR: "a part of it is a file where a folder is expected; give another path",
    errno.EEXIST: "it is a file where a folder is expected, or it was created in the meantime; give another path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its symbolic links form a loop; correct them",
    errno.ENOENT: "check the path; it may contain a broken symbolic link",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EIO: "the disk or its connection fails; copy the file elsewhere",
}
_DEFAULT_REMEDY = "check the path and its disk"


class AnomsegError(Exception):
    """Base of every error raised on purpose; the command line prints its message on one line and exits with 1."""


class ConfigError(AnomsegError):
    """A configuration file, option or parameter is wrong."""


class BundleError(AnomsegError):
    """A bundle directory is missing, malformed or of a newer format, or its files do not match their digests."""


class BackendError(AnomsegError):
    """A backend is not installed, cannot load the graph, or failed while running it."""


class FrameError(AnomsegError):
    """One camera frame is unusable; the next one may be valid."""


class CheckpointError(AnomsegError):
    """A checkpoint does not fit the network."""


class ExportError(AnomsegError):
    """An exported graph does not compute what the network computes."""


class TrainingError(AnomsegError):
    """A training run cannot continue: the loss is not finite, or its state cannot be written."""


class CompressionError(AnomsegError):
    """A bundle cannot be compressed, or it loses more accuracy than is allowed."""


class OutputError(AnomsegError):
    """A file or folder cannot be written."""


class DatasetError(AnomsegError):
    """A dataset is missing, incomplete or inconsistent."""


class BagError(AnomsegError):
    """A bag cannot be read, written or played."""


class MetricError(AnomsegError):
    """Scores, labels or saved counts cannot be measured: wrong shape or dtype, not finite, or empty."""


class PowerError(AnomsegError):
    """Power cannot be measured here, or no longer."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its class if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def reason_of(error: Exception) -> str:
    """Return the reason of an error on one line, without the number and the path of an operating-system error."""
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    return " ".join(text.split()) or type(error).__name__


def closest_first(given: str, options: Iterable[str]) -> list[str]:
    """Return all options, those most similar to `given` first, the rest in alphabetical order."""
    names = sorted(options)
    close = difflib.get_close_matches(given, names, n=3, cutoff=0.4)
    return close + [name for name in names if name not in close]


def suggested(given: str, options: Iterable[str], kind: str) -> str:
    """Return options as the end of a message, the closest first: `did you mean 'erfnet'? shipped: erfnet, enet`.

    kind: what the options are, such as `shipped`. Without an option that resembles `given`, nothing is suggested.
    """
    names = list(options)
    listed = f"{kind}: {', '.join(closest_first(given, names)) or 'none'}"
    close = difflib.get_close_matches(given, names, n=1)
    return f"did you mean {close[0]!r}? {listed}" if close else listed


def unknown_name(kind: str, given: str, options: Iterable[str]) -> str:
    """Return the message for a name that is not in a table: `unknown network 'ennet'; known: enet, erfnet`."""
    return f"unknown {kind} {given!r}; known: {', '.join(closest_first(given, options))}"


def describe_os_error(error: OSError, path: str | os.PathLike[str] | None = None) -> str:
    """Return path, reason and remedy of an operating-system error.

    path: the path to show, if the user gave another one than the error names; None: the path in the error.
    """
    paths = [path] if path is not None else [name for name in (error.filename, error.filename2) if name is not None]
    where = " and ".join(repr(_text(name)) for name in paths)
    reason = error.strerror or str(error) or type(error).__name__
    remedy = _REMEDIES.get(error.errno or 0, _DEFAULT_REMEDY)
    return f"{where}: {reason}; {remedy}" if where else f"{reason}; {remedy}"


def _text(name: object) -> str:
    return os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else str(name)
