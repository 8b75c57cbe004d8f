"""A folder that a command writes a dataset to: resumed where it was killed, refused where it holds something else.

A specification says all that the bytes depend on. It is written first (`NAME.started.yaml`), and the manifest, which
holds it under `made_of`, last (`NAME.yaml`): a folder without a manifest is unfinished.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import yaml

from anomseg_ros.core.schema import from_plain, to_plain
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import ConfigError, DatasetError

PREVIEW = "preview.jpg"

_PREVIEW_COLUMNS = 3

T = TypeVar("T")


@dataclass(frozen=True)
class WrittenFolder:
    """The place of one dataset. name: its manifest's. command: what writes it. folders: those of its files."""

    path: Path
    name: str
    command: str
    folders: tuple[str, ...]

    @property
    def manifest(self) -> Path:
        """The file that a finished dataset has."""
        return self.path / f"{self.name}.yaml"

    @property
    def started(self) -> Path:
        """The file that an unfinished dataset has."""
        return self.path / f"{self.name}.started.yaml"

    def prepare(self, spec: object, overwrite: bool) -> None:
        """Make the folder ready for a dataset of this specification; refuse one that holds anything else."""
        self.path.mkdir(parents=True, exist_ok=True)
        if overwrite and (self.manifest.is_file() or self.started.is_file()):
            self._remove()
        there = self._spec()
        if there is None and any(self.path.iterdir()):
            raise ConfigError(f"{str(self.path)!r} holds other files; give a new folder for the dataset")
        if there is not None and there != to_plain(spec):
            found = "; ".join(differences(there, to_plain(spec)))
            raise ConfigError(
                f"{str(self.path)!r} holds a {self.command} dataset made otherwise ({found}); give another folder, or "
                "--overwrite"
            )
        for name in self.folders:
            (self.path / name).mkdir(exist_ok=True)
        if there is None:
            write_beside(self.started, as_yaml(spec))

    def finish(self, manifest: object) -> None:
        """Write the manifest, and remove what an unfinished dataset leaves."""
        write_beside(self.manifest, as_yaml(manifest))
        self.started.unlink(missing_ok=True)
        for left_by_a_kill in self.path.rglob("*.part"):
            left_by_a_kill.unlink(missing_ok=True)

    def read_manifest(self, kind: type[T], expected_format: int) -> T:
        """Return the manifest as a dataclass. Raises DatasetError: missing, unfinished, damaged, of another format."""
        name, folder, command = self.name, str(self.path), f"`anomseg datasets {self.command}`"
        if not self.manifest.is_file():
            if self.started.is_file():
                raise DatasetError(
                    f"{name}: {folder!r} is unfinished; run the same {command} again, it goes on where it was"
                )
            raise DatasetError(f"{name}: no {self.manifest.name} in {folder!r}; {command} writes it")
        try:
            data = yaml.safe_load(self.manifest.read_text(encoding="utf-8"))
            _check_format(data, expected_format)
            return from_plain(kind, data, str(self.manifest))
        except (OSError, ConfigError, yaml.YAMLError, UnicodeDecodeError) as error:
            text = " ".join(str(error).split())
            raise DatasetError(
                f"{name}: {str(self.manifest)!r} cannot be used: {text}; write the dataset again"
            ) from None

    def _spec(self) -> object | None:
        """Return the specification of the dataset in the folder, as plain data, or None without one."""
        for path in (self.manifest, self.started):
            if path.is_file():
                try:
                    data = yaml.safe_load(path.read_text(encoding="utf-8"))
                except (yaml.YAMLError, UnicodeDecodeError):
                    data = None
                spec = data.get("made_of") if path == self.manifest and isinstance(data, dict) else data
                if not isinstance(spec, dict):
                    raise ConfigError(f"{str(path)!r} is damaged; give another folder, or --overwrite")
                return spec
        return None

    def _remove(self) -> None:
        """Delete a dataset that was written here; what says so goes last, so that a killed removal can be repeated."""
        for name in self.folders:
            shutil.rmtree(self.path / name, ignore_errors=True)
        for path in (self.path / PREVIEW, self.started, self.manifest):
            path.unlink(missing_ok=True)


def write_beside(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return a PNG file of uint8 (H, W) values, or of (H, W, 3) RGB."""
    done, data = cv2.imencode(".png", pixels if pixels.ndim == 2 else pixels[:, :, ::-1])
    if not done:
        raise DatasetError(f"a frame of shape {pixels.shape} cannot be stored as PNG")
    return bytes(data)


def as_yaml(value: object) -> bytes:
    """Return a dataclass as YAML, in the order of its fields."""
    text: str = yaml.safe_dump(to_plain(value), sort_keys=False, allow_unicode=True, width=120)
    return text.encode()


def spread(count: int, most: int) -> list[int]:
    """Return up to `most` of the numbers below `count`, evenly spread, the first and the last among them."""
    return [int(number) for number in np.unique(np.linspace(0, count - 1, min(most, count)).round())]


def sheet(tiles: Sequence[RgbImage], columns: int = _PREVIEW_COLUMNS) -> bytes:
    """Return a JPEG of pictures of one width side by side, row by row."""
    height = max(len(tile) for tile in tiles)
    tiles = [np.pad(tile, ((0, height - len(tile)), (0, 0), (0, 0))) for tile in tiles]
    columns = min(columns, len(tiles))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[start : start + columns], axis=1) for start in range(0, len(tiles), columns)]
    done, data = cv2.imencode(".jpg", cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR))
    if not done:
        raise DatasetError(f"the preview of {len(tiles)} frames cannot be stored as JPEG")
    return bytes(data)


def differences(there: object, here: object, name: str = "") -> list[str]:
    """Return in words what two specifications, as plain data, differ in: `seed: 0 there, 1 here`."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = sorted({*there, *here})
        return [
            text
            for key in keys
            for text in differences(there.get(key), here.get(key), f"{name}.{key}" if name else str(key))
        ]
    return [] if there == here else [f"{name}: {_short(there)} there, {_short(here)} here"]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _check_format(data: Any, expected: int) -> None:
    made_of = data.get("made_of") if isinstance(data, dict) else None
    found = made_of.get("format") if isinstance(made_of, dict) else None
    if isinstance(found, int) and found != expected:
        raise ConfigError(f"it is of format {found}, this version reads {expected}")
