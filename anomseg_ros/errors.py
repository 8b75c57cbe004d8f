"""The errors of this package. Each message says what was given, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AnomsegError(Exception):
    """Base of every error raised on purpose; the command line prints its message on one line and exits with 1."""


class ConfigError(AnomsegError):
    """A configuration file, option or parameter is wrong."""


class BundleError(AnomsegError):
    """A bundle directory cannot be used: missing, malformed, newer, or its files do not match their digests."""


class BackendError(AnomsegError):
    """A backend cannot be found, cannot load the graph or failed while running it."""


class FrameError(AnomsegError):
    """One camera frame is unusable; the next one may be fine."""


class CheckpointError(AnomsegError):
    """A checkpoint does not fit the network."""


class ExportError(AnomsegError):
    """An exported graph does not compute what the network computes."""


class TrainingError(AnomsegError):
    """A training run cannot go on: the loss is not finite, or its state cannot be written."""


class CompressionError(AnomsegError):
    """A bundle cannot be compressed, or what it lost is more than is allowed."""


class DatasetError(AnomsegError):
    """A dataset is missing, incomplete or inconsistent."""


class BagError(AnomsegError):
    """A bag cannot be read, written or played."""


class MetricError(AnomsegError):
    """Scores, labels or saved counts that cannot be measured: wrong shape or dtype, not finite, nothing to measure."""


def closest_first(given: str, options: Iterable[str]) -> list[str]:
    """Return all options, those most similar to `given` first, the rest in alphabetical order."""
    names = sorted(options)
    close = difflib.get_close_matches(given, names, n=3, cutoff=0.4)
    return close + [name for name in names if name not in close]


def unknown_name(kind: str, given: str, options: Iterable[str]) -> str:
    """Return the message for a name that is not in a table: `unknown network 'ennet'; known: enet, erfnet`."""
    return f"unknown {kind} {given!r}; known: {', '.join(closest_first(given, options))}"
