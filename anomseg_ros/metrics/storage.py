"""Accumulators on disk: npz files of plain arrays (no pickle), written beside and renamed."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from anomseg_ros.errors import MetricError

_KIND = "kind"


def save_arrays(path: str | Path, kind: str, arrays: Mapping[str, npt.ArrayLike]) -> None:
    """Write arrays and their `kind` to an npz file, beside and then renamed."""
    target = Path(path)
    named: dict[str, Any] = {_KIND: np.array(kind), **{name: np.asarray(array) for name, array in arrays.items()}}
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as stream:
            np.savez(stream, **named)
        part.replace(target)
    except OSError as error:
        raise MetricError(f"cannot write {str(target)!r}: {error.strerror}; choose a writable place") from error
    finally:
        part.unlink(missing_ok=True)


def load_arrays(path: str | Path, kind: str, names: Collection[str]) -> dict[str, npt.NDArray[np.generic]]:
    """Return the arrays called `names` of an npz file written by `save_arrays` for the same kind.

    Raises MetricError for a file that is missing, damaged, of another kind or without one of the arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            stored = {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise MetricError(f"no file {str(path)!r}; save the accumulator there first") from error
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise MetricError(f"{str(path)!r} is not a readable npz file of counts ({error}); measure again") from error
    given = str(stored.get(_KIND, "nothing known"))
    missing = sorted(set(names) - stored.keys())
    if given != kind or missing:
        lacks = f" without {', '.join(missing)}" if missing else ""
        raise MetricError(f"{str(path)!r} holds {given!r}{lacks}; expected {kind!r} as this version writes it")
    return {name: stored[name] for name in names}
