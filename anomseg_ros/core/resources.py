"""Where the files that ship with the package are: in a checkout, a pip installation or a colcon workspace."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from anomseg_ros.core.bundle import CHECKPOINT_FILE, CONTRACT_FILE, Bundle, sha256_of
from anomseg_ros.core.staging import cut_off
from anomseg_ros.errors import BundleError, ConfigError, suggested

PACKAGE = "anomseg_ros"

ROAD_BUNDLE = "bisenet_lite-world-int8"
"""Shipped bundle for camera frames: what the node takes unless it is told otherwise."""

DEMO_BUNDLE = "bisenet_lite-world-small-int8"
"""Shipped bundle that `anomseg demo` shows with the shipped drive: two cores keep up with it."""

SYNTHETIC_BUNDLE = "enet-synthetic"
"""Shipped bundle for generated scenes."""


def share_directories() -> list[Path]:
    """Return the existing folders that may hold models/, config/ and launch/, the closest to this code first."""
    checkout = Path(__file__).resolve().parents[2]
    prefixes = [Path(prefix) for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if prefix]
    # A colcon or pip --target install keeps share/ a few levels above the modules.
    prefixes += [*Path(__file__).resolve().parents[1:6], Path(sys.prefix)]
    candidates = [checkout] if (checkout / "package.xml").is_file() and (checkout / "models").is_dir() else []
    candidates += [prefix / "share" / PACKAGE for prefix in prefixes]
    return list(dict.fromkeys(folder for folder in candidates if folder.is_dir()))


def shipped_yaml(folder: str) -> dict[str, Path]:
    """Return name -> file of the YAML files that ship in a folder such as config/train."""
    found: dict[str, Path] = {}
    for share in share_directories():
        for path in sorted((share / folder).glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def find_yaml(name_or_path: str, folder: str, what: str) -> Path:
    """Return the file given by path, or by the name of a `what` that ships in `folder`. Raises ConfigError."""
    path, shipped = Path(name_or_path), shipped_yaml(folder)
    if path.is_file():
        return path
    if name_or_path in shipped:
        return shipped[name_or_path]
    known = suggested(name_or_path, shipped, "shipped")
    raise ConfigError(f"{name_or_path!r} is neither a file nor a shipped {what}; {known}")


def share_file(relative: str) -> Path:
    """Return a shipped file such as `config/detector.yaml`. Raises ConfigError that lists the folders searched."""
    for folder in share_directories():
        if (folder / relative).is_file():
            return folder / relative
    looked = ", ".join(map(str, share_directories())) or "no installation"
    raise ConfigError(f"{relative} was not found in {looked}; is anomseg_ros installed completely?")


def shipped_bundles() -> dict[str, Path]:
    """Return name -> directory of the bundles that ship with the package."""
    found: dict[str, Path] = {}
    for folder in share_directories():
        for contract in sorted((folder / "models").glob(f"*/{CONTRACT_FILE}")):
            if not contract.parent.name.startswith("."):  # left by a killed save
                found.setdefault(contract.parent.name, contract.parent)
    return found


def is_shipped(directory: Path) -> bool:
    """Return whether a folder lies in models/ of this package's sources, or of an installation of them."""
    return any(
        folder.name == "models" and _names_package(folder.parent / "package.xml")
        for folder in directory.resolve().parents
    )


def _names_package(path: Path) -> bool:
    return path.is_file() and f"<name>{PACKAGE}</name>" in path.read_text(encoding="utf-8", errors="replace")


def find_bundle(name_or_path: str | Path) -> Path:
    """Return the directory of a bundle given by path or by the name of a shipped one. Raises BundleError."""
    path = Path(name_or_path)
    if path.exists():
        return path
    shipped = shipped_bundles()
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    if (left := cut_off(path)) is not None:
        raise BundleError(f"{path} does not exist: a change of it was killed; the old bundle is {left}: rename it back")
    known = suggested(str(name_or_path), shipped, "shipped")
    raise BundleError(f"{str(name_or_path)!r} is neither a bundle directory nor a shipped bundle; {known}")


def own_checkpoint(bundle: Bundle) -> Path | None:
    """Return the checkpoint that a bundle was exported from, if the bundle or a shipped one has it."""
    expected = bundle.contract.provenance.source_sha256
    for directory in (bundle.directory, *shipped_bundles().values()):
        file = directory / CHECKPOINT_FILE
        if expected is not None and file.is_file() and sha256_of(file) == expected:
            return file
    return None
