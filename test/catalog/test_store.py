from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from file_server import FileServer, running

from anomseg_ros.catalog.entries import CatalogEntry, Licence
from anomseg_ros.catalog.http import DownloadError, HttpRules
from anomseg_ros.catalog.store import checkpoint_folder, fetch, git_blob_sha1_of, record_path, verify
from anomseg_ros.errors import CheckpointError

CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
GIT_ID = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
QUICK = HttpRules(timeout_s=0.5, attempts=2, backoff_s=0.01)


@pytest.fixture()
def server() -> Iterator[FileServer]:
    with running(FileServer(CONTENT)) as state:
        yield state


@pytest.fixture()
def entry(server: FileServer) -> CatalogEntry:
    return CatalogEntry(
        "tiny",
        "erfnet",
        "Eromera/erfnet_pytorch",
        19,
        "cityscapes",
        64,
        128,
        server.url(),
        "tiny.pth",
        "https://example.org",
        "A. Author",
        "A Paper",
        Licence("MIT", "https://example.org/licence"),
        "RGB / 255",
    )


@pytest.mark.parametrize(
    ("known", "against"),
    [({"sha256": SHA256}, "the sha256 of the catalog"), ({"git_blob_sha1": GIT_ID}, "the git blob id of the catalog")],
)
def test_published_digest_is_checked(entry: CatalogEntry, tmp_path: Path, known: dict[str, Any], against: str) -> None:
    fetched = fetch(replace(entry, **known), tmp_path, rules=QUICK)
    assert fetched.checked_against == against and fetched.sha256 == SHA256 and fetched.new
    assert fetched.path.read_bytes() == CONTENT


@pytest.mark.parametrize(("kind", "length", "actual"), [("sha256", 64, SHA256), ("git_blob_sha1", 40, GIT_ID)])
def test_file_with_a_wrong_digest_is_removed(
    entry: CatalogEntry, tmp_path: Path, kind: str, length: int, actual: str
) -> None:
    changed: dict[str, Any] = {kind: "0" * length}
    with pytest.raises(DownloadError) as raised:
        fetch(replace(entry, **changed), tmp_path, rules=QUICK)
    assert "0" * length in str(raised.value) and f"got {actual}" in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_unpublished_digest_is_recorded_and_checked_later(
    entry: CatalogEntry, server: FileServer, tmp_path: Path
) -> None:
    first = fetch(entry, tmp_path, rules=QUICK)
    assert first.checked_against == ""
    record = json.loads(record_path(first.path).read_text())
    assert record["sha256"] == SHA256 and record["url"] == entry.url and record["licence"] == "MIT"
    assert "the sha256 recorded when it was fetched on" in verify(first.path).checked_against

    first.path.unlink()
    server.content = b"other" * 1000
    with pytest.raises(DownloadError, match=f"its record of .* says sha256 {SHA256}, got "):
        fetch(entry, tmp_path, rules=QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.pth.fetched.json"]
    server.content = CONTENT
    assert "recorded" in fetch(entry, tmp_path, rules=QUICK).checked_against


def test_existing_file_is_only_verified(entry: CatalogEntry, server: FileServer, tmp_path: Path) -> None:
    fetch(entry, tmp_path, rules=QUICK)
    again = fetch(entry, tmp_path, rules=QUICK)
    assert not again.new and len(server.requests) == 1
    again.path.write_bytes(b"changed")
    with pytest.raises(CheckpointError, match=r"tiny.pth is not the expected file"):
        fetch(entry, tmp_path, rules=QUICK)
    assert len(server.requests) == 1 and again.path.read_bytes() == b"changed"


def test_file_without_a_digest_or_record_is_refused(entry: CatalogEntry, tmp_path: Path) -> None:
    (tmp_path / "tiny.pth").write_bytes(CONTENT)
    with pytest.raises(CheckpointError, match="nothing to compare it with"):
        fetch(entry, tmp_path, rules=QUICK)
    with pytest.raises(CheckpointError, match="is not there"):
        verify(tmp_path / "missing.pth")
    record_path(tmp_path / "tiny.pth").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tiny.pth.fetched.json is damaged"):
        verify(tmp_path / "tiny.pth")


def test_git_blob_id_equals_that_of_git(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    try:
        done = subprocess.run(["git", "hash-object", "--no-filters", str(path)], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    assert git_blob_sha1_of(path) == done.stdout.strip() == GIT_ID


def test_checkpoint_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ANOMSEG_CHECKPOINTS", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert checkpoint_folder() == tmp_path / "anomseg_ros" / "checkpoints"
    monkeypatch.setenv("ANOMSEG_CHECKPOINTS", str(tmp_path / "mine"))
    assert checkpoint_folder() == tmp_path / "mine"
