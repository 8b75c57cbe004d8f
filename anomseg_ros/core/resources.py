"""Where the files that ship with the package are: in a checkout, a pip installation or a colcon workspace."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from anomseg_ros.core.bundle import CONTRACT_FILE
from anomseg_ros.core.staging import cut_off
from anomseg_ros.errors import BundleError, ConfigError, closest_first

PACKAGE = "anomseg_ros"

ROAD_BUNDLE = "bisenet_lite-world-int8"
"""Shipped bundle for camera frames: what the node takes unless it is told otherwise."""

DEMO_BUNDLE = "bisenet_lite-world-small-int8"
"""Shipped bundle that `anomseg demo` shows with the shipped drive: two cores keep up with it."""

SYNTHETIC_BUNDLE = "enet-synthetic"
"""Shipped bundle for generated scenes."""


def share_directories() -> list[Path]:
    """Return the existing folders that may hold models/, config/ and launch/, the nearest to this code first."""
    checkout = Path(__file__).resolve().parents[2]
    prefixes = [Path(prefix) for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if prefix]
    # A colcon or pip --target install keeps share/ a few levels above the modules.
    prefixes += [*Path(__file__).resolve().parents[1:6], Path(sys.prefix)]
    candidates = [checkout] if (checkout / "package.xml").is_file() and (checkout / "models").is_dir() else []
    candidates += [prefix / "share" / PACKAGE for prefix in prefixes]
    return list(dict.fromkeys(folder for folder in candidates if folder.is_dir()))


def share_file(relative: str) -> Path:
    """Return a shipped file such as `config/detector.yaml`. Raises ConfigError saying where it was looked for."""
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
            if not contract.parent.name.startswith("."):  # of a save that was killed
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
        raise BundleError(f"{path} does not exist: a change was cut off; rename {left} to it, which is the old bundle")
    known = ", ".join(closest_first(str(name_or_path), shipped)) or "none"
    raise BundleError(f"{str(name_or_path)!r} is neither a bundle directory nor a shipped bundle; shipped: {known}")
