"""Bundles whose programs are arbitrary bytes, for tests of file operations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anomseg_ros.core.bundle import FORMAT_VERSION, GRAPH_FILE, Bundle, Contract, InputSpec, OutputSpec, save_bundle
from anomseg_ros.core.labels import label_set

BESIDE = {"README.md": b"a model card", "checkpoint.safetensors": b"weights", "scenes.jpg": b"\xff\xd8 a picture"}
"""Files in the folder of a bundle that its contract does not list. plain_bundle adds a folder and a link."""


def plain_contract(**changes: Any) -> Contract:
    """Return a contract of CamVid's classes with two scores and no files."""
    scores = (OutputSpec(name, "float32", name) for name in ("void", "max_logit"))
    values: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "name": "plain",
        "network": "mide_net",
        "precision": "fp32",
        "classes": label_set("camvid"),
        "input": InputSpec(64, 128),
        "outputs": (OutputSpec("labels", "uint8", "train ids"), *scores),
        "files": {},
    }
    return Contract(**{**values, **changes})


def plain_bundle(folder: Path, files: dict[str, bytes] | None = None, **changes: Any) -> Bundle:
    """Write a bundle of these files (default: a graph), and beside them BESIDE, a folder and a link."""
    sources = folder.with_name(f"{folder.name}-sources")
    sources.mkdir(parents=True)
    contents = files or {GRAPH_FILE: b"the graph"}
    for name, content in contents.items():
        (sources / name).write_bytes(content)
    bundle = save_bundle(plain_contract(**changes), {name: sources / name for name in contents}, folder)
    for name, content in BESIDE.items():
        (folder / name).write_bytes(content)
    (folder / "curves").mkdir()
    (folder / "curves" / "void.csv").write_text("0,1")
    (folder / "card").symlink_to("README.md")
    return bundle


def contents(folder: Path) -> dict[str, bytes]:
    """Return relative path -> bytes of every file below a folder, with hidden files; for links, their target."""
    return {
        str(path.relative_to(folder)): bytes(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }
