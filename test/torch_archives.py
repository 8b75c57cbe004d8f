"""Archives of torch programs as their members, for tests that change them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Members = dict[str, bytes]


def members_of(program: Path | io.BytesIO) -> Members:
    with zipfile.ZipFile(program) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def archive_of(members: Members, to: Path, **options: Any) -> Path:
    with zipfile.ZipFile(to, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(f"model/{name}", content)
    return to


def rewrite_program(program: Path, to: Path, change: Callable[[Members], object]) -> Path:
    """Copy the program with its members changed."""
    members = members_of(program)
    change(members)
    return archive_of(members, to)


def edit(members: Members, name: str, change: Callable[[Any], object]) -> None:
    content = json.loads(members[name])
    change(content)
    members[name] = json.dumps(content).encode()


def first_node(program: Any) -> Any:
    return next(node for node in program["graph_module"]["graph"]["nodes"] if node["outputs"])
