"""The output folder of a command that writes a dataset. A killed command resumes; a folder of other files is refused.

The specification holds everything that the bytes of the files depend on. It is written first, to `NAME.started.yaml`.
The manifest `NAME.yaml` is written last and holds the specification under `made_of`. A folder without a manifest is
unfinished.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import yaml

from anomseg_ros.core.output_files import make_output_folder, write_file
from anomseg_ros.core.schema import from_plain, to_plain
from anomseg_ros.core.types import RgbImage
from anomseg_ros.core.untrusted_text import parse_yaml
from anomseg_ros.errors import ConfigError, DatasetError

PREVIEW = "preview.jpg"

_PREVIEW_COLUMNS = 3

T = TypeVar("T")


@dataclass(frozen=True)
class WrittenFolder:
    """Output folder of one dataset. name: stem of the manifest; command: writer; folders: subfolders of its files."""

    path: Path
    name: str
    command: str
    folders: tuple[str, ...]

    @property
    def manifest(self) -> Path:
        """File that exists once the dataset is finished."""
        return self.path / f"{self.name}.yaml"

    @property
    def started(self) -> Path:
        """File that exists while the dataset is unfinished."""
        return self.path / f"{self.name}.started.yaml"

    def prepare(self, spec: object, overwrite: bool) -> None:
        """Create the folder for a dataset of this specification. Raises ConfigError if it holds anything else."""
        make_output_folder(self.path)
        if overwrite and (self.manifest.is_file() or self.started.is_file()):
            self._remove()
        stored = self._read_spec()
        if stored is None and any(self.path.iterdir()):
            raise ConfigError(f"{str(self.path)!r} holds other files; give a new folder for the dataset")
        if stored is not None and stored != to_plain(spec):
            found = "; ".join(differences(stored, to_plain(spec)))
            raise ConfigError(
                f"{str(self.path)!r} holds a {self.command} dataset of another specification ({found}); give another "
                "folder, or --overwrite"
            )
        for name in self.folders:
            make_output_folder(self.path / name)
        if stored is None:
            write_file(self.started, as_yaml(spec))

    def finish(self, manifest: object) -> None:
        """Write the manifest and remove the temporary files."""
        write_file(self.manifest, as_yaml(manifest))
        self.started.unlink(missing_ok=True)
        for partial_file in self.path.rglob("*.part"):  # left by a killed command
            partial_file.unlink(missing_ok=True)

    def read_manifest(self, kind: type[T], expected_format: int) -> T:
        """Return the manifest. Raises DatasetError if it is missing, unfinished, damaged or of another format."""
        name, folder, command = self.name, str(self.path), f"`anomseg datasets {self.command}`"
        if not self.manifest.is_file():
            if self.started.is_file():
                raise DatasetError(f"{name}: {folder!r} is unfinished; run the same {command} again to resume it")
            raise DatasetError(f"{name}: no {self.manifest.name} in {folder!r}; write the dataset with {command}")
        try:
            data = parse_yaml(self.manifest.read_text(encoding="utf-8"))
            _check_format(data, expected_format)
            return from_plain(kind, data, str(self.manifest))
        except (OSError, ConfigError, yaml.YAMLError, UnicodeDecodeError) as error:
            text = " ".join(str(error).split())
            raise DatasetError(
                f"{name}: {str(self.manifest)!r} cannot be used: {text}; write the dataset again"
            ) from None

    def _read_spec(self) -> object | None:
        """Return the specification stored in the folder as plain data, or None if there is none."""
        for path in (self.manifest, self.started):
            if path.is_file():
                try:
                    data = parse_yaml(path.read_text(encoding="utf-8"))
                except (yaml.YAMLError, UnicodeDecodeError):
                    data = None
                spec = data.get("made_of") if path == self.manifest and isinstance(data, dict) else data
                if not isinstance(spec, dict):
                    raise ConfigError(f"{str(path)!r} is damaged; give another folder, or --overwrite")
                return spec
        return None

    def _remove(self) -> None:
        """Delete the dataset. Specification and manifest go last, so that a killed removal can be repeated."""
        for name in self.folders:
            shutil.rmtree(self.path / name, ignore_errors=True)
        for path in (self.path / PREVIEW, self.started, self.manifest):
            path.unlink(missing_ok=True)


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode uint8 pixels, (H, W) or (H, W, 3) RGB, as PNG."""
    done, data = cv2.imencode(".png", pixels if pixels.ndim == 2 else pixels[:, :, ::-1])
    if not done:
        raise DatasetError(f"a frame of shape {pixels.shape} cannot be stored as PNG")
    return bytes(data)


def as_yaml(value: object) -> bytes:
    """Return a dataclass as YAML with its fields in order."""
    text: str = yaml.safe_dump(to_plain(value), sort_keys=False, allow_unicode=True, width=120)
    return text.encode()


def spread(count: int, most: int) -> list[int]:
    """Return up to `most` evenly spaced numbers from 0 to count - 1, both included."""
    return [int(number) for number in np.unique(np.linspace(0, count - 1, min(most, count)).round())]


def sheet(tiles: Sequence[RgbImage], columns: int = _PREVIEW_COLUMNS) -> bytes:
    """Return a JPEG of tiles of equal width, arranged row by row. Shorter tiles are padded."""
    height = max(len(tile) for tile in tiles)
    tiles = [np.pad(tile, ((0, height - len(tile)), (0, 0), (0, 0))) for tile in tiles]
    columns = min(columns, len(tiles))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[start : start + columns], axis=1) for start in range(0, len(tiles), columns)]
    done, data = cv2.imencode(".jpg", cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR))
    if not done:
        raise DatasetError(f"the preview of {len(tiles)} frames cannot be stored as JPEG")
    return bytes(data)


def differences(stored: object, given: object, name: str = "") -> list[str]:
    """Return one text per value in which two specifications, as plain data, differ: `seed: 0 there, 1 here`."""
    if isinstance(stored, dict) and isinstance(given, dict):
        keys = sorted({*stored, *given})
        return [
            text
            for key in keys
            for text in differences(stored.get(key), given.get(key), f"{name}.{key}" if name else str(key))
        ]
    return [] if stored == given else [f"{name}: {_short(stored)} there, {_short(given)} here"]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _check_format(data: Any, expected: int) -> None:
    made_of = data.get("made_of") if isinstance(data, dict) else None
    found = made_of.get("format") if isinstance(made_of, dict) else None
    if isinstance(found, int) and found != expected:
        raise ConfigError(f"its format is {found}, this version reads {expected}")
