"""models/catalog.yaml: published checkpoints that fit the networks of this package."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import yaml

from anomseg_ros.core.labels import LABEL_SETS
from anomseg_ros.core.resources import share_file
from anomseg_ros.core.schema import from_plain
from anomseg_ros.core.untrusted_text import parse_yaml
from anomseg_ros.errors import ConfigError, unknown_name
from anomseg_ros.scores import default_scores

FORMAT_VERSION = 1
CATALOG_FILE = "models/catalog.yaml"

# A plain name without separators, so that nothing is written outside the folder.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DIGEST_LENGTHS = {"sha256": 64, "git_blob_sha1": 40}


@dataclass(frozen=True)
class Licence:
    """The licence of a checkpoint: SPDX name, address of the text, and a note."""

    name: str
    url: str
    note: str | None = None


@dataclass(frozen=True)
class PublishedMiou:
    """A published mean intersection over union. how: the way it was measured."""

    percent: float
    split: str
    how: str


@dataclass(frozen=True)
class CatalogEntry:
    """One published checkpoint. Facts that are not known are None."""

    name: str
    network: str
    layout: str  # a name of networks.layouts.LAYOUTS
    num_classes: int  # outputs of the network, `untrained_class` included
    label_set: str
    height_px: int
    width_px: int
    url: str
    file: str  # the name of the downloaded file
    source: str
    authors: str
    paper: str
    licence: Licence
    normalisation: str
    untrained_class: int | None = None  # index of an output that training never used
    size_bytes: int | None = None
    sha256: str | None = None
    git_blob_sha1: str | None = None
    """Git's id of the file in its authors' repository: SHA-1 of "blob <size>\\0" and the content."""
    miou: PublishedMiou | None = None
    note: str | None = None

    def export_command(self, checkpoint: Path) -> str:
        """Return the command that exports the downloaded file to a bundle, at its published size."""
        words = ["anomseg", "export", "--network", self.network, "--checkpoint", str(checkpoint)]
        words += ["--num-classes", str(self.num_classes), "--label-set", self.label_set]
        words += ["--size", f"{self.height_px}x{self.width_px}"]
        if self.untrained_class is not None:
            # An untrained output tells nothing about anomalies, so the score void must not be the default.
            words += ["--void-class", str(self.untrained_class), "--score", ",".join(default_scores(with_void=False))]
        return shlex.join([*words, "--output", self.name])


@dataclass(frozen=True)
class Catalog:
    """The content of catalog.yaml."""

    format_version: int
    checkpoints: tuple[CatalogEntry, ...]

    def names(self) -> list[str]:
        """Return the names of all entries, in the order of the file."""
        return [entry.name for entry in self.checkpoints]

    def find(self, name: str) -> CatalogEntry:
        """Return one entry. Raises ConfigError, which names the closest, for an unknown name."""
        for entry in self.checkpoints:
            if entry.name == name:
                return entry
        raise ConfigError(unknown_name("checkpoint", name, self.names()))


def load_catalog(path: Path | None = None) -> Catalog:
    """Read and check a catalog, by default the shipped one. Raises ConfigError, which names entry and key."""
    path = path or share_file(CATALOG_FILE)
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"catalog {str(path)!r} cannot be read: {error.strerror}; give a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    catalog = from_plain(Catalog, data, str(path))
    if catalog.format_version != FORMAT_VERSION:
        raise ConfigError(f"{path}: format_version {catalog.format_version!r}; this anomseg_ros reads {FORMAT_VERSION}")
    for entry in catalog.checkpoints:
        _check(entry, f"{path}: {entry.name}")
    for kind, values in (("name", catalog.names()), ("file", [entry.file for entry in catalog.checkpoints])):
        doubled = sorted({value for value in values if values.count(value) > 1})
        if doubled:
            raise ConfigError(f"{path}: {kind} {doubled[0]!r} is there twice; each entry needs its own")
    return catalog


def _check(entry: CatalogEntry, where: str) -> None:
    for key in ("name", "file"):
        value = getattr(entry, key)
        if not _PLAIN_NAME.fullmatch(value):
            raise ConfigError(f"{where}: {key} {value!r} must be letters, digits, dot, dash and underscore, no folder")
    if entry.label_set not in LABEL_SETS:
        raise ConfigError(f"{where}: {unknown_name('label set', entry.label_set, LABEL_SETS)}")
    for key, length in _DIGEST_LENGTHS.items():
        digest = getattr(entry, key)
        if digest is not None and not re.fullmatch(f"[0-9a-f]{{{length}}}", digest):
            raise ConfigError(f"{where}: {key} {digest!r} must be {length} lower-case hexadecimal digits")
    known = len(LABEL_SETS[entry.label_set]) + (entry.untrained_class is not None)
    if entry.num_classes != known:
        raise ConfigError(
            f"{where}: num_classes {entry.num_classes}, but label set {entry.label_set!r} with untrained_class "
            f"{entry.untrained_class!r} has {known}"
        )
    if min(entry.height_px, entry.width_px, 1 if entry.size_bytes is None else entry.size_bytes) < 1:
        raise ConfigError(f"{where}: height_px, width_px and size_bytes must be positive")
